/* See torch_lib.h. */
#define _GNU_SOURCE
#include "pytorch/torch_lib.h"

#include "base/file.h"
#include "base/mem.h"
#include "pytorch/find_torch.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A 64-bit slot of the dispatcher's stack: a handle, an integer, a truth value, the bits of a double, or for an optional NULL or the
 * address of another slot. */
typedef uint64_t slot;

/* From 2.10 on; the encoding of slots is that version's whatever library answers. */
static const uint64_t abi_version = (2ULL << 56) | (10ULL << 48);

/* name, result, parameters */
#define SYMBOLS(X)                                                                                                                         \
    X(aoti_torch_abi_version, uint64_t, (void) )                                                                                           \
    X(aoti_torch_dtype_float32, int32_t, (void) )                                                                                          \
    X(aoti_torch_dtype_bfloat16, int32_t, (void) )                                                                                         \
    X(aoti_torch_dtype_float16, int32_t, (void) )                                                                                          \
    X(aoti_torch_dtype_int32, int32_t, (void) )                                                                                            \
    X(aoti_torch_dtype_int64, int32_t, (void) )                                                                                            \
    X(aoti_torch_device_type_cpu, int32_t, (void) )                                                                                        \
    X(aoti_torch_device_type_cuda, int32_t, (void) )                                                                                       \
    X(aoti_torch_device_type_mps, int32_t, (void) )                                                                                        \
    X(aoti_torch_grad_mode_set_enabled, void, (_Bool))                                                                                     \
    X(aoti_torch_delete_tensor_object, int32_t, (qr_th))                                                                                   \
    X(aoti_torch_new_tensor_handle, int32_t, (qr_th, qr_th *) )                                                                            \
    X(aoti_torch_get_data_ptr, int32_t, (qr_th, void **) )                                                                                 \
    X(aoti_torch_get_dim, int32_t, (qr_th, int64_t *) )                                                                                    \
    X(aoti_torch_get_size, int32_t, (qr_th, int64_t, int64_t *) )                                                                          \
    X(aoti_torch_get_dtype, int32_t, (qr_th, int32_t *) )                                                                                  \
    X(aoti_torch_empty_strided, int32_t, (int64_t, const int64_t *, const int64_t *, int32_t, int32_t, int32_t, qr_th *) )                 \
    X(aoti_torch_create_tensor_from_blob, int32_t,                                                                                         \
      (void *, int64_t, const int64_t *, const int64_t *, int64_t, int32_t, int32_t, int32_t, qr_th *) )                                   \
    X(aoti_torch_copy_, int32_t, (qr_th, qr_th, int32_t))                                                                                  \
    X(torch_call_dispatcher, int32_t, (const char *, const char *, slot *, uint64_t))                                                      \
    X(torch_new_list_reserve_size, int32_t, (size_t, void **) )                                                                            \
    X(torch_list_push_back, int32_t, (void *, slot))

struct qr_torch {
    char name[4200], dir[4096], version[64];
    char cuda_trouble[256]; /* why its part for CUDA could not be loaded, "" if it was or there is none */
#define QR_X(name, result, parameters) result(*name) parameters;
    SYMBOLS(QR_X)
#undef QR_X
    /* Not in every version or build. */
    const char *(*what)(void); /* the last error's text, 2.13 */
    int32_t (*new_slot)(slot **);
    void *(*operator_new)(size_t); /* before 2.13, optionals are freed by C++'s delete */
    void (*set_num_threads)(int);
    int32_t (*add[3])(qr_th, qr_th, double, qr_th *); /* by qr_torch_device_type */
    int32_t (*empty_pinned)(int64_t, const int64_t *, const int64_t *, int32_t, int32_t, int32_t, qr_th *);
};

/* ---- loading -------------------------------------------------------------------------------------------------------------------- */

#ifdef __APPLE__
#define LIBRARY(name) "lib" name ".dylib"
#else
#define LIBRARY(name) "lib" name ".so"
#endif

/* Its own oneDNN and C++ library must not be mixed with those of this process. Sanitizers do not allow it, and macOS always does it. */
static int load_flags(void)
{
    int flags = RTLD_NOW | RTLD_LOCAL;
#if defined(RTLD_DEEPBIND) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#if defined(__has_feature)
#if !__has_feature(address_sanitizer) && !__has_feature(thread_sanitizer)
    flags |= RTLD_DEEPBIND;
#endif
#else
    flags |= RTLD_DEEPBIND;
#endif
#endif
    return flags;
}

/* ISO C has no cast from data to function pointers. */
static void take_symbol(void *function, void *library, const char *name)
{
    void *found = library != NULL ? dlsym(library, name) : NULL;
    memcpy(function, &found, sizeof found);
}

static qr_status fail_version(const qr_torch *t, const char *missing, qr_error *err)
{
    return qr_fail(err, QR_E_UNSUPPORTED, "expected PyTorch 2.10 or newer, found %s%s%s in %s",
                   t->version[0] != 0 ? t->version : "a libtorch", missing != NULL ? " without the symbol " : "",
                   missing != NULL ? missing : "", t->dir);
}

static qr_status take_symbols(qr_torch *t, void *cpu, void *cuda, qr_error *err)
{
    const char *missing = NULL;
    qr_torch_package_version(t->version, sizeof t->version, t->dir);
#define QR_X(name, result, parameters)                                                                                                     \
    take_symbol(&t->name, cpu, #name);                                                                                                     \
    if (t->name == NULL && missing == NULL) missing = #name;
    SYMBOLS(QR_X)
#undef QR_X
    if (missing != NULL) return fail_version(t, missing, err);
    take_symbol(&t->what, cpu, "torch_exception_get_what_without_backtrace");
    take_symbol(&t->new_slot, cpu, "torch_new_stable_ivalue");
    take_symbol(&t->operator_new, cpu, "_Znwm");
    take_symbol(&t->set_num_threads, cpu, "_ZN2at15set_num_threadsEi");
    take_symbol(&t->add[QR_TORCH_CPU], cpu, "aoti_torch_cpu_add_Tensor");
    take_symbol(&t->add[QR_TORCH_CUDA], cuda, "aoti_torch_cuda_add_Tensor");
    take_symbol(&t->add[QR_TORCH_MPS], cpu, "aoti_torch_mps_add_Tensor");
    take_symbol(&t->empty_pinned, cpu, "aoti_torch_empty_strided_pinned");
    uint64_t version = t->aoti_torch_abi_version();
    unsigned major = (unsigned) (version >> 56), minor = (unsigned) (version >> 48 & 0xff);
    if (t->version[0] == 0) snprintf(t->version, sizeof t->version, "%u.%u", major, minor);
    if (major < 2 || (major == 2 && minor < 10)) return fail_version(t, NULL, err);
    if (t->add[QR_TORCH_CPU] == NULL) return fail_version(t, "aoti_torch_cpu_add_Tensor", err);
    if (t->new_slot == NULL && t->operator_new == NULL) return fail_version(t, "torch_new_stable_ivalue", err);
    snprintf(t->name, sizeof t->name, "torch %s in %s", t->version, t->dir);
    return QR_OK;
}

static qr_status load(qr_torch *t, qr_error *err)
{
    char path[4200];
    snprintf(path, sizeof path, "%s/" LIBRARY("torch_cpu"), t->dir);
    void *cpu = dlopen(path, load_flags());
    if (cpu == NULL) return qr_fail(err, QR_E_UNSUPPORTED, "PyTorch cannot be loaded: %s", dlerror());
    /* Loading them registers the device. A driver that does not fit shows when the device is opened. */
    void *cuda = NULL;
    static const char *const others[] = {LIBRARY("torch_cuda"), LIBRARY("torch_hip")};
    for (size_t i = 0; i < sizeof others / sizeof others[0] && cuda == NULL; i++) {
        snprintf(path, sizeof path, "%s/%s", t->dir, others[i]);
        if (!qr_file_exists(path)) continue;
        cuda = dlopen(path, load_flags());
        if (cuda == NULL) snprintf(t->cuda_trouble, sizeof t->cuda_trouble, "%s", dlerror());
    }
    return take_symbols(t, cpu, cuda, err);
}

qr_status qr_torch_load(qr_torch **out, const char *dir, qr_error *err)
{
    enum { MAX_LOADED = 4 };
    static qr_torch *loaded[MAX_LOADED];
    static size_t n_loaded;
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    qr_torch *t = qr_calloc(1, sizeof *t);
    *out = NULL;
    if (t == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for PyTorch's functions");
    qr_status status = qr_torch_find(t->dir, sizeof t->dir, dir, err);
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < n_loaded && status == QR_OK; i++)
        if (strcmp(loaded[i]->dir, t->dir) == 0) *out = loaded[i];
    if (status == QR_OK && *out == NULL && n_loaded == MAX_LOADED)
        status = qr_fail(err, QR_E_UNSUPPORTED, "%s: %d other versions of PyTorch are loaded already", t->dir, MAX_LOADED);
    if (status == QR_OK && *out == NULL && (status = load(t, err)) == QR_OK) {
        *out = loaded[n_loaded++] = t;
        t = NULL;
    }
    pthread_mutex_unlock(&lock);
    qr_free(t);
    return status;
}

const char *qr_torch_name(const qr_torch *t) { return t->name; }

const char *qr_torch_cuda_trouble(const qr_torch *t) { return t->cuda_trouble; }

void qr_torch_thread_begin(qr_torch *t, int threads)
{
    t->aoti_torch_grad_mode_set_enabled(0);
    if (t->set_num_threads != NULL && threads > 0) t->set_num_threads(threads);
}

/* ---- devices -------------------------------------------------------------------------------------------------------------------- */

static int can_allocate(qr_torch *t, const qr_torch_device *d)
{
    int64_t one = 1;
    qr_th x = NULL;
    if (t->add[d->type] == NULL || t->aoti_torch_empty_strided(1, &one, &one, t->aoti_torch_dtype_float32(), d->code, d->index, &x) != 0)
        return 0;
    t->aoti_torch_delete_tensor_object(x);
    return 1;
}

static qr_torch_device device_of(qr_torch *t, qr_torch_device_type type, int index)
{
    int code = type == QR_TORCH_CPU    ? t->aoti_torch_device_type_cpu()
               : type == QR_TORCH_CUDA ? t->aoti_torch_device_type_cuda()
                                       : t->aoti_torch_device_type_mps();
    return (qr_torch_device){type, index, code};
}

qr_status qr_torch_device_open(qr_torch_device *out, qr_torch *t, const char *name, qr_error *err)
{
    int index = 0, any = name == NULL || strcmp(name, "auto") == 0, gpu = any || strcmp(name, "gpu") == 0;
    if (any || gpu) {
        *out = device_of(t, QR_TORCH_CUDA, 0);
        if (can_allocate(t, out)) return QR_OK;
        *out = device_of(t, QR_TORCH_MPS, 0);
        if (can_allocate(t, out)) return QR_OK;
        *out = device_of(t, QR_TORCH_CPU, 0);
        return any ? QR_OK : qr_fail(err, QR_E_UNSUPPORTED, "no device \"gpu\" for %s: it finds none", t->name);
    }
    if (strcmp(name, "cpu") == 0) {
        *out = device_of(t, QR_TORCH_CPU, 0);
        return QR_OK;
    }
    if (strcmp(name, "mps") == 0) *out = device_of(t, QR_TORCH_MPS, 0);
    else if (strcmp(name, "cuda") == 0 ||
             (strncmp(name, "cuda:", 5) == 0 && name[5] != 0 && strspn(name + 5, "0123456789") == strlen(name + 5))) {
        if (name[4] != 0) index = atoi(name + 5);
        *out = device_of(t, QR_TORCH_CUDA, index);
    } else return qr_fail(err, QR_E_UNSUPPORTED, "expected the device cpu, cuda, cuda:N or mps, found \"%s\"", name);
    if (can_allocate(t, out)) return QR_OK;
    const char *why = out->type == QR_TORCH_CUDA && t->cuda_trouble[0] != 0     ? t->cuda_trouble
                      : out->type == QR_TORCH_CUDA && t->add[out->type] == NULL ? "this build of it is without CUDA"
                      : t->add[out->type] == NULL                               ? "this build of it is without MPS"
                      : t->what != NULL                                         ? t->what()
                                                                                : "it finds none";
    return qr_fail(err, QR_E_UNSUPPORTED, "no device \"%s\" for %s: %.*s", name, t->name, (int) strcspn(why, "\n"), why);
}

/* By CUDA's driver, which is loaded where CUDA works; torch has made its context current for this thread. */
static void describe_cuda(int index, char *text, size_t size, size_t *free, size_t *total)
{
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    int (*get_name)(char *, int, int), (*get_memory)(size_t *, size_t *);
    take_symbol(&get_name, driver, "cuDeviceGetName");
    take_symbol(&get_memory, driver, "cuMemGetInfo_v2");
    char name[96] = "";
    if (get_name != NULL && get_name(name, sizeof name, index) == 0) snprintf(text, size, "cuda:%d, %s", index, name);
    if (get_memory != NULL && get_memory(free, total) != 0) *free = *total = 0;
}

void qr_torch_device_describe(const qr_torch *t, const qr_torch_device *d, char *text, size_t size, size_t *free, size_t *total)
{
    (void) t;
    *free = *total = 0;
    snprintf(text, size, d->type == QR_TORCH_CUDA ? "cuda:%d" : d->type == QR_TORCH_MPS ? "mps" : "cpu", d->index);
    if (d->type == QR_TORCH_CUDA) describe_cuda(d->index, text, size, free, total);
}

/* ---- scopes --------------------------------------------------------------------------------------------------------------------- */

void qr_torch_scope_init(qr_torch_scope *s, qr_torch *t, const qr_torch_device *device)
{
    *s = (qr_torch_scope){.t = t, .device = *device};
}

void qr_torch_scope_cut(qr_torch_scope *s, size_t n)
{
    while (s->n > n) qr_torch_free(s->t, s->handles[--s->n]);
}

void qr_torch_scope_deinit(qr_torch_scope *s)
{
    qr_torch_scope_cut(s, 0);
    qr_free(s->handles);
    s->handles = NULL;
    s->capacity = 0;
}

void qr_torch_free(qr_torch *t, qr_th x)
{
    if (x != NULL) t->aoti_torch_delete_tensor_object(x);
}

qr_th qr_torch_keep(qr_torch_scope *s, qr_th x)
{
    for (size_t i = s->n; i-- > 0;)
        if (s->handles[i] == x) {
            s->handles[i] = s->handles[--s->n];
            return x;
        }
    return NULL;
}

qr_th qr_torch_put(qr_torch_scope *s, qr_th x)
{
    qr_th *grown = qr_grow(s->handles, &s->capacity, s->n + 1, sizeof *grown);
    if (grown == NULL) {
        qr_torch_free(s->t, x);
        qr_fail(&s->error, QR_E_MEMORY, "no memory for a list of tensors");
        return NULL;
    }
    s->handles = grown;
    return s->handles[s->n++] = x;
}

void qr_torch_scope_cut_but(qr_torch_scope *s, size_t n, qr_th x)
{
    qr_th kept = x != NULL && s->n > n ? qr_torch_keep(s, x) : NULL;
    qr_torch_scope_cut(s, n);
    if (kept != NULL) qr_torch_put(s, kept);
}

qr_status qr_torch_scope_status(const qr_torch_scope *s, qr_error *err)
{
    return s->error.code == QR_OK ? QR_OK : qr_fail(err, s->error.code, "%s", s->error.msg);
}

static int failed(const qr_torch_scope *s) { return s->error.code != QR_OK; }

/* After a call that failed: torch's own words, one line of them. */
static qr_th fail(qr_torch_scope *s, const char *what)
{
    const char *why = s->t->what != NULL ? s->t->what() : "";
    int is_memory = strstr(why, "out of memory") != NULL || strstr(why, "not enough memory") != NULL;
    qr_fail(&s->error, is_memory ? QR_E_MEMORY : QR_E_BACKEND, "pytorch: %s failed: %.*s", what, (int) strcspn(why, "\n"), why);
    return NULL;
}

/* ---- calls by name -------------------------------------------------------------------------------------------------------------- */

/* A call takes what it is given, so it gets a handle of its own. */
static slot of_tensor(qr_torch_scope *s, qr_th x)
{
    qr_th own = NULL;
    if (x == NULL || s->t->aoti_torch_new_tensor_handle(x, &own) != 0) fail(s, "a handle");
    return (slot) (uintptr_t) own;
}

static slot of_double(double x)
{
    slot bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static slot of_int(int64_t x) { return (slot) x; }

static slot of_ints(qr_torch_scope *s, size_t n, const int64_t *values)
{
    void *list = NULL;
    if (s->t->torch_new_list_reserve_size(n, &list) != 0) fail(s, "a list");
    for (size_t i = 0; i < n && list != NULL; i++)
        if (s->t->torch_list_push_back(list, of_int(values[i])) != 0) fail(s, "a list");
    return (slot) (uintptr_t) list;
}

static slot of_optional(qr_torch_scope *s, slot value)
{
    slot *box = NULL;
    if (s->t->new_slot != NULL) s->t->new_slot(&box);
    else box = s->t->operator_new(sizeof *box);
    if (box == NULL) fail(s, "an optional value");
    else *box = value;
    return (slot) (uintptr_t) box;
}

enum { NOTHING = 0 }; /* an optional that is not given */

/* The first result of an operator. All arguments of its schema must be on the stack. */
static qr_th call(qr_torch_scope *s, const char *name, const char *overload, slot *stack)
{
    if (failed(s)) return NULL;
    if (s->t->torch_call_dispatcher(name, overload, stack, abi_version) != 0) return fail(s, name);
    return qr_torch_put(s, (qr_th) (uintptr_t) stack[0]);
}

/* ---- tensors -------------------------------------------------------------------------------------------------------------------- */

int qr_torch_dtype(const qr_torch *t, qr_dtype dtype)
{
    return dtype == QR_DTYPE_BF16  ? t->aoti_torch_dtype_bfloat16()
           : dtype == QR_DTYPE_F16 ? t->aoti_torch_dtype_float16()
                                   : t->aoti_torch_dtype_float32();
}

int qr_torch_int32(const qr_torch *t) { return t->aoti_torch_dtype_int32(); }

int qr_torch_int64(const qr_torch *t) { return t->aoti_torch_dtype_int64(); }

static void contiguous_strides(int n_dims, const int64_t *dims, int64_t *strides)
{
    int64_t step = 1;
    for (int i = n_dims; i-- > 0; step *= dims[i]) strides[i] = step;
}

qr_th qr_torch_view_of(qr_torch_scope *s, const void *data, int type, int n_dims, const int64_t *dims)
{
    int64_t strides[QR_TORCH_MAX_DIMS];
    qr_th x = NULL;
    if (failed(s)) return NULL;
    contiguous_strides(n_dims, dims, strides);
    if (s->t->aoti_torch_create_tensor_from_blob((void *) (uintptr_t) data, n_dims, dims, strides, 0, type,
                                                 s->t->aoti_torch_device_type_cpu(), 0, &x) != 0)
        return fail(s, "a tensor over memory");
    return qr_torch_put(s, x);
}

qr_th qr_torch_empty(qr_torch_scope *s, int type, int n_dims, const int64_t *dims)
{
    int64_t strides[QR_TORCH_MAX_DIMS];
    qr_th x = NULL;
    if (failed(s)) return NULL;
    contiguous_strides(n_dims, dims, strides);
    if (s->t->aoti_torch_empty_strided(n_dims, dims, strides, type, s->device.code, s->device.index, &x) != 0)
        return fail(s, "a new tensor");
    return qr_torch_put(s, x);
}

void qr_torch_copy(qr_torch_scope *s, qr_th to, qr_th from)
{
    if (!failed(s) && s->t->aoti_torch_copy_(to, from, 0) != 0) fail(s, "a copy");
}

/* A copy in page-locked memory, from which the GPU fetches by itself while this thread goes on; NULL if there is none. PyTorch keeps such
 * memory for reuse until the GPU has read it. */
static qr_th pinned_copy(qr_torch_scope *s, qr_th x, int type, int n_dims, const int64_t *dims)
{
    int64_t strides[QR_TORCH_MAX_DIMS];
    qr_th pinned = NULL;
    contiguous_strides(n_dims, dims, strides);
    if (failed(s) || s->device.type != QR_TORCH_CUDA || s->t->empty_pinned == NULL) return NULL;
    if (s->t->empty_pinned(n_dims, dims, strides, type, s->t->aoti_torch_device_type_cpu(), 0, &pinned) != 0) return NULL;
    qr_torch_put(s, pinned);
    qr_torch_copy(s, pinned, x);
    return pinned;
}

qr_th qr_torch_upload(qr_torch_scope *s, const void *data, int type, int n_dims, const int64_t *dims)
{
    qr_th from = qr_torch_view_of(s, data, type, n_dims, dims), to = qr_torch_empty(s, type, n_dims, dims);
    qr_th pinned = pinned_copy(s, from, type, n_dims, dims);
    if (!failed(s) && s->t->aoti_torch_copy_(to, pinned != NULL ? pinned : from, pinned != NULL) != 0) fail(s, "a copy");
    return to;
}

static int shape_of(qr_torch_scope *s, qr_th x, int64_t *dims)
{
    int64_t n = 0;
    if (failed(s)) return 0;
    if (s->t->aoti_torch_get_dim(x, &n) != 0 || n > QR_TORCH_MAX_DIMS) fail(s, "a shape");
    for (int64_t i = 0; i < n && !failed(s); i++)
        if (s->t->aoti_torch_get_size(x, i, &dims[i]) != 0) fail(s, "a shape");
    return (int) n;
}

qr_th qr_torch_to(qr_torch_scope *s, qr_th x, int type)
{
    int64_t dims[QR_TORCH_MAX_DIMS];
    int32_t own = 0;
    if (failed(s)) return NULL;
    if (s->t->aoti_torch_get_dtype(x, &own) != 0) return fail(s, "a type");
    if (own == type) return x;
    int n = shape_of(s, x, dims);
    qr_th to = qr_torch_empty(s, type, n, dims);
    qr_torch_copy(s, to, x);
    return to;
}

void qr_torch_download(qr_torch_scope *s, float *to, qr_th x, size_t n)
{
    int64_t dims = (int64_t) n;
    qr_th there = qr_torch_view_of(s, to, s->t->aoti_torch_dtype_float32(), 1, &dims);
    qr_torch_copy(s, there, qr_torch_reshape(s, x, 1, &dims));
}

void *qr_torch_data(qr_torch_scope *s, qr_th x)
{
    void *data = NULL;
    if (!failed(s) && s->t->aoti_torch_get_data_ptr(x, &data) != 0) fail(s, "an address");
    return data;
}

int64_t qr_torch_size(qr_torch_scope *s, qr_th x, int dim)
{
    int64_t size = 0;
    if (!failed(s) && s->t->aoti_torch_get_size(x, dim, &size) != 0) fail(s, "a size");
    return size;
}

qr_th qr_torch_reshape(qr_torch_scope *s, qr_th x, int n_dims, const int64_t *dims)
{
    if (failed(s)) return NULL;
    slot stack[] = {of_tensor(s, x), of_ints(s, (size_t) n_dims, dims)};
    return call(s, "aten::reshape", "", stack);
}

qr_th qr_torch_narrow(qr_torch_scope *s, qr_th x, int dim, int64_t start, int64_t length)
{
    if (failed(s)) return NULL;
    slot stack[] = {of_tensor(s, x), of_int(dim), of_int(start), of_int(length)};
    return call(s, "aten::narrow", "", stack);
}

qr_th qr_torch_transpose(qr_torch_scope *s, qr_th x, int a, int b)
{
    if (failed(s)) return NULL;
    slot stack[] = {of_tensor(s, x), of_int(a), of_int(b)};
    return call(s, "aten::transpose", "int", stack);
}

qr_th qr_torch_contiguous(qr_torch_scope *s, qr_th x)
{
    int64_t dims[QR_TORCH_MAX_DIMS];
    int32_t type = 0;
    int n = shape_of(s, x, dims);
    if (!failed(s) && s->t->aoti_torch_get_dtype(x, &type) != 0) return fail(s, "a type");
    qr_th to = qr_torch_empty(s, type, n, dims);
    qr_torch_copy(s, to, x);
    return to;
}

qr_th qr_torch_expand(qr_torch_scope *s, qr_th x, int n_dims, const int64_t *dims)
{
    if (failed(s)) return NULL;
    slot stack[] = {of_tensor(s, x), of_ints(s, (size_t) n_dims, dims), of_int(0)};
    return call(s, "aten::expand", "", stack);
}

qr_th qr_torch_cat(qr_torch_scope *s, qr_th *parts, size_t n, int dim)
{
    void *list = NULL;
    if (failed(s)) return NULL;
    if (n == 1) return parts[0];
    if (s->t->torch_new_list_reserve_size(n, &list) != 0) return fail(s, "a list");
    for (size_t i = 0; i < n; i++)
        if (s->t->torch_list_push_back(list, of_tensor(s, parts[i])) != 0) return fail(s, "a list");
    slot stack[] = {(slot) (uintptr_t) list, of_int(dim)};
    return call(s, "aten::cat", "", stack);
}

qr_th qr_torch_index_select(qr_torch_scope *s, qr_th x, int dim, qr_th index)
{
    if (failed(s)) return NULL;
    slot stack[] = {of_tensor(s, x), of_int(dim), of_tensor(s, index)};
    return call(s, "aten::index_select", "", stack);
}

qr_th qr_torch_linear(qr_torch_scope *s, qr_th x, qr_th weight)
{
    if (failed(s)) return NULL;
    slot stack[] = {of_tensor(s, x), of_tensor(s, weight), NOTHING};
    return call(s, "aten::linear", "", stack);
}

qr_th qr_torch_rms_norm(qr_torch_scope *s, qr_th x, qr_th weight, double eps)
{
    if (failed(s)) return NULL;
    int64_t width = qr_torch_size(s, weight, 0);
    slot stack[] = {of_tensor(s, x), of_ints(s, 1, &width), of_optional(s, of_tensor(s, weight)), of_optional(s, of_double(eps))};
    return call(s, "aten::rms_norm", "", stack);
}

qr_th qr_torch_silu(qr_torch_scope *s, qr_th x)
{
    if (failed(s)) return NULL;
    slot stack[] = {of_tensor(s, x)};
    return call(s, "aten::silu", "", stack);
}

qr_th qr_torch_mul(qr_torch_scope *s, qr_th a, qr_th b)
{
    if (failed(s)) return NULL;
    slot stack[] = {of_tensor(s, a), of_tensor(s, b)};
    return call(s, "aten::mul", "Tensor", stack);
}

/* Not by the dispatcher, whose stack has no room for the factor that its schema wants. */
qr_th qr_torch_add(qr_torch_scope *s, qr_th a, qr_th b)
{
    qr_th sum = NULL;
    if (failed(s)) return NULL;
    if (s->t->add[s->device.type](a, b, 1, &sum) != 0) return fail(s, "aten::add");
    return qr_torch_put(s, sum);
}

qr_th qr_torch_roll(qr_torch_scope *s, qr_th x, int64_t shift, int dim)
{
    int64_t at = dim;
    if (failed(s)) return NULL;
    slot stack[] = {of_tensor(s, x), of_ints(s, 1, &shift), of_ints(s, 1, &at)};
    return call(s, "aten::roll", "", stack);
}

qr_th qr_torch_sdpa(qr_torch_scope *s, qr_th q, qr_th k, qr_th v, qr_th mask, int causal, double scale)
{
    if (failed(s)) return NULL;
    slot stack[] = {of_tensor(s, q),
                    of_tensor(s, k),
                    of_tensor(s, v),
                    mask != NULL ? of_optional(s, of_tensor(s, mask)) : NOTHING,
                    of_double(0),
                    of_int(causal),
                    of_optional(s, of_double(scale)),
                    of_int(1)};
    return call(s, "aten::scaled_dot_product_attention", "", stack);
}

/* 15 arguments in 2.10, 17 in 2.13: a call takes as many as its schema has, and those not given are 0 in all. Five results. */
qr_th qr_torch_flash(qr_torch_scope *s, qr_th q, qr_th k, qr_th v, qr_th cum_q, qr_th cum_k, int64_t max_q, int64_t max_k, double scale)
{
    if (failed(s)) return NULL;
    slot stack[24] = {of_tensor(s, q),
                      of_tensor(s, k),
                      of_tensor(s, v),
                      of_optional(s, of_tensor(s, cum_q)),
                      of_optional(s, of_tensor(s, cum_k)),
                      of_int(max_q),
                      of_int(max_k),
                      of_double(0),
                      of_int(1),
                      of_int(0),
                      of_optional(s, of_double(scale))};
    qr_th out = call(s, "aten::_flash_attention_forward", "", stack);
    for (size_t i = 1; i < 5 && out != NULL; i++) qr_torch_free(s->t, (qr_th) (uintptr_t) stack[i]);
    return out;
}
