/* The backend "cpu": our own engine. Cuts batches into passes that fit the planned memory and keeps the prefix cache. */
#include "base/mem.h"
#include "base/system.h"
#include "cpu/features.h"
#include "cpu/forward.h"
#include "cpu/importance.h"
#include "cpu/int8.h"
#include "cpu/int8_file.h"
#include "cpu/kernels.h"
#include "engine/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct qr_backend {
    qr_gemm_lib *lib;
    qr_int8_plan plan; /* of int8 */
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
    qr_int8_plan_close(&b->plan);
    qr_gemm_lib_close(b->lib);
    qr_free(b->seqs);
    qr_free(b->filling);
    qr_free(b);
}

/* Bytes of weights that are certain to be touched: unpacked, and as the file has them. */
typedef struct weight_need {
    double fast, small;
} weight_need;

static void add_need(weight_need *need, const qr_tensor *t, qr_gemm_type type)
{
    int kept_in_16 = type == QR_GEMM_F32 && (t->type == QR_T_F16 || t->type == QR_T_BF16);
    need->fast += (double) t->n_elements * (double) (kept_in_16 ? 2 : qr_gemm_type_size(type));
    need->small += (double) qr_tensor_stored_bytes(t);
}

static weight_need find_need(const qr_model *model, qr_gemm_type type)
{
    weight_need need = {0};
    for (size_t i = 0; i < model->config.n_layers; i++) {
        const qr_layer_weights *l = &model->layers[i];
        const qr_tensor *all[] = {l->q_proj, l->k_proj, l->v_proj, l->o_proj, l->gate_proj, l->up_proj, l->down_proj};
        for (size_t k = 0; k < sizeof all / sizeof all[0]; k++) add_need(&need, all[k], type);
    }
    return need;
}

/* Whether weights stay as the file has them. Better no start than one that ends in the middle of work, by the hand of the kernel. */
static qr_status choose_memory(int *small, const qr_backend_cfg *cfg, qr_gemm_type type, qr_error *err)
{
    const double gib = 1 << 30;
    size_t room = cfg->memory_limit > 0 ? cfg->memory_limit : qr_memory_available();
    int limited = cfg->memory_limit != QR_SIZE_NONE && room > 0;
    weight_need need = find_need(cfg->model, type);
    *small = cfg->memory == QR_MEMORY_SMALL;
    /* Weights that hardly fit leave none for activations, the prefix cache and whoever else is on the machine. */
    if (cfg->memory == QR_MEMORY_AUTO && limited && need.small < need.fast &&
        need.fast * 1.1 + (double) cfg->prefix_cache_bytes > (double) room) {
        char line[192];
        *small = 1;
        snprintf(line, sizeof line, "cpu: %.1f GiB %s, unpacked weights would take %.1f: they stay as in the file, %.1f GiB (--memory)",
                 (double) room / gib, cfg->memory_limit > 0 ? "are allowed" : "are free", need.fast / gib, need.small / gib);
        if (cfg->log != NULL) cfg->log(cfg->log_arg, QR_LOG_INFO, line);
    }
    double least = *small ? need.small : need.fast;
    if (!limited || least <= (double) room) return QR_OK;
    return qr_fail(err, QR_E_MEMORY, "the model's weights need %.1f GiB %s%s, %.1f GiB %s%s", least / gib, *small ? "as stored" : "in ",
                   *small ? "" : qr_gemm_type_name(type), (double) room / gib, cfg->memory_limit > 0 ? "are allowed" : "are free",
                   !*small && need.small <= (double) room ? "; --memory small would do" : "");
}

/* The backend owns the plan (int8), unless this fails. */
static qr_status open_type(qr_backend **out, const qr_backend_cfg *cfg, qr_gemm_type type, qr_int8_plan *plan, qr_error *err)
{
    const qr_config *c = &cfg->model->config;
    size_t max_tokens = cfg->max_batch_tokens > cfg->max_length ? cfg->max_batch_tokens : cfg->max_length;
    *out = NULL;
    qr_backend *b = qr_calloc(1, sizeof *b);
    if (b == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for the CPU backend");
    b->threads = cfg->threads > 0 ? cfg->threads : qr_cpu_get()->n_usable;
    b->dtype = qr_gemm_type_name(type);
    b->first_ids = cfg->first_ids;
    b->n_first_ids = cfg->n_first_ids;
    b->max_seqs = max_tokens;
    b->seqs = qr_calloc(b->max_seqs, sizeof *b->seqs);
    b->filling = qr_calloc(b->max_seqs, sizeof(qr_prefix_kv *));
    qr_status status =
        b->seqs == NULL || b->filling == NULL ? qr_fail(err, QR_E_MEMORY, "no memory for %zu sequences", b->max_seqs) : QR_OK;
    int small = 0;
    if (status == QR_OK) status = choose_memory(&small, cfg, type, err);
    int may_tile = c->head_dim % 16 == 0; /* attention writes heads 16 elements at a time, and none may cross a line of a tile */
    if (status == QR_OK) status = qr_gemm_lib_open(&b->lib, type, may_tile, b->threads, err);
    if (status == QR_OK)
        status = qr_packed_model_open(&b->model, cfg->model, b->lib, max_tokens, cfg->yes_id, cfg->no_id, plan, small, err);
    if (status == QR_OK && cfg->log != NULL) qr_gemm_lib_log(b->lib, cfg->log, cfg->log_arg);
    if (status == QR_OK) status = qr_forward_open(&b->forward, &b->model, b->threads, max_tokens, err);
    if (status != QR_OK) {
        cpu_close(b);
        return status;
    }
    size_t v_stride = (c->head_dim + QR_KEY_BLOCK - 1) / QR_KEY_BLOCK * QR_KEY_BLOCK, es = qr_gemm_lib_is_bf16(b->lib) ? 2 : 4;
    b->cache.limit_bytes = cfg->prefix_cache_bytes;
    b->cache.n_heads = c->n_layers * c->n_kv_heads;
    b->cache.kt_bytes = c->head_dim * es;
    b->cache.v_bytes = v_stride * es;
    b->planned_bytes = b->model.bytes + qr_forward_bytes(b->forward) + cfg->prefix_cache_bytes;
    if (plan != NULL) {
        b->plan = *plan;
        *plan = (qr_int8_plan){0};
    }
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

/* margins [batch->n_seqs] */
static qr_status find_margins(qr_backend *b, const qr_batch *batch, double *margins, qr_error *err)
{
    qr_logits *logits = qr_calloc(batch->n_seqs, sizeof *logits);
    if (logits == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for %zu scores", batch->n_seqs);
    qr_status status = score_all(b, batch, logits, err);
    for (size_t i = 0; status == QR_OK && i < batch->n_seqs; i++) margins[i] = (double) logits[i].yes - (double) logits[i].no;
    qr_free(logits);
    return status;
}

qr_status qr_find_importance(qr_int8_plan *plan, const qr_backend_cfg *cfg, qr_error *err)
{
    qr_backend *b = NULL;
    qr_status status = qr_int8_plan_open(plan, &cfg->model->config, err);
    if (status != QR_OK) return status;
    double *unused = qr_calloc(cfg->calibration->n_seqs, sizeof *unused);
    status = unused == NULL ? qr_fail(err, QR_E_MEMORY, "no memory for %zu scores", cfg->calibration->n_seqs)
                            : open_type(&b, cfg, QR_GEMM_F32, NULL, err);
    if (status == QR_OK) {
        qr_forward_observe(b->forward, plan);
        status = find_margins(b, cfg->calibration, unused, err);
    }
    cpu_close(b);
    qr_free(unused);
    if (status != QR_OK) qr_int8_plan_close(plan);
    return status;
}

/* The first prompt of each query. */
static size_t take_first(qr_seq *out, const qr_batch *prompts)
{
    size_t n = 0;
    for (size_t i = 0; i < prompts->n_seqs; i++)
        if (i == 0 || prompts->seqs[i].prefix != prompts->seqs[i - 1].prefix) out[n++] = prompts->seqs[i];
    return n;
}

/* Opens the model in f32, looks at what its products read, and forgets it again. */
static qr_status run_reference(const qr_backend_cfg *cfg, qr_int8_plan *plan, double *margins, qr_error *err)
{
    qr_backend_cfg small = *cfg;
    qr_batch few = *cfg->calibration;
    qr_backend *b = NULL;
    small.max_batch_tokens = cfg->max_length;
    small.n_first_ids = small.prefix_cache_bytes = 0;
    qr_seq *first = qr_calloc(few.n_seqs, sizeof *first);
    double *unused = qr_calloc(few.n_seqs, sizeof *unused);
    qr_status status = first == NULL || unused == NULL ? qr_fail(err, QR_E_MEMORY, "no memory for %zu prompts", few.n_seqs)
                                                       : open_type(&b, &small, QR_GEMM_F32, NULL, err);
    if (status == QR_OK) {
        few.n_seqs = take_first(first, cfg->calibration);
        few.seqs = first;
        qr_forward_observe(b->forward, plan);
        status = find_margins(b, cfg->calibration, margins, err);
    }
    if (status == QR_OK) status = qr_int8_plan_factors(plan, cfg->model, err);
    if (status == QR_OK) status = find_margins(b, &few, unused, err);
    if (status == QR_OK) status = qr_int8_plan_rotations(plan, cfg->model, err);
    cpu_close(b);
    qr_free(unused);
    qr_free(first);
    return status;
}

/* The same from the file of an earlier start where there is one, which sets *kept, else for the next. */
static qr_status find_reference(const qr_backend_cfg *cfg, qr_int8_plan *plan, double *margins, int *kept, qr_error *err)
{
    qr_int8_file file;
    qr_error why;
    qr_int8_file_name(&file, cfg);
    qr_status status = QR_OK;
    *kept = qr_int8_file_load(&file, plan, margins, cfg->calibration->n_seqs);
    if (!*kept) {
        status = run_reference(cfg, plan, margins, err);
        if (status == QR_OK && qr_int8_file_save(&file, plan, margins, cfg->calibration->n_seqs, &why) != QR_OK && cfg->log != NULL)
            cfg->log(cfg->log_arg, QR_LOG_INFO, why.msg);
    }
    qr_int8_file_free(&file);
    return status;
}

/* 8 bits are nobody's default: how far they move scores depends on the model, so each is tried before it is used. QR_INT8_ANYWAY is for
 * benchmarks, whose models are random and lose more than trained ones. */
static qr_status open_int8(qr_backend **out, const qr_backend_cfg *cfg, qr_error *err)
{
    const qr_batch *prompts = cfg->calibration;
    char line[320];
    if (!qr_cpu_get()->native_int8)
        return qr_fail(err, QR_E_UNSUPPORTED,
                       "the cpu backend's int8 needs a processor with AVX-VNNI, or with AVX512-VNNI and a build with oneDNN");
    if (prompts == NULL) return qr_fail(err, QR_E_UNSUPPORTED, "the cpu backend's int8 needs prompts to check it with");
    double start = qr_now();
    double *margins = qr_calloc(2 * prompts->n_seqs, sizeof *margins);
    qr_int8_plan plan = {0};
    qr_backend *b = NULL;
    int kept = 0;
    qr_status status = margins == NULL ? qr_fail(err, QR_E_MEMORY, "no memory for %zu scores", prompts->n_seqs) : QR_OK;
    if (status == QR_OK) status = qr_int8_plan_open(&plan, &cfg->model->config, err);
    if (status == QR_OK) status = find_reference(cfg, &plan, margins, &kept, err);
    if (status == QR_OK) status = open_type(&b, cfg, QR_GEMM_INT8, &plan, err);
    if (status == QR_OK) status = find_margins(b, prompts, margins + prompts->n_seqs, err);
    if (status == QR_OK) {
        qr_int8_drift drift = qr_int8_compare(margins + prompts->n_seqs, margins, prompts->n_seqs);
        snprintf(line, sizeof line,
                 "int8 beside f32 on %zu prompts of our own: Kendall's tau %.3f, scores off by %.4f (at most %.4f), margins by %.3f",
                 prompts->n_seqs, drift.tau, drift.mean_score, drift.worst_score, drift.mean_margin);
        int passes = qr_int8_passes(&drift), anyway = !passes && getenv("QR_INT8_ANYWAY") != NULL;
        if (!passes && !anyway)
            status = qr_fail(err, QR_E_UNSUPPORTED,
                             "the cpu backend does not run this model in int8, which would move its scores too far: expected a tau of at "
                             "least %.2f and scores off by at most %.2f, found %s",
                             QR_INT8_MIN_TAU, QR_INT8_MAX_SCORE, line);
        else if (cfg->log != NULL) {
            size_t n = strlen(line);
            snprintf(line + n, sizeof line - n, "%s; checked in %.1f s%s", anyway ? ": too far, used anyway" : "", qr_now() - start,
                     kept ? ", f32 as found by an earlier start" : "");
            cfg->log(cfg->log_arg, anyway ? QR_LOG_WARN : QR_LOG_INFO, line);
        }
    }
    if (status != QR_OK) {
        cpu_close(b);
        b = NULL;
    }
    qr_free(margins);
    qr_int8_plan_close(&plan);
    *out = b;
    return status;
}

static qr_status cpu_open(qr_backend **out, const qr_backend_cfg *cfg, qr_error *err)
{
    const qr_cpu *cpu = qr_cpu_get();
    *out = NULL;
    if (cfg->dtype == QR_DTYPE_INT8) return open_int8(out, cfg, err);
    if (cfg->dtype > QR_DTYPE_BF16) return qr_fail(err, QR_E_UNSUPPORTED, "the cpu backend computes in f32, bf16 or int8, not in f16");
    int want_bf16 = cfg->dtype == QR_DTYPE_BF16 || (cfg->dtype == QR_DTYPE_AUTO && cpu->native_bf16);
    /* Asked for bf16 on a processor that cannot multiply it: f32 arithmetic on the same weights is both faster and more exact there. */
    if (want_bf16 && !cpu->native_bf16 && cfg->log != NULL)
        cfg->log(cfg->log_arg, QR_LOG_WARN, "cpu: no native bf16 on this processor, computing in f32 (16-bit weights stay 16-bit)");
    return open_type(out, cfg, want_bf16 && cpu->native_bf16 ? QR_GEMM_BF16 : QR_GEMM_F32, NULL, err);
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
