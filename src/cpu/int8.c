/* See int8.h. */
#include "cpu/int8.h"

#include "base/mem.h"
#include "cpu/gemm.h"
#include "cpu/tensor_f32.h"

#include <math.h>
#include <string.h>

enum { SAMPLE_ROWS = 64 }; /* of each matrix, evenly spread */

qr_status qr_int8_plan_open(qr_int8_plan *plan, const qr_config *c, qr_error *err)
{
    const size_t widths[QR_N_INPUTS] = {
        [QR_IN_QKV] = c->hidden, [QR_IN_O] = c->n_heads * c->head_dim, [QR_IN_GATE_UP] = c->hidden, [QR_IN_DOWN] = c->inter};
    size_t per_layer = 0;
    for (size_t i = 0; i < QR_N_INPUTS; i++) per_layer += widths[i];
    *plan = (qr_int8_plan){.n_layers = c->n_layers};
    plan->storage_bytes = c->n_layers * per_layer * (sizeof(double) + sizeof(float));
    plan->inputs = qr_calloc(c->n_layers * QR_N_INPUTS, sizeof *plan->inputs);
    plan->storage = qr_pages_alloc(plan->storage_bytes);
    if (plan->inputs == NULL || plan->storage == NULL) {
        qr_int8_plan_close(plan);
        return qr_fail(err, QR_E_MEMORY, "no memory for the factors of %zu layers", c->n_layers);
    }
    double *squares = (double *) (void *) plan->storage;
    float *factors = (float *) (void *) (squares + c->n_layers * per_layer);
    for (size_t i = 0; i < c->n_layers * QR_N_INPUTS; i++) {
        size_t k = widths[i % QR_N_INPUTS];
        plan->inputs[i] = (qr_int8_input){.k = k, .squares = squares, .factors = factors};
        squares += k;
        factors += k;
    }
    return QR_OK;
}

void qr_int8_plan_close(qr_int8_plan *plan)
{
    qr_pages_free(plan->storage, plan->storage_bytes);
    qr_free(plan->inputs);
    *plan = (qr_int8_plan){0};
}

/* |x - integers * scale|^2 / |x|^2; x is as quantize leaves it. */
static double loss_of(float *x, int8_t *y, size_t n, const float *factors, size_t rotation)
{
    double error = 0, size = 0;
    double scale = (double) qr_kernels_get()->quantize((qr_row){y, 0, QR_LINE_INT8}, x, n, factors, rotation);
    for (size_t i = 0; i < n; i++) {
        double d = (double) x[i] - scale * y[i];
        error += d * d;
        size += (double) x[i] * (double) x[i];
    }
    return size > 0 ? error / size : 0;
}

/* Plain, then rotated; the second goes on from what the first left. */
static void add_losses(double *plain, double *rotated, float *x, int8_t *spare, size_t k, const float *factors)
{
    size_t rotation = qr_gemm_rotation(k);
    *plain += loss_of(x, spare, k, factors, 0);
    *rotated += rotation > 0 ? loss_of(x, spare, k, NULL, rotation) : INFINITY;
}

void qr_int8_see(const qr_int8_plan *plan, qr_int8_input *input, float *x, int8_t *spare)
{
    if (plan->has_factors) {
        add_losses(&input->plain, &input->rotated, x, spare, input->k, input->factors);
        input->n_rows++;
        return;
    }
    for (size_t i = 0; i < input->k; i++) input->squares[i] += (double) x[i] * (double) x[i];
}

/* Calls f(arg, row [k]) for some rows of each matrix that reads the input. */
static void sample_weights(const qr_layer_weights *w, qr_layer_input input, float *row, void (*f)(void *arg, float *row), void *arg)
{
    const qr_tensor *const matrices[QR_N_INPUTS][4] = {[QR_IN_QKV] = {w->q_proj, w->k_proj, w->v_proj},
                                                       [QR_IN_O] = {w->o_proj},
                                                       [QR_IN_GATE_UP] = {w->gate_proj, w->up_proj},
                                                       [QR_IN_DOWN] = {w->down_proj}};
    for (size_t m = 0; matrices[input][m] != NULL; m++) {
        const qr_tensor *t = matrices[input][m];
        size_t n = t->dims[0], k = t->dims[1], step = n < SAMPLE_ROWS ? 1 : n / SAMPLE_ROWS;
        for (size_t i = 0; i < SAMPLE_ROWS && i < n; i++) {
            qr_tensor_f32(row, t, i * step * k, k);
            f(arg, row);
        }
    }
}

typedef struct visit {
    qr_int8_input *input;
    double *squares; /* of the columns of the weights */
    float *inverse;  /* of the factors */
    int8_t *spare;
    double plain, rotated;
    size_t n_rows;
} visit;

static void add_squares(void *arg, float *row)
{
    visit *v = arg;
    for (size_t i = 0; i < v->input->k; i++) v->squares[i] += (double) row[i] * (double) row[i];
}

static void add_weight_losses(void *arg, float *row)
{
    visit *v = arg;
    add_losses(&v->plain, &v->rotated, row, v->spare, v->input->k, v->inverse);
    v->n_rows++;
}

/* factor^2 = size of the weights' column / size of the activations', within bounds that keep both far from f32's. Signs by place, so that
 * a rotation spreads also what all elements have in common. */
static void find_factors(visit *v)
{
    qr_int8_input *in = v->input;
    double logs = 0;
    for (size_t i = 0; i < in->k; i++) {
        double x = sqrt(in->squares[i]), w = sqrt(v->squares[i]), ratio = x > 0 && w > 0 ? sqrt(w / x) : 1;
        in->factors[i] = (float) fmin(fmax(ratio, 1e-6), 1e6);
        logs += log((double) in->factors[i]);
    }
    float mean = (float) exp(logs / (double) in->k);
    for (size_t i = 0; i < in->k; i++) {
        uint32_t h = (uint32_t) i * 0x9E3779B1u;
        h = (h ^ h >> 15) * 0x85EBCA77u;
        in->factors[i] = (float) fmin(fmax((double) (in->factors[i] / mean), 0x1p-10), 0x1p10) * (h >> 31 ? -1.0f : 1.0f);
    }
}

static void decide(visit *v)
{
    qr_int8_input *in = v->input;
    if (in->n_rows == 0 || v->n_rows == 0) return;
    double a = (double) in->n_rows, w = (double) v->n_rows;
    in->rotation = in->rotated / a + v->rotated / w < in->plain / a + v->plain / w ? qr_gemm_rotation(in->k) : 0;
}

static qr_status each_input(qr_int8_plan *plan, const qr_model *model, void (*of_row)(void *arg, float *row), void (*of_input)(visit *v),
                            qr_error *err)
{
    size_t widest = 0;
    for (size_t i = 0; i < QR_N_INPUTS; i++) widest = plan->inputs[i].k > widest ? plan->inputs[i].k : widest;
    size_t bytes = widest * (sizeof(double) + 2 * sizeof(float) + 1);
    double *squares = qr_pages_alloc(bytes);
    if (squares == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for a row of %zu weights", widest);
    float *inverse = (float *) (void *) (squares + widest), *row = inverse + widest;
    for (size_t l = 0; l < plan->n_layers; l++)
        for (size_t i = 0; i < QR_N_INPUTS; i++) {
            visit v = {.input = qr_int8_plan_at(plan, l, (qr_layer_input) i), .squares = squares, .inverse = inverse};
            v.spare = (int8_t *) (row + widest);
            memset(squares, 0, widest * sizeof *squares);
            for (size_t j = 0; j < v.input->k && plan->has_factors; j++) inverse[j] = 1.0f / v.input->factors[j];
            sample_weights(&model->layers[l], (qr_layer_input) i, row, of_row, &v);
            of_input(&v);
        }
    qr_pages_free(squares, bytes);
    return QR_OK;
}

qr_status qr_int8_plan_factors(qr_int8_plan *plan, const qr_model *model, qr_error *err)
{
    qr_status status = each_input(plan, model, add_squares, find_factors, err);
    plan->has_factors = status == QR_OK;
    return status;
}

qr_status qr_int8_plan_rotations(qr_int8_plan *plan, const qr_model *model, qr_error *err)
{
    return each_input(plan, model, add_weight_losses, decide, err);
}

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

qr_int8_drift qr_int8_compare(const double *margins, const double *reference, size_t n)
{
    qr_int8_drift drift = {0};
    double agree = 0, pairs = 0;
    for (size_t i = 0; i < n; i++) {
        double score = fabs(sigmoid(margins[i]) - sigmoid(reference[i]));
        drift.mean_score += score / (double) n;
        drift.worst_score = fmax(drift.worst_score, score);
        drift.mean_margin += fabs(margins[i] - reference[i]) / (double) n;
        for (size_t j = 0; j < i; j++) {
            double d = (margins[i] - margins[j]) * (reference[i] - reference[j]);
            agree += (d > 0) - (d < 0);
            pairs++;
        }
    }
    drift.tau = pairs > 0 ? agree / pairs : 1;
    return drift;
}

int qr_int8_passes(const qr_int8_drift *drift) { return drift->tau >= QR_INT8_MIN_TAU && drift->mean_score <= QR_INT8_MAX_SCORE; }
