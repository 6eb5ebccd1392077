/* See result_cache.h. */
#include "engine/result_cache.h"

#include "base/mem.h"

#include <openssl/evp.h>
#include <string.h>

enum { NONE = UINT32_MAX };

typedef struct entry {
    qr_result_key key;
    qr_logits logits;
    uint32_t in_bucket;    /* next one with the same bucket */
    uint32_t older, newer; /* by last use */
} entry;

struct qr_result_cache {
    entry *entries;
    uint32_t *buckets; /* [n_buckets] first entry of each */
    uint32_t capacity, n, n_buckets, oldest, newest;
};

qr_status qr_result_cache_open(qr_result_cache **out, size_t bytes, qr_error *err)
{
    size_t capacity = bytes / (sizeof(entry) + 2 * sizeof(uint32_t));
    *out = NULL;
    if (capacity < 16) return qr_fail(err, QR_E_ARG, "result cache: expected at least 4096 bytes, found %zu", bytes);
    if (capacity > NONE / 2) capacity = NONE / 2;
    qr_result_cache *c = qr_calloc(1, sizeof *c);
    if (c == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for the result cache");
    c->capacity = (uint32_t) capacity;
    for (c->n_buckets = 16; c->n_buckets < c->capacity; c->n_buckets *= 2) continue;
    c->entries = qr_calloc(c->capacity, sizeof *c->entries);
    c->buckets = qr_calloc(c->n_buckets, sizeof *c->buckets);
    if (c->entries == NULL || c->buckets == NULL) {
        qr_result_cache_close(c);
        return qr_fail(err, QR_E_MEMORY, "no memory for a result cache of %zu bytes", bytes);
    }
    memset(c->buckets, 0xff, c->n_buckets * sizeof *c->buckets);
    c->oldest = c->newest = NONE;
    *out = c;
    return QR_OK;
}

void qr_result_cache_close(qr_result_cache *c)
{
    if (c == NULL) return;
    qr_free(c->entries);
    qr_free(c->buckets);
    qr_free(c);
}

qr_result_key qr_result_key_of(const uint32_t *shared, size_t n_shared, const uint32_t *own, size_t n_own)
{
    qr_result_key key = {{0}};
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    if (md != NULL && EVP_DigestInit_ex(md, EVP_sha256(), NULL) == 1) {
        EVP_DigestUpdate(md, shared, n_shared * sizeof *shared);
        EVP_DigestUpdate(md, own, n_own * sizeof *own);
        EVP_DigestFinal_ex(md, key.sha256, NULL);
    }
    EVP_MD_CTX_free(md);
    return key;
}

/* All zero: it could not be computed. Such prompts are not cached. */
static int is_valid(const qr_result_key *key)
{
    static const qr_result_key zero;
    return memcmp(key, &zero, sizeof zero) != 0;
}

static uint32_t *bucket_of(const qr_result_cache *c, const qr_result_key *key)
{
    uint32_t hash;
    memcpy(&hash, key->sha256, sizeof hash);
    return &c->buckets[hash & (c->n_buckets - 1)];
}

static uint32_t find(const qr_result_cache *c, const qr_result_key *key)
{
    uint32_t i = *bucket_of(c, key);
    while (i != NONE && memcmp(&c->entries[i].key, key, sizeof *key) != 0) i = c->entries[i].in_bucket;
    return i;
}

static void unlink_use(qr_result_cache *c, uint32_t i)
{
    entry *e = &c->entries[i];
    *(e->older != NONE ? &c->entries[e->older].newer : &c->oldest) = e->newer;
    *(e->newer != NONE ? &c->entries[e->newer].older : &c->newest) = e->older;
}

static void link_newest(qr_result_cache *c, uint32_t i)
{
    entry *e = &c->entries[i];
    e->older = c->newest;
    e->newer = NONE;
    *(c->newest != NONE ? &c->entries[c->newest].newer : &c->oldest) = i;
    c->newest = i;
}

/* The place of the entry that was used longest ago. */
static uint32_t evict(qr_result_cache *c)
{
    uint32_t i = c->oldest, *link = bucket_of(c, &c->entries[i].key);
    while (*link != i) link = &c->entries[*link].in_bucket;
    *link = c->entries[i].in_bucket;
    unlink_use(c, i);
    return i;
}

int qr_result_cache_get(qr_result_cache *c, const qr_result_key *key, qr_logits *out)
{
    uint32_t i = find(c, key);
    if (i == NONE) return 0;
    unlink_use(c, i);
    link_newest(c, i);
    *out = c->entries[i].logits;
    return 1;
}

void qr_result_cache_put(qr_result_cache *c, const qr_result_key *key, qr_logits logits)
{
    if (!is_valid(key) || find(c, key) != NONE) return;
    uint32_t i = c->n < c->capacity ? c->n++ : evict(c), *bucket = bucket_of(c, key);
    c->entries[i].key = *key;
    c->entries[i].logits = logits;
    c->entries[i].in_bucket = *bucket;
    *bucket = i;
    link_newest(c, i);
}
