// A Qwen3 model as MLX arrays, and its forward pass for prefill only: every prompt is seen once and only its last position is asked for.
//
// All tokens of a pass lie side by side in one matrix [T, ...] through norms and matrix products, without padding. For attention, sequences
// of similar length that share a prefix become one batch [B, heads, L, head_dim], filled up at the end: what is causal never looks there.
//
// The residual stream, norms, RoPE and logits are f32; products and attention are in the type asked for.
#pragma once

#include "mlx/c_headers.h"

#include <memory>
#include <optional>
#include <vector>

#include <mlx/mlx.h>

#if MLX_VERSION_NUMERIC < 31000
#error "this file needs MLX 0.31 or newer"
#endif

namespace qr_mlx
{

namespace mx = mlx::core;

// Thrown for what is not MLX's fault; becomes a qr_error.
struct Failure {
    qr_status code;
    std::string message;
};

// Weights [rows, cols], dense or in MLX's affine form (tensor.h), which stays packed.
struct Matrix {
    mx::array weight;                        // [rows, cols], or uint32 [rows, cols * bits / 32]
    std::optional<mx::array> scales, biases; // [rows, cols / group] if packed, of the type that products are computed in
    int group = 0, bits = 0;
};

// The type of products with packed weights: MLX's CPU kernel sums in the type of its input, where 16 bits would not do, the GPU's in f32.
mx::Dtype product_type(mx::Dtype dtype, mx::Device device);

// A matrix product with weights [out, in], perhaps of several matrices laid end to end.
class Linear
{
  public:
    Linear() = default;
    Linear(const qr_model &model, std::vector<const qr_tensor *> tensors, mx::Dtype dtype, mx::Device device);
    // x [n, in] of any type -> [n, out]
    mx::array operator()(const mx::array &x) const;

  private:
    void add(const std::vector<const qr_tensor *> &alike);
    std::vector<Matrix> parts_; // dense ones [in, out]
    mx::Dtype dtype_ = mx::float32;
    mx::Device device_ = mx::Device::cpu;
};

struct Layer {
    mx::array input_norm, q_norm, k_norm, post_norm; // f32
    Linear q, kv, o, gate_up, down;
};

// K and V of a computed prefix, all layers: each [1, n_kv_heads, n_ids, head_dim], after RoPE.
struct Prefix {
    std::vector<uint32_t> ids;
    std::vector<mx::array> k, v;
    uint64_t last_use = 0;
    size_t bytes() const;
};

// One sequence of a pass: a prompt's own part, or, with `fill`, a prefix.
struct Row {
    const uint32_t *ids;
    size_t n_ids;
    Prefix *prefix; // or NULL
    Prefix *fill;   // or NULL
    qr_logits *out; // NULL with fill
};

struct Options {
    mx::Dtype dtype = mx::float32;
    mx::Device device = mx::Device::cpu;
    bool compile = false;
    uint32_t yes_id = 0, no_id = 0;
};

class Network
{
  public:
    Network(const qr_model &model, const Options &options);
    // Rows with `fill` must be there before those that use it. Returns false if cancelled, and then fills nothing.
    bool run(std::vector<Row> rows, const volatile int *cancel);
    size_t n_layers() const { return layers_.size(); }

  private:
    struct Group;
    std::vector<Group> make_groups(std::vector<Row> &rows) const;
    mx::array embed(const std::vector<Row> &rows) const;
    mx::array heads(const mx::array &x, const Group &group, int n_heads) const;
    mx::array attend(const Group &group, const mx::array &q, const mx::array &k, const mx::array &v) const;
    mx::array attention(const std::vector<Group> &groups, size_t layer, const mx::array &x, const mx::array &last_rows,
                        std::vector<mx::array> &kept) const;
    mx::array swiglu(const mx::array &gate_up) const;
    mx::array norm(const mx::array &x, const mx::array &weight) const;

    qr_config config_;
    Options options_;
    std::optional<Matrix> embed_; // [vocab, hidden]
    std::vector<Layer> layers_;
    std::optional<mx::array> norm_; // [hidden] f32
    std::optional<mx::array> head_; // [2, hidden] f32: the rows of yes and no
    std::function<std::vector<mx::array>(const std::vector<mx::array> &)> swiglu_;
};

} // namespace qr_mlx
