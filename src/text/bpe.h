/* Byte-pair merging of one pre-token. */
#ifndef QR_TEXT_BPE_H
#define QR_TEXT_BPE_H

#include "text/tokenizer_internal.h"

/* Scratch of one encoder. All zero is empty. */
typedef struct qr_bpe_scratch {
    struct qr_bpe_symbol *symbol; /* [symbol_capacity] */
    uint64_t *heap;               /* [heap_capacity] */
    size_t symbol_capacity, heap_capacity;
} qr_bpe_scratch;
void qr_bpe_scratch_deinit(qr_bpe_scratch *scratch);

/* Appends the ids of s[0 .. n), 0 < n <= QR_TOK_MAX_PIECE, to *ids. O(n log n). */
qr_status qr_bpe_encode(const qr_tokenizer *tok, const unsigned char *s, size_t n, qr_bpe_scratch *scratch, qr_ids *ids, qr_error *err);

#endif
