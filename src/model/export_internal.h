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

/* The tensors of the model in its order, with names; *items is freed with qr_free. with_head: a head of its own too. */
qr_status qr_export_items(const qr_model *model, int with_head, qr_export_item **items, size_t *n, qr_error *err);
/* Refuses to keep values as stored where they are quantised: no other file has the same form of them. */
qr_status qr_export_check(const qr_export *job, const qr_export_item *items, size_t n, qr_error *err);
/* Chooses the item's form. */
void qr_export_choose(const qr_export *job, qr_export_item *item, int gguf);
/* All keys of the file, and the ids of the labels. */
qr_status qr_gguf_describe(qr_gguf_writer *gguf, const qr_export *job, uint32_t labels[2], qr_error *err);

/* Writes all items and collects what became of them. */
qr_status qr_export_tensors(qr_export *job, const qr_export_item *items, size_t n, uint64_t start, qr_output *out, qr_error *err);

/* Files of a folder that are kept and copied, NULL at the end. */
extern const char *const qr_export_files[];
/* A file of the model's folder, or of the built-in model; the caller closes it. E_NOT_FOUND if it has none. */
qr_status qr_export_open_file(const qr_model *model, const char *name, qr_file *file, qr_error *err);

#define QR_GGUF_KEPT_NAMES "qwen-rerank.source.names"
#define QR_GGUF_KEPT_TEXTS "qwen-rerank.source.texts"

#endif
