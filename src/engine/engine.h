/* What the server needs of an engine beyond the public header: calls that do not wait. */
#ifndef QR_ENGINE_ENGINE_H
#define QR_ENGINE_ENGINE_H

#include "base/error.h"
#include "engine/backend.h"
#include "text/tokenizer.h"

/* As qr_score, but returns once the prompts are tokenized and queued. `done` is then called once, on the engine's thread, and must not
 * block; until then queries, results and what `call` points to stay in place. If this fails, `done` is never called. */
typedef void (*qr_done_fn)(void *arg, qr_status status, const qr_error *error);
qr_status qr_engine_submit(qr_engine *engine, const qr_query *queries, size_t n_queries, qr_result *results, const qr_call *call,
                           qr_done_fn done, void *done_arg, qr_error *err);

/* As qr_engine_open, on a backend that is not in the registry: measurements of all that is around a backend use one that answers at once.
 */
qr_status qr_engine_open_on(qr_engine **out, const qr_backend_ops *ops, const qr_options *options, qr_error *err);

/* Borrowed until the engine is closed; safe to use from any thread. */
const qr_tokenizer *qr_engine_tokenizer(const qr_engine *engine);

/* The servers behind the engine, as they are now: fills out[0..capacity) and returns how many there are, 0 where it computes itself. */
size_t qr_engine_replicas(qr_engine *engine, qr_replica *out, size_t capacity);

#endif
