/* A few threads that work off a queue: reading requests, tokenizing, writing answers; whatever must not hold up connections or the engine.
 */
#ifndef QR_SERVER_POOL_H
#define QR_SERVER_POOL_H

#include "base/error.h"

typedef struct sv_pool sv_pool;

/* Part of what is to be worked on; belongs to the caller, from sv_pool_add until `run` is called. */
typedef struct sv_work {
    void (*run)(struct sv_work *work);
    struct sv_work *next;
} sv_work;

qr_status sv_pool_open(sv_pool **out, unsigned n_threads, qr_error *err);
unsigned sv_pool_size(const sv_pool *pool); /* threads */
void sv_pool_add(sv_pool *pool, sv_work *work);
/* Works off what is queued, then ends. Accepts NULL. */
void sv_pool_close(sv_pool *pool);

#endif
