/* What the multiply units of this machine give when nothing has to be loaded: the limit that no matrix product can pass. */
#ifndef QR_BENCH_UNIT_PEAK_H
#define QR_BENCH_UNIT_PEAK_H

#include "cpu/gemm.h"

/* Gop/s of n_threads threads, a multiplication and an addition being two, in bf16 (with native_bf16: AMX tiles or VDPBF16PS), int8 or f32;
 * the name of the instruction goes to *unit. 0 where no measurement is written for the processor. */
double unit_peak(qr_gemm_type type, int n_threads, const char **unit);

#endif
