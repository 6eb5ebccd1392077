/* Checkpoints in safetensors form: one file, or shards with an index. Files are mapped read-only; tensors are borrowed from the map.
 * The header is hostile input: every length, offset, shape and type is checked before anything uses it.
 */
#ifndef QR_MODEL_SAFETENSORS_H
#define QR_MODEL_SAFETENSORS_H

#include "model/checkpoint.h"

/* Opens model.safetensors.index.json with its shards if it exists in `dir`, else model.safetensors. */
qr_status qr_checkpoint_open(qr_checkpoint *ckpt, const char *dir, qr_error *err);
/* One file in memory that outlives the checkpoint; `name` is only for messages. */
qr_status qr_checkpoint_open_memory(qr_checkpoint *ckpt, const void *data, size_t size, const char *name, qr_error *err);

#endif
