/* Reads GGUF, versions 2 and 3, one file or a split set, into a checkpoint whose tensors have the names of safetensors files. Files are
 * mapped, and metadata stay where they are: a key is a place in the map, known to be whole. */
#ifndef QR_MODEL_GGUF_H
#define QR_MODEL_GGUF_H

#include "model/checkpoint.h"

typedef enum qr_gguf_type { /* as stored */
                            QR_GGUF_U8,
                            QR_GGUF_I8,
                            QR_GGUF_U16,
                            QR_GGUF_I16,
                            QR_GGUF_U32,
                            QR_GGUF_I32,
                            QR_GGUF_F32,
                            QR_GGUF_BOOL,
                            QR_GGUF_STRING,
                            QR_GGUF_ARRAY,
                            QR_GGUF_U64,
                            QR_GGUF_I64,
                            QR_GGUF_F64,
                            QR_GGUF_N_TYPES
} qr_gguf_type;

typedef struct qr_gguf_key {
    qr_text name;
    qr_gguf_type type, element; /* element: of an array */
    size_t n;                   /* elements of an array, bytes of a string, else 1 */
    const unsigned char *data;  /* the value, the first element, or a string's bytes */
    const unsigned char *end;   /* of the value */
} qr_gguf_key;

typedef struct qr_gguf {
    qr_gguf_key *keys; /* [n_keys] of the first file, sorted by name */
    size_t n_keys;
    unsigned version;
} qr_gguf;

/* path: the file, or the first of a split set. Both outputs are the caller's to close; on failure they are empty. The metadata lie in the
 * files of the checkpoint, and last as long as it does. */
qr_status qr_gguf_open(qr_gguf *gguf, qr_checkpoint *ckpt, const char *path, qr_error *err);
void qr_gguf_close(qr_gguf *gguf);
/* *path = the GGUF file that `model` means, in a new block: itself, if its name ends in ".gguf"; the only one, or the first of the only
 * split set, of a folder without safetensors. NULL where it means something else. Several in a folder are E_INPUT. */
qr_status qr_gguf_locate(const char *model, char **path, qr_error *err);

/* NULL if there is no such key. */
const qr_gguf_key *qr_gguf_find(const qr_gguf *gguf, const char *name);
/* A whole number of any integer type, not negative; 0 if it is something else. */
int qr_gguf_uint(const qr_gguf_key *key, uint64_t *out);
int qr_gguf_real(const qr_gguf_key *key, double *out);
/* A string; the empty one if it is something else, or NULL. */
qr_text qr_gguf_string(const qr_gguf_key *key);
int qr_gguf_is(const qr_gguf_key *key, const char *text);
/* Walks an array of strings: *at starts as its data. */
qr_text qr_gguf_next_string(const unsigned char **at);

#endif
