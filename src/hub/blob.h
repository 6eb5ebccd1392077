/* One file of the cache, by its hash: fetched in parts over several connections, kept when interrupted, and named only when its content has
 * that hash. */
#ifndef QR_HUB_BLOB_H
#define QR_HUB_BLOB_H

#include "hub/pull.h"

enum { QR_BLOB_CONNECTIONS = 4 };

typedef struct qr_blob {
    const qr_hub *hub;
    const char *cache;
    const qr_hf_id *id;
    const qr_hub_file *file;
    const char *url;
    _Atomic uint64_t *done;  /* bytes that are here, of all files; may fall again */
    _Atomic uint64_t *kept;  /* of these, found here */
    void (*tick)(void *arg); /* called now and then while it goes on */
    void *arg;
} qr_blob;

/* Where the blob is, or will be, in a new block. */
char *qr_blob_path(const char *cache, const qr_hf_id *id, const qr_hub_file *file);
/* Bytes that an interrupted pull left of it. */
uint64_t qr_blob_kept(const char *cache, const qr_hf_id *id, const qr_hub_file *file);
/* Holds the lock of huggingface_hub meanwhile: two pulls fetch it once. */
qr_status qr_blob_fetch(const qr_blob *blob, qr_error *err);

/* A journal of parts: its first line names size and part size, each other one a part that is on the disk. Fills have [n_parts] and returns
 * how many; anything else than such a file is as good as none. For tests. */
size_t qr_blob_read_journal(const char *text, size_t len, uint64_t size, uint64_t part_bytes, unsigned char *have, size_t n_parts);

#endif
