/* Prompts of our own to try a model's arithmetic on: queries of several kinds and languages, each with documents from the answer down to
 * something unrelated, so that a trained model's margins spread widely. */
#ifndef QR_ENGINE_CALIBRATION_H
#define QR_ENGINE_CALIBRATION_H

#include "engine/backend.h"
#include "text/prompt.h"

enum {
    QR_CALIBRATION_QUERIES = 6,
    QR_CALIBRATION_DOCUMENTS = 6,
    QR_CALIBRATION_PROMPTS = QR_CALIBRATION_QUERIES * QR_CALIBRATION_DOCUMENTS
};

/* Prompts and what they point to; must stay in place once made. All zero is empty. */
typedef struct qr_calibration {
    qr_batch prompts;
    qr_prompt_ids ids[QR_CALIBRATION_QUERIES];
    qr_prefix prefixes[QR_CALIBRATION_QUERIES];
    qr_seq seqs[QR_CALIBRATION_PROMPTS];
} qr_calibration;

/* Prompts are cut to max_length tokens, as all are. */
qr_status qr_calibration_make(qr_calibration *c, const qr_prompt *prompt, size_t max_length, qr_error *err);
void qr_calibration_deinit(qr_calibration *c);

/* Query i with the document that answers it and the one that is furthest from it; static. */
void qr_calibration_pair(size_t i, qr_text *query, qr_text *answer, qr_text *unrelated);

#endif
