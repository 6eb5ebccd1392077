/* See pull.h. The list of files comes first, with sizes and hashes; then each file that is wanted becomes a blob, the snapshot gets a link
 * to it, and the name of the revision is written last, so that whoever finds it finds all of it. */
#define _GNU_SOURCE
#include "hub/pull.h"

#include "base/file.h"
#include "base/json_in.h"
#include "base/mem.h"
#include "base/output.h"
#include "base/system.h"
#include "hub/blob.h"
#include "model/gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { MAX_LIST = 16 << 20, MAX_FILES = 20000, MAX_PAGES = 400 };

typedef struct pull {
    const qr_hf_id *id;
    const qr_pull_options *options;
    qr_hub hub;
    qr_fetch *fetch;
    char *cache;
    char commit[QR_HF_COMMIT_LEN + 1];
    qr_hub_file *files; /* [n] */
    size_t n, capacity;
    const char *current;
    uint64_t total;
    size_t n_wanted;
    _Atomic uint64_t done, kept;
} pull;

/* ---- the list of files ---------------------------------------------------------------------------------------------------------- */

static qr_status find_commit(pull *p, qr_error *err)
{
    char url[4096];
    qr_buf text = {0};
    json_t *root = NULL;
    snprintf(url, sizeof url, "%s/api/models/%s/revision/", p->hub.endpoint, p->id->repo);
    for (const char *c = p->id->revision; *c != 0; c++) strcat(url, *c == '/' ? "%2F" : (char[]){*c, 0});
    qr_status status = qr_fetch_text(p->fetch, url, MAX_LIST, &text, NULL, err);
    if (status == QR_OK) status = qr_json_parse(&root, text.data != NULL ? text.data : "", text.n, url, err);
    const char *sha = json_string_value(json_object_get(root, "sha"));
    if (status == QR_OK && (sha == NULL || !qr_hf_is_commit(sha)))
        status = qr_fail(err, QR_E_FORMAT, "%s: sha: expected a commit of %d hex digits, found %s", url, QR_HF_COMMIT_LEN,
                         qr_json_label(json_object_get(root, "sha")).text);
    if (status == QR_OK) snprintf(p->commit, sizeof p->commit, "%s", sha);
    json_decref(root);
    qr_buf_deinit(&text);
    return status;
}

static int is_hash(const char *text, size_t digits)
{
    return text != NULL && strlen(text) == digits && strspn(text, "0123456789abcdef") == digits;
}

static qr_status add_file(pull *p, const json_t *entry, const char *url, qr_error *err)
{
    enum { SHA1 = 40, SHA256 = 64 };
    const char *type = json_string_value(json_object_get(entry, "type")), *path = json_string_value(json_object_get(entry, "path"));
    const json_t *size = json_object_get(entry, "size"), *lfs = json_object_get(entry, "lfs");
    if (type == NULL || strcmp(type, "file") != 0) return QR_OK;
    if (path == NULL || !qr_hf_is_path(path))
        return qr_fail(err, QR_E_FORMAT, "%s: path: expected one within the repository, found %s", url,
                       qr_json_label(json_object_get(entry, "path")).text);
    const char *hash = json_string_value(json_is_object(lfs) ? json_object_get(lfs, "oid") : json_object_get(entry, "oid"));
    if (!is_hash(hash, json_is_object(lfs) ? SHA256 : SHA1) || !json_is_integer(size) || json_integer_value(size) < 0)
        return qr_fail(err, QR_E_FORMAT, "%s: \"%s\": expected a size and a hash, found %s and %s", url, qr_label_of(path).text,
                       qr_json_label(size).text, hash != NULL ? qr_label_of(hash).text : "nothing");
    if (p->n == MAX_FILES) return qr_fail(err, QR_E_FORMAT, "%s: expected at most %d files", url, MAX_FILES);
    qr_hub_file *grown = qr_grow(p->files, &p->capacity, p->n + 1, sizeof *grown);
    if (grown == NULL) return qr_fail(err, QR_E_MEMORY, "%s: no memory for a list of files", url);
    p->files = grown;
    qr_hub_file *file = &p->files[p->n++];
    *file = (qr_hub_file){.size = (uint64_t) json_integer_value(size), .is_large = json_is_object(lfs)};
    snprintf(file->path, sizeof file->path, "%s", path);
    snprintf(file->hash, sizeof file->hash, "%s", hash);
    return QR_OK;
}

/* The answer is a list; qr_json_parse takes objects only. */
static qr_status add_page(pull *p, const qr_buf *text, const char *url, qr_error *err)
{
    json_t *list = NULL;
    int replaced = 0;
    qr_status status = qr_json_parse_text(&list, text->data != NULL ? text->data : "", text->n, &replaced, err);
    if (status != QR_OK) return qr_fail_prefix(err, status, "%s", url);
    if (!json_is_array(list)) status = qr_fail(err, QR_E_FORMAT, "%s: expected a list of files, found %s", url, qr_json_label(list).text);
    for (size_t i = 0; status == QR_OK && i < json_array_size(list); i++) status = add_file(p, json_array_get(list, i), url, err);
    json_decref(list);
    return status;
}

static qr_status list_files(pull *p, qr_error *err)
{
    char url[2048], next[2048];
    qr_status status = QR_OK;
    snprintf(url, sizeof url, "%s/api/models/%s/tree/%s?recursive=true&expand=false", p->hub.endpoint, p->id->repo, p->commit);
    for (int page = 0; status == QR_OK && url[0] != 0; page++) {
        qr_buf text = {0};
        if (page == MAX_PAGES) return qr_fail(err, QR_E_FORMAT, "%s: expected at most %d pages of files", url, MAX_PAGES);
        status = qr_fetch_text(p->fetch, url, MAX_LIST, &text, next, err);
        if (status == QR_OK) status = add_page(p, &text, url, err);
        qr_buf_deinit(&text);
        /* Mirrors pass on the Hub's own address: what counts is the path, on the host that we asked. */
        const char *host = strstr(next, "://"), *path = host != NULL ? strchr(host + 3, '/') : NULL;
        snprintf(url, sizeof url, "%s", next);
        if (path != NULL && !qr_hub_same_host(next, p->hub.endpoint)) snprintf(url, sizeof url, "%.200s%.1800s", p->hub.endpoint, path);
    }
    return status;
}

/* ---- room ----------------------------------------------------------------------------------------------------------------------- */

static qr_status check_room(pull *p, qr_error *err)
{
    struct statvfs fs;
    uint64_t need = 0, kept = 0;
    for (size_t i = 0; i < p->n; i++) {
        if (!p->files[i].wanted) continue;
        p->n_wanted++;
        kept += qr_blob_kept(p->cache, p->id, &p->files[i]);
        if (__builtin_add_overflow(p->total, p->files[i].size, &p->total))
            return qr_fail(err, QR_E_FORMAT, "%s: the sizes of its files overflow 64 bits", p->id->repo);
    }
    need = p->total - (kept < p->total ? kept : p->total);
    char *inside = qr_path_join(p->cache, "x");
    qr_status status = inside == NULL ? qr_fail(err, QR_E_MEMORY, "%s: no memory for a path", p->cache) : qr_make_folders(inside, err);
    qr_free(inside);
    if (status != QR_OK || statvfs(p->cache, &fs) != 0) return status;
    uint64_t left = (uint64_t) fs.f_bavail * fs.f_frsize;
    if (need <= left) return QR_OK;
    return qr_fail(err, QR_E_IO, "%s: %s needs %.1f GB, %.1f GB are free; HF_HUB_CACHE names another folder", p->cache, p->id->repo,
                   (double) need / 1e9, (double) left / 1e9);
}

/* ---- the snapshot --------------------------------------------------------------------------------------------------------------- */

/* A link from the snapshot to the blob; it appears whole, and replaces one that leads elsewhere. */
static qr_status link_file(const pull *p, const qr_hub_file *file, qr_error *err)
{
    char target[3 * QR_HF_MAX_NAME] = "../../", there[3 * QR_HF_MAX_NAME];
    for (const char *c = file->path; *c != 0; c++)
        if (*c == '/') strcat(target, "../");
    snprintf(target + strlen(target), sizeof target - strlen(target), "blobs/%s", file->hash);
    char *path = qr_hf_path(p->cache, p->id, "snapshots/%s/%s", p->commit, file->path);
    char *temporary = qr_hf_path(p->cache, p->id, "snapshots/%s/%s.qwen-rerank.%ld", p->commit, file->path, (long) getpid());
    if (path == NULL || temporary == NULL) {
        qr_free(temporary);
        qr_free(path);
        return qr_fail(err, QR_E_MEMORY, "%s: no memory for a path", file->path);
    }
    qr_status status = qr_make_folders(path, err);
    ssize_t n = status == QR_OK ? readlink(path, there, sizeof there - 1) : -1;
    int same = n >= 0 && (size_t) n == strlen(target) && memcmp(there, target, (size_t) n) == 0;
    if (status == QR_OK && !same) {
        unlink(temporary);
        if (symlink(target, temporary) != 0 || rename(temporary, path) != 0)
            status = qr_fail(err, QR_E_IO, "%s: cannot link to its content: %s", path, strerror(errno));
    }
    qr_free(temporary);
    qr_free(path);
    return status;
}

static qr_status write_ref(const pull *p, qr_error *err)
{
    if (qr_hf_is_commit(p->id->revision)) return QR_OK;
    char *path = qr_hf_path(p->cache, p->id, "refs/%s", p->id->revision);
    char *temporary = qr_hf_path(p->cache, p->id, "refs/%s.qwen-rerank.%ld", p->id->revision, (long) getpid());
    if (path == NULL || temporary == NULL) {
        qr_free(temporary);
        qr_free(path);
        return qr_fail(err, QR_E_MEMORY, "%s: no memory for a path", p->id->repo);
    }
    qr_status status = qr_make_folders(path, err);
    if (status == QR_OK) {
        int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
        ssize_t wrote = fd >= 0 ? write(fd, p->commit, QR_HF_COMMIT_LEN) : -1;
        int good = wrote == QR_HF_COMMIT_LEN && fsync(fd) == 0;
        if (fd >= 0) close(fd);
        if (!good || rename(temporary, path) != 0) status = qr_fail(err, QR_E_IO, "%s: cannot write: %s", path, strerror(errno));
    }
    qr_free(temporary);
    qr_free(path);
    return status;
}

/* ---- all of it ------------------------------------------------------------------------------------------------------------------ */

static void tick(void *arg)
{
    const pull *p = arg;
    if (p->options->progress == NULL) return;
    qr_pull_progress progress = {
        .total = p->total, .done = atomic_load(&p->done), .kept = atomic_load(&p->kept), .n_files = p->n_wanted, .file = p->current};
    p->options->progress(p->options->arg, &progress);
}

static qr_status fetch_files(pull *p, qr_error *err)
{
    qr_status status = QR_OK;
    for (size_t i = 0; status == QR_OK && i < p->n; i++) {
        const qr_hub_file *file = &p->files[i];
        qr_buf url = {0};
        if (!file->wanted) continue;
        qr_buf_printf(&url, "%s/%s/resolve/%s/", p->hub.endpoint, p->id->repo, p->commit);
        for (const char *c = file->path; *c != 0; c++) {
            static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~/";
            if (strchr(plain, *c) != NULL) qr_buf_add(&url, c, 1);
            else qr_buf_printf(&url, "%%%02X", (unsigned char) *c);
        }
        qr_buf_add(&url, "", 1);
        if (url.failed) status = qr_fail(err, QR_E_MEMORY, "%s: no memory for an address", file->path);
        p->current = file->path;
        qr_blob blob = {.hub = &p->hub,
                        .cache = p->cache,
                        .id = p->id,
                        .file = file,
                        .url = url.data,
                        .done = &p->done,
                        .kept = &p->kept,
                        .tick = tick,
                        .arg = p};
        if (status == QR_OK) status = qr_blob_fetch(&blob, err);
        if (status == QR_OK) status = link_file(p, file, err);
        qr_buf_deinit(&url);
    }
    p->current = NULL;
    tick(p);
    return status;
}

static qr_status name_result(const pull *p, char **dir, qr_error *err)
{
    const char *gguf = NULL;
    for (size_t i = 0; i < p->n && gguf == NULL; i++) {
        size_t n = strlen(p->files[i].path);
        if (p->files[i].wanted && n > 5 && strcmp(p->files[i].path + n - 5, ".gguf") == 0) gguf = p->files[i].path;
    }
    *dir = qr_hf_path(p->cache, p->id, gguf != NULL ? "snapshots/%s/%s" : "snapshots/%s", p->commit, gguf);
    return *dir != NULL ? QR_OK : qr_fail(err, QR_E_MEMORY, "%s: no memory for a path", p->id->repo);
}

qr_status qr_pull(const qr_hf_id *id, const qr_pull_options *options, char **dir, qr_error *err)
{
    pull p = {.id = id, .options = options};
    *dir = NULL;
    qr_status status = qr_hub_open(&p.hub, options->cancel, err);
    if (status == QR_OK) status = qr_hf_cache_folder(&p.cache, err);
    if (status == QR_OK) status = qr_fetch_open(&p.fetch, &p.hub, err);
    if (status == QR_OK) status = find_commit(&p, err);
    if (status == QR_OK) status = list_files(&p, err);
    if (status == QR_OK) {
        status = qr_hub_choose(p.files, p.n, options->quantization, options->file, err);
        if (status != QR_OK) qr_fail_prefix(err, status, "%s", id->repo);
    }
    if (status == QR_OK) status = check_room(&p, err);
    if (status == QR_OK) status = fetch_files(&p, err);
    if (status == QR_OK) status = write_ref(&p, err);
    if (status == QR_OK) status = name_result(&p, dir, err);
    qr_fetch_close(p.fetch);
    qr_hub_close(&p.hub);
    qr_free(p.files);
    qr_free(p.cache);
    return status;
}
