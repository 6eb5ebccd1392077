/* Our kernels for AMX behind one entry, amx_call, without a C library. Linked with the objects of the build, to run on Bochs, and with the
 * same code over the emulation of the tiles, to say what must come out. The structs stand in test_amx.py once more. */
#include "base/mem.h"
#include "cpu/gemm.h"

#include <math.h>
#include <string.h>

#ifdef QR_EMULATE_TILES
extern const qr_gemm_provider qr_gemm_emulated_amx;
extern const qr_gemm_orders qr_gemm_emulated_amx_orders;
static const qr_gemm_provider *const amx = &qr_gemm_emulated_amx;
static const qr_gemm_orders *const orders = &qr_gemm_emulated_amx_orders;
#else
static const qr_gemm_provider *const amx = &qr_gemm_amx;
static const qr_gemm_orders *const orders = &qr_gemm_amx_orders;
#endif

typedef enum call { PRODUCT, ATTENTION } call;

typedef struct product {
    size_t type, k, nb, rows; /* type: qr_gemm_type */
    size_t order;
    const void *a, *w; /* as the provider's run and pack take them */
    void *packed, *c;
    size_t packed_bytes; /* room there */
} product;

typedef struct attention {
    size_t n_rows, n_group, head_dim, first_pos, n_prefix, n_own;
    const void *q; /* [n_rows][n_group][head_dim] bf16, and what fills up QR_ATTEND_ROWS vectors */
    const void *prefix_kt, *prefix_v, *own_kt, *own_v;
    void *out; /* [n_rows][n_group * head_dim], f32 or bf16, or in tiles */
    size_t out_bf16, out_tiled;
    float *scratch;
    double scale;
} attention;

/* Returns the number of the step that failed, or 0. */
static size_t multiply(const product *p)
{
    qr_gemm_kernel *kernel;
    size_t packed_elements;
    qr_gemm_type type = (qr_gemm_type) p->type;
    if (amx->open(&kernel, type, p->k, p->nb, 1, &packed_elements, NULL) != QR_OK) return 1;
    if (packed_elements * qr_gemm_type_size(type) > p->packed_bytes) return 2;
    if (p->order >= orders->n) return 5;
    orders->use(kernel, p->order);
    if (amx->pack(kernel, 0, p->packed, p->w) != 0) return 3;
    if (amx->run(kernel, 0, p->c, p->a, p->packed, p->rows) != 0) return 4;
    amx->close(kernel);
    return 0;
}

static size_t attend(const attention *t)
{
    size_t width = t->n_group * t->head_dim;
    qr_attend a = {.q = t->q,
                   .n_rows = t->n_rows,
                   .n_group = t->n_group,
                   .head_dim = t->head_dim,
                   .v_stride = t->head_dim,
                   .scale = (float) t->scale,
                   .prefix = {t->prefix_kt, t->prefix_v, t->n_prefix},
                   .own = {t->own_kt, t->own_v, t->n_own},
                   .first_pos = t->first_pos,
                   .out = {.data = t->out, .width = width, .bf16 = t->out_bf16 != 0, .tiled = t->out_tiled != 0},
                   .scratch = t->scratch};
    amx->attend(&a);
    return 0;
}

__attribute__((visibility("default"))) size_t amx_call(size_t what, const void *arguments);
size_t amx_call(size_t what, const void *arguments) { return what == PRODUCT ? multiply(arguments) : attend(arguments); }

/* ---- what the kernels call ---------------------------------------------------------------------------------------------------- */

void *memcpy(void *restrict to, const void *restrict from, size_t n)
{
    void *end = to;
    __asm__ volatile("rep movsb" : "+D"(end), "+S"(from), "+c"(n) : : "memory");
    return to;
}

void *memset(void *to, int byte, size_t n)
{
    void *end = to;
    __asm__ volatile("rep stosb" : "+D"(end), "+c"(n) : "a"(byte) : "memory");
    return to;
}

/* One block is enough: a kernel of one shape. */
static _Alignas(64) unsigned char block[4096];

void *qr_calloc(size_t n, size_t size) { return n * size <= sizeof block ? memset(block, 0, sizeof block) : NULL; }
void qr_free(void *taken) { (void) taken; }

qr_status qr_fail(qr_error *err, qr_status code, const char *format, ...)
{
    (void) err, (void) format;
    return code;
}

/* By its series, in f64: both sides of the comparison take this one. */
float exp2f(float x)
{
    if (x < -1000) return 0;
    int whole = (int) x;
    double rest = ((double) x - whole) * 0.69314718055994530942, term = 1, sum = 1; /* ln 2 */
    for (int i = 1; i < 20; i++) sum += term *= rest / i;
    union {
        uint64_t bits;
        double value;
    } power = {.bits = (uint64_t) (1023 + whole) << 52};
    return (float) (sum * power.value);
}
