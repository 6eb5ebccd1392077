/* See network.h: weights, tables, the cache of prefixes. */
#include "base/mem.h"
#include "cpu/kernels.h"
#include "cpu/tensor_f32.h"
#include "pytorch/flash.h"
#include "pytorch/network_internal.h"

#include <math.h>
#include <string.h>

/* ---- weights -------------------------------------------------------------------------------------------------------------------- */

static qr_dtype stored_dtype(const qr_tensor *t)
{
    return t->type == QR_T_F32 ? QR_DTYPE_F32 : t->type == QR_T_BF16 ? QR_DTYPE_BF16 : t->type == QR_T_F16 ? QR_DTYPE_F16 : QR_DTYPE_INT8;
}

/* Unaligned or quantised: by way of f32, some rows at a time. */
static void upload_widened(pt_network *net, const qr_tensor *t, qr_th to)
{
    enum { PIECE = 1 << 22 };
    qr_torch_scope *s = &net->scope;
    size_t rows = t->dims[0], cols = t->n_elements / rows, step = PIECE / cols > 0 ? PIECE / cols : 1;
    float *values = qr_calloc((step < rows ? step : rows) * cols, sizeof *values);
    if (values == NULL) {
        qr_fail(&s->error, QR_E_MEMORY, "no memory to widen tensor \"%s\"", t->name);
        return;
    }
    for (size_t i = 0; i < rows && s->error.code == QR_OK; i += step) {
        size_t n = rows - i < step ? rows - i : step, mark = s->n;
        int64_t dims[2] = {(int64_t) n, (int64_t) cols};
        qr_tensor_f32(values, t, i * cols, n * cols);
        qr_th from = qr_torch_view_of(s, values, qr_torch_dtype(net->t, QR_DTYPE_F32), t->n_dims, dims);
        qr_torch_copy(s, qr_torch_narrow(s, to, 0, (int64_t) i, (int64_t) n), from);
        qr_torch_scope_cut(s, mark);
    }
    qr_free(values);
}

/* In the type asked for, on the device. Where the file holds that type and the device is the CPU, the file's own memory is used. */
static qr_th load_tensor(pt_network *net, const qr_model *model, const qr_tensor *t, qr_dtype dtype)
{
    qr_torch_scope *s = &net->scope;
    int64_t dims[2] = {(int64_t) t->dims[0], (int64_t) t->dims[1]};
    int wanted = qr_torch_dtype(net->t, dtype);
    qr_dtype stored = stored_dtype(t);
    size_t mark = s->n;
    int aligned = (uintptr_t) t->data % qr_tensor_type_size(t->type) == 0;
    qr_th x;
    if (stored != QR_DTYPE_INT8 && aligned) {
        x = qr_torch_view_of(s, t->data, qr_torch_dtype(net->t, stored), t->n_dims, dims);
        if (stored == dtype && s->device.type == QR_TORCH_CPU) return x;
        qr_th to = qr_torch_empty(s, wanted, t->n_dims, dims);
        qr_torch_copy(s, to, x);
        x = to;
    } else {
        x = qr_torch_empty(s, wanted, t->n_dims, dims);
        upload_widened(net, t, x);
    }
    qr_torch_scope_cut_but(s, mark, x);
    qr_checkpoint_release(&model->ckpt, t);
    return x;
}

static void load_layer(pt_network *net, const qr_model *model, size_t i)
{
    const qr_layer_weights *w = &model->layers[i];
    pt_layer *l = &net->layers[i];
    qr_dtype d = net->options.dtype;
    l->input_norm = load_tensor(net, model, w->input_norm, QR_DTYPE_F32);
    l->post_norm = load_tensor(net, model, w->post_norm, QR_DTYPE_F32);
    l->q_norm = load_tensor(net, model, w->q_norm, net->own_kernels ? QR_DTYPE_F32 : d);
    l->k_norm = load_tensor(net, model, w->k_norm, net->own_kernels ? QR_DTYPE_F32 : d);
    l->q = load_tensor(net, model, w->q_proj, d);
    l->k = load_tensor(net, model, w->k_proj, d);
    l->v = load_tensor(net, model, w->v_proj, d);
    l->o = load_tensor(net, model, w->o_proj, d);
    l->gate = load_tensor(net, model, w->gate_proj, d);
    l->up = load_tensor(net, model, w->up_proj, d);
    l->down = load_tensor(net, model, w->down_proj, d);
}

/* [max_length, 1, head_dim] from two tables [max_length, head_dim / 2], the left one times `sign` */
static qr_th upload_rope(pt_network *net, const float *left, const float *right, float sign, qr_error *err)
{
    size_t d = net->config.head_dim, half = d / 2, n = net->options.max_length, mark = net->scope.n;
    float *table = qr_calloc(n * d, sizeof *table);
    int64_t dims[3] = {(int64_t) n, 1, (int64_t) d};
    if (table == NULL) {
        qr_fail(err, QR_E_MEMORY, "no memory for %zu positions", n);
        return NULL;
    }
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < half; j++) {
            table[i * d + j] = sign * left[i * half + j];
            table[i * d + half + j] = right[i * half + j];
        }
    qr_th x = qr_torch_upload(&net->scope, table, qr_torch_dtype(net->t, QR_DTYPE_F32), 3, dims);
    qr_torch_scope_cut_but(&net->scope, mark, x);
    qr_free(table);
    return x;
}

/* Rounded to f32 where transformers rounds: frequencies, angles, results. */
static qr_status make_rope(pt_network *net, qr_error *err)
{
    size_t d = net->config.head_dim, half = d / 2, n = net->options.max_length;
    net->cosines = qr_calloc(n * half, sizeof *net->cosines);
    net->sines = qr_calloc(n * half, sizeof *net->sines);
    if (net->cosines == NULL || net->sines == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for %zu positions", n);
    for (size_t j = 0; j < half; j++) {
        float frequency = 1.0f / powf((float) net->config.rope_theta, (float) (2 * j) / (float) d);
        for (size_t i = 0; i < n; i++) {
            double angle = (double) ((float) i * frequency);
            net->cosines[i * half + j] = (float) cos(angle);
            net->sines[i * half + j] = (float) sin(angle);
        }
    }
    if (net->own_kernels) return QR_OK;
    net->cos = upload_rope(net, net->cosines, net->cosines, 1, err);
    net->sin = net->cos != NULL ? upload_rope(net, net->sines, net->sines, -1, err) : NULL;
    net->n_own = net->scope.n;
    qr_free(net->cosines);
    qr_free(net->sines);
    net->cosines = net->sines = NULL;
    return net->sin != NULL || net->scope.error.code != QR_OK ? QR_OK : err->code;
}

static qr_status make_mask(pt_network *net, qr_error *err)
{
    net->mask_zeros = net->options.max_length;
    size_t cols = net->mask_zeros + MASK_ROWS;
    float *values = qr_calloc(MASK_ROWS * cols, sizeof *values);
    if (values == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for a mask of %zu positions", cols);
    for (size_t i = 0; i < MASK_ROWS; i++)
        for (size_t j = i + 1; j < MASK_ROWS; j++) values[i * cols + net->mask_zeros + j] = -INFINITY;
    int64_t dims[2] = {MASK_ROWS, (int64_t) cols};
    qr_torch_scope *s = &net->scope;
    qr_th from = qr_torch_view_of(s, values, qr_torch_dtype(net->t, QR_DTYPE_F32), 2, dims);
    net->mask = qr_torch_empty(s, net->type, 2, dims);
    qr_torch_copy(s, net->mask, from);
    qr_torch_scope_cut_but(s, net->n_own, net->mask);
    net->n_own = s->n;
    qr_free(values);
    return QR_OK;
}

static qr_status load_weights(pt_network *net, const qr_model *model, qr_error *err)
{
    const uint32_t ids[2] = {net->options.yes_id, net->options.no_id};
    net->embed = load_tensor(net, model, model->embed, net->options.dtype);
    net->norm = load_tensor(net, model, model->norm, QR_DTYPE_F32);
    for (size_t i = 0; i < net->config.n_layers && net->scope.error.code == QR_OK; i++) load_layer(net, model, i);
    net->n_own = net->scope.n;
    for (int i = 0; i < 2; i++) {
        if ((net->head[i] = qr_calloc(net->config.hidden, sizeof(float))) == NULL)
            return qr_fail(err, QR_E_MEMORY, "no memory for the head");
        size_t row;
        qr_status status = qr_model_head_row(model, ids[i], &row, err);
        if (status != QR_OK) return status;
        qr_tensor_f32(net->head[i], model->head, row * net->config.hidden, net->config.hidden);
    }
    return QR_OK;
}

static qr_status choose_attention(pt_network *net, const qr_torch_device *device, qr_error *err)
{
    int wanted = net->options.flash_attention == QR_ON, may = net->options.flash_attention == QR_DEFAULT;
    qr_error why = {0};
    if (!wanted && !(may && device->type == QR_TORCH_CUDA && net->options.dtype != QR_DTYPE_F32)) return QR_OK;
    qr_status status = pt_flash_check(net->t, device, &net->config, net->type, &why);
    net->flash = status == QR_OK;
    return wanted && status != QR_OK ? qr_fail(err, status, "%s", why.msg) : QR_OK;
}

int pt_network_has_flash(const pt_network *net) { return net->flash; }

qr_status pt_network_open(pt_network **out, const qr_model *model, qr_torch *t, const qr_torch_device *device, const pt_options *options,
                          qr_error *err)
{
    *out = NULL;
    pt_network *net = qr_calloc(1, sizeof *net);
    if (net == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for a network");
    net->t = t;
    net->config = model->config;
    net->options = *options;
    net->type = qr_torch_dtype(t, options->dtype);
    net->own_kernels = device->type == QR_TORCH_CPU && options->dtype != QR_DTYPE_F16 && net->config.head_dim <= MAX_HEAD_DIM;
    qr_torch_scope_init(&net->scope, t, device);
    qr_torch_thread_begin(t, options->threads);
    net->layers = qr_calloc(net->config.n_layers, sizeof *net->layers);
    qr_status status = net->layers != NULL ? QR_OK : qr_fail(err, QR_E_MEMORY, "no memory for a list of layers");
    if (status == QR_OK) status = choose_attention(net, device, err);
    if (status == QR_OK) status = load_weights(net, model, err);
    if (status == QR_OK) status = qr_torch_scope_status(&net->scope, err);
    if (status == QR_OK) status = make_rope(net, err);
    if (status == QR_OK) status = make_mask(net, err);
    if (status == QR_OK) status = qr_torch_scope_status(&net->scope, err);
    if (status != QR_OK) {
        pt_network_close(net);
        return status;
    }
    *out = net;
    return QR_OK;
}

/* ---- prefixes ------------------------------------------------------------------------------------------------------------------- */

static void drop_prefix(pt_network *net, pt_prefix **at)
{
    pt_prefix *p = *at;
    *at = p->next;
    net->prefix_bytes -= p->filled ? p->bytes : 0;
    for (size_t i = 0; i < net->config.n_layers; i++) {
        qr_torch_free(net->t, p->k[i]);
        qr_torch_free(net->t, p->v[i]);
    }
    qr_free(p->k);
    qr_free(p->v);
    qr_free(p->ids);
    qr_free(p);
}

qr_status pt_prefix_get(pt_prefix **out, pt_network *net, const qr_prefix *wanted, qr_error *err)
{
    for (pt_prefix *p = net->prefixes; p != NULL; p = p->next)
        if (p->n_ids == wanted->n_ids && memcmp(p->ids, wanted->ids, p->n_ids * sizeof *p->ids) == 0) {
            p->last_use = ++net->clock;
            *out = p;
            return QR_OK;
        }
    size_t n_layers = net->config.n_layers, width = net->config.n_kv_heads * net->config.head_dim;
    pt_prefix *p = qr_calloc(1, sizeof *p);
    if (p != NULL) {
        p->ids = qr_calloc(wanted->n_ids, sizeof *p->ids);
        p->k = qr_calloc(n_layers, sizeof(qr_th));
        p->v = qr_calloc(n_layers, sizeof(qr_th));
    }
    if (p == NULL || p->ids == NULL || p->k == NULL || p->v == NULL) {
        if (p != NULL) {
            qr_free(p->ids);
            qr_free(p->k);
            qr_free(p->v);
        }
        qr_free(p);
        return qr_fail(err, QR_E_MEMORY, "no memory for a query prefix");
    }
    p->n_ids = wanted->n_ids;
    memcpy(p->ids, wanted->ids, p->n_ids * sizeof *p->ids);
    p->bytes = 2 * n_layers * p->n_ids * width * (net->options.dtype == QR_DTYPE_F32 ? 4 : 2);
    p->last_use = ++net->clock;
    p->next = net->prefixes;
    net->prefixes = *out = p;
    return QR_OK;
}

int pt_prefix_is_filled(const pt_prefix *prefix) { return prefix->filled; }

void pt_prefix_trim(pt_network *net)
{
    for (pt_prefix **at = &net->prefixes; *at != NULL;) {
        if ((*at)->filled) at = &(*at)->next;
        else drop_prefix(net, at);
    }
    while (net->prefix_bytes > net->options.prefix_cache_bytes && net->prefixes != NULL && net->prefixes->next != NULL) {
        pt_prefix **oldest = &net->prefixes;
        for (pt_prefix **at = &net->prefixes; *at != NULL; at = &(*at)->next)
            if ((*at)->last_use < (*oldest)->last_use) oldest = at;
        drop_prefix(net, oldest);
    }
}

void pt_network_close(pt_network *net)
{
    if (net == NULL) return;
    while (net->prefixes != NULL) drop_prefix(net, &net->prefixes);
    qr_torch_scope_deinit(&net->scope);
    qr_free(net->layers);
    qr_free(net->head[0]);
    qr_free(net->head[1]);
    qr_free(net->cosines);
    qr_free(net->sines);
    qr_free(net);
}
