/* Which replicas there are: those of the URLs, one for each address where a name has several, as a headless service of Kubernetes does.
 * Names are resolved again while the backend runs, in a thread of their own, since the system's resolver blocks. */
#ifndef QR_VLLM_DISCOVERY_H
#define QR_VLLM_DISCOVERY_H

#include "vllm/pool.h"

/* Reads the URLs, resolves their names for the first time, fills the pool and starts the thread if there are names. */
qr_status qr_vllm_discovery_open(qr_vllm_pool *pool, qr_error *err);
void qr_vllm_discovery_close(qr_vllm_pool *pool);
/* Takes over what the thread has found: new replicas are to be checked, those whose address is gone leave once they have answered. */
void qr_vllm_discover(qr_vllm_pool *pool, double now);
/* Frees replica number i, which must have nothing in flight but its check. */
void qr_vllm_replica_remove(qr_vllm_pool *pool, size_t i);

#endif
