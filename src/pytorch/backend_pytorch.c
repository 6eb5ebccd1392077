/* The backend "pytorch": NVIDIA and AMD GPUs, Apple GPUs by MPS, or the CPU, by the PyTorch that the user has. Several devices work side by
 * side, each with the whole model. */
#include "base/mem.h"
#include "base/system.h"
#include "cpu/features.h"
#include "engine/backend.h"
#include "pytorch/network.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* GPUs want many tokens at once; a CPU is as fast with few, which take less memory. */
enum { MAX_DEVICES = 16, GPU_BATCH_TOKENS = 16384, CPU_BATCH_TOKENS = 1024 };

typedef struct worker {
    qr_torch_device device;
    pt_network *net;
    pt_row *rows;                 /* [max_rows] of the pass being gathered */
    size_t max_rows, pass_tokens; /* pass_tokens becomes smaller where the device's memory does not suffice */
    const qr_batch *batch;
    size_t first, last; /* its sequences of the batch */
    qr_logits *out;
    qr_status status;
    qr_error error;
    qr_backend_stats stats;
} worker;

struct qr_backend {
    qr_torch *t;
    worker workers[MAX_DEVICES];
    size_t n_workers, batch_tokens, planned_bytes;
    int threads;
    const char *dtype;
    char device[128];
};

/* ---- probing -------------------------------------------------------------------------------------------------------------------- */

static int is_gpu_name(const char *device) { return device != NULL && strcmp(device, "auto") != 0 && strncmp(device, "cpu", 3) != 0; }

static int pytorch_promise(const qr_backend_place *place)
{
    if (is_gpu_name(place->device)) return QR_GRADE_TORCH_GPU;
    if (place->device != NULL && strncmp(place->device, "cpu", 3) == 0) return QR_GRADE_TORCH_CPU;
#if defined(__APPLE__) && defined(__aarch64__)
    return QR_GRADE_TORCH_GPU;
#else
    return access("/dev/nvidiactl", F_OK) == 0 || access("/dev/kfd", F_OK) == 0 ? QR_GRADE_TORCH_GPU : QR_GRADE_TORCH_CPU;
#endif
}

/* "cuda:0,cuda:1" to devices. */
static qr_status open_devices(qr_torch_device *devices, size_t *n, qr_torch *t, const char *list, qr_error *err)
{
    *n = 0;
    for (const char *p = list != NULL ? list : "auto";;) {
        char name[32];
        size_t len = strcspn(p, ",");
        if (*n == MAX_DEVICES || len >= sizeof name)
            return qr_fail(err, QR_E_UNSUPPORTED, "expected up to %d devices such as cuda:0,cuda:1, found \"%s\"", MAX_DEVICES, list);
        snprintf(name, sizeof name, "%.*s", (int) len, p);
        qr_status status = qr_torch_device_open(&devices[*n], t, name, err);
        if (status != QR_OK) return status;
        ++*n;
        if (p[len] == 0) return QR_OK;
        p += len + 1;
    }
}

static int pytorch_probe(const qr_backend_place *place, char *why, size_t size)
{
    qr_torch *t;
    qr_torch_device devices[MAX_DEVICES];
    qr_error err = {0};
    size_t n = 0, free = 0, total = 0;
    char device[160];
    qr_status status = qr_torch_load(&t, place->torch_dir, &err);
    if (status == QR_OK) status = open_devices(devices, &n, t, place->device, &err);
    if (status != QR_OK) {
        snprintf(why, size, "%.*s", (int) (size - 1), err.msg);
        return QR_GRADE_NONE;
    }
    qr_torch_device_describe(t, &devices[0], device, sizeof device, &free, &total);
    int used = snprintf(why, size, "%s, %s", device, qr_torch_name(t));
    if (total > 0 && used > 0 && (size_t) used < size) snprintf(why + used, size - (size_t) used, ", %.0f GiB", (double) total / (1 << 30));
    const char *trouble = qr_torch_cuda_trouble(t);
    if (trouble[0] != 0 && used > 0 && (size_t) used < size) snprintf(why + used, size - (size_t) used, ", without CUDA: %s", trouble);
    return devices[0].type == QR_TORCH_CPU ? QR_GRADE_TORCH_CPU : QR_GRADE_TORCH_GPU;
}

/* ---- opening -------------------------------------------------------------------------------------------------------------------- */

static void pytorch_close(qr_backend *b)
{
    if (b == NULL) return;
    for (size_t i = 0; i < b->n_workers; i++) {
        pt_network_close(b->workers[i].net);
        qr_free(b->workers[i].rows);
    }
    qr_free(b);
}

static qr_status choose_dtype(qr_dtype *out, qr_dtype wanted, const qr_torch_device *device, qr_error *err)
{
    if (wanted == QR_DTYPE_INT8) return qr_fail(err, QR_E_UNSUPPORTED, "the pytorch backend computes in f32, bf16 or f16, not in int8");
    *out = wanted != QR_DTYPE_AUTO         ? wanted
           : device->type == QR_TORCH_CUDA ? QR_DTYPE_BF16
           : device->type == QR_TORCH_MPS  ? QR_DTYPE_F16
           : qr_cpu_get()->native_bf16     ? QR_DTYPE_BF16
                                           : QR_DTYPE_F32;
    return QR_OK;
}

/* Whether the file's own memory serves as weights: then they take none of ours. */
static int is_mapped(const qr_model *model, qr_dtype dtype, const qr_torch_device *device)
{
    qr_tensor_type type = model->layers[0].q_proj->type;
    return device->type == QR_TORCH_CPU && ((type == QR_T_BF16 && dtype == QR_DTYPE_BF16) || (type == QR_T_F32 && dtype == QR_DTYPE_F32) ||
                                            (type == QR_T_F16 && dtype == QR_DTYPE_F16));
}

/* Weights, the activations of a pass (the widest of its matrices, and the residual stream and its parts in f32), tables, prefixes. */
static size_t plan(const qr_backend_cfg *cfg, qr_dtype dtype, const qr_torch_device *device, size_t pass_tokens)
{
    const qr_config *c = &cfg->model->config;
    size_t item = dtype == QR_DTYPE_F32 ? 4 : 2, heads = (c->n_heads + 2 * c->n_kv_heads) * c->head_dim;
    size_t weights = is_mapped(cfg->model, dtype, device) ? 0 : cfg->model->n_parameters * item;
    size_t mlp = 3 * c->inter * item, attention = heads * (2 * item + 3 * sizeof(float));
    size_t tables = cfg->max_length * (2 * c->head_dim * sizeof(float) + 512 * item);
    return weights + pass_tokens * (4 * c->hidden * sizeof(float) + (mlp > attention ? mlp : attention)) + tables + cfg->prefix_cache_bytes;
}

static qr_status check_memory(const qr_backend_cfg *cfg, qr_torch *t, const qr_torch_device *device, size_t need, qr_error *err)
{
    char name[160];
    size_t free = 0, total = 0;
    qr_torch_device_describe(t, device, name, sizeof name, &free, &total);
    size_t room = cfg->memory_limit > 0 ? cfg->memory_limit : device->type == QR_TORCH_CPU ? qr_memory_available() : free;
    if (cfg->memory_limit == QR_SIZE_NONE || room == 0 || need <= room) return QR_OK;
    return qr_fail(err, QR_E_MEMORY, "pytorch: the model needs %.1f GiB on %s for weights, a batch and the prefix cache, %.1f GiB are %s",
                   (double) need / (1 << 30), name, (double) room / (1 << 30), cfg->memory_limit > 0 ? "allowed" : "free");
}

static qr_status open_worker(qr_backend *b, worker *w, const qr_backend_cfg *cfg, qr_dtype dtype, qr_error *err)
{
    w->pass_tokens = b->batch_tokens > cfg->max_length ? b->batch_tokens : cfg->max_length;
    w->max_rows = 2 * w->pass_tokens; /* every token a sequence with a prefix to fill */
    size_t need = plan(cfg, dtype, &w->device, w->pass_tokens);
    qr_status status = check_memory(cfg, b->t, &w->device, need, err);
    if (status != QR_OK) return status;
    b->planned_bytes += need;
    if ((w->rows = qr_calloc(w->max_rows, sizeof *w->rows)) == NULL)
        return qr_fail(err, QR_E_MEMORY, "no memory for %zu rows", w->max_rows);
    pt_options options = {dtype, b->threads, cfg->max_length, cfg->prefix_cache_bytes, cfg->yes_id, cfg->no_id, cfg->flash_attention};
    return pt_network_open(&w->net, cfg->model, b->t, &w->device, &options, err);
}

static qr_status pytorch_open(qr_backend **out, const qr_backend_cfg *cfg, qr_error *err)
{
    static const char *const names[] = {[QR_DTYPE_F32] = "f32", [QR_DTYPE_BF16] = "bf16", [QR_DTYPE_F16] = "f16"};
    qr_torch_device devices[MAX_DEVICES];
    qr_dtype dtype = QR_DTYPE_F32;
    size_t free, total;
    *out = NULL;
    qr_backend *b = qr_calloc(1, sizeof *b);
    if (b == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for the PyTorch backend");
    b->threads = cfg->threads > 0 ? cfg->threads : qr_cpu_get()->n_usable;
    qr_status status = qr_torch_load(&b->t, cfg->place.torch_dir, err);
    if (status == QR_OK) status = open_devices(devices, &b->n_workers, b->t, cfg->place.device, err);
    if (status != QR_OK) b->n_workers = 0;
    if (status == QR_OK) status = choose_dtype(&dtype, cfg->dtype, &devices[0], err);
    b->batch_tokens = !cfg->batch_is_default            ? cfg->max_batch_tokens
                      : devices[0].type == QR_TORCH_CPU ? CPU_BATCH_TOKENS
                                                        : GPU_BATCH_TOKENS;
    for (size_t i = 0; i < b->n_workers && status == QR_OK; i++) {
        b->workers[i].device = devices[i];
        status = open_worker(b, &b->workers[i], cfg, dtype, err);
    }
    if (status != QR_OK) {
        pytorch_close(b);
        return status;
    }
    b->dtype = names[dtype];
    qr_torch_device_describe(b->t, &devices[0], b->device, sizeof b->device, &free, &total);
    size_t used = strlen(b->device);
    if (pt_network_has_flash(b->workers[0].net)) snprintf(b->device + used, sizeof b->device - used, ", flash attention");
    if (b->n_workers > 1) snprintf(b->device, sizeof b->device, "%zu devices: %.90s", b->n_workers, cfg->place.device);
    *out = b;
    return QR_OK;
}

/* ---- scoring -------------------------------------------------------------------------------------------------------------------- */

/* Adds sequences from `first` on, with prefixes that are not there yet, until the pass is full. Returns the number that it took. */
static size_t gather(worker *w, size_t first, size_t *n_rows, qr_error *err)
{
    size_t n_tokens = 0, i = first;
    *n_rows = 0;
    for (; i < w->last; i++) {
        const qr_seq *seq = &w->batch->seqs[i];
        const qr_prefix *wanted = &w->batch->prefixes[seq->prefix];
        pt_prefix *prefix = NULL;
        int is_there = 1;
        if (wanted->n_ids > 0) {
            if (pt_prefix_get(&prefix, w->net, wanted, err) != QR_OK) return 0;
            is_there = pt_prefix_is_filled(prefix);
            for (size_t r = 0; r < *n_rows; r++) is_there |= w->rows[r].fill == prefix;
            if (i == first || w->batch->seqs[i - 1].prefix != seq->prefix) is_there ? w->stats.prefix_hits++ : w->stats.prefix_misses++;
        }
        size_t need = seq->n_ids + (is_there ? 0 : wanted->n_ids);
        if (i > first && (n_tokens + need > w->pass_tokens || *n_rows + 2 > w->max_rows)) break;
        if (!is_there) w->rows[(*n_rows)++] = (pt_row){wanted->ids, wanted->n_ids, NULL, prefix, NULL};
        w->rows[(*n_rows)++] = (pt_row){seq->ids, seq->n_ids, prefix, NULL, &w->out[i]};
        n_tokens += need;
    }
    return i - first;
}

/* Its sequences. A pass for which the device has too little memory is tried again with half of the tokens, down to one sequence. */
static void *work(void *arg)
{
    worker *w = arg;
    w->status = QR_OK;
    for (size_t i = w->first; i < w->last && w->status == QR_OK;) {
        size_t n_rows, n = gather(w, i, &n_rows, &w->error), n_tokens = 0;
        if (n == 0) {
            w->status = w->error.code;
            break;
        }
        for (size_t r = 0; r < n_rows; r++) n_tokens += w->rows[r].n_ids;
        w->status = pt_network_run(w->net, w->rows, n_rows, w->batch->cancel, &w->error);
        if (w->status == QR_E_MEMORY && n > 1) {
            w->pass_tokens = n_tokens / 2;
            w->status = QR_OK;
            continue;
        }
        if (w->status == QR_OK) w->stats.computed_tokens += n_tokens;
        i += n;
    }
    pt_prefix_trim(w->net);
    return NULL;
}

/* Sequences in their order, about as many tokens for each worker. */
static void share_out(qr_backend *b, const qr_batch *batch, qr_logits *out)
{
    size_t total = 0, done = 0, at = 0;
    for (size_t i = 0; i < batch->n_seqs; i++) total += batch->seqs[i].n_ids;
    for (size_t i = 0; i < b->n_workers; i++) {
        worker *w = &b->workers[i];
        w->batch = batch;
        w->out = out;
        w->first = at;
        while (at < batch->n_seqs && (i + 1 == b->n_workers || done < total * (i + 1) / b->n_workers)) done += batch->seqs[at++].n_ids;
        w->last = at;
    }
}

static qr_status pytorch_score(qr_backend *b, const qr_batch *batch, qr_logits *out, qr_error *err)
{
    pthread_t threads[MAX_DEVICES];
    int started[MAX_DEVICES] = {0};
    share_out(b, batch, out);
    for (size_t i = 1; i < b->n_workers; i++) started[i] = pthread_create(&threads[i], NULL, work, &b->workers[i]) == 0;
    work(&b->workers[0]);
    for (size_t i = 1; i < b->n_workers; i++) {
        if (started[i]) pthread_join(threads[i], NULL);
        else work(&b->workers[i]);
    }
    for (size_t i = 0; i < b->n_workers; i++)
        if (b->workers[i].status != QR_OK) return qr_fail(err, b->workers[i].status, "%s", b->workers[i].error.msg);
    return QR_OK;
}

static qr_status pytorch_warm_up(qr_backend *b, qr_error *err)
{
    static const uint32_t ids[16] = {0};
    for (size_t i = 0; i < b->n_workers; i++) {
        qr_logits ignored;
        pt_row row = {ids, 16, NULL, NULL, &ignored};
        qr_status status = pt_network_run(b->workers[i].net, &row, 1, NULL, err);
        if (status != QR_OK) return status;
    }
    return QR_OK;
}

static void pytorch_info(const qr_backend *b, qr_backend_info *out)
{
    *out = (qr_backend_info){.threads = b->threads, .memory_bytes = b->planned_bytes, .batch_tokens = b->batch_tokens * b->n_workers};
    snprintf(out->device, sizeof out->device, "%s", b->device);
    snprintf(out->dtype, sizeof out->dtype, "%s", b->dtype);
}

static void pytorch_stats(const qr_backend *b, qr_backend_stats *out)
{
    *out = (qr_backend_stats){0};
    for (size_t i = 0; i < b->n_workers; i++) {
        out->computed_tokens += b->workers[i].stats.computed_tokens;
        out->prefix_hits += b->workers[i].stats.prefix_hits;
        out->prefix_misses += b->workers[i].stats.prefix_misses;
    }
}

const qr_backend_ops qr_backend_pytorch = {
    .abi = QR_BACKEND_ABI,
    .name = "pytorch",
    .needs_model = 1,
    .probe = pytorch_probe,
    .promise = pytorch_promise,
    .open = pytorch_open,
    .close = pytorch_close,
    .warm_up = pytorch_warm_up,
    .score = pytorch_score,
    .info = pytorch_info,
    .stats = pytorch_stats,
};
