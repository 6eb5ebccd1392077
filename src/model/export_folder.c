/* A model as a folder of safetensors, quantised by MLX's rules or not (export.h). */
#include "base/json_in.h"
#include "base/mem.h"
#include "model/export_internal.h"
#include "model/safetensors_write.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WEIGHTS "model.safetensors"
#define INDEX "model.safetensors.index.json"

enum { MAX_FILE = 100000000 };

typedef struct entry { /* a tensor of the file; a quantised matrix has three */
    char name[72];
    qr_tensor_type type;
    int n_dims;
    size_t dims[2];
    uint64_t *at;
} entry;

/* The reference's order: wider types first, so that all data is aligned, then by name. */
static int in_order(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    size_t p = qr_tensor_type_size(x->type), q = qr_tensor_type_size(y->type);
    return p != q ? (p < q) - (p > q) : strcmp(x->name, y->name);
}

static size_t make_entries(qr_export_item *items, size_t n, entry *entries)
{
    size_t n_entries = 0;
    for (size_t i = 0; i < n; i++) {
        const qr_tensor *t = items[i].tensor;
        const qr_quant_form *form = &items[i].form;
        entry e = {.type = form->type, .n_dims = t->n_dims, .dims = {t->dims[0], t->n_dims > 1 ? t->dims[1] : 0}, .at = &items[i].at};
        snprintf(e.name, sizeof e.name, "%s", items[i].hf);
        if (form->group > 0) {
            entry beside = {.type = QR_T_BF16, .n_dims = 2, .dims = {e.dims[0], e.dims[1] / form->group}, .at = &items[i].scales_at};
            int stem = (int) (strlen(e.name) - strlen("weight"));
            e.dims[1] = e.dims[1] / 32 * form->bits;
            snprintf(beside.name, sizeof beside.name, "%.*sscales", stem, e.name);
            entries[n_entries++] = beside;
            snprintf(beside.name, sizeof beside.name, "%.*sbiases", stem, e.name);
            beside.at = &items[i].biases_at;
            entries[n_entries++] = beside;
        }
        entries[n_entries++] = e;
    }
    qsort(entries, n_entries, sizeof *entries, in_order);
    return n_entries;
}

static qr_status write_weights(qr_export *job, const char *dir, qr_export_item *items, size_t n, entry *entries, size_t n_entries,
                               qr_error *err)
{
    qr_safetensors_writer writer = {0};
    qr_output out = {.fd = -1};
    char *path = qr_path_join(dir, WEIGHTS);
    qr_status status = path != NULL ? qr_output_open(&out, path, err) : qr_fail(err, QR_E_MEMORY, "%s: no memory for a path", dir);
    qr_safetensors_begin(&writer, job->recipe->type == QR_T_U32 ? "mlx" : "pt");
    for (size_t i = 0; i < n_entries; i++)
        qr_safetensors_tensor(&writer, entries[i].name, entries[i].type, entries[i].n_dims, entries[i].dims, entries[i].at);
    if (status == QR_OK) status = qr_safetensors_write_head(&writer, &out, err);
    if (status == QR_OK) status = qr_export_tensors(job, items, n, writer.data_start, &out, err);
    if (status == QR_OK) status = qr_output_commit(&out, err);
    qr_output_close(&out);
    qr_safetensors_writer_deinit(&writer);
    qr_free(path);
    return status;
}

static qr_status write_json(const char *dir, const char *name, const json_t *root, size_t flags, qr_error *err)
{
    enum { DIGITS = 15 };
    char *text = json_dumps(root, flags | JSON_REAL_PRECISION(DIGITS));
    qr_status status =
        text != NULL ? qr_output_file(dir, name, text, strlen(text), err) : qr_fail(err, QR_E_MEMORY, "%s/%s: no memory for it", dir, name);
    free(text); /* jansson's */
    return status;
}

/* As mlx_lm.convert writes it: 4 blanks, sorted, the setting under both names. */
static qr_status write_config(const qr_export *job, const char *dir, const qr_file *file, qr_error *err)
{
    const qr_recipe *recipe = job->recipe;
    json_t *root;
    if (recipe->type == QR_AS_STORED) return qr_output_file(dir, "config.json", file->data, file->size, err);
    qr_status status = qr_json_parse(&root, (const char *) file->data, file->size, "config.json", err);
    if (status != QR_OK) return status;
    json_object_del(root, "quantization");
    json_object_del(root, "quantization_config");
    int bad = 0;
    if (recipe->type == QR_T_U32) {
        json_t *setting = json_pack("{s:i, s:i, s:s}", "group_size", (int) recipe->group, "bits", (int) recipe->bits, "mode", "affine");
        bad |= json_object_set(root, "quantization", setting) | json_object_set_new(root, "quantization_config", setting);
    } else {
        const char *type = recipe->type == QR_T_F32 ? "float32" : recipe->type == QR_T_F16 ? "float16" : "bfloat16";
        bad |= json_object_set_new(root, json_object_get(root, "dtype") != NULL ? "dtype" : "torch_dtype", json_string(type));
    }
    if (bad) status = qr_fail(err, QR_E_MEMORY, "%s: no memory for config.json", dir);
    else status = write_json(dir, "config.json", root, JSON_INDENT(4) | JSON_SORT_KEYS, err);
    json_decref(root);
    return status;
}

static qr_status write_index(const qr_export *job, const char *dir, const entry *entries, size_t n_entries, qr_error *err)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < job->n_rows; i++) bytes += job->rows[i].bytes;
    json_t *root = json_pack("{s:{s:I, s:I}, s:{}}", "metadata", "total_size", (json_int_t) bytes, "total_parameters",
                             (json_int_t) job->model->n_parameters, "weight_map");
    json_t *map = json_object_get(root, "weight_map");
    int bad = root == NULL;
    for (size_t i = 0; i < n_entries && !bad; i++) bad = json_object_set_new(map, entries[i].name, json_string(WEIGHTS));
    qr_status status = bad ? qr_fail(err, QR_E_MEMORY, "%s: no memory for " INDEX, dir)
                           : write_json(dir, INDEX, root, JSON_INDENT(4) | JSON_SORT_KEYS, err);
    json_decref(root);
    return status;
}

static qr_status write_others(const qr_export *job, const char *dir, qr_error *err)
{
    qr_status status = QR_OK;
    for (size_t i = 0; qr_export_files[i] != NULL && status == QR_OK; i++) {
        qr_file file;
        status = qr_export_open_file(job->model, qr_export_files[i], &file, err);
        if (status == QR_E_NOT_FOUND && i > 1) { /* only the first two must be there */
            status = QR_OK;
            continue;
        }
        if (status != QR_OK) return status;
        if (i == 0) status = write_config(job, dir, &file, err);
        else status = qr_output_file(dir, qr_export_files[i], file.data, file.size, err);
        qr_file_close(&file);
    }
    return status;
}

qr_status qr_export_folder(qr_export *job, const char *path, qr_error *err)
{
    qr_output folder = {.fd = -1};
    qr_export_item *items = NULL;
    entry *entries = NULL;
    size_t n = 0, n_entries = 0;
    qr_status status = qr_output_open_folder(&folder, path, err);
    if (status == QR_OK) status = qr_export_items(job->model, 1, &items, &n, err);
    if (status == QR_OK) status = qr_export_check(job, items, n, err);
    if (status == QR_OK) {
        for (size_t i = 0; i < n; i++) qr_export_choose(job, &items[i], 0);
        entries = qr_calloc(3 * n, sizeof *entries);
        if (entries != NULL) n_entries = make_entries(items, n, entries);
        else status = qr_fail(err, QR_E_MEMORY, "%s: no memory for a list of tensors", path);
    }
    if (status == QR_OK) status = write_weights(job, folder.temporary, items, n, entries, n_entries, err);
    if (status == QR_OK) status = write_others(job, folder.temporary, err);
    if (status == QR_OK && job->recipe->type == QR_T_U32) status = write_index(job, folder.temporary, entries, n_entries, err);
    if (status == QR_OK) status = qr_output_commit_folder(&folder, err);
    qr_output_close_folder(&folder);
    qr_free(entries);
    qr_free(items);
    return status;
}
