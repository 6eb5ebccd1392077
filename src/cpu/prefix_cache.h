/* K and V of computed query prefixes, all layers, so that the part of the prompt that documents share is computed once. Bounded, least
 * recently used out first. Used by one thread. */
#ifndef QR_CPU_PREFIX_CACHE_H
#define QR_CPU_PREFIX_CACHE_H

#include "base/error.h"

typedef struct qr_prefix_kv {
    size_t n_keys;
    size_t n_slots; /* n_keys rounded up to QR_KEY_BLOCK */
    float *kt, *v;  /* [n_layers][kt_size or v_size * n_slots]; order within a layer as in forward.c */
    int valid;      /* computed; 0 while a pass is to fill it */
    uint32_t *ids;  /* [n_keys] */
    uint64_t hash, last_use;
    size_t bytes;
    struct qr_prefix_kv *next;
} qr_prefix_kv;

typedef struct qr_prefix_cache {
    size_t limit_bytes, bytes;
    size_t floats_per_slot; /* of K and of V together, all layers */
    size_t kt_per_slot;     /* of K alone */
    uint64_t clock;
    qr_prefix_kv *entries;
} qr_prefix_cache;

/* The entry for these ids: found (valid 1) or new and to be filled (valid 0). Stays until qr_prefix_cache_trim. */
qr_status qr_prefix_cache_get(qr_prefix_cache *cache, const uint32_t *ids, size_t n_ids, qr_prefix_kv **out, qr_error *err);
/* Drops entries that were never filled, then the least recently used ones until the bound holds; the latest always stays. */
void qr_prefix_cache_trim(qr_prefix_cache *cache);
void qr_prefix_cache_deinit(qr_prefix_cache *cache);

#endif
