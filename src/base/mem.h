/* All allocation of the library. Sizes are checked for overflow, large blocks are aligned for vector loads, tests can make the Nth
 * allocation fail, and debug builds assert that none happens during a forward pass. */
#ifndef QR_BASE_MEM_H
#define QR_BASE_MEM_H

#include <stddef.h>

/* n * size bytes, zeroed; NULL when out of memory or when the product overflows. n or size 0 gives a block of one byte. */
void *qr_calloc(size_t n, size_t size);
/* Grows or shrinks; the new part is not zeroed. On failure NULL, and the old block stays valid. */
void *qr_realloc(void *block, size_t n, size_t size);
void qr_free(void *block);
/* Copies `len` bytes and adds a NUL. */
char *qr_strndup(const char *text, size_t len);

/* Room for at least `need` elements in a growing array (doubling): returns the array, or NULL with *capacity unchanged. */
void *qr_grow(void *block, size_t *capacity, size_t need, size_t size);

/* 64-byte aligned, zeroed, from fresh pages (untouched pages cost no memory). Freed with qr_pages_free. */
void *qr_pages_alloc(size_t bytes);
void qr_pages_free(void *block, size_t bytes);

/* Test hooks. fail_at 1 makes the next allocation of this thread fail, 2 the one after it, 0 none. */
void qr_mem_fail_at(long fail_at);
/* While > 0 on this thread, an allocation is a bug: debug builds abort. Nests. */
void qr_mem_forbid(int delta);

#endif
