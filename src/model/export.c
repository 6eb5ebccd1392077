/* See export.h. */
#include "model/export_internal.h"

#include "base/mem.h"
#include "cpu/tensor_f32.h"
#include "model/builtin.h"
#include "model/gguf.h"
#include "model/safetensors_write.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

const char *const qr_export_files[] = {"config.json",
                                       "tokenizer.json",
                                       "tokenizer_config.json",
                                       "generation_config.json",
                                       "special_tokens_map.json",
                                       "added_tokens.json",
                                       "chat_template.jinja",
                                       "modules.json",
                                       "sentence_bert_config.json",
                                       "config_sentence_transformers.json",
                                       NULL};

enum { MAX_FILE = 100000000 };

qr_status qr_export_read_file(const qr_model *model, const char *name, char **text, size_t *len, qr_error *err)
{
    qr_file file;
    char *path = NULL;
    *text = NULL;
    qr_status status;
    if (qr_is_builtin(model->dir)) {
        status = qr_builtin_file(&file, name, err);
        if (status != QR_OK) return status;
        *text = qr_strndup((const char *) file.data, file.size);
        *len = file.size;
        return *text != NULL ? QR_OK : qr_fail(err, QR_E_MEMORY, "%s: no memory for it", name);
    }
    status = qr_gguf_locate(model->dir, &path, err);
    if (status == QR_OK && path != NULL) {
        status = qr_gguf_read_file(model, path, name, text, len, err);
    } else if (status == QR_OK) {
        path = qr_path_join(model->dir, name);
        status = path != NULL ? qr_file_read(path, MAX_FILE, text, len, err) : qr_fail(err, QR_E_MEMORY, "%s: no memory for a path", name);
    }
    qr_free(path);
    return status;
}

static void add(qr_export_item *items, size_t *n, const qr_tensor *tensor, const char *gguf, const char *hf)
{
    qr_export_item *item = &items[(*n)++];
    *item = (qr_export_item){.tensor = tensor};
    snprintf(item->gguf, sizeof item->gguf, "%s.weight", gguf);
    snprintf(item->hf, sizeof item->hf, "%s.weight", hf);
}

const qr_tensor *qr_export_head(const qr_model *model)
{
    return model->head_is_pair ? qr_checkpoint_find(&model->ckpt, "lm_head.weight") : model->head != model->embed ? model->head : NULL;
}

/* Of a head that is only two rows and not of the token table, as llama.cpp's converter leaves it, a folder cannot be made. */
static qr_status check_head(const qr_model *model, qr_error *err)
{
    const double alike = 0.9; /* 2-bit copies of a row are nearer, other rows far from it */
    size_t hidden = model->config.hidden, row = 0;
    if (!model->head_is_pair || qr_export_head(model) != NULL) return QR_OK;
    float *x = qr_calloc(2 * hidden, sizeof *x), *y = x != NULL ? x + hidden : NULL;
    if (x == NULL) return qr_fail(err, QR_E_MEMORY, "%s: no memory for two rows", model->dir);
    qr_status status = qr_model_head_row(model, model->pair_ids[0], &row, err);
    double xy = 0, xx = 0, yy = 0;
    qr_tensor_f32(x, model->head, row * hidden, hidden);
    qr_tensor_f32(y, model->embed, model->pair_ids[0] * hidden, hidden);
    for (size_t i = 0; i < hidden; i++) {
        xy += (double) x[i] * (double) y[i];
        xx += (double) x[i] * (double) x[i];
        yy += (double) y[i] * (double) y[i];
    }
    if (status == QR_OK && !(xy > alike * sqrt(xx * yy)))
        status =
            qr_fail(err, QR_E_UNSUPPORTED, "%s: expected a whole head (output.weight) for a folder, found only its two rows", model->dir);
    qr_free(x);
    return status;
}

qr_status qr_export_items(const qr_model *model, int with_head, qr_export_item **items, size_t *n, qr_error *err)
{
    enum { PER_LAYER = 11, OUTSIDE = 3 };
    static const struct {
        const char *gguf, *hf;
        size_t offset;
    } parts[PER_LAYER] = {
        {"attn_norm", "input_layernorm", offsetof(qr_layer_weights, input_norm)},
        {"attn_q", "self_attn.q_proj", offsetof(qr_layer_weights, q_proj)},
        {"attn_k", "self_attn.k_proj", offsetof(qr_layer_weights, k_proj)},
        {"attn_v", "self_attn.v_proj", offsetof(qr_layer_weights, v_proj)},
        {"attn_q_norm", "self_attn.q_norm", offsetof(qr_layer_weights, q_norm)},
        {"attn_k_norm", "self_attn.k_norm", offsetof(qr_layer_weights, k_norm)},
        {"attn_output", "self_attn.o_proj", offsetof(qr_layer_weights, o_proj)},
        {"ffn_norm", "post_attention_layernorm", offsetof(qr_layer_weights, post_norm)},
        {"ffn_gate", "mlp.gate_proj", offsetof(qr_layer_weights, gate_proj)},
        {"ffn_up", "mlp.up_proj", offsetof(qr_layer_weights, up_proj)},
        {"ffn_down", "mlp.down_proj", offsetof(qr_layer_weights, down_proj)},
    };
    char gguf[40], hf[56];
    *n = 0;
    *items = qr_calloc(OUTSIDE + model->config.n_layers * PER_LAYER, sizeof **items);
    if (*items == NULL) return qr_fail(err, QR_E_MEMORY, "%s: no memory for a list of tensors", model->dir);
    const qr_tensor *head = with_head ? qr_export_head(model) : NULL;
    qr_status status = with_head ? check_head(model, err) : QR_OK;
    if (status != QR_OK) return status;
    add(*items, n, model->embed, "token_embd", "model.embed_tokens");
    for (size_t i = 0; i < model->config.n_layers; i++)
        for (size_t k = 0; k < PER_LAYER; k++) {
            const qr_tensor *const *slot = (const void *) ((const char *) &model->layers[i] + parts[k].offset);
            snprintf(gguf, sizeof gguf, "blk.%zu.%s", i, parts[k].gguf);
            snprintf(hf, sizeof hf, "model.layers.%zu.%s", i, parts[k].hf);
            add(*items, n, *slot, gguf, hf);
        }
    add(*items, n, model->norm, "output_norm", "model.norm");
    if (head != NULL) add(*items, n, head, "output", "lm_head");
    return QR_OK;
}

/* weight [cols] of the columns of a layer's matrix, with a mean of 1; 0 for a tensor that is none. */
static int find_importance(const qr_export *job, const qr_export_item *item, float *weight)
{
    const qr_model *model = job->model;
    for (size_t i = 0; job->importance != NULL && i < model->config.n_layers; i++) {
        const qr_layer_weights *l = &model->layers[i];
        const qr_tensor *matrices[] = {l->q_proj, l->k_proj, l->v_proj, l->o_proj, l->gate_proj, l->up_proj, l->down_proj};
        static const qr_layer_input inputs[] = {QR_IN_QKV, QR_IN_QKV, QR_IN_QKV, QR_IN_O, QR_IN_GATE_UP, QR_IN_GATE_UP, QR_IN_DOWN};
        for (size_t k = 0; k < sizeof matrices / sizeof matrices[0]; k++) {
            if (item->tensor != matrices[k]) continue;
            const qr_int8_input *in = qr_int8_plan_at(job->importance, i, inputs[k]);
            double mean = 0;
            for (size_t c = 0; c < in->k; c++) mean += in->squares[c] / (double) in->k;
            /* a column that these prompts never used is not one that may be anything */
            for (size_t c = 0; c < in->k; c++) weight[c] = mean > 0 ? (float) fmax(in->squares[c] / mean, 1e-3) : 1;
            return 1;
        }
    }
    return 0;
}

/* llama.cpp's rule for its _M mixtures: the first and the last eighth of the layers, and every third between them. */
static int is_finer(const qr_export *job, const qr_export_item *item)
{
    const qr_model *model = job->model;
    size_t n = model->config.n_layers;
    if (item->tensor == model->embed || item->tensor == model->head) return 1;
    for (size_t i = 0; i < n; i++)
        if (item->tensor == model->layers[i].v_proj || item->tensor == model->layers[i].down_proj)
            return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
    return 0;
}

qr_status qr_export_check(const qr_export *job, const qr_export_item *items, size_t n, qr_error *err)
{
    for (size_t i = 0; i < n && job->recipe->type == QR_AS_STORED; i++) {
        const qr_tensor *t = items[i].tensor;
        if (t->scales != NULL || t->group > 0 || qr_tensor_type_block(t->type) > 1)
            return qr_fail(err, QR_E_UNSUPPORTED,
                           "%s: tensor \"%s\": expected F32, F16 or BF16, found a quantised one: say into what it is to be "
                           "dequantised",
                           job->model->dir, t->name);
    }
    return QR_OK;
}

void qr_export_choose(const qr_export *job, qr_export_item *item, int gguf)
{
    const qr_tensor *t = item->tensor;
    item->fell_back = 0;
    if (t->n_dims == 1) {
        item->form = (qr_quant_form){.type = gguf ? QR_T_F32 : t->type};
        return;
    }
    item->form = qr_recipe_form(job->recipe, t, job->recipe->mixed && is_finer(job, item), &item->fell_back);
}

enum { CHUNK = 1 << 20 }; /* elements in work at a time: 8 MB and what they become */

static int is_copy(const qr_export_item *item)
{
    return item->form.group == 0 && item->tensor->group == 0 && item->tensor->scales == NULL && item->form.type == item->tensor->type;
}

typedef struct work {
    float *x, *back;
    unsigned char *data;
    uint16_t *scales, *biases;
    double *square, *error, *worst; /* by row */
    float *weight;                  /* [cols], where `weighs` */
    int weighs;
} work;

static void work_free(work *w)
{
    qr_free(w->x);
    qr_free(w->back);
    qr_free(w->data);
    qr_free(w->scales);
    qr_free(w->biases);
    qr_free(w->square);
    qr_free(w->error);
    qr_free(w->worst);
    qr_free(w->weight);
}

static int work_alloc(work *w, const qr_quant_form *form, size_t rows, size_t cols)
{
    size_t groups = form->group > 0 ? cols / form->group : 0;
    *w = (work){.x = qr_calloc(rows * cols, sizeof(float)),
                .back = qr_calloc(rows * cols, sizeof(float)),
                .data = qr_calloc(rows, qr_quant_row_bytes(form, cols)),
                .scales = qr_calloc(rows * groups, 2),
                .biases = qr_calloc(rows * groups, 2),
                .square = qr_calloc(rows, sizeof(double)),
                .error = qr_calloc(rows, sizeof(double)),
                .worst = qr_calloc(rows, sizeof(double)),
                .weight = qr_calloc(cols, sizeof(float))};
    return w->weight && w->x && w->back && w->data && w->scales && w->biases && w->square && w->error && w->worst;
}

static void do_row(const work *w, const qr_tensor *t, const qr_quant_form *form, size_t first, size_t r, size_t cols)
{
    size_t groups = form->group > 0 ? cols / form->group : 0;
    float *x = w->x + r * cols, *back = w->back + r * cols;
    double square = 0, error = 0, worst = 0;
    qr_tensor_f32(x, t, (first + r) * cols, cols);
    for (size_t i = 0; i < cols; i++) square += (double) x[i] * (double) x[i];
    w->square[r] = square;
    if (!isfinite(square)) return;
    qr_quantize_row(form, x, w->weighs ? w->weight : NULL, cols, w->data + r * qr_quant_row_bytes(form, cols), w->scales + r * groups,
                    w->biases + r * groups, back);
    for (size_t i = 0; i < cols; i++) {
        double e = fabs((double) x[i] - (double) back[i]);
        error += e * e;
        worst = e > worst ? e : worst;
    }
    w->error[r] = error;
    w->worst[r] = worst;
}

static qr_status quantize_rows(const qr_export *job, const qr_export_item *item, uint64_t start, qr_output *out, qr_export_row *row,
                               qr_error *err)
{
    const qr_tensor *t = item->tensor;
    const qr_quant_form *form = &item->form;
    size_t rows = row->rows, cols = row->cols, chunk = CHUNK / cols > 0 ? CHUNK / cols : 1;
    size_t row_bytes = qr_quant_row_bytes(form, cols), groups = form->group > 0 ? cols / form->group : 0;
    double square = 0, error = 0;
    work w;
    chunk = chunk < rows ? chunk : rows;
    qr_status status = work_alloc(&w, form, chunk, cols) ? QR_OK : qr_fail(err, QR_E_MEMORY, "%s: no memory to quantise", item->hf);
    w.weighs = status == QR_OK && find_importance(job, item, w.weight);
    for (size_t first = 0; first < rows && status == QR_OK; first += chunk) {
        size_t n = rows - first < chunk ? rows - first : chunk;
        if (job->cancel != NULL && *job->cancel) status = qr_fail(err, QR_E_CANCELLED, "interrupted");
        if (status != QR_OK) break;
#pragma omp parallel for schedule(dynamic, 1)
        for (size_t r = 0; r < n; r++) do_row(&w, t, form, first, r, cols);
        for (size_t r = 0; r < n && status == QR_OK; r++) {
            if (!isfinite(w.square[r]))
                status = qr_fail(err, QR_E_FORMAT, "tensor \"%s\": expected finite numbers, found others in row %zu", item->hf, first + r);
            square += w.square[r];
            error += w.error[r];
            row->max_error = w.worst[r] > row->max_error ? w.worst[r] : row->max_error;
        }
        if (status == QR_OK) status = qr_output_at(out, start + item->at + first * row_bytes, w.data, n * row_bytes, err);
        if (status == QR_OK && groups > 0)
            status = qr_output_at(out, start + item->scales_at + 2 * first * groups, w.scales, 2 * n * groups, err);
        if (status == QR_OK && groups > 0)
            status = qr_output_at(out, start + item->biases_at + 2 * first * groups, w.biases, 2 * n * groups, err);
    }
    row->rmse = square > 0 ? sqrt(error / square) : 0;
    work_free(&w);
    return status;
}

qr_status qr_export_tensor(const qr_export *job, const qr_export_item *item, uint64_t start, qr_output *out, qr_export_row *row,
                           qr_error *err)
{
    const qr_tensor *t = item->tensor;
    enum { PIECE = 16 << 20 };
    *row = (qr_export_row){.form = item->form, .fell_back = item->fell_back, .rows = t->n_dims == 2 ? t->dims[0] : 1};
    row->cols = t->n_elements / row->rows;
    snprintf(row->name, sizeof row->name, "%s", item->hf);
    row->bytes = row->rows * (qr_quant_row_bytes(&item->form, row->cols) + (item->form.group > 0 ? row->cols / item->form.group * 4 : 0));
    qr_status status = QR_OK;
    if (is_copy(item))
        for (size_t i = 0; i < t->n_bytes && status == QR_OK; i += PIECE) {
            if (job->cancel != NULL && *job->cancel) return qr_fail(err, QR_E_CANCELLED, "interrupted");
            status = qr_output_at(out, start + item->at + i, t->data + i, t->n_bytes - i < PIECE ? t->n_bytes - i : PIECE, err);
        }
    else status = quantize_rows(job, item, start, out, row, err);
    qr_checkpoint_release(&job->model->ckpt, t);
    return status;
}

qr_status qr_export_tensors(qr_export *job, const qr_export_item *items, size_t n, uint64_t start, qr_output *out, qr_error *err)
{
    qr_status status = QR_OK;
    job->rows = qr_calloc(n, sizeof *job->rows);
    if (job->rows == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for a list of tensors");
    for (job->n_rows = 0; job->n_rows < n && status == QR_OK; job->n_rows++)
        status = qr_export_tensor(job, &items[job->n_rows], start, out, &job->rows[job->n_rows], err);
    return status;
}

qr_status qr_export_gguf(qr_export *job, const char *path, qr_error *err)
{
    const qr_model *model = job->model;
    qr_gguf_writer gguf = {0};
    qr_output out = {.fd = -1};
    qr_export_item *items = NULL;
    size_t n = 0, hidden = model->config.hidden;
    uint32_t labels[2];
    uint64_t labels_at = 0;
    float *rows = qr_calloc(2 * hidden, sizeof *rows);
    qr_status status = rows != NULL ? QR_OK : qr_fail(err, QR_E_MEMORY, "%s: no memory for two rows", path);
    if (status == QR_OK) status = qr_output_open(&out, path, err);
    if (status == QR_OK) status = qr_export_items(model, job->keep_files && qr_export_head(model) != NULL, &items, &n, err);
    if (status == QR_OK) status = qr_export_check(job, items, n, err);
    if (status == QR_OK) status = qr_gguf_describe(&gguf, job, labels, err);
    if (status == QR_OK) {
        for (size_t i = 0; i < n; i++) {
            qr_export_choose(job, &items[i], 1);
            qr_gguf_put_tensor(&gguf, items[i].gguf, items[i].form.type, items[i].tensor->n_dims, items[i].tensor->dims, &items[i].at);
        }
        qr_gguf_put_tensor(&gguf, "cls.output.weight", QR_T_F32, 2, (size_t[]){2, hidden}, &labels_at);
        for (int i = 0; i < 2 && status == QR_OK; i++) {
            size_t row;
            status = qr_model_head_row(model, labels[i], &row, err);
            if (status == QR_OK) qr_tensor_f32(rows + (size_t) i * hidden, model->head, row * hidden, hidden);
        }
        if (status == QR_OK) status = qr_gguf_write_head(&gguf, &out, err);
    }
    if (status == QR_OK) status = qr_export_tensors(job, items, n, gguf.data_start, &out, err);
    if (status == QR_OK) status = qr_output_at(&out, gguf.data_start + labels_at, rows, 2 * hidden * sizeof *rows, err);
    if (status == QR_OK) status = qr_output_commit(&out, err);
    qr_output_close(&out);
    qr_gguf_writer_deinit(&gguf);
    qr_free(items);
    qr_free(rows);
    return status;
}

void qr_export_deinit(qr_export *job)
{
    qr_free(job->rows);
    job->rows = NULL;
    job->n_rows = 0;
}
