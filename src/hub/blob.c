/* See blob.h. Beside the blob's name stand, while it is fetched, NAME.qwen-rerank.part of the full size and NAME.qwen-rerank.parts, the
 * journal. A part is in the journal only after it is on the disk. Python's own *.incomplete files are never touched. */
#define _GNU_SOURCE
#include "hub/blob.h"

#include "base/file.h"
#include "base/mem.h"
#include "base/output.h"
#include "base/system.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static const uint64_t MIN_PART = (uint64_t) 1 << 20, MAX_PART = (uint64_t) 64 << 20;
enum { PARTS_AIMED_AT = 64 };

static uint64_t part_bytes_of(uint64_t size)
{
    uint64_t part = (size / PARTS_AIMED_AT + MIN_PART - 1) / MIN_PART * MIN_PART;
    return part < MIN_PART ? MIN_PART : part > MAX_PART ? MAX_PART : part;
}

static qr_status fail_io(qr_error *err, const char *path, const char *what)
{
    return qr_fail(err, QR_E_IO, "%s: cannot %s: %s", path, what, strerror(errno));
}

char *qr_blob_path(const char *cache, const qr_hf_id *id, const qr_hub_file *file) { return qr_hf_path(cache, id, "blobs/%s", file->hash); }

/* ---- the journal ---------------------------------------------------------------------------------------------------------------- */

size_t qr_blob_read_journal(const char *text, size_t len, uint64_t size, uint64_t part_bytes, unsigned char *have, size_t n_parts)
{
    char first[96];
    size_t n_have = 0;
    int n = snprintf(first, sizeof first, "qwen-rerank 1 %llu %llu\n", (unsigned long long) size, (unsigned long long) part_bytes);
    memset(have, 0, n_parts);
    if (len < (size_t) n || memcmp(text, first, (size_t) n) != 0) return 0;
    for (size_t at = (size_t) n; at < len;) {
        uint64_t part = 0;
        size_t digits = 0;
        for (; at < len && text[at] >= '0' && text[at] <= '9' && digits < 12; at++, digits++)
            part = part * 10 + (uint64_t) (text[at] - '0');
        if (digits == 0 || at == len || text[at] != '\n' || part >= n_parts) break; /* a line that a crash cut short ends it */
        at++;
        n_have += !have[part];
        have[part] = 1;
    }
    return n_have;
}

typedef struct parts {
    char *blob, *data_path, *journal_path;
    int data, journal;
    uint64_t size, part_bytes;
    size_t n;
    unsigned char *have; /* [n] */
} parts;

static qr_status name_parts(parts *p, const char *cache, const qr_hf_id *id, const qr_hub_file *file, qr_error *err)
{
    *p = (parts){.data = -1, .journal = -1, .size = file->size, .part_bytes = part_bytes_of(file->size)};
    p->n = (size_t) ((p->size + p->part_bytes - 1) / p->part_bytes);
    p->blob = qr_blob_path(cache, id, file);
    p->data_path = qr_hf_path(cache, id, "blobs/%s.qwen-rerank.part", file->hash);
    p->journal_path = qr_hf_path(cache, id, "blobs/%s.qwen-rerank.parts", file->hash);
    p->have = qr_calloc(p->n, 1);
    return p->blob && p->data_path && p->journal_path && p->have ? QR_OK
                                                                 : qr_fail(err, QR_E_MEMORY, "%s: no memory for a download", file->path);
}

static void drop_parts(parts *p)
{
    if (p->data >= 0) close(p->data);
    if (p->journal >= 0) close(p->journal);
    qr_free(p->blob);
    qr_free(p->data_path);
    qr_free(p->journal_path);
    qr_free(p->have);
}

static size_t read_journal(parts *p)
{
    char *text = NULL;
    size_t len = 0, n = 0;
    struct stat st;
    if (stat(p->data_path, &st) == 0 && (uint64_t) st.st_size == p->size &&
        qr_file_read(p->journal_path, 1 << 20, &text, &len, NULL) == QR_OK)
        n = qr_blob_read_journal(text, len, p->size, p->part_bytes, p->have, p->n);
    qr_free(text);
    return n;
}

static uint64_t part_size(const parts *p, size_t i) { return i + 1 < p->n ? p->part_bytes : p->size - p->part_bytes * (p->n - 1); }

static uint64_t bytes_there(const parts *p)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < p->n; i++) bytes += p->have[i] ? part_size(p, i) : 0;
    return bytes;
}

uint64_t qr_blob_kept(const char *cache, const qr_hf_id *id, const qr_hub_file *file)
{
    parts p;
    struct stat st;
    uint64_t kept = 0;
    if (name_parts(&p, cache, id, file, NULL) == QR_OK) {
        if (stat(p.blob, &st) == 0 && (uint64_t) st.st_size == file->size) kept = file->size;
        else if (read_journal(&p) > 0) kept = bytes_there(&p);
    }
    drop_parts(&p);
    return kept;
}

/* Both files open, the data file of its full size, and a journal that says what is in it. */
static qr_status open_parts(parts *p, qr_error *err)
{
    int goes_on = read_journal(p) > 0;
    p->data = open(p->data_path, O_RDWR | O_CREAT | O_CLOEXEC | (goes_on ? 0 : O_TRUNC), 0666);
    if (p->data < 0) return fail_io(err, p->data_path, "open");
    p->journal = open(p->journal_path, O_WRONLY | O_CREAT | O_CLOEXEC | O_TRUNC, 0666);
    if (p->journal < 0) return fail_io(err, p->journal_path, "open");
    if (ftruncate(p->data, (off_t) p->size) != 0) return fail_io(err, p->data_path, "make room in");
    dprintf(p->journal, "qwen-rerank 1 %llu %llu\n", (unsigned long long) p->size, (unsigned long long) p->part_bytes);
    for (size_t i = 0; i < p->n; i++) /* anew: a crash may have cut its last line */
        if (p->have[i]) dprintf(p->journal, "%zu\n", i);
    return QR_OK;
}

/* ---- fetching ------------------------------------------------------------------------------------------------------------------- */

/* Shared by the connections of one blob. */
typedef struct work {
    const qr_blob *blob;
    parts *parts;
    pthread_mutex_t lock;
    size_t next, n_running; /* under the lock, like the rest */
    qr_status status;       /* of the first that failed */
    qr_error error;
} work;

/* A connection's part. */
typedef struct part {
    work *work;
    uint64_t first, at; /* of the file */
    qr_error *err;
} part;

static void begin_part(void *arg, uint64_t *first)
{
    const part *p = arg;
    *first = p->at; /* what is written stays written: a try goes on where the last one ended */
}

static int write_part(void *arg, const char *data, size_t n)
{
    part *p = arg;
    for (size_t done = 0; done < n;) {
        ssize_t wrote = pwrite(p->work->parts->data, data + done, n - done, (off_t) (p->at + done));
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) {
            fail_io(p->err, p->work->parts->data_path, "write");
            return 1;
        }
        done += (size_t) wrote;
    }
    p->at += n;
    atomic_fetch_add(p->work->blob->done, n);
    return 0;
}

static size_t take_part(work *w)
{
    pthread_mutex_lock(&w->lock);
    while (w->next < w->parts->n && w->parts->have[w->next]) w->next++;
    size_t i = w->status == QR_OK && w->next < w->parts->n ? w->next++ : w->parts->n;
    pthread_mutex_unlock(&w->lock);
    return i;
}

static void end_part(work *w, size_t i, qr_status status, const qr_error *err)
{
    pthread_mutex_lock(&w->lock);
    if (status == QR_OK) {
        w->parts->have[i] = 1;
        dprintf(w->parts->journal, "%zu\n", i);
    } else if (w->status == QR_OK) {
        w->status = status;
        w->error = *err;
    }
    pthread_mutex_unlock(&w->lock);
}

static void *fetch_parts(void *arg)
{
    work *w = arg;
    const qr_blob *blob = w->blob;
    qr_fetch *fetch = NULL;
    qr_error err = {0};
    qr_status status = qr_fetch_open(&fetch, blob->hub, &err);
    if (status != QR_OK) end_part(w, 0, status, &err);
    for (size_t i; status == QR_OK && (i = take_part(w)) < w->parts->n;) {
        uint64_t first = i * w->parts->part_bytes, last = first + part_size(w->parts, i) - 1;
        part p = {.work = w, .first = first, .at = first, .err = &err};
        qr_fetch_job job = {
            .url = blob->url, .last = last, .max_bytes = w->parts->size, .begin = begin_part, .sink = write_part, .arg = &p};
        /* A single byte range of a file of one byte would have last 0, which means all of it. */
        status = qr_fetch_run(fetch, &job, &err);
        if (status == QR_OK && job.answer.linked_etag[0] != 0 && blob->file->is_large &&
            strcmp(job.answer.linked_etag, blob->file->hash) != 0)
            status = qr_fail(&err, QR_E_IO, "%s: changed on the server meanwhile; pull again", blob->file->path);
        if (status == QR_OK && job.answer.total > 0 && job.answer.total != w->parts->size)
            status = qr_fail(&err, QR_E_FORMAT, "%s: expected %llu bytes as its list says, found %llu", blob->url,
                             (unsigned long long) w->parts->size, (unsigned long long) job.answer.total);
        if (status == QR_OK && fsync(w->parts->data) != 0) status = fail_io(&err, w->parts->data_path, "write");
        if (status != QR_OK) atomic_fetch_sub(blob->done, p.at - first);
        end_part(w, i, status, &err);
    }
    qr_fetch_close(fetch);
    pthread_mutex_lock(&w->lock);
    w->n_running--;
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

static qr_status fetch_all(const qr_blob *blob, parts *p, qr_error *err)
{
    work w = {.blob = blob, .parts = p, .status = QR_OK};
    pthread_t threads[QR_BLOB_CONNECTIONS];
    size_t n = 0;
    pthread_mutex_init(&w.lock, NULL);
    w.n_running = p->n < QR_BLOB_CONNECTIONS ? p->n : QR_BLOB_CONNECTIONS;
    for (size_t want = w.n_running; n < want; n++)
        if (pthread_create(&threads[n], NULL, fetch_parts, &w) != 0) {
            qr_error none;
            end_part(&w, 0, qr_fail(&none, QR_E_MEMORY, "cannot start a thread"), &none);
            pthread_mutex_lock(&w.lock);
            w.n_running -= want - n;
            pthread_mutex_unlock(&w.lock);
            break;
        }
    for (int running = 1; running;) {
        usleep(20000);
        if (blob->tick != NULL) blob->tick(blob->arg);
        pthread_mutex_lock(&w.lock);
        running = w.n_running > 0;
        pthread_mutex_unlock(&w.lock);
    }
    for (size_t i = 0; i < n; i++) pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&w.lock);
    if (w.status != QR_OK && err != NULL) *err = w.error;
    return w.status;
}

/* ---- the hash ------------------------------------------------------------------------------------------------------------------- */

/* sha256 of the content, or git's sha1: of "blob SIZE", a zero byte and the content. */
static qr_status check_hash(const parts *p, const qr_hub_file *file, qr_error *err)
{
    enum { CHUNK = 1 << 20 };
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned len = 0;
    char text[2 * EVP_MAX_MD_SIZE + 1] = "", head[48];
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    unsigned char *chunk = qr_calloc(CHUNK, 1);
    int ok = md != NULL && chunk != NULL && EVP_DigestInit_ex(md, file->is_large ? EVP_sha256() : EVP_sha1(), NULL) == 1;
    int n = snprintf(head, sizeof head, "blob %llu", (unsigned long long) p->size);
    if (ok && !file->is_large) ok = EVP_DigestUpdate(md, head, (size_t) n + 1) == 1;
    uint64_t at = 0;
    while (ok && at < p->size) {
        ssize_t got = pread(p->data, chunk, CHUNK, (off_t) at);
        if (got < 0 && errno == EINTR) continue;
        ok = got > 0 && EVP_DigestUpdate(md, chunk, (size_t) got) == 1;
        at += got > 0 ? (uint64_t) got : 0;
    }
    ok = ok && EVP_DigestFinal_ex(md, digest, &len) == 1;
    EVP_MD_CTX_free(md);
    qr_free(chunk);
    if (!ok) return fail_io(err, p->data_path, "read");
    for (unsigned i = 0; i < len; i++) snprintf(text + 2 * i, 3, "%02x", digest[i]);
    if (strcmp(text, file->hash) == 0) return QR_OK;
    return qr_fail(err, QR_E_FORMAT, "%s: expected the %s %s, found %s: what came is damaged or not this file", file->path,
                   file->is_large ? "sha256" : "git hash", file->hash, text);
}

/* ---- a blob --------------------------------------------------------------------------------------------------------------------- */

static qr_status lock(int *fd, const qr_blob *blob, qr_error *err)
{
    char below[2 * QR_HF_MAX_NAME];
    snprintf(below, sizeof below, ".locks/%s/%s.lock", blob->id->folder, blob->file->hash);
    char *path = qr_path_join(blob->cache, below);
    if (path == NULL) return qr_fail(err, QR_E_MEMORY, "%s: no memory for a path", blob->cache);
    qr_status status = qr_make_folders(path, err);
    if (status == QR_OK && (*fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666)) < 0) status = fail_io(err, path, "open");
    while (status == QR_OK && flock(*fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK && errno != EINTR) status = fail_io(err, path, "lock");
        else if (qr_is_set(blob->hub->cancel)) status = qr_fail(err, QR_E_CANCELLED, "interrupted");
        usleep(50000);
        if (blob->tick != NULL) blob->tick(blob->arg);
    }
    qr_free(path);
    return status;
}

static qr_status fetch_locked(const qr_blob *blob, parts *p, qr_error *err)
{
    struct stat st;
    if (stat(p->blob, &st) == 0 && (uint64_t) st.st_size == p->size) { /* here before, or another pull has just brought it */
        atomic_fetch_add(blob->done, p->size);
        atomic_fetch_add(blob->kept, p->size);
        return QR_OK;
    }
    qr_status status = open_parts(p, err);
    if (status != QR_OK) return status;
    uint64_t there = bytes_there(p);
    atomic_fetch_add(blob->done, there);
    atomic_fetch_add(blob->kept, there);
    if (p->size > 0) status = fetch_all(blob, p, err);
    if (status != QR_OK) return status;
    status = check_hash(p, blob->file, err);
    if (status == QR_E_FORMAT) { /* of no use to anybody */
        unlink(p->data_path);
        unlink(p->journal_path);
        atomic_fetch_sub(blob->done, p->size);
    }
    if (status == QR_OK && fsync(p->data) != 0) status = fail_io(err, p->data_path, "write");
    if (status == QR_OK && rename(p->data_path, p->blob) != 0) status = fail_io(err, p->blob, "rename to");
    if (status == QR_OK) unlink(p->journal_path);
    return status;
}

qr_status qr_blob_fetch(const qr_blob *blob, qr_error *err)
{
    parts p;
    int fd = -1;
    qr_status status = name_parts(&p, blob->cache, blob->id, blob->file, err);
    if (status == QR_OK) status = qr_make_folders(p.blob, err);
    if (status == QR_OK) status = lock(&fd, blob, err);
    if (status == QR_OK) status = fetch_locked(blob, &p, err);
    if (status == QR_E_FORMAT && !qr_is_set(blob->hub->cancel)) { /* once more, from the beginning */
        if (p.data >= 0) close(p.data);
        if (p.journal >= 0) close(p.journal);
        p.data = p.journal = -1;
        memset(p.have, 0, p.n);
        status = fetch_locked(blob, &p, err);
    }
    if (fd >= 0) close(fd);
    drop_parts(&p);
    return status;
}
