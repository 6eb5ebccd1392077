/* Dialects: how a request for scores is written and answered. Every rerank API that is in use has one, each in a file of its own,
 * dialect_NAME.c, that exports one table; dialect.c holds the list. A request of any dialect comes down to the same sv_request, so that
 * nothing but these files knows how dialects differ.
 *
 * Leniency is common to all, because clients are sloppy: unknown fields are ignored, null is absent, booleans and numbers may be strings,
 * documents may be strings or objects with a text.
 */
#ifndef QR_SERVER_DIALECT_H
#define QR_SERVER_DIALECT_H

#include "base/json_in.h"
#include "base/json_out.h"

/* What a request comes down to. Texts are borrowed from `body`, except for those in `made`. */
typedef struct sv_request {
    json_t *body;        /* owned */
    const char *model;   /* as asked for, or NULL */
    qr_text instruction; /* if has_instruction */
    int has_instruction;
    qr_query *queries;     /* [n_queries] one, but for scores of pairs */
    qr_text *instructions; /* [n_queries] those that stood in wrapped queries, or NULL */
    size_t n_queries;
    qr_text *documents; /* [n_documents] of all queries, one after the other */
    json_t **originals; /* [n_documents] as they were sent; borrowed from body */
    char **made;        /* [n_documents] texts put together from several fields, or NULL */
    size_t n_documents;
    size_t top_n;               /* 0: all */
    int return_documents;       /* else as the dialect does it by itself */
    int raw_scores;             /* margins instead of probabilities */
    size_t max_length;          /* of the prompt, in tokens; 0: the engine's */
    size_t max_document_tokens; /* 0: none */
    qr_truncation truncation;
    int partial; /* what could be scored is wanted even if the rest could not; only where the dialect can say so */
} sv_request;

/* What was found. `order` lists the documents from best to worst, as many as are wanted. */
typedef struct sv_outcome {
    const qr_result *results; /* [n_documents] */
    const size_t *order;      /* [n_shown] */
    size_t n_shown;
    const char *id, *model;
    long long created; /* Unix time */
    uint64_t prompt_tokens;
    size_t n_truncated;
    const char *failure;   /* why results are missing; NULL: none is */
    char *const *failures; /* [n_documents] why this one is, where there is a reason of its own, else NULL; NULL: there are none */
    int mirror_data;       /* results are wanted as "data", too: some OpenAI-like clients look there */
} sv_outcome;

typedef struct sv_error {
    int http;
    const char *message, *id, *type;
    const char *param; /* the field that is wrong, or NULL */
} sv_error;

typedef struct sv_dialect {
    const char *name;
    /* 1 if a request with this body, on this path, is of this dialect. Asked in the order of the list; the last one takes what is left. */
    int (*matches)(const char *path, const json_t *body);
    /* Fills a request whose body is set. */
    qr_status (*read)(sv_request *request, qr_error *err);
    void (*write)(qr_json_out *json, const sv_request *request, const sv_outcome *outcome);
    void (*write_error)(qr_json_out *json, const sv_error *error);
    int (*http_of)(const qr_error *error); /* or NULL: qr_status_http */
    int has_timing_headers;                /* text-embeddings-inference's */
} sv_dialect;

/* The dialect of a request; never NULL. `body` may be NULL: it could not be read. */
const sv_dialect *sv_dialect_of(const char *path, const json_t *body);

/* ---- common parts ---------------------------------------------------------------------------------------------------------------- */

/* A field, or NULL if it is absent or null. */
json_t *sv_field(const json_t *object, const char *name);
/* Each leaves *out as it is if the field is absent. */
qr_status sv_read_bool(const json_t *object, const char *name, int *out, qr_error *err);
qr_status sv_read_count(const json_t *object, const char *name, size_t *out, qr_error *err); /* a whole number of at least 0 */
/* What all dialects have: model, instruction under any of its names, what to do with long documents. */
qr_status sv_read_common(sv_request *request, qr_error *err);
/* One query, in `query_field`, and the list of documents in `list_field`. rank_fields: which fields of objects count; NULL: "text". */
qr_status sv_read_query_and_documents(sv_request *request, const json_t *object, const char *query_field, const char *list_field,
                                      const json_t *rank_fields, qr_error *err);
/* What the clients of vLLM wrapped in the prompt by themselves, before its servers did, is unwrapped: "template" is "auto", the default,
 * "always" (wrap it once more) or "never" (it must be wrapped). Called once the texts are read. */
qr_status sv_unwrap(sv_request *request, qr_error *err);
/* The request of the `results` family. */
qr_status sv_read_results(sv_request *request, qr_error *err);
/* Room for the lists; documents of query q are those from n_documents * q / n_queries on, unless the caller sets it otherwise. */
qr_status sv_make_room(sv_request *request, size_t n_queries, size_t n_documents, qr_error *err);
/* The text of one item of the list that `field` names, at place `i`. */
qr_status sv_read_text(sv_request *request, size_t i, json_t *item, const char *field, const json_t *rank_fields, qr_error *err);
void sv_request_deinit(sv_request *request);

/* The score that is shown: P(yes), or the margin if raw scores are asked for. */
void sv_write_score(qr_json_out *json, const char *key, const sv_request *request, const qr_result *result);
/* {"text": ...}, or the object that was sent. */
void sv_write_document(qr_json_out *json, const char *key, const sv_request *request, size_t document);
/* [{"index", "relevance_score", "score", "document"?: string}], best first. */
void sv_write_results(qr_json_out *json, const char *key, const sv_request *request, const sv_outcome *outcome);
/* "usage": {"prompt_tokens", "total_tokens"} */
void sv_write_usage(qr_json_out *json, const sv_outcome *outcome);
/* Any value of the request's, as it was. */
void sv_write_json(qr_json_out *json, const char *key, const json_t *value);
/* {"message", "detail", "error": {...}}: what Cohere, Jina, Voyage, OpenAI, vLLM and llama.cpp clients read. */
void sv_write_error(qr_json_out *json, const sv_error *error);

#endif
