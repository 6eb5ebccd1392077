/* See emulated_amx.h. */
#include "emulated_amx.h"

#ifdef QR_HAVE_EMULATED_AMX
extern const qr_gemm_provider qr_gemm_emulated_amx;
extern const qr_gemm_orders qr_gemm_emulated_amx_orders;
const qr_gemm_provider *const emulated_amx = &qr_gemm_emulated_amx;
const qr_gemm_orders *const emulated_amx_orders = &qr_gemm_emulated_amx_orders;
#else
const qr_gemm_provider *const emulated_amx = NULL;
const qr_gemm_orders *const emulated_amx_orders = NULL;
#endif
