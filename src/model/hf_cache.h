/* The cache of models that Python's huggingface_hub keeps, and that this program shares with it:
 *   CACHE/models--ORG--NAME/refs/REVISION           text: the commit, 40 hex digits
 *   CACHE/models--ORG--NAME/snapshots/COMMIT/PATH   links into
 *   CACHE/models--ORG--NAME/blobs/ETAG              the files, named by their sha256 (large ones) or git's sha1
 *   CACHE/.locks/models--ORG--NAME/ETAG.lock        flock()ed while a blob is written
 * CACHE is $HF_HUB_CACHE, else $HUGGINGFACE_HUB_CACHE, else $HF_HOME/hub, where HF_HOME defaults to $XDG_CACHE_HOME/huggingface and that
 * to ~/.cache/huggingface. */
#ifndef QR_MODEL_HF_CACHE_H
#define QR_MODEL_HF_CACHE_H

#include "base/error.h"

enum { QR_HF_COMMIT_LEN = 40, QR_HF_MAX_NAME = 255 };

/* A variable of the environment, NULL if it is empty or not set. */
const char *qr_env(const char *name);
/* In a new block. E_NOT_FOUND where the environment says nothing, not even HOME. */
qr_status qr_hf_cache_folder(char **out, qr_error *err);
/* Where HF_TOKEN_PATH or its default is: $HF_HOME/token. */
qr_status qr_hf_token_path(char **out, qr_error *err);
/* 1 if HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE says so. */
int qr_hf_is_offline(void);

/* "Qwen/Qwen3-Reranker-0.6B" for "0.6b" and so on, in any case; NULL if it is none of them. The i-th of all; NULL past the last. */
const char *qr_hf_known(const char *short_name);
const char *qr_hf_known_at(size_t i);

/* ORG/NAME[@REVISION] in its parts. Characters are those that the Hub allows; no part leads out of the cache. */
typedef struct qr_hf_id {
    char repo[QR_HF_MAX_NAME + 1];     /* ORG/NAME */
    char revision[QR_HF_MAX_NAME + 1]; /* "main" if none is given */
    char folder[QR_HF_MAX_NAME + 16];  /* models--ORG--NAME */
} qr_hf_id;
/* 0: it is none. */
int qr_hf_id_parse(qr_hf_id *id, const char *text);
int qr_hf_is_commit(const char *text);
/* A file's path within a repository that stays within it: relative, no "..", no empty part, no backslash or control character. */
int qr_hf_is_path(const char *path);

/* "cache/models--ORG--NAME/..." in a new block; the rest as printf. NULL when out of memory. */
char *qr_hf_path(const char *cache, const qr_hf_id *id, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* commit = what refs/ says of the revision, or the revision itself. E_NOT_FOUND if nothing. */
qr_status qr_hf_commit(const char *cache, const qr_hf_id *id, char commit[QR_HF_COMMIT_LEN + 1], qr_error *err);

#endif
