/* BPE by rank: of all neighbouring pairs the one of lowest rank is merged, the leftmost among equals, until none is left.
 *
 * Two ways to find that pair. A short piece, nearly every one, scans its few ranks: no set-up, all in one or two cache lines. A long piece
 * keeps the pairs in a binary heap ordered by rank and position, so that a megabyte without a space takes n log n and not n^2. Stale heap
 * entries are recognised when they surface: a pair is only merged at the rank that its place has now.
 */
#include "text/bpe.h"

#include "base/mem.h"

#include <string.h>

/* Above this the heap wins; measured with random letters, the two are equal between 48 and 96 bytes. */
enum { SHORT_PIECE = 64 };
#define NO_RANK UINT32_MAX
#define NO_SYMBOL UINT32_MAX

/* A node of the list of symbols that are left. Where a symbol was merged into the one before it, rank is NO_RANK for good. */
typedef struct qr_bpe_symbol {
    uint32_t id, next, previous;
    uint32_t rank; /* of the pair with the next symbol */
} qr_bpe_symbol;

/* Heap keys: rank in the upper bits, then the position, so that equal ranks come from left to right. */
enum { POSITION_BITS = 24 };
_Static_assert(QR_TOK_MAX_PIECE <= (size_t) 1 << POSITION_BITS, "a position does not fit its bits of the heap key");

void qr_bpe_scratch_deinit(qr_bpe_scratch *scratch)
{
    qr_free(scratch->symbol);
    qr_free(scratch->heap);
    *scratch = (qr_bpe_scratch){0};
}

static uint32_t rank_of(const qr_tokenizer *tok, uint32_t left, uint32_t right)
{
    const qr_merge *m = qr_tok_merge(tok, left, right);
    return m ? m->rank : NO_RANK;
}

static size_t encode_short(const qr_tokenizer *tok, const unsigned char *s, size_t n, uint32_t *id)
{
    uint32_t rank[SHORT_PIECE]; /* of the pair (i, i + 1) */
    for (size_t i = 0; i < n; i++) id[i] = tok->byte_id[s[i]];
    for (size_t i = 0; i + 1 < n; i++) rank[i] = rank_of(tok, id[i], id[i + 1]);
    for (;;) {
        size_t best = 0;
        uint32_t lowest = NO_RANK;
        for (size_t i = 0; i + 1 < n; i++) {
            if (rank[i] < lowest) {
                lowest = rank[i];
                best = i;
            }
        }
        if (lowest == NO_RANK) return n;
        id[best] = qr_tok_merge(tok, id[best], id[best + 1])->result;
        memmove(id + best + 1, id + best + 2, (n - best - 2) * sizeof *id);
        memmove(rank + best, rank + best + 1, (n - best - 2) * sizeof *rank);
        n--;
        if (best + 1 < n) rank[best] = rank_of(tok, id[best], id[best + 1]);
        if (best > 0) rank[best - 1] = rank_of(tok, id[best - 1], id[best]);
    }
}

static void sift_down(uint64_t *heap, size_t n, size_t i)
{
    uint64_t key = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        child += child + 1 < n && heap[child + 1] < heap[child];
        if (heap[child] >= key) break;
        heap[i] = heap[child];
    }
    heap[i] = key;
}

static void sift_up(uint64_t *heap, size_t i, uint64_t key)
{
    for (; i > 0 && heap[(i - 1) / 2] > key; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = key;
}

/* Sets the rank of the pair that begins at symbol i and puts it on the heap. 0 when out of memory. */
static int push(const qr_tokenizer *tok, qr_bpe_scratch *scratch, size_t *n_heap, uint32_t i)
{
    qr_bpe_symbol *s = scratch->symbol;
    s[i].rank = s[i].next == NO_SYMBOL ? NO_RANK : rank_of(tok, s[i].id, s[s[i].next].id);
    if (s[i].rank == NO_RANK) return 1;
    uint64_t *grown = qr_grow(scratch->heap, &scratch->heap_capacity, *n_heap + 1, sizeof *grown);
    if (grown == NULL) return 0;
    scratch->heap = grown;
    sift_up(grown, (*n_heap)++, (uint64_t) s[i].rank << POSITION_BITS | i);
    return 1;
}

static int encode_long(const qr_tokenizer *tok, const unsigned char *bytes, size_t n, qr_bpe_scratch *scratch, uint32_t *id, size_t *n_out)
{
    qr_bpe_symbol *s = qr_grow(scratch->symbol, &scratch->symbol_capacity, n, sizeof *s);
    if (s != NULL) scratch->symbol = s;
    uint64_t *heap = qr_grow(scratch->heap, &scratch->heap_capacity, n, sizeof *heap);
    if (heap != NULL) scratch->heap = heap;
    if (s == NULL || heap == NULL) return 0;
    size_t n_heap = 0;
    for (uint32_t i = 0; i < n; i++) {
        s[i] = (qr_bpe_symbol){tok->byte_id[bytes[i]], i + 1 < n ? i + 1 : NO_SYMBOL, i ? i - 1 : NO_SYMBOL, NO_RANK};
        if (i > 0 && (s[i - 1].rank = rank_of(tok, s[i - 1].id, s[i].id)) != NO_RANK)
            heap[n_heap++] = (uint64_t) s[i - 1].rank << POSITION_BITS | (i - 1);
    }
    for (size_t i = n_heap / 2; i-- > 0;) sift_down(heap, n_heap, i);
    while (n_heap > 0) {
        uint64_t key = scratch->heap[0];
        scratch->heap[0] = scratch->heap[--n_heap];
        if (n_heap > 0) sift_down(scratch->heap, n_heap, 0);
        uint32_t i = (uint32_t) (key & (((uint64_t) 1 << POSITION_BITS) - 1));
        if (s[i].rank != key >> POSITION_BITS) continue; /* the pair has changed since */
        uint32_t gone = s[i].next;
        s[i].id = qr_tok_merge(tok, s[i].id, s[gone].id)->result;
        s[i].next = s[gone].next;
        s[gone].rank = NO_RANK;
        if (s[i].next != NO_SYMBOL) s[s[i].next].previous = i;
        if (!push(tok, scratch, &n_heap, i)) return 0;
        if (s[i].previous != NO_SYMBOL && !push(tok, scratch, &n_heap, s[i].previous)) return 0;
    }
    size_t count = 0;
    for (uint32_t i = 0; i != NO_SYMBOL; i = s[i].next) id[count++] = s[i].id;
    *n_out = count;
    return 1;
}

qr_status qr_bpe_encode(const qr_tokenizer *tok, const unsigned char *s, size_t n, qr_bpe_scratch *scratch, qr_ids *ids, qr_error *err)
{
    if (n <= SHORT_PIECE) {
        uint32_t id[SHORT_PIECE];
        size_t n_new = encode_short(tok, s, n, id);
        uint32_t *grown = qr_grow(ids->id, &ids->capacity, ids->n + n_new, sizeof *grown);
        if (grown == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for %zu token ids", ids->n + n_new);
        ids->id = grown;
        memcpy(ids->id + ids->n, id, n_new * sizeof *id);
        ids->n += n_new;
        return QR_OK;
    }
    /* Room for the worst case, an id per byte, is at most 32 MiB and mostly never touched. */
    uint32_t *grown = qr_grow(ids->id, &ids->capacity, ids->n + n, sizeof *grown);
    size_t n_new = 0;
    if (grown != NULL) ids->id = grown;
    if (grown == NULL || !encode_long(tok, s, n, scratch, grown + ids->n, &n_new))
        return qr_fail(err, QR_E_MEMORY, "no memory to tokenise %zu bytes without a break", n);
    ids->n += n_new;
    return QR_OK;
}
