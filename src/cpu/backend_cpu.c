/* The backend "cpu": our own engine. Cuts batches into passes that fit the planned memory and keeps the prefix cache. */
#include "base/mem.h"
#include "base/system.h"
#include "cpu/features.h"
#include "cpu/forward.h"
#include "cpu/kernels.h"
#include "engine/backend.h"

#include <stdio.h>
#include <string.h>

struct qr_backend {
    qr_gemm_lib *lib;
    qr_packed_model model;
    qr_forward *forward;
    qr_prefix_cache cache;
    qr_fwd_seq *seqs;       /* [max_seqs] of the pass being gathered */
    qr_prefix_kv **filling; /* [max_seqs] */
    size_t max_seqs;
    int threads;
    const char *dtype;
    const uint32_t *first_ids; /* [n_first_ids], as in the configuration */
    size_t n_first_ids;
    size_t planned_bytes;
    qr_backend_stats stats;
};

static int cpu_probe(const qr_backend_place *place, char *why, size_t size)
{
    (void) place;
    char features[96];
    const qr_cpu *cpu = qr_cpu_get();
    qr_cpu_features(features, sizeof features);
    snprintf(why, size, "%s, %s, %s", cpu->model, features, qr_cpu_libraries());
    return QR_GRADE_CPU; /* always there */
}

static void cpu_close(qr_backend *b)
{
    if (b == NULL) return;
    qr_prefix_cache_deinit(&b->cache);
    qr_forward_close(b->forward);
    qr_packed_model_close(&b->model);
    qr_gemm_lib_close(b->lib);
    qr_free(b->seqs);
    qr_free(b->filling);
    qr_free(b);
}

/* Bytes of the packed weights: what is certain to be touched. */
static double planned_weights(const qr_config *c, int bf16)
{
    double attention = (double) c->hidden * (double) (2 * c->n_heads + 2 * c->n_kv_heads) * (double) c->head_dim;
    double mlp = 3.0 * (double) c->hidden * (double) c->inter;
    return (double) c->n_layers * (attention + mlp) * (bf16 ? 2 : 4);
}

/* Better no start than one that ends in the middle of work, by the hand of the kernel. */
static qr_status check_memory(const qr_backend_cfg *cfg, int bf16, qr_error *err)
{
    size_t room = cfg->memory_limit > 0 ? cfg->memory_limit : qr_memory_available();
    double need = planned_weights(&cfg->model->config, bf16);
    if (cfg->memory_limit == QR_SIZE_NONE || room == 0 || need <= (double) room) return QR_OK;
    return qr_fail(err, QR_E_MEMORY, "the model's weights need %.1f GiB in %s, %.1f GiB %s%s", need / (1 << 30), bf16 ? "bf16" : "f32",
                   (double) room / (1 << 30), cfg->memory_limit > 0 ? "are allowed" : "are free",
                   bf16 ? "" : "; bf16 would need half, on a processor that has it");
}

static qr_status cpu_open(qr_backend **out, const qr_backend_cfg *cfg, qr_error *err)
{
    const qr_cpu *cpu = qr_cpu_get();
    const qr_config *c = &cfg->model->config;
    size_t max_tokens = cfg->max_batch_tokens > cfg->max_length ? cfg->max_batch_tokens : cfg->max_length;
    *out = NULL;
    if (cfg->dtype > QR_DTYPE_BF16)
        return qr_fail(err, QR_E_UNSUPPORTED, "the cpu backend computes in f32 or bf16, not in %s",
                       cfg->dtype == QR_DTYPE_INT8 ? "int8: activations of 8 bits move the margins more than bf16 does, by half and more"
                                                   : "f16");
    qr_backend *b = qr_calloc(1, sizeof *b);
    if (b == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for the CPU backend");
    b->threads = cfg->threads > 0 ? cfg->threads : cpu->n_usable;
    int want_bf16 = cfg->dtype == QR_DTYPE_BF16 || (cfg->dtype == QR_DTYPE_AUTO && cpu->native_bf16);
    /* Asked for bf16 on a processor that cannot multiply it: f32 arithmetic on the same weights is both faster and more exact there. */
    int bf16 = want_bf16 && cpu->native_bf16;
    b->dtype = bf16 ? "bf16" : "f32";
    if (want_bf16 && !bf16 && cfg->log != NULL)
        cfg->log(cfg->log_arg, QR_LOG_WARN, "cpu: no native bf16 on this processor, computing in f32 (16-bit weights stay 16-bit)");
    b->first_ids = cfg->first_ids;
    b->n_first_ids = cfg->n_first_ids;
    b->max_seqs = max_tokens;
    b->seqs = qr_calloc(b->max_seqs, sizeof *b->seqs);
    b->filling = qr_calloc(b->max_seqs, sizeof(qr_prefix_kv *));
    qr_status status =
        b->seqs == NULL || b->filling == NULL ? qr_fail(err, QR_E_MEMORY, "no memory for %zu sequences", b->max_seqs) : QR_OK;
    if (status == QR_OK) status = check_memory(cfg, bf16, err);
    int may_tile = c->head_dim % 16 == 0; /* attention writes heads 16 elements at a time, and none may cross a line of a tile */
    if (status == QR_OK) status = qr_gemm_lib_open(&b->lib, bf16, may_tile, b->threads, err);
    if (status == QR_OK) status = qr_packed_model_open(&b->model, cfg->model, b->lib, max_tokens, cfg->yes_id, cfg->no_id, err);
    if (status == QR_OK) status = qr_forward_open(&b->forward, &b->model, b->threads, max_tokens, err);
    if (status != QR_OK) {
        cpu_close(b);
        return status;
    }
    size_t v_stride = (c->head_dim + QR_KEY_BLOCK - 1) / QR_KEY_BLOCK * QR_KEY_BLOCK;
    b->cache.limit_bytes = cfg->prefix_cache_bytes;
    size_t es = bf16 ? 2 : 4;
    b->cache.n_heads = c->n_layers * c->n_kv_heads;
    b->cache.kt_bytes = c->head_dim * es;
    b->cache.v_bytes = v_stride * es;
    b->planned_bytes = b->model.bytes + qr_forward_bytes(b->forward) + cfg->prefix_cache_bytes;
    *out = b;
    return QR_OK;
}

/* Runs the gathered sequences; prefixes among them become valid. */
static qr_status run_pass(qr_backend *b, size_t n_seqs, size_t n_filling, const volatile int *cancel, qr_error *err)
{
    qr_status status = qr_forward_run(b->forward, b->seqs, n_seqs, cancel, err);
    if (status != QR_OK) return status;
    for (size_t i = 0; i < n_filling; i++) qr_prefix_kv_filled(b->filling[i]);
    for (size_t i = 0; i < n_seqs; i++) b->stats.computed_tokens += b->seqs[i].n_ids;
    return QR_OK;
}

static qr_status score_all(qr_backend *b, const qr_batch *batch, qr_logits *out, qr_error *err)
{
    size_t n_seqs = 0, n_tokens = 0, n_slots = 0, n_filling = 0;
    qr_status status;
    for (size_t i = 0; i < batch->n_seqs; i++) {
        const qr_seq *seq = &batch->seqs[i];
        const qr_prefix *prefix = &batch->prefixes[seq->prefix];
        qr_prefix_kv *kv = NULL;
        if (prefix->n_ids > 0) {
            if ((status = qr_prefix_cache_get(&b->cache, prefix->ids, prefix->n_ids, &kv, err)) != QR_OK) return status;
        }
        int in_pass = 0; /* another prefix of the batch, of another caller, may have the same ids */
        for (size_t f = 0; f < n_filling; f++) in_pass |= b->filling[f] == kv;
        if (kv != NULL && (i == 0 || batch->seqs[i - 1].prefix != seq->prefix)) {
            if (kv->valid || in_pass) b->stats.prefix_hits++;
            else b->stats.prefix_misses++;
        }
        int fill = kv != NULL && !kv->valid && !in_pass;
        /* the prefix takes no slots of the pass, and comes before its sequence */
        size_t own = n_tokens + (fill ? prefix->n_ids - kv->n_ready : 0);
        if (n_seqs > 0 && !qr_forward_fits(b->forward, n_seqs + (size_t) fill, own, n_slots, seq->n_ids)) {
            if ((status = run_pass(b, n_seqs, n_filling, batch->cancel, err)) != QR_OK) return status;
            n_seqs = n_tokens = n_slots = n_filling = 0;
            if (kv != NULL) qr_prefix_cache_take_over(&b->cache, kv); /* the pass may have left more to take */
            fill = kv != NULL && !kv->valid;
        }
        if (fill) {
            b->seqs[n_seqs++] = (qr_fwd_seq){prefix->ids + kv->n_ready, prefix->n_ids - kv->n_ready, NULL, kv, NULL};
            b->filling[n_filling++] = kv;
            n_tokens += prefix->n_ids - kv->n_ready;
        }
        if (!qr_forward_fits(b->forward, n_seqs, n_tokens, n_slots, seq->n_ids))
            return qr_fail(err, QR_E_TOO_LONG, "a prompt of %zu tokens does not fit the %zu that were planned", prefix->n_ids + seq->n_ids,
                           b->model.n_positions);
        b->seqs[n_seqs++] = (qr_fwd_seq){seq->ids, seq->n_ids, kv, NULL, &out[i]};
        n_tokens += seq->n_ids;
        n_slots += (seq->n_ids + QR_KEY_BLOCK - 1) / QR_KEY_BLOCK * QR_KEY_BLOCK;
    }
    return n_seqs > 0 ? run_pass(b, n_seqs, n_filling, batch->cancel, err) : QR_OK;
}

static qr_status cpu_score(qr_backend *b, const qr_batch *batch, qr_logits *out, qr_error *err)
{
    qr_status status = score_all(b, batch, out, err);
    qr_prefix_cache_trim(&b->cache);
    return status;
}

/* Touches the weights, brings the threads up, and computes what the prompts of nearly all requests begin with, to keep it for good. */
static qr_status cpu_warm_up(qr_backend *b, qr_error *err)
{
    static const uint32_t ids[QR_TILE_ROWS_SMALL] = {0};
    size_t n_ids = QR_TILE_ROWS_SMALL < b->model.n_positions ? QR_TILE_ROWS_SMALL : b->model.n_positions, n_seqs = 0;
    qr_logits ignored;
    qr_prefix_kv *first = NULL;
    if (b->n_first_ids > 0 && b->n_first_ids + n_ids <= b->model.n_positions) {
        qr_status status = qr_prefix_cache_get(&b->cache, b->first_ids, b->n_first_ids, &first, err);
        if (status != QR_OK) return status;
        if (!first->valid)
            b->seqs[n_seqs++] = (qr_fwd_seq){b->first_ids + first->n_ready, b->n_first_ids - first->n_ready, NULL, first, NULL};
    }
    b->seqs[n_seqs++] = (qr_fwd_seq){ids, n_ids, first, NULL, &ignored};
    qr_status status = qr_forward_run(b->forward, b->seqs, n_seqs, NULL, err);
    qr_forward_clear_stages(b->forward); /* nobody's request */
    if (first != NULL && status == QR_OK) {
        qr_prefix_kv_filled(first);
        first->kept = 1;
    }
    qr_prefix_cache_trim(&b->cache);
    return status;
}

static void cpu_info(const qr_backend *b, qr_backend_info *out)
{
    const qr_cpu *cpu = qr_cpu_get();
    *out = (qr_backend_info){.threads = b->threads, .memory_bytes = b->planned_bytes};
    snprintf(out->device, sizeof out->device, "%s, %s, %d thread%s", cpu->model, qr_isa_name(cpu->isa), b->threads,
             b->threads == 1 ? "" : "s");
    snprintf(out->dtype, sizeof out->dtype, "%s", b->dtype);
}

static void cpu_stats(const qr_backend *b, qr_backend_stats *out)
{
    *out = b->stats;
    qr_forward_stages(b->forward, out->stage_seconds);
}

const qr_backend_ops qr_backend_cpu = {
    .abi = QR_BACKEND_ABI,
    .name = "cpu",
    .needs_model = 1,
    .probe = cpu_probe,
    .open = cpu_open,
    .close = cpu_close,
    .warm_up = cpu_warm_up,
    .score = cpu_score,
    .info = cpu_info,
    .stats = cpu_stats,
};
