/* Tile products by a BLAS library: Accelerate on Macs, which alone reaches their matrix units. Elsewhere for tests of this file; run other
 * libraries with one thread of their own (OPENBLAS_NUM_THREADS=1), as the tiles are already spread over threads. Built only with QR_BLAS.
 */
#include "base/mem.h"
#include "cpu/gemm.h"

#include <string.h>
#ifdef __APPLE__
#include <Accelerate/Accelerate.h>
#else
#include <cblas.h>
#endif

struct qr_gemm_kernel {
    size_t k, nb;
};

static qr_status blas_open(qr_gemm_kernel **out, qr_gemm_type type, size_t k, size_t nb, int n_threads, size_t *packed_elements,
                           qr_error *err)
{
    (void) n_threads;
    *out = NULL;
    if (type != QR_GEMM_F32) return qr_fail(err, QR_E_UNSUPPORTED, "BLAS has no products in %s", qr_gemm_type_name(type));
    qr_gemm_kernel *kernel = qr_calloc(1, sizeof *kernel);
    if (kernel == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for a matrix kernel");
    *kernel = (qr_gemm_kernel){k, nb};
    *packed_elements = k * nb;
    *out = kernel;
    return QR_OK;
}

static void blas_close(qr_gemm_kernel *kernel) { qr_free(kernel); }

static int blas_pack(qr_gemm_kernel *kernel, int thread, void *packed, const void *w)
{
    (void) thread;
    memcpy(packed, w, kernel->k * kernel->nb * sizeof(float));
    return 0;
}

static int blas_run(qr_gemm_kernel *kernel, int thread, void *c, const void *a, const void *packed, size_t rows)
{
    (void) thread;
    int m = (int) rows, n = (int) kernel->nb, k = (int) kernel->k;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1, a, k, packed, k, 0, c, n);
    return 0;
}

const qr_gemm_provider qr_gemm_blas = {"BLAS", 0, NULL, blas_open, blas_close, blas_pack, blas_run, NULL};
