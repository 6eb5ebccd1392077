/* Products of 8-bit integers by the 256-bit dot products of AVX-VNNI, which processors without AVX-512 have (Alder Lake and later, Zen 5).
 * oneDNN's own for them packs the weights anew in every call.
 *
 * The instruction multiplies unsigned by signed bytes and sums four products exactly in 32 bits: weights are stored plus 128, and 128 times
 * the sum of the row of A is taken off again. Packed weights: [nb / 16][k / 4][16][4], k rounded up with zeros of A's side.
 */
#include "cpu/gemm.h"

#include "base/mem.h"

#include <string.h>

enum { GROUP = 4, OFFSET = 128 };

struct qr_gemm_kernel {
    size_t k, nb, steps; /* steps of four along K */
};

static qr_status vnni_open(qr_gemm_kernel **out, qr_gemm_type type, size_t k, size_t nb, int n_threads, size_t *packed_elements,
                           qr_error *err)
{
    (void) n_threads;
    *out = NULL;
    if (type != QR_GEMM_INT8 || nb % QR_PANEL != 0)
        return qr_fail(err, QR_E_UNSUPPORTED, "products by AVX-VNNI need int8 and blocks of %d outputs, found %s and %zu", QR_PANEL,
                       qr_gemm_type_name(type), nb);
    qr_gemm_kernel *kernel = qr_calloc(1, sizeof *kernel);
    if (kernel == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for a matrix kernel");
    *kernel = (qr_gemm_kernel){k, nb, (k + GROUP - 1) / GROUP};
    *packed_elements = kernel->steps * GROUP * nb;
    *out = kernel;
    return QR_OK;
}

static void vnni_close(qr_gemm_kernel *kernel) { qr_free(kernel); }

static int vnni_pack(qr_gemm_kernel *kernel, int thread, void *packed, const void *w)
{
    (void) thread;
    uint8_t *to = packed;
    const int8_t *from = w;
    for (size_t n0 = 0; n0 < kernel->nb; n0 += QR_PANEL)
        for (size_t s = 0; s < kernel->steps; s++)
            for (size_t n = 0; n < QR_PANEL; n++)
                for (size_t i = s * GROUP; i < (s + 1) * GROUP; i++)
                    *to++ = (uint8_t) (i < kernel->k ? from[(n0 + n) * kernel->k + i] + OFFSET : 0);
    return 0;
}

#if defined(__AVXVNNI__)
#include <immintrin.h>

/* Four bytes of a row, zeros past its end. */
static inline int group_at(const int8_t *row, size_t at, size_t k)
{
    int four = 0;
    memcpy(&four, row + at, k - at < GROUP ? k - at : GROUP);
    return four;
}

static int32_t sum_of(const int8_t *row, size_t k)
{
    const __m256i ones = _mm256_set1_epi8(1);
    __m256i sum = _mm256_setzero_si256();
    int32_t lanes[8], all = 0;
    size_t i = 0;
    for (; i + 32 <= k; i += 32) sum = _mm256_dpbusd_avx_epi32(sum, ones, _mm256_loadu_si256((const __m256i *) (const void *) (row + i)));
    _mm256_storeu_si256((__m256i *) (void *) lanes, sum);
    for (int j = 0; j < 8; j++) all += lanes[j];
    for (; i < k; i++) all += row[i];
    return all;
}

/* c [rows][nb] from column `panel`'s place on: `rows` rows of a times 16 outputs. */
static inline __attribute__((always_inline)) void multiply(int32_t *c, size_t nb, const int8_t *a, size_t k, const uint8_t *w,
                                                           const int32_t *sums, const int rows)
{
    __m256i acc[6][2];
    size_t whole = k / GROUP * GROUP;
    for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = _mm256_set1_epi32(-OFFSET * sums[r]);
    for (size_t i = 0; i < whole; i += GROUP, w += QR_PANEL * GROUP) {
        const __m256i w0 = _mm256_loadu_si256((const __m256i *) (const void *) w);
        const __m256i w1 = _mm256_loadu_si256((const __m256i *) (const void *) (w + 32));
        for (int r = 0; r < rows; r++) {
            int four;
            memcpy(&four, a + (size_t) r * k + i, sizeof four);
            const __m256i x = _mm256_set1_epi32(four);
            acc[r][0] = _mm256_dpbusd_avx_epi32(acc[r][0], w0, x);
            acc[r][1] = _mm256_dpbusd_avx_epi32(acc[r][1], w1, x);
        }
    }
    if (whole < k)
        for (int r = 0; r < rows; r++) {
            const __m256i x = _mm256_set1_epi32(group_at(a + (size_t) r * k, whole, k));
            acc[r][0] = _mm256_dpbusd_avx_epi32(acc[r][0], _mm256_loadu_si256((const __m256i *) (const void *) w), x);
            acc[r][1] = _mm256_dpbusd_avx_epi32(acc[r][1], _mm256_loadu_si256((const __m256i *) (const void *) (w + 32)), x);
        }
    for (int r = 0; r < rows; r++) {
        _mm256_storeu_si256((__m256i *) (void *) (c + (size_t) r * nb), acc[r][0]);
        _mm256_storeu_si256((__m256i *) (void *) (c + (size_t) r * nb + 8), acc[r][1]);
    }
}

static int vnni_run(qr_gemm_kernel *kernel, int thread, void *c, const void *a, const void *packed, size_t rows)
{
    (void) thread;
    size_t k = kernel->k, nb = kernel->nb;
    int32_t sums[QR_TILE_ROWS];
    for (size_t r = 0; r < rows; r++) sums[r] = sum_of((const int8_t *) a + r * k, k);
    for (size_t n = 0; n < nb; n += QR_PANEL) {
        const uint8_t *w = (const uint8_t *) packed + n * kernel->steps * GROUP;
        for (size_t r = 0; r < rows;) { /* 64 and 16 are sixes and a four: twelve sums in flight hide the latency */
            int32_t *to = (int32_t *) c + r * nb + n;
            const int8_t *from = (const int8_t *) a + r * k;
            if (rows - r >= 6) {
                multiply(to, nb, from, k, w, sums + r, 6);
                r += 6;
            } else {
                multiply(to, nb, from, k, w, sums + r, 4);
                r += 4;
            }
        }
    }
    return 0;
}
_Static_assert(QR_TILE_ROWS % 6 == 4 && QR_TILE_ROWS_SMALL % 6 == 4, "rows are sixes and a four");

const int qr_gemm_has_vnni = 1;
#else
static int vnni_run(qr_gemm_kernel *kernel, int thread, void *c, const void *a, const void *packed, size_t rows)
{
    (void) kernel, (void) thread, (void) c, (void) a, (void) packed, (void) rows;
    return 1;
}

const int qr_gemm_has_vnni = 0;
#endif

const qr_gemm_provider qr_gemm_vnni = {"AVX-VNNI", 0, NULL, vnni_open, vnni_close, vnni_pack, vnni_run, NULL};
