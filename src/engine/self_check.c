/* See self_check.h. The reference margins come from tools/self_check.py, which makes the same model and computes it in 64 bits. */
#include "engine/self_check.h"

#include "base/mem.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    HIDDEN = 64,
    INTER = 96,
    N_LAYERS = 2,
    N_HEADS = 4,
    N_KV_HEADS = 2,
    HEAD_DIM = 32,
    VOCAB = 64,
    MAX_LENGTH = 128,
    Q = N_HEADS * HEAD_DIM,
    KV = N_KV_HEADS * HEAD_DIM,
    YES = 7,
    NO = 3,
    N_LAYER_TENSORS = 11,
    N_TENSORS = 2 + N_LAYERS * N_LAYER_TENSORS,
};

typedef struct check_model {
    qr_model model;
    qr_layer_weights layers[N_LAYERS];
    qr_tensor tensors[N_TENSORS];
    size_t n_tensors;
    uint32_t state;
} check_model;

static unsigned next_byte(uint32_t *state)
{
    *state = *state * 1664525 + 1013904223;
    return *state >> 24;
}

/* Values with 8 significant bits, so that no type rounds them: matrices (cols > 0) uniform in (-scale, scale), norms in [1, 2). */
static const qr_tensor *add_tensor(check_model *m, const char *name, size_t rows, size_t cols, float scale)
{
    qr_tensor *t = &m->tensors[m->n_tensors++];
    *t = (qr_tensor){.name = name, .type = QR_T_F32, .n_dims = cols > 0 ? 2 : 1, .dims = {rows, cols}, .shard = -1};
    t->n_elements = rows * (cols > 0 ? cols : 1);
    t->n_bytes = t->n_elements * sizeof(float);
    float *to = qr_calloc(t->n_elements, sizeof(float));
    if (to == NULL) return NULL;
    t->data = (const unsigned char *) to;
    for (size_t i = 0; i < t->n_elements; i++) {
        float byte = (float) next_byte(&m->state);
        to[i] = cols > 0 ? (2 * byte - 255) / 256 * scale : (64 + floorf(byte / 4)) / 64;
    }
    return t;
}

static void free_model(check_model *m)
{
    for (size_t i = 0; i < m->n_tensors; i++) qr_free((void *) (uintptr_t) m->tensors[i].data);
}

static int make_model(check_model *m)
{
    *m = (check_model){.state = 1};
    m->model = (qr_model){.dir = (char *) (uintptr_t) "self-check", .layers = m->layers};
    m->model.config = (qr_config){.n_layers = N_LAYERS,
                                  .hidden = HIDDEN,
                                  .inter = INTER,
                                  .vocab = VOCAB,
                                  .n_heads = N_HEADS,
                                  .n_kv_heads = N_KV_HEADS,
                                  .head_dim = HEAD_DIM,
                                  .max_positions = MAX_LENGTH,
                                  .rope_theta = 1e6,
                                  .rms_eps = 1e-6f,
                                  .tied = 1};
    m->model.embed = m->model.head = add_tensor(m, "embed_tokens", VOCAB, HIDDEN, 1);
    for (size_t i = 0; i < N_LAYERS; i++) {
        qr_layer_weights *l = &m->layers[i];
        l->input_norm = add_tensor(m, "input_norm", HIDDEN, 0, 1);
        l->q_proj = add_tensor(m, "q_proj", Q, HIDDEN, 0.25f);
        l->k_proj = add_tensor(m, "k_proj", KV, HIDDEN, 0.25f);
        l->v_proj = add_tensor(m, "v_proj", KV, HIDDEN, 0.25f);
        l->q_norm = add_tensor(m, "q_norm", HEAD_DIM, 0, 1);
        l->k_norm = add_tensor(m, "k_norm", HEAD_DIM, 0, 1);
        l->o_proj = add_tensor(m, "o_proj", HIDDEN, Q, 0.25f);
        l->post_norm = add_tensor(m, "post_norm", HIDDEN, 0, 1);
        l->gate_proj = add_tensor(m, "gate_proj", INTER, HIDDEN, 0.25f);
        l->up_proj = add_tensor(m, "up_proj", INTER, HIDDEN, 0.25f);
        l->down_proj = add_tensor(m, "down_proj", HIDDEN, INTER, 0.25f);
    }
    m->model.norm = add_tensor(m, "norm", HIDDEN, 0, 1);
    for (size_t i = 0; i < m->n_tensors; i++) {
        if (m->tensors[i].data == NULL) return 0;
        m->model.n_parameters += m->tensors[i].n_elements;
        m->model.weight_bytes += m->tensors[i].n_bytes;
    }
    return 1;
}

/* Sequences: prefix, own length, and the margin of the whole. Lengths around and across the blocks of kernels. */
static const struct check {
    size_t prefix, n_ids;
    float margin;
} checks[] = {
#include "engine/self_check_margins.h"
};
static const size_t prefix_lengths[] = {0, 5, 33};
enum { N_CHECKS = sizeof checks / sizeof checks[0], N_PREFIXES = sizeof prefix_lengths / sizeof prefix_lengths[0] };

static void fill_ids(uint32_t *ids, size_t n, uint32_t seed)
{
    for (size_t i = 0; i < n; i++) ids[i] = next_byte(&seed) % VOCAB;
}

static qr_status score(const qr_backend_ops *ops, qr_backend *b, qr_logits *out, qr_error *err)
{
    static _Thread_local uint32_t prefix_ids[N_PREFIXES][MAX_LENGTH], seq_ids[N_CHECKS][MAX_LENGTH];
    qr_prefix prefixes[N_PREFIXES];
    qr_seq seqs[N_CHECKS];
    for (size_t i = 0; i < N_PREFIXES; i++) {
        fill_ids(prefix_ids[i], prefix_lengths[i], (uint32_t) (1000 + i));
        prefixes[i] = (qr_prefix){prefix_ids[i], prefix_lengths[i]};
    }
    for (size_t i = 0; i < N_CHECKS; i++) {
        fill_ids(seq_ids[i], checks[i].n_ids, (uint32_t) (2000 + i));
        seqs[i] = (qr_seq){seq_ids[i], checks[i].n_ids, checks[i].prefix};
    }
    qr_batch batch = {prefixes, N_PREFIXES, seqs, N_CHECKS, NULL};
    return ops->score(b, &batch, out, err);
}

/* Three times the most that correct code showed (bf16: 0.08 our own, 0.20 MLX, 0.26 PyTorch, which round in other places), a fraction of
 * what a wrong one does: margins are about 5. */
static double tolerance(const char *dtype) { return strcmp(dtype, "f32") == 0 ? 1e-3 : strcmp(dtype, "f16") == 0 ? 0.08 : 0.8; }

static qr_status compare(const qr_logits *out, const char *dtype, double *worst, qr_error *err)
{
    size_t at = 0;
    *worst = -1;
    for (size_t i = 0; i < N_CHECKS; i++) {
        double difference = fabs((double) out[i].yes - (double) out[i].no - (double) checks[i].margin);
        if (!(difference <= *worst)) { /* also if it is not a number */
            *worst = difference;
            at = i;
        }
        if (isnan(difference)) break;
    }
    if (*worst <= tolerance(dtype)) return QR_OK;
    return qr_fail(err, QR_E_BACKEND, "wrong results in %s: a prompt of %zu and %zu tokens has a margin of %g, expected %g", dtype,
                   prefix_lengths[checks[at].prefix], checks[at].n_ids, (double) out[at].yes - (double) out[at].no,
                   (double) checks[at].margin);
}

qr_status qr_self_check(const qr_backend_ops *ops, const qr_backend_place *place, qr_dtype dtype, qr_switch flash_attention, double *worst,
                        qr_error *err)
{
    check_model m;
    qr_logits out[N_CHECKS] = {{0}};
    qr_backend *backend = NULL;
    qr_backend_info info = {0};
    *worst = 0;
    if (!make_model(&m)) {
        free_model(&m);
        return qr_fail(err, QR_E_MEMORY, "no memory for the self-check");
    }
    qr_backend_cfg cfg = {.model = &m.model,
                          .model_dir = m.model.dir,
                          .yes_id = YES,
                          .no_id = NO,
                          .dtype = dtype,
                          .max_length = MAX_LENGTH,
                          .max_batch_tokens = 2 * MAX_LENGTH,
                          .prefix_cache_bytes = (size_t) 1 << 20,
                          .flash_attention = flash_attention,
                          .memory_limit = QR_SIZE_NONE};
    if (place != NULL) cfg.place = *place;
    qr_status status = ops->open(&backend, &cfg, err);
    if (status == QR_OK) {
        ops->info(backend, &info);
        /* Twice: the second time the prefixes come from the cache. */
        for (int i = 0; i < 2 && status == QR_OK; i++) {
            status = score(ops, backend, out, err);
            if (status == QR_OK) status = compare(out, info.dtype, worst, err);
        }
        ops->close(backend);
    }
    free_model(&m);
    return status;
}
