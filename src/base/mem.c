/* See mem.h. The hooks are thread-local so that they cost one load on paths that are slow anyway. */
#define _GNU_SOURCE
#include "base/mem.h"

#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static _Thread_local long fail_countdown;
static _Thread_local int forbidden;

void qr_mem_fail_at(long fail_at) { fail_countdown = fail_at; }
void qr_mem_forbid(int delta) { forbidden += delta; }

static int refused(void)
{
    assert(forbidden == 0 && "allocation inside the forward pass");
    return fail_countdown > 0 && --fail_countdown == 0;
}

void *qr_calloc(size_t n, size_t size)
{
    if (refused()) return NULL;
    if (n == 0 || size == 0) n = size = 1;
    return calloc(n, size); /* checks the product itself */
}

void *qr_realloc(void *block, size_t n, size_t size)
{
    size_t bytes;
    if (refused() || __builtin_mul_overflow(n, size, &bytes)) return NULL;
    return realloc(block, bytes ? bytes : 1);
}

void qr_free(void *block) { free(block); }

char *qr_strndup(const char *text, size_t len)
{
    if (len == SIZE_MAX) return NULL;
    char *copy = qr_calloc(len + 1, 1);
    if (copy != NULL && len > 0) memcpy(copy, text, len);
    return copy;
}

void *qr_grow(void *block, size_t *capacity, size_t need, size_t size)
{
    if (block != NULL && need <= *capacity) return block;
    size_t cap = *capacity < 16 ? 16 : *capacity;
    while (cap < need) {
        if (cap > SIZE_MAX / 2) return NULL;
        cap *= 2;
    }
    void *grown = qr_realloc(block, cap, size);
    if (grown != NULL) *capacity = cap;
    return grown;
}

void *qr_pages_alloc(size_t bytes)
{
    if (refused()) return NULL;
    void *p = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
#ifdef MADV_HUGEPAGE
    /* Weights and activations are streamed: 2 MiB pages save most of the TLB misses. Below 4 MiB rounding up would waste memory. */
    if (bytes >= (size_t) 4 << 20) madvise(p, bytes, MADV_HUGEPAGE);
#endif
    return p;
}

void qr_pages_free(void *block, size_t bytes)
{
    if (block != NULL) munmap(block, bytes ? bytes : 1);
}
