/* Reads tokenizer.json into a tokenizer.
 *
 * Nothing is assumed about the vocabulary but its kind: ids need not follow merge ranks, nor be contiguous, so a reduced vocabulary works.
 * What is asked of it: the 256 byte symbols are there, and every merge joins two entries into a third. Strings are turned from byte symbols
 * (byte 0x20 is written U+0120, ...) back to bytes once, here. Every field is known by name: one that is not could change ids.
 */
#include "base/utf8.h"
#include "text/json_scan.h"
#include "text/tokenizer_internal.h"

#include "base/file.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

static const char pattern[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"
    "\\s+(?!\\S)|\\s+";

enum { N_SYMBOLS = 0x144, MAX_MERGES = 1 << 23 };

typedef struct loader {
    qr_json json;
    qr_tokenizer *tok;
    int16_t byte_of[N_SYMBOLS]; /* byte that a symbol's code point stands for, or -1 */
    size_t n_vocab;
    qr_merge *merges; /* [tok->n_merges] in order of rank */
    size_t merges_capacity;
    int have_vocab;
    const unsigned char *late_merges; /* where they begin, if they come before the vocabulary */
} loader;

static int no_memory(loader *l) { return qr_json_fail(&l->json, QR_E_MEMORY, "no memory for the tokenizer"); }

static int unsupported(loader *l, const char *expected)
{
    return qr_json_fail(&l->json, QR_E_UNSUPPORTED, "expected %s, found something else; this tokenizer is of another kind", expected);
}

/* GPT-2's bytes_to_unicode: printable Latin-1 stands for itself, the other 68 bytes for U+0100 and on. */
static void make_byte_symbols(loader *l)
{
    int next = 0x100;
    memset(l->byte_of, -1, sizeof l->byte_of);
    for (int b = 0; b < 256; b++) {
        int printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        l->byte_of[printable ? b : next++] = (int16_t) b;
    }
}

/* Symbols to bytes, at most `room` of them. 0 when a character is not a byte symbol or there is no room. */
static int decode_symbols(const loader *l, const unsigned char *text, size_t len, unsigned char *out, size_t room, size_t *n_out)
{
    size_t n = 0;
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        i += qr_utf8_decode_valid(text + i, &cp);
        if (n == room || cp >= N_SYMBOLS || l->byte_of[cp] < 0) return 0;
        out[n++] = (unsigned char) l->byte_of[cp];
    }
    *n_out = n;
    return 1;
}

static uint32_t hash_bytes(const unsigned char *s, size_t n)
{
    uint64_t h = n * 0x9E3779B97F4A7C15u, word;
    for (; n >= 8; s += 8, n -= 8) {
        memcpy(&word, s, 8);
        h = (h ^ word) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
    }
    word = 0;
    memcpy(&word, s, n);
    h = (h ^ word) * 0xD6E8FEB86659FD93u;
    return (uint32_t) (h ^ h >> 32);
}

static uint64_t fingerprint(const unsigned char *s, size_t n)
{
    uint64_t h = n, word;
    for (; n >= 8; s += 8, n -= 8) {
        memcpy(&word, s, 8);
        h = (h ^ word) * 0x9E3779B97F4A7C15u;
        h ^= h >> 29;
    }
    word = 0;
    memcpy(&word, s, n);
    return (h ^ word) * 0xD6E8FEB86659FD93u;
}

/* Makes entry[id] exist. */
static int reserve_id(loader *l, uint32_t id)
{
    qr_tokenizer *tok = l->tok;
    if (id > QR_TOK_MAX_ID) return qr_json_fail(&l->json, QR_E_FORMAT, "expected a token id up to %d, found %u", QR_TOK_MAX_ID, id);
    if (id < tok->n_ids) return 1;
    struct qr_entry *grown = qr_grow(tok->entry, &tok->entry_capacity, (size_t) id + 1, sizeof *grown);
    if (grown == NULL) return no_memory(l);
    memset(grown + tok->n_ids, 0, (id + 1 - tok->n_ids) * sizeof *grown);
    tok->entry = grown;
    tok->n_ids = (size_t) id + 1;
    return 1;
}

static int reserve_blob(loader *l, size_t more)
{
    unsigned char *grown = qr_grow(l->tok->blob, &l->tok->blob_capacity, l->tok->blob_len + more, 1);
    if (grown == NULL) return no_memory(l);
    l->tok->blob = grown;
    return 1;
}

/* The id of a vocabulary entry, or QR_TOK_NO_ID. */
static uint32_t find(const qr_tokenizer *tok, const unsigned char *s, size_t n)
{
    uint32_t h = hash_bytes(s, n);
    for (size_t i = h & tok->by_text_mask;; i = (i + 1) & tok->by_text_mask) {
        uint32_t id = tok->by_text[i];
        if (id == QR_TOK_NO_ID) return id;
        const struct qr_entry *e = &tok->entry[id];
        if (e->hash == h && e->len == n && memcmp(tok->blob + e->text, s, n) == 0) return id;
    }
}

static size_t table_size(size_t n)
{
    size_t size = 16;
    while (size < 2 * n) size *= 2;
    return size;
}

static int index_vocabulary(loader *l)
{
    qr_tokenizer *tok = l->tok;
    size_t size = table_size(l->n_vocab);
    tok->by_text = qr_calloc(size, sizeof *tok->by_text);
    if (tok->by_text == NULL) return no_memory(l);
    memset(tok->by_text, 0xFF, size * sizeof *tok->by_text);
    tok->by_text_mask = size - 1;
    for (uint32_t id = 0; id < tok->n_ids; id++) {
        const struct qr_entry *e = &tok->entry[id];
        if (e->len == 0) continue;
        uint32_t other = find(tok, tok->blob + e->text, e->len);
        if (other != QR_TOK_NO_ID)
            return qr_json_fail(&l->json, QR_E_FORMAT, "vocab: expected each entry once, found ids %u and %u for the same text", other, id);
        size_t i = e->hash & tok->by_text_mask;
        while (tok->by_text[i] != QR_TOK_NO_ID) i = (i + 1) & tok->by_text_mask;
        tok->by_text[i] = id;
    }
    for (int b = 0; b < 256; b++) {
        tok->byte_id[b] = find(tok, &(unsigned char){(unsigned char) b}, 1);
        if (tok->byte_id[b] == QR_TOK_NO_ID)
            return qr_json_fail(&l->json, QR_E_FORMAT, "vocab: expected a symbol for byte 0x%02X, found none", b);
    }
    return 1;
}

static int read_vocab(loader *l)
{
    qr_json *j = &l->json;
    qr_tokenizer *tok = l->tok;
    const unsigned char *key;
    size_t len, n;
    uint32_t id;
    if (!qr_json_begin(j, '{')) return 0;
    while (qr_json_member(j, &key, &len)) {
        if (!reserve_blob(l, QR_TOK_MAX_ENTRY)) return 0;
        unsigned char *bytes = tok->blob + tok->blob_len;
        if (!decode_symbols(l, key, len, bytes, QR_TOK_MAX_ENTRY, &n) || n == 0)
            return qr_json_fail(j, QR_E_FORMAT, "vocab: expected an entry of 1 to %d byte symbols, found \"%.*s\"", QR_TOK_MAX_ENTRY,
                                (int) (len < 64 ? len : 64), (const char *) key);
        if (!qr_json_uint(j, &id) || !reserve_id(l, id)) return 0;
        if (tok->entry[id].len != 0) return qr_json_fail(j, QR_E_FORMAT, "vocab: expected each id once, found %u again", id);
        tok->entry[id] = (struct qr_entry){.text = (uint32_t) tok->blob_len, .len = (uint32_t) n, .hash = hash_bytes(bytes, n)};
        tok->blob_len += n;
        l->n_vocab++;
    }
    l->have_vocab = 1;
    return j->status == QR_OK && index_vocabulary(l);
}

/* Decodes one side of a merge to bytes + *n, and looks it up. */
static int merge_side(loader *l, const unsigned char *text, size_t len, unsigned char *bytes, size_t *n, uint32_t *id)
{
    size_t size = 0;
    *id = QR_TOK_NO_ID;
    if (decode_symbols(l, text, len, bytes + *n, QR_TOK_MAX_ENTRY, &size) && size > 0) *id = find(l->tok, bytes + *n, size);
    *n += size;
    return *id != QR_TOK_NO_ID ||
           qr_json_fail(&l->json, QR_E_FORMAT, "merges: expected entries of the vocabulary, found \"%.*s\" in merge %zu",
                        (int) (len < 64 ? len : 64), (const char *) text, l->tok->n_merges);
}

/* ["a", "b"] or "a b". */
static int read_merge(loader *l, qr_merge *merge)
{
    qr_json *j = &l->json;
    unsigned char bytes[2 * QR_TOK_MAX_ENTRY];
    const unsigned char *text;
    size_t len, n = 0;
    if (qr_json_peek(j) == '[') {
        if (!qr_json_begin(j, '[') || !qr_json_element(j) || !qr_json_string(j, &text, &len) ||
            !merge_side(l, text, len, bytes, &n, &merge->left) || !qr_json_element(j) || !qr_json_string(j, &text, &len) ||
            !merge_side(l, text, len, bytes, &n, &merge->right) || qr_json_element(j))
            return qr_json_fail(j, QR_E_FORMAT, "merges: expected two strings in merge %zu", l->tok->n_merges);
        if (j->status != QR_OK) return 0;
    } else {
        if (!qr_json_string(j, &text, &len)) return 0;
        const unsigned char *space = len ? memchr(text, ' ', len) : NULL; /* no symbol is a space */
        if (space == NULL) return qr_json_fail(j, QR_E_FORMAT, "merges: expected two strings in merge %zu, found one", l->tok->n_merges);
        size_t left = (size_t) (space - text);
        if (!merge_side(l, text, left, bytes, &n, &merge->left) || !merge_side(l, space + 1, len - left - 1, bytes, &n, &merge->right))
            return 0;
    }
    merge->result = find(l->tok, bytes, n);
    return merge->result != QR_TOK_NO_ID ||
           qr_json_fail(j, QR_E_FORMAT, "merges: expected the result of merge %zu in the vocabulary, found none", l->tok->n_merges);
}

static int index_merges(loader *l)
{
    qr_tokenizer *tok = l->tok;
    size_t size = table_size(tok->n_merges);
    tok->merge = qr_calloc(size, sizeof *tok->merge);
    if (tok->merge == NULL) return no_memory(l);
    tok->merge_mask = size - 1;
    memset(tok->merge, 0xFF, size * sizeof *tok->merge); /* QR_TOK_NO_ID everywhere */
    for (size_t r = 0; r < tok->n_merges; r++) {
        const qr_merge *m = &l->merges[r], *twin = qr_tok_merge(tok, m->left, m->right);
        if (twin != NULL)
            return qr_json_fail(&l->json, QR_E_FORMAT, "merges: expected each pair once, found merge %u again as %zu", twin->rank, r);
        size_t i = qr_tok_merge_slot(tok, m->left, m->right);
        while (tok->merge[i].result != QR_TOK_NO_ID) i = (i + 1) & tok->merge_mask;
        tok->merge[i] = *m;
    }
    return 1;
}

static int read_merges(loader *l)
{
    qr_json *j = &l->json;
    if (!qr_json_begin(j, '[')) return 0;
    while (qr_json_element(j)) {
        if (l->tok->n_merges == MAX_MERGES) return qr_json_fail(j, QR_E_FORMAT, "merges: expected at most %d", MAX_MERGES);
        qr_merge *grown = qr_grow(l->merges, &l->merges_capacity, l->tok->n_merges + 1, sizeof *grown);
        if (grown == NULL) return no_memory(l);
        l->merges = grown;
        if (!read_merge(l, &grown[l->tok->n_merges])) return 0;
        grown[l->tok->n_merges].rank = (uint32_t) l->tok->n_merges;
        l->tok->n_merges++;
    }
    return j->status == QR_OK && index_merges(l);
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
    static const char replacement[] = "\xEF\xBF\xBD";
    qr_json *j = &l->json;
    qr_tokenizer *tok = l->tok;
    unsigned seen = 0, key;
    const unsigned char *text;
    qr_added_token token = {.id = QR_TOK_NO_ID};
    if (!qr_json_begin(j, '{')) return 0;
    while (qr_json_known_member(j, "added token", keys, N_KEYS, &seen, &key)) {
        switch (key) {
        case ID:
            qr_json_uint(j, &token.id);
            break;
        case CONTENT:
            if (!qr_json_string(j, &text, &token.len) || !reserve_blob(l, token.len + 1)) return 0;
            token.text = tok->blob_len;
            memcpy(tok->blob + tok->blob_len, text, token.len);
            tok->blob_len += token.len;
            break;
        case SPECIAL:
            qr_json_bool(j, &token.special);
            break;
        default:
            read_false(l, keys[key]);
        }
    }
    if (j->status != QR_OK) return 0;
    if (!(seen & 1u << ID) || token.len == 0 || token.len > QR_TOK_MAX_ENTRY)
        return qr_json_fail(j, QR_E_FORMAT, "added token: expected an id and a content of 1 to %d bytes", QR_TOK_MAX_ENTRY);
    for (size_t i = 0; i + 3 <= token.len; i++) { /* added tokens are matched before repair, which could create this one */
        if (memcmp(tok->blob + token.text + i, replacement, 3) == 0) return unsupported(l, "an added token without U+FFFD");
    }
    if (tok->n_added == QR_TOK_MAX_ADDED) return qr_json_fail(j, QR_E_FORMAT, "expected at most %d added tokens", QR_TOK_MAX_ADDED);
    qr_added_token *grown = qr_grow(tok->added, &tok->added_capacity, tok->n_added + 1, sizeof *grown);
    if (grown == NULL) return no_memory(l);
    tok->added = grown;
    tok->added[tok->n_added++] = token;
    return 1;
}

/* Gives added tokens their places among the ids, once the vocabulary is known: one may repeat an entry, with the same id. */
static int place_added_tokens(loader *l)
{
    qr_tokenizer *tok = l->tok;
    unsigned char bytes[QR_TOK_MAX_ENTRY];
    for (size_t k = 0; k < tok->n_added; k++) {
        const qr_added_token *t = &tok->added[k];
        size_t n;
        uint32_t id = decode_symbols(l, tok->blob + t->text, t->len, bytes, sizeof bytes, &n) ? find(tok, bytes, n) : QR_TOK_NO_ID;
        if (!reserve_id(l, t->id)) return 0;
        struct qr_entry *e = &tok->entry[t->id];
        if (e->added || (id == QR_TOK_NO_ID ? e->len != 0 : id != t->id))
            return qr_json_fail(&l->json, QR_E_FORMAT, "added token \"%.*s\": expected an id of its own, found %u",
                                (int) (t->len < 64 ? t->len : 64), (const char *) tok->blob + t->text, t->id);
        e->added = 1;
    }
    for (size_t k = 0; k < tok->n_added; k++) { /* only now: until here entries hold what `find` compares with */
        const qr_added_token *t = &tok->added[k];
        tok->entry[t->id] = (struct qr_entry){.text = (uint32_t) t->text, .len = (uint32_t) t->len, .added = 1};
    }
    return 1;
}

/* Orders by first byte, then longest first. Insertion would be quadratic in hostile files, qsort cannot see the blob: so counting sort by
 * first byte, and qsort by length within each bucket. */
static int longer_first(const void *a, const void *b)
{
    const qr_added_token *x = a, *y = b;
    return (x->len < y->len) - (x->len > y->len);
}

static int index_added_tokens(loader *l)
{
    qr_tokenizer *tok = l->tok;
    qr_added_token *sorted = qr_calloc(tok->n_added, sizeof *sorted);
    uint32_t next[256];
    if (sorted == NULL) return no_memory(l);
    for (size_t k = 0; k < tok->n_added; k++) tok->added_begin[tok->blob[tok->added[k].text] + 1]++;
    for (int b = 0; b < 256; b++) {
        tok->added_begin[b + 1] += tok->added_begin[b];
        next[b] = tok->added_begin[b];
    }
    for (size_t k = 0; k < tok->n_added; k++) sorted[next[tok->blob[tok->added[k].text]]++] = tok->added[k];
    qr_free(tok->added);
    tok->added = sorted;
    for (int b = 0; b < 256; b++) {
        size_t begin = tok->added_begin[b], n = tok->added_begin[b + 1] - begin;
        if (n > 1) qsort(sorted + begin, n, sizeof *sorted, longer_first);
        for (size_t k = begin; k < begin + n; k++) {
            for (size_t i = k + 1; i < begin + n && sorted[i].len == sorted[k].len; i++) {
                if (memcmp(tok->blob + sorted[i].text, tok->blob + sorted[k].text, sorted[k].len) == 0)
                    return qr_json_fail(&l->json, QR_E_FORMAT, "added tokens: expected each once, found ids %u and %u for the same text",
                                        sorted[k].id, sorted[i].id);
            }
        }
    }
    return 1;
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
    return place_added_tokens(l) && index_added_tokens(l);
}

qr_status qr_tok_open_memory(qr_tokenizer **out, const void *data, size_t len, const char *name, qr_error *err)
{
    loader l = {0};
    *out = NULL;
    if (len > QR_TOK_MAX_FILE) return qr_fail(err, QR_E_FORMAT, "%s: expected at most %d bytes, found %zu", name, QR_TOK_MAX_FILE, len);
    l.tok = qr_calloc(1, sizeof *l.tok);
    if (l.tok == NULL) return qr_fail(err, QR_E_MEMORY, "%s: no memory for the tokenizer", name);
    qr_json_init(&l.json, data, len, name, err);
    make_byte_symbols(&l);
    l.tok->fingerprint = fingerprint(l.json.text, len);
    read_tokenizer(&l);
    qr_status status = l.json.status;
    qr_json_deinit(&l.json);
    qr_free(l.merges);
    qr_free(l.tok->by_text); /* served the loader only */
    l.tok->by_text = NULL;
    if (status != QR_OK) qr_tok_close(l.tok);
    else *out = l.tok;
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
