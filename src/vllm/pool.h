/* The vLLM servers behind the backend: found by URL and by name service, checked before they get work and after each failure, probed while
 * they have it.
 *
 * A server is given work only once it has shown that it has our model name, our tokenizer, room for our longest prompt, a route that takes
 * token ids, and, for prompts of known ids, the scores that the servers before it had. One that fails is taken out and checked again, with
 * growing pauses, by these same requests ("half open"): it comes back as soon as all of them are answered well.
 */
#ifndef QR_VLLM_POOL_H
#define QR_VLLM_POOL_H

#include "engine/backend.h"
#include "vllm/balancer.h"
#include "vllm/http_client.h"
#include "vllm/protocol.h"

#include <pthread.h>

enum { QR_VLLM_MAX_REPLICAS = 1024, QR_VLLM_N_SAMPLES = 8 };

typedef enum qr_vllm_state { QR_VLLM_DOWN = 0, QR_VLLM_CHECKING, QR_VLLM_UP, QR_VLLM_LEAVING } qr_vllm_state;

struct qr_vllm_pool;

typedef struct qr_vllm_replica {
    struct qr_vllm_pool *pool;
    char name[256];   /* the URL and, where its name has several addresses, the address */
    char *base;       /* URL without a slash at its end */
    char *connect_to; /* see qr_http_request; NULL: the URL's host */
    size_t endpoint;  /* which of the URLs it belongs to */
    qr_load load;
    qr_vllm_state state;
    qr_vllm_protocol protocol;
    char why_protocol[256]; /* a few words, or what the protocols before it came to */
    char model[256], version[32], address[64];
    size_t max_model_len;  /* 0: not said */
    size_t most_documents; /* that it takes in one request; learnt */
    unsigned n_full;       /* requests of that many that it has answered since */
    char reason[256];      /* why it is not up; "" when it is */

    int step; /* of the check in work */
    int n_tried;
    size_t sent;                               /* prompts of the sample in the check's request */
    double sample_seconds;                     /* that the latest took */
    qr_http_request check;                     /* of health and of what it is */
    double next_check, last_heard, last_asked; /* on the clock of qr_now */
    unsigned n_failures;                       /* in a row */

    uint64_t n_requests, n_documents, n_tokens, n_errors, n_overloads, n_ejections, n_hedges, n_hedges_won;
    double seconds; /* of answered requests together */
} qr_vllm_replica;

typedef struct qr_vllm_endpoint {
    char *base, *host, *port;
    int is_named;     /* the host is a name that may have several addresses */
    char **addresses; /* [n_addresses] as connect_to wants them; guarded by the pool's lock */
    size_t n_addresses;
    int changed; /* since the pool last looked; the same */
} qr_vllm_endpoint;

typedef struct qr_vllm_pool {
    const qr_backend_cfg *cfg;                         /* borrowed */
    qr_http *http;                                     /* borrowed */
    void (*lost)(void *arg, qr_vllm_replica *replica); /* called when its requests will not be answered any more */
    void *arg;
    qr_vllm_replica **replicas; /* [n] */
    const qr_load **loads;      /* [n] those of the replicas */
    size_t n, capacity, n_up;
    double down_since;                   /* when the last one went down; 0: one is up */
    qr_logits sample[QR_VLLM_N_SAMPLES]; /* what the first good replica gave */
    int has_sample;
    uint64_t jitter;

    qr_vllm_endpoint *endpoints; /* [n_endpoints] */
    size_t n_endpoints;
    pthread_t resolver;
    int resolving; /* the thread runs */
    pthread_mutex_t lock;
    pthread_cond_t closing_changed;
    int closing;
} qr_vllm_pool;

/* Reads the URLs of cfg->place.vllm and resolves their names; checks begin with the first tick. */
qr_status qr_vllm_pool_open(qr_vllm_pool *pool, const qr_backend_cfg *cfg, qr_http *http, void (*lost)(void *, qr_vllm_replica *),
                            void *arg, qr_error *err);
void qr_vllm_pool_close(qr_vllm_pool *pool);
/* Begins what is due; returns the seconds until something else is. To be called after anything has happened. */
double qr_vllm_pool_tick(qr_vllm_pool *pool, double now);
/* It answered a request well. */
void qr_vllm_pool_heard(qr_vllm_pool *pool, qr_vllm_replica *replica, double now);
/* A request to it failed: no more work until it has been checked. is_lost: what it still has in work is given up, see `lost`. */
void qr_vllm_pool_failed(qr_vllm_pool *pool, qr_vllm_replica *replica, int is_lost, double now, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
/* It gets no more work, and is forgotten once it has answered. */
void qr_vllm_pool_leave(qr_vllm_pool *pool, qr_vllm_replica *replica, double now);
/* Asks for its health as soon as possible. */
void qr_vllm_pool_doubt(qr_vllm_replica *replica);
/* 1 if every replica has been checked in vain at least once. */
int qr_vllm_pool_is_hopeless(const qr_vllm_pool *pool);
/* "URL: reason; URL: reason" */
void qr_vllm_pool_reasons(const qr_vllm_pool *pool, char *text, size_t size);

#endif
