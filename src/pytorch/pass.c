/* See network.h: one pass over the tokens of some sequences. */
#include "base/mem.h"
#include "cpu/kernels.h"
#include "pytorch/network_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

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
} group;

/* For flash attention: where the queries and keys of each sequence lie. */
typedef struct packing {
    qr_th cum_q, cum_k; /* [sequences + 1] int32: begins, and the end */
    qr_th keys;         /* rows of the pass's prefixes, one after another, and then its own tokens; NULL: its own tokens as they are */
    int64_t max_q, max_k;
} packing;

/* Positions of tokens in their prompts, and what RoPE needs of them. */
typedef struct turn {
    const int64_t *positions; /* [n] */
    size_t n;
    qr_th cos, sin; /* [n, 1, head_dim]; NULL where our own kernels turn */
} turn;

typedef struct pass {
    pt_network *net;
    qr_torch_scope *s;
    group *groups; /* [n_groups] */
    size_t n_groups, n_tokens, n_last;
    qr_th ids, last_rows;
    turn turn, turn_last;        /* of all tokens, and of the last ones of the rows that have logits */
    packing packed, packed_last; /* of all layers, and of the last one */
    int64_t *positions;          /* the turns' memory */
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

/* Index tensors of a group whose rows differ in length, from one block of scratch: [n_rows * length] + [n_tokens] integers. */
static void make_indices(pass *p, group *g, int64_t *scratch)
{
    int64_t *spread = scratch, *gather = spread + g->n_rows * g->length;
    size_t n_spread = 0, n_gather = 0, start = 0;
    for (size_t r = 0; r < g->n_rows; r++) {
        size_t n = g->rows[r].n_ids;
        for (size_t j = 0; j < g->length; j++) spread[n_spread++] = (int64_t) (start + (j < n ? j : n - 1));
        for (size_t j = 0; j < n; j++) gather[n_gather++] = (int64_t) (r * g->length + j);
        start += n;
    }
    int i64 = qr_torch_int64(p->net->t);
    int64_t places = (int64_t) n_spread, tokens = (int64_t) n_gather;
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

/* last: one query of each sequence, its last token, and none of those that fill a prefix. cum_q: scratch [2 * (n_rows + 1)], keys: scratch
 * [n_tokens + the prefixes of all rows]. */
static void make_packing(pass *p, packing *out, int last, int32_t *cum_q, int64_t *keys)
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
            size_t length = own->rows[r].n_ids, queries = last ? 1 : length;
            if (!(last && own->fill != NULL)) {
                cum_q[n] = (int32_t) n_queries;
                cum_k[n++] = (int32_t) n_keys;
                n_queries += queries;
                for (size_t j = 0; j < before; j++) keys[n_keys++] = (int64_t) (prefix_first + j);
                for (size_t j = 0; j < length; j++) keys[n_keys++] = (int64_t) (prefix_rows + token + j);
                if ((int64_t) queries > out->max_q) out->max_q = (int64_t) queries;
                if ((int64_t) (before + length) > out->max_k) out->max_k = (int64_t) (before + length);
            }
            token += length;
        }
    }
    cum_q[n] = (int32_t) n_queries;
    cum_k[n] = (int32_t) n_keys;
    int i64 = qr_torch_int64(p->net->t), i32 = qr_torch_int32(p->net->t);
    int64_t ends = (int64_t) n + 1, all_keys = (int64_t) n_keys;
    out->cum_q = qr_torch_upload(p->s, cum_q, i32, 1, &ends);
    out->cum_k = qr_torch_upload(p->s, cum_k, i32, 1, &ends);
    if (n_keys != p->n_tokens || prefix_rows > 0) out->keys = qr_torch_upload(p->s, keys, i64, 1, &all_keys);
}

static qr_status make_packings(pass *p, const pt_row *rows, size_t n_rows, qr_error *err)
{
    size_t n_keys = p->n_tokens;
    for (size_t i = 0; i < n_rows; i++) n_keys += rows[i].prefix != NULL ? rows[i].prefix->n_ids : 0;
    if (n_keys > INT32_MAX) return qr_fail(err, QR_E_MEMORY, "too many keys for one pass: %zu", n_keys);
    int32_t *cum = qr_calloc(2 * (n_rows + 1), sizeof *cum);
    int64_t *keys = qr_calloc(n_keys, sizeof *keys);
    if (cum != NULL && keys != NULL) {
        make_packing(p, &p->packed, 0, cum, keys);
        make_packing(p, &p->packed_last, 1, cum, keys);
    }
    qr_status status = cum != NULL && keys != NULL ? QR_OK : qr_fail(err, QR_E_MEMORY, "no memory for the indices of %zu keys", n_keys);
    qr_free(cum);
    qr_free(keys);
    return status;
}

static void make_turn(pass *p, turn *t)
{
    int64_t n = (int64_t) t->n;
    if (p->net->own_kernels) return;
    qr_th at = qr_torch_upload(p->s, t->positions, qr_torch_int64(p->net->t), 1, &n);
    t->cos = qr_torch_index_select(p->s, p->net->cos, 0, at);
    t->sin = qr_torch_index_select(p->s, p->net->sin, 0, at);
}

/* positions: [n_tokens] and then [n_last], which the pass goes on using. */
static void make_turns(pass *p, int64_t *positions, const pt_row *rows, size_t n_rows)
{
    int64_t *last = positions + p->n_tokens;
    p->turn = (turn){.positions = positions};
    p->turn_last = (turn){.positions = last};
    for (size_t i = 0; i < n_rows; i++) {
        size_t before = rows[i].prefix != NULL ? rows[i].prefix->n_ids : 0;
        for (size_t j = 0; j < rows[i].n_ids; j++) positions[p->turn.n++] = (int64_t) (before + j);
        if (rows[i].fill == NULL) last[p->turn_last.n++] = (int64_t) (before + rows[i].n_ids - 1);
    }
    make_turn(p, &p->turn);
    make_turn(p, &p->turn_last);
}

/* What a pass needs before its first layer. */
static qr_status make_pass(pass *p, pt_row *rows, size_t n_rows, qr_error *err)
{
    qsort(rows, n_rows, sizeof *rows, compare_rows);
    make_groups(p, rows, n_rows);
    size_t most = 2 * p->n_tokens;
    for (size_t i = 0; i < p->n_groups; i++) {
        size_t n = p->groups[i].n_rows * p->groups[i].length + p->groups[i].n_tokens;
        if (n > most) most = n;
    }
    if ((p->positions = qr_calloc(p->n_tokens + p->n_last, sizeof *p->positions)) == NULL)
        return qr_fail(err, QR_E_MEMORY, "no memory for the positions of %zu tokens", p->n_tokens);
    make_turns(p, p->positions, rows, n_rows);
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
        if (!is_even(&p->groups[i])) make_indices(p, &p->groups[i], scratch);
        status = make_last_mask(p, &p->groups[i], err);
    }
    qr_free(scratch);
    return status;
}

/* ---- layers --------------------------------------------------------------------------------------------------------------------- */

/* RMSNorm and RoPE of each head of x [t->n, heads * head_dim], in place. On the CPU PyTorch's own operators go through memory about twenty
 * times for this, which took a third of the time of all products. */
static void turn_here(const pass *p, unsigned char *x, const turn *t, size_t heads, const float *weight)
{
    const pt_network *net = p->net;
    const qr_kernels *kernels = qr_kernels_get();
    const size_t d = net->config.head_dim, half = d / 2;
    const int is_bf16 = net->options.dtype == QR_DTYPE_BF16;
#pragma omp parallel for num_threads(net->options.threads)
    for (size_t i = 0; i < t->n; i++) {
        float wide[MAX_HEAD_DIM];
        const float *cos = net->cosines + (size_t) t->positions[i] * half, *sin = net->sines + (size_t) t->positions[i] * half;
        for (size_t h = 0; h < heads; h++) {
            size_t at = (i * heads + h) * d;
            unsigned char *row = x + at * (is_bf16 ? sizeof(uint16_t) : sizeof(float));
            if (is_bf16) kernels->widen_bf16(wide, (const uint16_t *) (void *) row, d);
            kernels->norm_rope((qr_row){row, is_bf16, QR_LINE}, is_bf16 ? wide : (const float *) (void *) row, weight, cos, sin, d,
                               net->config.rms_eps);
        }
    }
}

/* q or k [t->n, heads * head_dim] normed and turned: [t->n, heads, head_dim]. RoPE of x = (x1, x2): x * cos + (x2, x1) * (-sin, sin). */
static qr_th norm_rope(const pass *p, qr_th x, const turn *t, size_t heads, qr_th weight)
{
    qr_torch_scope *s = p->s;
    int64_t dims[3] = {(int64_t) t->n, (int64_t) heads, (int64_t) p->net->config.head_dim};
    x = qr_torch_reshape(s, x, 3, dims);
    if (p->net->own_kernels) {
        void *data = qr_torch_data(s, x), *w = qr_torch_data(s, weight);
        if (data != NULL && w != NULL) turn_here(p, data, t, heads, w);
        return x;
    }
    x = qr_torch_rms_norm(s, x, weight, (double) p->net->config.rms_eps);
    qr_th swapped = qr_torch_roll(s, x, dims[2] / 2, 2);
    return qr_torch_to(s, qr_torch_add(s, qr_torch_mul(s, x, t->cos), qr_torch_mul(s, swapped, t->sin)), p->net->type);
}

/* The group's tokens of x [n_tokens of the pass, n, head_dim] as [n_rows, length, n, head_dim] */
static qr_th heads(const pass *p, const group *g, qr_th x, size_t n)
{
    qr_torch_scope *s = p->s;
    int64_t dims[4] = {(int64_t) g->n_rows, (int64_t) g->length, (int64_t) n, (int64_t) p->net->config.head_dim};
    qr_th own = qr_torch_narrow(s, x, 0, (int64_t) g->first_token, (int64_t) g->n_tokens);
    if (g->spread != NULL) own = qr_torch_index_select(s, own, 0, g->spread);
    return qr_torch_reshape(s, own, 4, dims);
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
    int64_t dims[3] = {(int64_t) g->n_tokens, (int64_t) p->net->config.n_kv_heads, (int64_t) p->net->config.head_dim};
    qr_th own_k = qr_torch_contiguous(p->s, qr_torch_reshape(p->s, k, 3, dims)),
          own_v = qr_torch_contiguous(p->s, qr_torch_reshape(p->s, v, 3, dims));
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
    int is_last = i + 1 == c->n_layers;
    qr_th keys = heads(p, g, k, c->n_kv_heads), values = heads(p, g, v, c->n_kv_heads);
    if (g->fill != NULL) {
        fill_prefix(p, g, i, keys, values);
        if (is_last) return NULL;
    }
    keys = qr_torch_transpose(s, with_prefix(p, g, g->prefix != NULL ? g->prefix->k[i] : NULL, keys), 1, 2);
    values = qr_torch_transpose(s, with_prefix(p, g, g->prefix != NULL ? g->prefix->v[i] : NULL, values), 1, 2);
    int64_t width = (int64_t) (c->n_heads * c->head_dim), n_rows = (int64_t) g->n_rows;
    if (is_last) {
        int64_t one[4] = {n_rows, 1, (int64_t) c->n_heads, (int64_t) c->head_dim};
        qr_th own = qr_torch_reshape(s, qr_torch_narrow(s, q, 0, (int64_t) g->first_last, n_rows), 4, one);
        qr_th o = qr_torch_sdpa(s, qr_torch_transpose(s, own, 1, 2), keys, values, g->last_mask, 0, 1 / sqrt((double) c->head_dim));
        return qr_torch_reshape(s, o, 2, (int64_t[]){n_rows, width});
    }
    qr_th own = heads(p, g, q, c->n_heads);
    qr_th o = qr_torch_transpose(s, attend(p, g, qr_torch_transpose(s, own, 1, 2), keys, values), 1, 2);
    o = qr_torch_reshape(s, o, 2, (int64_t[]){n_rows * (int64_t) g->length, width});
    return g->gather != NULL ? qr_torch_index_select(s, o, 0, g->gather) : o;
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
            parts[n++] = values ? prefix->v[i] : prefix->k[i];
        }
    parts[n++] = own;
    qr_th all = qr_torch_index_select(s, qr_torch_cat(s, parts, n, 0), 0, packed->keys);
    qr_free(parts);
    return all;
}

/* q, k and v of the whole pass at once. */
static qr_th attend_packed(const pass *p, size_t i, qr_th q, qr_th k, qr_th v)
{
    qr_torch_scope *s = p->s;
    const qr_config *c = &p->net->config;
    const packing *packed = i + 1 == c->n_layers ? &p->packed_last : &p->packed;
    size_t mark = s->n;
    for (size_t g = 0; g < p->n_groups && s->error.code == QR_OK; g++) {
        int64_t first = (int64_t) p->groups[g].first_token, n = (int64_t) p->groups[g].n_tokens;
        if (p->groups[g].fill != NULL)
            fill_prefix(p, &p->groups[g], i, qr_torch_narrow(s, k, 0, first, n), qr_torch_narrow(s, v, 0, first, n));
    }
    if (s->error.code != QR_OK) return NULL;
    qr_th o = qr_torch_flash(s, q, all_keys(p, packed, k, i, 0), all_keys(p, packed, v, i, 1), packed->cum_q, packed->cum_k, packed->max_q,
                             packed->max_k, 1 / sqrt((double) c->head_dim));
    o = qr_torch_reshape(s, o, 2, (int64_t[]){qr_torch_size(s, q, 0), (int64_t) (c->n_heads * c->head_dim)});
    qr_torch_scope_cut_but(s, mark, o);
    return o;
}

/* x [n_tokens, hidden] normed, of the type. */
static qr_th attention(const pass *p, size_t i, qr_th x)
{
    qr_torch_scope *s = p->s;
    const pt_layer *l = &p->net->layers[i];
    int is_last = i + 1 == p->net->config.n_layers;
    qr_th q = qr_torch_linear(s, is_last ? qr_torch_index_select(s, x, 0, p->last_rows) : x, l->q);
    qr_th k = qr_torch_linear(s, x, l->k), v = qr_torch_linear(s, x, l->v);
    const qr_config *c = &p->net->config;
    q = norm_rope(p, q, is_last ? &p->turn_last : &p->turn, c->n_heads, l->q_norm);
    k = norm_rope(p, k, &p->turn, c->n_kv_heads, l->k_norm);
    v = qr_torch_reshape(s, v, 3, (int64_t[]){(int64_t) p->n_tokens, (int64_t) c->n_kv_heads, (int64_t) c->head_dim});
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
    const pt_layer *l = &net->layers[i];
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
    status = qr_torch_scope_status(s, err);
    if (status == QR_OK) status = read_logits(p, h, rows, n_rows, err);
    return status == QR_OK ? qr_torch_scope_status(s, err) : status;
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
    qr_free(p.positions);
    return status;
}
