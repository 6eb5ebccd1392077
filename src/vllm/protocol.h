/* What is said to a vLLM server: the three routes that take token ids, the bodies of their requests and what is in the answers. Pure
 * functions of texts: no connection, no state.
 *
 * Answers are hostile. One that lacks anything, or has something else than was asked for, is an error, never a score: a prompt that the
 * server cut, a label that it replaced or a result in another's place would otherwise rank at random in silence.
 */
#ifndef QR_VLLM_PROTOCOL_H
#define QR_VLLM_PROTOCOL_H

#include "base/buf.h"
#include "engine/backend.h"

typedef enum qr_vllm_protocol {
    QR_VLLM_COMPLETIONS = 0, /* /v1/completions: log-probabilities of both labels, exact; one token must fit behind the prompt */
    QR_VLLM_CLASSIFY,        /* /classify of a server with Qwen3ForSequenceClassification: the margin itself */
    QR_VLLM_GENERATIVE,      /* /generative_scoring: a probability, so margins above 36 all read as 36; one query a request */
    QR_VLLM_N_PROTOCOLS
} qr_vllm_protocol;

const char *qr_vllm_protocol_name(qr_vllm_protocol protocol); /* "completions", "classify", "generative-scoring" */
const char *qr_vllm_protocol_route(qr_vllm_protocol protocol);
/* QR_VLLM_N_PROTOCOLS: there is none of that name. */
qr_vllm_protocol qr_vllm_protocol_find(const char *name);
/* How long a prompt may be on a server of this max_model_len. */
size_t qr_vllm_longest_prompt(qr_vllm_protocol protocol, size_t max_model_len);

/* Documents [first, first + n) of a batch, to be asked about in one request. */
typedef struct qr_vllm_call {
    qr_vllm_protocol protocol;
    const char *model; /* the server's name for it */
    uint32_t yes_id, no_id;
    const qr_batch *batch;
    size_t first, n;
} qr_vllm_call;

/* How many of these, from the first on, one request of the protocol may have; at least 1. */
size_t qr_vllm_capacity(const qr_vllm_call *call);
/* Appends the body of the request. Running out of memory shows in body->failed. */
void qr_vllm_write_call(const qr_vllm_call *call, qr_buf *body);
/* A bound of an honest answer's size in bytes. */
size_t qr_vllm_answer_bytes(const qr_vllm_call *call);
/* The results of an answer with status 200. E_BACKEND says what is wrong with it. */
qr_status qr_vllm_read_answer(const qr_vllm_call *call, const char *text, size_t len, qr_logits *out /* [n] */, qr_error *err);

/* Of /v1/models: the model of that name, or, if `wanted` is NULL, the first one. *max_model_len 0: the server does not say. */
qr_status qr_vllm_read_models(const char *text, size_t len, const char *wanted, char *model /* [size] */, size_t size,
                              size_t *max_model_len, qr_error *err);
/* Of /version; "": not said. */
void qr_vllm_read_version(const char *text, size_t len, char *version /* [size] */, size_t size);
/* /tokenize, and whether its answer has the same ids as ours. */
void qr_vllm_write_tokenize(const char *model, const char *text, qr_buf *body);
qr_status qr_vllm_read_tokenize(const char *text, size_t len, const uint32_t *ids, size_t n_ids, qr_error *err);
/* One line for people from the body of an answer with an error: its message, or its beginning. */
void qr_vllm_error_text(const char *text, size_t len, char *out, size_t size);

#endif
