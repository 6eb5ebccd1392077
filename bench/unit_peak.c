/* See unit_peak.h. Each loop keeps its operands in registers and enough sums in flight to hide the latency of the instruction. */
#include "unit_peak.h"

#include "base/system.h"
#include "cpu/features.h"

#include <omp.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>

enum { SUMS = 16, ROUNDS = 1 << 22 };

/* Each returns something that depends on all its sums, so that none is left out, and adds its operations to *ops. */
typedef float (*spin)(double *ops);

__attribute__((target("avx2,fma"))) static float spin_avx2(double *ops)
{
    enum { IN_FLIGHT = 12 }; /* of 16 registers */
    __m256 sum[IN_FLIGHT], a = _mm256_set1_ps(1e-9f), all = a;
    for (int i = 0; i < IN_FLIGHT; i++) sum[i] = _mm256_set1_ps((float) i);
    for (int n = 0; n < ROUNDS; n++) {
        for (int i = 0; i < IN_FLIGHT; i++) sum[i] = _mm256_fmadd_ps(a, a, sum[i]);
        __asm__ volatile("" : "+x"(a));
    }
    for (int i = 0; i < IN_FLIGHT; i++) all = _mm256_add_ps(all, sum[i]);
    *ops = 2.0 * 8 * IN_FLIGHT * ROUNDS;
    return _mm256_cvtss_f32(all);
}

__attribute__((target("avx512f"))) static float spin_avx512(double *ops)
{
    __m512 sum[SUMS], a = _mm512_set1_ps(1e-9f), all = a;
    for (int i = 0; i < SUMS; i++) sum[i] = _mm512_set1_ps((float) i);
    for (int n = 0; n < ROUNDS; n++) {
        for (int i = 0; i < SUMS; i++) sum[i] = _mm512_fmadd_ps(a, a, sum[i]);
        __asm__ volatile("" : "+v"(a));
    }
    for (int i = 0; i < SUMS; i++) all = _mm512_add_ps(all, sum[i]);
    *ops = 2.0 * 16 * SUMS * ROUNDS;
    return _mm512_reduce_add_ps(all);
}

__attribute__((target("avx512f,avx512bf16"))) static float spin_bf16(double *ops)
{
    __m512 sum[SUMS], all = _mm512_setzero_ps();
    __m512i a = _mm512_set1_epi16(0x3000);
    for (int i = 0; i < SUMS; i++) sum[i] = _mm512_set1_ps((float) i);
    for (int n = 0; n < ROUNDS; n++) {
        for (int i = 0; i < SUMS; i++) sum[i] = _mm512_dpbf16_ps(sum[i], (__m512bh) a, (__m512bh) a);
        __asm__ volatile("" : "+v"(a));
    }
    for (int i = 0; i < SUMS; i++) all = _mm512_add_ps(all, sum[i]);
    *ops = 2.0 * 32 * SUMS * ROUNDS;
    return _mm512_reduce_add_ps(all);
}

__attribute__((target("avx2,avxvnni"))) static float spin_avx_vnni(double *ops)
{
    enum { IN_FLIGHT = 12 }; /* of 16 registers */
    __m256i sum[IN_FLIGHT], a = _mm256_set1_epi8(1), all = a;
    int32_t lanes[8];
    for (int i = 0; i < IN_FLIGHT; i++) sum[i] = _mm256_set1_epi32(i);
    for (int n = 0; n < ROUNDS; n++) {
        for (int i = 0; i < IN_FLIGHT; i++) sum[i] = _mm256_dpbusd_avx_epi32(sum[i], a, a);
        __asm__ volatile("" : "+x"(a));
    }
    for (int i = 0; i < IN_FLIGHT; i++) all = _mm256_add_epi32(all, sum[i]);
    _mm256_storeu_si256((__m256i *) (void *) lanes, all);
    *ops = 2.0 * 32 * IN_FLIGHT * ROUNDS;
    return (float) lanes[0];
}

__attribute__((target("avx512f,avx512vnni"))) static float spin_vnni(double *ops)
{
    __m512i sum[SUMS], a = _mm512_set1_epi8(1), all = a;
    for (int i = 0; i < SUMS; i++) sum[i] = _mm512_set1_epi32(i);
    for (int n = 0; n < ROUNDS; n++) {
        for (int i = 0; i < SUMS; i++) sum[i] = _mm512_dpbusd_epi32(sum[i], a, a);
        __asm__ volatile("" : "+v"(a));
    }
    for (int i = 0; i < SUMS; i++) all = _mm512_add_epi32(all, sum[i]);
    *ops = 2.0 * 64 * SUMS * ROUNDS;
    return (float) _mm512_reduce_add_epi32(all);
}

#define AMX_TARGET target("avx512f,amx-tile,amx-bf16,amx-int8")

__attribute__((AMX_TARGET, always_inline)) static inline float spin_tiles(double *ops, const int int8)
{
    enum { TILE_ROUNDS = 1 << 18 };
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes_per_row[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    static const float zeros[16 * 16];
    for (int i = 0; i < 8; i++) {
        config.bytes_per_row[i] = 64;
        config.rows[i] = 16;
    }
    __asm__ volatile("" ::: "memory"); /* gcc 12 does not know that the next line reads memory, and drops the stores above */
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, zeros, 64);
    _tile_loadd(5, zeros, 64);
    _tile_loadd(6, zeros, 64);
    _tile_loadd(7, zeros, 64);
    for (int n = 0; n < TILE_ROUNDS; n++) {
        if (int8) {
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(1, 4, 7);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        } else {
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    float out[16 * 16];
    _tile_stored(0, out, 64);
    _tile_release();
    *ops = 2.0 * 16 * 16 * (int8 ? 64 : 32) * 4 * TILE_ROUNDS;
    return out[0];
}

__attribute__((AMX_TARGET)) static float spin_amx(double *ops) { return spin_tiles(ops, 0); }
__attribute__((AMX_TARGET)) static float spin_amx_int8(double *ops) { return spin_tiles(ops, 1); }

static spin choose(qr_gemm_type type, const char **unit)
{
    qr_isa isa = qr_cpu_get()->isa;
    int bf16 = type == QR_GEMM_BF16;
    if (type == QR_GEMM_INT8 && qr_cpu_get()->amx_int8) return *unit = "TDPBSSD", spin_amx_int8;
    if (type == QR_GEMM_INT8 && qr_cpu_get()->avx_vnni) return *unit = "VPDPBUSD of 256 bits", spin_avx_vnni;
    if (type == QR_GEMM_INT8 && qr_cpu_get()->native_int8) return *unit = "VPDPBUSD", spin_vnni;
    if (type == QR_GEMM_INT8) return *unit = "none", NULL;
    if (bf16 && isa >= QR_ISA_AMX) return *unit = "TDPBF16PS", spin_amx;
    if (bf16 && isa >= QR_ISA_AVX512_BF16) return *unit = "VDPBF16PS", spin_bf16;
    if (!bf16 && isa >= QR_ISA_AVX512) return *unit = "VFMADD of 512 bits", spin_avx512;
    if (!bf16 && isa >= QR_ISA_AVX2) return *unit = "VFMADD of 256 bits", spin_avx2;
    return *unit = "none", NULL;
}

double unit_peak(qr_gemm_type type, int n_threads, const char **unit)
{
    enum { RUNS = 12 };
    spin run = choose(type, unit);
    double best = 0;
    for (int i = 0; i < RUNS && run != NULL; i++) {
        double all_ops = 0, start = 0;
#pragma omp parallel num_threads(n_threads) reduction(+ : all_ops)
        {
            double ops = 0;
#pragma omp barrier
#pragma omp single
            start = qr_now();
            volatile float keep = run(&ops);
            (void) keep;
            all_ops += ops;
        }
        double rate = all_ops / (qr_now() - start) / 1e9;
        if (rate > best) best = rate;
    }
    return best;
}
#else
double unit_peak(qr_gemm_type type, int n_threads, const char **unit)
{
    (void) type, (void) n_threads;
    *unit = "none";
    return 0;
}
#endif
