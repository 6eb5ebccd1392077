/* Whether PyTorch's variable-length flash attention can be used: it is there for some GPUs, head sizes and types only, and its version of
 * the causal mask has changed in the past. */
#ifndef QR_PYTORCH_FLASH_H
#define QR_PYTORCH_FLASH_H

#include "pytorch/torch_lib.h"

/* Runs it on sequences with and without a prefix, in torch's `type`. E_UNSUPPORTED: PyTorch refuses, and says why; E_BACKEND: wrong
 * results. */
qr_status pt_flash_check(qr_torch *t, const qr_torch_device *device, const qr_config *config, int type, qr_error *err);

#endif
