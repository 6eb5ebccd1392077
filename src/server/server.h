/* The HTTP service: routes, keys, limits, logs and counters around one or several engines. */
#ifndef QR_SERVER_SERVER_H
#define QR_SERVER_SERVER_H

#include "base/json_out.h"
#include "engine/backend.h"
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
    int protect_metrics;             /* /metrics needs a key, too */
    const char *const *cors_origins; /* [n_cors_origins] pages from there may ask; "*": all pages */
    size_t n_cors_origins;
    const char *tls_cert, *tls_key;

    const char *const *models; /* [n_models] names; requests choose by them if there are several. The first is the default */
    size_t n_models;           /* at least 1 */
    size_t max_body_bytes;     /* 0: 64 MiB */
    size_t max_documents;      /* 0: 100,000 a request */
    size_t max_query_chars, max_document_chars; /* code points; 0: none. Longer queries are refused, longer documents cut */
    unsigned max_connections;                   /* 0: 4,096; more wait until one ends */
    size_t max_waiting;                         /* 0: 512 requests in work or queued; more get 429 */
    double request_timeout_s;                   /* 0: 300 */
    int return_documents;                       /* unless a request says otherwise */
    int mirror_data;                            /* send results as "data", too */
    qr_backend_place place;                     /* where backends are looked for, which /v1/config tells about */

    const sv_log *log;
    int log_texts;                                        /* queries and documents, too */
    void (*write_settings)(qr_json_out *json, void *arg); /* adds members to the object of /v1/config; or NULL */
    void *settings_arg;
} sv_server_options;

/* Listens, and answers that it is loading. */
qr_status sv_server_open(sv_server **out, const sv_server_options *options, qr_error *err);
/* From here on it scores with that model. The engine is borrowed until close. */
void sv_server_set_engine(sv_server *server, size_t model, qr_engine *engine);
/* Takes no new connections, answers what is in work, at most so long. Returns how many requests were left. */
size_t sv_server_drain(sv_server *server, double seconds);
/* Cancels what is left. Accepts NULL. */
void sv_server_close(sv_server *server);
unsigned sv_server_port(const sv_server *server);

#endif
