// The page for people: asks this server for a ranking, shows it as it is computed, and shows how the server is doing.
//
// Texts of users and of the server reach the document through textContent only, so they stay texts whatever they hold.

const $ = (id) => document.getElementById(id);
// The page is PREFIX/ or PREFIX/ui: everything else lies next to it.
const base = new URL('./', location.href);

const PAGE = 200; // documents shown at a time
const PREVIEW = 400; // characters of a document shown at first
const POLL_MS = 2000;
const SAMPLES = 31; // a minute
const RATE_SAMPLES = 6; // rates are of the last ten seconds
const LARGEST_PASTE = 100000; // characters; more would make the field slow, and is kept as a file is
const LARGEST_SNIPPET = 8000; // characters; larger requests go through a file

const EXAMPLE = {
    query: 'What is the capital of China?',
    documents: [
        'Gravity attracts two bodies towards each other.',
        'Shanghai is the largest city in China.',
        'The Great Wall of China is more than 21,000 kilometres long.',
        'Paris is the capital of France.',
        'The capital of China is Beijing.',
        'Rust forms on iron that is left in the rain.',
        'Chinese food varies a lot from region to region.',
    ],
};

const number = new Intl.NumberFormat('en');
const plural = (n, one, many = `${one}s`) => `${number.format(n)} ${n === 1 ? one : many}`;
const seconds = (s) => (s < 0.1 ? `${(s * 1000).toFixed(s < 0.01 ? 1 : 0)} ms` : `${s.toFixed(s < 10 ? 2 : 1)} s`);
const rate = (r) => (r === 0 || r >= 100 ? number.format(Math.round(r)) : r.toPrecision(2));

/** An element with a class and children; strings become text. */
function element(tag, className, ...children) {
    const e = document.createElement(tag);
    if (className) e.className = className;
    e.append(...children);
    return e;
}

const announce = (text) => ($('live').textContent = text);
const calm = () => matchMedia('(prefers-reduced-motion: reduce)').matches;

// ---- the server ------------------------------------------------------------------------------------------------------------------

let key = null;
let keyWanted = false;
try {
    key = sessionStorage.getItem('qwen-rerank-key');
} catch {
    // Storage is blocked: the key lives as long as the page.
}

function setKey(value) {
    key = value;
    try {
        if (value === null) sessionStorage.removeItem('qwen-rerank-key');
        else sessionStorage.setItem('qwen-rerank-key', value);
    } catch {
        // As above.
    }
    $('forget').hidden = value === null;
}

class ServerError extends Error {
    constructor(status, message) {
        super(message);
        this.status = status;
    }
}

/** The message in an error's body, whatever its form. */
function messageOf(body) {
    try {
        const e = JSON.parse(body);
        return String(e.message ?? e.error?.message ?? e.error ?? e.detail);
    } catch {
        return body.slice(0, 500);
    }
}

async function ask(path, options = {}) {
    const headers = { ...options.headers };
    if (key !== null) headers.Authorization = `Bearer ${key}`;
    const response = await fetch(new URL(path, base), { ...options, headers, cache: 'no-store' });
    if (response.ok) return response;
    const error = new ServerError(response.status, messageOf(await response.text()));
    if (error.status === 401) askForKey();
    throw error;
}

/** The server-sent events of an answer, as {name, data}. */
async function* eventsOf(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let line = '';
    let name = 'message';
    let data = [];
    try {
        for (let part = await reader.read(); !part.done; part = await reader.read()) {
            const pieces = part.value.split('\n');
            const rest = pieces.pop();
            for (const piece of pieces) {
                line = (line + piece).replace(/\r$/, '');
                const field = /^(event|data): ?/.exec(line);
                if (field?.[1] === 'event') name = line.slice(field[0].length);
                else if (field) data.push(line.slice(field[0].length));
                else if (line === '') {
                    if (data.length > 0) yield { name, data: data.join('\n') };
                    name = 'message';
                    data = [];
                }
                line = '';
            }
            line += rest;
        }
    } finally {
        reader.cancel().catch(() => {}); // of a cancelled request
    }
}

// ---- the API key -----------------------------------------------------------------------------------------------------------------

let afterKey = null; // what to do again with a key

function askForKey() {
    keyWanted = true;
    $('key-title').textContent = key === null ? 'This server asks for an API key' : 'The server did not accept this API key';
    $('key-form').hidden = false;
    writeSnippets();
}

$('key-form').addEventListener('submit', (event) => {
    event.preventDefault();
    const value = $('key').value.trim();
    if (value === '') return;
    setKey(value);
    $('key').value = '';
    $('key-form').hidden = true;
    const again = afterKey;
    afterKey = null;
    loadAbout();
    poll();
    if (again) again();
    else $('query').focus();
});

$('forget').addEventListener('click', () => {
    setKey(null);
    $('state').focus();
    loadAbout();
});

// ---- documents -------------------------------------------------------------------------------------------------------------------

let files = []; // {name, text, json: texts or null, cut: {separator: texts}}

const isText = (value) => typeof value === 'string';
const textOf = (value) => (isText(value) ? value : isText(value?.text) ? value.text : undefined);

/** The texts of a JSON list or of JSON lines; null if it is neither. */
function readJson(text) {
    if (!/^\s*[[{"]/.test(text)) return null;
    let values;
    try {
        values = [JSON.parse(text)].flat();
    } catch {
        try {
            const lines = text.split('\n').filter((line) => line.trim() !== '');
            values = lines.map((line) => JSON.parse(line));
        } catch {
            return null;
        }
    }
    const texts = values.map(textOf);
    return texts.includes(undefined) ? null : texts;
}

/** What is wrong with a file of JSON that readJson cannot read. */
function jsonFault(text) {
    const lines = text.split('\n');
    for (const [i, line] of lines.entries()) {
        if (line.trim() === '') continue;
        try {
            if (textOf(JSON.parse(line)) === undefined) return `line ${i + 1} is neither a string nor an object with a "text"`;
        } catch {
            return `line ${i + 1} is not JSON`;
        }
    }
    return 'it holds no documents';
}

function cut(text, separator) {
    const plain = text.replace(/\r\n?/g, '\n');
    const parts = separator === 'line' ? plain.split('\n') : plain.split(/\n[ \t]*\n/);
    return parts.map((part) => part.replace(/^\n+|\s+$/g, '')).filter((part) => part !== '');
}

function readDocuments() {
    const separator = $('form').elements.separator.value;
    const typed = $('documents').value;
    const lists = [readJson(typed) ?? cut(typed, separator)];
    for (const file of files) lists.push(file.json ?? (file.cut[separator] ??= cut(file.text, separator)));
    return lists.flat();
}

/** A file may hold a whole request, such as the one that this page saves. */
function readRequestFile(text) {
    try {
        const value = JSON.parse(text);
        return isText(value?.query) && Array.isArray(value.documents) ? value : null;
    } catch {
        return null;
    }
}

async function addFiles(list, intoQuery) {
    const faults = [];
    for (const file of list) {
        const text = (await file.text()).replace(/^\uFEFF/, '');
        const request = readRequestFile(text);
        const json = request ? readJson(JSON.stringify(request.documents)) : readJson(text);
        if (text.includes('\0')) faults.push(`${file.name} is not a text file.`);
        else if (intoQuery) $('query').value = text.trim();
        else if (request && json === null) faults.push(`${file.name}: its documents are neither strings nor objects with a "text".`);
        else if (json === null && /\.(jsonl?|ndjson)$/i.test(file.name)) faults.push(`${file.name}: ${jsonFault(text)}.`);
        else files.push({ name: file.name, text, json, cut: {} });
        if (request && json !== null) {
            $('query').value = request.query;
            $('instruction').value = isText(request.instruction) ? request.instruction : '';
            $('top-n').value = Number.isInteger(request.top_n) ? request.top_n : '';
        }
    }
    showFormError(faults.join(' '));
    showFiles();
}

function showFiles() {
    const separator = $('form').elements.separator.value;
    $('chips').replaceChildren(
        ...files.map((file, i) => {
            const n = (file.json ?? (file.cut[separator] ??= cut(file.text, separator))).length;
            const remove = element('button', 'chip-remove', '×');
            remove.type = 'button';
            remove.setAttribute('aria-label', `Remove ${file.name}`);
            remove.addEventListener('click', () => {
                files.splice(i, 1);
                showFiles();
                ($('chips').querySelectorAll('button')[Math.min(i, files.length - 1)] ?? $('files')).focus();
            });
            return element('li', '', element('span', 'chip-name', file.name), element('span', 'quiet', number.format(n)), remove);
        }),
    );
    $('chips').hidden = files.length === 0;
    showChange();
}

$('files').addEventListener('change', async () => {
    await addFiles([...$('files').files], false);
    $('files').value = '';
});

$('documents').addEventListener('paste', (event) => {
    const text = event.clipboardData.getData('text/plain');
    if (text.length <= LARGEST_PASTE) return;
    event.preventDefault();
    addFiles([new File([text], 'Pasted text')], false);
});

const dragsFiles = (event) => event.dataTransfer?.types.includes('Files');
window.addEventListener('dragover', (event) => {
    if (!dragsFiles(event)) return;
    event.preventDefault();
    $('form').classList.add('dropping');
});
window.addEventListener('dragleave', (event) => {
    if (event.relatedTarget === null) $('form').classList.remove('dropping');
});
window.addEventListener('drop', (event) => {
    if (!dragsFiles(event)) return;
    event.preventDefault();
    $('form').classList.remove('dropping');
    addFiles([...event.dataTransfer.files], event.target === $('query'));
});

// ---- the form --------------------------------------------------------------------------------------------------------------------

let replaced = null; // what Example or Clear wrote over

const isEmpty = () => $('query').value.trim() === '' && $('documents').value.trim() === '' && files.length === 0;

function readForm() {
    const request = {};
    if ($('model').value !== '') request.model = $('model').value;
    request.query = $('query').value.trim();
    request.documents = readDocuments();
    if ($('instruction').value.trim() !== '') request.instruction = $('instruction').value.trim();
    if ($('top-n').value !== '') request.top_n = Number($('top-n').value);
    return request;
}

function fillForm(query, documents) {
    if (!isEmpty())
        replaced = {
            query: $('query').value,
            documents: $('documents').value,
            separator: $('form').elements.separator.value,
            instruction: $('instruction').value,
            topN: $('top-n').value,
            files,
        };
    $('undo').hidden = replaced === null;
    $('query').value = query;
    $('documents').value = documents.join('\n');
    $('form').elements.separator.value = 'line';
    $('instruction').value = '';
    $('top-n').value = '';
    files = [];
    showFormError('');
    showFiles();
}

function showFormError(text, field) {
    for (const id of ['query', 'documents', 'top-n']) {
        $(id).toggleAttribute('aria-invalid', id === field);
        if (id === field) $(id).setAttribute('aria-invalid', 'true');
    }
    $('form-error').textContent = text;
    $('form-error').hidden = text === '';
    if (field) $(field).focus();
}

let changeTimer;
function showChange() {
    clearTimeout(changeTimer);
    const n = readDocuments().length;
    $('count').textContent = n === 0 ? '' : plural(n, 'document');
    writeSnippets();
}

// While somebody types, it can wait.
$('form').addEventListener('input', (event) => {
    clearTimeout(changeTimer);
    if (event.target.name === 'separator') showFiles();
    else changeTimer = setTimeout(showChange, 120);
});

function showExample() {
    fillForm(EXAMPLE.query, EXAMPLE.documents);
    rank();
}
$('example').addEventListener('click', showExample);
$('first-example').addEventListener('click', () => {
    $('rank').focus(); // this button goes away
    showExample();
});
$('clear').addEventListener('click', () => {
    fillForm('', []);
    $('query').focus();
});
$('undo').addEventListener('click', () => {
    $('query').value = replaced.query;
    $('documents').value = replaced.documents;
    $('form').elements.separator.value = replaced.separator;
    $('instruction').value = replaced.instruction;
    $('top-n').value = replaced.topN;
    files = replaced.files;
    replaced = null;
    $('undo').hidden = true;
    $('query').focus();
    showFiles();
});

$('form').addEventListener('submit', (event) => {
    event.preventDefault();
    rank();
});
$('cancel').addEventListener('click', () => cancel());
document.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        rank();
    } else if (event.key === 'Escape' && run !== null) cancel();
});
if (/Mac|iPhone|iPad/.test(navigator.platform)) $('rank').querySelector('kbd').textContent = '⌘ ↵';

// ---- ranking ---------------------------------------------------------------------------------------------------------------------

let run = null; // the one in work

function cancel() {
    if (run === null) return;
    if (document.activeElement === $('cancel')) $('rank').focus();
    run.controller.abort();
}

async function rank() {
    if (run !== null) return;
    const request = readForm();
    if (request.query === '') return showFormError('Please write a query first.', 'query');
    if (request.documents.length === 0) return showFormError('Please add documents to rank.', 'documents');
    if (request.top_n !== undefined && !(Number.isInteger(request.top_n) && request.top_n > 0))
        return showFormError('How many to show must be a whole number of at least 1.', 'top-n');
    showFormError('');

    const n = request.documents.length;
    const mine = {
        controller: new AbortController(),
        documents: request.documents,
        wanted: request.top_n ?? n,
        found: new Array(n), // {score, tokens?, truncated?} of each document that is done
        order: [], // of the documents that are done, best first
        sorted: true,
        begin: performance.now(),
        shown: PAGE,
    };
    run = mine;
    showRunning(mine);
    let error = null;
    let outcome = {};
    try {
        const response = await ask('v1/rerank', {
            method: 'POST',
            headers: { 'Content-Type': 'application/json', Accept: 'text/event-stream' },
            body: JSON.stringify(request),
            signal: mine.controller.signal,
        });
        outcome = await readAnswer(mine, response);
    } catch (e) {
        error = e;
    }
    mine.seconds = (performance.now() - mine.begin) / 1000;
    run = null;
    showFinished(mine, outcome, error);
}

/** Reads an answer to its end and returns what it says of the whole. */
async function readAnswer(mine, response) {
    if (!response.headers.get('Content-Type')?.startsWith('text/event-stream')) {
        const answer = await response.json();
        takeFinal(mine, answer);
        return { answer, timing: response.headers.get('Server-Timing'), truncated: Number(response.headers.get('X-Truncated-Documents')) };
    }
    for await (const event of eventsOf(response)) {
        if (event.name === 'progress') {
            takeProgress(mine, JSON.parse(event.data));
        } else if (event.name === 'result') {
            const answer = JSON.parse(event.data);
            takeFinal(mine, answer);
            return { answer };
        } else if (event.name === 'error') {
            throw new ServerError(JSON.parse(event.data).error?.code ?? 500, messageOf(event.data));
        }
    }
    throw new ServerError(0, 'The answer ended before it was complete.');
}

function takeProgress(mine, progress) {
    for (const result of progress.results) {
        if (mine.found[result.index] !== undefined) continue;
        mine.found[result.index] = { score: result.relevance_score, tokens: result.tokens, truncated: result.truncated };
        mine.order.push(result.index);
    }
    mine.sorted = false;
    showSoon(mine);
}

function takeFinal(mine, answer) {
    mine.order = answer.results.map((result) => result.index);
    for (const result of answer.results) mine.found[result.index] = { ...mine.found[result.index], score: result.relevance_score };
    mine.sorted = true;
}

function sort(mine) {
    if (mine.sorted) return;
    mine.order.sort((a, b) => mine.found[b].score - mine.found[a].score || a - b);
    mine.sorted = true;
}

// ---- showing a ranking -----------------------------------------------------------------------------------------------------------

let drawn = null; // the run whose rows are shown
const rows = new Map(); // of the documents shown, by index
let nextDraw = 0;
let drawWaits = false;
let nextSaid = 0;

function showRunning(mine) {
    const n = mine.documents.length;
    $('rank').setAttribute('aria-disabled', 'true');
    $('cancel').hidden = false;
    $('results').setAttribute('aria-busy', 'true');
    $('empty').hidden = $('error').hidden = $('facts').hidden = true;
    $('list').classList.add('stale');
    $('more').hidden = true;
    $('progress').hidden = false;
    $('progress').removeAttribute('value');
    $('summary').textContent = `Ranking ${plural(n, 'document')}`;
    announce(`Ranking ${plural(n, 'document')}.`);
    nextSaid = performance.now() + 3000;
    if (matchMedia('(max-width: 60rem)').matches) $('results').scrollIntoView({ behavior: calm() ? 'auto' : 'smooth' });
}

/** Draws in the next frame, unless the last one is only just done: the page stays usable however fast results arrive. */
function showSoon(mine) {
    if (drawWaits) return;
    drawWaits = true;
    requestAnimationFrame((now) => {
        drawWaits = false;
        if (run !== mine) return;
        if (now < nextDraw) return showSoon(mine);
        const begin = performance.now();
        draw(mine);
        const done = countDone(mine);
        const n = mine.documents.length;
        $('progress').max = n;
        $('progress').value = done;
        $('summary').textContent = `${number.format(done)} of ${number.format(n)}, ${seconds((begin - mine.begin) / 1000)}`;
        if (begin >= nextSaid) {
            announce(`${number.format(done)} of ${number.format(n)} done.`);
            nextSaid = begin + 3000;
        }
        nextDraw = begin + Math.max(100, 8 * (performance.now() - begin));
    });
}

const countDone = (mine) => mine.order.length;

function draw(mine) {
    sort(mine);
    if (drawn !== mine) {
        drawn = mine;
        rows.clear();
        $('list').replaceChildren();
        $('list').classList.remove('stale');
    }
    const shown = mine.order.slice(0, Math.min(mine.shown, mine.wanted));
    const glide = run === mine && shown.length <= 50 && !calm();
    const tops = glide ? new Map([...rows].map(([index, row]) => [index, row.offsetTop])) : null;

    const gone = new Set(rows.keys());
    let next = $('list').firstChild;
    shown.forEach((index, place) => {
        gone.delete(index);
        let row = rows.get(index);
        if (row === undefined) rows.set(index, (row = makeRow(mine, index)));
        if (row === next) next = next.nextSibling;
        else $('list').insertBefore(row, next);
        updateRow(row, mine, index, place + 1);
    });
    for (const index of gone) {
        rows.get(index).remove();
        rows.delete(index);
    }
    $('list').hidden = shown.length === 0;

    if (glide)
        for (const [index, top] of tops) {
            const by = top - (rows.get(index)?.offsetTop ?? top);
            if (by !== 0)
                rows.get(index).animate([{ transform: `translateY(${by}px)` }, { transform: 'none' }], {
                    duration: 180,
                    easing: 'ease-out',
                });
        }

    const left = Math.min(mine.order.length, mine.wanted) - shown.length;
    $('more').hidden = run === mine || left <= 0;
    $('more').textContent = `Show ${number.format(Math.min(PAGE, left))} more of ${number.format(left)}`;
}

$('more').addEventListener('click', () => {
    const first = drawn.shown;
    drawn.shown += PAGE;
    draw(drawn);
    const row = $('list').children[first];
    row.tabIndex = -1;
    row.focus({ preventScroll: true });
});

const scoreText = (score) => (score === 0 || score >= 0.0001 ? score.toFixed(4) : score.toExponential(1));

function makeRow(mine, index) {
    const text = mine.documents[index];
    const shown = element('p', 'text', preview(text));
    const body = element('div', 'body', shown);
    if (shown.textContent !== text) {
        const whole = element('button', 'plain whole', 'Whole text');
        whole.type = 'button';
        whole.setAttribute('aria-expanded', 'false');
        whole.addEventListener('click', () => {
            const open = whole.getAttribute('aria-expanded') === 'false';
            whole.setAttribute('aria-expanded', String(open));
            whole.textContent = open ? 'Less' : 'Whole text';
            shown.textContent = open ? text : preview(text);
        });
        body.append(whole);
    }
    body.append(element('p', 'meta'));
    const bar = element('span', 'bar', element('span', 'fill'));
    bar.setAttribute('aria-hidden', 'true');
    return element('li', '', element('span', 'rank'), element('div', 'measure', element('span', 'score'), bar), body);
}

function preview(text) {
    const lines = text.split('\n', 6);
    const short = [
        ...lines
            .slice(0, 5)
            .join('\n')
            .slice(0, PREVIEW + 1),
    ];
    return short.length > PREVIEW || lines.length > 5 ? `${short.slice(0, PREVIEW).join('')}…` : text;
}

function updateRow(row, mine, index, place) {
    const { score, tokens, truncated } = mine.found[index];
    const state = `${place} ${score} ${tokens}`;
    if (row.state === state) return;
    row.state = state;
    row.querySelector('.rank').textContent = number.format(place);
    row.querySelector('.score').textContent = scoreText(score);
    const fill = row.querySelector('.fill');
    fill.style.width = `${100 * Math.min(1, Math.max(0, score))}%`;
    fill.classList.toggle('low', score < 0.5);

    const by = index + 1 - place;
    const places = plural(Math.abs(by), 'place');
    const [mark, spoken, kind] =
        by > 0 ? ['▲', `up ${places}`, 'up'] : by < 0 ? ['▼', `down ${places}`, 'down'] : ['=', 'same place', 'same'];
    const seen = element('span', '', by === 0 ? mark : `${mark} ${number.format(Math.abs(by))}`);
    seen.setAttribute('aria-hidden', 'true');
    const parts = [
        element('span', `moved ${kind}`, seen, element('span', 'sr', spoken)),
        element('span', '', `document ${number.format(index + 1)}`),
    ];
    if (tokens !== undefined) parts.push(element('span', '', plural(tokens, 'token')));
    if (truncated) parts.push(element('span', 'cut', 'cut to fit'));
    row.querySelector('.meta').replaceChildren(...parts);
}

const TITLES = {
    0: 'The connection was lost.',
    400: 'The server could not use this request.',
    401: 'The server asks for an API key.',
    403: 'The server does not allow this.',
    404: 'The server does not know this model or path.',
    413: 'This is more than the server takes at once.',
    422: 'The server could not use this request.',
    429: 'The server is busy. Try again in a moment.',
    500: 'Something went wrong in the server.',
    503: 'The server is not ready. Try again in a moment.',
    504: 'It took too long, and the server gave up.',
};

function showFinished(mine, { answer, timing, truncated }, error) {
    const n = mine.documents.length;
    const cancelled = error?.name === 'AbortError';
    $('rank').removeAttribute('aria-disabled');
    if (document.activeElement === $('cancel')) $('rank').focus();
    $('cancel').hidden = true;
    $('progress').hidden = true;
    $('results').setAttribute('aria-busy', 'false');
    draw(mine);
    const done = countDone(mine);

    if (error && !cancelled) {
        const unreachable = !(error instanceof ServerError);
        $('error-title').textContent = unreachable
            ? 'The server cannot be reached, or its answer was cut off.'
            : (TITLES[error.status] ?? `The server answered with status ${error.status}.`);
        $('error-text').textContent = error.message;
        $('error').hidden = false;
        if (error.status === 401) {
            afterKey = rank;
            $('key').focus();
        }
    }
    if (error) {
        const what = cancelled ? 'Cancelled' : 'Not finished';
        $('summary').textContent = done > 0 ? `${what}: ${number.format(done)} of ${number.format(n)}` : cancelled ? 'Cancelled' : '';
        announce(cancelled ? `Cancelled after ${number.format(done)} of ${plural(n, 'document')}.` : '');
        $('empty').hidden = done > 0 || !cancelled;
        return;
    }

    const took = seconds(mine.seconds);
    const best = mine.order[0];
    $('summary').textContent = `${plural(n, 'document')} in ${took}`;
    announce(
        `Done: ${plural(n, 'document')} in ${took}. The best is document ${best + 1} with a score of ${scoreText(mine.found[best].score)}.`,
    );
    showFacts(mine, answer, timing, truncated);
}

function showFacts(mine, answer, timing, truncated) {
    const tokens = answer.usage?.total_tokens;
    const cutOnes = truncated || mine.found.filter((found) => found.truncated).length;
    const facts = [`${rate(mine.documents.length / mine.seconds)} documents/s`];
    if (tokens !== undefined) facts.push(plural(tokens, 'token'), `${rate(tokens / mine.seconds)} tokens/s`);
    const inference = /inference;dur=([\d.]+)/.exec(timing ?? '');
    if (inference) facts.push(`${seconds(inference[1] / 1000)} of it in the model`);
    if (cutOnes > 0) facts.push(`${number.format(cutOnes)} cut to fit`);
    if (mine.wanted < mine.documents.length) facts.push(`the best ${number.format(mine.wanted)} shown`);
    $('facts').replaceChildren(...facts.map((fact) => element('span', '', fact)));
    $('facts').hidden = false;
}

// ---- the request as a program ----------------------------------------------------------------------------------------------------

const shellQuote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function writeSnippets() {
    const request = readForm();
    if (isEmpty()) Object.assign(request, EXAMPLE);
    const size = request.documents.reduce((sum, text) => sum + text.length + 8, request.query.length);
    const viaFile = size > LARGEST_SNIPPET;
    const withKey = keyWanted || key !== null;
    const url = new URL('v1/rerank', base).href;
    const json = viaFile ? '' : JSON.stringify(request, null, 2);

    $('save').hidden = !viaFile;
    $('curl').textContent = [
        `curl -s ${shellQuote(url)}`,
        "  -H 'Content-Type: application/json'",
        ...(withKey ? ['  -H "Authorization: Bearer $QWEN_RERANK_API_KEY"'] : []),
        viaFile ? '  --data-binary @request.json' : `  -d ${shellQuote(json)}`,
    ].join(' \\\n');

    // JSON of texts and whole numbers is Python, too.
    $('python').textContent = [
        'import json',
        ...(withKey ? ['import os'] : []),
        'import urllib.request',
        '',
        viaFile ? 'request = json.load(open("request.json"))' : `request = ${json}`,
        `headers = {"Content-Type": "application/json"}`,
        ...(withKey ? ['headers["Authorization"] = "Bearer " + os.environ["QWEN_RERANK_API_KEY"]'] : []),
        'call = urllib.request.Request(',
        `    ${JSON.stringify(url)}, json.dumps(request).encode(), headers`,
        ')',
        'answer = json.load(urllib.request.urlopen(call))',
        'for result in answer["results"]:',
        '    text = request["documents"][result["index"]]',
        '    print(f"{result[\'relevance_score\']:.4f}  {text}")',
    ].join('\n');
}

$('save').addEventListener('click', () => {
    const link = element('a');
    link.href = URL.createObjectURL(new Blob([JSON.stringify(readForm())], { type: 'application/json' }));
    link.download = 'request.json';
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});

async function copy(text) {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    // Without HTTPS or localhost there is only the old way.
    const area = element('textarea', 'sr', text);
    document.body.append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    if (!done) throw new Error('copying is not allowed');
}

for (const button of document.querySelectorAll('[data-copies]'))
    button.addEventListener('click', async () => {
        writeSnippets(); // what was typed a moment ago may not be in them yet
        const said = await copy($(button.dataset.copies).textContent).then(
            () => 'Copied',
            () => 'Not allowed',
        );
        button.textContent = said;
        announce(said);
        button.focus();
        setTimeout(() => (button.textContent = 'Copy'), 1500);
    });

// ---- the state of the server -----------------------------------------------------------------------------------------------------

/** What does not change while the server runs. Without it, because of a missing key for example, ranking may work all the same. */
async function loadAbout() {
    try {
        const about = await (await ask('v1/config')).json();
        const models = await (await ask('v1/models')).json();
        showAbout(about);
        showModels(models.data);
    } catch (error) {
        if (error.status !== 401) console.warn(error);
    }
    writeSnippets();
}

function showModels(models) {
    const chosen = $('model').value;
    $('model').replaceChildren(...models.map((model) => new Option(model.id, model.id)));
    if (models.some((model) => model.id === chosen)) $('model').value = chosen;
}

/** `usable` is null for what the server had no reason to load. */
function stateOf(backend) {
    if (backend.chosen) return 'in use';
    if (backend.usable === null) return 'not tried';
    return backend.usable ? 'usable' : 'not usable';
}

function showAbout(about) {
    $('version').textContent = about.version;
    setTile('Model', about.models?.map((m) => m.model).join(', ') ?? about.model);
    setTile('Backend', about.backend, about.device);
    setTile('Numbers', about.dtype, `up to ${number.format(about.max_length)} tokens`);
    // Commands are in backticks.
    const parts = `${about.note}.`.split('`');
    $('note').replaceChildren(...parts.map((part, i) => (i % 2 === 1 ? element('code', '', part) : part)));
    $('note').hidden = !about.note;

    const backends = about.backends ?? [];
    $('backends').hidden = backends.length === 0;
    $('backends')
        .querySelector('ul')
        .replaceChildren(
            ...backends.map((b) =>
                element(
                    'li',
                    '',
                    element('strong', '', b.name),
                    ` ${stateOf(b)}${b.why ? `: ${b.why}` : ''}`,
                ),
            ),
        );
    const isDefault = (setting) => setting.origin === 'default';
    const settings = (about.settings ?? []).sort((a, b) => isDefault(a) - isDefault(b)); // what was chosen, first
    $('settings').hidden = settings.length === 0;
    $('settings')
        .querySelector('tbody')
        .replaceChildren(
            ...settings.map((s) => element('tr', '', ...[s.name, s.value, s.origin].map((v) => element('td', '', String(v ?? ''))))),
        );
    if (about.profile) setTile('Profile', about.profile);
}

const tiles = new Map();

/** One figure of the panel. */
function setTile(name, value, detail = '') {
    let tile = tiles.get(name);
    if (tile === undefined) {
        tile = element('div', 'tile', element('dt', '', name), element('dd', 'value'), element('dd', 'quiet'));
        tiles.set(name, tile);
        $('tiles').append(tile);
    }
    tile.querySelector('.value').textContent = value ?? '';
    tile.querySelector('.quiet').textContent = detail ?? '';
}

/** A line below a figure: how it went in the last minute. */
function setChart(name, values) {
    const namespace = 'http://www.w3.org/2000/svg';
    let line = tiles.get(name).querySelector('polyline');
    if (line === null) {
        const svg = document.createElementNS(namespace, 'svg');
        svg.setAttribute('viewBox', `0 0 ${SAMPLES - 2} 20`);
        svg.setAttribute('preserveAspectRatio', 'none');
        svg.setAttribute('aria-hidden', 'true');
        line = svg.appendChild(document.createElementNS(namespace, 'polyline'));
        tiles.get(name).append(svg);
    }
    const top = Math.max(...values, 1e-9); // all zero is a line at the bottom
    const left = SAMPLES - 1 - values.length;
    line.setAttribute('points', values.map((v, i) => `${left + i},${(19 - (18 * v) / top).toFixed(2)}`).join(' '));
}

const COUNTERS = {
    'Requests/s': 'inference_duration_seconds_count', // requests for scores, not those of this panel
    'Documents/s': 'documents_total',
    'Tokens/s': 'computed_tokens_total',
};
let samples = []; // {time, one for each counter}

function readMetrics(text) {
    const values = {};
    for (const [, name, value] of text.matchAll(/^qwen_rerank_(\w+) (\S+)$/gm)) values[name] = Number(value);
    return values;
}

function showMetrics(metrics) {
    const now = { time: performance.now() / 1000, ...metrics };
    const last = samples.at(-1);
    if (last && now.documents_total < last.documents_total) samples = []; // another process
    samples = [...samples, now].slice(-SAMPLES);
    setTile(
        'In work or waiting',
        plural(metrics.requests_in_flight, 'request'),
        `${plural(metrics.documents_waiting ?? 0, 'document')} waiting`,
    );
    for (const [name, counter] of Object.entries(COUNTERS)) {
        const between = (from, to) => (to[counter] - from[counter]) / (to.time - from.time);
        const from = samples.at(-Math.min(samples.length, RATE_SAMPLES));
        setTile(name, samples.length > 1 ? rate(between(from, now)) : '–', `${number.format(metrics[counter])} in all`);
        setChart(
            name,
            samples.slice(1).map((sample, i) => between(samples[i], sample)),
        );
    }
}

function showState(word, kind, detail) {
    if ($('state-text').textContent === word) return;
    $('state-text').textContent = word;
    $('state').className = `state ${kind}`;
    setTile('State', word, detail);
    if (kind === 'good') loadAbout();
}

async function readState() {
    try {
        const metrics = readMetrics(await (await ask('metrics')).text());
        showMetrics(metrics);
        if (metrics.ready === 1) showState('Ready', 'good', '');
        else showState('Not ready', 'waiting', 'loading or stopping');
    } catch (error) {
        samples = [];
        if (error.status === 401) showState('Key needed', 'waiting', '');
        else showState('Unreachable', 'bad', 'trying again');
    }
}

let pollTimer;
let polling = false;

/** Only while somebody looks. */
async function poll() {
    clearTimeout(pollTimer);
    if (document.hidden || polling) return;
    polling = true;
    await readState();
    polling = false;
    if ($('state-text').textContent !== 'Key needed') pollTimer = setTimeout(poll, POLL_MS);
}

for (const name of ['State', 'Model', 'Backend', 'Numbers', 'In work or waiting', ...Object.keys(COUNTERS)]) setTile(name, '–');
$('forget').hidden = key === null;
document.addEventListener('visibilitychange', poll);
showChange();
poll();
