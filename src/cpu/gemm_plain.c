/* Tile products by our own f32 kernel: for builds without oneDNN, for QR_CPU=scalar, and where oneDNN's own kernel makes a row's result
 * depend on its place (AVX2). bf16 arithmetic is not offered here, since whatever has it also has oneDNN. */
#include "base/mem.h"
#include "cpu/gemm.h"
#include "cpu/kernels.h"

#include <string.h>

struct qr_gemm_kernel {
    size_t k, nb;
    const qr_kernels *kernels;
};

static qr_status plain_open(qr_gemm_kernel **out, qr_gemm_type type, size_t k, size_t nb, int n_threads, size_t *packed_elements,
                            qr_error *err)
{
    (void) n_threads;
    *out = NULL;
    if (type != QR_GEMM_F32 || nb % QR_PANEL != 0)
        return qr_fail(err, QR_E_UNSUPPORTED, "the portable matrix kernel needs f32 and blocks of %d outputs, found %s and %zu", QR_PANEL,
                       qr_gemm_type_name(type), nb);
    qr_gemm_kernel *kernel = qr_calloc(1, sizeof *kernel);
    if (kernel == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for a matrix kernel");
    *kernel = (qr_gemm_kernel){k, nb, qr_kernels_get()};
    *packed_elements = k * nb;
    *out = kernel;
    return QR_OK;
}

static void plain_close(qr_gemm_kernel *kernel) { qr_free(kernel); }

static int plain_pack(qr_gemm_kernel *kernel, int thread, void *packed, const void *w)
{
    (void) thread;
    float *to = packed;
    const float *from = w;
    for (size_t n = 0; n < kernel->nb; n++)
        for (size_t i = 0; i < kernel->k; i++) to[(n / QR_PANEL * kernel->k + i) * QR_PANEL + n % QR_PANEL] = from[n * kernel->k + i];
    return 0;
}

static int plain_run(qr_gemm_kernel *kernel, int thread, void *c, const void *a, const void *packed, size_t rows)
{
    (void) thread;
    kernel->kernels->gemm(c, a, packed, rows, kernel->k, kernel->nb);
    return 0;
}

const qr_gemm_provider qr_gemm_plain = {"built-in kernels", 0, NULL, plain_open, plain_close, plain_pack, plain_run, NULL};
