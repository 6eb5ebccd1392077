/* A model's weights in the form that the CPU engine computes with: packed matrices, f32 norms, RoPE tables. */
#ifndef QR_CPU_PACKED_MODEL_H
#define QR_CPU_PACKED_MODEL_H

#include "cpu/gemm.h"
#include "cpu/int8.h"
#include "model/weights.h"

/* Which rows of which tensors the blocks of a matrix hold. */
typedef struct qr_packed_source {
    const qr_tensor *tensors[2];
    size_t n_tensors;
    size_t n;    /* rows in all */
    size_t used; /* outputs of a block that hold rows; the rest is padding */
    size_t half; /* gate_up: `half` rows of the first tensor, then the same of the second; 0: rows in order */
} qr_packed_source;

typedef struct qr_packed_layer {
    qr_packed_source sources[5];     /* of the next five */
    qr_gemm q, kv, o, gate_up, down; /* kv: k heads, then v heads; gate_up: see gate_up_half */
    float *input_norm, *post_norm;   /* [hidden] */
    float *q_norm, *k_norm;          /* [head_dim] */
} qr_packed_layer;

typedef struct qr_packed_model {
    const qr_config *config;
    qr_gemm_lib *lib;
    qr_packed_layer *layers; /* [n_layers] */
    float *norms;            /* storage of all norm vectors */
    const float *norm;       /* [hidden], the final one */
    float *head;             /* [2][hidden] f32: rows of yes and no */
    const qr_tensor *embed;  /* [vocab, hidden], stays in the file's map */
    float *cosines, *sines;  /* [n_positions][head_dim / 2] */
    size_t n_positions;
    size_t heads_per_block; /* q and kv blocks hold whole heads */
    size_t gate_up_half;    /* a block of gate_up holds this many gates, then the ups of the same columns */
    int when_used;          /* nothing is packed ahead */
    size_t bytes;           /* of weights as held, packed or in the file, and tables */
} qr_packed_model;

/* Packs everything, with all threads; each tensor's file pages are released as soon as it is packed. when_used: packs nothing, and the
 * model is borrowed until close. So is the plan, for int8; else NULL. */
qr_status qr_packed_model_open(qr_packed_model *packed, const qr_model *model, qr_gemm_lib *lib, size_t n_positions, uint32_t yes_id,
                               uint32_t no_id, const qr_int8_plan *plan, int when_used, qr_error *err);
void qr_packed_model_close(qr_packed_model *packed);

/* out [hidden] f32 = embedding of a token */
void qr_packed_model_embed(const qr_packed_model *packed, float *out, uint32_t id);

#endif
