/* What trying a model in f32 found (int8.h), kept in a file for the next start, which then only runs the 8 bits. The file is named and
 * checked by a key: the model's files by their numbers, sizes and dates, the prompts, the kernels and this program's version. Nothing
 * depends on it: one that is missing, old or damaged is made again. */
#ifndef QR_CPU_INT8_FILE_H
#define QR_CPU_INT8_FILE_H

#include "cpu/int8.h"
#include "engine/backend.h"

/* A folder has at most as many of them; those used least recently go. One takes 0.8 MB for the 0.6B model, 3.5 MB for 8B. */
enum { QR_INT8_FILES = 16 };

typedef struct qr_int8_file {
    char *path; /* NULL: nothing is kept */
    unsigned char key[32];
} qr_int8_file;

/* For cfg's model and prompts, in cfg->cache_dir. Nothing is kept without a folder, or of a model that is in no file. */
void qr_int8_file_name(qr_int8_file *file, const qr_backend_cfg *cfg);
void qr_int8_file_free(qr_int8_file *file);
/* Fills in the plan and margins [n]; returns 0, and leaves both alone, if there is no file that fits. */
int qr_int8_file_load(const qr_int8_file *file, qr_int8_plan *plan, double *margins, size_t n);
/* Replaces the file, and makes its folder. OK if nothing is kept. */
qr_status qr_int8_file_save(const qr_int8_file *file, const qr_int8_plan *plan, const double *margins, size_t n, qr_error *err);

#endif
