/* CPU detection, see features.h.
 *
 * The variable QR_CPU (scalar, neon, avx2, avx512, avx512_bf16, amx) lowers the level: tests force every variant that a machine has. It
 * never raises it. An unknown word is ignored: the library has no business failing on a variable that only testers use.
 */
#define _GNU_SOURCE
#include "cpu/features.h"

#include "cpu/gemm.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef __linux__
#include <sched.h>
#include <sys/syscall.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

static qr_cpu cpu;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static const char *const names[] = {"scalar", "neon", "avx2", "avx512", "avx512_bf16", "amx"};

const char *qr_isa_name(qr_isa isa) { return names[isa]; }

#if defined(__x86_64__)
static unsigned long xgetbv0(void)
{
    unsigned lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return ((unsigned long) hi << 32) | lo;
}

/* Asks Linux for the 8 KiB of tile state; without this permission the first tile instruction kills the process. */
static int amx_permitted(void)
{
#ifdef __linux__
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return 0;
#endif
}

/* AVX512-VNNI. The instructions before it saturate sums of two products at 16 bits. */
static int has_vnni(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 11 & 1);
}

static int has_avx_vnni(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

static int has_amx_int8(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 25 & 1);
}

static qr_isa detect_isa(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return QR_ISA_SCALAR;
    int osxsave = (c >> 27) & 1, fma = (c >> 12) & 1, f16c = (c >> 29) & 1;
    if (!osxsave || !fma || !f16c) return QR_ISA_SCALAR;
    unsigned long xcr0 = xgetbv0();
    if ((xcr0 & 0x6) != 0x6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return QR_ISA_SCALAR;
    unsigned leaf7_d = d;
    if (!((b >> 5) & 1)) return QR_ISA_SCALAR;
    unsigned need = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31); /* F, DQ, BW, VL */
    if ((xcr0 & 0xe6) != 0xe6 || (b & need) != need) return QR_ISA_AVX2;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !((a >> 5) & 1)) return QR_ISA_AVX512;
    int amx_tile = (leaf7_d >> 24) & 1, amx_bf16 = (leaf7_d >> 22) & 1;
    if (amx_tile && amx_bf16 && (xcr0 & 0x60000) == 0x60000 && amx_permitted()) return QR_ISA_AMX;
    return QR_ISA_AVX512_BF16;
}
#elif defined(__aarch64__)
static qr_isa detect_isa(void) { return QR_ISA_NEON; } /* part of the architecture's baseline */
#else
static qr_isa detect_isa(void) { return QR_ISA_SCALAR; }
#endif

#ifdef __linux__
/* First line of a small file into text; 0 if it cannot be read. */
static int read_line(const char *path, char *text, int size)
{
    FILE *f = fopen(path, "re");
    if (f == NULL) return 0;
    int ok = fgets(text, size, f) != NULL;
    fclose(f);
    if (ok) text[strcspn(text, "\n")] = 0;
    return ok;
}

/* CPUs that the cgroup (container) quota allows, rounded up; 0 if there is no quota. Both cgroup versions, mounted as containers see them.
 */
static int cgroup_cpus(void)
{
    char line[64];
    long quota = -1, period = 100000;
    if (read_line("/sys/fs/cgroup/cpu.max", line, sizeof line)) {
        if (sscanf(line, "%ld %ld", &quota, &period) != 2) return 0; /* "max 100000" */
    } else if (read_line("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", line, sizeof line)) {
        quota = atol(line);
        if (read_line("/sys/fs/cgroup/cpu/cpu.cfs_period_us", line, sizeof line)) period = atol(line);
    }
    return quota > 0 && period > 0 ? (int) ((quota + period - 1) / period) : 0;
}

/* Cores rather than hardware threads: two SMT siblings share the multiply units and would only fight for cache. */
static int physical_cores(void)
{
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return (int) sysconf(_SC_NPROCESSORS_ONLN);
    int n = 0;
    for (size_t i = 0; i < CPU_SETSIZE; i++) {
        if (!CPU_ISSET(i, &allowed)) continue;
        char path[96], line[64];
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%zu/topology/thread_siblings_list", i);
        int counted = 0;
        if (read_line(path, line, sizeof line)) {
            size_t first = strtoul(line, NULL, 10); /* the list starts with the lowest sibling: count a core where that one stands */
            counted = first != i && first < CPU_SETSIZE && CPU_ISSET(first, &allowed);
        }
        n += !counted;
    }
    return n;
}
#endif

static int usable_cores(void)
{
#ifdef __linux__
    int n = physical_cores(), quota = cgroup_cpus();
    if (quota > 0 && quota < n) n = quota;
#else
    int n = (int) sysconf(_SC_NPROCESSORS_ONLN);
#endif
    return n < 1 ? 1 : n;
}

static size_t l2_bytes(void)
{
    long bytes = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
    bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return bytes > 0 ? (size_t) bytes : 1 << 20;
}

static void read_model_name(char *text, size_t size)
{
    snprintf(text, size, "unknown processor");
#if defined(__x86_64__)
    unsigned r[12], a, b, c, d;
    char brand[49] = {0};
    if (__get_cpuid(0x80000002, &r[0], &r[1], &r[2], &r[3]) && __get_cpuid(0x80000003, &r[4], &r[5], &r[6], &r[7]) &&
        __get_cpuid(0x80000004, &r[8], &r[9], &r[10], &r[11])) {
        memcpy(brand, r, 48);
        const char *start = brand + strspn(brand, " ");
        snprintf(text, size, "%s", start);
        for (size_t n = strlen(text); n > 0 && text[n - 1] == ' '; n--) text[n - 1] = 0;
        /* Virtual machines hide which "AMD EPYC" it is, though speeds differ by a factor of two: as lscpu says it then. */
        if (strpbrk(text, "0123456789") == NULL && __get_cpuid(1, &a, &b, &c, &d)) {
            unsigned family = a >> 8 & 15, model = a >> 4 & 15;
            if (family >= 6) model += (a >> 16 & 15) << 4;
            if (family == 15) family += a >> 20 & 255;
            size_t n = strlen(text);
            snprintf(text + n, size - n, " (family %u, model %u)", family, model);
        }
    }
#elif defined(__aarch64__)
    snprintf(text, size, "arm64 processor");
#endif
}

static void detect(void)
{
    cpu.found = cpu.isa = detect_isa();
    const char *forced = getenv("QR_CPU");
    for (qr_isa i = QR_ISA_SCALAR; forced != NULL && i < cpu.found; i++)
        if (strcmp(forced, names[i]) == 0) cpu.isa = i;
#if defined(__x86_64__)
    if (cpu.isa == QR_ISA_NEON) cpu.isa = QR_ISA_SCALAR;
#endif
#if defined(__x86_64__)
    int by_library = 0;
#ifdef QR_HAVE_ONEDNN
    by_library = cpu.isa >= QR_ISA_AVX512 && has_vnni();
#endif
    cpu.avx_vnni = !by_library && cpu.isa >= QR_ISA_AVX2 && qr_gemm_has_vnni && has_avx_vnni();
    cpu.amx_int8 = cpu.isa == QR_ISA_AMX && has_amx_int8();
    cpu.native_int8 = by_library || cpu.avx_vnni;
#endif
#ifdef QR_HAVE_ONEDNN
    cpu.native_bf16 = cpu.isa >= QR_ISA_AVX512_BF16; /* our own kernels compute in f32 */
#endif
    cpu.n_usable = usable_cores();
    cpu.l2_bytes = l2_bytes();
    read_model_name(cpu.model, sizeof cpu.model);
}

const qr_cpu *qr_cpu_get(void)
{
    pthread_once(&once, detect);
    return &cpu;
}

void qr_cpu_features(char *text, size_t size)
{
    static const char *const lists[] = {"baseline only",
                                        "neon",
                                        "avx2 fma f16c",
                                        "avx2 fma f16c avx512",
                                        "avx2 fma f16c avx512 avx512_bf16",
                                        "avx2 fma f16c avx512 avx512_bf16 amx_bf16"};
    const qr_cpu *c = qr_cpu_get();
    if (c->isa == c->found) snprintf(text, size, "%s%s", lists[c->found], c->amx_int8 ? " amx_int8" : "");
    else snprintf(text, size, "%s (QR_CPU limits use to %s)", lists[c->found], names[c->isa]);
}
