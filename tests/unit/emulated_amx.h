/* Products and attention by AMX on a machine without it: the code of src/cpu over an emulation of the tiles. */
#ifndef QR_TESTS_EMULATED_AMX_H
#define QR_TESTS_EMULATED_AMX_H

#include "cpu/gemm.h"

/* Needs AVX512-BF16 (features.found); NULL in builds for processors that cannot have it. */
extern const qr_gemm_provider *const emulated_amx;

#endif
