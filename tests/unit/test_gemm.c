/* Packed products against sums in f64: every storage type, both arithmetics, padded blocks, odd sizes, unaligned tensors; also by AMX,
 * emulated. */
#include "base/mem.h"
#include "cpu/features.h"
#include "cpu/gemm.h"
#include "cpu/tensor_f32.h"
#include "emulated_amx.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint32_t seed = 1;

static float rnd(void) /* in [-1, 1), exact in bf16 and in f16: 7 significant bits */
{
    seed = seed * 1664525u + 1013904223u;
    return (float) ((int) (seed >> 24) - 128) / 128.0f;
}

static uint16_t to_bf16(float x)
{
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    return (uint16_t) (b >> 16);
}

static uint16_t to_f16(float x)
{
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    if ((b & 0x7fffffff) == 0) return (uint16_t) (b >> 16);
    return (uint16_t) (((b >> 16) & 0x8000) | ((((b >> 23) & 255) - 112) << 10) | ((b >> 13) & 0x3ff));
}

typedef struct rows {
    size_t used, n;
} rows;

static size_t row_of(const void *arg, size_t block, size_t output)
{
    const rows *r = arg;
    size_t row = block * r->used + output;
    return output < r->used && row < r->n ? row : QR_SIZE_NONE;
}

static void check_when(int bf16, int when_used, qr_tensor_type type, size_t k, size_t n, size_t used, size_t nb)
{
    size_t es = qr_tensor_type_size(type), m = QR_TILE_ROWS;
    float *w = malloc(n * k * sizeof *w), *a = malloc(m * k * sizeof *a), *c = aligned_alloc(64, m * nb * sizeof *c);
    unsigned char *stored = malloc(n * k * es + 1), *at = stored + 1; /* tensors may start anywhere */
    uint16_t *scales = malloc(n * sizeof *scales);
    for (size_t i = 0; i < n * k; i++) {
        w[i] = rnd();
        uint16_t h = type == QR_T_BF16 ? to_bf16(w[i]) : to_f16(w[i]);
        memcpy(at + i * es, type == QR_T_F32 ? (const void *) &w[i] : (const void *) &h, es);
        if (type != QR_T_I8) continue;
        at[i] = (unsigned char) (int) (w[i] * 128);
        if (i / k % 2) w[i] *= 2;
    }
    for (size_t r = 0; r < n; r++) scales[r] = to_bf16(r % 2 ? 2.0f / 128 : 1.0f / 128);
    for (size_t i = 0; i < m * k; i++) a[i] = rnd();
    qr_tensor tensor = {.name = "w", .type = type, .n_dims = 2, .dims = {n, k}, .n_elements = n * k, .data = at, .n_bytes = n * k * es};
    qr_tensor scale = {.name = "s", .type = QR_T_BF16, .n_dims = 2, .dims = {n, 1}, .n_elements = n, .data = (unsigned char *) scales};
    if (type == QR_T_I8) tensor.scales = &scale;
    const qr_tensor *tensors[] = {&tensor};
    rows map = {used, n};
    qr_gemm_source source = {tensors, 1, row_of, &map, 0, NULL, when_used};
    qr_gemm_lib *lib;
    qr_gemm g;
    qr_error err = {0};
    if (qr_gemm_lib_open(&lib, bf16 ? QR_GEMM_BF16 : QR_GEMM_F32, 1, 2, &err) != QR_OK) fail_msg("%s", err.msg);
    if (qr_gemm_pack(&g, lib, k, n, nb, (n + used - 1) / used, &source, &err) != QR_OK) fail_msg("%s", err.msg);
    qr_rows rows_of_a = qr_gemm_lib_rows(lib, k);
    rows_of_a.data = calloc(m * rows_of_a.width, sizeof(float));
    for (size_t r = 0; r < m; r++) {
        qr_row row = qr_row_at(&rows_of_a, r);
        for (size_t i = 0; i < k; i++) {
            size_t place = i / QR_LINE * row.line + i % QR_LINE;
            if (bf16) ((uint16_t *) row.at)[place] = to_bf16(a[r * k + i]);
            else ((float *) row.at)[place] = a[r * k + i];
        }
    }
    for (size_t size = 0; size < 2; size++) {
        size_t tile = size ? QR_TILE_ROWS_SMALL : QR_TILE_ROWS;
        for (size_t b = 0; b < g.n_blocks; b++) {
            const void *block = qr_gemm_block(&g, lib, 1, b);
            qr_gemm_tile(&g, lib, 1, c, &rows_of_a, 0, block, tile);
            for (size_t r = 0; r < tile; r++)
                for (size_t j = 0; j < nb; j++) {
                    size_t row = row_of(&map, b, j);
                    double sum = 0;
                    for (size_t i = 0; i < k && row != QR_SIZE_NONE; i++) sum += (double) a[r * k + i] * (double) w[row * k + i];
                    /* inputs are multiples of 1/128 of up to 1, or 2: products are exact, sums of up to 300 of them too */
                    if ((double) c[r * nb + j] != sum)
                        fail_msg("k %zu n %zu row %zu column %zu: %.9g, expected %.9g", k, n, r, j, (double) c[r * nb + j], sum);
                }
        }
    }
    assert_false(qr_gemm_failed(lib));
    qr_gemm_deinit(&g);
    qr_gemm_lib_close(lib);
    free(w);
    free(a);
    free(rows_of_a.data);
    free(scales);
    free(c);
    free(stored);
}

static void check(int bf16, qr_tensor_type type, size_t k, size_t n, size_t used, size_t nb)
{
    for (int when_used = 0; when_used < 2; when_used++) check_when(bf16, when_used, type, k, n, used, nb);
}

static const struct {
    size_t k, n, used, nb;
} shapes[] = {{64, 128, 128, 128},  {1, 16, 16, 16},  {17, 40, 16, 16}, {96, 100, 96, 96},
              {300, 130, 128, 128}, {31, 50, 48, 48}, {33, 70, 30, 32}};

static void test_f32(void **state)
{
    (void) state;
    static const qr_tensor_type types[] = {QR_T_F32, QR_T_F16, QR_T_BF16, QR_T_I8};
    for (size_t t = 0; t < 4; t++)
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
            check(0, types[t], shapes[i].k, shapes[i].n, shapes[i].used, shapes[i].nb);
}

static void check_bf16(void)
{
    static const qr_tensor_type types[] = {QR_T_F32, QR_T_F16, QR_T_BF16, QR_T_I8};
    for (size_t t = 0; t < 4; t++)
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
            check(1, types[t], shapes[i].k, shapes[i].n, shapes[i].used, shapes[i].nb);
}

static void test_bf16(void **state)
{
    (void) state;
    if (!qr_cpu_get()->native_bf16) skip();
    check_bf16();
}

static void test_amx(void **state)
{
    (void) state;
    if (!qr_cpu_get()->native_bf16) skip();
    qr_gemm_tiled = emulated_amx;
    check_bf16();
    qr_gemm_tiled = NULL;
}

/* Rows and weights of few values, as 8 bits hold them; past their ends anything may stand. */
static void check_int8(void)
{
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
        for (int turned = 0; turned < 2; turned++) {
            size_t k = shapes[s].k, n = shapes[s].n, nb = shapes[s].nb, rotation = turned ? qr_gemm_rotation(k) : 0, m = QR_TILE_ROWS;
            if (turned && rotation == 0) continue;
            float *w = malloc(n * k * sizeof *w), *a = malloc(m * k * sizeof *a), *wide = malloc(k * sizeof *wide);
            float *c = aligned_alloc(64, m * nb * sizeof *c), *factors = malloc(k * sizeof *factors);
            for (size_t i = 0; i < n * k; i++) w[i] = rnd();
            for (size_t i = 0; i < m * k; i++) a[i] = rnd();
            for (size_t i = 0; i < k; i++) factors[i] = i % 2 ? 4.0f : -0.25f;
            qr_tensor tensor = {
                .name = "w", .type = QR_T_F32, .n_dims = 2, .dims = {n, k}, .n_elements = n * k, .data = (void *) w, .n_bytes = n * k * 4};
            const qr_tensor *tensors[] = {&tensor};
            rows map = {shapes[s].used, n};
            qr_gemm_source source = {tensors, 1, row_of, &map, rotation, factors, 0};
            qr_gemm_lib *lib;
            qr_gemm g;
            qr_error err = {0};
            if (qr_gemm_lib_open(&lib, QR_GEMM_INT8, 1, 2, &err) != QR_OK) fail_msg("%s", err.msg);
            if (qr_gemm_pack(&g, lib, k, n, nb, (n + map.used - 1) / map.used, &source, &err) != QR_OK) fail_msg("%s", err.msg);
            qr_rows eight = qr_gemm_lib_operand(lib, k);
            eight.data = malloc(m * eight.width);
            eight.scales = malloc(m * sizeof(float));
            memset(eight.data, 0x55, m * eight.width);
            for (size_t r = 0; r < m; r++) {
                memcpy(wide, a + r * k, k * sizeof *wide);
                eight.scales[r] = qr_kernels_get()->quantize(qr_row_at(&eight, r), wide, k, g.factors, g.rotation);
            }
            for (size_t b = 0; b < g.n_blocks * 2; b++) {
                size_t tile = b % 2 ? QR_TILE_ROWS_SMALL : QR_TILE_ROWS;
                qr_gemm_tile(&g, lib, 1, c, &eight, 0, qr_gemm_block(&g, lib, 1, b / 2), tile);
                for (size_t r = 0; r < tile; r++)
                    for (size_t j = 0; j < nb; j++) {
                        size_t row = row_of(&map, b / 2, j);
                        double sum = 0, size = 0;
                        for (size_t i = 0; i < k && row != QR_SIZE_NONE; i++) {
                            sum += (double) a[r * k + i] * (double) w[row * k + i];
                            size += 1;
                        }
                        /* each side is off by up to half a step of 1/127 of its row's largest element, which factors of 4 and 1/4 make 16
                         * times as large as the smallest; errors of k products add up like their square root, five times that is never */
                        if (!(fabs((double) c[r * nb + j] - sum) <= 5 * 16 * 2 * 0.5 / 127 * sqrt(size) + 1e-6))
                            fail_msg("k %zu n %zu row %zu column %zu: %.9g, expected %.9g", k, n, r, j, (double) c[r * nb + j], sum);
                    }
            }
            assert_false(qr_gemm_failed(lib));
            qr_gemm_deinit(&g);
            qr_gemm_lib_close(lib);
            free(w), free(a), free(wide), free(c), free(factors), free(eight.data), free(eight.scales);
        }
}

static void test_int8(void **state)
{
    (void) state;
    if (!qr_cpu_get()->native_int8) skip();
    check_int8();
}

static void need_emulation(void)
{
    if (emulated_amx == NULL || qr_cpu_get()->found < QR_ISA_AVX512_BF16) skip();
}

static void test_amx_int8(void **state)
{
    (void) state;
    need_emulation();
    qr_gemm_tiled = emulated_amx;
    check_int8();
    qr_gemm_tiled = NULL;
}

/* Sums of integers are exact, those of bf16 the same bits, in whatever order the blocks come, over their edges of all kinds. */
static void check_orders(qr_gemm_type type, size_t k, size_t nb)
{
    size_t es = qr_gemm_type_size(type), line = 64 / es, width = (k + line - 1) / line * line, m = QR_TILE_ROWS, packed_elements;
    qr_rows tiles = {.width = width, .bf16 = es == 2, .int8 = es == 1, .tiled = 1};
    unsigned char *a = malloc(m * k * es), *w = malloc(nb * k * es);
    int32_t *expected = malloc(m * nb * sizeof *expected), *c = aligned_alloc(64, m * nb * sizeof *c);
    qr_gemm_kernel *kernel;
    qr_error err = {0};
    if (emulated_amx->open(&kernel, type, k, nb, 1, &packed_elements, &err) != QR_OK) fail_msg("%s", err.msg);
    void *packed = malloc(packed_elements * es);
    for (size_t i = 0; i < m * k * es; i++) seed = seed * 1664525u + 1013904223u, a[i] = (unsigned char) (seed >> 24);
    for (size_t i = 0; i < nb * k * es; i++) seed = seed * 1664525u + 1013904223u, w[i] = (unsigned char) (seed >> 24);
    for (size_t i = 1; es == 2 && i < m * k * es; i += 2) a[i] = (unsigned char) (0x3c | (a[i] & 0x83)); /* 2^-7 to 2 of either sign */
    for (size_t i = 1; es == 2 && i < nb * k * es; i += 2) w[i] = (unsigned char) (0x3c | (w[i] & 0x83));
    tiles.data = calloc(m * width, es);
    if (es == 1) memset(tiles.data, 0x55, m * width); /* past k: weights are zero there, which times any integer is zero */
    for (size_t r = 0; r < m; r++) {
        qr_row row = qr_row_at(&tiles, r);
        for (size_t i = 0; i < k; i++) memcpy((char *) row.at + (i / line * row.line + i % line) * es, a + (r * k + i) * es, es);
    }
    for (size_t r = 0; r < m * nb; r++) {
        expected[r] = 0;
        for (size_t i = 0; es == 1 && i < k; i++) expected[r] += (int8_t) a[r / nb * k + i] * (int8_t) w[r % nb * k + i];
    }
    assert_int_equal(emulated_amx->pack(kernel, 0, packed, w), 0);
    if (es == 2) assert_int_equal(emulated_amx->run(kernel, 0, expected, tiles.data, packed, m), 0);
    for (size_t i = 0; i < emulated_amx_orders->n; i++)
        for (size_t tile = QR_TILE_ROWS_SMALL; tile <= QR_TILE_ROWS; tile += QR_TILE_ROWS - QR_TILE_ROWS_SMALL) {
            emulated_amx_orders->use(kernel, i);
            memset(c, 0xff, m * nb * sizeof *c);
            assert_int_equal(emulated_amx->run(kernel, 0, c, tiles.data, packed, tile), 0);
            assert_memory_equal(c, expected, tile * nb * sizeof *c);
            for (size_t r = tile * nb; r < m * nb; r++) assert_int_equal(c[r], -1);
        }
    emulated_amx->close(kernel);
    free(a), free(w), free(tiles.data), free(expected), free(c), free(packed);
}

static void test_amx_orders(void **state)
{
    (void) state;
    need_emulation();
    static const size_t edges[][2] = {{1, 16}, {63, 32}, {640, 48}, {1100, 80}, {2500, 16}};
    for (size_t i = 0; i < sizeof edges / sizeof edges[0]; i++) {
        check_orders(QR_GEMM_BF16, edges[i][0], edges[i][1]);
        check_orders(QR_GEMM_INT8, edges[i][0], edges[i][1]);
    }
}

static void count_line(void *arg, qr_log_level level, const char *message)
{
    assert_int_equal(level, QR_LOG_DEBUG);
    assert_non_null(strstr(message, "Gop/s"));
    ++*(size_t *) arg;
}

/* A kernel that is wrong on this very processor must not be used. */
static int wrong_run(qr_gemm_kernel *kernel, int thread, void *c, const void *a, const void *packed, size_t n_rows)
{
    int failed = emulated_amx->run(kernel, thread, c, a, packed, n_rows);
    ((float *) c)[0] += 1;
    return failed;
}

/* Whether libraries of a type multiply tiles; lines of their log are added to *lines. */
static int uses_tiles(qr_gemm_type type, const qr_gemm_provider *provider, size_t *lines)
{
    qr_gemm_lib *lib;
    qr_error err = {0};
    qr_gemm_tiled = provider;
    assert_int_equal(qr_gemm_lib_open(&lib, type, 1, 1, &err), QR_OK);
    int tiled = qr_gemm_lib_operand(lib, 40).tiled;
    float w[16 * 70] = {0};
    qr_tensor tensor = {.name = "w", .type = QR_T_F32, .n_dims = 2, .dims = {16, 70}, .n_elements = 16 * 70, .data = (const void *) w};
    const qr_tensor *tensors[] = {&tensor};
    rows map = {16, 16};
    qr_gemm_source source = {.tensors = tensors, .n_tensors = 1, .row = row_of, .arg = &map};
    qr_gemm g = {0};
    if (tiled) assert_int_equal(qr_gemm_pack(&g, lib, 70, 16, 16, 1, &source, &err), QR_OK);
    qr_gemm_lib_log(lib, count_line, lines);
    qr_gemm_deinit(&g);
    qr_gemm_lib_close(lib);
    qr_gemm_tiled = NULL;
    return tiled;
}

static void test_wrong_kernel(void **state)
{
    (void) state;
    need_emulation();
    qr_gemm_provider wrong = *emulated_amx;
    wrong.run = wrong_run;
    size_t lines = 0;
    static const qr_gemm_type types[] = {QR_GEMM_BF16, QR_GEMM_INT8};
    for (size_t t = 0; t < 2; t++) {
        assert_true(uses_tiles(types[t], emulated_amx, &lines));
        assert_false(uses_tiles(types[t], &wrong, &lines));
    }
    assert_int_equal(lines, 0);
    qr_gemm_tiled = &wrong;
    if (qr_cpu_get()->native_bf16) check(1, QR_T_BF16, 64, 128, 128, 128);
    if (qr_cpu_get()->native_int8) check_int8();
    qr_gemm_tiled = NULL;
}

/* The fastest order is looked for, and one that gives other bits is noticed. */
static size_t order_in_use;

static void use_noted(qr_gemm_kernel *kernel, size_t i)
{
    order_in_use = i;
    emulated_amx_orders->use(kernel, i);
}

static int wrong_in_one(qr_gemm_kernel *kernel, int thread, void *c, const void *a, const void *packed, size_t n_rows)
{
    return (order_in_use == 3 ? wrong_run : emulated_amx->run)(kernel, thread, c, a, packed, n_rows);
}

static void test_choice_of_order(void **state)
{
    (void) state;
    need_emulation();
    qr_gemm_orders noted = *emulated_amx_orders;
    qr_gemm_provider timed = *emulated_amx;
    size_t lines = 0;
    noted.use = use_noted;
    timed.orders = &noted;
    order_in_use = 0;
    assert_true(uses_tiles(QR_GEMM_BF16, &timed, &lines) && uses_tiles(QR_GEMM_INT8, &timed, &lines));
    assert_int_equal(lines, 2);
    timed.run = wrong_in_one;
    order_in_use = 0;
    assert_false(uses_tiles(QR_GEMM_INT8, &timed, &lines));
    assert_int_equal(lines, 2);
}

static void test_out_of_memory(void **state)
{
    (void) state;
    float w[32] = {0};
    qr_tensor tensor = {
        .name = "w", .type = QR_T_F32, .n_dims = 2, .dims = {16, 2}, .n_elements = 32, .data = (const unsigned char *) w, .n_bytes = 128};
    const qr_tensor *tensors[] = {&tensor};
    rows map = {16, 16};
    qr_gemm_source source = {tensors, 1, row_of, &map, 0, NULL, 0};
    for (long at = 1; at < 200; at++) {
        qr_gemm_lib *lib = NULL;
        qr_gemm g = {0};
        qr_error err = {0};
        qr_mem_fail_at(at);
        qr_status status = qr_gemm_lib_open(&lib, QR_GEMM_F32, 0, 1, &err);
        if (status == QR_OK) status = qr_gemm_pack(&g, lib, 2, 16, 16, 1, &source, &err);
        qr_mem_fail_at(0);
        qr_gemm_deinit(&g);
        qr_gemm_lib_close(lib);
        if (status == QR_OK) return; /* every allocation has failed once by now */
        assert_true(err.msg[0] != 0);
    }
    fail_msg("allocations never end");
}

/* MLX's packing written down bit by bit, read in ranges that begin and end anywhere. */
static void test_mlx(void **state)
{
    (void) state;
    enum { ROWS = 3, COLS = 256, N = ROWS * COLS };
    static const unsigned widths[] = {2, 3, 4, 5, 6, 8}, groups[] = {32, 64, 128};
    for (size_t w = 0; w < 6; w++)
        for (size_t g = 0; g < 3; g++) {
            size_t bits = widths[w], group = groups[g], per_row = COLS / group, n_groups = ROWS * per_row, n_bytes = N * bits / 8;
            unsigned char *memory = calloc(n_bytes + 1, 1), *data = memory + 1;
            uint16_t *scale_data = malloc(n_groups * 2), *bias_data = malloc(n_groups * 2);
            float expected[N], found[N];
            for (size_t i = 0; i < n_groups; i++) {
                scale_data[i] = to_bf16(rnd());
                bias_data[i] = to_bf16(rnd());
            }
            for (size_t i = 0; i < N; i++) {
                unsigned q = (unsigned) (rnd() * 128 + 128) & ((1U << bits) - 1);
                for (size_t b = 0; b < bits; b++) data[(i * bits + b) / 8] |= (unsigned char) ((q >> b & 1) << (i * bits + b) % 8);
                uint32_t s = (uint32_t) scale_data[i / group] << 16, z = (uint32_t) bias_data[i / group] << 16;
                float scale, bias;
                memcpy(&scale, &s, 4);
                memcpy(&bias, &z, 4);
                expected[i] = (float) q * scale + bias; /* exact: multiples of 1/128 */
            }
            qr_tensor scales = {.type = QR_T_BF16, .n_dims = 2, .dims = {ROWS, per_row}, .data = (unsigned char *) scale_data};
            qr_tensor biases = {.type = QR_T_BF16, .n_dims = 2, .dims = {ROWS, per_row}, .data = (unsigned char *) bias_data};
            qr_tensor t = {.type = QR_T_U32,
                           .n_dims = 2,
                           .dims = {ROWS, COLS},
                           .n_elements = N,
                           .data = data,
                           .n_bytes = n_bytes,
                           .scales = &scales,
                           .biases = &biases,
                           .bits = (unsigned) bits,
                           .group = (unsigned) group};
            for (size_t first = 0; first < N; first += 53) {
                size_t n = (N - first) % 211 + 1;
                if (n > N - first) n = N - first;
                qr_tensor_f32(found, &t, first, n);
                assert_memory_equal(found, expected + first, n * sizeof *found);
            }
            qr_tensor_f32(found, &t, 0, N);
            assert_memory_equal(found, expected, sizeof found);
            free(memory);
            free(scale_data);
            free(bias_data);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32),          cmocka_unit_test(test_mlx),
        cmocka_unit_test(test_bf16),         cmocka_unit_test(test_amx),
        cmocka_unit_test(test_int8),         cmocka_unit_test(test_amx_int8),
        cmocka_unit_test(test_amx_orders),   cmocka_unit_test(test_choice_of_order),
        cmocka_unit_test(test_wrong_kernel), cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
