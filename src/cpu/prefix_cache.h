/* K and V of computed query prefixes, all layers, so that the part of the prompt that documents share is computed once, and what it
 * begins with (the system's words, the instruction) not even once per query: a new entry takes over the keys of the entry with the longest
 * beginning in common. Bounded, least recently used out first. Used by one thread. */
#ifndef QR_CPU_PREFIX_CACHE_H
#define QR_CPU_PREFIX_CACHE_H

#include "base/error.h"

typedef struct qr_prefix_kv {
    size_t n_keys;
    size_t n_slots;        /* n_keys rounded up to QR_KEY_BLOCK */
    unsigned char *kt, *v; /* [n_layers][kt_size or v_size * n_slots]; order within a layer as in forward.c */
    size_t n_ready;        /* keys that are there: taken over, and after the pass all */
    int valid;             /* n_ready is n_keys; 0 while a pass is to fill it */
    int kept;              /* never dropped */
    uint32_t *ids;         /* [n_keys] */
    uint64_t hash, last_use;
    size_t bytes;
    struct qr_prefix_kv *next;
} qr_prefix_kv;

typedef struct qr_prefix_cache {
    size_t limit_bytes, bytes;
    size_t n_heads;           /* KV heads of all layers: K is [n_heads][n_slots], and so is V */
    size_t kt_bytes, v_bytes; /* of one head's slot */
    uint64_t clock;
    qr_prefix_kv *entries;
} qr_prefix_cache;

/* The entry for these ids: found (valid 1), or new and to be filled from n_ready on (valid 0). Stays until qr_prefix_cache_trim. */
qr_status qr_prefix_cache_get(qr_prefix_cache *cache, const uint32_t *ids, size_t n_ids, qr_prefix_kv **out, qr_error *err);
/* A pass has computed all that was not ready. */
void qr_prefix_kv_filled(qr_prefix_kv *entry);
/* Lets a new entry take over what others have of it; qr_prefix_cache_get has done so with those that were valid then. */
void qr_prefix_cache_take_over(const qr_prefix_cache *cache, qr_prefix_kv *entry);
/* Drops entries that were never filled, then the least recently used ones until the bound holds; the latest always stays, and so do the
 * kept ones. */
void qr_prefix_cache_trim(qr_prefix_cache *cache);
void qr_prefix_cache_deinit(qr_prefix_cache *cache);

#endif
