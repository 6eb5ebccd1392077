/* What a backend that keeps the model elsewhere is given to check it with (qr_sample). */
#ifndef QR_ENGINE_SAMPLE_H
#define QR_ENGINE_SAMPLE_H

#include "engine/backend.h"
#include "text/prompt.h"

enum { QR_SAMPLE_DOCUMENTS = 4 };

/* A sample and what it points to; must stay in place once made. All zero is empty. */
typedef struct qr_sample_store {
    qr_sample sample;
    qr_ids text_ids;
    qr_prompt_ids ids;
    qr_prefix prefix;
    qr_seq seqs[QR_SAMPLE_DOCUMENTS];
} qr_sample_store;

qr_status qr_sample_make(qr_sample_store *store, const qr_tokenizer *tok, const qr_prompt *prompt, size_t max_length, qr_error *err);
void qr_sample_deinit(qr_sample_store *store);

#endif
