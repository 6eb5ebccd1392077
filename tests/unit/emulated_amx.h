/* Products and attention by AMX on a machine without it: the code of src/cpu over an emulation of the tiles. */
#ifndef QR_TESTS_EMULATED_AMX_H
#define QR_TESTS_EMULATED_AMX_H

#include "cpu/gemm.h"

/* Needs AVX512-BF16 (features.found); NULL in builds for processors that cannot have it. It always takes the first order, if it is not told
 * to take another one. */
extern const qr_gemm_provider *const emulated_amx;
extern const qr_gemm_orders *const emulated_amx_orders;

#endif
