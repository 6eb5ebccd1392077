// The backend "mlx", a plug-in: Apple GPUs by Metal, NVIDIA GPUs by MLX's CUDA build, else the CPU. Cuts batches into passes, keeps computed
// prefixes, and lets no exception out.
#include "mlx/network.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <unistd.h>

using namespace qr_mlx;

struct qr_backend {
    std::unique_ptr<Network> network;
    std::vector<std::unique_ptr<Prefix>> prefixes;
    size_t prefix_limit, max_tokens, batch_tokens, planned_bytes;
    uint64_t clock;
    qr_backend_stats stats;
    std::string device, dtype;
};

namespace {

// Runs f, which returns a qr_status, and turns exceptions into errors.
template <typename F> qr_status guarded(qr_error *err, F f)
{
    try {
        return f();
    } catch (const Failure &e) {
        return qr_fail(err, e.code, "%s", e.message.c_str());
    } catch (const std::bad_alloc &) {
        return qr_fail(err, QR_E_MEMORY, "mlx: out of memory");
    } catch (const std::exception &e) {
        return qr_fail(err, QR_E_BACKEND, "mlx: %s", e.what());
    } catch (...) {
        return qr_fail(err, QR_E_BACKEND, "mlx: an error of unknown kind");
    }
}

// ---- devices --------------------------------------------------------------------------------------------------------------------------

bool has_gpu() { return mx::is_available(mx::Device(mx::Device::gpu)); }
bool is_metal() { return mx::metal::is_available(); }

// NULL or "auto": the GPU if there is one.
mx::Device choose_device(const qr_backend_place &place)
{
    std::string name = place.device != nullptr ? place.device : "auto";
    if (name == "cpu") return mx::Device(mx::Device::cpu);
    if (name == "auto") return mx::Device(has_gpu() ? mx::Device::gpu : mx::Device::cpu);
    if (name != "gpu" && name != "mps" && name != "cuda" && name != "cuda:0")
        throw Failure{QR_E_UNSUPPORTED, "mlx has the devices cpu and gpu, found \"" + name + "\""};
    if (!has_gpu() || (name == "mps" && !is_metal()) || (name[0] == 'c' && is_metal()))
        throw Failure{QR_E_UNSUPPORTED, "MLX " + std::string(mx::version()) + " finds no device \"" + name + "\" here"};
    return mx::Device(mx::Device::gpu);
}

template <typename T> T device_fact(mx::Device d, const char *key, T otherwise)
{
    const auto &facts = mx::device_info(d);
    auto found = facts.find(key);
    return found != facts.end() && std::holds_alternative<T>(found->second) ? std::get<T>(found->second) : otherwise;
}

std::string describe(mx::Device d)
{
    std::string text = "MLX " + std::string(mx::version());
    if (d == mx::Device::cpu) return text + ", CPU";
    return text + (is_metal() ? ", Metal, " : ", CUDA, ") + device_fact<std::string>(d, "device_name", "GPU");
}

// Bytes that may be planned for; 0: not known.
size_t room(mx::Device d, size_t limit)
{
    if (limit > 0) return limit;
    if (d == mx::Device::cpu) return qr_memory_available();
    // What Metal recommends as the most; on CUDA what is free.
    size_t most = device_fact<size_t>(d, "max_recommended_working_set_size", 0), free = device_fact<size_t>(d, "free_memory", 0);
    return most > 0 ? most : free;
}

// ---- opening --------------------------------------------------------------------------------------------------------------------------

// What a quantised model was made from, which its scales show, has the range that its activations need.
mx::Dtype choose_dtype(qr_dtype dtype, const qr_model &model, mx::Device d)
{
    const qr_tensor *q = model.layers[0].q_proj;
    switch (dtype) {
    case QR_DTYPE_AUTO:
        if (d == mx::Device::cpu) return mx::float32;
        return q->group > 0 && q->scales->type == QR_T_BF16 ? mx::bfloat16 : mx::float16;
    case QR_DTYPE_F32:
        return mx::float32;
    case QR_DTYPE_F16:
        return mx::float16;
    case QR_DTYPE_BF16:
        return mx::bfloat16;
    default:
        throw Failure{QR_E_UNSUPPORTED, "the mlx backend computes in f32, f16 or bf16, not in int8"};
    }
}

const char *name_of(mx::Dtype dtype) { return dtype == mx::float32 ? "f32" : dtype == mx::float16 ? "f16" : "bf16"; }

// Dense matrices in the type; packed ones as they are, with a scale and a bias for each group in the type of products.
size_t weights_held(const qr_model &model, mx::Dtype dtype, mx::Device d)
{
    size_t dense = model.n_parameters, packed_bytes = 0;
    for (size_t i = 0; i < model.ckpt.n_tensors; i++) {
        const qr_tensor &t = model.ckpt.tensors[i];
        if (t.group == 0) continue;
        dense -= t.n_elements;
        packed_bytes += t.n_bytes + 2 * (t.n_elements / t.group) * product_type(dtype, d).size();
    }
    return dense * dtype.size() + packed_bytes;
}

// Weights as held, and the activations of a pass: the residual stream twice and the widest product in f32, keys and values.
size_t plan(const qr_backend_cfg &cfg, mx::Dtype dtype, mx::Device d, size_t max_tokens)
{
    const qr_config &c = cfg.model->config;
    size_t item = dtype.size(), wide = std::max(2 * c.inter, (c.n_heads + 2 * c.n_kv_heads) * c.head_dim * 2);
    return weights_held(*cfg.model, dtype, d) + max_tokens * (3 * c.hidden * sizeof(float) + wide * item) + cfg.prefix_cache_bytes;
}

void check_memory(const qr_backend_cfg &cfg, mx::Device d, size_t need)
{
    size_t there = cfg.memory_limit == QR_SIZE_NONE ? 0 : room(d, cfg.memory_limit);
    if (there == 0 || need <= there) return;
    char text[200];
    const double gib = 1 << 30;
    snprintf(text, sizeof text, "mlx: the model needs %.1f GiB for weights, a batch and the prefix cache, %.1f GiB are %s",
             static_cast<double>(need) / gib, static_cast<double>(there) / gib, cfg.memory_limit > 0 ? "allowed" : "free");
    throw Failure{QR_E_MEMORY, text};
}

// Metal keeps what is wired from being paged out; beyond the memory limit MLX waits for what it has begun; buffers that are free again are kept
// for reuse up to a bound.
void set_limits(mx::Device d, size_t planned)
{
    mx::set_cache_limit(d == mx::Device::gpu ? size_t{1} << 30 : size_t{64} << 20);
    if (d != mx::Device::gpu || !is_metal()) return;
    mx::set_wired_limit(std::min(planned + planned / 8, room(d, 0)));
    if (room(d, 0) > 0) mx::set_memory_limit(room(d, 0));
}

int probe(const qr_backend_place *place, char *why, size_t size)
{
    qr_error err = {};
    int grade = QR_GRADE_NONE;
    guarded(&err, [&] {
        mx::Device d = choose_device(*place);
        snprintf(why, size, "%s", describe(d).c_str());
        grade = d == mx::Device::cpu ? QR_GRADE_MLX_CPU : is_metal() ? QR_GRADE_MLX_GPU : QR_GRADE_MLX_CUDA;
        return QR_OK;
    });
    if (grade == QR_GRADE_NONE) snprintf(why, size, "%.*s", static_cast<int>(size) - 1, err.msg);
    return grade;
}

void close(qr_backend *b)
{
    delete b;
    guarded(nullptr, [] {
        mx::clear_cache();
#if MLX_VERSION_NUMERIC >= 32000
        mx::clear_streams(); // this thread's, which ends now
#endif
        return QR_OK;
    });
}

const pid_t loaded_by = getpid();

qr_status open(qr_backend **out, const qr_backend_cfg *cfg, qr_error *err)
{
    *out = nullptr;
    return guarded(err, [&] {
        // MLX would wait for them forever.
        if (getpid() != loaded_by)
            throw Failure{QR_E_UNSUPPORTED, "MLX was loaded before this process was forked, and its threads are not here"};
        qr_quantization q = cfg->model->config.quantization;
        if (q == QR_QUANT_FP8 || q == QR_QUANT_GPTQ || q == QR_QUANT_AWQ)
            throw Failure{QR_E_UNSUPPORTED, "mlx: this backend does not run FP8, GPTQ or AWQ weights; cpu and pytorch do"};
        auto b = std::make_unique<qr_backend>();
        mx::Device d = choose_device(cfg->place);
        mx::Dtype dtype = choose_dtype(cfg->dtype, *cfg->model, d);
        bool on_gpu = d == mx::Device::gpu;
        b->batch_tokens = cfg->batch_is_default && on_gpu ? 8192 : cfg->max_batch_tokens;
        b->max_tokens = std::max(b->batch_tokens, cfg->max_length);
        b->planned_bytes = plan(*cfg, dtype, d, b->max_tokens);
        check_memory(*cfg, d, b->planned_bytes);
        set_limits(d, b->planned_bytes);
        bool compile = cfg->compile == QR_ON || (cfg->compile == QR_DEFAULT && on_gpu);
        b->network = std::make_unique<Network>(*cfg->model, Options{dtype, d, compile, cfg->yes_id, cfg->no_id});
        b->prefix_limit = cfg->prefix_cache_bytes;
        b->device = describe(d);
        b->dtype = name_of(dtype);
        *out = b.release();
        return QR_OK;
    });
}

// ---- scoring --------------------------------------------------------------------------------------------------------------------------

// Passes hold pointers to prefixes, so that none may go before trim.
Prefix *find_prefix(qr_backend &b, const qr_prefix &wanted)
{
    for (auto &p : b.prefixes)
        if (p->ids.size() == wanted.n_ids && std::equal(p->ids.begin(), p->ids.end(), wanted.ids)) {
            p->last_use = ++b.clock;
            return p.get();
        }
    b.prefixes.push_back(std::make_unique<Prefix>());
    Prefix *p = b.prefixes.back().get();
    p->ids.assign(wanted.ids, wanted.ids + wanted.n_ids);
    p->last_use = ++b.clock;
    return p;
}

// Drops what was not filled, then the least recently used until the bound holds; the latest stays.
void trim(qr_backend &b, size_t n_layers)
{
    auto &all = b.prefixes;
    all.erase(std::remove_if(all.begin(), all.end(), [&](auto &p) { return p->k.size() != n_layers || p->v.size() != n_layers; }), all.end());
    std::sort(all.begin(), all.end(), [](auto &x, auto &y) { return x->last_use > y->last_use; });
    size_t bytes = 0, kept = 0;
    while (kept < all.size() && (kept == 0 || bytes + all[kept]->bytes() <= b.prefix_limit)) bytes += all[kept++]->bytes();
    all.resize(kept);
}

qr_status run_pass(qr_backend &b, std::vector<Row> &rows, const volatile int *cancel, qr_error *err)
{
    if (!b.network->run(rows, cancel)) return qr_fail(err, QR_E_CANCELLED, "cancelled");
    for (const Row &r : rows) b.stats.computed_tokens += r.n_ids;
    rows.clear();
    return QR_OK;
}

qr_status score_all(qr_backend &b, const qr_batch &batch, qr_logits *out, qr_error *err)
{
    std::vector<Row> rows;
    std::vector<Prefix *> filling; // in this pass
    size_t n_tokens = 0;
    for (size_t i = 0; i < batch.n_seqs; i++) {
        const qr_seq &seq = batch.seqs[i];
        const qr_prefix &wanted = batch.prefixes[seq.prefix];
        Prefix *prefix = wanted.n_ids > 0 ? find_prefix(b, wanted) : nullptr;
        auto is_there = [&] { return !prefix->k.empty() || std::count(filling.begin(), filling.end(), prefix) > 0; };
        if (prefix != nullptr && (i == 0 || batch.seqs[i - 1].prefix != seq.prefix))
            is_there() ? b.stats.prefix_hits++ : b.stats.prefix_misses++;
        size_t need = seq.n_ids + (prefix != nullptr && !is_there() ? wanted.n_ids : 0);
        if (n_tokens > 0 && n_tokens + need > b.max_tokens) {
            qr_status status = run_pass(b, rows, batch.cancel, err);
            if (status != QR_OK) return status;
            filling.clear();
            n_tokens = 0;
        }
        if (prefix != nullptr && !is_there()) {
            rows.push_back({prefix->ids.data(), prefix->ids.size(), nullptr, prefix, nullptr});
            filling.push_back(prefix);
            n_tokens += wanted.n_ids;
        }
        rows.push_back({seq.ids, seq.n_ids, prefix, nullptr, &out[i]});
        n_tokens += seq.n_ids;
    }
    return rows.empty() ? QR_OK : run_pass(b, rows, batch.cancel, err);
}

qr_status score(qr_backend *b, const qr_batch *batch, qr_logits *out, qr_error *err)
{
    qr_status status = guarded(err, [&] { return score_all(*b, *batch, out, err); });
    trim(*b, b->network->n_layers());
    return status;
}

qr_status warm_up(qr_backend *b, qr_error *err)
{
    static const uint32_t ids[16] = {0};
    qr_logits ignored;
    return guarded(err, [&] {
        b->network->run({Row{ids, 16, nullptr, nullptr, &ignored}}, nullptr);
        return QR_OK;
    });
}

void info(const qr_backend *b, qr_backend_info *out)
{
    *out = {};
    snprintf(out->device, sizeof out->device, "%s", b->device.c_str());
    snprintf(out->dtype, sizeof out->dtype, "%s", b->dtype.c_str());
    out->memory_bytes = b->planned_bytes;
    out->batch_tokens = b->batch_tokens;
}

void stats(const qr_backend *b, qr_backend_stats *out) { *out = b->stats; }

const qr_backend_ops ops = {
    .abi = QR_BACKEND_ABI,
    .name = "mlx",
    .needs_model = 1,
    .probe = probe,
    .promise = nullptr, // the registry knows before this is loaded
    .open = open,
    .close = close,
    .warm_up = warm_up,
    .score = score,
    .info = info,
    .stats = stats,
};

} // namespace

// A library of another version than the headers may have other classes under the same names.
static const char *version_conflict()
{
    static char text[200];
    char built[32];
    snprintf(built, sizeof built, "%d.%d.%d", MLX_VERSION_MAJOR, MLX_VERSION_MINOR, MLX_VERSION_PATCH);
    if (strncmp(mx::version(), built, strlen(built)) == 0) return nullptr;
    snprintf(text, sizeof text, "built for MLX %s, but MLX %s is there; run `make build-backends` again", built, mx::version());
    return text;
}

extern "C" __attribute__((visibility("default"))) const qr_plugin *qr_backend_plugin(void)
{
    static const qr_plugin plugin = {QR_BACKEND_ABI, QR_VERSION, &ops, version_conflict()};
    return &plugin;
}
