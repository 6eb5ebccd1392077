/* See network.h. */
#include "pytorch/network.h"

#include "base/mem.h"
#include "cpu/tensor_f32.h"
#include "pytorch/flash.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MASK_ROWS = 512 };

typedef struct layer {
    qr_th input_norm, post_norm; /* f32 */
    qr_th q_norm, k_norm;        /* of the type */
    qr_th q, k, v, o, gate, up, down;
} layer;

struct pt_prefix {
    uint32_t *ids;
    size_t n_ids, bytes;
    qr_th *k, *v; /* [n_layers] each, NULL until filled */
    int filled;
    uint64_t last_use;
    pt_prefix *next;
};

struct pt_network {
    qr_torch *t;
    qr_torch_scope scope; /* first n_own: the weights and tables */
    size_t n_own;
    qr_config config;
    pt_options options;
    int type; /* torch's number of options.dtype */
    int flash;
    qr_th embed, norm;
    layer *layers;     /* [n_layers] */
    float *head[2];    /* yes and no, [hidden] each */
    qr_th cos, sin;    /* [max_length, 1, head_dim] f32; the first half of each row of sin is negated, see rope() */
    qr_th mask;        /* [MASK_ROWS, max_length + MASK_ROWS]: zeros, then a triangle; every causal mask is a part of it */
    size_t mask_zeros; /* columns before the triangle */
    pt_prefix *prefixes;
    size_t prefix_bytes;
    uint64_t clock;
};

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
    layer *l = &net->layers[i];
    qr_dtype d = net->options.dtype;
    l->input_norm = load_tensor(net, model, w->input_norm, QR_DTYPE_F32);
    l->post_norm = load_tensor(net, model, w->post_norm, QR_DTYPE_F32);
    l->q_norm = load_tensor(net, model, w->q_norm, d);
    l->k_norm = load_tensor(net, model, w->k_norm, d);
    l->q = load_tensor(net, model, w->q_proj, d);
    l->k = load_tensor(net, model, w->k_proj, d);
    l->v = load_tensor(net, model, w->v_proj, d);
    l->o = load_tensor(net, model, w->o_proj, d);
    l->gate = load_tensor(net, model, w->gate_proj, d);
    l->up = load_tensor(net, model, w->up_proj, d);
    l->down = load_tensor(net, model, w->down_proj, d);
}

/* Rounded to f32 where transformers rounds: frequencies, angles, results. */
static qr_status make_rope(pt_network *net, qr_error *err)
{
    size_t d = net->config.head_dim, half = d / 2, n = net->options.max_length;
    float *cosines = qr_calloc(n * d, sizeof *cosines), *sines = qr_calloc(n * d, sizeof *sines);
    if (cosines == NULL || sines == NULL) {
        qr_free(cosines);
        qr_free(sines);
        return qr_fail(err, QR_E_MEMORY, "no memory for %zu positions", n);
    }
    for (size_t j = 0; j < half; j++) {
        float frequency = 1.0f / powf((float) net->config.rope_theta, (float) (2 * j) / (float) d);
        for (size_t i = 0; i < n; i++) {
            double angle = (double) ((float) i * frequency);
            cosines[i * d + j] = cosines[i * d + j + half] = (float) cos(angle);
            sines[i * d + j + half] = (float) sin(angle);
            sines[i * d + j] = -sines[i * d + j + half];
        }
    }
    int64_t dims[3] = {(int64_t) n, 1, (int64_t) d};
    net->cos = qr_torch_upload(&net->scope, cosines, qr_torch_dtype(net->t, QR_DTYPE_F32), 3, dims);
    net->sin = qr_torch_upload(&net->scope, sines, qr_torch_dtype(net->t, QR_DTYPE_F32), 3, dims);
    if (net->cos != NULL && net->sin != NULL) { /* the uploads' sources are this memory */
        qr_th cos = qr_torch_keep(&net->scope, net->cos), sin = qr_torch_keep(&net->scope, net->sin);
        qr_torch_scope_cut(&net->scope, net->n_own);
        net->cos = qr_torch_put(&net->scope, cos);
        net->sin = qr_torch_put(&net->scope, sin);
        net->n_own = net->scope.n;
    }
    qr_free(cosines);
    qr_free(sines);
    return QR_OK;
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
        qr_tensor_f32(net->head[i], model->head, ids[i] * net->config.hidden, net->config.hidden);
    }
    return QR_OK;
}

static qr_status scope_status(const qr_torch_scope *s, qr_error *err)
{
    return s->error.code == QR_OK ? QR_OK : qr_fail(err, s->error.code, "%s", s->error.msg);
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
    qr_torch_scope_init(&net->scope, t, device);
    qr_torch_thread_begin(t, options->threads);
    net->layers = qr_calloc(net->config.n_layers, sizeof *net->layers);
    qr_status status = net->layers != NULL ? QR_OK : qr_fail(err, QR_E_MEMORY, "no memory for a list of layers");
    if (status == QR_OK) status = choose_attention(net, device, err);
    if (status == QR_OK) status = load_weights(net, model, err);
    if (status == QR_OK) status = scope_status(&net->scope, err);
    if (status == QR_OK) status = make_rope(net, err);
    if (status == QR_OK) status = make_mask(net, err);
    if (status == QR_OK) status = scope_status(&net->scope, err);
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
    qr_free(net);
}

/* ---- groups --------------------------------------------------------------------------------------------------------------------- */

/* Rows of a pass that attend as one batch: next to each other, of one prefix, or one prefix to fill. */
typedef struct group {
    const pt_row *rows;              /* [n_rows] */
    size_t n_rows, n_tokens, length; /* length: of the longest row */
    size_t first_token, first_last;  /* first_last: place of its first row among the rows that have logits */
    pt_prefix *prefix, *fill;
    qr_th spread; /* [n_rows * length]: token of each place, NULL if all rows are as long; places past a row's end repeat its last token */
    qr_th gather; /* [n_tokens]: place of each token */
    qr_th last_mask; /* [n_rows, 1, 1, prefix + length]: what each row's last token sees */
    qr_th positions; /* [n_rows]: of the last tokens */
} group;

/* For flash attention: where the queries and keys of each sequence lie. */
typedef struct packing {
    qr_th cum_q, cum_k; /* [sequences + 1] int32: begins, and the end */
    qr_th keys;         /* rows of the pass's prefixes, one after another, and then its own tokens; NULL: its own tokens as they are */
    int64_t max_q, max_k;
    qr_th cos, sin; /* [queries, 1, head_dim] */
} packing;

typedef struct pass {
    pt_network *net;
    qr_torch_scope *s;
    group *groups; /* [n_groups] */
    size_t n_groups, n_tokens, n_last;
    qr_th ids, last_rows;
    packing packed, packed_last; /* of all layers, and of the last one */
    const volatile int *cancel;
} pass;

static int compare_rows(const void *a, const void *b)
{
    const pt_row *x = a, *y = b;
    if ((x->fill != NULL) != (y->fill != NULL)) return x->fill != NULL ? -1 : 1;
    if (x->prefix != y->prefix) return (uintptr_t) x->prefix < (uintptr_t) y->prefix ? -1 : 1;
    return x->n_ids < y->n_ids ? -1 : x->n_ids > y->n_ids;
}

static size_t prefix_length(const group *g) { return g->prefix != NULL ? g->prefix->n_ids : 0; }
static int is_even(const group *g) { return g->n_tokens == g->n_rows * g->length; }

/* Padding costs attention only; at most a quarter of it. */
static int joins(const group *g, const pt_row *r)
{
    return r->fill == NULL && g->fill == NULL && g->prefix == r->prefix &&
           (g->n_rows + 1) * r->n_ids - (g->n_tokens + r->n_ids) <= (g->n_tokens + r->n_ids) / 4;
}

static void make_groups(pass *p, const pt_row *rows, size_t n_rows)
{
    for (size_t i = 0; i < n_rows; i++) {
        const pt_row *r = &rows[i];
        group *g = p->n_groups > 0 ? &p->groups[p->n_groups - 1] : NULL;
        if (g == NULL || !joins(g, r)) {
            g = &p->groups[p->n_groups++];
            *g = (group){.rows = r, .first_token = p->n_tokens, .first_last = p->n_last, .prefix = r->prefix, .fill = r->fill};
        }
        g->n_rows++;
        g->n_tokens += r->n_ids;
        if (r->n_ids > g->length) g->length = r->n_ids;
        p->n_tokens += r->n_ids;
        p->n_last += r->fill == NULL;
    }
}

/* Index tensors of a group, from one block of scratch: [n_rows * length] + [n_tokens] + [n_rows] integers. */
static void make_indices(pass *p, group *g, int64_t *scratch)
{
    int64_t *spread = scratch, *gather = spread + g->n_rows * g->length, *positions = gather + g->n_tokens;
    size_t n_spread = 0, n_gather = 0, start = 0;
    for (size_t r = 0; r < g->n_rows; r++) {
        size_t n = g->rows[r].n_ids;
        for (size_t j = 0; j < g->length; j++) spread[n_spread++] = (int64_t) (start + (j < n ? j : n - 1));
        for (size_t j = 0; j < n; j++) gather[n_gather++] = (int64_t) (r * g->length + j);
        positions[r] = (int64_t) (prefix_length(g) + n - 1);
        start += n;
    }
    int i64 = qr_torch_int64(p->net->t);
    int64_t n_rows = (int64_t) g->n_rows, places = (int64_t) n_spread, tokens = (int64_t) n_gather;
    g->positions = qr_torch_upload(p->s, positions, i64, 1, &n_rows);
    if (is_even(g)) return;
    g->spread = qr_torch_upload(p->s, spread, i64, 1, &places);
    g->gather = qr_torch_upload(p->s, gather, i64, 1, &tokens);
}

static qr_status make_last_mask(pass *p, group *g, qr_error *err)
{
    size_t keys = prefix_length(g) + g->length;
    if (is_even(g) || g->fill != NULL) return QR_OK;
    float *values = qr_calloc(g->n_rows * keys, sizeof *values);
    if (values == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for a mask");
    for (size_t r = 0; r < g->n_rows; r++)
        for (size_t j = prefix_length(g) + g->rows[r].n_ids; j < keys; j++) values[r * keys + j] = -INFINITY;
    int64_t dims[4] = {(int64_t) g->n_rows, 1, 1, (int64_t) keys};
    qr_th from = qr_torch_view_of(p->s, values, qr_torch_dtype(p->net->t, QR_DTYPE_F32), 4, dims);
    g->last_mask = qr_torch_empty(p->s, p->net->type, 4, dims);
    qr_torch_copy(p->s, g->last_mask, from);
    qr_free(values);
    return QR_OK;
}

/* The distinct prefixes of a pass come in the order of its groups. */
static int begins_prefix(const pass *p, size_t g)
{
    const pt_prefix *prefix = p->groups[g].prefix;
    return prefix != NULL && (g == 0 || p->groups[g - 1].prefix != prefix);
}

/* last: one query of each sequence, its last token, and none of those that fill a prefix. cum: scratch [2 * (n_rows + 1)], keys: scratch
 * [n_tokens + the prefixes of all rows], positions: scratch [n_tokens]. */
static void make_packing(pass *p, packing *out, int last, int32_t *cum_q, int64_t *keys, int64_t *positions)
{
    size_t n = 0, n_queries = 0, n_keys = 0, prefix_rows = 0, prefix_first = 0, n_rows = 0;
    for (size_t g = 0; g < p->n_groups; g++) {
        n_rows += p->groups[g].n_rows;
        if (begins_prefix(p, g)) prefix_rows += prefix_length(&p->groups[g]);
    }
    int32_t *cum_k = cum_q + n_rows + 1;
    size_t prefix_end = 0;
    for (size_t g = 0; g < p->n_groups; g++) {
        const group *own = &p->groups[g];
        size_t before = prefix_length(own), token = own->first_token;
        if (begins_prefix(p, g)) {
            prefix_first = prefix_end;
            prefix_end += before;
        }
        for (size_t r = 0; r < own->n_rows; r++) {
            size_t length = own->rows[r].n_ids, first_query = last ? length - 1 : 0;
            if (!(last && own->fill != NULL)) {
                cum_q[n] = (int32_t) n_queries;
                cum_k[n++] = (int32_t) n_keys;
                for (size_t j = first_query; j < length; j++) positions[n_queries++] = (int64_t) (before + j);
                for (size_t j = 0; j < before; j++) keys[n_keys++] = (int64_t) (prefix_first + j);
                for (size_t j = 0; j < length; j++) keys[n_keys++] = (int64_t) (prefix_rows + token + j);
                if ((int64_t) (length - first_query) > out->max_q) out->max_q = (int64_t) (length - first_query);
                if ((int64_t) (before + length) > out->max_k) out->max_k = (int64_t) (before + length);
            }
            token += length;
        }
    }
    cum_q[n] = (int32_t) n_queries;
    cum_k[n] = (int32_t) n_keys;
    int i64 = qr_torch_int64(p->net->t), i32 = qr_torch_int32(p->net->t);
    int64_t ends = (int64_t) n + 1, queries = (int64_t) n_queries, all_keys = (int64_t) n_keys;
    out->cum_q = qr_torch_upload(p->s, cum_q, i32, 1, &ends);
    out->cum_k = qr_torch_upload(p->s, cum_k, i32, 1, &ends);
    if (n_keys != p->n_tokens || prefix_rows > 0) out->keys = qr_torch_upload(p->s, keys, i64, 1, &all_keys);
    qr_th at = qr_torch_upload(p->s, positions, i64, 1, &queries);
    out->cos = qr_torch_index_select(p->s, p->net->cos, 0, at);
    out->sin = qr_torch_index_select(p->s, p->net->sin, 0, at);
}

static qr_status make_packings(pass *p, const pt_row *rows, size_t n_rows, qr_error *err)
{
    size_t n_keys = p->n_tokens;
    for (size_t i = 0; i < n_rows; i++) n_keys += rows[i].prefix != NULL ? rows[i].prefix->n_ids : 0;
    if (n_keys > INT32_MAX) return qr_fail(err, QR_E_MEMORY, "too many keys for one pass: %zu", n_keys);
    int32_t *cum = qr_calloc(2 * (n_rows + 1), sizeof *cum);
    int64_t *keys = qr_calloc(n_keys + p->n_tokens, sizeof *keys);
    if (cum != NULL && keys != NULL) {
        make_packing(p, &p->packed, 0, cum, keys, keys + n_keys);
        make_packing(p, &p->packed_last, 1, cum, keys, keys + n_keys);
    }
    qr_status status = cum != NULL && keys != NULL ? QR_OK : qr_fail(err, QR_E_MEMORY, "no memory for the indices of %zu keys", n_keys);
    qr_free(cum);
    qr_free(keys);
    return status;
}

/* What a pass needs before its first layer. */
static qr_status make_pass(pass *p, pt_row *rows, size_t n_rows, qr_error *err)
{
    qsort(rows, n_rows, sizeof *rows, compare_rows);
    make_groups(p, rows, n_rows);
    size_t most = 2 * p->n_tokens;
    for (size_t i = 0; i < p->n_groups; i++) {
        size_t n = p->groups[i].n_rows * (p->groups[i].length + 1) + p->groups[i].n_tokens;
        if (n > most) most = n;
    }
    int64_t *scratch = qr_calloc(most, sizeof *scratch), *last = scratch + p->n_tokens, n_last = 0, n_tokens = 0;
    if (scratch == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for the indices of %zu tokens", p->n_tokens);
    for (size_t i = 0; i < n_rows; i++) {
        for (size_t j = 0; j < rows[i].n_ids; j++) scratch[n_tokens++] = rows[i].ids[j];
        if (rows[i].fill == NULL) last[n_last++] = n_tokens - 1;
    }
    int i64 = qr_torch_int64(p->net->t);
    p->ids = qr_torch_upload(p->s, scratch, i64, 1, &n_tokens);
    p->last_rows = qr_torch_upload(p->s, last, i64, 1, &n_last);
    qr_status status = p->net->flash ? make_packings(p, rows, n_rows, err) : QR_OK;
    for (size_t i = 0; i < p->n_groups && status == QR_OK && !p->net->flash; i++) {
        make_indices(p, &p->groups[i], scratch);
        status = make_last_mask(p, &p->groups[i], err);
    }
    qr_free(scratch);
    return status;
}

/* ---- layers --------------------------------------------------------------------------------------------------------------------- */

/* x [.., heads, head_dim] turned by tables [.., 1, head_dim]: x * cos + (x2, x1) * (-sin, sin), where x = (x1, x2). In f32, then rounded.
 */
static qr_th rope(const pass *p, qr_th x, qr_th cos, qr_th sin)
{
    qr_torch_scope *s = p->s;
    qr_th swapped = qr_torch_roll(s, x, (int64_t) (p->net->config.head_dim / 2), -1);
    return qr_torch_to(s, qr_torch_add(s, qr_torch_mul(s, x, cos), qr_torch_mul(s, swapped, sin)), p->net->type);
}

/* The group's tokens of x [n_tokens of the pass, n * head_dim] as [n_rows, length, n, head_dim] */
static qr_th heads(const pass *p, const group *g, qr_th x, size_t n)
{
    qr_torch_scope *s = p->s;
    int64_t dims[4] = {(int64_t) g->n_rows, (int64_t) g->length, (int64_t) n, (int64_t) p->net->config.head_dim};
    qr_th own = qr_torch_narrow(s, x, 0, (int64_t) g->first_token, (int64_t) g->n_tokens);
    if (g->spread != NULL) own = qr_torch_index_select(s, own, 0, g->spread);
    return qr_torch_reshape(s, own, 4, dims);
}

static qr_th at_positions(const pass *p, const group *g, qr_th table)
{
    return qr_torch_narrow(p->s, table, 0, (int64_t) prefix_length(g), (int64_t) g->length);
}

/* The prefix's before the own ones: [n_rows, prefix + length, n_kv_heads, head_dim] */
static qr_th with_prefix(const pass *p, const group *g, qr_th prefix, qr_th own)
{
    if (g->prefix == NULL) return own;
    int64_t dims[4] = {(int64_t) g->n_rows, (int64_t) prefix_length(g), (int64_t) p->net->config.n_kv_heads,
                       (int64_t) p->net->config.head_dim};
    qr_th parts[2] = {qr_torch_expand(p->s, prefix, 4, dims), own};
    return qr_torch_cat(p->s, parts, 2, 1);
}

/* q [n_rows, n_heads, length, head_dim], k and v [n_rows, n_kv_heads, keys, head_dim]. sdpa's own "causal" lets the first query see the
 * first key only, which is wrong behind a prefix; a mask of all pairs would be large: blocks of queries, each with a part of one mask. */
static qr_th attend(const pass *p, const group *g, qr_th q, qr_th k, qr_th v)
{
    pt_network *net = p->net;
    qr_torch_scope *s = p->s;
    double scale = 1 / sqrt((double) net->config.head_dim);
    if (g->prefix == NULL) return qr_torch_sdpa(s, q, k, v, NULL, g->length > 1, scale);
    size_t n_blocks = (g->length + MASK_ROWS - 1) / MASK_ROWS;
    qr_th *blocks = qr_calloc(n_blocks, sizeof *blocks);
    if (blocks == NULL) {
        qr_fail(&s->error, QR_E_MEMORY, "no memory for %zu blocks of attention", n_blocks);
        return NULL;
    }
    for (size_t i = 0; i < n_blocks; i++) {
        size_t begin = i * MASK_ROWS, rows = g->length - begin < MASK_ROWS ? g->length - begin : MASK_ROWS;
        int64_t before = (int64_t) (prefix_length(g) + begin), keys = before + (int64_t) rows;
        qr_th mask = qr_torch_narrow(s, qr_torch_narrow(s, net->mask, 0, 0, (int64_t) rows), 1, (int64_t) net->mask_zeros - before, keys);
        blocks[i] = qr_torch_sdpa(s, n_blocks > 1 ? qr_torch_narrow(s, q, 2, (int64_t) begin, (int64_t) rows) : q,
                                  n_blocks > 1 ? qr_torch_narrow(s, k, 2, 0, keys) : k,
                                  n_blocks > 1 ? qr_torch_narrow(s, v, 2, 0, keys) : v, mask, 0, scale);
    }
    qr_th all = qr_torch_cat(s, blocks, n_blocks, 2);
    qr_free(blocks);
    return all;
}

/* K and V that stay: copies, which do not hold the pass's memory. */
static void fill_prefix(const pass *p, const group *g, size_t i, qr_th k, qr_th v)
{
    qr_th own_k = qr_torch_contiguous(p->s, k), own_v = qr_torch_contiguous(p->s, v);
    if (p->s->error.code != QR_OK) return;
    qr_torch_free(p->net->t, g->fill->k[i]); /* of a pass that was not finished */
    qr_torch_free(p->net->t, g->fill->v[i]);
    g->fill->k[i] = qr_torch_keep(p->s, own_k);
    g->fill->v[i] = qr_torch_keep(p->s, own_v);
}

/* The group's rows of the attention's output, [n_tokens, n_heads * head_dim]; in the last layer one row a sequence. */
static qr_th attend_group(const pass *p, const group *g, size_t i, qr_th q, qr_th k, qr_th v)
{
    pt_network *net = p->net;
    qr_torch_scope *s = p->s;
    const qr_config *c = &net->config;
    const layer *l = &net->layers[i];
    int is_last = i + 1 == c->n_layers;
    double eps = (double) c->rms_eps;
    qr_th cos = at_positions(p, g, net->cos), sin = at_positions(p, g, net->sin);
    qr_th keys = rope(p, qr_torch_rms_norm(s, heads(p, g, k, c->n_kv_heads), l->k_norm, eps), cos, sin);
    qr_th values = heads(p, g, v, c->n_kv_heads);
    if (g->fill != NULL) {
        fill_prefix(p, g, i, keys, values);
        if (is_last) return NULL;
    }
    keys = qr_torch_transpose(s, with_prefix(p, g, g->prefix != NULL ? g->prefix->k[i] : NULL, keys), 1, 2);
    values = qr_torch_transpose(s, with_prefix(p, g, g->prefix != NULL ? g->prefix->v[i] : NULL, values), 1, 2);
    int64_t width = (int64_t) (c->n_heads * c->head_dim), n_rows = (int64_t) g->n_rows;
    if (is_last) {
        int64_t one[4] = {n_rows, 1, (int64_t) c->n_heads, (int64_t) c->head_dim}, turn[4] = {n_rows, 1, 1, (int64_t) c->head_dim};
        qr_th own = qr_torch_reshape(s, qr_torch_narrow(s, q, 0, (int64_t) g->first_last, n_rows), 4, one);
        cos = qr_torch_reshape(s, qr_torch_index_select(s, net->cos, 0, g->positions), 4, turn);
        sin = qr_torch_reshape(s, qr_torch_index_select(s, net->sin, 0, g->positions), 4, turn);
        own = qr_torch_transpose(s, rope(p, qr_torch_rms_norm(s, own, l->q_norm, eps), cos, sin), 1, 2);
        qr_th o = qr_torch_sdpa(s, own, keys, values, g->last_mask, 0, 1 / sqrt((double) c->head_dim));
        return qr_torch_reshape(s, o, 2, (int64_t[]){n_rows, width});
    }
    qr_th own = rope(p, qr_torch_rms_norm(s, heads(p, g, q, c->n_heads), l->q_norm, eps), cos, sin);
    qr_th o = qr_torch_transpose(s, attend(p, g, qr_torch_transpose(s, own, 1, 2), keys, values), 1, 2);
    o = qr_torch_reshape(s, o, 2, (int64_t[]){n_rows * (int64_t) g->length, width});
    return g->gather != NULL ? qr_torch_index_select(s, o, 0, g->gather) : o;
}

/* x [n, heads * head_dim] as [n, heads, head_dim] */
static qr_th split_heads(const pass *p, qr_th x, size_t n, size_t heads)
{
    return qr_torch_reshape(p->s, x, 3, (int64_t[]){(int64_t) n, (int64_t) heads, (int64_t) p->net->config.head_dim});
}

/* Keys (or values) of all sequences, one after another: own [n_tokens, n_kv_heads, head_dim] behind those of the prefixes, in the packing's
 * order. */
static qr_th all_keys(const pass *p, const packing *packed, qr_th own, size_t i, int values)
{
    qr_torch_scope *s = p->s;
    if (packed->keys == NULL) return own;
    qr_th *parts = qr_calloc(p->n_groups + 1, sizeof *parts);
    size_t n = 0;
    if (parts == NULL) {
        qr_fail(&s->error, QR_E_MEMORY, "no memory for a list of tensors");
        return NULL;
    }
    for (size_t g = 0; g < p->n_groups; g++)
        if (begins_prefix(p, g)) {
            const pt_prefix *prefix = p->groups[g].prefix;
            parts[n++] = split_heads(p, values ? prefix->v[i] : prefix->k[i], prefix->n_ids, p->net->config.n_kv_heads);
        }
    parts[n++] = own;
    qr_th all = qr_torch_index_select(s, qr_torch_cat(s, parts, n, 0), 0, packed->keys);
    qr_free(parts);
    return all;
}

/* q, k and v of the whole pass at once. */
static qr_th attend_packed(const pass *p, size_t i, qr_th q, qr_th k, qr_th v)
{
    pt_network *net = p->net;
    qr_torch_scope *s = p->s;
    const qr_config *c = &net->config;
    const layer *l = &net->layers[i];
    int is_last = i + 1 == c->n_layers;
    size_t mark = s->n;
    const packing *packed = is_last ? &p->packed_last : &p->packed;
    size_t n_queries = is_last ? p->n_last : p->n_tokens;
    double eps = (double) c->rms_eps;
    k = rope(p, qr_torch_rms_norm(s, split_heads(p, k, p->n_tokens, c->n_kv_heads), l->k_norm, eps), p->packed.cos, p->packed.sin);
    v = split_heads(p, v, p->n_tokens, c->n_kv_heads);
    for (size_t g = 0; g < p->n_groups && s->error.code == QR_OK; g++) {
        int64_t first = (int64_t) p->groups[g].first_token, n = (int64_t) p->groups[g].n_tokens;
        if (p->groups[g].fill != NULL)
            fill_prefix(p, &p->groups[g], i, qr_torch_narrow(s, k, 0, first, n), qr_torch_narrow(s, v, 0, first, n));
    }
    if (s->error.code != QR_OK) return NULL;
    q = rope(p, qr_torch_rms_norm(s, split_heads(p, q, n_queries, c->n_heads), l->q_norm, eps), packed->cos, packed->sin);
    qr_th o = qr_torch_flash(s, q, all_keys(p, packed, k, i, 0), all_keys(p, packed, v, i, 1), packed->cum_q, packed->cum_k, packed->max_q,
                             packed->max_k, 1 / sqrt((double) c->head_dim));
    o = qr_torch_reshape(s, o, 2, (int64_t[]){(int64_t) n_queries, (int64_t) (c->n_heads * c->head_dim)});
    qr_torch_scope_cut_but(s, mark, o);
    return o;
}

/* x [n_tokens, hidden] normed, of the type. */
static qr_th attention(const pass *p, size_t i, qr_th x)
{
    qr_torch_scope *s = p->s;
    const layer *l = &p->net->layers[i];
    int is_last = i + 1 == p->net->config.n_layers;
    qr_th q = qr_torch_linear(s, is_last ? qr_torch_index_select(s, x, 0, p->last_rows) : x, l->q);
    qr_th k = qr_torch_linear(s, x, l->k), v = qr_torch_linear(s, x, l->v);
    if (p->net->flash) return attend_packed(p, i, q, k, v);
    qr_th *parts = qr_calloc(p->n_groups, sizeof *parts);
    size_t n = 0;
    if (parts == NULL) {
        qr_fail(&s->error, QR_E_MEMORY, "no memory for a list of tensors");
        return NULL;
    }
    for (size_t j = 0; j < p->n_groups && s->error.code == QR_OK; j++) {
        size_t mark = s->n; /* only its result stays: on the GPU, too, memory is given back early */
        qr_th o = attend_group(p, &p->groups[j], i, q, k, v);
        if (o != NULL) parts[n++] = o;
        qr_torch_scope_cut_but(s, mark, o);
    }
    qr_th all = s->error.code == QR_OK ? qr_torch_cat(s, parts, n, 0) : NULL;
    qr_free(parts);
    return all;
}

/* h [n_tokens, hidden] f32 after one more layer; after the last, the rows that have logits. */
static qr_th run_layer(const pass *p, size_t i, qr_th h)
{
    pt_network *net = p->net;
    qr_torch_scope *s = p->s;
    const layer *l = &net->layers[i];
    double eps = (double) net->config.rms_eps;
    int f32 = qr_torch_dtype(net->t, QR_DTYPE_F32);
    qr_th o = attention(p, i, qr_torch_to(s, qr_torch_rms_norm(s, h, l->input_norm, eps), net->type));
    if (i + 1 == net->config.n_layers) h = qr_torch_index_select(s, h, 0, p->last_rows);
    h = qr_torch_add(s, h, qr_torch_to(s, qr_torch_linear(s, o, l->o), f32));
    qr_th x = qr_torch_to(s, qr_torch_rms_norm(s, h, l->post_norm, eps), net->type);
    x = qr_torch_mul(s, qr_torch_silu(s, qr_torch_linear(s, x, l->gate)), qr_torch_linear(s, x, l->up));
    return qr_torch_add(s, h, qr_torch_to(s, qr_torch_linear(s, x, l->down), f32));
}

/* Two rows of the head for each sequence, in double precision. */
static qr_status read_logits(const pass *p, qr_th h, const pt_row *rows, size_t n_rows, qr_error *err)
{
    pt_network *net = p->net;
    size_t hidden = net->config.hidden;
    float *values = qr_calloc(p->n_last * hidden, sizeof *values);
    if (values == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for %zu results", p->n_last);
    qr_torch_download(p->s, values, qr_torch_rms_norm(p->s, h, net->norm, (double) net->config.rms_eps), p->n_last * hidden);
    const float *x = values;
    for (size_t i = 0; i < n_rows && p->s->error.code == QR_OK; i++) {
        double sums[2] = {0};
        if (rows[i].fill != NULL) continue;
        for (int j = 0; j < 2; j++)
            for (size_t c = 0; c < hidden; c++) sums[j] += (double) x[c] * (double) net->head[j][c];
        *rows[i].out = (qr_logits){(float) sums[0], (float) sums[1]};
        x += hidden;
    }
    qr_torch_scope_cut(p->s, net->n_own);
    qr_free(values);
    return QR_OK;
}

static qr_status run(pass *p, pt_row *rows, size_t n_rows, qr_error *err)
{
    pt_network *net = p->net;
    qr_torch_scope *s = p->s;
    qr_status status = make_pass(p, rows, n_rows, err);
    if (status != QR_OK) return status;
    size_t mark = s->n;
    qr_th h = qr_torch_to(s, qr_torch_index_select(s, net->embed, 0, p->ids), qr_torch_dtype(net->t, QR_DTYPE_F32));
    for (size_t i = 0; i < net->config.n_layers && s->error.code == QR_OK; i++) {
        if (qr_is_set(p->cancel)) return qr_fail(err, QR_E_CANCELLED, "cancelled");
        h = run_layer(p, i, h);
        qr_torch_scope_cut_but(s, mark, h);
    }
    status = scope_status(s, err);
    if (status == QR_OK) status = read_logits(p, h, rows, n_rows, err);
    return status == QR_OK ? scope_status(s, err) : status;
}

qr_status pt_network_run(pt_network *net, pt_row *rows, size_t n_rows, const volatile int *cancel, qr_error *err)
{
    pass p = {.net = net, .s = &net->scope, .cancel = cancel};
    p.groups = qr_calloc(n_rows, sizeof *p.groups);
    if (p.groups == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for a pass");
    net->scope.error = (qr_error){0};
    qr_torch_thread_begin(net->t, net->options.threads);
    qr_status status = run(&p, rows, n_rows, err);
    qr_torch_scope_cut(&net->scope, net->n_own);
    for (size_t i = 0; i < n_rows && status == QR_OK; i++)
        if (rows[i].fill != NULL) {
            rows[i].fill->filled = 1;
            net->prefix_bytes += rows[i].fill->bytes;
        }
    qr_free(p.groups);
    return status;
}
