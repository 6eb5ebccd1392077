/* Encoding: text -> normalised window -> pre-tokens -> merged ids.
 *
 * Memory. The text is read through a window (64 KiB, growing only while one pre-token does not fit), so what an encoding needs beside its
 * ids does not depend on the length of the text but on its longest pre-token: about 32 bytes per byte of it above 64, and pre-tokens are
 * cut at QR_TOK_MAX_PIECE. A scratch that grew for such a piece is released at the end of the call. It also makes `limit` cheap: what lies
 * behind the stop is never read.
 *
 * Speed. Words repeat: a direct-mapped cache of 2^15 short pieces and their ids answers most pre-tokens of ordinary text without merging.
 * It belongs to the scratch, so threads share nothing.
 */
#include "text/bpe.h"
#include "text/nfc.h"
#include "text/pretokenizer.h"

#include "base/mem.h"

#include <string.h>

enum {
    WINDOW = 64 << 10,
    CACHE_BITS = 15,
    CACHED_BYTES = 15, /* with the length in the sixteenth byte, a key is two words */
    CACHED_IDS = 4,
    KEEP_SCRATCH = 1 << 20, /* elements of a scratch array that stay allocated between calls */
};

typedef struct cached_piece {
    uint64_t key[2]; /* zero padded bytes, then the length; all zero where empty */
    uint32_t id[CACHED_IDS];
} cached_piece;

typedef struct qr_encode_scratch {
    unsigned char *window; /* [window_capacity] normalised text that was not encoded yet */
    size_t window_capacity;
    cached_piece *cache;  /* [1 << CACHE_BITS] */
    uint64_t cache_owner; /* fingerprint of the tokenizer whose ids it holds */
    qr_nfc_scratch nfc;
    qr_bpe_scratch bpe;
} qr_encode_scratch;

void qr_ids_deinit(qr_ids *ids)
{
    if (ids->scratch != NULL) {
        qr_free(ids->scratch->window);
        qr_free(ids->scratch->cache);
        qr_nfc_scratch_deinit(&ids->scratch->nfc);
        qr_bpe_scratch_deinit(&ids->scratch->bpe);
        qr_free(ids->scratch);
    }
    qr_free(ids->id);
    *ids = (qr_ids){0};
}

/* The scratch of `ids`, made or emptied if it belonged to another tokenizer. NULL when out of memory. */
static qr_encode_scratch *prepare_scratch(const qr_tokenizer *tok, qr_ids *ids)
{
    if (ids->scratch == NULL) ids->scratch = qr_calloc(1, sizeof *ids->scratch);
    qr_encode_scratch *scratch = ids->scratch;
    if (scratch == NULL) return NULL;
    if (scratch->cache == NULL) {
        scratch->cache = qr_calloc((size_t) 1 << CACHE_BITS, sizeof *scratch->cache);
        if (scratch->cache == NULL) return NULL;
        scratch->cache_owner = tok->fingerprint;
    }
    if (scratch->cache_owner != tok->fingerprint) {
        memset(scratch->cache, 0, sizeof *scratch->cache << CACHE_BITS);
        scratch->cache_owner = tok->fingerprint;
    }
    return scratch;
}

static void trim_scratch(qr_encode_scratch *scratch)
{
    if (scratch->window_capacity > KEEP_SCRATCH) {
        qr_free(scratch->window);
        scratch->window = NULL;
        scratch->window_capacity = 0;
    }
    if (scratch->nfc.cp_capacity > KEEP_SCRATCH || scratch->nfc.sorted_capacity > KEEP_SCRATCH) qr_nfc_scratch_deinit(&scratch->nfc);
    if (scratch->bpe.symbol_capacity > KEEP_SCRATCH || scratch->bpe.heap_capacity > KEEP_SCRATCH) qr_bpe_scratch_deinit(&scratch->bpe);
}

/* readable: bytes from s on that may be read, at least n. */
static qr_status encode_piece(const qr_tokenizer *tok, const unsigned char *s, size_t n, size_t readable, qr_ids *ids, qr_error *err)
{
    qr_encode_scratch *scratch = ids->scratch;
    if (n > CACHED_BYTES) return qr_bpe_encode(tok, s, n, &scratch->bpe, ids, err);
    uint64_t key[2] = {0, 0};
    if (readable >= 16) { /* two loads and a mask: a copy of variable length would cost a third of the whole time */
        memcpy(key, s, 16);
        if (n <= 8) {
            key[0] &= UINT64_MAX >> (64 - 8 * n);
            key[1] = 0;
        } else {
            key[1] &= UINT64_MAX >> (128 - 8 * n);
        }
    } else {
        memcpy(key, s, n);
    }
    key[1] |= (uint64_t) n << 56;
    uint64_t hash = (key[0] ^ (key[1] * 0xD6E8FEB86659FD93u)) * 0x9E3779B97F4A7C15u;
    cached_piece *slot = &scratch->cache[(hash ^ hash >> 29) * 0xBF58476D1CE4E5B9u >> (64 - CACHE_BITS)];
    if (slot->key[0] == key[0] && slot->key[1] == key[1] && ids->n + CACHED_IDS <= ids->capacity) {
        for (size_t i = 0; i < CACHED_IDS; i++) ids->id[ids->n + i] = slot->id[i];
        for (size_t i = 0; i < CACHED_IDS && slot->id[i] != QR_TOK_NO_ID; i++) ids->n++;
        return QR_OK;
    }
    size_t before = ids->n;
    qr_status status = qr_bpe_encode(tok, s, n, &scratch->bpe, ids, err);
    if (status == QR_OK && ids->n - before <= CACHED_IDS) {
        *slot = (cached_piece){.key = {key[0], key[1]}};
        for (size_t i = 0; i < CACHED_IDS; i++) slot->id[i] = before + i < ids->n ? ids->id[before + i] : QR_TOK_NO_ID;
    }
    return status;
}

/* Length at which an overlong piece is cut: QR_TOK_MAX_PIECE, or a little less, so that no code point is torn. */
static size_t cut(const unsigned char *s)
{
    size_t n = QR_TOK_MAX_PIECE;
    while ((s[n] & 0xC0) == 0x80) n--;
    return n;
}

/* Encodes one text without added tokens. n_before: ids->n when the call began, from which `limit` counts. */
static qr_status encode_source(const qr_tokenizer *tok, qr_nfc_source *source, size_t limit, size_t n_before, qr_ids *ids, int *complete,
                               qr_error *err)
{
    qr_encode_scratch *scratch = ids->scratch;
    size_t begin = 0, end = 0, want = WINDOW;
    int at_end = 0;
    *complete = 0;
    for (;;) {
        if (begin > 0) memmove(scratch->window, scratch->window + begin, end - begin);
        end -= begin;
        begin = 0;
        /* More than half the window is one unfinished piece: double it, so that all scans of it together stay linear. */
        want = end > want / 2 ? 2 * want : WINDOW > 2 * end ? WINDOW : want;
        qr_status status = qr_nfc_read(source, &scratch->nfc, &scratch->window, &end, &scratch->window_capacity, want, &at_end, err);
        if (status != QR_OK) return status;
        while (begin < end) {
            if (limit && ids->n - n_before >= limit) return QR_OK;
            const unsigned char *s = scratch->window + begin;
            size_t n = qr_pretokenize(s, end - begin, at_end);
            if (n > QR_TOK_MAX_PIECE || (n == 0 && end - begin > QR_TOK_MAX_PIECE)) n = cut(s);
            if (n == 0) break;
            status = encode_piece(tok, s, n, end - begin, ids, err);
            if (status != QR_OK) return status;
            begin += n;
        }
        if (begin == end && at_end) break;
    }
    *complete = 1;
    return QR_OK;
}

static qr_status encode_parts(const qr_tokenizer *tok, const qr_text *parts, size_t n_parts, size_t limit, size_t n_before, qr_ids *ids,
                              int *replaced, int *complete, qr_error *err)
{
    qr_nfc_source source = {.parts = parts, .n_parts = n_parts};
    qr_status status = encode_source(tok, &source, limit, n_before, ids, complete, err);
    if (source.replaced && replaced != NULL) *replaced = 1;
    return status;
}

uint32_t qr_tok_find_added(const qr_tokenizer *tok, unsigned flags, const char *text, size_t len, size_t from, size_t *at, size_t *size)
{
    for (size_t i = from; i < len; i++) {
        unsigned char b = (unsigned char) text[i];
        for (uint32_t k = tok->added_begin[b]; k < tok->added_begin[b + 1]; k++) {
            const qr_added_token *t = &tok->added[k];
            if (t->special && !(flags & QR_TOK_SPECIAL)) continue;
            if (t->len > len - i || memcmp(tok->blob + t->text, text + i, t->len) != 0) continue;
            *at = i;
            *size = t->len;
            return t->id;
        }
    }
    return QR_TOK_NO_ID;
}

/* Encodes up to each added token, then the token, and so on. Added tokens are found in the raw text, and each stretch between them is a
 * text of its own, as in the reference. `run` is a copy of the parts that is cut up on the way. */
static qr_status encode_around_added(const qr_tokenizer *tok, qr_text *run, size_t n_parts, unsigned flags, size_t limit, qr_ids *ids,
                                     int *replaced, int *complete, qr_error *err)
{
    size_t first = 0, n_before = ids->n, at, size;
    uint32_t id;
    for (size_t i = 0; i < n_parts; i++)
        while ((id = qr_tok_find_added(tok, flags, run[i].data, run[i].len, 0, &at, &size)) != QR_TOK_NO_ID) {
            qr_text rest = {run[i].data + at + size, run[i].len - at - size};
            run[i].len = at;
            qr_status status = encode_parts(tok, run + first, i + 1 - first, limit, n_before, ids, replaced, complete, err);
            if (status != QR_OK || !*complete) return status;
            if (limit && ids->n - n_before >= limit) {
                *complete = 0;
                return QR_OK;
            }
            uint32_t *grown = qr_grow(ids->id, &ids->capacity, ids->n + 1, sizeof *grown);
            if (grown == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for %zu token ids", ids->n + 1);
            ids->id = grown;
            ids->id[ids->n++] = id;
            run[i] = rest;
            first = i;
        }
    return encode_parts(tok, run + first, n_parts - first, limit, n_before, ids, replaced, complete, err);
}

qr_status qr_tok_encode_parts(const qr_tokenizer *tok, const qr_text *parts, size_t n_parts, unsigned flags, size_t limit, qr_ids *ids,
                              int *replaced, int *complete, qr_error *err)
{
    int whole = 0;
    qr_status status;
    if (prepare_scratch(tok, ids) == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for the tokenizer's scratch");
    if (flags == 0) {
        status = encode_parts(tok, parts, n_parts, limit, ids->n, ids, replaced, &whole, err);
    } else {
        qr_text few[8], *run = n_parts <= 8 ? few : qr_calloc(n_parts, sizeof *run);
        if (run == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for %zu parts of a text", n_parts);
        for (size_t i = 0; i < n_parts; i++) run[i] = parts[i];
        status = encode_around_added(tok, run, n_parts, flags, limit, ids, replaced, &whole, err);
        if (run != few) qr_free(run);
    }
    trim_scratch(ids->scratch);
    if (complete != NULL) *complete = status == QR_OK && whole;
    return status;
}

qr_status qr_tok_encode(const qr_tokenizer *tok, const char *text, size_t len, unsigned flags, size_t limit, qr_ids *ids, int *replaced,
                        int *complete, qr_error *err)
{
    return qr_tok_encode_parts(tok, &(qr_text){text, len}, 1, flags, limit, ids, replaced, complete, err);
}

void qr_tok_close(qr_tokenizer *tok)
{
    if (tok == NULL) return;
    qr_free(tok->blob);
    qr_free(tok->entry);
    qr_free(tok->by_text);
    qr_free(tok->merge);
    qr_free(tok->added);
    qr_free(tok);
}

size_t qr_tok_vocab_size(const qr_tokenizer *tok) { return tok->n_ids; }

const char *qr_tok_bytes(const qr_tokenizer *tok, uint32_t id, size_t *len)
{
    if (id >= tok->n_ids || tok->entry[id].len == 0) return NULL;
    *len = tok->entry[id].len;
    return (const char *) tok->blob + tok->entry[id].text;
}

int qr_tok_is_added(const qr_tokenizer *tok, uint32_t id) { return id < tok->n_ids && tok->entry[id].added; }
