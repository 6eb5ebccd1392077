/* A list with a hash per entry: there are a few dozen entries at most (each is megabytes), so nothing cleverer would be faster. */
#include "cpu/prefix_cache.h"

#include "base/mem.h"
#include "cpu/kernels.h"

#include <string.h>

/* FNV-1a over 32-bit units; equality of the ids decides, the hash only saves comparisons. */
static uint64_t hash_ids(const uint32_t *ids, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) h = (h ^ ids[i]) * 0x100000001b3u;
    return h;
}

static void drop(qr_prefix_cache *cache, qr_prefix_kv **at)
{
    qr_prefix_kv *entry = *at;
    *at = entry->next;
    cache->bytes -= entry->bytes;
    qr_pages_free(entry->kt, entry->bytes);
    qr_free(entry->ids);
    qr_free(entry);
}

static size_t common_beginning(const qr_prefix_kv *e, const uint32_t *ids, size_t n_ids)
{
    size_t n = 0;
    while (n < n_ids && n < e->n_keys && e->ids[n] == ids[n]) n++;
    return n;
}

/* The entry with most of the keys gives them: a key depends on the tokens before it only, so they are the same. */
void qr_prefix_cache_take_over(const qr_prefix_cache *cache, qr_prefix_kv *to)
{
    if (to->valid) return;
    const qr_prefix_kv *from = NULL;
    for (const qr_prefix_kv *e = cache->entries; e != NULL; e = e->next) {
        size_t n = e->valid ? common_beginning(e, to->ids, to->n_keys) : 0;
        if (n > to->n_ready) {
            to->n_ready = n;
            from = e;
        }
    }
    if (from == NULL) return;
    size_t slots = (to->n_ready + QR_KEY_BLOCK - 1) / QR_KEY_BLOCK * QR_KEY_BLOCK; /* whole blocks; what is too much gets overwritten */
    for (size_t h = 0; h < cache->n_heads; h++) {
        memcpy(to->kt + h * to->n_slots * cache->kt_bytes, from->kt + h * from->n_slots * cache->kt_bytes, slots * cache->kt_bytes);
        memcpy(to->v + h * to->n_slots * cache->v_bytes, from->v + h * from->n_slots * cache->v_bytes, slots * cache->v_bytes);
    }
    to->valid = to->n_ready == to->n_keys;
}

void qr_prefix_kv_filled(qr_prefix_kv *entry)
{
    entry->n_ready = entry->n_keys;
    entry->valid = 1;
}

qr_status qr_prefix_cache_get(qr_prefix_cache *cache, const uint32_t *ids, size_t n_ids, qr_prefix_kv **out, qr_error *err)
{
    uint64_t hash = hash_ids(ids, n_ids);
    for (qr_prefix_kv *e = cache->entries; e != NULL; e = e->next)
        if (e->hash == hash && e->n_keys == n_ids && memcmp(e->ids, ids, n_ids * sizeof *ids) == 0) {
            e->last_use = ++cache->clock;
            *out = e;
            return QR_OK;
        }
    qr_prefix_kv *e = qr_calloc(1, sizeof *e);
    if (e == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for a query prefix");
    e->n_keys = n_ids;
    e->n_slots = (n_ids + QR_KEY_BLOCK - 1) / QR_KEY_BLOCK * QR_KEY_BLOCK;
    e->bytes = e->n_slots * cache->n_heads * (cache->kt_bytes + cache->v_bytes);
    e->ids = qr_calloc(n_ids, sizeof *ids);
    e->kt = qr_pages_alloc(e->bytes);
    if (e->ids == NULL || e->kt == NULL) {
        qr_status status = qr_fail(err, QR_E_MEMORY, "no memory for a query prefix of %zu tokens (%zu bytes)", n_ids, e->bytes);
        qr_free(e->ids);
        qr_pages_free(e->kt, e->bytes);
        qr_free(e);
        return status;
    }
    e->v = e->kt + e->n_slots * cache->n_heads * cache->kt_bytes;
    memcpy(e->ids, ids, n_ids * sizeof *ids);
    qr_prefix_cache_take_over(cache, e);
    e->hash = hash;
    e->last_use = ++cache->clock;
    e->next = cache->entries;
    cache->entries = e;
    cache->bytes += e->bytes;
    *out = e;
    return QR_OK;
}

void qr_prefix_cache_trim(qr_prefix_cache *cache)
{
    for (qr_prefix_kv **at = &cache->entries; *at != NULL;) {
        if ((*at)->valid) at = &(*at)->next;
        else drop(cache, at);
    }
    while (cache->bytes > cache->limit_bytes) {
        qr_prefix_kv **oldest = NULL, **latest = NULL;
        for (qr_prefix_kv **at = &cache->entries; *at != NULL; at = &(*at)->next) {
            if ((*at)->kept) continue;
            if (oldest == NULL || (*at)->last_use < (*oldest)->last_use) oldest = at;
            if (latest == NULL || (*at)->last_use > (*latest)->last_use) latest = at;
        }
        if (oldest == latest) return;
        drop(cache, oldest);
    }
}

void qr_prefix_cache_deinit(qr_prefix_cache *cache)
{
    while (cache->entries != NULL) drop(cache, &cache->entries);
}
