/* A bounded cache of logits by prompt: what was computed once need not be computed again, whoever asks.
 *
 * The key is the SHA-256 of the ids, so that two prompts are never taken for each other. Full, it forgets what was used longest ago.
 * Touched by one thread only.
 */
#ifndef QR_ENGINE_RESULT_CACHE_H
#define QR_ENGINE_RESULT_CACHE_H

#include "engine/backend.h"

typedef struct qr_result_cache qr_result_cache;
typedef struct qr_result_key {
    unsigned char sha256[32];
} qr_result_key;

/* Takes at most `bytes`, at once. */
qr_status qr_result_cache_open(qr_result_cache **out, size_t bytes, qr_error *err);
void qr_result_cache_close(qr_result_cache *cache);
/* Key of the prompt that is `shared` followed by `own`. */
qr_result_key qr_result_key_of(const uint32_t *shared, size_t n_shared, const uint32_t *own, size_t n_own);
/* 1 and *out if it is there. */
int qr_result_cache_get(qr_result_cache *cache, const qr_result_key *key, qr_logits *out);
void qr_result_cache_put(qr_result_cache *cache, const qr_result_key *key, qr_logits logits);

#endif
