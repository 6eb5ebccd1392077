/* See quantize_fit.h.
 *
 * A block's error as a function of its scale has many small minima: the integers jump. So a range of scales around the one that just
 * covers the block is tried; for the integers of each, the best scale (and offset) is that of least squares. The best of these is rounded
 * to the stored type together with its neighbours, and the integers are taken again for what was stored.
 */
#include "model/quantize_fit.h"

#include "model/quantize.h"

#include <math.h>

enum { STEPS = 10 };              /* scales tried on each side of the covering one */
static const float TINY = 1e-30f; /* below this a block is zero: its scale has no inverse */

/* Nearest integer for |v| < 2^22, without a call. Values are clamped before. */
static inline float nearest(float v) { return (v + 12582912.0f) - 12582912.0f; }
static inline float clamp(float v, float low, float high) { return v > low ? (v < high ? v : high) : low; /* NaN: low */ }

typedef struct moments {
    float wq, wqq, wxq;
} moments;

/* Sums over the integers that a scale of 1 / inverse gives. */
static moments sums(const float *x, const float *w, size_t n, float inverse, float offset, float low, float high)
{
    float wq = 0, wqq = 0, wxq = 0;
#pragma omp simd reduction(+ : wq, wqq, wxq)
    for (size_t i = 0; i < n; i++) {
        float q = nearest(clamp((x[i] - offset) * inverse, low, high)), weighted = w[i] * q;
        wq += weighted;
        wqq += weighted * q;
        wxq += weighted * x[i];
    }
    return (moments){wq, wqq, wxq};
}

/* Error of a stored scale and offset with the best integers for them. */
static float error_of(const float *x, const float *w, size_t n, float d, float offset, float low, float high)
{
    float inverse = fabsf(d) > TINY ? 1 / d : 0, sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < n; i++) {
        float q = nearest(clamp((x[i] - offset) * inverse, low, high)), e = x[i] - (d * q + offset);
        sum += w[i] * e * e;
    }
    return sum;
}

static void integers(const float *x, size_t n, float d, float offset, float low, float high, float *q)
{
    float inverse = fabsf(d) > TINY ? 1 / d : 0;
#pragma omp simd
    for (size_t i = 0; i < n; i++) q[i] = nearest(clamp((x[i] - offset) * inverse, low, high));
}

static float largest(const float *x, size_t n)
{
    float most = 0;
    for (size_t i = 0; i < n; i++)
        if (fabsf(x[i]) > fabsf(most)) most = x[i];
    return most;
}

/* The best real scale; *cover, if not NULL, is the plain one that maps the largest value to `low`. */
static float symmetric_scale(const float *x, const float *w, size_t n, float low, float high)
{
    float most = largest(x, n), best = 0, gain = 0;
    if (fabsf(most) < TINY) return 0;
    int steps = low < -64 ? 3 : STEPS;
    for (int side = 0; side < 2; side++)
        for (int k = -steps; k <= steps; k++) {
            float inverse = ((side ? high : low) + 0.1f * (float) k) / most;
            moments s = sums(x, w, n, inverse, 0, low, high);
            if (s.wqq > 0 && s.wxq * s.wxq > gain * s.wqq) {
                gain = s.wxq * s.wxq / s.wqq;
                best = s.wxq / s.wqq;
            }
        }
    moments s = fabsf(best) > TINY ? sums(x, w, n, 1 / best, 0, low, high) : (moments){0};
    return s.wqq > 0 ? s.wxq / s.wqq : best;
}

void qr_fit_symmetric(const float *x, const float *w, size_t n, float low, float high, uint16_t *half, float *q)
{
    float fitted = symmetric_scale(x, w, n, low, high), least = INFINITY;
    const float starts[] = {fitted, largest(x, n) / low, largest(x, n) / high};
    *half = 0;
    for (int i = 0; i < 3; i++)
        for (int step = -1; step <= 1; step++) {
            uint16_t candidate = (uint16_t) (qr_f16_of(starts[i]) + step);
            if ((candidate & 0x7C00) == 0x7C00) continue;
            float e = error_of(x, w, n, qr_f16_to_f32(candidate), 0, low, high);
            if (e < least) {
                least = e;
                *half = candidate;
            }
        }
    integers(x, n, qr_f16_to_f32(*half), 0, low, high, q);
}

/* The best real scale and offset; with `below`, the offset is at most 0. */
static void affine_scale(const float *x, const float *w, size_t n, float high, int below, float *scale, float *offset)
{
    float lo = x[0], hi = x[0], sw = 0, swx = 0;
    for (size_t i = 0; i < n; i++) {
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
        sw += w[i];
        swx += w[i] * x[i];
    }
    if (below && lo > 0) lo = 0;
    *scale = (hi - lo) / high;
    *offset = lo;
    if (hi - lo < TINY) return;
    double gain = -INFINITY;
    float inverse = 0, start = lo;
    for (int k = -STEPS; k <= STEPS + 2; k++) { /* the last two start from the best so far */
        if (k <= STEPS) inverse = (high + 0.1f * (float) k) / (hi - lo);
        else inverse = *scale > TINY ? 1 / *scale : 0, start = *offset;
        moments s = sums(x, w, n, inverse, start, 0, high);
        double det = (double) sw * s.wqq - (double) s.wq * s.wq, d = 0, m = 0;
        if (det > 0) {
            d = ((double) sw * s.wxq - (double) swx * s.wq) / det;
            m = ((double) s.wqq * swx - (double) s.wq * s.wxq) / det;
        }
        if (det <= 0 || (below && m > 0)) {
            m = 0;
            d = s.wqq > 0 ? (double) s.wxq / s.wqq : 0;
            if (det <= 0 && !below) continue;
        }
        /* what least squares takes away from the sum of w x^2 */
        double g = 2 * (d * s.wxq + m * swx) - d * d * s.wqq - 2 * d * m * s.wq - m * m * sw;
        if (g > gain && d > 0) {
            gain = g;
            *scale = (float) d;
            *offset = (float) m;
        }
    }
}

void qr_fit_affine(const float *x, const float *w, size_t n, float high, uint16_t (*round)(float), float (*widen)(uint16_t), uint16_t *d,
                   uint16_t *m, float *q)
{
    float scale, offset, least = INFINITY;
    affine_scale(x, w, n, high, 0, &scale, &offset);
    float lo = x[0], hi = x[0];
    for (size_t i = 0; i < n; i++) {
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
    }
    const float scales[] = {scale, (hi - lo) / high}, offsets[] = {offset, lo};
    /* 16 bits of a scale can be coarser than the search, above all BF16's 8: the neighbours are tried, and both ends as the fixed one */
    for (int i = 0; i < 2; i++)
        for (int a = -2; a <= 2; a++) {
            uint16_t dc = round(scales[i]);
            dc = (uint16_t) ((int) dc + a < 0 ? 0 : dc + a);
            float dv = widen(dc);
            if (!isfinite(dv)) continue;
            const float aims[] = {offsets[i], offsets[i] + high * (scales[i] - dv), offsets[i] + high / 2 * (scales[i] - dv)};
            for (int aim = 0; aim < 3; aim++) {
                uint16_t first = round(aims[aim]);
                for (int b = -1; b <= 1; b++) {
                    uint16_t mc = (uint16_t) (first + b);
                    float mv = widen(mc);
                    if (!isfinite(mv)) continue;
                    float e = error_of(x, w, n, dv, mv, 0, high);
                    if (e < least) {
                        least = e;
                        *d = dc;
                        *m = mc;
                    }
                }
            }
        }
    integers(x, n, widen(*d), widen(*m), 0, high, q);
}

void qr_fit_super_symmetric(const float *x, const float *w, size_t subs, float low, float scales, uint16_t *d, float *scale, float *q)
{
    enum { ROUNDS = 3 };
    const size_t n = QR_SUPER / subs;
    const float high = -low - 1;
    float fitted[QR_MAX_SUBS], tried[QR_MAX_SUBS], most, least = INFINITY;
    for (size_t s = 0; s < subs; s++) fitted[s] = symmetric_scale(x + s * n, w + s * n, n, low, high);
    most = largest(fitted, subs);
    *d = 0;
    for (size_t s = 0; s < subs; s++) scale[s] = 0;
    uint16_t candidate = qr_f16_of(most / -scales);
    for (int round = 0; round < ROUNDS; round++) {
        float step = qr_f16_to_f32(candidate), total = 0, aa = 0, ax = 0;
        for (size_t s = 0; s < subs; s++) {
            const float *xs = x + s * n, *ws = w + s * n;
            float near = fabsf(step) > TINY ? nearest(clamp(fitted[s] / step, -scales, scales - 1)) : 0, best = INFINITY;
            for (int off = -1; off <= 1; off++) {
                float c = near + (float) off;
                if (c < -scales || c > scales - 1) continue;
                float e = error_of(xs, ws, n, step * c, 0, low, high);
                if (e < best) {
                    best = e;
                    tried[s] = c;
                }
            }
            total += best;
            moments m = fabsf(step * tried[s]) > TINY ? sums(xs, ws, n, 1 / (step * tried[s]), 0, low, high) : (moments){0};
            aa += m.wqq * tried[s] * tried[s];
            ax += m.wxq * tried[s];
        }
        if (total < least) {
            least = total;
            *d = candidate;
            for (size_t s = 0; s < subs; s++) scale[s] = tried[s];
        }
        if (!(aa > 0)) break;
        candidate = qr_f16_of(ax / aa);
    }
    for (size_t s = 0; s < subs; s++) integers(x + s * n, n, qr_f16_to_f32(*d) * scale[s], 0, low, high, q + s * n);
}

void qr_fit_super_affine(const float *x, const float *w, size_t subs, float high, float scales, uint16_t *d, uint16_t *dmin, float *scale,
                         float *min, float *q)
{
    enum { ROUNDS = 3 };
    const size_t n = QR_SUPER / subs;
    float steps[QR_MAX_SUBS], offsets[QR_MAX_SUBS], tried[2][QR_MAX_SUBS], most = 0, most_min = 0, least = INFINITY;
    for (size_t s = 0; s < subs; s++) {
        affine_scale(x + s * n, w + s * n, n, high, 1, &steps[s], &offsets[s]);
        most = steps[s] > most ? steps[s] : most;
        most_min = -offsets[s] > most_min ? -offsets[s] : most_min;
        scale[s] = min[s] = 0;
    }
    *d = *dmin = 0;
    uint16_t dc = qr_f16_of(most / scales), mc = qr_f16_of(most_min / scales);
    for (int round = 0; round < ROUNDS; round++) {
        float dv = qr_f16_to_f32(dc), mv = qr_f16_to_f32(mc), total = 0;
        double aa = 0, ab = 0, bb = 0, ax = 0, bx = 0; /* of x = d A - dmin B: A = scale q, B = min */
        for (size_t s = 0; s < subs; s++) {
            const float *xs = x + s * n, *ws = w + s * n;
            float near = dv > TINY ? nearest(clamp(steps[s] / dv, 0, scales)) : 0, best = INFINITY;
            float near_min = mv > TINY ? nearest(clamp(-offsets[s] / mv, 0, scales)) : 0;
            for (int off = -1; off <= 1; off++)
                for (int off_min = -1; off_min <= 1; off_min++) {
                    float a = near + (float) off, b = near_min + (float) off_min;
                    if (a < 0 || a > scales || b < 0 || b > scales) continue;
                    float e = error_of(xs, ws, n, dv * a, -(mv * b), 0, high);
                    if (e < best) {
                        best = e;
                        tried[0][s] = a;
                        tried[1][s] = b;
                    }
                }
            total += best;
            double a = (double) tried[0][s], b = (double) tried[1][s], sw = 0, swx = 0;
            for (size_t i = 0; i < n; i++) {
                sw += (double) ws[i];
                swx += (double) (ws[i] * xs[i]);
            }
            float step = dv * tried[0][s];
            moments m = step > TINY ? sums(xs, ws, n, 1 / step, -(mv * tried[1][s]), 0, high) : (moments){0};
            aa += a * a * (double) m.wqq;
            ab += a * b * (double) m.wq;
            bb += b * b * sw;
            ax += a * (double) m.wxq;
            bx += b * swx;
        }
        if (total < least) {
            least = total;
            *d = dc;
            *dmin = mc;
            for (size_t s = 0; s < subs; s++) {
                scale[s] = tried[0][s];
                min[s] = tried[1][s];
            }
        }
        double det = aa * bb - ab * ab;
        if (det > 0) {
            double dn = (ax * bb - ab * bx) / det, mn = (ab * ax - aa * bx) / det;
            if (dn < 0 || mn < 0) break;
            dc = qr_f16_of((float) dn);
            mc = qr_f16_of((float) mn);
        } else if (aa > 0) {
            dc = qr_f16_of((float) (ax / aa));
        } else {
            break;
        }
        if (dc >> 15) break;
    }
    for (size_t s = 0; s < subs; s++)
        integers(x + s * n, n, qr_f16_to_f32(*d) * scale[s], -(qr_f16_to_f32(*dmin) * min[s]), 0, high, q + s * n);
}
