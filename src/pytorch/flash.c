/* See flash.h. */
#include "pytorch/flash.h"

#include "base/mem.h"

#include <math.h>
#include <string.h>

/* Queries and keys of each sequence: alone; behind a prefix; one query behind a prefix, as in the last layer; more than a kernel's block.
 */
static const int32_t n_queries[] = {5, 3, 1, 70}, n_keys[] = {5, 10, 9, 139};
enum {
    N_SEQS = sizeof n_queries / sizeof n_queries[0],
    MOST_QUERIES = 70,
    QUERIES = 5 + 3 + 1 + 70,
    MOST_KEYS = 139,
    KEYS = 5 + 10 + 9 + 139
};

typedef struct trial {
    const qr_config *c;
    float *q, *k, *v, *out; /* [QUERIES, n_heads, head_dim], [KEYS, n_kv_heads, head_dim] twice, as q */
    size_t n_q, n_k;        /* elements */
} trial;

/* Multiples of 1/8 in [-1, 1): exact in all types. */
static void fill(float *x, size_t n, uint32_t seed)
{
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float) ((int) (seed >> 28) - 8) / 8;
    }
}

/* out[.., d] of one query and head: softmax of its products with the first `seen` keys, times their values. */
static void expect(const trial *t, float *expected, size_t query, size_t head, size_t first_key, size_t seen)
{
    const qr_config *c = t->c;
    size_t d = c->head_dim, kv = head / (c->n_heads / c->n_kv_heads);
    const float *q = t->q + (query * c->n_heads + head) * d;
    double weights[KEYS], sum = 0;
    for (size_t j = 0; j < seen; j++) {
        const float *k = t->k + ((first_key + j) * c->n_kv_heads + kv) * d;
        double dot = 0;
        for (size_t i = 0; i < d; i++) dot += (double) q[i] * (double) k[i];
        sum += weights[j] = exp(dot / sqrt((double) d));
    }
    for (size_t i = 0; i < d; i++) {
        double x = 0;
        for (size_t j = 0; j < seen; j++) x += weights[j] / sum * (double) t->v[((first_key + j) * c->n_kv_heads + kv) * d + i];
        expected[i] = (float) x;
    }
}

static qr_status compare(const trial *t, float *expected, qr_error *err)
{
    const qr_config *c = t->c;
    size_t query = 0, first_key = 0;
    for (size_t s = 0; s < N_SEQS; s++) {
        size_t before = (size_t) (n_keys[s] - n_queries[s]);
        for (size_t i = 0; i < (size_t) n_queries[s]; i++, query++)
            for (size_t head = 0; head < c->n_heads; head++) {
                const float *found = t->out + (query * c->n_heads + head) * c->head_dim;
                expect(t, expected, query, head, first_key, before + i + 1);
                for (size_t e = 0; e < c->head_dim; e++)
                    if (!(fabsf(found[e] - expected[e]) <= 0.02f)) /* bf16 rounds weights and values to 0.004 each */
                        return qr_fail(err, QR_E_BACKEND,
                                       "flash attention is wrong here: query %zu of %d with %d keys, head %zu: expected %.4f, found %.4f",
                                       i, (int) n_queries[s], (int) n_keys[s], head, (double) expected[e], (double) found[e]);
            }
        first_key += (size_t) n_keys[s];
    }
    return QR_OK;
}

static qr_th upload(qr_torch_scope *s, const float *data, int64_t n, size_t heads, size_t d, int type)
{
    int64_t dims[3] = {n, (int64_t) heads, (int64_t) d};
    return qr_torch_to(s, qr_torch_upload(s, data, qr_torch_dtype(s->t, QR_DTYPE_F32), 3, dims), type);
}

static qr_th upload_ends(qr_torch_scope *s, const int32_t *lengths)
{
    int32_t ends[N_SEQS + 1] = {0};
    int64_t n = N_SEQS + 1;
    for (size_t i = 0; i < N_SEQS; i++) ends[i + 1] = ends[i] + lengths[i];
    return qr_torch_upload(s, ends, qr_torch_int32(s->t), 1, &n);
}

static qr_status run(const trial *t, qr_torch_scope *s, int type, qr_error *err)
{
    const qr_config *c = t->c;
    qr_th q = upload(s, t->q, QUERIES, c->n_heads, c->head_dim, type), k = upload(s, t->k, KEYS, c->n_kv_heads, c->head_dim, type);
    qr_th v = upload(s, t->v, KEYS, c->n_kv_heads, c->head_dim, type);
    qr_th out = qr_torch_flash(s, q, k, v, upload_ends(s, n_queries), upload_ends(s, n_keys), MOST_QUERIES, MOST_KEYS,
                               1 / sqrt((double) c->head_dim));
    qr_torch_download(s, t->out, qr_torch_to(s, out, qr_torch_dtype(s->t, QR_DTYPE_F32)), t->n_q);
    return s->error.code == QR_OK ? QR_OK : qr_fail(err, QR_E_UNSUPPORTED, "no flash attention here: %s", s->error.msg);
}

qr_status pt_flash_check(qr_torch *t, const qr_torch_device *device, const qr_config *c, int type, qr_error *err)
{
    qr_torch_scope s;
    trial x = {.c = c, .n_q = QUERIES * c->n_heads * c->head_dim, .n_k = KEYS * c->n_kv_heads * c->head_dim};
    float *memory = qr_calloc(2 * x.n_q + 2 * x.n_k + c->head_dim, sizeof *memory);
    if (memory == NULL) return qr_fail(err, QR_E_MEMORY, "no memory to try flash attention");
    x.q = memory;
    x.k = x.q + x.n_q;
    x.v = x.k + x.n_k;
    x.out = x.v + x.n_k;
    fill(x.q, x.n_q + 2 * x.n_k, 1);
    qr_torch_scope_init(&s, t, device);
    qr_status status = run(&x, &s, type, err);
    if (status == QR_OK) status = compare(&x, x.out + x.n_q, err);
    qr_torch_scope_deinit(&s);
    qr_free(memory);
    return status;
}
