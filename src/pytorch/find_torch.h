/* Where PyTorch is on this machine. */
#ifndef QR_PYTORCH_FIND_TORCH_H
#define QR_PYTORCH_FIND_TORCH_H

#include "base/error.h"

/* The folder of libtorch_cpu, to dir: that of `given`, or its lib/, or lib/ of the package torch that Python would import: that of the
 * active environment (VIRTUAL_ENV), else of python3, else of python. */
qr_status qr_torch_find(char *dir, size_t size, const char *given, qr_error *err);

/* The version that the Python package around such a folder has, such as "2.13.0+cpu"; "" where there is none. */
void qr_torch_package_version(char *text, size_t size, const char *dir);

#endif
