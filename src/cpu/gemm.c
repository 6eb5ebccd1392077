/* Packing and dispatch of tile products, see gemm.h. */
#include "cpu/gemm.h"

#include "base/mem.h"
#include "cpu/features.h"
#include "cpu/kernels.h"
#include "cpu/tensor_f32.h"

#include <omp.h>
#include <stdatomic.h>
#include <string.h>

struct qr_gemm_plan {
    size_t k, nb;
    size_t packed_elements; /* of one block */
    const qr_gemm_provider *provider;
    qr_gemm_kernel *kernel;
    int small_tiles; /* 16-row tiles give bitwise the rows of 64-row tiles */
    qr_gemm_plan *next;
};

struct qr_gemm_lib {
    qr_gemm_type type;
    int n_threads;
    const qr_gemm_provider *tiled; /* the only provider, as all rows are in tiles then; or NULL */
    const qr_kernels *kernels;
    qr_gemm_plan *plans;
    float **widened; /* [n_threads]: one block in f32, or NULL while no matrix needs it */
    size_t widened_elements;
    atomic_int failed;
};

void qr_gemm_lib_close(qr_gemm_lib *lib)
{
    if (lib == NULL) return;
    while (lib->plans != NULL) {
        qr_gemm_plan *plan = lib->plans;
        lib->plans = plan->next;
        plan->provider->close(plan->kernel);
        qr_free(plan);
    }
    for (int t = 0; t < lib->n_threads; t++) qr_pages_free(lib->widened[t], lib->widened_elements * sizeof(float));
    qr_free(lib->widened);
    qr_free(lib);
}

qr_gemm_type qr_gemm_lib_type(const qr_gemm_lib *lib) { return lib->type; }

int qr_gemm_lib_is_bf16(const qr_gemm_lib *lib)
{
    return lib->type == QR_GEMM_BF16 || (lib->type == QR_GEMM_INT8 && qr_cpu_get()->native_bf16);
}

qr_rows qr_gemm_lib_rows(const qr_gemm_lib *lib, size_t n)
{
    int tiled = lib->tiled != NULL;
    return (qr_rows){NULL, tiled ? (n + QR_LINE - 1) / QR_LINE * QR_LINE : n, qr_gemm_lib_is_bf16(lib), tiled, NULL};
}

/* Blocks of up to 1,024 spread an element far enough. */
size_t qr_gemm_rotation(size_t k)
{
    size_t block = QR_KEY_BLOCK;
    if (k % block != 0) return 0;
    while (block < 1024 && k % (2 * block) == 0) block *= 2;
    return block;
}

int qr_gemm_failed(const qr_gemm_lib *lib) { return atomic_load(&lib->failed); }

qr_attend_fn qr_gemm_lib_attend(const qr_gemm_lib *lib, size_t head_dim)
{
    if (!qr_gemm_lib_is_bf16(lib)) return NULL;
    int tiles = lib->tiled != NULL && head_dim % 32 == 0 && qr_attend_agree(lib->tiled->attend, qr_attend_bf16, head_dim);
    return tiles ? lib->tiled->attend : qr_attend_bf16;
}

/* Fills n elements of the arithmetic type with small values of many different roundings. */
static void fill(void *x, qr_gemm_type type, size_t n, uint32_t seed)
{
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        float f = (float) (int32_t) seed * 0x1p-31f;
        uint32_t bits;
        memcpy(&bits, &f, sizeof bits);
        if (type == QR_GEMM_BF16) ((uint16_t *) x)[i] = (uint16_t) (bits >> 16);
        else if (type == QR_GEMM_INT8) ((int8_t *) x)[i] = (int8_t) (f * 127);
        else ((float *) x)[i] = f;
    }
}

static void set_row(const qr_rows *rows, qr_gemm_type type, size_t r, const unsigned char *from, size_t n)
{
    size_t es = qr_gemm_type_size(type);
    if (type == QR_GEMM_INT8) {
        memcpy((int8_t *) rows->data + r * rows->width, from, n);
        return;
    }
    qr_row row = qr_row_at(rows, r);
    unsigned char *to = row.at;
    for (size_t i = 0; i < n; i += QR_LINE, from += QR_LINE * es, to += row.line * es)
        memcpy(to, from, (n - i < QR_LINE ? n - i : QR_LINE) * es);
}

static double element(const void *x, qr_gemm_type type, size_t i)
{
    if (type == QR_GEMM_F32) return (double) ((const float *) x)[i];
    if (type == QR_GEMM_INT8) return (double) ((const int8_t *) x)[i];
    uint32_t bits = (uint32_t) ((const uint16_t *) x)[i] << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return (double) f;
}

/* 1 if c [nb] = a [k] . w [nb][k] but for the rounding of f32: k products and sums are off by at most k * 2^-24 of their sizes together,
 * less than one product among some thousands. Integers are exact. */
static int is_product(const void *c, const void *a, const void *w, qr_gemm_type type, size_t k, size_t nb)
{
    for (size_t n = 0; n < nb; n++) {
        double sum = 0, size = 0;
        for (size_t i = 0; i < k; i++) {
            double x = element(a, type, i) * element(w, type, n * k + i);
            sum += x;
            size += x < 0 ? -x : x;
        }
        double off = (type == QR_GEMM_INT8 ? (double) ((const int32_t *) c)[n] : (double) ((const float *) c)[n]) - sum;
        if (type == QR_GEMM_INT8 && off != 0) return 0;
        if (!((off < 0 ? -off : off) <= (double) (k + 1) * 0x1p-24 * size)) return 0;
    }
    return 1;
}

/* Scores may not depend on where in a tile a row lies, nor on the tile's size. No library promises that, so it is checked when a shape
 * is first used: one row in all 64 places must give 64 equal results, and the 16-row kernel the same ones. Without the second, small
 * tiles are not used; without the first, the kernel is not. (oneDNN 2.6 fails on AVX2, where matmul falls back to its old GEMM.) The
 * result must be the product, too: what runs on this very processor may never have been tested. */
static qr_status check_rows(qr_gemm_lib *lib, qr_gemm_plan *plan, int *place_matters, qr_error *err)
{
    qr_rows rows = qr_gemm_lib_rows(lib, plan->k);
    size_t es = qr_gemm_type_size(lib->type), a_bytes = QR_TILE_ROWS * rows.width * es, w_bytes = plan->nb * plan->k * es;
    size_t p_bytes = plan->packed_elements * es, c_bytes = QR_TILE_ROWS * plan->nb * sizeof(float);
    unsigned char *a = qr_pages_alloc(a_bytes), *row = qr_pages_alloc(a_bytes), *w = qr_pages_alloc(w_bytes), *p = qr_pages_alloc(p_bytes);
    float *c = qr_pages_alloc(c_bytes), *small = qr_pages_alloc(c_bytes);
    qr_status status = QR_OK;
    if (a == NULL || row == NULL || w == NULL || p == NULL || c == NULL || small == NULL) {
        status = qr_fail(err, QR_E_MEMORY, "no memory for %zu bytes of matrix checks", 2 * a_bytes + w_bytes + p_bytes + 2 * c_bytes);
        goto done;
    }
    rows.data = a;
    fill(row, lib->type, plan->k, 1);
    fill(w, lib->type, plan->nb * plan->k, 2);
    for (size_t r = 0; r < QR_TILE_ROWS; r++) set_row(&rows, lib->type, r, row, plan->k);
    if (plan->provider->pack(plan->kernel, 0, p, w) || plan->provider->run(plan->kernel, 0, c, a, p, QR_TILE_ROWS) ||
        plan->provider->run(plan->kernel, 0, small, a, p, QR_TILE_ROWS_SMALL)) {
        status =
            qr_fail(err, QR_E_BACKEND, "%s: a product of %d x %zu x %zu failed", plan->provider->name, QR_TILE_ROWS, plan->k, plan->nb);
        goto done;
    }
    if (!is_product(c, row, w, lib->type, plan->k, plan->nb)) {
        status =
            qr_fail(err, QR_E_BACKEND, "%s: a product of %d x %zu x %zu is wrong", plan->provider->name, QR_TILE_ROWS, plan->k, plan->nb);
        goto done;
    }
    plan->small_tiles = memcmp(c, small, QR_TILE_ROWS_SMALL * plan->nb * sizeof *c) == 0;
    for (size_t r = 1; r < QR_TILE_ROWS; r++) *place_matters |= memcmp(c, c + r * plan->nb, plan->nb * sizeof *c) != 0;
done:
    qr_pages_free(a, a_bytes);
    qr_pages_free(row, a_bytes);
    qr_pages_free(w, w_bytes);
    qr_pages_free(p, p_bytes);
    qr_pages_free(c, c_bytes);
    qr_pages_free(small, c_bytes);
    return status;
}

/* Opens the plan's kernel with one provider; *place_matters: it works, but not for us. */
static qr_status open_plan(qr_gemm_lib *lib, qr_gemm_plan *plan, const qr_gemm_provider *provider, int *place_matters, qr_error *err)
{
    plan->provider = provider;
    *place_matters = 0;
    qr_status status = provider->open(&plan->kernel, lib->type, plan->k, plan->nb, lib->n_threads, &plan->packed_elements, err);
    if (status != QR_OK) return status;
    status = check_rows(lib, plan, place_matters, err);
    if (status != QR_OK || *place_matters) provider->close(plan->kernel);
    return status;
}

static qr_status choose_kernel(qr_gemm_lib *lib, qr_gemm_plan *plan, qr_error *err)
{
    int place_matters = 1;
    qr_status status = lib->tiled != NULL ? open_plan(lib, plan, lib->tiled, &place_matters, err) : QR_OK;
#ifdef QR_HAVE_ONEDNN
    /* The scalar level must not use instructions that it says are absent; oneDNN has no such mode. */
    if (lib->tiled == NULL && qr_cpu_get()->isa != QR_ISA_SCALAR) status = open_plan(lib, plan, &qr_gemm_onednn, &place_matters, err);
#endif
#ifdef QR_HAVE_BLAS
    if (status == QR_OK && place_matters && lib->type == QR_GEMM_F32) status = open_plan(lib, plan, &qr_gemm_blas, &place_matters, err);
#endif
    if (status == QR_OK && place_matters && lib->tiled == NULL) status = open_plan(lib, plan, &qr_gemm_plain, &place_matters, err);
    if (status == QR_OK && place_matters)
        status = qr_fail(err, QR_E_BACKEND, "%s: products of %d x %zu x %zu depend on the row's place", plan->provider->name, QR_TILE_ROWS,
                         plan->k, plan->nb);
    return status;
}

static qr_status find_plan(const qr_gemm_plan **out, qr_gemm_lib *lib, size_t k, size_t nb, qr_error *err)
{
    for (const qr_gemm_plan *plan = lib->plans; plan != NULL; plan = plan->next)
        if (plan->k == k && plan->nb == nb) {
            *out = plan;
            return QR_OK;
        }
    qr_gemm_plan *plan = qr_calloc(1, sizeof *plan);
    if (plan == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for a matrix kernel");
    plan->k = k;
    plan->nb = nb;
    qr_status status = choose_kernel(lib, plan, err);
    if (status != QR_OK) {
        qr_free(plan);
        return status;
    }
    plan->next = lib->plans;
    lib->plans = plan;
    *out = plan;
    return QR_OK;
}

const qr_gemm_provider *qr_gemm_tiled;

static void use_tiles(qr_gemm_lib *lib, const qr_gemm_provider *tiled)
{
    const qr_gemm_plan *plan;
    lib->tiled = tiled;
    if (find_plan(&plan, lib, 2 * QR_LINE, QR_PANEL, NULL) != QR_OK) lib->tiled = NULL; /* what cannot be trusted is not used */
}

qr_status qr_gemm_lib_open(qr_gemm_lib **out, qr_gemm_type type, int may_tile, int n_threads, qr_error *err)
{
    *out = NULL;
    qr_gemm_lib *lib = qr_calloc(1, sizeof *lib);
    if (lib == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for the matrix library");
    lib->type = type;
    lib->n_threads = n_threads;
    lib->kernels = qr_kernels_get();
    lib->widened = qr_calloc((size_t) n_threads, sizeof *lib->widened);
    if (lib->widened == NULL) {
        qr_free(lib);
        return qr_fail(err, QR_E_MEMORY, "no memory for the matrix library");
    }
    if (type == QR_GEMM_BF16 && may_tile && qr_gemm_tiled != NULL) use_tiles(lib, qr_gemm_tiled);
    else if (type == QR_GEMM_BF16 && may_tile && qr_cpu_get()->isa >= QR_ISA_AMX) use_tiles(lib, &qr_gemm_amx);
    *out = lib;
    return QR_OK;
}

static size_t round_up(size_t bytes) { return (bytes + 63) / 64 * 64; }

/* Room for one widened block per thread. */
static qr_status reserve_widened(qr_gemm_lib *lib, size_t elements, qr_error *err)
{
    if (elements <= lib->widened_elements) return QR_OK;
    for (int t = 0; t < lib->n_threads; t++) {
        qr_pages_free(lib->widened[t], lib->widened_elements * sizeof(float));
        lib->widened[t] = NULL;
    }
    lib->widened_elements = elements;
    for (int t = 0; t < lib->n_threads; t++)
        if ((lib->widened[t] = qr_pages_alloc(elements * sizeof(float))) == NULL)
            return qr_fail(err, QR_E_MEMORY, "no memory for %zu widened weights", elements);
    return QR_OK;
}

/* Row `row` of the tensors, laid end to end, as f32. */
static void load_row(float *to, const qr_gemm_source *source, size_t row, size_t k)
{
    size_t i = 0;
    while (row >= source->tensors[i]->dims[0]) row -= source->tensors[i++]->dims[0];
    qr_tensor_f32(to, source->tensors[i], row * k, k);
}

/* Reverses widen_f16: every value came from an f16, so that no rounding is needed, only the right bits. */
static uint16_t narrow_f16(float x)
{
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    uint32_t sign = (b >> 16) & 0x8000, exponent = (b >> 23) & 255, mantissa = b & 0x7fffff;
    if (exponent == 255) return (uint16_t) (sign | 0x7c00 | mantissa >> 13);
    if (exponent < 113) return (uint16_t) (sign | (exponent == 0 ? 0 : (mantissa | 0x800000) >> (126 - exponent)));
    return (uint16_t) (sign | (exponent - 112) << 10 | mantissa >> 13);
}

/* Behind the packed weights of an 8-bit block. */
static float *block_scales(const qr_gemm *gemm, unsigned char *block)
{
    return (float *) (void *) (block + round_up(gemm->plan->packed_elements));
}

static int pack_block(qr_gemm *gemm, qr_gemm_lib *lib, int thread, size_t block, const qr_gemm_source *source, float *rows, float *packed)
{
    size_t k = gemm->k, nb = gemm->nb, n = gemm->plan->packed_elements;
    unsigned char *to = gemm->data + block * gemm->block_bytes;
    for (size_t i = 0; i < nb; i++) {
        size_t row = source->row(source->arg, block, i);
        if (row == QR_SIZE_NONE) memset(rows + i * k, 0, k * sizeof *rows);
        else load_row(rows + i * k, source, row, k);
    }
    if (lib->type == QR_GEMM_INT8) {
        int8_t *narrow = (int8_t *) packed; /* as large as `rows`: room enough */
        float *scales = block_scales(gemm, to);
        for (size_t i = 0; i < nb; i++) {
            float *row = rows + i * k;
            for (size_t j = 0; j < k && gemm->factors != NULL; j++) row[j] /= gemm->factors[j];
            scales[i] = lib->kernels->quantize(narrow + i * k, row, k, NULL, gemm->rotation);
            if (gemm->rotation > 0) scales[i] /= (float) gemm->rotation; /* exact; both sides are turned by an unscaled transform */
        }
        return gemm->plan->provider->pack(gemm->plan->kernel, thread, to, narrow);
    }
    if (lib->type == QR_GEMM_BF16) {
        uint16_t *narrow = (uint16_t *) packed; /* as large as `rows`: room enough */
        lib->kernels->narrow_bf16(narrow, rows, nb * k);
        return gemm->plan->provider->pack(gemm->plan->kernel, thread, to, narrow);
    }
    if (gemm->stored == QR_T_F32) return gemm->plan->provider->pack(gemm->plan->kernel, thread, to, rows);
    /* Pack as f32, then narrow each element where it stands: the library's order is kept without knowing it. */
    if (gemm->plan->provider->pack(gemm->plan->kernel, thread, packed, rows)) return 1;
    if (gemm->stored == QR_T_BF16) lib->kernels->narrow_bf16((uint16_t *) to, packed, n);
    else
        for (size_t i = 0; i < n; i++) ((uint16_t *) to)[i] = narrow_f16(packed[i]);
    return 0;
}

qr_status qr_gemm_pack(qr_gemm *gemm, qr_gemm_lib *lib, size_t k, size_t n, size_t nb, size_t n_blocks, const qr_gemm_source *source,
                       qr_error *err)
{
    *gemm = (qr_gemm){.k = k, .n = n, .nb = nb, .n_blocks = n_blocks};
    qr_status status = find_plan(&gemm->plan, lib, k, nb, err);
    if (status != QR_OK) return status;
    gemm->rotation = source->rotation;
    gemm->factors = source->factors;
    gemm->stored = lib->type == QR_GEMM_INT8 ? QR_T_I8 : lib->type == QR_GEMM_BF16 ? QR_T_BF16 : source->tensors[0]->type;
    for (size_t i = 1; i < source->n_tensors; i++)
        if (lib->type == QR_GEMM_F32 && source->tensors[i]->type != gemm->stored)
            gemm->stored = QR_T_F32; /* mixed files: keep all exactly */
    /* Rounding the products to 16 bits would lose some, and an integer per element would need to know the library's order of them. */
    if (lib->type == QR_GEMM_F32 && gemm->stored != QR_T_F16 && gemm->stored != QR_T_BF16) gemm->stored = QR_T_F32; /* quantised: widened */
    size_t packed = gemm->plan->packed_elements;
    if (lib->type == QR_GEMM_F32 && gemm->stored != QR_T_F32 && (status = reserve_widened(lib, packed, err)) != QR_OK) return status;
    gemm->block_bytes = round_up(packed * qr_tensor_type_size(gemm->stored));
    if (gemm->stored == QR_T_I8) gemm->block_bytes += round_up(nb * sizeof(float));
    gemm->data = qr_pages_alloc(n_blocks * gemm->block_bytes);
    size_t scratch = (packed > nb * k ? packed : nb * k) * 2 * sizeof(float) * (size_t) lib->n_threads;
    float *temp = qr_pages_alloc(scratch);
    if (gemm->data == NULL || temp == NULL) {
        status = qr_fail(err, QR_E_MEMORY, "no memory for %zu bytes of packed weights", n_blocks * gemm->block_bytes);
    } else {
        int failed = 0;
#pragma omp parallel for schedule(dynamic) num_threads(lib->n_threads) reduction(| : failed)
        for (size_t b = 0; b < n_blocks; b++) {
            int thread = omp_get_thread_num();
            float *rows = temp + scratch / sizeof(float) / (size_t) lib->n_threads * (size_t) thread;
            failed |= pack_block(gemm, lib, thread, b, source, rows, rows + scratch / sizeof(float) / (size_t) lib->n_threads / 2);
        }
        if (failed) status = qr_fail(err, QR_E_BACKEND, "%s: cannot pack weights of %zu x %zu", gemm->plan->provider->name, n, k);
    }
    qr_pages_free(temp, scratch);
    return status;
}

void qr_gemm_deinit(qr_gemm *gemm)
{
    qr_pages_free(gemm->data, gemm->n_blocks * gemm->block_bytes);
    gemm->data = NULL;
}

const void *qr_gemm_block(const qr_gemm *gemm, qr_gemm_lib *lib, int thread, size_t b)
{
    const unsigned char *block = gemm->data + b * gemm->block_bytes;
    if (lib->type != QR_GEMM_F32 || gemm->stored == QR_T_F32) return block;
    float *wide = lib->widened[thread];
    const uint16_t *narrow = (const uint16_t *) (const void *) block;
    (gemm->stored == QR_T_BF16 ? lib->kernels->widen_bf16 : lib->kernels->widen_f16)(wide, narrow, gemm->plan->packed_elements);
    return wide;
}

size_t qr_gemm_tile_rows(const qr_gemm *gemm, size_t left)
{
    return left < QR_TILE_ROWS && gemm->plan->small_tiles ? QR_TILE_ROWS_SMALL : QR_TILE_ROWS;
}

void qr_gemm_tile(const qr_gemm *gemm, qr_gemm_lib *lib, int thread, float *c, const qr_rows *a, size_t first, const void *block,
                  size_t rows)
{
    int int8 = lib->type == QR_GEMM_INT8;
    const void *at = int8 ? (const int8_t *) a->data + first * a->width : qr_row_at(a, first).at;
    if (gemm->plan->provider->run(gemm->plan->kernel, thread, c, at, block, rows)) atomic_store(&lib->failed, 1);
    if (int8) lib->kernels->dequantize(c, rows, gemm->nb, a->scales + first, block_scales(gemm, (unsigned char *) (uintptr_t) block));
}
