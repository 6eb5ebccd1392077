/* For tests/gguf: TYPE FIRST N < DATA > F32. Elements [FIRST, FIRST + N) of a row of that type, as the program reads them. */
#include "cpu/tensor_f32.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    enum { MAX_BYTES = 64 << 20 };
    int type = 0;
    if (argc != 4) return 2;
    while (type < QR_N_TENSOR_TYPES && strcmp(qr_tensor_type_name((qr_tensor_type) type), argv[1]) != 0) type++;
    if (type == QR_N_TENSOR_TYPES) return 2;
    unsigned char *data = qr_calloc(MAX_BYTES, 1);
    size_t first = strtoull(argv[2], NULL, 10), n = strtoull(argv[3], NULL, 10);
    float *out = qr_calloc(n, sizeof *out);
    if (data == NULL || out == NULL) return 1;
    size_t n_bytes = fread(data, 1, MAX_BYTES, stdin);
    size_t n_elements = n_bytes / qr_tensor_type_size((qr_tensor_type) type) * qr_tensor_type_block((qr_tensor_type) type);
    int fits = first <= n_elements && n <= n_elements - first;
    if (fits) {
        const qr_tensor t = {.type = (qr_tensor_type) type,
                             .n_dims = 2,
                             .dims = {1, n_elements},
                             .n_elements = n_elements,
                             .data = data,
                             .n_bytes = n_bytes};
        qr_tensor_f32(out, &t, first, n);
        fits = fwrite(out, sizeof *out, n, stdout) == n;
    }
    qr_free(out);
    qr_free(data);
    return fits ? 0 : 1;
}
