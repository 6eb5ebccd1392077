/* The CPU engine's inner loops, behind one table that is filled once from the processor's features.
 *
 * Every variant is the same source (kernels_impl.h) built for another instruction set. All arithmetic of the table is f32, on rows that
 * never look at one another, so that a document's score cannot depend on what else is in the batch; variants may differ from one another in
 * the last bits.
 */
#ifndef QR_CPU_KERNELS_H
#define QR_CPU_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* Keys stand in blocks of this many: within a block K is stored transposed, [head_dim][QR_KEY_BLOCK], so that one vector load gives the
 * same element of many keys. A multiple of every variant's vector width. */
enum { QR_KEY_BLOCK = 16 };

/* Columns of one panel of the portable GEMM; packed weights are [nb / 16][k][16]. */
enum { QR_PANEL = 16 };

/* Activations that a product will read: f32, bf16 (rounded to nearest even), or int8. The latter two may be in tiles, each of 16 rows of a
 * line of 64 bytes and 1 KiB in one piece, as AMX loads it: [n_rows / 16][width / line][16][line], so that a row is cut into lines, of
 * QR_LINE elements in bf16 and QR_LINE_INT8 in int8, 16 lines apart. */
enum { QR_LINE = 32, QR_LINE_INT8 = 64 };
typedef struct qr_rows {
    void *data;
    size_t width; /* elements of a row as stored; whole lines in tiles */
    int bf16, int8, tiled;
    float *scales; /* of int8: [n_rows], what to multiply a row by */
} qr_rows;

typedef struct qr_row {
    void *at;
    int bf16;
    size_t line; /* elements from the beginning of one line to that of the next */
} qr_row;

static inline qr_row qr_row_at(const qr_rows *rows, size_t r)
{
    size_t es = rows->int8 ? sizeof(int8_t) : rows->bf16 ? sizeof(uint16_t) : sizeof(float), line = rows->int8 ? QR_LINE_INT8 : QR_LINE;
    if (!rows->tiled) return (qr_row){(char *) rows->data + r * rows->width * es, rows->bf16, line};
    return (qr_row){(char *) rows->data + (r / 16 * 16 * rows->width + r % 16 * line) * es, rows->bf16, 16 * line};
}

/* Keys and values of one KV head, in f32 or, as pairs that one dot product takes together, in bf16:
 *         f32                                   bf16
 *   kt    [n_blocks][head_dim][QR_KEY_BLOCK]    [n_blocks][head_dim / 2][QR_KEY_BLOCK][2]: elements 2i, 2i + 1 of a key
 *   v     [n_slots][v_stride]                   [n_slots / 2][v_stride][2]: the element of keys 2i, 2i + 1
 * with n_slots = n_blocks * QR_KEY_BLOCK. */
typedef struct qr_kv {
    const void *kt, *v;
    size_t n_keys; /* valid keys */
} qr_kv;

/* Causal attention of a few query rows over one KV head:
 *   o[r,h] = sum_j softmax_j(scale * q[r,h] . k[j]) v[j],   j over all prefix keys, then own keys 0 .. first_pos + r.
 * Online softmax over runs of keys whose limits depend on the key's index only, so a row's rounding does not depend on its neighbours. */
typedef struct qr_attend {
    /* [n_rows][n_group][head_dim], of the type of K and V; readable up to the next multiple of QR_ATTEND_ROWS such vectors, of which
     * nothing becomes visible */
    const void *q;
    size_t n_rows, n_group, head_dim, v_stride; /* v_stride: head_dim rounded up to QR_KEY_BLOCK */
    float scale;
    qr_kv prefix, own;
    size_t first_pos; /* index of row 0 among the own keys */
    qr_rows out;      /* row r goes to row out_row + r, head h to column out_column + h * head_dim (in tiles a multiple of 16) */
    size_t out_row, out_column;
    float *scratch; /* [qr_attend_scratch(v_stride)], 64-byte aligned */
} qr_attend;

/* Attention takes up to this many query vectors together, and rescales its sums after every run of this many keys (a multiple of
 * QR_KEY_BLOCK). */
enum { QR_ATTEND_ROWS = 16, QR_ATTEND_RUN = 256 };
static inline size_t qr_attend_scratch(size_t v_stride) { return QR_ATTEND_ROWS * (3 * v_stride + 2 * QR_ATTEND_RUN); }

typedef void (*qr_attend_fn)(const qr_attend *a);
/* With K and V in bf16. The first needs AVX512-BF16 (features.native_bf16) and is NULL where the build lacks it, the second AMX, too, and a
 * head_dim that is a multiple of 32; where the build lacks that, it is not defined. */
extern const qr_attend_fn qr_attend_bf16;
void qr_attend_amx(const qr_attend *a);
/* 1 if both give the same on a case of some hundred keys in bf16, but for rounding; 0 also where memory is short. */
int qr_attend_agree(qr_attend_fn one, qr_attend_fn other, size_t head_dim);

typedef struct qr_kernels {
    const char *name;
    /* y = x / sqrt(mean(x^2) + eps) * w; x, y, w [n]. RMSNorm, arXiv:1910.07467 */
    void (*rmsnorm)(qr_row y, const float *x, const float *w, size_t n, float eps);
    /* One head of q or k: RMSNorm, then rotation of the pairs (j, j + n/2) by the angle of the token's position; x, y [n], cos, sin [n/2].
     * RoPE in half-split form, arXiv:2104.09864. y is contiguous, and may be x. */
    void (*norm_rope)(qr_row y, const float *x, const float *w, const float *cos, const float *sin, size_t n, float eps);
    /* For rows r < n_rows of c, `stride` apart, gates at the beginning of a row and ups from `half` on:
     * y[row0 + r][column + i] = gate[i] * sigmoid(gate[i]) * up[i], i < n; in tiles, column is a multiple of 16. SwiGLU, arXiv:2002.05202
     */
    void (*swiglu)(const qr_rows *y, size_t row0, size_t n_rows, size_t column, const float *c, size_t stride, size_t half, size_t n);
    /* x += y, [n] */
    void (*add)(float *x, const float *y, size_t n);
    qr_attend_fn attend; /* K and V in f32 */
    /* widen: exact; narrow: the inverse for values that came from the same type, and rounding to nearest even for bf16 in general */
    void (*widen_bf16)(float *y, const uint16_t *x, size_t n);
    void (*widen_f16)(float *y, const uint16_t *x, size_t n);
    void (*narrow_bf16)(uint16_t *y, const float *x, size_t n);
    /* y[2 i] = x[i] rounded to bf16, i < n; what stands between stays */
    void (*spread_bf16)(uint16_t *y, const float *x, size_t n);
    /* y = q * scale and q * scale + bias, each operation rounded */
    void (*scale_i8)(float *y, const int8_t *q, size_t n, float scale);
    void (*affine_u8)(float *y, const uint8_t *q, size_t n, float scale, float bias);
    /* c[m][nb] = a[m][k] . b^T for m = rows; b packed in panels. Portable GEMM, used where oneDNN is absent. */
    void (*gemm)(float *c, const float *a, const float *b, size_t rows, size_t k, size_t nb);
    /* y [n] int8 = round(x / scale) in -127 .. 127, x [n]; returns scale = max |x| / 127, 0 if all are zero, NaN if one is not finite.
     * factors not NULL: x is first multiplied by them [n], in place. block > 0, a power of two of at least QR_KEY_BLOCK that divides n: x
     * is then rotated, in place: by the unscaled Hadamard transform of each block, which spreads what single elements hold. Products of
     * rotated rows are `block` times as large. */
    float (*quantize)(qr_row y, float *x, size_t n, const float *factors, size_t block);
    /* c [rows][nb], sums of products of 8-bit integers (int32_t in the place of floats), to f32 times both scales */
    void (*dequantize)(float *c, size_t rows, size_t nb, const float *row_scales, const float *column_scales);
} qr_kernels;

/* The variant for the level in use (features.h). */
const qr_kernels *qr_kernels_get(void);

/* One per file; NULL where the build's architecture lacks it. */
extern const qr_kernels *const qr_kernels_scalar, *const qr_kernels_neon, *const qr_kernels_avx2, *const qr_kernels_avx512;
extern const qr_kernels *const qr_kernels_avx512_bf16;

#endif
