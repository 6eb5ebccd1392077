/* See checkpoint.h. */
#include "model/checkpoint.h"

#include "base/json_in.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

static int by_name(const void *a, const void *b) { return strcmp(((const qr_tensor *) a)->name, ((const qr_tensor *) b)->name); }

qr_status qr_checkpoint_sort(qr_checkpoint *ckpt, qr_error *err)
{
    if (ckpt->n_tensors > 1) qsort(ckpt->tensors, ckpt->n_tensors, sizeof *ckpt->tensors, by_name);
    for (size_t i = 1; i < ckpt->n_tensors; i++) {
        const qr_tensor *a = &ckpt->tensors[i - 1], *b = &ckpt->tensors[i];
        if (strcmp(a->name, b->name) == 0)
            return qr_fail(err, QR_E_FORMAT, "tensor \"%s\": expected once, found in %s and in %s", qr_label_of(a->name).text,
                           ckpt->shards[a->shard].path, ckpt->shards[b->shard].path);
    }
    return QR_OK;
}

void qr_checkpoint_close(qr_checkpoint *ckpt)
{
    if (ckpt == NULL) return;
    for (size_t i = 0; i < ckpt->n_shards; i++) {
        qr_file_close(&ckpt->shards[i].file);
        qr_free(ckpt->shards[i].names);
        qr_free(ckpt->shards[i].path);
    }
    qr_free(ckpt->shards);
    qr_free(ckpt->tensors);
    *ckpt = (qr_checkpoint){0};
}

const qr_tensor *qr_checkpoint_find(const qr_checkpoint *ckpt, const char *name)
{
    if (ckpt->n_tensors == 0) return NULL;
    return bsearch(&(qr_tensor){.name = name}, ckpt->tensors, ckpt->n_tensors, sizeof *ckpt->tensors, by_name);
}

void qr_checkpoint_release(const qr_checkpoint *ckpt, const qr_tensor *tensor)
{
    if (tensor->shard < 0) return;
    const qr_file *file = &ckpt->shards[tensor->shard].file;
    qr_file_release(file, (size_t) (tensor->data - file->data), tensor->n_bytes);
}
