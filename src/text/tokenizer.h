/* Byte-level BPE tokenizer of the Qwen family, read from the model's own tokenizer.json.
 *
 * Gives exactly the ids of the Hugging Face `tokenizers` library: NFC, the Qwen pre-tokenizer pattern by Unicode 16 properties, BPE by
 * rank. Knows nothing of prompts, models or files other than tokenizer.json. A tokenizer is immutable once open: any number of threads
 * may encode with it at once, each with its own qr_ids.
 */
#ifndef QR_TEXT_TOKENIZER_H
#define QR_TEXT_TOKENIZER_H

#include "base/error.h"

typedef struct qr_tokenizer qr_tokenizer;

/* A growing list of token ids and the scratch of the encoder, so that repeated calls do not allocate. All zero is empty. */
typedef struct qr_ids {
    uint32_t *id; /* [n] */
    size_t n, capacity;
    struct qr_encode_scratch *scratch; /* private to the tokenizer */
} qr_ids;
void qr_ids_deinit(qr_ids *ids);

/* path: a tokenizer.json. Everything in the file that would change ids and is not of the Qwen kind (another normaliser, pre-tokenizer
 * pattern, model type, byte fallback, ...) is refused with E_UNSUPPORTED; broken content with E_FORMAT. */
qr_status qr_tok_open(qr_tokenizer **out, const char *path, qr_error *err);
/* The same for a file in memory, which is not kept. name: for messages. */
qr_status qr_tok_open_memory(qr_tokenizer **out, const void *data, size_t len, const char *name, qr_error *err);
void qr_tok_close(qr_tokenizer *tok);

enum {
    /* Which added tokens are recognised in the text; the others are plain text. */
    QR_TOK_MARKUP = 1 << 0, /* those that the file does not mark as special (<think>, <tool_call>, ...): the rule for queries and documents,
                             * as transformers does with split_special_tokens=True */
    QR_TOK_SPECIAL = 1 << 1, /* all of them (<|im_end|> and the like too): for the template's own text */
};

/* Appends the ids of `text` to *ids. Invalid UTF-8 (each maximal invalid subsequence, as in WHATWG) is read as U+FFFD; *replaced, if not
 * NULL, is set to 1 when that happened and otherwise left alone.
 * Stops early, after a complete pre-token, once at least `limit` ids were appended (limit 0: no limit); *complete, if not NULL, tells
 * whether the whole text was encoded. Time is O(n log n) or better for any input; memory is bounded (see tokenizer.c). */
qr_status qr_tok_encode(const qr_tokenizer *tok, const char *text, size_t len, unsigned flags, size_t limit, qr_ids *ids, int *replaced,
                        int *complete, qr_error *err);

/* Number of ids: 1 + the largest id of vocabulary and added tokens. */
size_t qr_tok_vocab_size(const qr_tokenizer *tok);
/* The bytes that an id stands for (for added tokens their text); NULL if there is no such id. Borrowed. */
const char *qr_tok_bytes(const qr_tokenizer *tok, uint32_t id, size_t *len);
/* 1 if the id is an added token. */
int qr_tok_is_added(const qr_tokenizer *tok, uint32_t id);

#endif
