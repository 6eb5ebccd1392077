/* The cache of the huggingface_hub package, as far as reading goes:
 *   CACHE/models--ORG--NAME/refs/REVISION      text: the commit, 40 hex digits
 *   CACHE/models--ORG--NAME/snapshots/COMMIT/  the files, as links into blobs/
 * CACHE is $HF_HUB_CACHE, else $HUGGINGFACE_HUB_CACHE, else $HF_HOME/hub, where HF_HOME defaults to $XDG_CACHE_HOME/huggingface and that
 * to ~/.cache/huggingface. An interrupted download leaves a snapshot without some of its files; config.json, the smallest, comes early, so
 * the folder counts from there on and opening it says what else is missing. */
#define _POSIX_C_SOURCE 200809L /* strcasecmp, S_ISDIR */
#include "model/locate.h"

#include "base/file.h"
#include "base/mem.h"
#include "model/builtin.h"
#include "model/gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

static const struct {
    const char *short_name, *id;
} known[] = {{"0.6b", "Qwen/Qwen3-Reranker-0.6B"}, {"4b", "Qwen/Qwen3-Reranker-4B"}, {"8b", "Qwen/Qwen3-Reranker-8B"}};
enum { N_KNOWN = sizeof known / sizeof known[0], COMMIT_LEN = 40, MAX_NAME = 255 };

#define HOW_TO_GET "get it with `hf download %.*s` (pip install huggingface_hub), or give the folder of a model with --model DIR"

static const char *env(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && value[0] != 0 ? value : NULL;
}

/* The cache folder in a new block. E_NOT_FOUND where the environment says nothing, not even HOME. */
static qr_status cache_folder(char **out, qr_error *err)
{
    static const struct {
        const char *name, *below;
    } places[] = {{"HF_HUB_CACHE", ""},
                  {"HUGGINGFACE_HUB_CACHE", ""},
                  {"HF_HOME", "hub"},
                  {"XDG_CACHE_HOME", "huggingface/hub"},
                  {"HOME", ".cache/huggingface/hub"}};
    size_t i = 0, n = sizeof places / sizeof places[0];
    *out = NULL;
    while (i < n && env(places[i].name) == NULL) i++;
    if (i == n)
        return qr_fail(err, QR_E_NOT_FOUND, "no Hugging Face cache: expected one of HF_HUB_CACHE, HF_HOME or HOME to be set, found none");
    *out = qr_path_join(env(places[i].name), places[i].below);
    return *out != NULL ? QR_OK : qr_fail(err, QR_E_MEMORY, "no memory for a path");
}

static int is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static int is_commit(const char *text) { return strlen(text) == COMMIT_LEN && strspn(text, "0123456789abcdefABCDEF") == COMMIT_LEN; }

/* ORG/NAME[@REVISION] of the characters that the Hub allows. Slashes in a revision are real folders below refs/ (refs/pr/1); what must not
 * happen is that any part leads out of the cache. */
static int is_model_id(const char *id)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
    size_t org = strspn(id, plain), name = id[org] == '/' ? strspn(id + org + 1, plain) : 0;
    const char *rest = id + org + 1 + name;
    if (org == 0 || name == 0 || strlen(id) > MAX_NAME || strstr(id, "..") != NULL || id[0] == '.' || id[org + 1] == '.') return 0;
    if (*rest == 0) return 1;
    if (*rest++ != '@' || *rest == 0 || *rest == '/' || *rest == '.') return 0;
    while (*rest == '/' || (*rest != 0 && strchr(plain, *rest) != NULL)) rest++;
    return *rest == 0;
}

/* *dir = the snapshot of an id that is_model_id accepts; E_NOT_FOUND if the cache has none. */
static qr_status find_snapshot(const char *cache, const char *id, char **dir, qr_error *err)
{
    const char *at = strchr(id, '@'), *revision = at != NULL ? at + 1 : "main";
    int id_len = (int) (at != NULL ? (size_t) (at - id) : strlen(id)), org_len = (int) strcspn(id, "/");
    char below[2 * MAX_NAME + 64], *ref = NULL, *commit = NULL, *snapshot = NULL, *config = NULL, *gguf = NULL;
    size_t len;
    qr_status status = QR_OK;
    if (!is_commit(revision)) {
        snprintf(below, sizeof below, "models--%.*s--%.*s/refs/%s", org_len, id, id_len - org_len - 1, id + org_len + 1, revision);
        if ((ref = qr_path_join(cache, below)) == NULL) goto no_memory;
        status = qr_file_read(ref, MAX_NAME, &commit, &len, err);
        if (status == QR_E_NOT_FOUND || status == QR_E_MEMORY || status == QR_E_IO) goto done;
        if (status == QR_OK) commit[strcspn(commit, " \r\n")] = 0;
        if (status != QR_OK || !is_commit(commit)) {
            status = qr_fail(err, QR_E_FORMAT, "%s: expected a commit of %d hex digits", ref, COMMIT_LEN);
            goto done;
        }
        revision = commit;
    }
    snprintf(below, sizeof below, "models--%.*s--%.*s/snapshots/%s", org_len, id, id_len - org_len - 1, id + org_len + 1, revision);
    if ((snapshot = qr_path_join(cache, below)) == NULL || (config = qr_path_join(snapshot, "config.json")) == NULL) goto no_memory;
    if (!qr_file_exists(config)) { /* a repository of GGUF files has none */
        status = qr_gguf_locate(snapshot, &gguf, err);
        if (status == QR_OK && gguf == NULL) status = QR_E_NOT_FOUND;
    }
    if (status == QR_OK) {
        *dir = snapshot;
        snapshot = NULL;
    }
    goto done;
no_memory:
    status = qr_fail(err, QR_E_MEMORY, "%s: no memory for a path", cache);
done:
    if (status == QR_E_NOT_FOUND) qr_fail(err, status, "%s: not in the Hugging Face cache %s; " HOW_TO_GET, id, cache, id_len, id);
    qr_free(gguf);
    qr_free(config);
    qr_free(snapshot);
    qr_free(commit);
    qr_free(ref);
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
    qr_status status = cache_folder(&cache, err);
    if (status != QR_OK) return status;
    do status = find_snapshot(cache, known[i].id, dir, err);
    while ((status == QR_E_NOT_FOUND || status == QR_E_IO) && ++i < N_KNOWN);
    if (status == QR_E_NOT_FOUND)
        qr_fail(err, status, "no model named, and none of Qwen/Qwen3-Reranker-0.6B, -4B and -8B in the Hugging Face cache %s; " HOW_TO_GET,
                cache, (int) strlen(known[0].id), known[0].id);
    qr_free(cache);
    return status;
}

qr_status qr_model_locate(const char *name, char **dir, qr_error *err)
{
    char *cache;
    qr_status status;
    *dir = NULL;
    if (name == NULL && (name = env("QWEN_RERANK_MODEL_ID")) == NULL) {
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
    for (size_t i = 0; i < N_KNOWN; i++)
        if (strcasecmp(name, known[i].short_name) == 0) name = known[i].id;
    if (!is_model_id(name))
        return qr_fail(err, QR_E_NOT_FOUND, "%s: expected a folder, 0.6b, 4b, 8b, " QR_BUILTIN " or a name such as %s, found none of these",
                       name, known[0].id);
    status = cache_folder(&cache, err);
    if (status != QR_OK) return status;
    status = find_snapshot(cache, name, dir, err);
    qr_free(cache);
    return status;
}
