/* See output.h. */
#define _GNU_SOURCE
#include "base/output.h"

#include "base/file.h"
#include "base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static qr_status fail_errno(const char *path, const char *what, qr_error *err)
{
    return qr_fail(err, QR_E_IO, "%s: cannot %s: %s", path, what, strerror(errno));
}

/* Names beside `path`, trailing slashes left out; the temporary one is for mkstemp. */
static qr_status take_names(qr_output *out, const char *path, qr_error *err)
{
    static const char suffix[] = ".part-XXXXXX";
    struct stat st;
    *out = (qr_output){.fd = -1};
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    out->path = qr_strndup(path, n);
    out->temporary = qr_calloc(n + sizeof suffix, 1);
    if (out->path == NULL || out->temporary == NULL) return qr_fail(err, QR_E_MEMORY, "%s: no memory for a path", path);
    memcpy(out->temporary, path, n);
    memcpy(out->temporary + n, suffix, sizeof suffix);
    if (n == 0 || lstat(out->path, &st) == 0)
        return qr_fail(err, QR_E_ARG, "%s: expected a name that is free, found %s", path, n == 0 ? "none" : "one that exists");
    return QR_OK;
}

/* mkstemp and mkdtemp make things that only the owner can read; what a user makes follows the umask. */
static mode_t usual_mode(mode_t all)
{
    mode_t mask = umask(022);
    umask(mask);
    return all & ~mask;
}

qr_status qr_output_open(qr_output *out, const char *path, qr_error *err)
{
    qr_status status = take_names(out, path, err);
    if (status != QR_OK) return status;
    out->fd = mkstemp(out->temporary);
    if (out->fd < 0) return fail_errno(out->temporary, "create", err);
    out->open = 1;
    return fcntl(out->fd, F_SETFD, FD_CLOEXEC) < 0 || fchmod(out->fd, usual_mode(0666)) < 0 ? fail_errno(out->temporary, "set up", err)
                                                                                            : QR_OK;
}

qr_status qr_output_at(qr_output *out, uint64_t offset, const void *data, size_t n, qr_error *err)
{
    const char *from = data;
    while (n > 0) {
        ssize_t done = pwrite(out->fd, from, n < (1U << 30) ? n : 1U << 30, (off_t) offset);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return fail_errno(out->path, "write", err);
        from += done;
        offset += (uint64_t) done;
        n -= (size_t) done;
    }
    return QR_OK;
}

/* The new name of a file is in its folder, which has to reach the disk as well. Not all file systems let a folder be opened for that. */
static void sync_folder_of(const char *path)
{
    char *dir = qr_strndup(path, strlen(path)), *slash = dir != NULL ? strrchr(dir, '/') : NULL;
    if (slash != NULL) slash[slash == dir ? 1 : 0] = 0;
    int fd = open(slash != NULL ? dir : ".", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        (void) fsync(fd);
        close(fd);
    }
    qr_free(dir);
}

qr_status qr_output_commit(qr_output *out, qr_error *err)
{
    if (out->temporary == NULL || out->path == NULL) return qr_fail(err, QR_E_ARG, "a file that was not opened cannot be completed");
    if (fsync(out->fd) < 0) return fail_errno(out->path, "write", err);
    /* link, unlike rename, leaves alone what came to that name meanwhile; not every file system has it */
    if (link(out->temporary, out->path) < 0) {
        if (errno == EEXIST) return fail_errno(out->path, "create", err);
        if (rename(out->temporary, out->path) < 0) return fail_errno(out->path, "create", err);
    } else {
        unlink(out->temporary);
    }
    sync_folder_of(out->path);
    close(out->fd);
    out->open = 0;
    return QR_OK;
}

void qr_output_close(qr_output *out)
{
    if (out->open) {
        close(out->fd);
        unlink(out->temporary);
    }
    qr_free(out->path);
    qr_free(out->temporary);
    *out = (qr_output){.fd = -1};
}

qr_status qr_output_open_folder(qr_output *out, const char *path, qr_error *err)
{
    qr_status status = take_names(out, path, err);
    if (status != QR_OK) return status;
    if (mkdtemp(out->temporary) == NULL) return fail_errno(out->temporary, "create", err);
    out->open = 1;
    return chmod(out->temporary, usual_mode(0777)) < 0 ? fail_errno(out->temporary, "set up", err) : QR_OK;
}

qr_status qr_output_commit_folder(qr_output *out, qr_error *err)
{
    if (rename(out->temporary, out->path) < 0) return fail_errno(out->path, "create", err);
    sync_folder_of(out->path);
    out->open = 0;
    return QR_OK;
}

void qr_output_close_folder(qr_output *out)
{
    DIR *dir = out->open ? opendir(out->temporary) : NULL;
    if (dir != NULL) {
        for (const struct dirent *entry; (entry = readdir(dir)) != NULL;)
            if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) unlinkat(dirfd(dir), entry->d_name, 0);
        closedir(dir);
        rmdir(out->temporary);
    }
    qr_free(out->path);
    qr_free(out->temporary);
    *out = (qr_output){.fd = -1};
}

qr_status qr_make_folders(const char *path, qr_error *err)
{
    char *copy = qr_strndup(path, strlen(path));
    if (copy == NULL) return qr_fail(err, QR_E_MEMORY, "%s: no memory for a path", path);
    qr_status status = QR_OK;
    for (char *p = copy + 1; status == QR_OK && (p = strchr(p, '/')) != NULL; p++) {
        *p = 0;
        if (mkdir(copy, 0777) != 0 && errno != EEXIST) status = fail_errno(copy, "make this folder", err);
        *p = '/';
    }
    qr_free(copy);
    return status;
}

qr_status qr_output_file(const char *dir, const char *name, const void *data, size_t n, qr_error *err)
{
    qr_output out = {.fd = -1};
    char *path = qr_path_join(dir, name);
    qr_status status = path != NULL ? qr_output_open(&out, path, err) : qr_fail(err, QR_E_MEMORY, "%s: no memory for a path", name);
    if (status == QR_OK) status = qr_output_at(&out, 0, data, n, err);
    if (status == QR_OK) status = qr_output_commit(&out, err);
    qr_output_close(&out);
    qr_free(path);
    return status;
}
