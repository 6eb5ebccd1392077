/* Brings a model from the Hub into the cache that Python's tools share (hf_cache.h). What is there already is not fetched again, and what
 * an interrupted pull had is kept. A file appears under its name only when all of it is there and its hash is right. */
#ifndef QR_HUB_PULL_H
#define QR_HUB_PULL_H

#include "hub/fetch.h"
#include "model/hf_cache.h"

typedef struct qr_pull_progress {
    uint64_t total, done, kept; /* bytes of all files; of them here; of them here before */
    size_t n_files;
    const char *file; /* one that is being fetched */
} qr_pull_progress;

typedef struct qr_pull_options {
    const char *quantization, *file; /* which GGUF file of several: "Q4_K_M", or its name; may be NULL */
    const volatile int *cancel;
    /* Called some times a second by the thread that called qr_pull, or NULL. */
    void (*progress)(void *arg, const qr_pull_progress *progress);
    void *arg;
} qr_pull_options;

/* *dir = the snapshot's folder, or the GGUF file in it, for qr_free. */
qr_status qr_pull(const qr_hf_id *id, const qr_pull_options *options, char **dir, qr_error *err);

/* ---- parts, for tests ------------------------------------------------------------------------------------------------------------- */

/* A file of a repository. */
typedef struct qr_hub_file {
    char path[QR_HF_MAX_NAME + 1];
    uint64_t size;
    char hash[65]; /* sha256 of large files, else git's sha1 of a blob */
    int is_large;
    int wanted;
} qr_hub_file;

/* Marks what a reranker needs. E_INPUT where that is not clear, with what there is. */
qr_status qr_hub_choose(qr_hub_file *files, size_t n, const char *quantization, const char *file, qr_error *err);

#endif
