/* Choice of the kernel variant. */
#include "cpu/kernels.h"

#include "cpu/features.h"

const qr_kernels *qr_kernels_get(void)
{
    qr_isa isa = qr_cpu_get()->isa;
    if (isa >= QR_ISA_AVX512 && qr_kernels_avx512 != NULL) return qr_kernels_avx512;
    if (isa >= QR_ISA_AVX2 && qr_kernels_avx2 != NULL) return qr_kernels_avx2;
    if (isa == QR_ISA_NEON && qr_kernels_neon != NULL) return qr_kernels_neon;
    return qr_kernels_scalar;
}
