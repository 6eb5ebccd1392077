/* Packing of a model, see packed_model.h. Peak memory is the packed weights plus one matrix of the file, because the pages of each
 * tensor are given back once it is packed; the embedding table is never copied, a batch touches few of its rows. When blocks are packed
 * as they are used, it is the file and a few blocks, and the system may take the file's pages back and read them again. */
#include "cpu/packed_model.h"

#include "base/mem.h"
#include "cpu/kernels.h"
#include "cpu/tensor_f32.h"

#include <math.h>
#include <string.h>

enum { BLOCK_OUTPUTS = 128 }; /* outputs per packed block: 64 x 128 f32 of results are 32 KiB, a block of 1,024 bf16 inputs 256 KiB */

static size_t round_up(size_t x, size_t to) { return (x + to - 1) / to * to; }

void qr_packed_model_embed(const qr_packed_model *packed, float *out, uint32_t id)
{
    size_t hidden = packed->config->hidden;
    qr_tensor_f32(out, packed->embed, (size_t) id * hidden, hidden);
}

static size_t layout_row(const void *arg, size_t block, size_t output)
{
    const qr_packed_source *l = arg;
    if (l->half > 0) {
        size_t column = block * l->half + output % l->half, rows = l->n / 2;
        if (output >= 2 * l->half || column >= rows) return QR_SIZE_NONE;
        return output < l->half ? column : rows + column;
    }
    size_t row = block * l->used + output;
    return output < l->used && row < l->n ? row : QR_SIZE_NONE;
}

static void release(const qr_model *model, const qr_tensor *t)
{
    const qr_tensor *parts[] = {t, t->scales, t->biases, t->zeros, t->order};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (parts[i] != NULL) qr_checkpoint_release(&model->ckpt, parts[i]);
}

static qr_status pack(qr_gemm *gemm, qr_packed_source *from, qr_packed_model *packed, const qr_model *model, const qr_int8_input *input,
                      qr_error *err)
{
    for (size_t i = 0; i < from->n_tensors; i++) from->n += from->tensors[i]->dims[0];
    size_t per_block = from->half > 0 ? 2 * from->half : from->used;
    qr_gemm_source source = {
        from->tensors, from->n_tensors, layout_row, from, input ? input->rotation : 0, input ? input->factors : NULL, packed->when_used};
    qr_status status = qr_gemm_pack(gemm, packed->lib, from->tensors[0]->dims[1], from->n, round_up(per_block, QR_PANEL),
                                    (from->n + per_block - 1) / per_block, &source, err);
    for (size_t i = 0; i < from->n_tensors; i++) {
        if (packed->when_used) packed->bytes += qr_tensor_stored_bytes(from->tensors[i]);
        else release(model, from->tensors[i]);
    }
    packed->bytes += gemm->n_blocks * gemm->block_bytes;
    return status;
}

static size_t block_outputs(size_t n) { return n < BLOCK_OUTPUTS ? round_up(n, QR_PANEL) : BLOCK_OUTPUTS; }

static qr_status pack_layer(qr_packed_layer *to, qr_packed_model *packed, const qr_model *model, const qr_layer_weights *from,
                            const qr_int8_input *in, qr_error *err)
{
    const qr_config *c = packed->config;
    size_t heads = packed->heads_per_block * c->head_dim;
    const qr_packed_source sources[] = {
        {.tensors = {from->q_proj}, .n_tensors = 1, .used = heads},
        {.tensors = {from->k_proj, from->v_proj}, .n_tensors = 2, .used = heads},
        {.tensors = {from->o_proj}, .n_tensors = 1, .used = block_outputs(c->hidden)},
        {.tensors = {from->gate_proj, from->up_proj}, .n_tensors = 2, .half = packed->gate_up_half},
        {.tensors = {from->down_proj}, .n_tensors = 1, .used = block_outputs(c->hidden)},
    };
    static const qr_layer_input inputs[] = {QR_IN_QKV, QR_IN_QKV, QR_IN_O, QR_IN_GATE_UP, QR_IN_DOWN};
    qr_gemm *gemms[] = {&to->q, &to->kv, &to->o, &to->gate_up, &to->down};
    _Static_assert(sizeof sources == sizeof to->sources, "a source for each matrix");
    memcpy(to->sources, sources, sizeof sources);
    qr_status status = QR_OK;
    for (size_t i = 0; i < sizeof gemms / sizeof gemms[0] && status == QR_OK; i++)
        status = pack(gemms[i], &to->sources[i], packed, model, in != NULL ? &in[inputs[i]] : NULL, err);
    return status;
}

static float *take_norm(float **at, const qr_tensor *t)
{
    float *to = *at;
    qr_tensor_f32(to, t, 0, t->n_elements);
    *at += t->n_elements;
    return to;
}

/* Angles position * theta^(-2j / head_dim), computed as transformers does: the frequency and the product in f32. */
static void fill_rope(qr_packed_model *packed)
{
    size_t half = packed->config->head_dim / 2;
    for (size_t j = 0; j < half; j++) {
        float frequency = 1.0f / powf((float) packed->config->rope_theta, (float) (2 * j) / (float) packed->config->head_dim);
        for (size_t p = 0; p < packed->n_positions; p++) {
            double angle = (float) p * frequency;
            packed->cosines[p * half + j] = (float) cos(angle);
            packed->sines[p * half + j] = (float) sin(angle);
        }
    }
}

static qr_status allocate(qr_packed_model *packed, qr_error *err)
{
    const qr_config *c = packed->config;
    size_t half = c->head_dim / 2, n_norms = c->n_layers * 2 * (c->hidden + c->head_dim) + c->hidden;
    packed->layers = qr_calloc(c->n_layers, sizeof *packed->layers);
    packed->norms = qr_calloc(n_norms, sizeof(float));
    packed->head = qr_calloc(2 * c->hidden, sizeof(float));
    packed->cosines = qr_calloc(packed->n_positions * half, sizeof(float));
    packed->sines = qr_calloc(packed->n_positions * half, sizeof(float));
    packed->bytes = (n_norms + 2 * c->hidden + 2 * packed->n_positions * half) * sizeof(float);
    if (packed->layers == NULL || packed->norms == NULL || packed->head == NULL || packed->cosines == NULL || packed->sines == NULL)
        return qr_fail(err, QR_E_MEMORY, "no memory for %zu layers and %zu positions", c->n_layers, packed->n_positions);
    return QR_OK;
}

qr_status qr_packed_model_open(qr_packed_model *packed, const qr_model *model, qr_gemm_lib *lib, size_t n_positions, uint32_t yes_id,
                               uint32_t no_id, const qr_int8_plan *plan, int when_used, qr_error *err)
{
    const qr_config *c = &model->config;
    *packed = (qr_packed_model){.config = c, .lib = lib, .embed = model->embed, .n_positions = n_positions, .when_used = when_used};
    packed->heads_per_block = c->head_dim >= BLOCK_OUTPUTS ? 1 : BLOCK_OUTPUTS / c->head_dim;
    size_t half = round_up(c->inter, QR_PANEL / 2);
    packed->gate_up_half = half < BLOCK_OUTPUTS / 2 ? half : BLOCK_OUTPUTS / 2;
    size_t yes_row = 0, no_row = 0;
    qr_status status = qr_model_head_row(model, yes_id, &yes_row, err);
    if (status == QR_OK) status = qr_model_head_row(model, no_id, &no_row, err);
    if (status == QR_OK) status = allocate(packed, err);
    float *norms = packed->norms;
    for (size_t i = 0; i < c->n_layers && status == QR_OK; i++) {
        qr_packed_layer *to = &packed->layers[i];
        const qr_layer_weights *from = &model->layers[i];
        to->input_norm = take_norm(&norms, from->input_norm);
        to->post_norm = take_norm(&norms, from->post_norm);
        to->q_norm = take_norm(&norms, from->q_norm);
        to->k_norm = take_norm(&norms, from->k_norm);
        status = pack_layer(to, packed, model, from, plan != NULL ? qr_int8_plan_at(plan, i, QR_IN_QKV) : NULL, err);
        if (status != QR_OK) qr_fail_prefix(err, status, "layer %zu", i);
    }
    if (status != QR_OK) {
        qr_packed_model_close(packed);
        return status;
    }
    if (!when_used) qr_gemm_lib_trim(lib);
    packed->bytes += qr_gemm_lib_bytes(lib);
    packed->norm = take_norm(&norms, model->norm);
    qr_tensor_f32(packed->head, model->head, yes_row * c->hidden, c->hidden);
    qr_tensor_f32(packed->head + c->hidden, model->head, no_row * c->hidden, c->hidden);
    fill_rope(packed);
    return QR_OK;
}

void qr_packed_model_close(qr_packed_model *packed)
{
    for (size_t i = 0; packed->layers != NULL && i < packed->config->n_layers; i++) {
        qr_packed_layer *l = &packed->layers[i];
        qr_gemm *all[] = {&l->q, &l->kv, &l->o, &l->gate_up, &l->down};
        for (size_t j = 0; j < sizeof all / sizeof all[0]; j++) qr_gemm_deinit(all[j]);
    }
    qr_free(packed->layers);
    qr_free(packed->norms);
    qr_free(packed->head);
    qr_free(packed->cosines);
    qr_free(packed->sines);
    *packed = (qr_packed_model){0};
}
