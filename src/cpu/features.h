/* What this processor can do, read once from the CPU and the operating system together (an instruction set that the system does not
 * save on a context switch cannot be used). Decides which kernels run; knows nothing of models. */
#ifndef QR_CPU_FEATURES_H
#define QR_CPU_FEATURES_H

#include <stddef.h>

/* Levels in rising order; a machine of one level has those below it of its own architecture. */
typedef enum qr_isa { QR_ISA_SCALAR = 0, QR_ISA_NEON, QR_ISA_AVX2, QR_ISA_AVX512, QR_ISA_AVX512_BF16, QR_ISA_AMX } qr_isa;

typedef struct qr_cpu {
    qr_isa found;    /* best level of this machine */
    qr_isa isa;      /* level in use: `found`, or lower when QR_CPU asks for it */
    int native_bf16; /* level in use multiplies bf16, and so does the matrix library of this build */
    int native_int8; /* multiplies 8-bit integers with exact 32-bit sums: AVX512-VNNI by the matrix library, or */
    int avx_vnni;    /* the same in 256 bits, by our own kernel; used where there is no AVX-512 */
    int amx_int8;    /* the level in use is AMX, and multiplies them in tiles */
    int n_usable;    /* physical cores that this process may use: affinity mask, SMT siblings once, cgroup quota */
    size_t l2_bytes; /* of a core's second-level cache, or a guess */
    char model[64];  /* processor name as the system gives it */
} qr_cpu;

const qr_cpu *qr_cpu_get(void);
const char *qr_isa_name(qr_isa isa);
/* One line of instruction sets for people, for example "avx2 fma f16c avx512 avx512_bf16". */
void qr_cpu_features(char *text, size_t size);
/* Compute libraries in use with their versions, for example "oneDNN 2.6.3". */
const char *qr_cpu_libraries(void);

#endif
