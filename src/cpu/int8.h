/* How a model's products are done in 8 bits, and whether they may be: found by trying it on some prompts.
 *
 * Rows of activations and of weights become integers with one scale each, so what is lost depends on how much larger the largest element of
 * a row is than the others. Two things are done about that, both of which leave the products as they are: each column of the activations is
 * divided by a factor and the same column of the weights multiplied by it, so that both share the burden (SmoothQuant, arXiv:2211.10438);
 * and where it helps, both are rotated (QuaRot, arXiv:2404.00456).
 */
#ifndef QR_CPU_INT8_H
#define QR_CPU_INT8_H

#include "cpu/kernels.h"
#include "model/weights.h"

/* The inputs of a layer's products. */
typedef enum qr_layer_input { QR_IN_QKV, QR_IN_O, QR_IN_GATE_UP, QR_IN_DOWN, QR_N_INPUTS } qr_layer_input;

typedef struct qr_int8_input {
    size_t k;
    double *squares;       /* [k]: of each column of the activations, summed over the rows that were seen */
    float *factors;        /* [k]: what activations are multiplied by, with pseudo-random signs; weights are divided by it */
    double plain, rotated; /* relative squared errors of activations in 8 bits, summed over rows */
    size_t n_rows;         /* of them */
    size_t rotation;       /* chosen: a block size, or 0 */
} qr_int8_input;

typedef struct qr_int8_plan {
    size_t n_layers;
    qr_int8_input *inputs; /* [n_layers][QR_N_INPUTS] */
    float *storage;
    size_t storage_bytes;
    int has_factors; /* rows that are seen are measured now */
} qr_int8_plan;

qr_status qr_int8_plan_open(qr_int8_plan *plan, const qr_config *config, qr_error *err);
void qr_int8_plan_close(qr_int8_plan *plan);
static inline qr_int8_input *qr_int8_plan_at(const qr_int8_plan *plan, size_t layer, qr_layer_input input)
{
    return &plan->inputs[layer * QR_N_INPUTS + input];
}
/* Takes a row x [k] of activations into account; x is lost. spare: [k]. */
void qr_int8_see(const qr_int8_plan *plan, qr_int8_input *input, float *x, int8_t *spare);
/* After all rows have been seen once: the factors. Then they are to be seen again, and it is decided what is rotated. */
qr_status qr_int8_plan_factors(qr_int8_plan *plan, const qr_model *model, qr_error *err);
qr_status qr_int8_plan_rotations(qr_int8_plan *plan, const qr_model *model, qr_error *err);

/* Margins [n] in 8 bits against those in the reference's arithmetic. */
typedef struct qr_int8_drift {
    double tau;                     /* Kendall's, of the order */
    double mean_score, worst_score; /* |sigmoid - sigmoid| */
    double mean_margin;             /* |margin - margin| */
} qr_int8_drift;
qr_int8_drift qr_int8_compare(const double *margins, const double *reference, size_t n);
/* What is good enough to rank with: at most three pairs of documents in two hundred the other way round, about what bf16 does to the order
 * of a random model; and scores that a threshold of two digits still sorts alike. */
#define QR_INT8_MIN_TAU 0.97
#define QR_INT8_MAX_SCORE 0.02
/* 1 if it is; a NaN is not. */
int qr_int8_passes(const qr_int8_drift *drift);

#endif
