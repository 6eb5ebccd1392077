// The page for people, in a real browser, against the real program.
const assert = require('node:assert/strict');
const { execFileSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { after, afterEach, before, beforeEach, describe, test } = require('node:test');
const { chromium } = require('playwright-core');
const { root, startFake, startReal } = require('./servers');

const HANG_MS = 30000; // only a hang takes this long
const screenshots = path.join(root, 'build', 'page-screenshots');
const axe = fs.readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');

let browser, server, page;
let toStop = [];
let complaints = []; // of the browser: exceptions, errors, violated policies

before(async () => {
    fs.mkdirSync(screenshots, { recursive: true });
    browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox'] });
    server = await startReal();
});

after(async () => {
    await browser?.close();
    await server?.stop();
});

async function start(starter, ...args) {
    const started = await starter(...args);
    toStop.push(started);
    return started;
}

/** Opens the page in a browser of its own; complaints are looked at after the test. */
async function open(url = server.url, options = {}, state = 'Ready') {
    const context = await browser.newContext({ reducedMotion: 'reduce', ...options });
    toStop.push({ stop: () => context.close() });
    context.setDefaultTimeout(HANG_MS);
    page = await context.newPage();
    page.on('pageerror', (error) => complaints.push(error.message));
    page.on('dialog', (dialog) => complaints.push(`dialog: ${dialog.message()}`));
    page.on('console', (message) => {
        if (['error', 'warning'].includes(message.type())) complaints.push(message.text());
    });
    await page.goto(url);
    await seeState(state);
    return page;
}

/** Takes back the complaints that a test provokes. */
function expectComplaints(pattern) {
    complaints = complaints.filter((complaint) => !pattern.test(complaint));
}

beforeEach(() => {
    complaints = [];
    toStop = [];
});
afterEach(async () => {
    for (const s of toStop.reverse()) await s.stop();
    assert.deepEqual(complaints, []);
});

const waitFor = (condition, arg) => page.waitForFunction(condition, arg, { timeout: HANG_MS });
const seeState = (word) => waitFor((wanted) => document.getElementById('state-text').textContent === wanted, word);
const idle = () => waitFor(() => document.getElementById('results').getAttribute('aria-busy') === 'false');
const texts = () => page.locator('#list .text').allTextContents();
const scores = async () => (await page.locator('#list .score').allTextContents()).map(Number);

async function fill(query, documents) {
    await page.fill('#query', query);
    await page.fill('#documents', documents);
}

async function rank(query, documents) {
    if (query !== undefined) await fill(query, documents);
    await page.click('#rank');
    await idle();
}

const file = (name, text) => ({ name, mimeType: 'text/plain', buffer: Buffer.from(text) });

const chips = (n) => waitFor((n) => document.querySelectorAll('#chips li').length === n, n);

/** Chooses files that can be read, and waits until they are. */
async function choose(...files) {
    const before = await page.locator('#chips li').count();
    await page.setInputFiles('#files', files);
    await chips(before + files.length);
}

/** Drops a file as a person does. */
async function drop(selector, name, text) {
    const transfer = await page.evaluateHandle(
        ([name, text]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([text], name));
            return transfer;
        },
        [name, text],
    );
    await page.dispatchEvent(selector, 'dragover', { dataTransfer: transfer });
    await page.dispatchEvent(selector, 'drop', { dataTransfer: transfer });
}

describe('ranking', () => {
    test('one click shows a newcomer a ranked answer', async () => {
        await open();
        await page.click('#first-example');
        await idle();
        assert.equal((await texts())[0], 'The capital of China is Beijing.');
        const found = await scores();
        assert.equal(found.length, 7);
        assert.deepEqual(found, found.toSorted?.((a, b) => b - a) ?? [...found].sort((a, b) => b - a));
        const best = page.locator('#list li').first();
        assert.match(await best.innerText(), /document 5/);
        assert.match(await best.locator('.moved').textContent(), /up 4 places/);
        assert.match(await best.locator('.meta').textContent(), /\d+ tokens/);
        const bar = await best.locator('.fill').evaluate((e) => parseFloat(e.style.width));
        assert.ok(Math.abs(bar - 100 * found[0]) < 0.1, `bar of ${bar} % for ${found[0]}`);
        assert.match(await page.textContent('#summary'), /^7 documents in [\d.]+ m?s$/);
        assert.match(await page.textContent('#live'), /^Done: 7 documents .* document 5 with a score of 0\.\d+/);
        assert.match(await page.textContent('#facts'), /tokens\/s/);
    });

    test('the built-in model is called what it is', async () => {
        await open();
        await page.waitForSelector('#note');
        assert.match(await page.innerText('#note'), /demo model/);
        assert.deepEqual(await page.locator('#note code').allTextContents(), [
            'qwen-rerank pull 0.6b',
        ]);
        assert.equal(await page.inputValue('#model'), 'builtin');
    });

    test('top n, instruction and model are sent', async () => {
        await open();
        await page.fill('#top-n', '2');
        await page.fill('#instruction', 'Find the animal');
        const [request] = await Promise.all([page.waitForRequest('**/v1/rerank'), rank('cat', 'dog\ncat\nstone')]);
        const { model, top_n, instruction, documents } = request.postDataJSON();
        assert.deepEqual(
            { model, top_n, instruction, documents },
            { model: 'builtin', top_n: 2, instruction: 'Find the animal', documents: ['dog', 'cat', 'stone'] },
        );
        assert.equal((await texts()).length, 2);
    });

    test('hostile texts stay texts', async () => {
        await open();
        const hostile = [
            '<img src=x onerror=alert(1)>',
            '<script>alert(2)</script>',
            '"><svg onload=alert(3)>',
            '</pre><iframe src="javascript:alert(4)">',
        ];
        await choose(file('<img src=x onerror=alert(5)>.txt', 'harmless'));
        await rank(`<b>which?</b>' "$(id)`, hostile.join('\n'));
        assert.deepEqual((await texts()).sort(), [...hostile, 'harmless'].sort());
        assert.equal(await page.locator('main img, main iframe, main script, main b, #list svg').count(), 0);
        assert.equal(await page.locator('.chip-name').textContent(), '<img src=x onerror=alert(5)>.txt');
    });

    test('documents of several lines are separated by blank lines', async () => {
        await open();
        await page.check('[name=separator][value=blank]');
        await rank('two', 'one\ntwo\n\n\nthree\nfour\n \nfive');
        assert.deepEqual((await texts()).sort(), ['five', 'one\ntwo', 'three\nfour']);
        await waitFor(() => document.getElementById('count').textContent === '3 documents');
    });

    test('long texts are shown in part, and whole on demand; cut ones are marked', async () => {
        await open();
        const long = 'word '.repeat(6000).trim();
        await rank('word', `short\n${long}`);
        const row = page.locator('#list li', { has: page.locator('.whole') });
        assert.equal((await row.locator('.text').textContent()).length, 401);
        assert.match(await row.locator('.meta').textContent(), /cut to fit/);
        assert.match(await page.textContent('#facts'), /1 cut to fit/);
        await row.locator('.whole').click();
        assert.equal(await row.locator('.text').textContent(), long);
    });

    test('ten thousand documents', async () => {
        await open();
        const lines = Array.from({ length: 10000 }, (_, i) => JSON.stringify({ text: `note ${i}` }));
        await choose(file('many.jsonl', lines.join('\n')));
        assert.equal(await page.textContent('#count'), '10,000 documents');
        await page.fill('#query', 'note 77');
        await page.click('#rank');
        await waitFor(() => document.getElementById('list').children.length === 200 && document.getElementById('progress').value < 1e4); // while it is computed
        await page.evaluate(() => scrollTo(0, 1000));
        await idle();
        assert.ok((await page.locator('#summary').boundingBox()).y >= 0, 'the summary stays in sight');
        assert.equal((await texts()).length, 200);
        assert.equal(await page.textContent('#more'), 'Show 200 more of 9,800');
        await page.click('#more');
        const found = await scores();
        assert.equal(found.length, 400);
        assert.deepEqual(
            found,
            [...found].sort((a, b) => b - a),
        );
        assert.equal(await page.evaluate(() => document.activeElement.querySelector('.rank').textContent), '201');
    });
});

describe('files', () => {
    test('chosen and dropped ones, with lines, blank lines and JSON', async () => {
        await open();
        await choose(file('a.txt', 'apple\r\npear\r\n'), file('b.jsonl', '{"text": "plum\\ntree"}\n"fig"\n'));
        await drop('#documents', 'c.json', '["grape", {"text": "melon"}]');
        await chips(3);
        await rank('fruit', 'kiwi');
        assert.deepEqual((await texts()).sort(), ['apple', 'fig', 'grape', 'kiwi', 'melon', 'pear', 'plum\ntree']);
        await page.check('[name=separator][value=blank]');
        await page.click('[aria-label="Remove c.json"]');
        await rank();
        assert.deepEqual((await texts()).sort(), ['apple\npear', 'fig', 'kiwi', 'plum\ntree']);
    });

    test('a large text that is pasted is kept as a file is', async () => {
        await open(server.url, { permissions: ['clipboard-read', 'clipboard-write'] });
        await page.evaluate((text) => navigator.clipboard.writeText(text), 'some line\n'.repeat(20000));
        await page.focus('#documents');
        await page.keyboard.press('Control+V');
        await chips(1);
        assert.equal(await page.textContent('.chip-name'), 'Pasted text');
        assert.equal(await page.textContent('#count'), '20,000 documents');
        assert.equal(await page.inputValue('#documents'), '');
    });

    test('a file dropped on the query is the query', async () => {
        await open();
        await drop('#query', 'q.txt', 'Where is the key?\n');
        await waitFor(() => document.getElementById('query').value === 'Where is the key?');
        assert.equal(await page.locator('#chips li').count(), 0);
    });

    test('what is wrong with a file is said', async () => {
        await open();
        await page.setInputFiles('#files', [
            file('bad.jsonl', '"fine"\n{"text": 3}\n'),
            file('worse.jsonl', '{oops'),
            file('x.bin', 'a\0b'),
        ]);
        await page.waitForSelector('#form-error');
        assert.equal(
            await page.textContent('#form-error'),
            'bad.jsonl: line 2 is neither a string nor an object with a "text". worse.jsonl: line 1 is not JSON. x.bin is not a text file.',
        );
        assert.equal(await page.locator('#chips li').count(), 0);
    });

    test('a large request is saved as a file, and such a file is read', async () => {
        await open();
        await fill('needle', `${'hay '.repeat(3000)}\nneedle`);
        await page.fill('#top-n', '1');
        await page.waitForSelector('#save');
        assert.match(await page.textContent('#curl'), /--data-binary @request\.json$/);
        const [download] = await Promise.all([page.waitForEvent('download'), page.click('#save')]);
        assert.equal(download.suggestedFilename(), 'request.json');
        const saved = fs.readFileSync(await download.path(), 'utf8');
        await page.click('#clear');
        assert.equal(await page.textContent('#count'), '');
        await drop('#documents', 'request.json', saved);
        await chips(1);
        assert.equal(await page.textContent('#count'), '2 documents');
        assert.equal(await page.inputValue('#query'), 'needle');
        await rank();
        assert.deepEqual(await texts(), ['needle']);
    });
});

describe('by keyboard', () => {
    test('the order is logical, the focus is seen, and Ctrl+Enter ranks', async () => {
        await open();
        const stops = [];
        for (let i = 0; i < 14; i++) {
            await page.keyboard.press('Tab');
            const stop = await page.evaluate(() => {
                const e = document.activeElement;
                const shown = e.type === 'radio' ? e.nextElementSibling : e.type === 'file' ? e.nextElementSibling : e;
                return [e.id || e.name || e.textContent, getComputedStyle(shown).outlineStyle];
            });
            assert.equal(stop[1], 'solid', `outline of ${stop[0]}`);
            stops.push(stop[0]);
        }
        assert.deepEqual(stops, [
            ...['Skip to the ranking', 'state', 'Code', 'API', 'query', 'documents', 'separator', 'files', 'instruction', 'model', 'top-n'],
            ...['rank', 'example', 'clear'],
        ]);
        await page.focus('#query');
        await page.keyboard.type('cat');
        await page.keyboard.press('Tab');
        await page.keyboard.type('stone');
        await page.keyboard.press('Enter');
        await page.keyboard.type('cat');
        await page.keyboard.press('Control+Enter');
        await idle();
        assert.deepEqual(await texts(), ['cat', 'stone']);
        assert.equal(await page.inputValue('#documents'), 'stone\ncat');
    });

    test('what Example and Clear replace comes back', async () => {
        await open();
        await fill('mine', 'first\nsecond');
        await choose(file('a.txt', 'third'));
        await page.click('#clear');
        assert.equal(await page.inputValue('#query'), '');
        await page.click('#undo');
        assert.equal(await page.inputValue('#query'), 'mine');
        assert.equal(await page.inputValue('#documents'), 'first\nsecond');
        assert.equal(await page.locator('#chips li').count(), 1);
        assert.equal(await page.isVisible('#undo'), false);
    });
});

describe('trouble', () => {
    test('what is missing is said, and gets the focus', async () => {
        await open();
        const focus = () => page.evaluate(() => document.activeElement.id);
        await page.click('#rank');
        assert.equal(await page.textContent('#form-error'), 'Please write a query first.');
        assert.equal(await focus(), 'query');
        assert.equal(await page.getAttribute('#query', 'aria-invalid'), 'true');
        await page.fill('#query', 'x');
        await page.click('#rank');
        assert.equal(await page.textContent('#form-error'), 'Please add documents to rank.');
        assert.equal(await focus(), 'documents');
        await page.fill('#documents', 'y');
        await page.fill('#top-n', '0');
        await page.click('#rank');
        assert.match(await page.textContent('#form-error'), /at least 1/);
        assert.equal(await focus(), 'top-n');
    });

    test("the server's own words are shown", async () => {
        const small = await start(startReal, '--max-documents', '2');
        await open(small.url);
        await rank('x', 'a\nb\nc');
        assert.equal(await page.textContent('#error-title'), 'The server could not use this request.');
        assert.match(await page.textContent('#error-text'), /at most 2 documents, found 3/);
        await rank('x', 'a\nb');
        assert.equal(await page.isVisible('#error'), false);
        assert.equal((await texts()).length, 2);
        expectComplaints(/status of 400/);
    });

    test('a server that went away', async () => {
        const mortal = await start(startReal);
        await open(mortal.url);
        await rank('x', 'a\nb');
        await mortal.stop();
        await rank();
        assert.match(await page.textContent('#error-title'), /cannot be reached/);
        assert.equal((await texts()).length, 0);
        await seeState('Unreachable');
        expectComplaints(/ERR_CONNECTION/);
    });

    test('cancel ends the work in the server, too', async () => {
        await open();
        await page.fill('#query', 'needle');
        const hay = Array.from({ length: 5000 }, (_, i) => `${i} ${'hay '.repeat(100)}`).join('\n');
        await choose(file('hay.txt', hay));
        await page.click('#rank');
        await waitFor(() => document.getElementById('list').children.length > 0);
        await page.focus('#cancel');
        await page.keyboard.press('Enter');
        await idle();
        assert.match(await page.textContent('#summary'), /^Cancelled: [\d,]+ of 5,000$/);
        assert.match(await page.textContent('#live'), /^Cancelled after/);
        assert.equal(await page.evaluate(() => document.activeElement.id), 'rank');
        assert.ok((await texts()).length > 0, 'what was done stays');
        while ((await server.metric('requests_in_flight')) > 0) await page.waitForTimeout(50);

        await page.click('#rank');
        await waitFor(() => document.getElementById('results').getAttribute('aria-busy') === 'true');
        await page.keyboard.press('Escape');
        await idle();
        await page.click('#example');
        await idle();
        assert.equal((await texts())[0], 'The capital of China is Beijing.');
    });

    test('a server that protects even its metrics', async () => {
        const closed = await start(startReal, '--api-key', 'sesame', '--protect-metrics');
        await open(closed.url, {}, 'Key needed');
        await page.fill('#key', 'sesame');
        await page.click('text=Use this key');
        await seeState('Ready');
        await waitFor(() => document.getElementById('model').value === 'builtin');
        assert.equal(await page.isVisible('#key-form'), false);
        expectComplaints(/status of 401/);
    });

    test('a key is asked for, kept for the tab only, and forgotten', async () => {
        const closed = await start(startReal, '--api-key', 'sesame');
        await open(closed.url);
        await page.waitForSelector('#key-form');
        await page.click('#example');
        await idle();
        assert.equal(await page.textContent('#error-title'), 'The server asks for an API key.');
        assert.equal(await page.evaluate(() => document.activeElement.id), 'key');
        await page.keyboard.type('wrong');
        await page.keyboard.press('Enter');
        await waitFor(() => document.getElementById('key-title').textContent === 'The server did not accept this API key');
        await idle();
        await page.fill('#key', 'sesame');
        await page.keyboard.press('Enter');
        await waitFor(() => document.getElementById('list').children.length === 7); // what was asked for before
        assert.equal(await page.isVisible('#key-form'), false);
        await waitFor(() => document.getElementById('model').value === 'builtin');
        assert.match(await page.textContent('#curl'), /Bearer \$QWEN_RERANK_API_KEY/);
        assert.ok(!(await page.content()).includes('sesame'), 'the key is shown nowhere');

        await page.reload();
        await seeState('Ready');
        await waitFor(() => document.getElementById('model').value === 'builtin');
        assert.equal(await page.isVisible('#key-form'), false);
        assert.deepEqual(await page.evaluate(() => [Object.values(sessionStorage), localStorage.length, document.cookie]), [
            ['sesame'],
            0,
            '',
        ]);
        await page.click('#forget');
        await page.waitForSelector('#key-form');
        assert.equal(await page.evaluate(() => sessionStorage.length), 0);
        expectComplaints(/status of 401/);
    });
});

// What the real server does too rarely to wait for.
describe('streaming', () => {
    const frame = (name, data) => `event: ${name}\r\ndata: ${JSON.stringify(data)}\r\n\r\n`;
    const result = (index, relevance_score) => ({
        index,
        relevance_score,
        score: relevance_score,
        tokens: 10 * index,
        truncated: index === 2,
    });
    const progress = (done, ...results) => frame('progress', { done, total: 3, results });
    const eventStream = { 'Content-Type': 'text/event-stream' };

    test('the ranking grows with what arrives, in whatever pieces', async () => {
        let goOn;
        const seen = new Promise((resolve) => (goOn = resolve));
        const fake = await start(startFake, async (request, response) => {
            response.writeHead(200, eventStream);
            for (const byte of Buffer.from(': ä comment\r\n\r\n' + progress(2, result(0, 0.2), result(2, 0.9)))) {
                response.write(Buffer.of(byte));
                await new Promise(setImmediate);
            }
            await seen;
            response.end(
                progress(3, result(1, 0.5)) +
                    frame('result', { results: [2, 1, 0].map((i) => result(i, [0.2, 0.5, 0.9][i])), usage: { total_tokens: 30 } }),
            );
        });
        await open(fake.url);
        await fill('ü', 'ä\nö\nß');
        await page.click('#rank');
        await waitFor(() => document.getElementById('list').children.length === 2);
        assert.deepEqual(await texts(), ['ß', 'ä']);
        assert.match(await page.textContent('#summary'), /^2 of 3,/);
        assert.equal(await page.evaluate(() => document.getElementById('progress').position.toFixed(2)), '0.67');
        goOn();
        await idle();
        assert.deepEqual(await texts(), ['ß', 'ö', 'ä']);
        assert.deepEqual(await page.locator('.cut').count(), 1);
        assert.match(await page.textContent('#facts'), /30 tokens/);
    });

    test('an error or an end in the middle leaves what was found', async () => {
        const ends = [frame('error', { message: 'the backend failed', error: { code: 500 } }), ''];
        const fake = await start(startFake, (request, response) =>
            response.writeHead(200, eventStream).end(progress(1, result(1, 0.5)) + ends.shift()),
        );
        await open(fake.url);
        await rank('q', 'a\nb\nc');
        assert.equal(await page.textContent('#error-title'), 'Something went wrong in the server.');
        assert.equal(await page.textContent('#error-text'), 'the backend failed');
        assert.deepEqual(await texts(), ['b']);
        assert.equal(await page.textContent('#summary'), 'Not finished: 1 of 3');
        await rank();
        assert.equal(await page.textContent('#error-text'), 'The answer ended before it was complete.');
    });

    test('a plain answer does, too', async () => {
        const fake = await start(startFake, (request, response) => {
            response.writeHead(200, {
                'Content-Type': 'application/json',
                'Server-Timing': 'read;dur=1, inference;dur=250, total;dur=300',
                'X-Truncated-Documents': '2',
            });
            response.end(
                JSON.stringify({
                    results: [1, 0, 2].map((index) => ({ index, relevance_score: 0.5 })),
                    usage: { total_tokens: 30 },
                    model: request.model,
                }),
            );
        });
        await open(fake.url);
        await waitFor(() => document.getElementById('model').options.length === 2);
        await page.selectOption('#model', 'b');
        await rank('q', 'a\nb\nc');
        assert.deepEqual(await texts(), ['b', 'a', 'c']);
        assert.match(await page.textContent('#facts'), /0\.25 s of it in the model.*2 cut to fit/);
    });

    test('an answer that is no JSON', async () => {
        const fake = await start(startFake, (request, response) => response.writeHead(502).end('<h1>Bad gateway</h1>'));
        await open(fake.url);
        await rank('q', 'a');
        assert.equal(await page.textContent('#error-title'), 'The server answered with status 502.');
        assert.equal(await page.textContent('#error-text'), '<h1>Bad gateway</h1>');
        expectComplaints(/status of 502/);
    });
});

describe('programs', () => {
    test('curl and Python find what the page finds', async () => {
        await open(server.url, { permissions: ['clipboard-read', 'clipboard-write'] });
        await rank(`it's a "quoted" $HOME \\ query`, `it's\nnot\n"quoted\\"\n🙂 ü`);
        const found = await texts();
        const copied = async (name) => {
            await page.click(`[data-copies=${name}]`);
            await waitFor((name) => document.querySelector(`[data-copies=${name}]`).textContent === 'Copied', name);
            return page.evaluate(() => navigator.clipboard.readText());
        };
        const answer = JSON.parse(execFileSync('sh', ['-c', await copied('curl')], { encoding: 'utf8' }));
        const documents = (await page.inputValue('#documents')).split('\n');
        assert.deepEqual(
            answer.results.map((r) => documents[r.index]),
            found,
        );
        const printed = execFileSync('python3', ['-c', await copied('python')], {
            encoding: 'utf8',
            env: { ...process.env, PYTHONUTF8: '1' },
        });
        assert.deepEqual(
            printed
                .trim()
                .split('\n')
                .map((line) => line.slice(8)),
            found,
        );
    });

    test('copying works without the clipboard interface, which plain HTTP lacks', async () => {
        await open();
        await waitFor(() => document.getElementById('model').value === 'builtin'); // the snippets name it from now on
        await page.evaluate(() => Object.defineProperty(navigator, 'clipboard', { value: undefined }));
        await page.click('[data-copies=python]');
        await waitFor(() => document.querySelector('[data-copies=python]').textContent === 'Copied');
        await page.focus('#documents');
        await page.keyboard.press('Control+V');
        assert.equal(await page.inputValue('#documents'), await page.textContent('#python'));
    });
});

describe('the panel', () => {
    const tile = (name) => page.locator('.tile', { has: page.locator(`dt:text-is("${name}")`) }).locator('.value');

    test('shows the server, its queue and its speed', async () => {
        await open();
        await waitFor(() => document.querySelector('.tile:nth-child(3) .value').textContent === 'cpu');
        assert.equal(await tile('State').textContent(), 'Ready');
        assert.equal(await tile('Model').textContent(), 'builtin');
        assert.equal(await tile('In work or waiting').textContent(), '0 requests');
        const backends = await page.locator('#backends li').allTextContents();
        assert.equal(backends.filter((text) => text.startsWith('cpu in use: ')).length, 1);
        assert.ok(backends.every((text) => / (in use|usable|not usable|not tried): ./.test(text)), backends.join('; '));
        assert.equal(
            await page.locator('#settings tbody tr').first().locator('td').last().textContent(),
            '--port',
            'what was chosen is first',
        );
        await page.click('#example');
        await idle();
        await waitFor(
            (rates) => {
                const tiles = [...document.querySelectorAll('.tile')].filter((t) => rates.includes(t.querySelector('dt').textContent));
                return tiles.length === rates.length && tiles.every((t) => parseFloat(t.querySelector('.value').textContent) > 0);
            },
            ['Requests/s', 'Documents/s', 'Tokens/s'],
        );
    });

    test('is read every two seconds, only while somebody looks', async () => {
        await open();
        await page.clock.install();
        await page.reload();
        await seeState('Ready');
        let asked = 0;
        page.on('request', (request) => (asked += request.url().endsWith('/metrics')));
        const look = (hidden) =>
            page.evaluate((hidden) => {
                Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });
                document.dispatchEvent(new Event('visibilitychange'));
            }, hidden);
        /** Lets the page's time pass until it has asked, at most `steps` times two seconds. */
        const askedWithin = async (steps) => {
            const before = asked;
            for (let i = 0; i < steps && asked === before; i++) {
                await page.clock.runFor(2000);
                await page.evaluate(() => fetch('health')); // whatever was asked before has been seen now
            }
            return asked > before;
        };
        assert.ok(await askedWithin(50));
        assert.ok(await askedWithin(50));
        await look(true);
        await askedWithin(1); // it may have been about to
        assert.ok(!(await askedWithin(50)), 'asked while nobody looks');
        await look(false);
        assert.ok(await askedWithin(50));
    });
});

describe('everywhere', () => {
    test('below a prefix', async () => {
        const prefixed = await start(startReal, '--url-prefix', '/v3');
        for (const at of ['/v3/ui', '/v3/']) {
            await open(prefixed.url + at);
            const [request] = await Promise.all([page.waitForRequest('**/rerank'), page.click('#example')]);
            await idle();
            assert.equal(new URL(request.url()).pathname, '/v3/v1/rerank');
            assert.equal((await texts())[0], 'The capital of China is Beijing.');
            assert.ok((await page.textContent('#curl')).includes(`${prefixed.url}/v3/v1/rerank`));
        }
    });

    test('nothing is wider than a small phone', async () => {
        await open(server.url, { viewport: { width: 360, height: 740 } });
        await rank('a'.repeat(200), `${'b'.repeat(500)}\nshort`);
        await choose(file(`${'long'.repeat(50)}.txt`, 'x'));
        await page.click('#backends summary');
        assert.ok((await page.evaluate(() => document.documentElement.scrollWidth)) <= 360);
    });

    test('light and dark', async () => {
        const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number));
        await open();
        assert.ok((await ground()).every((part) => part > 220));
        await page.emulateMedia({ colorScheme: 'dark' });
        assert.ok((await ground()).every((part) => part < 40));
    });

    test('nothing moves for those who do not want it', async () => {
        await open();
        await page.click('#example');
        await idle();
        assert.equal(
            await page
                .locator('#list li')
                .first()
                .evaluate((e) => getComputedStyle(e).animationName),
            'none',
        );
        assert.equal(await page.evaluate(() => document.getAnimations().length), 0);
    });
});

describe('accessibility', () => {
    const looks = {
        light: { viewport: { width: 1280, height: 900 } },
        dark: { viewport: { width: 1280, height: 900 }, colorScheme: 'dark' },
        phone: { viewport: { width: 360, height: 740 } },
        'phone-dark': { viewport: { width: 360, height: 740 }, colorScheme: 'dark' },
    };

    async function check() {
        const violations = await page.evaluate(async () => (await axe.run()).violations.map((v) => [v.id, ...v.nodes.map((n) => n.html)]));
        assert.deepEqual(violations, []);
    }

    for (const [name, look] of Object.entries(looks))
        test(`axe finds nothing: ${name}`, async () => {
            await open(server.url, { ...look, bypassCSP: true });
            await page.evaluate(axe);
            await check();
            await choose(file('a.txt', `third\n${'long '.repeat(200)}`));
            await page.click('#backends summary');
            await rank('first', 'first\nsecond');
            await check();
            await page.click('#clear');
            await page.click('#rank');
            await page.waitForSelector('#form-error');
            await check();
            await page.click('#example');
            await idle();
            await page.screenshot({ path: path.join(screenshots, `${name}.png`), fullPage: true });
        });

    test('axe finds nothing: errors and the key', async () => {
        const closed = await start(startReal, '--api-key', 'sesame');
        for (const colorScheme of ['light', 'dark']) {
            await open(closed.url, { bypassCSP: true, colorScheme });
            await page.waitForSelector('#key-form');
            await page.click('#example');
            await idle();
            await page.evaluate(axe);
            await check();
            await page.screenshot({ path: path.join(screenshots, `key-${colorScheme}.png`), fullPage: true });
        }
        expectComplaints(/status of 401/);
    });
});
