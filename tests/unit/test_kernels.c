/* Every kernel variant that this machine can run against plain formulas in f64, at lengths around the vector widths and with arrays
 * that end at an unreadable page. The variants are also compared bit by bit where the result must not depend on the variant. */
#define _GNU_SOURCE
#include "cpu/features.h"
#include "cpu/kernels.h"
#include "emulated_amx.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

static const size_t lengths[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 64, 100, 127, 128, 129, 257};
enum { N_LENGTHS = sizeof lengths / sizeof lengths[0], MAX_VARIANTS = 5 };

static const qr_kernels *variants[MAX_VARIANTS];
static size_t n_variants;

static int find_variants(void **state)
{
    (void) state;
    qr_isa found = qr_cpu_get()->found;
    variants[n_variants++] = qr_kernels_scalar;
    if (qr_kernels_neon != NULL) variants[n_variants++] = qr_kernels_neon;
    if (qr_kernels_avx2 != NULL && found >= QR_ISA_AVX2) variants[n_variants++] = qr_kernels_avx2;
    if (qr_kernels_avx512 != NULL && found >= QR_ISA_AVX512) variants[n_variants++] = qr_kernels_avx512;
    if (qr_kernels_avx512_bf16 != NULL && found >= QR_ISA_AVX512_BF16) variants[n_variants++] = qr_kernels_avx512_bf16;
    return 0;
}

/* A block whose last byte is the last one before an unreadable page: a load or store past its end is a crash. */
typedef struct guarded {
    unsigned char *map;
    size_t map_bytes;
} guarded;

static void *guard(guarded *g, size_t bytes)
{
    size_t page = (size_t) sysconf(_SC_PAGESIZE);
    g->map_bytes = (bytes + page - 1) / page * page + page;
    g->map = mmap(NULL, g->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(g->map, MAP_FAILED);
    assert_int_equal(mprotect(g->map + g->map_bytes - page, page, PROT_NONE), 0);
    return g->map + g->map_bytes - page - bytes;
}

static void unguard(guarded *g) { munmap(g->map, g->map_bytes); }

static uint32_t seed = 1;

static float rnd(void) /* in [-1, 1) */
{
    seed = seed * 1664525u + 1013904223u;
    return (float) (int32_t) seed * 0x1p-31f;
}

static void fill(float *x, size_t n, float scale)
{
    for (size_t i = 0; i < n; i++) x[i] = rnd() * scale;
}

static float from_bf16(uint16_t h)
{
    uint32_t bits = (uint32_t) h << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* f32 sums of up to 257 products and two roundings stay well inside this relative error; bf16 adds half a unit of its 8-bit mantissa. */
static const double f32_error = 4e-6, bf16_error = 0.004;

static void check_close(double found, double expected, double relative, double floor_abs)
{
    if (!(fabs(found - expected) <= relative * fabs(expected) + floor_abs)) fail_msg("expected %.9g, found %.9g", expected, found);
}

static void check_output(const void *y, int bf16, size_t i, double expected, double floor_abs)
{
    if (bf16) check_close((double) from_bf16(((const uint16_t *) y)[i]), expected, bf16_error, floor_abs);
    else check_close((double) ((const float *) y)[i], expected, f32_error, floor_abs);
}

static void test_rmsnorm(void **state)
{
    (void) state;
    for (size_t v = 0; v < n_variants; v++)
        for (size_t l = 0; l < N_LENGTHS; l++)
            for (int bf16 = 0; bf16 < 2; bf16++) {
                size_t n = lengths[l];
                guarded gx, gw, gy;
                float *x = guard(&gx, n * 4), *w = guard(&gw, n * 4);
                void *y = guard(&gy, n * (bf16 ? 2 : 4));
                fill(x, n, 3);
                fill(w, n, 2);
                variants[v]->rmsnorm((qr_row){y, bf16, QR_LINE}, x, w, n, 1e-6f);
                double ss = 0;
                for (size_t i = 0; i < n; i++) ss += (double) x[i] * (double) x[i];
                double scale = 1 / sqrt(ss / (double) n + 1e-6);
                for (size_t i = 0; i < n; i++) check_output(y, bf16, i, (double) x[i] * scale * (double) w[i], 0);
                unguard(&gx);
                unguard(&gw);
                unguard(&gy);
            }
}

/* Integers are within half a step of the row, rotated or not, and rotation changes no product. In lines of a tile they are the same. */
static void test_quantize(void **state)
{
    (void) state;
    static const struct {
        size_t n, block;
    } cases[] = {{1, 0}, {15, 0}, {16, 16}, {33, 0}, {48, 16}, {64, 32}, {96, 32}, {129, 0}, {256, 128}, {512, 512}, {3072, 1024}};
    for (size_t v = 0; v < n_variants; v++)
        for (size_t l = 0; l < sizeof cases / sizeof cases[0]; l++) {
            size_t n = cases[l].n, block = cases[l].block;
            size_t n_tiled = (n - 1) / QR_LINE_INT8 * 16 * QR_LINE_INT8 + (n - 1) % QR_LINE_INT8 + 1;
            guarded gx, gw, gf, gy, gt;
            float *x = guard(&gx, n * 4), *w = guard(&gw, n * 4), *factors = guard(&gf, n * 4);
            int8_t *y = guard(&gy, n), *tiled = guard(&gt, n_tiled);
            qr_row row = {y, 0, QR_LINE_INT8};
            double before = 0, after = 0, size = 0, largest = 0;
            fill(x, n, 2);
            fill(w, n, 1);
            x[n / 2] = 100; /* an outlier */
            for (size_t i = 0; i < n; i++) {
                factors[i] = i % 3 ? 2.0f : -0.5f;
                before += (double) x[i] * (double) w[i];
                w[i] /= factors[i];
            }
            (void) variants[v]->quantize(row, w, n, NULL, block); /* leaves w rotated */
            double scale = (double) variants[v]->quantize(row, x, n, factors, block);
            for (size_t i = 0; i < n; i++) {
                after += (double) x[i] * (double) w[i] / (block ? (double) block : 1);
                size += fabs((double) x[i] * (double) w[i]);
                largest = fmax(largest, fabs((double) x[i]));
                assert_true(fabs((double) x[i] - scale * y[i]) <= 0.5001 * scale);
                assert_in_range(y[i] + 127, 0, 254);
            }
            check_close(scale, largest / 127, 1e-6, 0);
            check_close(after, before, 0, 1e-5 * size + 1e-5);
            if (block >= 128) assert_true(largest < 100 * 2 * sqrt((double) block) / 2); /* spread over the block */
            memset(tiled, -128, n_tiled);
            check_close((double) variants[v]->quantize((qr_row){tiled, 0, 16 * QR_LINE_INT8}, x, n, NULL, 0), scale, 0, 0);
            for (size_t i = 0; i < n_tiled; i++) {
                size_t line = i / QR_LINE_INT8, in_line = i % QR_LINE_INT8;
                assert_int_equal(tiled[i], line % 16 == 0 ? y[line / 16 * QR_LINE_INT8 + in_line] : -128);
            }
            memset(x, 0, n * 4);
            assert_true(variants[v]->quantize(row, x, n, NULL, block) == 0 && y[n - 1] == 0);
            x[n - 1] = NAN;
            assert_true(isnan(variants[v]->quantize(row, x, n, NULL, block)));
            x[n - 1] = INFINITY;
            assert_true(isnan(variants[v]->quantize(row, x, n, NULL, block)));
            unguard(&gx);
            unguard(&gw);
            unguard(&gf);
            unguard(&gy);
            unguard(&gt);
        }
}

static void test_dequantize(void **state)
{
    (void) state;
    for (size_t v = 0; v < n_variants; v++)
        for (size_t l = 0; l < N_LENGTHS; l++) {
            enum { R = 3 };
            size_t nb = lengths[l];
            guarded gc, gs;
            float *c = guard(&gc, R * nb * 4), *scales = guard(&gs, nb * 4);
            const float rows[R] = {0.5f, 0.1f, NAN};
            fill(scales, nb, 1);
            for (size_t i = 0; i < R * nb; i++) {
                int32_t sum = (int32_t) (i * 7919) - 50000;
                memcpy(c + i, &sum, sizeof sum);
            }
            variants[v]->dequantize(c, R, nb, rows, scales);
            for (size_t i = 0; i < R * nb; i++) {
                if (i / nb == 2) assert_true(isnan(c[i]));
                else
                    check_close((double) c[i], ((double) (i * 7919) - 50000) * (double) rows[i / nb] * (double) scales[i % nb], f32_error,
                                0);
            }
            unguard(&gc);
            unguard(&gs);
        }
}

static void test_norm_rope(void **state)
{
    (void) state;
    for (size_t v = 0; v < n_variants; v++)
        for (size_t l = 0; l < 2 * N_LENGTHS; l++) {
            size_t half = lengths[l / 2], n = 2 * half;
            int bf16 = l % 2;
            guarded gx, gw, gc, gs, gy;
            float *x = guard(&gx, n * 4), *w = guard(&gw, n * 4), *c = guard(&gc, half * 4), *s = guard(&gs, half * 4);
            void *y = guard(&gy, n * (bf16 ? 2 : 4));
            fill(x, n, 3);
            fill(w, n, 2);
            for (size_t i = 0; i < half; i++) {
                c[i] = cosf((float) i);
                s[i] = sinf((float) i);
            }
            variants[v]->norm_rope((qr_row){y, bf16, QR_LINE}, x, w, c, s, n, 1e-6f);
            double ss = 0;
            for (size_t i = 0; i < n; i++) ss += (double) x[i] * (double) x[i];
            double scale = 1 / sqrt(ss / (double) n + 1e-6);
            for (size_t i = 0; i < half; i++) {
                double a = (double) x[i] * scale * (double) w[i], b = (double) x[half + i] * scale * (double) w[half + i];
                check_output(y, bf16, i, a * (double) c[i] - b * (double) s[i], 4e-6);
                check_output(y, bf16, half + i, b * (double) c[i] + a * (double) s[i], 4e-6);
            }
            guarded *all[] = {&gx, &gw, &gc, &gs, &gy};
            for (size_t i = 0; i < 5; i++) unguard(all[i]);
        }
}

static void test_swiglu(void **state)
{
    (void) state;
    for (size_t v = 0; v < n_variants; v++)
        for (size_t l = 0; l < N_LENGTHS; l++)
            for (int bf16 = 0; bf16 < 2; bf16++) {
                enum { R = 3 };
                size_t n = lengths[l], stride = 2 * n + 5, half = n + 5, n_c = (R - 1) * stride + half + n;
                guarded gc, gy;
                float *c = guard(&gc, n_c * 4);
                void *y = guard(&gy, R * n * (bf16 ? 2 : 4));
                fill(c, n_c, 20);
                if (n > 2) c[0] = -200, c[1] = 200, c[2] = 0; /* beyond what e^x can hold */
                variants[v]->swiglu(&(qr_rows){.data = y, .width = n, .bf16 = bf16}, 1, R - 1, 0, c + stride, stride, half, n);
                variants[v]->swiglu(&(qr_rows){.data = y, .width = n, .bf16 = bf16}, 0, 1, 0, c, stride, half, n);
                for (size_t i = 0; i < R * n; i++) {
                    double g = (double) c[i / n * stride + i % n], u = (double) c[i / n * stride + half + i % n];
                    check_output(y, bf16, i, g / (1 + exp(-g)) * u, 1e-30);
                }
                unguard(&gc);
                unguard(&gy);
            }
}

static void test_conversions(void **state)
{
    (void) state;
    enum { N = 65536 };
    uint16_t *all = malloc(N * sizeof *all), *back = malloc(N * sizeof *back);
    float *wide = malloc(N * sizeof *wide), *reference = malloc(N * sizeof *reference);
    for (size_t i = 0; i < N; i++) all[i] = (uint16_t) i;
    for (size_t v = 0; v < n_variants; v++) {
        variants[v]->widen_bf16(wide, all, N);
        variants[v]->narrow_bf16(back, wide, N);
        for (size_t i = 0; i < N; i++) {
            if (wide[i] != wide[i]) assert_true((back[i] & 0x7f80) == 0x7f80 && (back[i] & 0x7f) != 0); /* NaN stays NaN */
            else assert_int_equal(back[i], all[i]);
        }
        variants[v]->widen_f16(wide, all, N);
        if (v == 0) memcpy(reference, wide, N * sizeof *wide);
        for (size_t i = 0; i < N; i++)
            if (reference[i] == reference[i]) assert_true(wide[i] == reference[i]);
            else assert_true(wide[i] != wide[i]);
        assert_true(wide[0x3c00] == 1 && wide[0xc000] == -2 && wide[1] == 0x1p-24f && wide[0x7bff] == 65504 && isinf(wide[0x7c00]));
    }
    /* ties go to even, everything else to the nearest */
    static const struct {
        uint32_t bits;
        uint16_t expected;
    } cases[] = {{0x3f808000, 0x3f80}, {0x3f818000, 0x3f82}, {0x3f808001, 0x3f81},
                 {0x3f807fff, 0x3f80}, {0x7f7fffff, 0x7f80}, {0x00008001, 0x0001}};
    for (size_t v = 0; v < n_variants; v++)
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
            for (size_t n = 1; n < 34; n += 16) {
                guarded gx, gy;
                float *x = guard(&gx, n * 4);
                uint16_t *y = guard(&gy, n * 2);
                for (size_t j = 0; j < n; j++) memcpy(x + j, &cases[i].bits, 4);
                variants[v]->narrow_bf16(y, x, n);
                for (size_t j = 0; j < n; j++) assert_int_equal(y[j], cases[i].expected);
                unguard(&gy);
                y = guard(&gy, (2 * n - 1) * 2); /* nothing past the last element */
                variants[v]->spread_bf16(y, x, n);
                int subnormal = (cases[i].expected & 0x7f80) == 0; /* may become zero, as products take it */
                for (size_t j = 0; j < n; j++) {
                    if (!subnormal || y[2 * j] != 0) assert_int_equal(y[2 * j], cases[i].expected);
                    if (j > 0) assert_int_equal(y[2 * j - 1], 0);
                }
                unguard(&gx);
                unguard(&gy);
            }
    free(all);
    free(back);
    free(wide);
    free(reference);
}

static void test_add(void **state)
{
    (void) state;
    for (size_t v = 0; v < n_variants; v++)
        for (size_t l = 0; l < N_LENGTHS; l++) {
            size_t n = lengths[l];
            guarded gx, gy;
            float *x = guard(&gx, n * 4), *y = guard(&gy, n * 4), before[257];
            fill(x, n, 3);
            fill(y, n, 3);
            memcpy(before, x, n * sizeof *x);
            variants[v]->add(x, y, n);
            for (size_t i = 0; i < n; i++) assert_true(x[i] == before[i] + y[i]);
            unguard(&gx);
            unguard(&gy);
        }
}

static void test_gemm(void **state)
{
    (void) state;
    enum { ROWS = 16, NB = 32 };
    for (size_t v = 0; v < n_variants; v++)
        for (size_t l = 0; l < N_LENGTHS; l++) {
            size_t k = lengths[l];
            guarded ga, gb, gc;
            float *a = guard(&ga, ROWS * k * 4), *b = guard(&gb, NB * k * 4), *c = guard(&gc, ROWS * NB * 4);
            fill(a, ROWS * k, 1);
            fill(b, NB * k, 1);
            variants[v]->gemm(c, a, b, ROWS, k, NB);
            for (size_t m = 0; m < ROWS; m++)
                for (size_t n = 0; n < NB; n++) {
                    double sum = 0;
                    for (size_t i = 0; i < k; i++)
                        sum += (double) a[m * k + i] * (double) b[(n / QR_PANEL * k + i) * QR_PANEL + n % QR_PANEL];
                    check_close((double) c[m * NB + n], sum, 0, 1e-6 * (double) k);
                }
            unguard(&ga);
            unguard(&gb);
            unguard(&gc);
        }
}

/* ---- attention ---------------------------------------------------------------------------------------------------------------- */

typedef struct keys {
    float *k, *v; /* [n][hd] plain */
    void *kt, *vs;
    guarded gk, gv;
    size_t n, hd, stride;
} keys;

static float round_bf16(float x)
{
    uint16_t h;
    qr_kernels_scalar->narrow_bf16(&h, &x, 1);
    return from_bf16(h);
}

/* Element d of key or value j, in the orders of kernels.h. */
static size_t key_index(const keys *ks, int bf16, size_t j, size_t d)
{
    size_t in_block = j % QR_KEY_BLOCK, block = (j - in_block) * ks->hd;
    return bf16 ? block + d / 2 * 2 * QR_KEY_BLOCK + 2 * in_block + d % 2 : block + d * QR_KEY_BLOCK + in_block;
}

static size_t value_index(const keys *ks, int bf16, size_t j, size_t d)
{
    return bf16 ? j / 2 * 2 * ks->stride + 2 * d + j % 2 : j * ks->stride + d;
}

static void put(void *array, int bf16, size_t i, float x)
{
    if (bf16) qr_kernels_scalar->narrow_bf16((uint16_t *) array + i, &x, 1);
    else ((float *) array)[i] = x;
}

static void make_keys(keys *ks, size_t n, size_t hd, int bf16)
{
    size_t es = bf16 ? 2 : 4;
    size_t slots = (n + QR_KEY_BLOCK - 1) / QR_KEY_BLOCK * QR_KEY_BLOCK;
    ks->n = n;
    ks->hd = hd;
    ks->stride = (hd + QR_KEY_BLOCK - 1) / QR_KEY_BLOCK * QR_KEY_BLOCK;
    ks->k = malloc((n * hd + 1) * sizeof(float));
    ks->v = malloc((n * hd + 1) * sizeof(float));
    ks->kt = guard(&ks->gk, slots * hd * es);
    ks->vs = guard(&ks->gv, slots * ks->stride * es);
    fill(ks->k, n * hd, 1);
    fill(ks->v, n * hd, 1);
    for (size_t i = 0; bf16 && i < n * hd; i++) {
        ks->k[i] = round_bf16(ks->k[i]);
        ks->v[i] = round_bf16(ks->v[i]);
    }
    for (size_t j = 0; j < slots; j++) { /* keys past the end must never count, whatever stands there */
        for (size_t d = 0; d < hd; d++) put(ks->kt, bf16, key_index(ks, bf16, j, d), j < n ? ks->k[j * hd + d] : NAN);
        for (size_t d = 0; d < ks->stride; d++)
            put(ks->vs, bf16, value_index(ks, bf16, j, d), j >= n ? NAN : d < hd ? ks->v[j * hd + d] : 0);
    }
}

static void free_keys(keys *ks)
{
    free(ks->k);
    free(ks->v);
    unguard(&ks->gk);
    unguard(&ks->gv);
}

/* One query row against `n_prefix` and `n_own` keys, in f64. */
static void attend_reference(double *out, const float *q, double scale, const keys *prefix, size_t n_prefix, const keys *own, size_t n_own)
{
    size_t hd = own->hd, n = n_prefix + n_own;
    double *s = malloc(n * sizeof *s), max = -INFINITY, sum = 0;
    for (size_t j = 0; j < n; j++) {
        const float *k = j < n_prefix ? prefix->k + j * hd : own->k + (j - n_prefix) * hd;
        s[j] = 0;
        for (size_t d = 0; d < hd; d++) s[j] += (double) q[d] * (double) k[d];
        s[j] *= scale;
        if (s[j] > max) max = s[j];
    }
    for (size_t j = 0; j < n; j++) sum += s[j] = exp(s[j] - max);
    for (size_t d = 0; d < hd; d++) out[d] = 0;
    for (size_t j = 0; j < n; j++) {
        const float *v = j < n_prefix ? prefix->v + j * hd : own->v + (j - n_prefix) * hd;
        for (size_t d = 0; d < hd; d++) out[d] += s[j] / sum * (double) v[d];
    }
    free(s);
}

static void run_attend(qr_attend_fn attend, float *out, const void *q, size_t n_rows, size_t group, size_t first, float scale,
                       const keys *prefix, const keys *own)
{
    size_t hd = own->hd;
    float *scratch = aligned_alloc(64, (qr_attend_scratch(own->stride) * 4 + 63) / 64 * 64);
    qr_attend a = {.q = q,
                   .n_rows = n_rows,
                   .n_group = group,
                   .head_dim = hd,
                   .v_stride = own->stride,
                   .scale = scale,
                   .own = {own->kt, own->vs, own->n},
                   .first_pos = first,
                   .out = {.data = out, .width = group * hd},
                   .scratch = scratch};
    if (prefix->n > 0) a.prefix = (qr_kv){prefix->kt, prefix->vs, prefix->n};
    attend(&a);
    free(scratch);
}

static size_t round_up(size_t n_vectors) { return (n_vectors + QR_ATTEND_ROWS - 1) / QR_ATTEND_ROWS * QR_ATTEND_ROWS; }

static void check_attend(qr_attend_fn attend, int bf16, size_t hd, size_t n_prefix, size_t n, size_t group)
{
    keys prefix, own;
    make_keys(&prefix, n_prefix, hd, bf16);
    make_keys(&own, n, hd, bf16);
    guarded gq, go;
    size_t es = bf16 ? 2 : 4, n_q = n * group * hd, last = (n - 1) * group, readable = last + round_up(group);
    if (readable < round_up(n * group)) readable = round_up(n * group);
    float *q = malloc(n_q * sizeof *q), *out = guard(&go, n_q * 4);
    unsigned char *stored = guard(&gq, readable * hd * es);
    fill(q, n_q, 4); /* sharp enough that the running maximum moves */
    for (size_t i = 0; bf16 && i < n_q; i++) q[i] = round_bf16(q[i]);
    for (size_t i = 0; i < readable * hd; i++) put(stored, bf16, i, i < n_q ? q[i] : NAN); /* which may be read, but not be seen */
    float scale = 1 / sqrtf((float) hd);
    run_attend(attend, out, stored, n, group, 0, scale, &prefix, &own);
    double expected[128];
    for (size_t r = 0; r < n * group; r++) {
        attend_reference(expected, q + r * hd, (double) scale, &prefix, n_prefix, &own, r / group + 1);
        /* a weight in bf16 is off by up to 2^-9 of itself, the sum of the weights by less: with |v| <= 1, 2^-8 at the very most */
        for (size_t i = 0; i < hd; i++) check_close((double) out[r * hd + i], expected[i], 0, bf16 ? 0x1p-8 : 5e-6);
    }
    /* the last row alone gives the same bits */
    float *alone = malloc(group * hd * 4);
    run_attend(attend, alone, stored + last * hd * es, 1, group, n - 1, scale, &prefix, &own);
    assert_memory_equal(alone, out + last * hd, group * hd * 4);
    free(alone);
    free(q);
    unguard(&gq);
    unguard(&go);
    free_keys(&prefix);
    free_keys(&own);
}

/* head_dim in multiples of `step` only. */
static void check_attend_sizes(qr_attend_fn attend, int bf16, size_t step)
{
    static const size_t dims[] = {2, 8, 16, 24, 48, 64, 96, 128}, prefixes[] = {0, 1, 16, 78, 129, 300}, owns[] = {1, 7, 33, 150};
    for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++)
        for (size_t p = 0; p < sizeof prefixes / sizeof prefixes[0]; p++)
            for (size_t o = 0; o < sizeof owns / sizeof owns[0] && dims[d] % step == 0; o++)
                check_attend(attend, bf16, dims[d], prefixes[p], owns[o], 1 + (d + p + o) % 4);
}

static void test_attend(void **state)
{
    (void) state;
    for (size_t v = 0; v < n_variants; v++) check_attend_sizes(variants[v]->attend, 0, 2);
}

static void test_attend_bf16(void **state)
{
    (void) state;
    if (qr_attend_bf16 == NULL || qr_cpu_get()->found < QR_ISA_AVX512_BF16) skip();
    check_attend_sizes(qr_attend_bf16, 1, 2);
}

static void test_attend_amx(void **state)
{
    (void) state;
    if (emulated_amx == NULL || qr_cpu_get()->found < QR_ISA_AVX512_BF16) skip();
    check_attend_sizes(emulated_amx->attend, 1, 32);
}

static void wrong_attend(const qr_attend *a)
{
    qr_attend less = *a;
    less.prefix.n_keys--;
    qr_attend_bf16(&less);
}

static void test_attend_agree(void **state)
{
    (void) state;
    if (emulated_amx == NULL || qr_cpu_get()->found < QR_ISA_AVX512_BF16) skip();
    static const size_t dims[] = {32, 64, 128, 256};
    for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++) {
        assert_true(qr_attend_agree(emulated_amx->attend, qr_attend_bf16, dims[i]));
        assert_false(qr_attend_agree(wrong_attend, qr_attend_bf16, dims[i]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rmsnorm),      cmocka_unit_test(test_norm_rope),   cmocka_unit_test(test_swiglu),
        cmocka_unit_test(test_conversions),  cmocka_unit_test(test_add),         cmocka_unit_test(test_gemm),
        cmocka_unit_test(test_attend),       cmocka_unit_test(test_attend_bf16), cmocka_unit_test(test_attend_amx),
        cmocka_unit_test(test_attend_agree), cmocka_unit_test(test_quantize),    cmocka_unit_test(test_dequantize),
    };
    return cmocka_run_group_tests(tests, find_variants, NULL);
}
