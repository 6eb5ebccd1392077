/* Between the parts of export.h. */
#ifndef QR_MODEL_EXPORT_INTERNAL_H
#define QR_MODEL_EXPORT_INTERNAL_H

#include "model/export.h"
#include "model/gguf_write.h"

typedef struct qr_export_item {
    const qr_tensor *tensor;
    char gguf[48], hf[64]; /* names in both worlds */
    qr_quant_form form;
    int fell_back;
    uint64_t at, scales_at, biases_at; /* where the file has it */
} qr_export_item;

/* A head of its own, in full; NULL where the model has none. */
const qr_tensor *qr_export_head(const qr_model *model);
/* The tensors of the model in its order, with names; *items is freed with qr_free. with_head: a head of its own too. */
qr_status qr_export_items(const qr_model *model, int with_head, qr_export_item **items, size_t *n, qr_error *err);
/* Refuses to keep values as stored where they are quantised: no other file has the same form of them. */
qr_status qr_export_check(const qr_export *job, const qr_export_item *items, size_t n, qr_error *err);
/* Chooses the item's form. */
void qr_export_choose(const qr_export *job, qr_export_item *item, int gguf);
/* All keys of the file, and the ids of the labels. */
qr_status qr_gguf_describe(qr_gguf_writer *gguf, const qr_export *job, uint32_t labels[2], qr_error *err);

/* Quantises or copies a tensor to its places, which are from `start`, and fills row. */
qr_status qr_export_tensor(const qr_export *job, const qr_export_item *item, uint64_t start, qr_output *out, qr_export_row *row,
                           qr_error *err);
/* Writes all items and collects what became of them. */
qr_status qr_export_tensors(qr_export *job, const qr_export_item *items, size_t n, uint64_t start, qr_output *out, qr_error *err);

/* Files of a folder that are kept and copied, NULL at the end. */
extern const char *const qr_export_files[];
/* A file of the model's folder, of the built-in model, or from the keys of a GGUF file, in a block for qr_free. E_NOT_FOUND if it has none.
 */
qr_status qr_export_read_file(const qr_model *model, const char *name, char **text, size_t *len, qr_error *err);
/* The same of the GGUF file at `path`: as it was kept, or tokenizer.json and config.json made from the other keys. */
qr_status qr_gguf_read_file(const qr_model *model, const char *path, const char *name, char **text, size_t *len, qr_error *err);
/* Names of the safetensors files that the GGUF file at `path` keeps the headers of: a list that ends with "", NULL if there are none. */
qr_status qr_gguf_kept_shards(const char *path, char **names, qr_error *err);

#define QR_GGUF_KEPT_NAMES "qwen-rerank.source.names"
#define QR_GGUF_KEPT_TEXTS "qwen-rerank.source.texts"

#endif
