/* See tokenizer_load.h. */
#include "text/tokenizer_load.h"

#include "base/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_MERGES = 1 << 23 };

__attribute__((format(printf, 3, 4))) static int fail(qr_tok_loader *l, qr_status code, const char *format, ...)
{
    char message[400];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    qr_fail(&l->error, code, "%s", message);
    return 0;
}

static int no_memory(qr_tok_loader *l) { return fail(l, QR_E_MEMORY, "no memory for the tokenizer"); }

/* GPT-2's bytes_to_unicode: printable Latin-1 stands for itself, the other 68 bytes for U+0100 and on. */
static void make_byte_symbols(qr_tok_loader *l)
{
    int next = 0x100;
    memset(l->byte_of, -1, sizeof l->byte_of);
    for (int b = 0; b < 256; b++) {
        int printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        l->byte_of[printable ? b : next++] = (int16_t) b;
    }
}

/* Symbols to bytes, at most `room` of them. 0 when a character is not a byte symbol or there is no room. */
static int decode_symbols(const qr_tok_loader *l, const unsigned char *text, size_t len, unsigned char *out, size_t room, size_t *n_out)
{
    size_t n = 0;
    for (size_t i = 0; i < len;) {
        uint32_t cp = text[i++];
        if (cp >= 0x80) { /* all symbols beyond ASCII have two bytes, and text that is no UTF-8 must not lead past its end */
            if (cp < 0xC2 || cp > 0xDF || i == len || (text[i] & 0xC0) != 0x80) return 0;
            cp = (cp & 31) << 6 | (text[i++] & 63);
        }
        if (n == room || cp >= sizeof l->byte_of / sizeof l->byte_of[0] || l->byte_of[cp] < 0) return 0;
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

uint64_t qr_tok_fingerprint(const unsigned char *s, size_t n)
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
static int reserve_id(qr_tok_loader *l, uint32_t id)
{
    qr_tokenizer *tok = l->tok;
    if (id > QR_TOK_MAX_ID) return fail(l, QR_E_FORMAT, "expected a token id up to %d, found %u", QR_TOK_MAX_ID, id);
    if (id < tok->n_ids) return 1;
    struct qr_entry *grown = qr_grow(tok->entry, &tok->entry_capacity, (size_t) id + 1, sizeof *grown);
    if (grown == NULL) return no_memory(l);
    memset(grown + tok->n_ids, 0, (id + 1 - tok->n_ids) * sizeof *grown);
    tok->entry = grown;
    tok->n_ids = (size_t) id + 1;
    return 1;
}

static int reserve_blob(qr_tok_loader *l, size_t more)
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

int qr_tok_load_vocabulary(qr_tok_loader *l)
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
            return fail(l, QR_E_FORMAT, "vocab: expected each entry once, found ids %u and %u for the same text", other, id);
        size_t i = e->hash & tok->by_text_mask;
        while (tok->by_text[i] != QR_TOK_NO_ID) i = (i + 1) & tok->by_text_mask;
        tok->by_text[i] = id;
    }
    for (int b = 0; b < 256; b++) {
        tok->byte_id[b] = find(tok, &(unsigned char){(unsigned char) b}, 1);
        if (tok->byte_id[b] == QR_TOK_NO_ID) return fail(l, QR_E_FORMAT, "vocab: expected a symbol for byte 0x%02X, found none", b);
    }
    return 1;
}

int qr_tok_load_entry(qr_tok_loader *l, const unsigned char *text, size_t len, uint32_t id)
{
    qr_tokenizer *tok = l->tok;
    size_t n;
    if (!reserve_blob(l, QR_TOK_MAX_ENTRY)) return 0;
    unsigned char *bytes = tok->blob + tok->blob_len;
    if (!decode_symbols(l, text, len, bytes, QR_TOK_MAX_ENTRY, &n) || n == 0)
        return fail(l, QR_E_FORMAT, "vocab: expected an entry of 1 to %d byte symbols, found \"%.*s\"", QR_TOK_MAX_ENTRY,
                    (int) (len < 64 ? len : 64), (const char *) text);
    if (!reserve_id(l, id)) return 0;
    if (tok->entry[id].len != 0) return fail(l, QR_E_FORMAT, "vocab: expected each id once, found %u again", id);
    tok->entry[id] = (struct qr_entry){.text = (uint32_t) tok->blob_len, .len = (uint32_t) n, .hash = hash_bytes(bytes, n)};
    tok->blob_len += n;
    l->n_vocab++;
    return 1;
}

/* Decodes one side of a merge to the end of l->pair, and looks it up. */
static int merge_side(qr_tok_loader *l, const unsigned char *text, size_t len, uint32_t *id)
{
    size_t size = 0;
    *id = QR_TOK_NO_ID;
    if (decode_symbols(l, text, len, l->pair + l->n_pair, QR_TOK_MAX_ENTRY, &size) && size > 0)
        *id = find(l->tok, l->pair + l->n_pair, size);
    l->n_pair += size;
    return *id != QR_TOK_NO_ID || fail(l, QR_E_FORMAT, "merges: expected entries of the vocabulary, found \"%.*s\" in merge %zu",
                                       (int) (len < 64 ? len : 64), (const char *) text, l->tok->n_merges);
}

int qr_tok_load_left(qr_tok_loader *l, const unsigned char *text, size_t len)
{
    size_t n = l->tok->n_merges;
    if (n == MAX_MERGES) return fail(l, QR_E_FORMAT, "merges: expected at most %d", MAX_MERGES);
    qr_merge *grown = qr_grow(l->merges, &l->merges_capacity, n + 1, sizeof *grown);
    if (grown == NULL) return no_memory(l);
    l->merges = grown;
    l->n_pair = 0;
    return merge_side(l, text, len, &grown[n].left);
}

int qr_tok_load_right(qr_tok_loader *l, const unsigned char *text, size_t len)
{
    size_t n = l->tok->n_merges;
    qr_merge *merge = &l->merges[n];
    if (!merge_side(l, text, len, &merge->right)) return 0;
    merge->result = find(l->tok, l->pair, l->n_pair);
    if (merge->result == QR_TOK_NO_ID)
        return fail(l, QR_E_FORMAT, "merges: expected the result of merge %zu in the vocabulary, found none", n);
    merge->rank = (uint32_t) n;
    l->tok->n_merges++;
    return 1;
}

int qr_tok_load_merge(qr_tok_loader *l, const unsigned char *text, size_t len)
{
    const unsigned char *space = len ? memchr(text, ' ', len) : NULL; /* no symbol is a space */
    if (space == NULL) return fail(l, QR_E_FORMAT, "merges: expected two strings in merge %zu, found one", l->tok->n_merges);
    size_t left = (size_t) (space - text);
    return qr_tok_load_left(l, text, left) && qr_tok_load_right(l, space + 1, len - left - 1);
}

int qr_tok_load_merges(qr_tok_loader *l)
{
    qr_tokenizer *tok = l->tok;
    size_t size = table_size(tok->n_merges);
    tok->merge = qr_calloc(size, sizeof *tok->merge);
    if (tok->merge == NULL) return no_memory(l);
    tok->merge_mask = size - 1;
    memset(tok->merge, 0xFF, size * sizeof *tok->merge); /* QR_TOK_NO_ID everywhere */
    for (size_t r = 0; r < tok->n_merges; r++) {
        const qr_merge *m = &l->merges[r], *twin = qr_tok_merge(tok, m->left, m->right);
        if (twin != NULL) return fail(l, QR_E_FORMAT, "merges: expected each pair once, found merge %u again as %zu", twin->rank, r);
        size_t i = qr_tok_merge_slot(tok, m->left, m->right);
        while (tok->merge[i].result != QR_TOK_NO_ID) i = (i + 1) & tok->merge_mask;
        tok->merge[i] = *m;
    }
    return 1;
}

int qr_tok_load_added(qr_tok_loader *l, qr_text text, uint32_t id, int special)
{
    static const char replacement[] = "\xEF\xBF\xBD";
    qr_tokenizer *tok = l->tok;
    if (text.len == 0 || text.len > QR_TOK_MAX_ENTRY)
        return fail(l, QR_E_FORMAT, "added token: expected an id and a content of 1 to %d bytes", QR_TOK_MAX_ENTRY);
    for (size_t i = 0; i + 3 <= text.len; i++) { /* added tokens are matched before repair, which could create this one */
        if (memcmp(text.data + i, replacement, 3) == 0)
            return fail(l, QR_E_UNSUPPORTED,
                        "expected an added token without U+FFFD, found something else; this tokenizer is of another kind");
    }
    if (tok->n_added == QR_TOK_MAX_ADDED) return fail(l, QR_E_FORMAT, "expected at most %d added tokens", QR_TOK_MAX_ADDED);
    if (!reserve_blob(l, text.len + 1)) return 0;
    qr_added_token *grown = qr_grow(tok->added, &tok->added_capacity, tok->n_added + 1, sizeof *grown);
    if (grown == NULL) return no_memory(l);
    tok->added = grown;
    tok->added[tok->n_added++] = (qr_added_token){.id = id, .special = special, .text = tok->blob_len, .len = text.len};
    memcpy(tok->blob + tok->blob_len, text.data, text.len);
    tok->blob_len += text.len;
    return 1;
}

/* Gives added tokens their places among the ids, once the vocabulary is known: one may repeat an entry, with the same id. */
static int place_added_tokens(qr_tok_loader *l)
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
            return fail(l, QR_E_FORMAT, "added token \"%.*s\": expected an id of its own, found %u", (int) (t->len < 64 ? t->len : 64),
                        (const char *) tok->blob + t->text, t->id);
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

static int index_added_tokens(qr_tok_loader *l)
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
                    return fail(l, QR_E_FORMAT, "added tokens: expected each once, found ids %u and %u for the same text", sorted[k].id,
                                sorted[i].id);
            }
        }
    }
    return 1;
}

int qr_tok_load_begin(qr_tok_loader *l)
{
    *l = (qr_tok_loader){.tok = qr_calloc(1, sizeof *l->tok)};
    if (l->tok == NULL) return no_memory(l);
    make_byte_symbols(l);
    return 1;
}

int qr_tok_load_end(qr_tok_loader *l) { return place_added_tokens(l) && index_added_tokens(l); }

qr_tokenizer *qr_tok_load_finish(qr_tok_loader *l, int keep)
{
    qr_tokenizer *tok = l->tok;
    qr_free(l->merges);
    if (tok != NULL) {
        qr_free(tok->by_text); /* served the loader only */
        tok->by_text = NULL;
    }
    if (keep) return tok;
    qr_tok_close(tok);
    return NULL;
}
