/* HTTP, by libmicrohttpd: takes whole requests in, hands them to a handler, and sends what the handler answers, then or later.
 *
 * A few threads serve all connections; a request whose answer takes time waits without one. Knows nothing of reranking.
 */
#ifndef QR_SERVER_HTTP_H
#define QR_SERVER_HTTP_H

#include "base/buf.h"
#include "base/error.h"

typedef struct sv_http sv_http;

enum { SV_MAX_HEADERS = 24, SV_ID_BYTES = 72 };

/* One request and its answer. Fields of the request may be read from when the handler is called until the answer is given. */
typedef struct sv_exchange {
    char method[16];      /* "POST"; cut if longer */
    char *path;           /* decoded, without the query string */
    qr_buf body;          /* as sent */
    char id[SV_ID_BYTES]; /* the client's X-Request-ID if it is harmless, else made up; sent back */
    char trace_id[33];    /* of the client's traceparent header (W3C), or "" */
    double begin, read;   /* qr_now when the request line had arrived, and when the body had */
    volatile int cancel;  /* set when the client has gone; for qr_call.cancel */

    qr_buf answer; /* what the handler writes; its memory goes to libmicrohttpd */
    void *user;    /* the handler's; not touched here */

    struct sv_http_part *http; /* the rest is http.c's */
} sv_exchange;

/* Called on one of the connections' threads: must not block. Exactly one sv_answer, or one last sv_stream, must follow, from any thread. */
typedef void (*sv_handler)(void *arg, sv_exchange *exchange);
/* Called when the answer has been sent or given up; the exchange ends with it. sent_bytes 0: the client had gone. */
typedef void (*sv_finished)(void *arg, const sv_exchange *exchange, int status);

typedef struct sv_http_options {
    const char *host;               /* name or address; "" or "*": all */
    unsigned port;                  /* 0: any free one, see sv_http_port */
    const char *unix_socket;        /* or NULL; instead of host and port */
    const char *tls_cert, *tls_key; /* PEM files, or NULL */
    unsigned threads;               /* 0: 2 */
    unsigned max_connections;       /* 0: 4,096 */
    unsigned idle_timeout_s;        /* 0: 75; a connection on which nothing moves is closed */
    size_t max_body_bytes;          /* 0: 64 MiB; more is refused with 413 */
    double disconnect_grace_s; /* after a client has closed its side: how long it may still wait for an answer. < 0: for ever. 0: 1 s */
    sv_handler handler;
    sv_finished finished;
    void *arg;
    void (*log)(void *arg, qr_log_level level, const char *message);
} sv_http_options;

/* Listens from here on. */
qr_status sv_http_open(sv_http **out, const sv_http_options *options, qr_error *err);
/* Takes no new connections; those that are there get the answer that they wait for, or to what they are just sending, and are closed then.
 * Returns how many requests were not answered after so many seconds. */
size_t sv_http_drain(sv_http *http, double seconds);
/* Cancels what is in flight, waits for its answers, closes all connections. Accepts NULL. */
void sv_http_close(sv_http *http);
unsigned sv_http_port(const sv_http *http);

/* A header of the request, or NULL. To be called in the handler. */
const char *sv_header(const sv_exchange *exchange, const char *name);
/* Adds a header to the answer; both are copied. */
void sv_add_header(sv_exchange *exchange, const char *name, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Sends `answer` with this status. The exchange must not be touched afterwards. */
void sv_answer(sv_exchange *exchange, int status, const char *content_type);
/* Instead, piece by piece: sends what is in `answer` and empties it; the status, type and headers of the first piece count. After the last
 * one the exchange must not be touched. Does not wait for slow clients. */
void sv_stream(sv_exchange *exchange, int status, const char *content_type, int is_last);

#endif
