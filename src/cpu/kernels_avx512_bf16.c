/* Kernels for x86-64 with AVX512-BF16, which rounds to bf16 in one instruction what products are to read. Built with these flags; only
 * called after features.c found them. */
#include "cpu/kernels.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "cpu/vector_avx512.h"

#define KERNEL_NAME "avx512_bf16"
enum { ROWS = 8 };

#include "cpu/kernels_impl.h"

const qr_kernels *const qr_kernels_avx512_bf16 = &table;
#else
const qr_kernels *const qr_kernels_avx512_bf16 = NULL;
#endif
