/* Attention on AMX, where the dot products of AVX-512 would cost as much as all products of the layer. K and V stand as AMX wants its
 * second operand: a tile of K is 32 elements of 16 keys, one of V 32 keys of 16 elements. head_dim must be a multiple of 32. */
#include "cpu/kernels.h"

#if defined(__AMX_BF16__) || defined(__AMXBF16__) || defined(QR_EMULATE_TILES) /* the second: as clang 14 has it */
#include "cpu/tiles.h"
#include "cpu/vector_avx512.h"
#include "cpu/vector_math.h"

enum { ROWS = 16, KEYS_OF_TILE = 32 };

static inline void begin(void) { tiles_begin(); }
static inline void end(void) { tiles_end(); }

static void scores(float *s, const void *q, const void *k, size_t n_keys, size_t head_dim, size_t n_rows)
{
    (void) n_rows;
    size_t steps = head_dim / 32, stride = QR_ATTEND_RUN * sizeof *s, n_blocks = (n_keys + QR_KEY_BLOCK - 1) / QR_KEY_BLOCK;
    const unsigned char *key = k, *query = q;
    for (size_t b = 0; b < n_blocks; b += 2, key += 2 * steps * TILE_BYTES, s += 2 * QR_KEY_BLOCK) {
        int two = n_blocks - b >= 2;
        tile_zero(0);
        tile_zero(1);
        for (size_t step = 0; step < steps; step++) {
            tile_load(4, query + step * 64, head_dim * 2);
            tile_load(6, key + step * TILE_BYTES, 64);
            tile_dot_bf16(0, 4, 6);
            if (two) {
                tile_load(7, key + (steps + step) * TILE_BYTES, 64);
                tile_dot_bf16(1, 4, 7);
            }
        }
        tile_store(0, s, stride);
        if (two) tile_store(1, s + QR_KEY_BLOCK, stride);
    }
}

static void values(float *acc, const void *p, const void *v, size_t n_keys, size_t v_stride, size_t n_rows, void *spare)
{
    (void) n_rows;
    size_t whole = n_keys / KEYS_OF_TILE, rest = n_keys % KEYS_OF_TILE, row = v_stride * 4; /* of pairs */
    unsigned char *tail = spare; /* [KEYS_OF_TILE / 2][v_stride] pairs: the last keys, and zeros */
    if (rest > 0) {
        const unsigned char *from = (const unsigned char *) v + whole * (KEYS_OF_TILE / 2) * row;
        memcpy(tail, from, rest / 2 * row);
        memset(tail + rest / 2 * row, 0, (KEYS_OF_TILE / 2 - rest / 2) * row);
        uint16_t *odd = (uint16_t *) (void *) (tail + rest / 2 * row);
        const uint16_t *pair = (const uint16_t *) (const void *) (from + rest / 2 * row);
        for (size_t d = 0; rest % 2 == 1 && d < v_stride; d++) odd[2 * d] = pair[2 * d];
    }
    for (size_t d = 0; d < v_stride; d += 32) {
        int two = v_stride - d >= 32;
        tile_load(0, acc + d, row);
        if (two) tile_load(1, acc + d + 16, row);
        for (size_t step = 0; step < whole + (rest > 0); step++) {
            const unsigned char *from = (step < whole ? (const unsigned char *) v + step * (KEYS_OF_TILE / 2) * row : tail) + d * 4;
            tile_load(4, (const unsigned char *) p + step * KEYS_OF_TILE * 2, QR_ATTEND_RUN * 2);
            tile_load(6, from, row);
            tile_dot_bf16(0, 4, 6);
            if (two) {
                tile_load(7, from + 64, row);
                tile_dot_bf16(1, 4, 7);
            }
        }
        tile_store(0, acc + d, row);
        if (two) tile_store(1, acc + d + 16, row);
    }
}

#include "cpu/attend_bf16_impl.h"

void qr_attend_amx(const qr_attend *a) { attend(a); }
#endif
