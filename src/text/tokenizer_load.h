/* Builds a tokenizer from what a file says, whatever its format (tokenizer_json.c, model/gguf_tokenizer.c). All functions return 1, or 0
 * with the reason in `error`, which names no file. */
#ifndef QR_TEXT_TOKENIZER_LOAD_H
#define QR_TEXT_TOKENIZER_LOAD_H

#include "text/tokenizer_internal.h"

typedef struct qr_tok_loader {
    qr_tokenizer *tok;
    int16_t byte_of[0x144]; /* byte that a symbol's code point stands for, or -1 */
    size_t n_vocab;
    qr_merge *merges; /* [tok->n_merges] in order of rank */
    size_t merges_capacity;
    unsigned char pair[2 * QR_TOK_MAX_ENTRY]; /* the bytes of the merge that is being read */
    size_t n_pair;
    qr_error error;
} qr_tok_loader;

int qr_tok_load_begin(qr_tok_loader *l);
/* In this order: all entries of the vocabulary, in byte symbols; the end of it; all merges, by rank; the end of them. Added tokens at any
 * time. */
int qr_tok_load_entry(qr_tok_loader *l, const unsigned char *text, size_t len, uint32_t id);
int qr_tok_load_vocabulary(qr_tok_loader *l);
int qr_tok_load_left(qr_tok_loader *l, const unsigned char *text, size_t len);
int qr_tok_load_right(qr_tok_loader *l, const unsigned char *text, size_t len);
int qr_tok_load_merge(qr_tok_loader *l, const unsigned char *text, size_t len); /* "left right" */
int qr_tok_load_merges(qr_tok_loader *l);
int qr_tok_load_added(qr_tok_loader *l, qr_text text, uint32_t id, int special);
/* Once all is there. */
int qr_tok_load_end(qr_tok_loader *l);
/* After failures too. The tokenizer if `keep`, else NULL. */
qr_tokenizer *qr_tok_load_finish(qr_tok_loader *l, int keep);

/* Of the text that a tokenizer is made from. */
uint64_t qr_tok_fingerprint(const unsigned char *s, size_t n);

#endif
