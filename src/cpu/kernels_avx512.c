/* Kernels for x86-64 with AVX-512 F, BW, DQ and VL. Built with these flags; only called after features.c found them. */
#include "cpu/kernels.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "cpu/vector_avx512.h"

#define KERNEL_NAME "avx512"
enum { ROWS = 8 };

#include "cpu/kernels_impl.h"

const qr_kernels *const qr_kernels_avx512 = &table;
#else
const qr_kernels *const qr_kernels_avx512 = NULL;
#endif
