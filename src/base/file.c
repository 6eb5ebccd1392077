/* Files, see file.h. A mapped file that somebody truncates while it is in use raises SIGBUS, as with every program that maps its
 * weights; models are not edited in place, and the alternative, a private copy, doubles the load time and memory. */
#define _GNU_SOURCE
#include "base/file.h"

#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static qr_status fail_errno(qr_error *err, const char *path, const char *doing)
{
    int e = errno;
    return qr_fail(err, e == ENOENT || e == ENOTDIR ? QR_E_NOT_FOUND : QR_E_IO, "%s: cannot %s: %s", path, doing, strerror(e));
}

/* Opens and stats; *fd is -1 unless QR_OK. */
static qr_status open_regular(const char *path, int *fd, struct stat *st, qr_error *err)
{
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not block the open */
    if (*fd < 0) return fail_errno(err, path, "open");
    qr_status status = QR_OK;
    if (fstat(*fd, st) != 0) status = fail_errno(err, path, "stat");
    else if (!S_ISREG(st->st_mode))
        status =
            qr_fail(err, QR_E_IO, "%s: expected a regular file, found %s", path, S_ISDIR(st->st_mode) ? "a directory" : "a special file");
    if (status != QR_OK) {
        close(*fd);
        *fd = -1;
    }
    return status;
}

qr_status qr_file_open(qr_file *file, const char *path, qr_error *err)
{
    int fd;
    struct stat st;
    *file = (qr_file){0};
    qr_status status = open_regular(path, &fd, &st, err);
    if (status != QR_OK) return status;
    if (st.st_size > 0) {
        void *p = mmap(NULL, (size_t) st.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (p == MAP_FAILED) status = fail_errno(err, path, "map");
        else *file = (qr_file){.data = p, .size = (size_t) st.st_size};
    }
    close(fd);
    return status;
}

void qr_file_close(qr_file *file)
{
    if (file->data != NULL && !file->borrowed) munmap((void *) (uintptr_t) file->data, file->size);
    *file = (qr_file){0};
}

void qr_file_release(const qr_file *file, size_t offset, size_t size)
{
    size_t page = (size_t) sysconf(_SC_PAGESIZE);
    size_t begin = (offset + page - 1) / page * page; /* only whole pages inside the range: neighbours may be in use */
    size_t end = (offset + size) / page * page;
    if (file->data != NULL && !file->borrowed && begin < end && end <= file->size)
        madvise((void *) (uintptr_t) (file->data + begin), end - begin, MADV_DONTNEED);
}

qr_status qr_file_read(const char *path, size_t max_bytes, char **text, size_t *len, qr_error *err)
{
    int fd;
    struct stat st;
    *text = NULL;
    *len = 0;
    qr_status status = open_regular(path, &fd, &st, err);
    if (status != QR_OK) return status;
    size_t size = (size_t) st.st_size, got = 0;
    char *block = NULL;
    if (size > max_bytes) {
        status = qr_fail(err, QR_E_FORMAT, "%s: expected at most %zu bytes, found %zu", path, max_bytes, size);
        goto done;
    }
    if ((block = qr_calloc(size + 1, 1)) == NULL) {
        status = qr_fail(err, QR_E_MEMORY, "%s: no memory for %zu bytes", path, size);
        goto done;
    }
    while (got < size) {
        ssize_t n = read(fd, block + got, size - got);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            status = fail_errno(err, path, "read");
            goto done;
        }
        if (n == 0) break; /* shrank meanwhile */
        got += (size_t) n;
    }
    block[got] = 0;
    *text = block;
    *len = got;
    block = NULL;
done:
    qr_free(block);
    close(fd);
    return status;
}

int qr_file_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

char *qr_path_join(const char *dir, const char *name)
{
    size_t n = strlen(dir) + strlen(name) + 2;
    char *path = qr_calloc(n, 1);
    if (path != NULL) snprintf(path, n, "%s%s%s", dir, dir[0] && dir[strlen(dir) - 1] == '/' ? "" : "/", name);
    return path;
}
