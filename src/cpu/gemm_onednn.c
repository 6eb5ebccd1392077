/* Tile products by oneDNN matmul primitives. The only file that knows oneDNN, and the only place where its 2.x (Debian 12) and 3.x APIs
 * differ: memory descriptors became opaque handles and operation descriptors went away.
 *
 * Every primitive is made and run with one OpenMP thread: our threads share out the tiles. Scratch memory is the caller's
 * (scratchpad_mode user), because oneDNN's own is not safe for one primitive on many threads.
 */
#ifdef QR_HAVE_ONEDNN
#include "base/mem.h"
#include "base/system.h"
#include "cpu/features.h"
#include "cpu/gemm.h"

#include <dnnl.h>
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t md_own;         /* a descriptor that we made and must destroy */
typedef const_dnnl_memory_desc_t md_query; /* one that belongs to a primitive descriptor */
#define MD_REF(md) (md)
#else
typedef dnnl_memory_desc_t md_own;
typedef const dnnl_memory_desc_t *md_query;
#define MD_REF(md) (&(md))
#endif

enum { N_SIZES = 2 };

typedef struct lane { /* one thread's handles; their data pointers are set for every call */
    dnnl_stream_t stream;
    dnnl_memory_t a[N_SIZES], c[N_SIZES], scratch[N_SIZES], packed, rows;
    void *scratch_block;
} lane;

struct qr_gemm_kernel {
    dnnl_engine_t engine;
    dnnl_primitive_desc_t desc[N_SIZES];
    dnnl_primitive_t matmul[N_SIZES];
    dnnl_primitive_t reorder; /* [nb][k] row-major -> the order that the matmul wants */
    size_t rows_of_a[N_SIZES];
    size_t scratch_bytes;
    int n_lanes;
    lane *lanes;
};

static pthread_once_t isa_once = PTHREAD_ONCE_INIT;

/* QR_CPU must bind oneDNN too. It listens only before its first use in the process, hence the once. */
static void limit_isa(void)
{
    const qr_cpu *cpu = qr_cpu_get();
    if (cpu->isa == cpu->found) return;
#if defined(__x86_64__)
    if (cpu->isa == QR_ISA_AVX2) dnnl_set_max_cpu_isa(dnnl_cpu_isa_avx2);
    if (cpu->isa == QR_ISA_AVX512) dnnl_set_max_cpu_isa(dnnl_cpu_isa_avx512_core_vnni);
    if (cpu->isa == QR_ISA_AVX512_BF16) dnnl_set_max_cpu_isa(dnnl_cpu_isa_avx512_core_bf16);
#endif
}

static int make_md(md_own *md, const dnnl_dims_t dims, dnnl_data_type_t type, const dnnl_dim_t *strides)
{
#if DNNL_VERSION_MAJOR >= 3
    return strides ? (int) dnnl_memory_desc_create_with_strides(md, 2, dims, type, strides)
                   : (int) dnnl_memory_desc_create_with_tag(md, 2, dims, type, dnnl_format_tag_any);
#else
    return strides ? (int) dnnl_memory_desc_init_by_strides(md, 2, dims, type, strides)
                   : (int) dnnl_memory_desc_init_by_tag(md, 2, dims, type, dnnl_format_tag_any);
#endif
}

static void drop_md(md_own *md)
{
#if DNNL_VERSION_MAJOR >= 3
    if (*md != NULL) dnnl_memory_desc_destroy(*md);
    *md = NULL;
#else
    (void) md;
#endif
}

static int make_matmul(qr_gemm_kernel *kernel, int i, const md_own *a, const md_own *w, const md_own *c)
{
    dnnl_primitive_attr_t attr = NULL;
    int failed = dnnl_primitive_attr_create(&attr) != dnnl_success;
    failed = failed || dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user) != dnnl_success;
#if DNNL_VERSION_MAJOR >= 3
    failed = failed || dnnl_matmul_primitive_desc_create(&kernel->desc[i], kernel->engine, *a, *w, NULL, *c, attr) != dnnl_success;
#else
    dnnl_matmul_desc_t desc;
    failed = failed || dnnl_matmul_desc_init(&desc, a, w, NULL, c) != dnnl_success;
    failed = failed || dnnl_primitive_desc_create(&kernel->desc[i], &desc, attr, kernel->engine, NULL) != dnnl_success;
#endif
    failed = failed || dnnl_primitive_create(&kernel->matmul[i], kernel->desc[i]) != dnnl_success;
    if (attr != NULL) dnnl_primitive_attr_destroy(attr);
    return failed;
}

static int make_reorder(qr_gemm_kernel *kernel, md_query rows, md_query packed)
{
    dnnl_primitive_desc_t desc = NULL;
    int failed = dnnl_reorder_primitive_desc_create(&desc, rows, kernel->engine, packed, kernel->engine, NULL) != dnnl_success ||
                 dnnl_primitive_create(&kernel->reorder, desc) != dnnl_success;
    if (desc != NULL) dnnl_primitive_desc_destroy(desc);
    return failed;
}

static int make_lane(qr_gemm_kernel *kernel, lane *l, md_query rows, md_query packed)
{
    int failed = dnnl_stream_create(&l->stream, kernel->engine, dnnl_stream_default_flags) != dnnl_success;
    l->scratch_block = qr_pages_alloc(kernel->scratch_bytes);
    failed = failed || l->scratch_block == NULL;
    failed = failed || dnnl_memory_create(&l->rows, rows, kernel->engine, DNNL_MEMORY_NONE) != dnnl_success;
    failed = failed || dnnl_memory_create(&l->packed, packed, kernel->engine, DNNL_MEMORY_NONE) != dnnl_success;
    for (int i = 0; i < N_SIZES && !failed; i++) {
        md_query a = dnnl_primitive_desc_query_md(kernel->desc[i], dnnl_query_src_md, 0);
        md_query c = dnnl_primitive_desc_query_md(kernel->desc[i], dnnl_query_dst_md, 0);
        md_query s = dnnl_primitive_desc_query_md(kernel->desc[i], dnnl_query_scratchpad_md, 0);
        failed = dnnl_memory_create(&l->a[i], a, kernel->engine, DNNL_MEMORY_NONE) != dnnl_success ||
                 dnnl_memory_create(&l->c[i], c, kernel->engine, DNNL_MEMORY_NONE) != dnnl_success ||
                 dnnl_memory_create(&l->scratch[i], s, kernel->engine, l->scratch_block) != dnnl_success;
    }
    return failed;
}

static void onednn_close(qr_gemm_kernel *kernel)
{
    if (kernel == NULL) return;
    for (int t = 0; t < kernel->n_lanes; t++) {
        lane *l = &kernel->lanes[t];
        for (int i = 0; i < N_SIZES; i++) {
            if (l->a[i] != NULL) dnnl_memory_destroy(l->a[i]);
            if (l->c[i] != NULL) dnnl_memory_destroy(l->c[i]);
            if (l->scratch[i] != NULL) dnnl_memory_destroy(l->scratch[i]);
        }
        if (l->packed != NULL) dnnl_memory_destroy(l->packed);
        if (l->rows != NULL) dnnl_memory_destroy(l->rows);
        if (l->stream != NULL) dnnl_stream_destroy(l->stream);
        qr_pages_free(l->scratch_block, kernel->scratch_bytes);
    }
    qr_free(kernel->lanes);
    for (int i = 0; i < N_SIZES; i++) {
        if (kernel->matmul[i] != NULL) dnnl_primitive_destroy(kernel->matmul[i]);
        if (kernel->desc[i] != NULL) dnnl_primitive_desc_destroy(kernel->desc[i]);
    }
    if (kernel->reorder != NULL) dnnl_primitive_destroy(kernel->reorder);
    if (kernel->engine != NULL) dnnl_engine_destroy(kernel->engine);
    qr_free(kernel);
}

/* Everything that can fail inside oneDNN; the weights' order is chosen for the large tile and imposed on the small one. */
static int make_all(qr_gemm_kernel *kernel, qr_gemm_type gemm_type, dnnl_dim_t k, dnnl_dim_t nb, size_t *packed_bytes)
{
    const dnnl_data_type_t type = gemm_type == QR_GEMM_INT8 ? dnnl_s8 : gemm_type == QR_GEMM_BF16 ? dnnl_bf16 : dnnl_f32;
    const dnnl_data_type_t sum_type = gemm_type == QR_GEMM_INT8 ? dnnl_s32 : dnnl_f32;
    md_own w_any = {0}, w_rows = {0}, a = {0}, c = {0};
    dnnl_dims_t w_dims = {k, nb}, w_strides = {1, k};
    int failed = dnnl_engine_create(&kernel->engine, dnnl_cpu, 0) != dnnl_success || make_md(&w_any, w_dims, type, NULL) ||
                 make_md(&w_rows, w_dims, type, w_strides);
    md_query packed = MD_REF(w_any);
    for (int i = 0; i < N_SIZES && !failed; i++) {
        dnnl_dims_t a_dims = {(dnnl_dim_t) kernel->rows_of_a[i], k}, a_strides = {k, 1}, c_dims = {(dnnl_dim_t) kernel->rows_of_a[i], nb},
                    c_strides = {nb, 1};
        failed = make_md(&a, a_dims, type, a_strides) || make_md(&c, c_dims, sum_type, c_strides);
#if DNNL_VERSION_MAJOR >= 3
        md_own w = (md_own) (uintptr_t) packed;
        failed = failed || make_matmul(kernel, i, &a, &w, &c);
#else
        failed = failed || make_matmul(kernel, i, &a, packed, &c);
#endif
        drop_md(&a);
        drop_md(&c);
        if (failed) break;
        if (i == 0) packed = dnnl_primitive_desc_query_md(kernel->desc[0], dnnl_query_weights_md, 0);
        md_query s = dnnl_primitive_desc_query_md(kernel->desc[i], dnnl_query_scratchpad_md, 0);
        size_t bytes = s ? dnnl_memory_desc_get_size(s) : 0;
        if (bytes > kernel->scratch_bytes) kernel->scratch_bytes = bytes;
    }
    if (!failed) {
        *packed_bytes = dnnl_memory_desc_get_size(packed);
        failed = make_reorder(kernel, MD_REF(w_rows), packed);
    }
    for (int t = 0; t < kernel->n_lanes && !failed; t++) failed = make_lane(kernel, &kernel->lanes[t], MD_REF(w_rows), packed);
    drop_md(&w_any);
    drop_md(&w_rows);
    return failed;
}

/* `team` is the number of OpenMP threads that oneDNN itself may use. */
static qr_status open_shape(qr_gemm_kernel **out, qr_gemm_type type, size_t k, size_t nb, const size_t rows[N_SIZES], int n_lanes, int team,
                            size_t *packed_elements, qr_error *err)
{
    *out = NULL;
    pthread_once(&isa_once, limit_isa);
    qr_gemm_kernel *kernel = qr_calloc(1, sizeof *kernel);
    if (kernel == NULL || (kernel->lanes = qr_calloc((size_t) n_lanes, sizeof *kernel->lanes)) == NULL) {
        qr_free(kernel);
        return qr_fail(err, QR_E_MEMORY, "no memory for a matrix kernel");
    }
    kernel->n_lanes = n_lanes;
    memcpy(kernel->rows_of_a, rows, sizeof kernel->rows_of_a);
    int outer = omp_get_max_threads();
    omp_set_num_threads(team);
    size_t packed_bytes = 0;
    int failed = make_all(kernel, type, (dnnl_dim_t) k, (dnnl_dim_t) nb, &packed_bytes);
    omp_set_num_threads(outer);
    if (failed) {
        onednn_close(kernel);
        return qr_fail(err, QR_E_BACKEND, "oneDNN: no %s matrix product for k = %zu, n = %zu", qr_gemm_type_name(type), k, nb);
    }
    *packed_elements = packed_bytes / qr_gemm_type_size(type);
    *out = kernel;
    return QR_OK;
}

static qr_status onednn_open(qr_gemm_kernel **out, qr_gemm_type type, size_t k, size_t nb, int n_threads, size_t *packed_elements,
                             qr_error *err)
{
    static const size_t rows[N_SIZES] = {QR_TILE_ROWS, QR_TILE_ROWS_SMALL};
    return open_shape(out, type, k, nb, rows, n_threads, 1, packed_elements, err);
}

static int set(dnnl_memory_t memory, const void *data)
{
    return dnnl_memory_set_data_handle(memory, (void *) (uintptr_t) data) != dnnl_success;
}

static int onednn_pack(qr_gemm_kernel *kernel, int thread, void *packed, const void *w)
{
    lane *l = &kernel->lanes[thread];
    dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, l->rows}, {DNNL_ARG_TO, l->packed}};
    return set(l->rows, w) || set(l->packed, packed) || dnnl_primitive_execute(kernel->reorder, l->stream, 2, args) != dnnl_success;
}

static int onednn_run(qr_gemm_kernel *kernel, int thread, void *c, const void *a, const void *packed, size_t rows)
{
    lane *l = &kernel->lanes[thread];
    int i = rows == kernel->rows_of_a[0] ? 0 : 1;
    dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, l->a[i]}, {DNNL_ARG_WEIGHTS, l->packed}, {DNNL_ARG_DST, l->c[i]}, {DNNL_ARG_SCRATCHPAD, l->scratch[i]}};
    return set(l->a[i], a) || set(l->packed, packed) || set(l->c[i], c) ||
           dnnl_primitive_execute(kernel->matmul[i], l->stream, 4, args) != dnnl_success;
}

const qr_gemm_provider qr_gemm_onednn = {"oneDNN", 0, NULL, onednn_open, onednn_close, onednn_pack, onednn_run, NULL};

double qr_gemm_library_rate(qr_gemm_type type, size_t m, size_t k, size_t n, int n_threads)
{
    enum { RUNS = 8 };
    qr_gemm_kernel *kernel;
    size_t packed_elements = 0, es = qr_gemm_type_size(type), rows[N_SIZES] = {m, m};
    if (open_shape(&kernel, type, k, n, rows, 1, n_threads, &packed_elements, NULL) != QR_OK) return 0;
    size_t a_bytes = m * k * es, w_bytes = n * k * es, p_bytes = packed_elements * es, c_bytes = m * n * sizeof(float);
    void *a = qr_pages_alloc(a_bytes), *w = qr_pages_alloc(w_bytes), *packed = qr_pages_alloc(p_bytes);
    float *c = qr_pages_alloc(c_bytes);
    double best = 0;
    int outer = omp_get_max_threads();
    omp_set_num_threads(n_threads);
    if (a != NULL && w != NULL && packed != NULL && c != NULL && onednn_pack(kernel, 0, packed, w) == 0)
        for (int i = 0; i < RUNS; i++) {
            double start = qr_now();
            if (onednn_run(kernel, 0, c, a, packed, m)) break;
            double rate = 2e-9 * (double) m * (double) k * (double) n / (qr_now() - start);
            if (rate > best) best = rate;
        }
    omp_set_num_threads(outer);
    qr_pages_free(a, a_bytes);
    qr_pages_free(w, w_bytes);
    qr_pages_free(packed, p_bytes);
    qr_pages_free(c, c_bytes);
    onednn_close(kernel);
    return best;
}

const char *qr_cpu_libraries(void)
{
    static char text[32];
    const dnnl_version_t *v = dnnl_version();
    snprintf(text, sizeof text, "oneDNN %d.%d.%d", v->major, v->minor, v->patch);
    return text;
}
#else
#include "cpu/features.h"
#include "cpu/gemm.h"

double qr_gemm_library_rate(qr_gemm_type type, size_t m, size_t k, size_t n, int n_threads)
{
    (void) type, (void) m, (void) k, (void) n, (void) n_threads;
    return 0;
}

const char *qr_cpu_libraries(void)
{
#if defined(QR_HAVE_BLAS) && defined(__APPLE__)
    return "Accelerate";
#elif defined(QR_HAVE_BLAS)
    return "BLAS";
#else
    return "built-in matrix kernels";
#endif
}
#endif
