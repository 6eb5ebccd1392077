/* PyTorch's C++ library, used from C: found and loaded at run time, nothing of it is needed to build.
 *
 * Symbols are those of the stable C interface that PyTorch gives to compiled models (torch/csrc/stable/c/shim.h and
 * torch/csrc/inductor/aoti_torch/c/shim.h), version 2.10 and newer. Operators are called by name through the dispatcher. */
#ifndef QR_PYTORCH_TORCH_LIB_H
#define QR_PYTORCH_TORCH_LIB_H

#include "engine/backend.h"

typedef struct qr_torch qr_torch;   /* the loaded library; one per folder, never unloaded */
typedef struct torch_tensor *qr_th; /* a tensor's handle; NULL after a failure */
enum { QR_TORCH_MAX_DIMS = 4 };

typedef enum qr_torch_device_type { QR_TORCH_CPU, QR_TORCH_CUDA, QR_TORCH_MPS } qr_torch_device_type;
typedef struct qr_torch_device {
    qr_torch_device_type type;
    int index;
    int code; /* torch's number for the type */
} qr_torch_device;

/* dir: a folder with libtorch_cpu, or one that has it in lib/; NULL: the torch that python3 would import. */
qr_status qr_torch_load(qr_torch **out, const char *dir, qr_error *err);
/* "torch 2.13 in DIR" */
const char *qr_torch_name(const qr_torch *t);
/* Why its part for CUDA could not be loaded; "" if it was, or if there is none. */
const char *qr_torch_cuda_trouble(const qr_torch *t);
/* name: "cpu", "cuda", "cuda:1", "mps", "gpu" or NULL, "auto": the best. E_UNSUPPORTED if it is not there. */
qr_status qr_torch_device_open(qr_torch_device *out, qr_torch *t, const char *name, qr_error *err);
/* "cpu" or "cuda:0, NVIDIA H100" to text; bytes free and in all, 0 where they are not known. */
void qr_torch_device_describe(const qr_torch *t, const qr_torch_device *device, char *text, size_t size, size_t *free, size_t *total);
/* For the calling thread: intra-op threads, no gradients. */
void qr_torch_thread_begin(qr_torch *t, int threads);

/* ---- tensors -------------------------------------------------------------------------------------------------------------------- */

/* Tensors made in a scope live until it is cut back; the first failure makes all that follows do nothing, so that a computation is written
 * as one. */
typedef struct qr_torch_scope {
    qr_torch *t;
    qr_torch_device device;
    qr_th *handles; /* [n] */
    size_t n, capacity;
    qr_error error; /* code QR_OK: nothing has failed */
} qr_torch_scope;

void qr_torch_scope_init(qr_torch_scope *s, qr_torch *t, const qr_torch_device *device);
void qr_torch_scope_cut(qr_torch_scope *s, size_t n);              /* keeps the first n; also after a failure */
void qr_torch_scope_cut_but(qr_torch_scope *s, size_t n, qr_th x); /* keeps x, too, which becomes the n-th; NULL: as cut */
void qr_torch_scope_deinit(qr_torch_scope *s);
qr_status qr_torch_scope_status(const qr_torch_scope *s, qr_error *err);
/* Takes the tensor out of the scope: the caller frees it. */
qr_th qr_torch_keep(qr_torch_scope *s, qr_th x);
qr_th qr_torch_put(qr_torch_scope *s, qr_th x); /* gives it back */
void qr_torch_free(qr_torch *t, qr_th x);

/* dtype: QR_DTYPE_F32, BF16, F16. */
int qr_torch_dtype(const qr_torch *t, qr_dtype dtype);
/* Over memory that outlives the tensor, on the CPU; strides are those of a contiguous one. `type` is torch's number. */
qr_th qr_torch_view_of(qr_torch_scope *s, const void *data, int type, int n_dims, const int64_t *dims);
/* Copies to the scope's device; `data` may go afterwards. */
qr_th qr_torch_upload(qr_torch_scope *s, const void *data, int type, int n_dims, const int64_t *dims);
int qr_torch_int32(const qr_torch *t);
int qr_torch_int64(const qr_torch *t);
qr_th qr_torch_empty(qr_torch_scope *s, int type, int n_dims, const int64_t *dims);
void qr_torch_copy(qr_torch_scope *s, qr_th to, qr_th from); /* converts type and device */
qr_th qr_torch_to(qr_torch_scope *s, qr_th x, int type);     /* x itself if it has that type */
/* Elements of a contiguous f32 tensor, to memory of this process. */
void qr_torch_download(qr_torch_scope *s, float *to, qr_th x, size_t n);
/* The elements of a contiguous tensor on the CPU. */
void *qr_torch_data(qr_torch_scope *s, qr_th x);
int64_t qr_torch_size(qr_torch_scope *s, qr_th x, int dim);
/* Another look at a contiguous tensor. */
qr_th qr_torch_reshape(qr_torch_scope *s, qr_th x, int n_dims, const int64_t *dims);
/* x[..., start : start + length, ...] along dim */
qr_th qr_torch_narrow(qr_torch_scope *s, qr_th x, int dim, int64_t start, int64_t length);
qr_th qr_torch_transpose(qr_torch_scope *s, qr_th x, int a, int b);
qr_th qr_torch_contiguous(qr_torch_scope *s, qr_th x);
qr_th qr_torch_expand(qr_torch_scope *s, qr_th x, int n_dims, const int64_t *dims);
qr_th qr_torch_cat(qr_torch_scope *s, qr_th *parts, size_t n, int dim);
qr_th qr_torch_index_select(qr_torch_scope *s, qr_th x, int dim, qr_th index);
qr_th qr_torch_linear(qr_torch_scope *s, qr_th x, qr_th weight);
qr_th qr_torch_rms_norm(qr_torch_scope *s, qr_th x, qr_th weight, double eps);
qr_th qr_torch_silu(qr_torch_scope *s, qr_th x);
qr_th qr_torch_mul(qr_torch_scope *s, qr_th a, qr_th b);
qr_th qr_torch_add(qr_torch_scope *s, qr_th a, qr_th b);
qr_th qr_torch_roll(qr_torch_scope *s, qr_th x, int64_t shift, int dim);
/* q [B, heads, L, d], k and v [B, kv_heads, M, d]; mask: additive [.., L, M] or NULL; causal only without a mask and for L = M. */
qr_th qr_torch_sdpa(qr_torch_scope *s, qr_th q, qr_th k, qr_th v, qr_th mask, int causal, double scale);
/* Causal attention of sequences that lie side by side: q [Q, heads, d], k and v [K, kv_heads, d]; cum_q and cum_k [sequences + 1] int32:
 * where each begins, and the end. The last query of a sequence sees its last key. Result [Q, heads, d]. CUDA only, in 16-bit types. */
qr_th qr_torch_flash(qr_torch_scope *s, qr_th q, qr_th k, qr_th v, qr_th cum_q, qr_th cum_k, int64_t max_q, int64_t max_k, double scale);

#endif
