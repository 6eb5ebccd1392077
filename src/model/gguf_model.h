/* What the metadata of a GGUF file say of a Qwen3 model: its shape, which head it has, its tokenizer. */
#ifndef QR_MODEL_GGUF_MODEL_H
#define QR_MODEL_GGUF_MODEL_H

#include "model/config.h"
#include "model/gguf.h"
#include "text/tokenizer.h"

/* Refuses what would rank at random: another architecture, an embedding model, a file that has lost its head. */
qr_status qr_gguf_config(qr_config *config, const qr_gguf *gguf, const qr_checkpoint *ckpt, qr_error *err);
/* ids[r] = the vocabulary id whose score row r of cls.output.weight [2, hidden] gives: by classifier.output_labels, unless the rows are
 * those of the embedding (as in a tied model) the other way round, which sets *swapped. */
qr_status qr_gguf_pair(uint32_t ids[2], int *swapped, const qr_gguf *gguf, const qr_checkpoint *ckpt, const qr_tensor *pair,
                       const qr_tensor *embed, qr_error *err);
/* The same ids as from the model's tokenizer.json. */
qr_status qr_gguf_tokenizer_open(qr_tokenizer **out, const char *path, qr_error *err);

#endif
