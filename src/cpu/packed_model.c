/* Packing of a model, see packed_model.h. Peak memory is the packed weights plus one matrix of the file, because the pages of each
 * tensor are given back once it is packed; the embedding table is never copied, a batch touches few of its rows. */
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

/* Which rows of the source a block holds. */
typedef struct layout {
    size_t n;    /* rows in all */
    size_t used; /* outputs of a block that hold rows; the rest is padding */
    size_t half; /* gate_up: `half` rows of the first tensor, then the same of the second; 0: rows in order */
} layout;

static size_t layout_row(const void *arg, size_t block, size_t output)
{
    const layout *l = arg;
    if (l->half > 0) {
        size_t column = block * l->half + output % l->half, rows = l->n / 2;
        if (output >= 2 * l->half || column >= rows) return QR_SIZE_NONE;
        return output < l->half ? column : rows + column;
    }
    size_t row = block * l->used + output;
    return output < l->used && row < l->n ? row : QR_SIZE_NONE;
}

static qr_status pack(qr_gemm *gemm, qr_packed_model *packed, const qr_model *model, const qr_tensor *const *tensors, size_t n_tensors,
                      size_t used, size_t half, const qr_int8_input *input, qr_error *err)
{
    layout l = {0, used, half};
    for (size_t i = 0; i < n_tensors; i++) l.n += tensors[i]->dims[0];
    size_t per_block = half > 0 ? 2 * half : used;
    qr_gemm_source source = {tensors, n_tensors, layout_row, &l, input ? input->rotation : 0, input ? input->factors : NULL};
    qr_status status = qr_gemm_pack(gemm, packed->lib, tensors[0]->dims[1], l.n, round_up(per_block, QR_PANEL),
                                    (l.n + per_block - 1) / per_block, &source, err);
    for (size_t i = 0; i < n_tensors; i++) qr_checkpoint_release(&model->ckpt, tensors[i]);
    packed->bytes += gemm->n_blocks * gemm->block_bytes;
    return status;
}

static size_t block_outputs(size_t n) { return n < BLOCK_OUTPUTS ? round_up(n, QR_PANEL) : BLOCK_OUTPUTS; }

static qr_status pack_layer(qr_packed_layer *to, qr_packed_model *packed, const qr_model *model, const qr_layer_weights *from,
                            const qr_int8_input *in, qr_error *err)
{
    const qr_config *c = packed->config;
    size_t heads = packed->heads_per_block * c->head_dim;
    const qr_tensor *kv[] = {from->k_proj, from->v_proj}, *gate_up[] = {from->gate_proj, from->up_proj};
    const qr_int8_input *inputs[QR_N_INPUTS] = {0};
    for (size_t i = 0; in != NULL && i < QR_N_INPUTS; i++) inputs[i] = &in[i];
    qr_status status = pack(&to->q, packed, model, &from->q_proj, 1, heads, 0, inputs[QR_IN_QKV], err);
    if (status == QR_OK) status = pack(&to->kv, packed, model, kv, 2, heads, 0, inputs[QR_IN_QKV], err);
    if (status == QR_OK) status = pack(&to->o, packed, model, &from->o_proj, 1, block_outputs(c->hidden), 0, inputs[QR_IN_O], err);
    if (status == QR_OK) status = pack(&to->gate_up, packed, model, gate_up, 2, 0, packed->gate_up_half, inputs[QR_IN_GATE_UP], err);
    if (status == QR_OK) status = pack(&to->down, packed, model, &from->down_proj, 1, block_outputs(c->hidden), 0, inputs[QR_IN_DOWN], err);
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
                               uint32_t no_id, const qr_int8_plan *plan, qr_error *err)
{
    const qr_config *c = &model->config;
    *packed = (qr_packed_model){.config = c, .lib = lib, .embed = model->embed, .n_positions = n_positions};
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
