/* The tensors of a model's files, whatever their format (safetensors.h, gguf.h). Files are mapped read-only; tensors are borrowed from the
 * map. Knows no tensor names.
 */
#ifndef QR_MODEL_CHECKPOINT_H
#define QR_MODEL_CHECKPOINT_H

#include "base/file.h"
#include "model/tensor.h"

typedef struct qr_checkpoint {
    qr_tensor *tensors; /* [n_tensors], sorted by name */
    size_t n_tensors;
    struct qr_shard {
        char *path;
        char *names; /* of its tensors, one after another */
        qr_file file;
    } * shards; /* [n_shards] */
    size_t n_shards;
} qr_checkpoint;

void qr_checkpoint_close(qr_checkpoint *ckpt);
/* By exact name; NULL if absent. */
const qr_tensor *qr_checkpoint_find(const qr_checkpoint *ckpt, const char *name);
/* The tensor's pages may leave memory, see qr_file_release. */
void qr_checkpoint_release(const qr_checkpoint *ckpt, const qr_tensor *tensor);
/* What every reader of a format ends with: sorts the tensors by name and refuses one that is there twice. */
qr_status qr_checkpoint_sort(qr_checkpoint *ckpt, qr_error *err);

#endif
