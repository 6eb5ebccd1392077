/* Read-only files: mapped whole (weights) or read whole (configuration). Input is hostile: sizes are bounded by the caller. */
#ifndef QR_BASE_FILE_H
#define QR_BASE_FILE_H

#include "base/error.h"

typedef struct qr_file {
    const unsigned char *data; /* mapped read-only; NULL if the file is empty */
    size_t size;               /* bytes */
    int borrowed;              /* 1: memory that lives longer than any user of it (part of the program itself); never unmapped */
} qr_file;

/* Maps a regular file. E_NOT_FOUND, E_IO (with the system's reason). Close with qr_file_close. */
qr_status qr_file_open(qr_file *file, const char *path, qr_error *err);
void qr_file_close(qr_file *file);
/* Tells the system that the pages of [offset, offset + size) are not needed soon: they leave this process's memory and are read again
 * from the file if touched. Used after weights have been packed. */
void qr_file_release(const qr_file *file, size_t offset, size_t size);

/* Reads a file whole into a NUL-terminated block that the caller frees with qr_free. More than max_bytes: E_FORMAT. */
qr_status qr_file_read(const char *path, size_t max_bytes, char **text, size_t *len, qr_error *err);
/* 1 if a regular file of that name exists. */
int qr_file_exists(const char *path);
/* "dir/name" in a new block (qr_free), NULL when out of memory. */
char *qr_path_join(const char *dir, const char *name);

#endif
