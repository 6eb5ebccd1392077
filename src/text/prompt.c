/* Prompts, see prompt.h.
 *
 * A prompt is tokenised as three texts: prefix, body, suffix. Only the literal text of templates may hold special tokens; in instruction,
 * query and document <|im_end|> is plain text, so that no document can close the user's turn. Markup that the tokenizer does not mark as
 * special (<think>, <tool_call>) is recognised there, as it is in the reference scores (transformers, split_special_tokens=True).
 *
 * The body is split into a head, the same for all documents, and a tail. Where the literal text before the document ends in a printable
 * ASCII character and a space, as in the canonical "<Document>: ", the split is before that space. It is exact: a space after something
 * that is not white space always begins a pre-token (no alternative of the pattern has a space but at its start or in a run of white
 * space, and none looks ahead past its end except in such a run), and in NFC a space joins nothing on either side. For other templates
 * whole bodies are tokenised, and the shared part is what they and the head alone begin with in common.
 */
#include "text/prompt.h"

#include "base/utf8.h"
#include "text/tokenizer_internal.h"

#include "base/mem.h"

#include <string.h>

static const char canonical_prefix[] = QR_PROMPT_PREFIX;
static const char canonical_suffix[] = QR_PROMPT_SUFFIX;
static const char canonical_query[] = QR_PROMPT_QUERY;
static const char canonical_document[] = QR_PROMPT_DOCUMENT;
static const char default_instruction[] = QR_PROMPT_INSTRUCTION;

/* What the canonical strings are in Qwen3's own vocabulary, which is recognised by its size and its id for "yes". */
static const uint32_t prefix_ids[] = {151644, 8948, 198,  60256, 3425, 279,  11789, 20027, 279,    8502, 3118,   389, 279,
                                      11361,  323,  279,  758,   1235, 3897, 13,    7036,  429,    279,  4226,   646, 1172,
                                      387,    330,  9693, 1,     476,  330,  2152,  3263,  151645, 198,  151644, 872, 198};
static const uint32_t suffix_ids[] = {151645, 198, 151644, 77091, 198, 151667, 271, 151668, 271};
enum { QWEN3_YES = 9693, QWEN3_VOCABULARY = 151643 };

typedef enum field { INSTRUCTION, QUERY, DOCUMENT, N_FIELDS, LITERAL, TOKEN } field;
static const char *const field_names[N_FIELDS] = {"instruction", "query", "document"};

typedef struct piece {
    field kind;
    qr_text text; /* of a LITERAL, in qr_prompt.strings */
    uint32_t id;  /* of a TOKEN */
} piece;

struct qr_prompt {
    const qr_tokenizer *tok;
    char *strings[2]; /* copies of the query and document templates */
    char *instruction;
    piece *pieces; /* [n_pieces] of the body */
    size_t n_pieces, capacity;
    size_t document; /* index of the DOCUMENT piece */
    size_t tail;     /* where the tail begins if the split is exact (the piece is the space before the document); else 0 */
    qr_ids prefix, suffix;
    uint32_t yes, no;
    int canonical;
};

static qr_status no_memory(qr_error *err) { return qr_fail(err, QR_E_MEMORY, "no memory for the prompt"); }

static qr_status add_piece(qr_prompt *prompt, piece p, qr_error *err)
{
    piece *grown = qr_grow(prompt->pieces, &prompt->capacity, prompt->n_pieces + 1, sizeof *grown);
    if (grown == NULL) return no_memory(err);
    prompt->pieces = grown;
    grown[prompt->n_pieces++] = p;
    return QR_OK;
}

/* Adds the literal text[0 .. len), with the added tokens in it. */
static qr_status add_literal(qr_prompt *prompt, const char *text, size_t len, qr_error *err)
{
    qr_status status = QR_OK;
    for (size_t from = 0; from < len && status == QR_OK;) {
        size_t at = len, size = 0;
        uint32_t id = qr_tok_find_added(prompt->tok, QR_TOK_SPECIAL, text, len, from, &at, &size);
        if (at > from) status = add_piece(prompt, (piece){.kind = LITERAL, .text = {text + from, at - from}}, err);
        if (status == QR_OK && id != QR_TOK_NO_ID) status = add_piece(prompt, (piece){.kind = TOKEN, .id = id}, err);
        from = at + size;
    }
    return status;
}

/* Length of a placeholder "{name}" at text[0], 0 if there is none there. */
static size_t placeholder(const char *text)
{
    size_t n = 1;
    if (text[0] != '{') return 0;
    while ((text[n] >= 'a' && text[n] <= 'z') || text[n] == '_') n++;
    return n > 1 && text[n] == '}' ? n + 1 : 0;
}

/* Cuts a template into pieces. counts: how often each field was met in it. */
static qr_status parse_template(qr_prompt *prompt, const char *what, const char *text, size_t counts[N_FIELDS], qr_error *err)
{
    size_t literal = 0, i = 0, n;
    qr_status status = QR_OK;
    while (text[i] != 0 && status == QR_OK) {
        if ((n = placeholder(text + i)) == 0) {
            i++;
            continue;
        }
        field kind = INSTRUCTION;
        while (kind < N_FIELDS && (strlen(field_names[kind]) != n - 2 || memcmp(field_names[kind], text + i + 1, n - 2) != 0)) kind++;
        if (kind == N_FIELDS)
            return qr_fail(err, QR_E_ARG, "%s: expected {instruction}, {query} or {document}, found %.*s", what, (int) (n < 64 ? n : 64),
                           text + i);
        counts[kind]++;
        status = add_literal(prompt, text + literal, i - literal, err);
        if (status == QR_OK && kind == DOCUMENT) prompt->document = prompt->n_pieces;
        if (status == QR_OK) status = add_piece(prompt, (piece){.kind = kind}, err);
        literal = i += n;
    }
    return status == QR_OK ? add_literal(prompt, text + literal, i - literal, err) : status;
}

static qr_status check_utf8(const char *what, const char *text, qr_error *err)
{
    uint32_t cp;
    for (size_t i = 0, n = strlen(text); i < n;) {
        size_t size = qr_utf8_decode((const unsigned char *) text + i, n - i, &cp);
        if (cp == QR_UTF8_INVALID) return qr_fail(err, QR_E_ARG, "%s: expected UTF-8, found byte 0x%02X", what, (unsigned char) text[i]);
        i += size;
    }
    return QR_OK;
}

static qr_status parse_body(qr_prompt *prompt, qr_error *err)
{
    size_t in_query[N_FIELDS] = {0}, in_document[N_FIELDS] = {0};
    qr_status status = parse_template(prompt, "query_template", prompt->strings[0], in_query, err);
    if (status != QR_OK) return status;
    if (in_query[QUERY] == 0) return qr_fail(err, QR_E_ARG, "query_template: expected {query}, found none");
    if (in_query[DOCUMENT] != 0) return qr_fail(err, QR_E_ARG, "query_template: found {document}, which belongs in document_template");
    status = parse_template(prompt, "document_template", prompt->strings[1], in_document, err);
    if (status != QR_OK) return status;
    if (in_document[DOCUMENT] != 1)
        return qr_fail(err, QR_E_ARG, "document_template: expected {document} once, found it %zu times", in_document[DOCUMENT]);

    piece *before = prompt->document > 0 ? &prompt->pieces[prompt->document - 1] : NULL;
    if (before == NULL || before->kind != LITERAL || before->text.len < 2) return QR_OK;
    const char *end = before->text.data + before->text.len;
    if (end[-1] != ' ' || end[-2] <= ' ' || end[-2] >= 0x7F) return QR_OK;
    before->text.len--;
    status = add_piece(prompt, (piece){0}, err);
    if (status != QR_OK) return status;
    piece *at = &prompt->pieces[prompt->document];
    memmove(at + 1, at, (prompt->n_pieces - 1 - prompt->document) * sizeof *at);
    *at = (piece){.kind = LITERAL, .text = {" ", 1}};
    prompt->tail = prompt->document++;
    return QR_OK;
}

static qr_status read_label(const qr_tokenizer *tok, const char *what, const char *text, uint32_t *id, qr_error *err)
{
    qr_ids ids = {0};
    qr_status status = qr_tok_encode(tok, text, strlen(text), QR_TOK_SPECIAL, 0, &ids, NULL, NULL, err);
    if (status == QR_OK && ids.n != 1)
        status = qr_fail(err, QR_E_ARG, "%s: expected the text of one token, found \"%.64s\", which has %zu", what, text, ids.n);
    if (status == QR_OK) *id = ids.id[0];
    qr_ids_deinit(&ids);
    return status;
}

static qr_status check_ids(const char *what, const qr_ids *ids, const uint32_t *expected, size_t n, qr_error *err)
{
    size_t i = 0;
    while (i < n && i < ids->n && ids->id[i] == expected[i]) i++;
    if (i == n && i == ids->n) return QR_OK;
    if (i == n || i == ids->n)
        return qr_fail(err, QR_E_FORMAT, "tokenizer: expected %zu tokens of the canonical %s, found %zu", n, what, ids->n);
    return qr_fail(err, QR_E_FORMAT, "tokenizer: expected id %u at place %zu of the canonical %s, found %u", expected[i], i, what,
                   ids->id[i]);
}

/* text, or `otherwise` if it is NULL; *same is cleared if the result differs from it. */
static const char *choose(const char *text, const char *otherwise, int *same)
{
    if (text == NULL) return otherwise;
    if (strcmp(text, otherwise) != 0) *same = 0;
    return text;
}

static qr_status open_prompt(qr_prompt *prompt, const qr_options *options, qr_error *err)
{
    const qr_tokenizer *tok = prompt->tok;
    int ignored = 0;
    prompt->canonical = 1;
    const char *prefix = choose(options->prefix, canonical_prefix, &prompt->canonical);
    const char *suffix = choose(options->suffix, canonical_suffix, &prompt->canonical);
    const char *query = choose(options->query_template, canonical_query, &prompt->canonical);
    const char *document = choose(options->document_template, canonical_document, &prompt->canonical);
    const char *instruction = choose(options->instruction, default_instruction, &ignored);
    prompt->strings[0] = qr_strndup(query, strlen(query));
    prompt->strings[1] = qr_strndup(document, strlen(document));
    prompt->instruction = qr_strndup(instruction, strlen(instruction));
    if (prompt->strings[0] == NULL || prompt->strings[1] == NULL || prompt->instruction == NULL) return no_memory(err);

    qr_status status;
    if ((status = check_utf8("prefix", prefix, err)) != QR_OK || (status = check_utf8("suffix", suffix, err)) != QR_OK ||
        (status = check_utf8("query_template", query, err)) != QR_OK ||
        (status = check_utf8("document_template", document, err)) != QR_OK ||
        (status = check_utf8("instruction", instruction, err)) != QR_OK || (status = parse_body(prompt, err)) != QR_OK)
        return status;
    if ((status = qr_tok_encode(tok, prefix, strlen(prefix), QR_TOK_SPECIAL, 0, &prompt->prefix, NULL, NULL, err)) != QR_OK ||
        (status = qr_tok_encode(tok, suffix, strlen(suffix), QR_TOK_SPECIAL, 0, &prompt->suffix, NULL, NULL, err)) != QR_OK)
        return status;
    if ((status = read_label(tok, "yes_token", options->yes_token ? options->yes_token : "yes", &prompt->yes, err)) != QR_OK ||
        (status = read_label(tok, "no_token", options->no_token ? options->no_token : "no", &prompt->no, err)) != QR_OK)
        return status;
    if (prompt->yes == prompt->no)
        return qr_fail(err, QR_E_ARG, "yes_token and no_token: expected two tokens, found id %u twice", prompt->yes);
    size_t len;
    const char *text = qr_tok_bytes(tok, QWEN3_YES, &len);
    if (prompt->canonical && qr_tok_vocab_size(tok) >= QWEN3_VOCABULARY && text != NULL && len == 3 && memcmp(text, "yes", 3) == 0) {
        status = check_ids("prefix", &prompt->prefix, prefix_ids, sizeof prefix_ids / sizeof prefix_ids[0], err);
        if (status == QR_OK) status = check_ids("suffix", &prompt->suffix, suffix_ids, sizeof suffix_ids / sizeof suffix_ids[0], err);
    }
    return status;
}

qr_status qr_prompt_open(qr_prompt **out, const qr_tokenizer *tok, const qr_options *options, qr_error *err)
{
    *out = NULL;
    qr_prompt *prompt = qr_calloc(1, sizeof *prompt);
    if (prompt == NULL) return no_memory(err);
    prompt->tok = tok;
    qr_status status = open_prompt(prompt, options, err);
    if (status == QR_OK) *out = prompt;
    else qr_prompt_close(prompt);
    return status;
}

void qr_prompt_close(qr_prompt *prompt)
{
    if (prompt == NULL) return;
    qr_free(prompt->strings[0]);
    qr_free(prompt->strings[1]);
    qr_free(prompt->instruction);
    qr_free(prompt->pieces);
    qr_ids_deinit(&prompt->prefix);
    qr_ids_deinit(&prompt->suffix);
    qr_free(prompt);
}

uint32_t qr_prompt_yes_id(const qr_prompt *prompt) { return prompt->yes; }
uint32_t qr_prompt_no_id(const qr_prompt *prompt) { return prompt->no; }
int qr_prompt_is_canonical(const qr_prompt *prompt) { return prompt->canonical; }

static qr_status append_ids(qr_ids *ids, const uint32_t *id, size_t n, qr_error *err)
{
    uint32_t *grown = qr_grow(ids->id, &ids->capacity, ids->n + n, sizeof *grown);
    if (grown == NULL) return no_memory(err);
    ids->id = grown;
    if (n > 0) memcpy(grown + ids->n, id, n * sizeof *id);
    ids->n += n;
    return QR_OK;
}

/* One query while its prompts are built. */
typedef struct builder {
    const qr_prompt *prompt;
    qr_text fields[N_FIELDS];
    qr_text *parts;                    /* [n_pieces] the texts that are tokenised together */
    struct qr_encode_scratch *scratch; /* the caller's, lent to each list of ids in turn: it caches words from query to query */
    qr_ids head;                       /* the body up to the tail or, where the split is not exact, up to the document */
    qr_ids end;                        /* the body after the document */
} builder;

/* Appends the ids of pieces [from, to). Texts between added tokens are tokenised as one. At most `limit` ids: *cut is set if there are
 * more. */
static qr_status encode_pieces(builder *b, size_t from, size_t to, size_t limit, qr_ids *ids, int *replaced, int *cut, qr_error *err)
{
    const piece *pieces = b->prompt->pieces;
    size_t n_before = ids->n;
    int complete = 1;
    for (size_t i = from; i < to && complete;) {
        size_t n = 0;
        for (; i < to && pieces[i].kind != TOKEN; i++)
            b->parts[n++] = pieces[i].kind == LITERAL ? pieces[i].text : b->fields[pieces[i].kind];
        /* One id more than fits tells that the text is longer; a limit of 0 would mean none. */
        qr_status status = QR_OK;
        size_t room = limit - (ids->n - n_before) + 1;
        if (n > 0) {
            ids->scratch = b->scratch;
            status = qr_tok_encode_parts(b->prompt->tok, b->parts, n, QR_TOK_MARKUP, limit == SIZE_MAX ? 0 : room, ids, replaced, &complete,
                                         err);
            b->scratch = ids->scratch;
            ids->scratch = NULL;
        }
        if (status == QR_OK && i < to && complete) status = append_ids(ids, &pieces[i++].id, 1, err);
        if (status != QR_OK) return status;
        if (ids->n - n_before > limit) complete = 0;
    }
    if (ids->n - n_before > limit) ids->n = n_before + limit;
    *cut = !complete;
    return QR_OK;
}

/* Says how long a document is that may not be cut. */
static qr_status fail_long(builder *b, size_t from, size_t budget, qr_ids *ids, qr_error *err)
{
    int cut, replaced;
    size_t n_before = ids->n;
    qr_status status = encode_pieces(b, from, b->prompt->n_pieces, SIZE_MAX, ids, &replaced, &cut, err);
    size_t found = ids->n - n_before;
    ids->n = n_before;
    if (status != QR_OK) return status;
    return qr_fail(err, QR_E_TOO_LONG,
                   "expected at most %zu tokens beside the query's and the prompt's, found %zu; it may not be truncated", budget, found);
}

/* As encode_document, but what is cut is the document's beginning. */
static qr_status keep_end(builder *b, size_t from, size_t budget, qr_ids *ids, size_t n_before, qr_error *err)
{
    const qr_prompt *prompt = b->prompt;
    int cut, replaced;
    ids->n = n_before;
    qr_status status = encode_pieces(b, from, prompt->document, SIZE_MAX, ids, &replaced, &cut, err);
    size_t n_lead = ids->n - n_before;
    ids->n = n_before;
    if (status == QR_OK) status = encode_pieces(b, from, prompt->n_pieces, SIZE_MAX, ids, &replaced, &cut, err);
    if (status != QR_OK) return status;
    size_t n_kept = budget - n_lead, n = ids->n - n_before;
    memmove(ids->id + n_before + n_lead, ids->id + n_before + n - n_kept, n_kept * sizeof *ids->id);
    ids->n = n_before + budget;
    return QR_OK;
}

/* Appends a document's own ids without the suffix: the body from `from` on, at most `budget` ids. Only the document is ever cut. */
static qr_status encode_document(builder *b, size_t from, size_t budget, qr_truncation truncation, qr_ids *ids, uint32_t *flags,
                                 qr_error *err)
{
    const qr_prompt *prompt = b->prompt;
    size_t n_before = ids->n;
    int cut = 0, replaced = 0;
    qr_status status = encode_pieces(b, from, prompt->n_pieces, budget, ids, &replaced, &cut, err);
    if (status == QR_OK && cut && truncation == QR_TRUNCATE_NEVER) return fail_long(b, from, budget, ids, err);
    if (status == QR_OK && cut) {
        *flags |= QR_RESULT_TRUNCATED;
        if (truncation == QR_TRUNCATE_START) return keep_end(b, from, budget, ids, n_before, err);
        if (b->end.n > 0) {
            ids->n = n_before;
            status = encode_pieces(b, from, prompt->document + 1, budget - b->end.n, ids, &replaced, &cut, err);
            if (status == QR_OK) status = append_ids(ids, b->end.id, b->end.n, err);
        }
    }
    if (replaced) *flags |= QR_RESULT_REPLACED;
    return status;
}

/* Moves what all own parts and the head begin with in common to the shared part. Every document keeps an id. */
static void share_common_ids(const builder *b, qr_prompt_ids *out)
{
    size_t n = b->head.n;
    const uint32_t *id = out->ids.id;
    for (size_t d = 0; d < out->n_documents; d++) {
        const uint32_t *own = id + out->start[d];
        size_t n_own = out->start[d + 1] - out->start[d], k = 0;
        while (k < n && k + 1 < n_own && own[k] == b->head.id[k]) k++;
        n = k;
    }
    if (out->n_documents == 0) return;
    size_t to = out->n_shared + n; /* the first document's beginning is already in place */
    for (size_t d = 0; d < out->n_documents; d++) {
        size_t from = out->start[d] + n, size = out->start[d + 1] - from;
        memmove(out->ids.id + to, out->ids.id + from, size * sizeof *id);
        out->start[d] = to; /* start[d + 1] is still the old one */
        to += size;
    }
    out->start[out->n_documents] = out->ids.n = to;
    out->n_shared += n;
}

static qr_status reserve_documents(qr_prompt_ids *out, size_t n, qr_error *err)
{
    if (n == SIZE_MAX) return no_memory(err);
    size_t capacity = out->capacity, same = out->capacity;
    size_t *start = qr_grow(out->start, &capacity, n + 1, sizeof *start);
    if (start != NULL) out->start = start;
    uint32_t *flags = start ? qr_grow(out->flags, &same, n + 1, sizeof *flags) : NULL;
    if (flags == NULL) return no_memory(err);
    out->flags = flags;
    out->capacity = capacity;
    return QR_OK;
}

static qr_status build(builder *b, const qr_query *query, size_t max_length, qr_prompt_ids *out, qr_error *err)
{
    const qr_prompt *prompt = b->prompt;
    int cut, replaced = 0;
    size_t head_end = prompt->tail ? prompt->tail : prompt->document;
    qr_status status = encode_pieces(b, 0, head_end, SIZE_MAX, &b->head, &replaced, &cut, err);
    if (status == QR_OK) status = encode_pieces(b, prompt->document + 1, prompt->n_pieces, SIZE_MAX, &b->end, &replaced, &cut, err);
    if (status != QR_OK) return status;

    size_t n_fixed = prompt->prefix.n + prompt->suffix.n + b->end.n, n_least = n_fixed + b->head.n;
    if (prompt->suffix.n + b->end.n == 0) n_least++; /* a document's own part is never empty */
    if (n_least > max_length)
        return qr_fail(err, QR_E_TOO_LONG, "prompt without its document: expected at most %zu tokens (max_length), found %zu", max_length,
                       n_least);

    status = append_ids(&out->ids, prompt->prefix.id, prompt->prefix.n, err);
    if (status == QR_OK && prompt->tail) status = append_ids(&out->ids, b->head.id, b->head.n, err);
    size_t budget = max_length - out->ids.n - prompt->suffix.n;
    if (query->max_document_tokens > 0 && query->max_document_tokens < budget) {
        b->fields[DOCUMENT] = (qr_text){"", 0};
        size_t n_before = out->ids.n;
        if (status == QR_OK) status = encode_pieces(b, prompt->tail, prompt->n_pieces, SIZE_MAX, &out->ids, &replaced, &cut, err);
        size_t n_template = out->ids.n - n_before;
        out->ids.n = n_before;
        if (query->max_document_tokens < budget - n_template) budget = n_template + query->max_document_tokens;
    }
    out->n_shared = out->start[0] = out->ids.n;
    for (size_t d = 0; d < query->n_documents && status == QR_OK; d++) {
        b->fields[DOCUMENT] = query->documents[d];
        out->flags[d] = replaced ? QR_RESULT_REPLACED : 0;
        status = encode_document(b, prompt->tail, budget, query->truncation, &out->ids, &out->flags[d], err);
        if (status == QR_E_TOO_LONG) return qr_fail_prefix(err, status, "document %zu", d);
        if (status == QR_OK) status = append_ids(&out->ids, prompt->suffix.id, prompt->suffix.n, err);
        if (status == QR_OK && out->ids.n == out->start[d]) status = qr_fail(err, QR_E_INPUT, "document %zu: its prompt has no tokens", d);
        out->start[d + 1] = out->ids.n;
    }
    if (status != QR_OK) return status;
    out->n_documents = query->n_documents;
    if (!prompt->tail) share_common_ids(b, out);
    return QR_OK;
}

qr_status qr_prompt_build(const qr_prompt *prompt, const qr_query *query, size_t max_length, qr_prompt_ids *out, qr_error *err)
{
    builder b = {.prompt = prompt};
    qr_text instruction = {prompt->instruction, strlen(prompt->instruction)};
    b.fields[INSTRUCTION] = query->instruction ? *query->instruction : instruction;
    b.fields[QUERY] = query->query;
    out->ids.n = out->n_shared = out->n_documents = 0;
    qr_status status = reserve_documents(out, query->n_documents, err);
    b.parts = status == QR_OK ? qr_calloc(prompt->n_pieces, sizeof *b.parts) : NULL;
    if (status == QR_OK && b.parts == NULL) status = no_memory(err);
    b.scratch = out->ids.scratch;
    out->ids.scratch = NULL;
    if (query->max_length != 0 && query->max_length < max_length) max_length = query->max_length;
    if (status == QR_OK) status = build(&b, query, max_length, out, err);
    out->ids.scratch = b.scratch;
    qr_free(b.parts);
    qr_ids_deinit(&b.head);
    qr_ids_deinit(&b.end);
    return status;
}

void qr_prompt_ids_deinit(qr_prompt_ids *ids)
{
    qr_ids_deinit(&ids->ids);
    qr_free(ids->start);
    qr_free(ids->flags);
    *ids = (qr_prompt_ids){0};
}
