/* Packing and dispatch of tile products, see gemm.h. */
#include "cpu/gemm.h"

#include "base/mem.h"
#include "base/system.h"
#include "cpu/features.h"
#include "cpu/kernels.h"
#include "cpu/tensor_f32.h"

#include <math.h>
#include <omp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum {
    MAX_INT8_K = 1 << 16, /* 255 * 127 * 2^16 < 2^31 */
    MAX_ROUNDS = 8,
};
static const double search_seconds = 2e-3; /* for the fastest order of a shape, about, at most; a model has three or four shapes */

struct qr_gemm_plan {
    size_t k, nb;
    size_t packed_elements; /* of one block */
    const qr_gemm_provider *provider;
    qr_gemm_kernel *kernel;
    int small_tiles;      /* 16-row tiles give bitwise the rows of 64-row tiles */
    size_t order;         /* in use, where the provider has several */
    double order_seconds; /* of 64 rows in it, one thread */
    qr_gemm_plan *next;
};

/* Memory of each thread's own. */
typedef struct lanes {
    unsigned char **at; /* [n_threads] */
    size_t bytes;       /* of each */
} lanes;

struct qr_gemm_lib {
    qr_gemm_type type;
    int n_threads;
    const qr_gemm_provider *tile_units; /* what multiplies tiles on this processor, or NULL */
    int tiled;                          /* it is the only provider, as all rows that products read are in tiles then */
    const qr_kernels *kernels;
    qr_gemm_plan *plans;
    lanes ready; /* the block that qr_gemm_block made, for matrices that are not kept in that form */
    lanes rows;  /* a block being packed: its rows in the type of the arithmetic, after one row in f32 */
    atomic_int failed;
};

static void clear(const qr_gemm_lib *lib, lanes *l)
{
    for (int t = 0; l->at != NULL && t < lib->n_threads; t++) {
        qr_pages_free(l->at[t], l->bytes);
        l->at[t] = NULL;
    }
    l->bytes = 0;
}

/* At least so many bytes for each thread; what was there is lost. */
static qr_status reserve(const qr_gemm_lib *lib, lanes *l, size_t bytes, qr_error *err)
{
    if (bytes <= l->bytes) return QR_OK;
    clear(lib, l);
    l->bytes = bytes;
    for (int t = 0; t < lib->n_threads; t++)
        if ((l->at[t] = qr_pages_alloc(bytes)) == NULL)
            return qr_fail(err, QR_E_MEMORY, "no memory for %zu bytes of unpacked weights", bytes);
    return QR_OK;
}

void qr_gemm_lib_trim(qr_gemm_lib *lib) { clear(lib, &lib->rows); }

size_t qr_gemm_lib_bytes(const qr_gemm_lib *lib) { return (size_t) lib->n_threads * (lib->ready.bytes + lib->rows.bytes); }

static void close_plans(qr_gemm_lib *lib)
{
    while (lib->plans != NULL) {
        qr_gemm_plan *plan = lib->plans;
        lib->plans = plan->next;
        plan->provider->close(plan->kernel);
        qr_free(plan);
    }
}

void qr_gemm_lib_close(qr_gemm_lib *lib)
{
    if (lib == NULL) return;
    close_plans(lib);
    clear(lib, &lib->ready);
    clear(lib, &lib->rows);
    qr_free(lib->ready.at);
    qr_free(lib->rows.at);
    qr_free(lib);
}

qr_gemm_type qr_gemm_lib_type(const qr_gemm_lib *lib) { return lib->type; }

int qr_gemm_lib_is_bf16(const qr_gemm_lib *lib)
{
    return lib->type == QR_GEMM_BF16 || (lib->type == QR_GEMM_INT8 && qr_cpu_get()->native_bf16);
}

qr_rows qr_gemm_lib_operand(const qr_gemm_lib *lib, size_t n)
{
    int int8 = lib->type == QR_GEMM_INT8;
    size_t line = int8 ? QR_LINE_INT8 : QR_LINE, width = lib->tiled ? (n + line - 1) / line * line : n;
    return (qr_rows){.width = width, .bf16 = lib->type == QR_GEMM_BF16, .int8 = int8, .tiled = lib->tiled};
}

qr_rows qr_gemm_lib_rows(const qr_gemm_lib *lib, size_t n)
{
    if (lib->type == QR_GEMM_INT8) return (qr_rows){.width = n, .bf16 = qr_gemm_lib_is_bf16(lib)};
    return qr_gemm_lib_operand(lib, n);
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
    const qr_gemm_provider *units = lib->tile_units;
    int tiles = units != NULL && head_dim % 32 == 0 && qr_attend_agree(units->attend, qr_attend_bf16, head_dim);
    return tiles ? units->attend : qr_attend_bf16;
}

void qr_gemm_lib_log(const qr_gemm_lib *lib, qr_log_fn log, void *arg)
{
    char line[256];
    for (const qr_gemm_plan *plan = lib->plans; plan != NULL; plan = plan->next) {
        const qr_gemm_provider *provider = plan->provider;
        if (provider->orders == NULL) continue;
        snprintf(line, sizeof line, "%s: %d x %zu x %zu %s: %s, %.0f Gop/s on one thread", provider->name, QR_TILE_ROWS, plan->k, plan->nb,
                 qr_gemm_type_name(lib->type), provider->orders->name(plan->order),
                 2e-9 * QR_TILE_ROWS * (double) (plan->k * plan->nb) / plan->order_seconds);
        log(arg, QR_LOG_DEBUG, line);
    }
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
    size_t es = qr_gemm_type_size(type), line = type == QR_GEMM_INT8 ? QR_LINE_INT8 : QR_LINE;
    qr_row row = qr_row_at(rows, r);
    unsigned char *to = row.at;
    for (size_t i = 0; i < n; i += line, from += line * es, to += row.line * es) memcpy(to, from, (n - i < line ? n - i : line) * es);
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

/* Of the orders in which the provider can multiply, keeps the one that is fastest here: by its best of several rounds of all, since
 * machines are shared and clocks change. 0 if one does not give the bits `expected` [QR_TILE_ROWS][nb]. spare: as large. */
static int choose_order(qr_gemm_plan *plan, float *spare, const float *expected, const void *a, const void *packed)
{
    const qr_gemm_orders *orders = plan->provider->orders;
    double spent = 0;
    plan->order_seconds = INFINITY;
    for (size_t round = 0; round < MAX_ROUNDS && spent < search_seconds; round++)
        for (size_t i = 0; i < orders->n; i++) {
            orders->use(plan->kernel, i);
            double start = qr_now();
            int failed = plan->provider->run(plan->kernel, 0, spare, a, packed, QR_TILE_ROWS);
            double seconds = qr_now() - start;
            if (failed || memcmp(spare, expected, QR_TILE_ROWS * plan->nb * sizeof *spare) != 0) return 0;
            spent += seconds;
            if (seconds >= plan->order_seconds) continue;
            plan->order_seconds = seconds;
            plan->order = i;
        }
    orders->use(plan->kernel, plan->order);
    return 1;
}

/* Scores may not depend on where in a tile a row lies, nor on the tile's size. No library promises that, so it is checked when a shape
 * is first used: one row in all 64 places must give 64 equal results, and the 16-row kernel the same ones. Without the second, small
 * tiles are not used; without the first, the kernel is not. (oneDNN 2.6 fails on AVX2, where matmul falls back to its old GEMM.) The
 * result must be the product, too: what runs on this very processor may never have been tested. */
static qr_status check_rows(qr_gemm_lib *lib, qr_gemm_plan *plan, int *place_matters, qr_error *err)
{
    qr_rows rows = qr_gemm_lib_operand(lib, plan->k);
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
    if (plan->provider->orders != NULL && !choose_order(plan, small, c, a, p))
        status = qr_fail(err, QR_E_BACKEND, "%s: a product of %d x %zu x %zu depends on the order of its blocks", plan->provider->name,
                         QR_TILE_ROWS, plan->k, plan->nb);
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
    qr_status status = QR_OK;
    if (lib->type == QR_GEMM_INT8 && plan->k > MAX_INT8_K)
        return qr_fail(err, QR_E_UNSUPPORTED, "int8: rows of at most %d elements, as sums of more may overflow 32 bits, found %zu",
                       MAX_INT8_K, plan->k);
    if (lib->tiled) status = open_plan(lib, plan, lib->tile_units, &place_matters, err);
    else if (lib->type == QR_GEMM_INT8 && qr_cpu_get()->avx_vnni) status = open_plan(lib, plan, &qr_gemm_vnni, &place_matters, err);
#ifdef QR_HAVE_ONEDNN
    /* The scalar level must not use instructions that it says are absent; oneDNN has no such mode. */
    else if (qr_cpu_get()->isa != QR_ISA_SCALAR) status = open_plan(lib, plan, &qr_gemm_onednn, &place_matters, err);
#endif
#ifdef QR_HAVE_BLAS
    if (status == QR_OK && place_matters && lib->type == QR_GEMM_F32) status = open_plan(lib, plan, &qr_gemm_blas, &place_matters, err);
#endif
    if (status == QR_OK && place_matters && !lib->tiled) status = open_plan(lib, plan, &qr_gemm_plain, &place_matters, err);
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

static void use_tiles(qr_gemm_lib *lib)
{
    enum { STEPS = 9, OUTPUTS = 48 }; /* more than one block of K, and an edge */
    const qr_gemm_plan *plan;
    size_t k = STEPS * (lib->type == QR_GEMM_INT8 ? QR_LINE_INT8 : QR_LINE);
    lib->tiled = 1;
    lib->tiled = find_plan(&plan, lib, k, OUTPUTS, NULL) == QR_OK; /* what cannot be trusted is not used */
    close_plans(lib);
}

qr_status qr_gemm_lib_open(qr_gemm_lib **out, qr_gemm_type type, int may_tile, int n_threads, qr_error *err)
{
    *out = NULL;
    qr_gemm_lib *lib = qr_calloc(1, sizeof *lib);
    if (lib == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for the matrix library");
    lib->type = type;
    lib->n_threads = n_threads;
    lib->kernels = qr_kernels_get();
    lib->ready.at = qr_calloc((size_t) n_threads, sizeof *lib->ready.at);
    lib->rows.at = qr_calloc((size_t) n_threads, sizeof *lib->rows.at);
    if (lib->ready.at == NULL || lib->rows.at == NULL) {
        qr_gemm_lib_close(lib);
        return qr_fail(err, QR_E_MEMORY, "no memory for the matrix library");
    }
    const qr_cpu *cpu = qr_cpu_get();
    lib->tile_units = qr_gemm_tiled != NULL ? qr_gemm_tiled : cpu->isa >= QR_ISA_AMX ? &qr_gemm_amx : NULL;
    int here = type == QR_GEMM_BF16 || (type == QR_GEMM_INT8 && (cpu->amx_int8 || qr_gemm_tiled != NULL));
    if (may_tile && here && lib->tile_units != NULL) use_tiles(lib);
    *out = lib;
    return QR_OK;
}

static size_t round_up(size_t bytes) { return (bytes + 63) / 64 * 64; }

/* to [k] = row `row` of the tensors, laid end to end, in the type of bf16 or f32 arithmetic; wide: [k]. */
static void load_row(void *to, float *wide, const qr_gemm_lib *lib, const qr_gemm_source *source, size_t row, size_t k)
{
    size_t i = 0;
    while (row >= source->tensors[i]->dims[0]) row -= source->tensors[i++]->dims[0];
    const qr_tensor *t = source->tensors[i];
    if (lib->type == QR_GEMM_BF16 && t->type == QR_T_BF16) {
        memcpy(to, t->data + 2 * row * k, 2 * k);
        return;
    }
    qr_tensor_f32(lib->type == QR_GEMM_BF16 ? wide : to, t, row * k, k);
    if (lib->type == QR_GEMM_BF16) lib->kernels->narrow_bf16(to, wide, k);
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

/* to = block `block`, packed in the form `stored`. */
static int pack_block(const qr_gemm *gemm, const qr_gemm_lib *lib, int thread, size_t block, unsigned char *to, qr_tensor_type stored)
{
    size_t k = gemm->k, nb = gemm->nb, n = gemm->plan->packed_elements, es = qr_gemm_type_size(lib->type);
    const qr_gemm_source *source = &gemm->source;
    float *wide = (float *) (void *) lib->rows.at[thread], *packed = (float *) (void *) lib->ready.at[thread];
    unsigned char *rows = lib->rows.at[thread] + round_up(k * sizeof(float));
    for (size_t i = 0; i < nb; i++) {
        size_t row = source->row(source->arg, block, i);
        unsigned char *at = rows + i * k * es;
        if (lib->type == QR_GEMM_INT8) {
            if (row == QR_SIZE_NONE) memset(wide, 0, k * sizeof *wide);
            else load_row(wide, NULL, lib, source, row, k);
            for (size_t j = 0; j < k && gemm->factors != NULL; j++) wide[j] /= gemm->factors[j];
            float scale = lib->kernels->quantize((qr_row){at, 0, QR_LINE_INT8}, wide, k, NULL, gemm->rotation);
            /* exact; both sides are turned by an unscaled transform */
            block_scales(gemm, to)[i] = gemm->rotation > 0 ? scale / (float) gemm->rotation : scale;
        } else if (row == QR_SIZE_NONE) {
            memset(at, 0, k * es);
        } else {
            load_row(at, wide, lib, source, row, k);
        }
    }
    if (lib->type != QR_GEMM_F32 || stored == QR_T_F32) return gemm->plan->provider->pack(gemm->plan->kernel, thread, to, rows);
    /* Pack as f32, then narrow each element where it stands: the library's order is kept without knowing it. */
    if (gemm->plan->provider->pack(gemm->plan->kernel, thread, packed, rows)) return 1;
    if (stored == QR_T_BF16) lib->kernels->narrow_bf16((uint16_t *) (void *) to, packed, n);
    else
        for (size_t i = 0; i < n; i++) ((uint16_t *) (void *) to)[i] = narrow_f16(packed[i]);
    return 0;
}

/* The form in which blocks are kept: for f32 arithmetic the file's own where that is one of 16 bits. */
static qr_tensor_type kept_type(const qr_gemm_lib *lib, const qr_gemm_source *source)
{
    if (lib->type != QR_GEMM_F32) return lib->type == QR_GEMM_INT8 ? QR_T_I8 : QR_T_BF16;
    qr_tensor_type type = source->tensors[0]->type;
    for (size_t i = 1; i < source->n_tensors; i++)
        if (source->tensors[i]->type != type) return QR_T_F32; /* mixed files: keep all exactly */
    /* Rounding the products to 16 bits would lose some, and an integer per element would need to know the library's order of them. */
    return type == QR_T_F16 || type == QR_T_BF16 ? type : QR_T_F32;
}

static qr_status pack_all(qr_gemm *gemm, qr_gemm_lib *lib, qr_error *err)
{
    gemm->data = qr_pages_alloc(gemm->n_blocks * gemm->block_bytes);
    if (gemm->data == NULL)
        return qr_fail(err, QR_E_MEMORY, "no memory for %zu bytes of packed weights", gemm->n_blocks * gemm->block_bytes);
    int failed = 0;
#pragma omp parallel for schedule(dynamic) num_threads(lib->n_threads) reduction(| : failed)
    for (size_t b = 0; b < gemm->n_blocks; b++)
        failed |= pack_block(gemm, lib, omp_get_thread_num(), b, gemm->data + b * gemm->block_bytes, gemm->stored);
    if (failed) return qr_fail(err, QR_E_BACKEND, "%s: cannot pack weights of %zu x %zu", gemm->plan->provider->name, gemm->n, gemm->k);
    return QR_OK;
}

qr_status qr_gemm_pack(qr_gemm *gemm, qr_gemm_lib *lib, size_t k, size_t n, size_t nb, size_t n_blocks, const qr_gemm_source *source,
                       qr_error *err)
{
    *gemm = (qr_gemm){.k = k, .n = n, .nb = nb, .n_blocks = n_blocks, .source = *source};
    qr_status status = find_plan(&gemm->plan, lib, k, nb, err);
    if (status != QR_OK) return status;
    gemm->rotation = source->rotation;
    gemm->factors = source->factors;
    gemm->stored = kept_type(lib, source);
    size_t packed = gemm->plan->packed_elements, es = qr_gemm_type_size(lib->type);
    size_t scales = lib->type == QR_GEMM_INT8 ? round_up(nb * sizeof(float)) : 0;
    int makes = source->when_used || (lib->type == QR_GEMM_F32 && gemm->stored != QR_T_F32);
    if (makes) status = reserve(lib, &lib->ready, round_up(packed * es) + scales, err);
    if (status == QR_OK) status = reserve(lib, &lib->rows, round_up(k * sizeof(float)) + nb * k * es, err);
    if (status != QR_OK || source->when_used) return status;
    gemm->block_bytes = round_up(packed * qr_tensor_type_size(gemm->stored)) + scales;
    status = pack_all(gemm, lib, err);
    gemm->source = (qr_gemm_source){0};
    return status;
}

void qr_gemm_deinit(qr_gemm *gemm)
{
    qr_pages_free(gemm->data, gemm->n_blocks * gemm->block_bytes);
    gemm->data = NULL;
}

const void *qr_gemm_block(const qr_gemm *gemm, qr_gemm_lib *lib, int thread, size_t b)
{
    unsigned char *ready = lib->ready.at[thread];
    if (gemm->data == NULL) {
        if (pack_block(gemm, lib, thread, b, ready, lib->type == QR_GEMM_F32 ? QR_T_F32 : gemm->stored)) atomic_store(&lib->failed, 1);
        return ready;
    }
    const unsigned char *block = gemm->data + b * gemm->block_bytes;
    if (lib->type != QR_GEMM_F32 || gemm->stored == QR_T_F32) return block;
    float *wide = (float *) (void *) ready;
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
    if (gemm->plan->provider->run(gemm->plan->kernel, thread, c, qr_row_at(a, first).at, block, rows)) atomic_store(&lib->failed, 1);
    if (lib->type == QR_GEMM_INT8)
        lib->kernels->dequantize(c, rows, gemm->nb, a->scales + first, block_scales(gemm, (unsigned char *) (uintptr_t) block));
}
