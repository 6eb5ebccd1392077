/* The searches behind quantize.h: scales and integers of one block. Integers are small and kept in floats, which vectorise. */
#ifndef QR_MODEL_QUANTIZE_FIT_H
#define QR_MODEL_QUANTIZE_FIT_H

#include <stddef.h>
#include <stdint.h>

/* value = d * q, low <= q <= high. d is what *half, an f16, means. */
void qr_fit_symmetric(const float *x, const float *w, size_t n, float low, float high, uint16_t *half, float *q);
/* value = d * q + m, 0 <= q <= high; d and m of the 16-bit type that `round` rounds to and `widen` reads. */
void qr_fit_affine(const float *x, const float *w, size_t n, float high, uint16_t (*round)(float), float (*widen)(uint16_t), uint16_t *d,
                   uint16_t *m, float *q);

enum { QR_SUPER = 256, QR_MAX_SUBS = 16 };
/* A super-block of 256 in `subs` parts. value = (d * scale[part]) * q, low <= q <= -low - 1, -scales <= scale < scales. */
void qr_fit_super_symmetric(const float *x, const float *w, size_t subs, float low, float scales, uint16_t *d, float *scale, float *q);
/* value = (d * scale[part]) * q - dmin * min[part], 0 <= q <= high, 0 <= scale, min <= scales. */
void qr_fit_super_affine(const float *x, const float *w, size_t subs, float high, float scales, uint16_t *d, uint16_t *dmin, float *scale,
                         float *min, float *q);

#endif
