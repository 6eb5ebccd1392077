/* Files that appear whole or not at all: written beside their place under another name, then renamed. */
#ifndef QR_BASE_OUTPUT_H
#define QR_BASE_OUTPUT_H

#include "base/error.h"

#include <stdint.h>

typedef struct qr_output { /* all zero is closed */
    char *path, *temporary;
    int fd, open;
} qr_output;

/* E_ARG if `path` exists already. End with qr_output_close in all cases. */
qr_status qr_output_open(qr_output *out, const char *path, qr_error *err);
/* Bytes at an offset; what lies between is zeros. */
qr_status qr_output_at(qr_output *out, uint64_t offset, const void *data, size_t n, qr_error *err);
/* On the disk, and under its name. */
qr_status qr_output_commit(qr_output *out, qr_error *err);
/* Without commit before, nothing remains. */
void qr_output_close(qr_output *out);

/* The same for a folder: files are written into out->temporary. */
qr_status qr_output_open_folder(qr_output *out, const char *path, qr_error *err);
qr_status qr_output_commit_folder(qr_output *out, qr_error *err);
/* Removes the plain files in the folder, then it. */
void qr_output_close_folder(qr_output *out);

/* Makes the folders on the way to a file that are missing. */
qr_status qr_make_folders(const char *path, qr_error *err);
/* A small file, whole. */
qr_status qr_output_file(const char *dir, const char *name, const void *data, size_t n, qr_error *err);

#endif
