/* A model as a folder of safetensors, quantised by MLX's rules or not (export.h). */
#include "base/json_in.h"
#include "base/mem.h"
#include "model/builtin.h"
#include "model/export_internal.h"
#include "model/gguf.h"
#include "model/safetensors.h"
#include "model/safetensors_write.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WEIGHTS "model.safetensors"
#define INDEX "model.safetensors.index.json"

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

/* A tensor of a header that was kept, where that says. */
static qr_status write_kept_tensor(qr_export *job, qr_export_item *item, const json_t *listed, uint64_t start, qr_output *out,
                                   qr_error *err)
{
    const qr_tensor *t = item->tensor;
    const json_t *shape = json_object_get(listed, "shape"), *offsets = json_object_get(listed, "data_offsets");
    const char *dtype = json_string_value(json_object_get(listed, "dtype"));
    json_int_t begin = json_integer_value(json_array_get(offsets, 0)), end = json_integer_value(json_array_get(offsets, 1));
    const qr_tensor_type types[] = {QR_T_F32, QR_T_F16, QR_T_BF16};
    int right = dtype != NULL && json_array_size(shape) == (size_t) t->n_dims, type = 0;
    for (int d = 0; right && d < t->n_dims; d++) right = json_integer_value(json_array_get(shape, (size_t) d)) == (json_int_t) t->dims[d];
    while (right && type < 3 && strcmp(qr_tensor_type_name(types[type]), dtype) != 0) type++;
    right = right && type < 3 && begin >= 0 && (uint64_t) begin <= 4 * (uint64_t) job->model->n_parameters;
    if (right) item->form = (qr_quant_form){.type = types[type]};
    if (!right || end - begin != (json_int_t) qr_tensor_type_bytes(item->form.type, t->n_elements))
        return qr_fail(err, QR_E_FORMAT, "%s: the kept header of \"%s\" does not fit the tensor", job->model->dir, item->hf);
    item->at = (uint64_t) begin;
    qr_export_row *row = &job->rows[job->n_rows++];
    qr_status status = qr_export_tensor(job, item, start, out, row, err);
    if (status == QR_OK && row->max_error > 0)
        status = qr_fail(err, QR_E_FORMAT, "%s: tensor \"%s\": expected values of %s, found others", job->model->dir, item->hf, dtype);
    return status;
}

/* One shard by the header that the GGUF file kept of it. */
static qr_status write_kept_shard(qr_export *job, const char *dir, const char *name, qr_export_item *items, size_t n, qr_error *err)
{
    qr_output out = {.fd = -1};
    json_t *root = NULL, *listed;
    char *text = NULL, *path = qr_path_join(dir, name);
    const char *key;
    size_t len;
    uint64_t start = 0;
    qr_status status =
        path != NULL ? qr_export_read_file(job->model, name, &text, &len, err) : qr_fail(err, QR_E_MEMORY, "%s: no memory for a path", dir);
    if (status == QR_OK) status = qr_json_parse(&root, text, len, name, err);
    if (status == QR_OK) status = qr_output_open(&out, path, err);
    if (status == QR_OK) status = qr_safetensors_write_header(&out, text, len, &start, err);
    json_object_foreach(root, key, listed)
    {
        if (status != QR_OK || strcmp(key, "__metadata__") == 0) continue;
        size_t i = 0;
        while (i < n && strcmp(items[i].hf, key) != 0 && strcmp(items[i].hf + strlen("model."), key) != 0) i++;
        if (i == n || job->n_rows == n)
            status = qr_fail(err, QR_E_FORMAT, "%s: the kept header names \"%s\", which is no tensor", dir, qr_label_of(key).text);
        else status = write_kept_tensor(job, &items[i], listed, start, &out, err);
    }
    if (status == QR_OK) status = qr_output_commit(&out, err);
    qr_output_close(&out);
    json_decref(root);
    qr_free(text);
    qr_free(path);
    return status;
}

/* The weights as the GGUF file says that they were: all of them, and in a layout that a reader accepts. */
static qr_status write_kept(qr_export *job, const char *dir, const char *names, qr_export_item *items, size_t n, qr_error *err)
{
    qr_checkpoint ckpt;
    char *text;
    size_t len;
    qr_status status = QR_OK;
    job->rows = qr_calloc(n, sizeof *job->rows);
    if (job->rows == NULL) return qr_fail(err, QR_E_MEMORY, "%s: no memory for a list of tensors", dir);
    for (; *names && status == QR_OK; names += strlen(names) + 1) status = write_kept_shard(job, dir, names, items, n, err);
    if (status == QR_OK && job->n_rows != n)
        status = qr_fail(err, QR_E_FORMAT, "%s: expected kept headers for %zu tensors, found %zu", job->model->dir, n, job->n_rows);
    if (status == QR_OK && qr_export_read_file(job->model, INDEX, &text, &len, NULL) == QR_OK) {
        status = qr_output_file(dir, INDEX, text, len, err);
        qr_free(text);
    }
    if (status != QR_OK) return status;
    status = qr_checkpoint_open(&ckpt, dir, err);
    if (status == QR_OK) qr_checkpoint_close(&ckpt);
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
static qr_status write_config(const qr_export *job, const char *dir, const char *text, size_t len, qr_error *err)
{
    const qr_recipe *recipe = job->recipe;
    json_t *root;
    if (recipe->type == QR_AS_STORED) return qr_output_file(dir, "config.json", text, len, err);
    qr_status status = qr_json_parse(&root, text, len, "config.json", err);
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
        char *text = NULL;
        size_t len = 0;
        status = qr_export_read_file(job->model, qr_export_files[i], &text, &len, err);
        if (status == QR_E_NOT_FOUND && i > 1) { /* only the first two must be there */
            status = QR_OK;
            continue;
        }
        if (status != QR_OK) return status;
        if (i == 0) status = write_config(job, dir, text, len, err);
        else status = qr_output_file(dir, qr_export_files[i], text, len, err);
        qr_free(text);
    }
    return status;
}

static qr_status kept_shards(const qr_model *model, char **names, qr_error *err)
{
    char *path = NULL;
    *names = NULL;
    if (qr_is_builtin(model->dir)) return QR_OK;
    qr_status status = qr_gguf_locate(model->dir, &path, err);
    if (status == QR_OK && path != NULL) status = qr_gguf_kept_shards(path, names, err);
    qr_free(path);
    return status;
}

qr_status qr_export_folder(qr_export *job, const char *path, qr_error *err)
{
    qr_output folder = {.fd = -1};
    qr_export_item *items = NULL;
    entry *entries = NULL;
    char *shards = NULL;
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
    if (status == QR_OK && job->recipe->type == QR_AS_STORED) status = kept_shards(job->model, &shards, err);
    if (status == QR_OK && shards != NULL) status = write_kept(job, folder.temporary, shards, items, n, err);
    else if (status == QR_OK) status = write_weights(job, folder.temporary, items, n, entries, n_entries, err);
    if (status == QR_OK) status = write_others(job, folder.temporary, err);
    if (status == QR_OK && job->recipe->type == QR_T_U32) status = write_index(job, folder.temporary, entries, n_entries, err);
    if (status == QR_OK) status = qr_output_commit_folder(&folder, err);
    qr_output_close_folder(&folder);
    qr_free(shards);
    qr_free(entries);
    qr_free(items);
    return status;
}
