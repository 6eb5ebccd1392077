/* What network.c makes and pass.c computes with. */
#ifndef QR_PYTORCH_NETWORK_INTERNAL_H
#define QR_PYTORCH_NETWORK_INTERNAL_H

#include "pytorch/network.h"

enum { MASK_ROWS = 512, MAX_HEAD_DIM = 1024 };

typedef struct pt_layer {
    qr_th input_norm, post_norm; /* f32 */
    qr_th q_norm, k_norm;        /* of the type; f32 for our own kernels */
    qr_th q, k, v, o, gate, up, down;
} pt_layer;

struct pt_prefix {
    uint32_t *ids;
    size_t n_ids, bytes;
    qr_th *k, *v; /* [n_layers] each, NULL until filled */
    int filled;
    uint64_t last_use;
    pt_prefix *next;
};

struct pt_network {
    qr_torch *t;
    qr_torch_scope scope; /* first n_own: the weights and tables */
    size_t n_own;
    qr_config config;
    pt_options options;
    int type; /* torch's number of options.dtype */
    int flash;
    qr_th embed, norm;
    pt_layer *layers;       /* [n_layers] */
    float *head[2];         /* yes and no, [hidden] each */
    qr_th cos, sin;         /* [max_length, 1, head_dim] f32; the first half of each row of sin is negated, see norm_rope() */
    int own_kernels;        /* on the CPU, in types that our kernels have: instead of cos and sin, */
    float *cosines, *sines; /* [max_length, head_dim / 2] */
    qr_th mask;             /* [MASK_ROWS, max_length + MASK_ROWS]: zeros, then a triangle; every causal mask is a part of it */
    size_t mask_zeros;      /* columns before the triangle */
    pt_prefix *prefixes;
    size_t prefix_bytes;
    uint64_t clock;
};

#endif
