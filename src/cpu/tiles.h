/* The AMX instructions that we use, on full tiles of 16 rows of 64 bytes, or, with QR_EMULATE_TILES, functions that do the same anywhere:
 * tests prove the layouts and loops on machines that lack AMX. Tile numbers must be constants.
 *
 * A product of tiles takes four bytes of k side by side, for 16 columns: in bf16, c[16][16] f32 += a[16][32] . b, with b [16][16][2]; in
 * int8, both sides signed, c[16][16] int32 += a[16][64] . b, with b [16][16][4]. */
#ifndef QR_CPU_TILES_H
#define QR_CPU_TILES_H

#include "cpu/gemm.h"

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { TILE_BYTES = 1024 };

#ifdef QR_EMULATE_TILES
#define qr_gemm_amx qr_gemm_emulated_amx
#define qr_gemm_amx_orders qr_gemm_emulated_amx_orders
#define qr_attend_amx qr_attend_emulated_amx
extern const qr_gemm_provider qr_gemm_amx;
extern const qr_gemm_orders qr_gemm_amx_orders;
void qr_attend_amx(const qr_attend *a);

static _Thread_local unsigned char tile_data[8][TILE_BYTES];

static inline void tiles_begin(void) {}
static inline void tiles_end(void) { memset(tile_data, 0xff, sizeof tile_data); } /* NaNs: nobody may count on what was left */
static inline void tile_zero(int t) { memset(tile_data[t], 0, TILE_BYTES); }

static inline void tile_load(int t, const void *from, size_t stride)
{
    for (size_t r = 0; r < 16; r++) memcpy(tile_data[t] + r * 64, (const unsigned char *) from + r * stride, 64);
}

static inline void tile_store(int t, void *to, size_t stride)
{
    for (size_t r = 0; r < 16; r++) memcpy((unsigned char *) to + r * stride, tile_data[t] + r * 64, 64);
}

/* Subnormal numbers count as zero, among the operands and among the results. */
static inline float tile_flush(float x) { return fabsf(x) < FLT_MIN ? x * 0 : x; }

static inline float tile_widen(const unsigned char *at)
{
    uint16_t h;
    memcpy(&h, at, sizeof h);
    uint32_t bits = (uint32_t) h << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return tile_flush(x);
}

/* TDPBF16PS in the order of Intel's manual (volume 2): even elements and odd ones have a sum each, both begin at zero, and both together
 * are added to c. A product is not rounded before it is added. */
static inline void tile_dot_bf16(int c, int a, int b)
{
    float x[16][32], y[32][16], row[16]; /* copies, of which compilers make vectors */
    for (size_t i = 0; i < 16 * 32; i++) {
        x[i / 32][i % 32] = tile_widen(tile_data[a] + i * 2);
        y[i / 32 * 2 + i % 2][i % 32 / 2] = tile_widen(tile_data[b] + i * 2);
    }
    for (size_t m = 0; m < 16; m++) {
        float sums[2][16] = {{0}};
        for (size_t k = 0; k < 32; k++)
            for (size_t n = 0; n < 16; n++) sums[k % 2][n] = tile_flush(fmaf(x[m][k], y[k][n], sums[k % 2][n]));
        memcpy(row, tile_data[c] + m * 64, sizeof row);
        for (size_t n = 0; n < 16; n++) row[n] = tile_flush(tile_flush(row[n]) + tile_flush(sums[0][n] + sums[1][n]));
        memcpy(tile_data[c] + m * 64, row, sizeof row);
    }
}

static inline void tile_dot_int8(int c, int a, int b)
{
    int32_t sums[16][16], x[16][64], y[64][16];
    memcpy(sums, tile_data[c], sizeof sums);
    for (size_t i = 0; i < 16 * 64; i++) {
        x[i / 64][i % 64] = (tile_data[a][i] ^ 0x80) - 0x80; /* the sign */
        y[i / 64 * 4 + i % 4][i % 64 / 4] = (tile_data[b][i] ^ 0x80) - 0x80;
    }
    for (size_t m = 0; m < 16; m++)
        for (size_t k = 0; k < 64; k++)
            for (size_t n = 0; n < 16; n++) sums[m][n] += x[m][k] * y[k][n];
    memcpy(tile_data[c], sums, sizeof sums);
}

#else
#include <immintrin.h>

/* gcc 12 does not know that these instructions read memory: it would drop or delay what was stored before. */
static inline __attribute__((always_inline)) void tiles_memory(void) { __asm__ volatile("" ::: "memory"); }

/* Makes all eight tiles full ones, for this thread, until tiles_end: a thread that holds tiles is dear to switch. */
static inline void tiles_begin(void)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes_per_row[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.bytes_per_row[i] = 64;
        config.rows[i] = 16;
    }
    tiles_memory();
    _tile_loadconfig(&config);
}

static inline void tiles_end(void) { _tile_release(); }

#define tile_zero(t) _tile_zero(t)
#define tile_load(t, from, stride)                                                                                                         \
    do {                                                                                                                                   \
        tiles_memory();                                                                                                                    \
        _tile_loadd(t, from, stride);                                                                                                      \
    } while (0)
#define tile_store(t, to, stride) _tile_stored(t, to, stride)
#define tile_dot_bf16(c, a, b) _tile_dpbf16ps(c, a, b)
#define tile_dot_int8(c, a, b) _tile_dpbssd(c, a, b)
#endif

#endif
