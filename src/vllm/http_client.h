/* Many HTTP requests at once from one thread, over libcurl's multi interface: connections are kept alive and shared, HTTP/2 is spoken where
 * TLS negotiates it. Knows nothing of vLLM.
 *
 * What the other side sends is hostile: the size of an answer and the time for it are bounded, redirects are not followed, and proxies of
 * the environment are not used, since a key may be among the headers.
 */
#ifndef QR_VLLM_HTTP_CLIENT_H
#define QR_VLLM_HTTP_CLIENT_H

#include "base/buf.h"
#include "base/error.h"

typedef struct qr_http qr_http;

/* One request and its answer. The caller fills the first part and keeps all of it in place until `done` is called. */
typedef struct qr_http_request {
    const char *url;
    const char *connect_to;  /* "::ADDRESS:PORT", where to connect whatever the URL's host is; NULL: what its name resolves to */
    qr_buf body;             /* n 0: GET, else POST of JSON; freed by qr_http_request_deinit */
    double timeout_seconds;  /* for all of it */
    size_t max_answer_bytes; /* more ends the request as failed */
    void (*done)(struct qr_http_request *request); /* once; may start or cancel requests, this one included */
    void *owner;

    int status;           /* HTTP status; 0: there was no complete answer, see `error` */
    int is_refused;       /* with status 0: no connection came about, so nothing was computed */
    qr_buf answer;        /* not NUL-terminated */
    double retry_after_s; /* of the Retry-After header; 0: none */
    double seconds;       /* from start to end */
    char address[64];     /* that was connected to; "": none */
    char error[256];

    void *easy; /* libcurl's handle; NULL: not in work */
} qr_http_request;

/* api_key and ca_file may be NULL: no key; the system's certificates. Both are copied. */
qr_status qr_http_open(qr_http **out, const char *api_key, const char *ca_file, qr_error *err);
/* All requests must have ended or been cancelled. Accepts NULL. */
void qr_http_close(qr_http *http);

/* Returns at once. */
qr_status qr_http_start(qr_http *http, qr_http_request *request, qr_error *err);
/* Closes the request's connection (HTTP/1) or stream (HTTP/2), by which the server learns that its work is not wanted. `done` is not
 * called. Does nothing if it is not in work. */
void qr_http_cancel(qr_http *http, qr_http_request *request);
/* Sends and receives for up to `seconds`, less if something happens, and calls `done` of what has ended. */
void qr_http_run(qr_http *http, double seconds);
/* Ends a waiting qr_http_run; from any thread. */
void qr_http_wake(qr_http *http);

/* Frees both texts; the request must not be in work. */
void qr_http_request_deinit(qr_http_request *request);

#endif
