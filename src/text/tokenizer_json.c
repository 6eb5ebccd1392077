/* Reads tokenizer.json into a tokenizer.
 *
 * Nothing is assumed about the vocabulary but its kind: ids need not follow merge ranks, nor be contiguous, so a reduced vocabulary works.
 * What is asked of it: the 256 byte symbols are there, and every merge joins two entries into a third. Strings are turned from byte symbols
 * (byte 0x20 is written U+0120, ...) back to bytes once, here. Every field is known by name: one that is not could change ids.
 */
#include "base/file.h"
#include "base/mem.h"
#include "text/json_scan.h"
#include "text/tokenizer_load.h"

#include <string.h>

static const char pattern[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"
    "\\s+(?!\\S)|\\s+";

typedef struct loader {
    qr_json json;
    qr_tok_loader load;
    int have_vocab;
    const unsigned char *late_merges; /* where they begin, if they come before the vocabulary */
} loader;

/* What a step of loading returned, with the place in the file. */
static int loaded(loader *l, int ok) { return ok || qr_json_fail(&l->json, l->load.error.code, "%s", l->load.error.msg); }

static int unsupported(loader *l, const char *expected)
{
    return qr_json_fail(&l->json, QR_E_UNSUPPORTED, "expected %s, found something else; this tokenizer is of another kind", expected);
}

static int read_vocab(loader *l)
{
    qr_json *j = &l->json;
    const unsigned char *key;
    size_t len;
    uint32_t id;
    if (!qr_json_begin(j, '{')) return 0;
    while (qr_json_member(j, &key, &len))
        if (!qr_json_uint(j, &id) || !loaded(l, qr_tok_load_entry(&l->load, key, len, id))) return 0;
    l->have_vocab = 1;
    return j->status == QR_OK && loaded(l, qr_tok_load_vocabulary(&l->load));
}

/* ["a", "b"] or "a b". Each string is gone when the next is read. */
static int read_merge(loader *l)
{
    qr_json *j = &l->json;
    size_t n = l->load.tok->n_merges, len;
    const unsigned char *text;
    if (qr_json_peek(j) != '[') return qr_json_string(j, &text, &len) && loaded(l, qr_tok_load_merge(&l->load, text, len));
    if (!qr_json_begin(j, '[') || !qr_json_element(j) || !qr_json_string(j, &text, &len) ||
        !loaded(l, qr_tok_load_left(&l->load, text, len)) || !qr_json_element(j) || !qr_json_string(j, &text, &len) ||
        !loaded(l, qr_tok_load_right(&l->load, text, len)) || qr_json_element(j))
        return qr_json_fail(j, QR_E_FORMAT, "merges: expected two strings in merge %zu", n);
    return j->status == QR_OK;
}

static int read_merges(loader *l)
{
    qr_json *j = &l->json;
    if (!qr_json_begin(j, '[')) return 0;
    while (qr_json_element(j))
        if (!read_merge(l)) return 0;
    return j->status == QR_OK && loaded(l, qr_tok_load_merges(&l->load));
}

/* A string that must equal `expected`. */
static int read_word(loader *l, const char *what, const char *expected)
{
    const unsigned char *text;
    size_t len;
    if (!qr_json_string(&l->json, &text, &len)) return 0;
    if (len == strlen(expected) && memcmp(text, expected, len) == 0) return 1;
    return qr_json_fail(&l->json, QR_E_UNSUPPORTED, "%s: expected \"%s\", found \"%.*s\"", what, expected, (int) (len < 128 ? len : 128),
                        (const char *) text);
}

static int read_false(loader *l, const char *what)
{
    int value;
    if (!qr_json_bool(&l->json, &value)) return 0;
    return !value || qr_json_fail(&l->json, QR_E_UNSUPPORTED, "%s: expected false, found true", what);
}

static int read_null(loader *l, const char *what)
{
    return qr_json_null(&l->json) ||
           (qr_json_skip(&l->json) && qr_json_fail(&l->json, QR_E_UNSUPPORTED, "%s: expected null, found something else", what));
}

static int read_model(loader *l)
{
    enum { TYPE, DROPOUT, UNK, PREFIX, SUFFIX, FUSE, FALLBACK, IGNORE, VOCAB, MERGES, N_KEYS };
    static const char *const keys[N_KEYS] = {
        "type",          "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
        "ignore_merges", "vocab",   "merges"};
    unsigned seen = 0, key;
    int value;
    if (!qr_json_begin(&l->json, '{')) return 0;
    while (qr_json_known_member(&l->json, "model", keys, N_KEYS, &seen, &key)) {
        switch (key) {
        case TYPE:
            read_word(l, "model type", "BPE");
            break;
        case DROPOUT:
            read_null(l, "model dropout");
            break;
        case UNK:
        case PREFIX:
        case SUFFIX:
            if (!qr_json_null(&l->json)) read_word(l, keys[key], "");
            break;
        case FUSE:
            qr_json_bool(&l->json, &value);
            break; /* without an unknown token it does nothing */
        case FALLBACK:
        case IGNORE:
            read_false(l, keys[key]);
            break;
        case VOCAB:
            read_vocab(l);
            break;
        default: /* merges name entries: before the vocabulary, as in a file with sorted keys, they wait */
            if (l->have_vocab) {
                read_merges(l);
            } else {
                l->late_merges = l->json.p;
                qr_json_skip(&l->json);
            }
        }
    }
    if (l->json.status == QR_OK && (!l->have_vocab || !(seen & 1u << MERGES)))
        return qr_json_fail(&l->json, QR_E_FORMAT, "model: expected vocab and merges, found %s", l->have_vocab ? "no merges" : "no vocab");
    if (l->json.status == QR_OK && l->late_merges != NULL) {
        const unsigned char *after = l->json.p;
        l->json.p = l->late_merges;
        if (read_merges(l)) l->json.p = after;
    }
    return l->json.status == QR_OK;
}

static int read_added_token(loader *l)
{
    enum { ID, CONTENT, SINGLE, LEFT, RIGHT, NORMALIZED, SPECIAL, N_KEYS };
    static const char *const keys[N_KEYS] = {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"};
    qr_json *j = &l->json;
    unsigned seen = 0, key;
    const unsigned char *text;
    char content[QR_TOK_MAX_ENTRY];
    size_t len = 0;
    uint32_t id = QR_TOK_NO_ID;
    int special = 0;
    if (!qr_json_begin(j, '{')) return 0;
    while (qr_json_known_member(j, "added token", keys, N_KEYS, &seen, &key)) {
        switch (key) {
        case ID:
            qr_json_uint(j, &id);
            break;
        case CONTENT:
            if (!qr_json_string(j, &text, &len)) return 0;
            memcpy(content, text, len <= sizeof content ? len : 0);
            break;
        case SPECIAL:
            qr_json_bool(j, &special);
            break;
        default:
            read_false(l, keys[key]);
        }
    }
    if (j->status != QR_OK) return 0;
    if (!(seen & 1u << ID)) len = 0; /* which is refused */
    return loaded(l, qr_tok_load_added(&l->load, (qr_text){content, len}, id, special));
}

static int read_added_tokens(loader *l)
{
    if (!qr_json_begin(&l->json, '[')) return 0;
    while (qr_json_element(&l->json)) {
        if (!read_added_token(l)) return 0;
    }
    return l->json.status == QR_OK;
}

static int read_normalizer(loader *l)
{
    static const char *const keys[] = {"type"};
    unsigned seen = 0, key;
    if (qr_json_peek(&l->json) != '{') return qr_json_skip(&l->json) && unsupported(l, "an NFC normalizer");
    qr_json_begin(&l->json, '{');
    while (qr_json_known_member(&l->json, "normalizer", keys, 1, &seen, &key)) read_word(l, "normalizer", "NFC");
    return l->json.status == QR_OK && (seen || unsupported(l, "an NFC normalizer"));
}

static int read_pattern(loader *l)
{
    static const char *const keys[] = {"Regex"};
    unsigned seen = 0, key;
    if (!qr_json_begin(&l->json, '{')) return 0;
    while (qr_json_known_member(&l->json, "pattern", keys, 1, &seen, &key)) read_word(l, "pre-tokenizer pattern", pattern);
    return l->json.status == QR_OK && (seen || unsupported(l, "a Regex pattern"));
}

/* Step 0 is the Split by the pattern, step 1 the ByteLevel that only maps bytes to symbols. */
static int read_pre_tokenizer_step(loader *l, unsigned step)
{
    enum { TYPE, PATTERN, BEHAVIOR, INVERT, SPACE = PATTERN, TRIM, REGEX };
    static const char *const keys[2][4] = {{"type", "pattern", "behavior", "invert"},
                                           {"type", "add_prefix_space", "trim_offsets", "use_regex"}};
    unsigned seen = 0, key;
    int value;
    if (!qr_json_begin(&l->json, '{')) return 0;
    while (qr_json_known_member(&l->json, "pre-tokenizer", keys[step], 4, &seen, &key)) {
        if (key == TYPE) read_word(l, "pre-tokenizer", step == 0 ? "Split" : "ByteLevel");
        else if (step == 1 && key == TRIM) qr_json_bool(&l->json, &value); /* changes offsets, not ids */
        else if (step == 0 && key == PATTERN) read_pattern(l);
        else if (step == 0 && key == BEHAVIOR) read_word(l, "pre-tokenizer behavior", "Isolated");
        else read_false(l, keys[step][key]);
    }
    /* Absent, use_regex and add_prefix_space are true. */
    unsigned required = step == 0 ? 1u << TYPE | 1u << PATTERN | 1u << BEHAVIOR : 1u << TYPE | 1u << SPACE | 1u << REGEX;
    return l->json.status == QR_OK && ((seen & required) == required || unsupported(l, step == 0 ? "a whole Split" : "a whole ByteLevel"));
}

static int read_pre_tokenizer(loader *l)
{
    static const char *const keys[] = {"type", "pretokenizers"};
    unsigned seen = 0, key, step = 0;
    if (qr_json_peek(&l->json) != '{') return qr_json_skip(&l->json) && unsupported(l, "a pre_tokenizer");
    qr_json_begin(&l->json, '{');
    while (qr_json_known_member(&l->json, "pre_tokenizer", keys, 2, &seen, &key)) {
        if (key == 0) {
            read_word(l, "pre_tokenizer", "Sequence");
            continue;
        }
        if (!qr_json_begin(&l->json, '[')) return 0;
        while (qr_json_element(&l->json)) {
            if (step == 2) return unsupported(l, "two pre-tokenizers");
            if (!read_pre_tokenizer_step(l, step++)) return 0;
        }
    }
    return l->json.status == QR_OK && ((seen == 3 && step == 2) || unsupported(l, "a Sequence of two pre-tokenizers"));
}

/* null, or the ByteLevel one, which adds nothing. */
static int read_post_processor(loader *l)
{
    static const char *const keys[] = {"type", "add_prefix_space", "trim_offsets", "use_regex"};
    unsigned seen = 0, key;
    int value;
    if (qr_json_null(&l->json)) return 1;
    if (!qr_json_begin(&l->json, '{')) return 0;
    while (qr_json_known_member(&l->json, "post_processor", keys, 4, &seen, &key)) {
        if (key == 0) read_word(l, "post_processor", "ByteLevel");
        else qr_json_bool(&l->json, &value);
    }
    return l->json.status == QR_OK && (seen & 1 || unsupported(l, "a ByteLevel post_processor"));
}

static int read_tokenizer(loader *l)
{
    enum { VERSION, TRUNCATION, PADDING, ADDED, NORMALIZER, PRE, POST, DECODER, MODEL, N_KEYS };
    static const char *const keys[N_KEYS] = {"version",       "truncation",     "padding", "added_tokens", "normalizer",
                                             "pre_tokenizer", "post_processor", "decoder", "model"};
    unsigned seen = 0, key;
    if (!qr_json_begin(&l->json, '{')) return 0;
    while (qr_json_known_member(&l->json, "tokenizer", keys, N_KEYS, &seen, &key)) {
        switch (key) {
        case VERSION:
            read_word(l, "version", "1.0");
            break;
        case TRUNCATION:
        case PADDING:
            read_null(l, keys[key]);
            break;
        case ADDED:
            read_added_tokens(l);
            break;
        case NORMALIZER:
            read_normalizer(l);
            break;
        case PRE:
            read_pre_tokenizer(l);
            break;
        case POST:
            read_post_processor(l);
            break;
        case DECODER:
            qr_json_skip(&l->json);
            break; /* ids to text: not our direction */
        default:
            read_model(l);
        }
    }
    if (!qr_json_finish(&l->json)) return 0;
    static const unsigned required[] = {NORMALIZER, PRE, MODEL};
    for (size_t i = 0; i < sizeof required / sizeof required[0]; i++) {
        if (!(seen & 1u << required[i])) return qr_json_fail(&l->json, QR_E_FORMAT, "expected \"%s\", found none", keys[required[i]]);
    }
    return loaded(l, qr_tok_load_end(&l->load));
}

qr_status qr_tok_open_memory(qr_tokenizer **out, const void *data, size_t len, const char *name, qr_error *err)
{
    loader l = {0};
    *out = NULL;
    if (len > QR_TOK_MAX_FILE) return qr_fail(err, QR_E_FORMAT, "%s: expected at most %d bytes, found %zu", name, QR_TOK_MAX_FILE, len);
    if (!qr_tok_load_begin(&l.load)) return qr_fail(err, l.load.error.code, "%s: %s", name, l.load.error.msg);
    qr_json_init(&l.json, data, len, name, err);
    l.load.tok->fingerprint = qr_tok_fingerprint(l.json.text, len);
    read_tokenizer(&l);
    qr_status status = l.json.status;
    qr_json_deinit(&l.json);
    *out = qr_tok_load_finish(&l.load, status == QR_OK);
    return status;
}

qr_status qr_tok_open(qr_tokenizer **out, const char *path, qr_error *err)
{
    qr_file file;
    *out = NULL;
    qr_status status = qr_file_open(&file, path, err);
    if (status != QR_OK) return status;
    status = qr_tok_open_memory(out, file.data, file.size, path, err);
    qr_file_close(&file);
    return status;
}
