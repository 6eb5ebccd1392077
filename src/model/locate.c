/* See locate.h. An interrupted download leaves a snapshot without some of its files; config.json, the smallest, comes early, so the folder
 * counts from there on and opening it says what else is missing. */
#define _POSIX_C_SOURCE 200809L /* S_ISDIR */
#include "model/locate.h"

#include "base/file.h"
#include "base/mem.h"
#include "model/builtin.h"
#include "model/gguf.h"
#include "model/hf_cache.h"

#include <string.h>
#include <sys/stat.h>

#define HOW_TO_GET "get it with `qwen-rerank pull %s`, or give the folder of a model with --model DIR"

static int is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* *dir = the snapshot of a model; E_NOT_FOUND if the cache has none. */
static qr_status find_snapshot(const char *cache, const qr_hf_id *id, const char *name, char **dir, qr_error *err)
{
    char commit[QR_HF_COMMIT_LEN + 1], *snapshot = NULL, *config = NULL, *gguf = NULL;
    qr_status status = qr_hf_commit(cache, id, commit, err);
    if (status == QR_OK) {
        snapshot = qr_hf_path(cache, id, "snapshots/%s", commit);
        config = snapshot != NULL ? qr_path_join(snapshot, "config.json") : NULL;
        if (config == NULL) status = qr_fail(err, QR_E_MEMORY, "%s: no memory for a path", cache);
    }
    if (status == QR_OK && !qr_file_exists(config)) { /* a repository of GGUF files has none */
        status = qr_gguf_locate(snapshot, &gguf, err);
        if (status == QR_OK && gguf == NULL) status = QR_E_NOT_FOUND;
    }
    if (status == QR_OK) {
        *dir = snapshot;
        snapshot = NULL;
    }
    if (status == QR_E_NOT_FOUND) qr_fail(err, status, "%s: not in the Hugging Face cache %s; " HOW_TO_GET, name, cache, name);
    qr_free(gguf);
    qr_free(config);
    qr_free(snapshot);
    return status;
}

static qr_status take(const char *name, char **dir, qr_error *err)
{
    *dir = qr_strndup(name, strlen(name));
    return *dir != NULL ? QR_OK : qr_fail(err, QR_E_MEMORY, "no memory for a path");
}

/* Nobody named a model: the smallest known one of the cache. A cache that this user may not read (a service with HOME=/root) counts as
 * empty, a broken one is an error. */
static qr_status find_default(char **dir, qr_error *err)
{
    char *cache;
    size_t i = 0;
    qr_status status = qr_hf_cache_folder(&cache, err);
    if (status != QR_OK) return status;
    do {
        qr_hf_id id;
        status = qr_hf_id_parse(&id, qr_hf_known_at(i)) ? find_snapshot(cache, &id, qr_hf_known_at(i), dir, err) : QR_E_NOT_FOUND;
    } while ((status == QR_E_NOT_FOUND || status == QR_E_IO) && qr_hf_known_at(++i) != NULL);
    if (status == QR_E_NOT_FOUND)
        qr_fail(err, status, "no model named, and none of Qwen/Qwen3-Reranker-0.6B, -4B and -8B in the Hugging Face cache %s; " HOW_TO_GET,
                cache, "0.6b");
    qr_free(cache);
    return status;
}

qr_status qr_model_locate(const char *name, char **dir, qr_error *err)
{
    char *cache;
    qr_status status;
    *dir = NULL;
    if (name == NULL && (name = qr_env("QWEN_RERANK_MODEL_ID")) == NULL) {
        status = find_default(dir, err);
        return (status == QR_E_NOT_FOUND || status == QR_E_IO) && qr_builtin_present() ? take(QR_BUILTIN, dir, err) : status;
    }
    if (qr_is_builtin(name)) {
        qr_file file; /* asked for only to fail with its reason here, before anything else is opened */
        status = qr_builtin_file(&file, "config.json", err);
        return status == QR_OK ? take(name, dir, err) : status;
    }
    if (is_folder(name)) return take(name, dir, err);
    status = qr_gguf_locate(name, dir, err);
    if (status != QR_OK || *dir != NULL) return status;
    qr_hf_id id;
    if (!qr_hf_id_parse(&id, qr_hf_known(name) != NULL ? qr_hf_known(name) : name))
        return qr_fail(err, QR_E_NOT_FOUND, "%s: expected a folder, 0.6b, 4b, 8b, " QR_BUILTIN " or a name such as %s, found none of these",
                       name, qr_hf_known_at(0));
    status = qr_hf_cache_folder(&cache, err);
    if (status != QR_OK) return status;
    status = find_snapshot(cache, &id, name, dir, err);
    qr_free(cache);
    return status;
}
