/* See emulated_amx.h. */
#include "emulated_amx.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define QR_EMULATE_TILES
#include "cpu/attend_amx.c"
#include "cpu/gemm_amx.c"

const qr_gemm_provider *const emulated_amx = &qr_gemm_amx;
#else
const qr_gemm_provider *const emulated_amx = NULL;
#endif
