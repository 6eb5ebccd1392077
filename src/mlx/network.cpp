// See network.h.
#include "mlx/network.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

namespace qr_mlx {

using mx::array;
using mx::Shape;

// ---- weights --------------------------------------------------------------------------------------------------------------------------

static int dim(size_t n) { return static_cast<int>(n); }

// Stored values as they are; the tensor may begin at any byte of its file.
template <typename T> static array copy_of(const qr_tensor &t, mx::Dtype dtype)
{
    Shape shape;
    for (int i = 0; i < t.n_dims; i++) shape.push_back(dim(t.dims[i]));
    if (t.group > 0) shape[1] = dim(t.dims[1] * t.bits / 32);
    if (reinterpret_cast<uintptr_t>(t.data) % alignof(T) == 0) return array(reinterpret_cast<const T *>(t.data), shape, dtype);
    std::vector<T> aligned(t.n_bytes / sizeof(T));
    memcpy(aligned.data(), t.data, t.n_bytes);
    return array(aligned.data(), shape, dtype);
}

// Blocks with scales of their own, as f32.
static array decoded(const qr_tensor &t)
{
    Shape shape;
    for (int i = 0; i < t.n_dims; i++) shape.push_back(dim(t.dims[i]));
    std::vector<float> values(t.n_elements);
    qr_blocks_f32(values.data(), t.type, t.data, t.n_elements / qr_tensor_type_block(t.type));
    return array(values.data(), shape, mx::float32);
}

static array stored(const qr_tensor &t, mx::Device d)
{
    if (qr_is_block_type(t.type)) return decoded(t);
    switch (t.type) {
    case QR_T_F32:
        return copy_of<float>(t, mx::float32);
    case QR_T_F16:
        return mx::view(copy_of<uint16_t>(t, mx::uint16), mx::float16, d);
    case QR_T_BF16:
        return mx::view(copy_of<uint16_t>(t, mx::uint16), mx::bfloat16, d);
    case QR_T_I8:
        return copy_of<int8_t>(t, mx::int8);
    case QR_T_U32:
        return copy_of<uint32_t>(t, mx::uint32);
    default:
        throw Failure{QR_E_UNSUPPORTED, std::string("mlx: tensor \"") + t.name + "\": no weights of type " + std::to_string(t.type)};
    }
}

static array dequantised(const array &weight, const array &scales, const array &biases, int group, int bits, mx::Device d)
{
    return mx::dequantize(weight, mx::astype(scales, mx::float32, d), mx::astype(biases, mx::float32, d), group, bits, "affine", std::nullopt,
                          mx::float32, d);
}

// A tensor as a matrix of floating-point numbers. 8-bit rows with scales: each product rounded once to f32, then to the type.
static array widened(const qr_tensor &t, mx::Dtype dtype, mx::Device d)
{
    array a = stored(t, d);
    if (t.group > 0) a = dequantised(a, stored(*t.scales, d), stored(*t.biases, d), static_cast<int>(t.group), static_cast<int>(t.bits), d);
    if (t.type == QR_T_I8) a = mx::multiply(mx::astype(a, mx::float32, d), mx::astype(stored(*t.scales, d), mx::float32, d), d);
    return mx::astype(a, dtype, d);
}

// Pages of the file that have been copied need not stay in memory.
static void release(const qr_model &model, const qr_tensor &t)
{
    if (t.shard < 0) return;
    const qr_file *file = &model.ckpt.shards[t.shard].file;
    if (!file->borrowed) qr_file_release(file, static_cast<size_t>(t.data - file->data), t.n_bytes);
}

// Tensors of one form and width, end to end: [sum of rows, ...]
static array joined(const std::vector<const qr_tensor *> &tensors, array (*load)(const qr_tensor &, mx::Dtype, mx::Device), mx::Dtype dtype,
                    mx::Device d)
{
    std::vector<array> all;
    for (const qr_tensor *t : tensors) all.push_back(load(*t, dtype, d));
    return all.size() == 1 ? all[0] : mx::concatenate(all, 0, d);
}

mx::Dtype product_type(mx::Dtype dtype, mx::Device d) { return d == mx::Device::gpu ? dtype : mx::float32; }

static Matrix packed(const std::vector<const qr_tensor *> &alike, mx::Dtype dtype, mx::Device d)
{
    std::vector<const qr_tensor *> scales, biases;
    for (const qr_tensor *t : alike) {
        scales.push_back(t->scales);
        biases.push_back(t->biases);
    }
    auto as_stored = [](const qr_tensor &t, mx::Dtype, mx::Device device) { return stored(t, device); };
    Matrix m{joined(alike, as_stored, dtype, d), joined(scales, widened, product_type(dtype, d), d),
             joined(biases, widened, product_type(dtype, d), d), static_cast<int>(alike[0]->group), static_cast<int>(alike[0]->bits)};
    mx::eval(m.weight, *m.scales, *m.biases);
    return m;
}

Linear::Linear(const qr_model &model, std::vector<const qr_tensor *> tensors, mx::Dtype dtype, mx::Device device)
    : dtype_(dtype), device_(device)
{
    std::vector<const qr_tensor *> alike;
    for (const qr_tensor *t : tensors) {
        if (!alike.empty() && (t->group != alike[0]->group || t->bits != alike[0]->bits)) {
            add(alike);
            alike.clear();
        }
        alike.push_back(t);
    }
    add(alike);
    for (const qr_tensor *t : tensors) release(model, *t);
}

void Linear::add(const std::vector<const qr_tensor *> &alike)
{
    if (alike[0]->group > 0) {
        parts_.push_back(packed(alike, dtype_, device_));
        return;
    }
    array all = joined(alike, widened, dtype_, device_);
    all.eval();
    parts_.push_back({mx::transpose(all, device_), {}, {}});
    parts_.back().weight.eval();
}

array Linear::operator()(const array &x) const
{
    std::vector<array> out;
    for (const Matrix &p : parts_) {
        if (!p.scales) out.push_back(mx::matmul(mx::astype(x, dtype_, device_), p.weight, device_));
        else
            out.push_back(mx::astype(mx::quantized_matmul(mx::astype(x, p.scales->dtype(), device_), p.weight, *p.scales, p.biases, true,
                                                          p.group, p.bits, "affine", device_),
                                     dtype_, device_));
    }
    return out.size() == 1 ? out[0] : mx::concatenate(out, -1, device_);
}

// A tensor that is one row of another.
static qr_tensor row_of(const qr_tensor &t, uint32_t row)
{
    qr_tensor one = t;
    one.dims[0] = 1;
    one.n_elements = t.n_elements / t.dims[0];
    one.n_bytes = t.n_bytes / t.dims[0];
    one.data = t.data + row * one.n_bytes;
    return one;
}

// Row of a table [n, cols] as f32 [1, cols].
static array table_row(const qr_tensor &t, uint32_t row, mx::Device d)
{
    qr_tensor one = row_of(t, row), scales, biases;
    if (t.scales != nullptr) one.scales = &(scales = row_of(*t.scales, row));
    if (t.biases != nullptr) one.biases = &(biases = row_of(*t.biases, row));
    return widened(one, mx::float32, d);
}

static uint32_t head_row(const qr_model &model, uint32_t id)
{
    size_t row;
    qr_error err;
    if (qr_model_head_row(&model, id, &row, &err) != QR_OK) throw Failure{err.code, err.msg};
    return static_cast<uint32_t>(row);
}

Network::Network(const qr_model &model, const Options &options) : config_(model.config), options_(options)
{
    mx::Device d = options.device;
    auto vector = [&](const qr_tensor *t) {
        array a = widened(*t, mx::float32, d);
        a.eval();
        return a;
    };
    auto linear = [&](std::vector<const qr_tensor *> t) { return Linear(model, t, options.dtype, d); };
    if (model.embed->group > 0) embed_ = packed({model.embed}, options.dtype, d);
    else embed_ = Matrix{widened(*model.embed, options.dtype, d), {}, {}};
    embed_->weight.eval();
    head_ = mx::concatenate({table_row(*model.head, head_row(model, options.yes_id), d), table_row(*model.head, head_row(model, options.no_id), d)}, 0, d);
    norm_ = widened(*model.norm, mx::float32, d);
    mx::eval(*head_, *norm_);
    release(model, *model.embed);
    for (size_t i = 0; i < config_.n_layers; i++) {
        const qr_layer_weights &l = model.layers[i];
        layers_.push_back({vector(l.input_norm), vector(l.q_norm), vector(l.k_norm), vector(l.post_norm), linear({l.q_proj}),
                           linear({l.k_proj, l.v_proj}), linear({l.o_proj}), linear({l.gate_proj, l.up_proj}), linear({l.down_proj})});
    }
    auto formula = [d](const std::vector<array> &x) -> std::vector<array> {
        return {mx::multiply(mx::multiply(x[0], mx::sigmoid(x[0], d), d), x[1], d)};
    };
    // Shapeless: compiled once, whatever the number of tokens.
    if (options.compile) swiglu_ = mx::compile(formula, true);
    else swiglu_ = formula;
}

// ---- passes ---------------------------------------------------------------------------------------------------------------------------

size_t Prefix::bytes() const
{
    size_t n = 0;
    for (const array &a : k) n += 2 * a.nbytes();
    return n;
}

// Rows of a pass that attend as one batch: next to each other, one prefix.
struct Network::Group {
    size_t first_row, n_rows;
    size_t first_token, n_tokens;
    size_t first_last;           // of its rows among the rows that have logits
    int length;                  // of the longest row
    std::vector<size_t> lengths; // [n_rows]
    Prefix *prefix, *fill;
    std::optional<array> spread; // [n_rows * length]: the token of each place, if rows differ in length; places past a row's end repeat a token
    std::optional<array> gather; // [n_tokens]: the place of each token
    std::optional<array> last_mask; // [n_rows, 1, 1, prefix + length]: what each row's last token sees
    int prefix_length() const { return prefix != nullptr ? dim(prefix->ids.size()) : 0; }
    bool is_even() const { return n_tokens == n_rows * static_cast<size_t>(length); }
};

// Padding costs attention only, and at most a quarter of it; on the CPU, where the matrix of all pairs is held, batches are small.
static bool joins(size_t n_rows, size_t n_tokens, size_t n_ids)
{
    return (n_rows + 1) * n_ids - (n_tokens + n_ids) <= (n_tokens + n_ids) / 4;
}

static const size_t max_pairs_on_cpu = size_t{1} << 25; // f32: 128 MiB

std::vector<Network::Group> Network::make_groups(std::vector<Row> &rows) const
{
    // Prefixes to fill stay in front; the others by prefix, then by length.
    std::stable_sort(rows.begin(), rows.end(), [](const Row &a, const Row &b) {
        if ((a.fill != nullptr) != (b.fill != nullptr)) return a.fill != nullptr;
        if (a.fill != nullptr) return false;
        if (a.prefix != b.prefix) return std::less<Prefix *>()(a.prefix, b.prefix);
        return a.n_ids < b.n_ids;
    });
    std::vector<Group> groups;
    size_t token = 0, last = 0;
    for (size_t i = 0; i < rows.size(); i++) {
        const Row &r = rows[i];
        bool join = false;
        if (!groups.empty() && r.fill == nullptr && groups.back().fill == nullptr && groups.back().prefix == r.prefix) {
            const Group &g = groups.back();
            size_t prefix = static_cast<size_t>(g.prefix_length()), pairs = (g.n_rows + 1) * r.n_ids * (prefix + r.n_ids) * config_.n_heads;
            join = joins(g.n_rows, g.n_tokens, r.n_ids) && (options_.device == mx::Device::gpu || pairs <= max_pairs_on_cpu);
        }
        if (!join) groups.push_back(Group{i, 0, token, 0, last, 0, {}, r.prefix, r.fill, {}, {}, {}});
        Group &g = groups.back();
        g.n_rows++;
        g.n_tokens += r.n_ids;
        g.lengths.push_back(r.n_ids);
        g.length = std::max(g.length, dim(r.n_ids));
        token += r.n_ids;
        last += r.fill == nullptr;
    }
    for (Group &g : groups) {
        if (g.is_even()) continue;
        std::vector<int> spread, gather;
        int p = g.prefix_length(), start = 0;
        auto mask = std::make_unique<bool[]>(g.n_rows * static_cast<size_t>(p + g.length));
        for (size_t r = 0; r < g.n_rows; r++) {
            int n = dim(g.lengths[r]), row = dim(r) * g.length;
            for (int j = 0; j < g.length; j++) spread.push_back(start + std::min(j, n - 1));
            for (int j = 0; j < n; j++) gather.push_back(row + j);
            for (int j = 0; j < p + g.length; j++) mask[r * static_cast<size_t>(p + g.length) + static_cast<size_t>(j)] = j < p + n;
            start += n;
        }
        g.spread = array(spread.data(), Shape{dim(spread.size())}, mx::int32);
        g.gather = array(gather.data(), Shape{dim(gather.size())}, mx::int32);
        g.last_mask = array(mask.get(), Shape{dim(g.n_rows), 1, 1, p + g.length}, mx::bool_);
    }
    return groups;
}

array Network::embed(const std::vector<Row> &rows) const
{
    std::vector<uint32_t> ids;
    for (const Row &r : rows) ids.insert(ids.end(), r.ids, r.ids + r.n_ids);
    array index(ids.data(), Shape{dim(ids.size())}, mx::uint32);
    mx::Device d = options_.device;
    array found = mx::take(embed_->weight, index, 0, d);
    if (!embed_->scales) return mx::astype(found, mx::float32, d);
    return dequantised(found, mx::take(*embed_->scales, index, 0, d), mx::take(*embed_->biases, index, 0, d), embed_->group, embed_->bits, d);
}

array Network::norm(const array &x, const array &weight) const { return mx::fast::rms_norm(x, weight, config_.rms_eps, options_.device); }

array Network::swiglu(const array &gate_up) const
{
    auto halves = mx::split(gate_up, 2, -1, options_.device);
    return swiglu_({halves[0], halves[1]})[0];
}

// x [n_tokens of the group, n_heads * head_dim] -> [n_rows, length, n_heads, head_dim]
array Network::heads(const array &x, const Group &g, int n_heads) const
{
    mx::Device d = options_.device;
    array spread = g.spread ? mx::take(x, *g.spread, 0, d) : x;
    return mx::reshape(spread, {dim(g.n_rows), g.length, n_heads, dim(config_.head_dim)}, d);
}

static array sdpa(const array &q, const array &k, const array &v, float scale, const std::optional<array> &mask, mx::Device d)
{
    std::string mode = mask ? "array" : q.shape(2) > 1 ? "causal" : "";
#if MLX_VERSION_NUMERIC >= 32002
    return mx::fast::scaled_dot_product_attention(q, k, v, scale, mode, mask, {}, false, d);
#else
    return mx::fast::scaled_dot_product_attention(q, k, v, scale, mode, mask, {}, d);
#endif
}

// q [n_rows, n_heads, length, head_dim], k and v [n_rows, n_kv_heads, prefix + length, head_dim]. MLX's "causal" lets the last query see the
// last key, so that a prefix needs no mask.
array Network::attend(const Group &g, const array &q, const array &k, const array &v) const
{
    mx::Device d = options_.device;
    float scale = 1 / std::sqrt(static_cast<float>(config_.head_dim));
    int length = q.shape(2), keys = k.shape(2), prefix = keys - length;
    size_t pairs = g.n_rows * config_.n_heads * static_cast<size_t>(length) * static_cast<size_t>(keys);
    if (d == mx::Device::gpu || pairs <= max_pairs_on_cpu) return sdpa(q, k, v, scale, {}, d);
    // On the CPU MLX holds the matrix of all pairs: a long sequence goes in blocks of queries.
    std::vector<array> blocks;
    int step = std::max<int>(1, dim(max_pairs_on_cpu / (g.n_rows * config_.n_heads * static_cast<size_t>(keys))));
    Shape zero{0, 0, 0, 0}, q_stop = q.shape(), k_stop = k.shape();
    for (int i = 0; i < length; i += step) {
        Shape q_start = zero;
        q_start[2] = i;
        q_stop[2] = std::min(i + step, length);
        k_stop[2] = prefix + q_stop[2];
        blocks.push_back(sdpa(mx::slice(q, q_start, q_stop, d), mx::slice(k, zero, k_stop, d), mx::slice(v, zero, k_stop, d), scale, {}, d));
        blocks.back().eval();
    }
    return mx::concatenate(blocks, 2, d);
}

// x [T, hidden] normed. Returns [T, n_heads * head_dim], or, in the last layer, the rows that have logits only. K and V of prefixes to fill go
// to `kept`.
array Network::attention(const std::vector<Group> &groups, size_t layer, const array &x, const array &last_rows,
                         std::vector<array> &kept) const
{
    mx::Device d = options_.device;
    const Layer &l = layers_[layer];
    bool is_last = layer + 1 == layers_.size();
    int kv_heads = dim(config_.n_kv_heads), n_heads = dim(config_.n_heads), head_dim = dim(config_.head_dim);
    float base = static_cast<float>(config_.rope_theta);
    array kv = l.kv(x), q = l.q(is_last ? mx::take(x, last_rows, 0, d) : x);
    std::vector<array> out;
    for (const Group &g : groups) {
        int begin = dim(g.first_token), end = begin + dim(g.n_tokens), p = g.prefix_length(), n_rows = dim(g.n_rows);
        array own = mx::slice(kv, {begin, 0}, {end, kv.shape(1)}, d);
        auto both = mx::split(own, 2, -1, d);
        array k = mx::transpose(norm(heads(both[0], g, kv_heads), l.k_norm), {0, 2, 1, 3}, d);
        k = mx::astype(mx::fast::rope(k, head_dim, false, base, 1, p, std::nullopt, d), options_.dtype, d);
        array v = mx::astype(mx::transpose(heads(both[1], g, kv_heads), {0, 2, 1, 3}, d), options_.dtype, d);
        if (g.fill != nullptr) {
            g.fill->k.push_back(mx::contiguous(k, false, d));
            g.fill->v.push_back(mx::contiguous(v, false, d));
            kept.push_back(g.fill->k.back());
            kept.push_back(g.fill->v.back());
            if (is_last) continue;
        }
        if (g.prefix != nullptr) {
            Shape shape{n_rows, kv_heads, p, head_dim};
            k = mx::concatenate({mx::broadcast_to(g.prefix->k[layer], shape, d), k}, 2, d);
            v = mx::concatenate({mx::broadcast_to(g.prefix->v[layer], shape, d), v}, 2, d);
        }
        if (is_last) {
            std::vector<int> positions;
            for (size_t n : g.lengths) positions.push_back(p + dim(n) - 1);
            array at(positions.data(), Shape{n_rows}, mx::int32);
            array one = mx::reshape(mx::slice(q, {dim(g.first_last), 0}, {dim(g.first_last) + n_rows, q.shape(1)}, d),
                                    {n_rows, n_heads, 1, head_dim}, d);
            one = mx::astype(mx::fast::rope(norm(one, l.q_norm), head_dim, false, base, 1, at, std::nullopt, d), options_.dtype, d);
            array o = sdpa(one, k, v, 1 / std::sqrt(static_cast<float>(head_dim)), g.last_mask, d);
            out.push_back(mx::reshape(o, {n_rows, n_heads * head_dim}, d));
            continue;
        }
        array all = mx::slice(q, {begin, 0}, {end, q.shape(1)}, d);
        all = mx::transpose(norm(heads(all, g, n_heads), l.q_norm), {0, 2, 1, 3}, d);
        all = mx::astype(mx::fast::rope(all, head_dim, false, base, 1, p, std::nullopt, d), options_.dtype, d);
        array o = mx::transpose(attend(g, all, k, v), {0, 2, 1, 3}, d);
        o = mx::reshape(o, {n_rows * g.length, n_heads * head_dim}, d);
        out.push_back(g.gather ? mx::take(o, *g.gather, 0, d) : o);
    }
    return out.size() == 1 ? out[0] : mx::concatenate(out, 0, d);
}

bool Network::run(std::vector<Row> rows, const volatile int *cancel)
{
    // Waiting for results every so often bounds the memory of what is planned, and lets a cancel take effect. GPUs work ahead meanwhile.
    const size_t eval_every = options_.device == mx::Device::gpu ? 4 : 1;
    mx::Device d = options_.device;
    std::vector<Group> groups = make_groups(rows);
    std::vector<int> last;
    int token = -1;
    for (const Row &r : rows) {
        token += dim(r.n_ids);
        if (r.fill == nullptr) last.push_back(token);
    }
    array last_rows(last.data(), Shape{dim(last.size())}, mx::int32);
    array h = embed(rows);
    std::vector<array> kept;
    for (size_t i = 0; i < layers_.size(); i++) {
        const Layer &l = layers_[i];
        bool is_last = i + 1 == layers_.size();
        if (qr_is_set(cancel)) return false;
        array o = attention(groups, i, norm(h, l.input_norm), last_rows, kept);
        if (is_last) h = mx::take(h, last_rows, 0, d);
        h = mx::add(h, mx::astype(l.o(o), mx::float32, d), d);
        h = mx::add(h, mx::astype(l.down(swiglu(l.gate_up(norm(h, l.post_norm)))), mx::float32, d), d);
        kept.push_back(h);
        if ((i + 1) % eval_every == 0 || is_last) mx::eval(kept);
        else mx::async_eval(kept);
        kept.clear();
    }
    array x = mx::expand_dims(norm(h, *norm_), 1, d);
    array logits = mx::sum(mx::multiply(x, *head_, d), -1, false, d); // [n, 2]; not a matrix product, which might round its inputs
    logits.eval();
    const float *values = logits.data<float>();
    for (const Row &r : rows)
        if (r.fill == nullptr) {
            *r.out = {values[0], values[1]};
            values += 2;
        }
    return true;
}

} // namespace qr_mlx
