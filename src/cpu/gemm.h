/* Products of activations with packed weights: C[m][n] = A[m][k] . W[n][k]^T, tile by tile.
 *
 * A weight matrix is packed once into blocks of `nb` outputs. The unit of work is one block times 64 or 16 rows of A, on one thread, by
 * one kernel of fixed shape: the same kernel whatever the batch, so that a row's result does not depend on its neighbours, their number
 * or the thread count, and so that an epilogue finds its tile still in the cache. Measured on an AMD Zen 4 with AVX512-BF16
 * (2026-11-22): such tiles reach 446 Gop/s on two cores in bf16, one oneDNN call on the whole matrix 425-449. With AMX our own kernel
 * multiplies bf16 and int8 instead, and whatever writes what it reads writes it in tiles (kernels.h), so that none is copied.
 *
 * Arithmetic is f32 x f32 or bf16 x bf16, both summed in f32. For f32 arithmetic 16-bit weights stay 16-bit in memory and are widened
 * block by block as they are used, which is exact and halves the memory. 8-bit weights become f32 or bf16, whichever computes.
 *
 * Where memory is short nothing is packed ahead: each block is unpacked and packed by the thread that is about to use it, with the same
 * steps and so the same bits, once for all rows of a chunk.
 *
 * Or int8 x int8, summed in int32: each row of A and each output has a scale. Both sides may be rotated first (kernels.h), which leaves
 * the product as it is and makes 8 bits lose less where single elements of a row are much larger than the others.
 */
#ifndef QR_CPU_GEMM_H
#define QR_CPU_GEMM_H

#include "base/error.h"
#include "cpu/kernels.h"
#include "model/checkpoint.h"

enum { QR_TILE_ROWS = 64, QR_TILE_ROWS_SMALL = 16 };

typedef struct qr_gemm_lib qr_gemm_lib;   /* kernels by shape, per-thread state; one per engine */
typedef struct qr_gemm_plan qr_gemm_plan; /* kernels for one (k, nb); owned by the lib */

/* Rows of the weight matrix to pack: block b, output i takes row map(b, i) of the tensors laid end to end, or zeros if it is QR_SIZE_NONE.
 */
typedef struct qr_gemm_source {
    const qr_tensor *const *tensors; /* [n_tensors], each [rows, k] */
    size_t n_tensors;
    size_t (*row)(const void *arg, size_t block, size_t output); /* index over all rows of all tensors */
    const void *arg;
    /* for 8-bit products, see int8.h; 0 or qr_gemm_rotation(k), and NULL or [k], which outlive the packed matrix */
    size_t rotation;
    const float *factors;
    int when_used; /* 1: nothing is kept, a block is packed each time it is used; tensors and arg outlive the packed matrix */
} qr_gemm_source;

typedef struct qr_gemm {
    const qr_gemm_plan *plan;
    size_t k, n, nb, n_blocks; /* nb * n_blocks >= n; outputs past n are zero */
    unsigned char *data;       /* n_blocks * block_bytes; NULL: blocks are packed when they are used, from `source` */
    size_t block_bytes;
    qr_tensor_type stored; /* QR_T_BF16, QR_T_F16, QR_T_F32 or QR_T_I8; a block of these ends with its outputs' scales */
    size_t rotation;       /* of 8-bit products: what must be done to rows of a, as in qr_kernels.quantize */
    const float *factors;  /* [k], borrowed from the source; NULL: none */
    qr_gemm_source source;
} qr_gemm;

/* type: of the arithmetic; QR_GEMM_BF16 needs features.native_bf16, QR_GEMM_INT8 native_int8. may_tile: rows that products read may be in
 * tiles, where the processor multiplies such. */
typedef enum qr_gemm_type { QR_GEMM_F32, QR_GEMM_BF16, QR_GEMM_INT8 } qr_gemm_type;
static inline const char *qr_gemm_type_name(qr_gemm_type type)
{
    return type == QR_GEMM_INT8 ? "int8" : type == QR_GEMM_BF16 ? "bf16" : "f32";
}
static inline size_t qr_gemm_type_size(qr_gemm_type type) { return type == QR_GEMM_INT8 ? 1 : type == QR_GEMM_BF16 ? 2 : 4; }
qr_status qr_gemm_lib_open(qr_gemm_lib **out, qr_gemm_type type, int may_tile, int n_threads, qr_error *err);
void qr_gemm_lib_close(qr_gemm_lib *lib);
qr_gemm_type qr_gemm_lib_type(const qr_gemm_lib *lib);
/* 1 if activations between products, K and V are in bf16. */
int qr_gemm_lib_is_bf16(const qr_gemm_lib *lib);
/* How rows of n elements are stored that a product is to read, or, in int8, that are to be quantised for it; data is NULL. */
qr_rows qr_gemm_lib_rows(const qr_gemm_lib *lib, size_t n);
/* How they are stored when the product reads them: the same but in int8; data and scales are NULL. Past n anything may stand in int8, zeros
 * in other tiles. */
qr_rows qr_gemm_lib_operand(const qr_gemm_lib *lib, size_t n);
/* The rotation for rows of k elements; 0: there is none. */
size_t qr_gemm_rotation(size_t k);

/* Packs all blocks, with all threads; or, where the source says when_used, makes room for one per thread. */
qr_status qr_gemm_pack(qr_gemm *gemm, qr_gemm_lib *lib, size_t k, size_t n, size_t nb, size_t n_blocks, const qr_gemm_source *source,
                       qr_error *err);
void qr_gemm_deinit(qr_gemm *gemm);
/* All is packed, and nothing is when_used: gives back what only packing needs. */
void qr_gemm_lib_trim(qr_gemm_lib *lib);
/* Bytes that the library holds itself, beside the packed matrices. */
size_t qr_gemm_lib_bytes(const qr_gemm_lib *lib);

/* Makes block `b` ready for `thread` and returns it; valid until this thread's next call. */
const void *qr_gemm_block(const qr_gemm *gemm, qr_gemm_lib *lib, int thread, size_t b);
/* c [rows][nb] f32 = rows of a from `first` on, a multiple of 16, . block^T; rows is QR_TILE_ROWS or QR_TILE_ROWS_SMALL. */
void qr_gemm_tile(const qr_gemm *gemm, qr_gemm_lib *lib, int thread, float *c, const qr_rows *a, size_t first, const void *block,
                  size_t rows);
/* Rows of the tile to use where `left` rows remain; the rows past the end are computed and ignored. */
size_t qr_gemm_tile_rows(const qr_gemm *gemm, size_t left);
/* Attention in bf16, on the units that multiply tiles if it is right there, whatever the products are done by; NULL in f32. */
qr_attend_fn qr_gemm_lib_attend(const qr_gemm_lib *lib, size_t head_dim);
/* A line for each shape whose kernel had a choice: what was measured when it was opened. */
void qr_gemm_lib_log(const qr_gemm_lib *lib, qr_log_fn log, void *arg);
/* A product failed (a library error); the output is not valid. Checked once per batch instead of once per tile. */
int qr_gemm_failed(const qr_gemm_lib *lib);

/* Rate in Gop/s of the library's own product of whole matrices, c[m][n] = a[m][k] . packed w, with its own threading: the yardstick that
 * benchmarks print beside ours. Best of a few runs; 0 if the library cannot. */
double qr_gemm_library_rate(qr_gemm_type type, size_t m, size_t k, size_t n, int n_threads);

/* ---- what a kernel library provides (gemm_amx.c, gemm_onednn.c, gemm_blas.c, gemm_plain.c) -------------------------------------- */

typedef struct qr_gemm_kernel qr_gemm_kernel; /* one shape: both row counts, all threads */
/* Orders in which a kernel may do the same steps, for the same bits. */
typedef struct qr_gemm_orders {
    size_t n;
    void (*use)(qr_gemm_kernel *kernel, size_t i); /* the first until then */
    const char *(*name)(size_t i);
} qr_gemm_orders;
typedef struct qr_gemm_provider {
    const char *name;
    int tiled;           /* rows of a are in tiles (kernels.h) */
    qr_attend_fn attend; /* of a tiled one: attention on the same units, for a head_dim that is a multiple of 32 */
    qr_status (*open)(qr_gemm_kernel **out, qr_gemm_type type, size_t k, size_t nb, int n_threads, size_t *packed_elements, qr_error *err);
    void (*close)(qr_gemm_kernel *kernel);
    /* w [nb][k] f32, bf16 or int8_t, row-major -> packed, in the library's own order of elements */
    int (*pack)(qr_gemm_kernel *kernel, int thread, void *packed, const void *w);
    /* a: the first of `rows` rows, contiguous or in tiles; c: f32, or int32_t for int8_t; 0 is success */
    int (*run)(qr_gemm_kernel *kernel, int thread, void *c, const void *a, const void *packed, size_t rows);
    const qr_gemm_orders *orders; /* of which the fastest is found when a shape is opened; NULL: there is nothing to choose */
} qr_gemm_provider;
extern const qr_gemm_provider qr_gemm_plain;
extern const qr_gemm_provider qr_gemm_amx;      /* open fails where the build lacks AMX */
extern const qr_gemm_orders qr_gemm_amx_orders; /* its own, for tests; not defined there */
extern const qr_gemm_provider qr_gemm_vnni;     /* int8 without AVX-512; works where the build has it and the processor AVX-VNNI */
extern const int qr_gemm_has_vnni;
/* NULL. Tests put an emulation of the tiles here, which libraries in bf16 and int8 that are opened after that use on any processor. */
extern const qr_gemm_provider *qr_gemm_tiled;
#ifdef QR_HAVE_ONEDNN
extern const qr_gemm_provider qr_gemm_onednn;
#endif
#ifdef QR_HAVE_BLAS
extern const qr_gemm_provider qr_gemm_blas;
#endif

#endif
