/* The HTTP service: routes, keys, limits, logs and counters around one engine. */
#ifndef QR_SERVER_SERVER_H
#define QR_SERVER_SERVER_H

#include "server/http.h"
#include "server/log.h"

typedef struct sv_server sv_server;

typedef struct sv_server_options {
    const char *host;            /* NULL: 127.0.0.1 */
    unsigned port;               /* 0: any free one */
    const char *unix_socket;     /* or NULL */
    const char *url_prefix;      /* or NULL; "/v3": routes are found with and without it */
    const char *const *api_keys; /* [n_api_keys] any of these opens the routes that score; none: all may */
    size_t n_api_keys;
    size_t max_body_bytes;    /* 0: 64 MiB */
    size_t max_documents;     /* 0: 100,000 a request */
    size_t max_waiting;       /* 0: 512 requests in work or queued; more get 429 */
    double request_timeout_s; /* 0: 300 */
    const char *tls_cert, *tls_key;
    const char *model_name; /* what answers call the model if the request does not */
    const sv_log *log;
} sv_server_options;

/* Listens, and answers that it is loading. */
qr_status sv_server_open(sv_server **out, const sv_server_options *options, qr_error *err);
/* From here on it scores. The engine is borrowed until close. */
void sv_server_set_engine(sv_server *server, qr_engine *engine);
/* Takes no new connections, waits for what is in work, at most so long. Returns how many requests were left. */
size_t sv_server_drain(sv_server *server, double seconds);
/* Cancels what is left. Accepts NULL. */
void sv_server_close(sv_server *server);
unsigned sv_server_port(const sv_server *server);

#endif
