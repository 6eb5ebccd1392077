/* A Qwen3 model as PyTorch tensors on one device, and its forward pass for prefill only: every prompt is seen once and only its last
 * position is asked for.
 *
 * All tokens of a pass lie side by side in one matrix [T, ...] through norms and matrix products, without padding. So they do in flash
 * attention, where it works. Elsewhere, for attention, sequences of similar length that share a prefix become one batch [B, heads, L,
 * head_dim], filled up at the end: what is causal never looks there. The residual stream and the logits are f32, the rest is in the type
 * asked for, as in transformers. */
#ifndef QR_PYTORCH_NETWORK_H
#define QR_PYTORCH_NETWORK_H

#include "pytorch/torch_lib.h"

typedef struct pt_network pt_network;

/* K and V of a computed prefix, all layers: [n_ids, n_kv_heads, head_dim] each, after RoPE. Owned by the network's cache. */
typedef struct pt_prefix pt_prefix;

/* One sequence of a pass: a prompt's own part, or, with `fill`, a prefix, which comes before those that use it. */
typedef struct pt_row {
    const uint32_t *ids; /* [n_ids] */
    size_t n_ids;
    pt_prefix *prefix, *fill; /* or NULL */
    qr_logits *out;           /* NULL with fill */
} pt_row;

typedef struct pt_options {
    qr_dtype dtype; /* F32, BF16 or F16 */
    int threads;
    size_t max_length; /* of a prompt */
    size_t prefix_cache_bytes;
    uint32_t yes_id, no_id;
    qr_switch flash_attention; /* QR_ON: must work; by default tried on CUDA in 16-bit types */
} pt_options;

qr_status pt_network_open(pt_network **out, const qr_model *model, qr_torch *t, const qr_torch_device *device, const pt_options *options,
                          qr_error *err);
void pt_network_close(pt_network *net);
int pt_network_has_flash(const pt_network *net);

/* Found, or new and to be filled by a row of the next pass. Stays until pt_prefix_trim. */
qr_status pt_prefix_get(pt_prefix **out, pt_network *net, const qr_prefix *wanted, qr_error *err);
int pt_prefix_is_filled(const pt_prefix *prefix);
/* Drops what was not filled, then the least recently used until the bound holds; the latest stays. */
void pt_prefix_trim(pt_network *net);

/* Sorts the rows. E_CANCELLED and errors leave what was to be filled unfilled. E_MEMORY: the device has too little for these rows. */
qr_status pt_network_run(pt_network *net, pt_row *rows, size_t n_rows, const volatile int *cancel, qr_error *err);

#endif
