/* Requests to a Hugging Face Hub, one at a time on one connection, over libcurl. Redirects are followed by hand: the first answer's headers
 * say what the file is, and the token goes to the Hub's own host only, never to where it sends us. Proxies are those of the environment.
 */
#ifndef QR_HUB_FETCH_H
#define QR_HUB_FETCH_H

#include "base/buf.h"
#include "base/error.h"

#include <stdint.h>

/* What all requests share; borrowed by each. */
typedef struct qr_hub {
    char *endpoint;   /* without a slash at the end */
    char *token;      /* or NULL */
    double timeout_s; /* without a byte */
    const volatile int *cancel;
} qr_hub;

/* By HF_ENDPOINT, HF_TOKEN and the rest of the environment. QR_E_UNSUPPORTED where it says that there is to be no network. */
qr_status qr_hub_open(qr_hub *hub, const volatile int *cancel, qr_error *err);
void qr_hub_close(qr_hub *hub);

/* What the headers of an answer say; of the Hub itself, not of where it sent us. */
typedef struct qr_hub_answer {
    long status;           /* of the last answer */
    char linked_etag[160]; /* X-Linked-Etag without quotes, or "" */
    char next[2048];       /* Link: rel="next", or "" */
    char error_code[64];   /* X-Error-Code, or "" */
    uint64_t first, total; /* Content-Range; total 0: none */
    double retry_after_s;
    int elsewhere; /* the last answer came from another host */
} qr_hub_answer;

typedef struct qr_fetch qr_fetch; /* a connection */
qr_status qr_fetch_open(qr_fetch **out, const qr_hub *hub, qr_error *err);
void qr_fetch_close(qr_fetch *fetch);

/* Where the bytes of an answer go. Returns 0 to go on. first: place of data in the file, by Content-Range. */
typedef int (*qr_fetch_sink)(void *arg, const char *data, size_t n);

/* GET url, of bytes [first, last] if last > 0, to the sink. Tries again after what may pass: connections that break, 429, 5xx, a signed
 * address that has expired; `begin` is asked before every try, and says from where. Anything but 200 and 206 ends as an error that says
 * what to do. */
typedef struct qr_fetch_job {
    const char *url;
    uint64_t first, last; /* last 0: all of it */
    uint64_t max_bytes;   /* more end the job as failed */
    void (*begin)(void *arg, uint64_t *first);
    qr_fetch_sink sink;
    void *arg;
    qr_hub_answer answer;
} qr_fetch_job;
qr_status qr_fetch_run(qr_fetch *fetch, qr_fetch_job *job, qr_error *err);

/* The whole answer as text. next as in qr_hub_answer, or NULL. */
qr_status qr_fetch_text(qr_fetch *fetch, const char *url, size_t max_bytes, qr_buf *out, char next[2048], qr_error *err);

/* Of headers; for tests. */
int qr_hub_parse_range(const char *value, uint64_t *first, uint64_t *total); /* "bytes 0-9/100" */
int qr_hub_parse_next(const char *value, char *url, size_t size);            /* <...>; rel="next" */
/* 1 if both URLs have the same scheme, host and port. */
int qr_hub_same_host(const char *a, const char *b);

#endif
