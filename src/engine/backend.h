/* The interface between the engine and whatever computes: our CPU engine, PyTorch, MLX, a vLLM server.
 *
 * Token ids go in, the logits of "yes" and "no" come out. Tokenizing, truncation, the sigmoid and the order stay in the engine, so that
 * every backend sees the same ids and is judged by the same golden scores. A backend is one table of functions; a plug-in exports one
 * table and nothing else.
 *
 * Threads: open, warm_up, score, stats and close of one backend are called from one and the same thread (the engine's), one at a time.
 * probe may be called from any thread.
 */
#ifndef QR_ENGINE_BACKEND_H
#define QR_ENGINE_BACKEND_H

#include "base/error.h"
#include "model/weights.h"

/* Raised when a field changes meaning; fields are only appended. A plug-in must also be of the same QR_VERSION, as it reads qr_model. */
enum { QR_BACKEND_ABI = 3 };

/* Room for a line that says why a backend can or cannot be used, with a path or two. */
enum { QR_REASON_SIZE = 512 };

/* What a usable backend's probe gives; the highest is chosen. Our own engine comes before what others compute on the CPU. */
enum {
    QR_GRADE_NONE = 0, /* cannot be used here */
    QR_GRADE_MLX_CPU = 2,
    QR_GRADE_TORCH_CPU = 5,
    QR_GRADE_CPU = 10,
    QR_GRADE_MLX_CUDA = 15,
    QR_GRADE_TORCH_GPU = 20,
    QR_GRADE_VLLM = 30,
    QR_GRADE_MLX_GPU = 40,
};

/* vLLM servers, as in qr_options. Members may be NULL or 0. */
typedef struct qr_vllm_place {
    const char *const *urls; /* [n_urls] */
    size_t n_urls;
    const char *model, *api_key, *protocol, *ca_file;
    double timeout_seconds, wait_seconds;
    int hedge;
} qr_vllm_place;

/* Where a backend looks for what it needs, and where it computes. Members may be NULL. */
typedef struct qr_backend_place {
    const char *device;     /* "cpu", "gpu", "cuda", "cuda:1", "cuda:0,cuda:1", "mps"; NULL or "auto": the best one */
    const char *torch_dir;  /* folder with libtorch_cpu.so or .dylib, or one that has it in lib/; NULL: the one that python3 would import */
    const char *plugin_dir; /* folder with qwen-rerank-NAME.so; NULL: see plugin.h */
    qr_vllm_place vllm;
} qr_backend_place;

/* One prompt: the ids of its prefix followed by its own. Its score must equal that of the concatenation computed alone. */
typedef struct qr_seq {
    const uint32_t *ids; /* [n_ids], at least 1 */
    size_t n_ids;
    size_t prefix; /* index into qr_batch.prefixes */
} qr_seq;

typedef struct qr_prefix {
    const uint32_t *ids; /* [n_ids]; n_ids 0: nothing shared */
    size_t n_ids;
} qr_prefix;

/* A packed batch: no padding, sequences of different lengths side by side. All pointers are borrowed for the call. */
typedef struct qr_batch {
    const qr_prefix *prefixes; /* [n_prefixes] */
    size_t n_prefixes;
    const qr_seq *seqs; /* [n_seqs], those of one prefix next to each other */
    size_t n_seqs;
    const volatile int *cancel; /* or NULL; polled at least every 100 ms of work; non-zero: return E_CANCELLED */
} qr_batch;

typedef struct qr_logits {
    float yes, no; /* a backend that knows only the difference gives it as yes, and no = 0 */
} qr_logits;

/* A batch in work, for backends that can have several. */
typedef struct qr_work {
    qr_batch batch; /* its `cancel` is not looked at */
    qr_logits *out; /* [batch.n_seqs] */
    void *owner;    /* the caller's */
    void *state;    /* the backend's */
    qr_status status;
    qr_error error;
    struct qr_work *next; /* the backend's */
} qr_work;

/* By what a backend that keeps the model elsewhere finds out that it is the right one: a text as our tokenizer has it, special tokens
 * recognised, and prompts whose scores must be alike wherever the model is. */
typedef struct qr_sample {
    const char *text;
    const uint32_t *text_ids; /* [n_text_ids] */
    size_t n_text_ids;
    qr_batch prompts;
} qr_sample;

/* One of several servers behind a backend. */
typedef struct qr_replica {
    char name[256], state[16], protocol[24], model[128];
    char why_protocol[256];        /* why it is asked that way */
    char version[32], address[64]; /* of vLLM, and where it was reached; "": not known */
    char reason[256];              /* why it is not up, or "" */
    size_t max_model_len;          /* tokens of a prompt that it takes, and of what it generates; 0: not known */
    size_t in_flight;              /* requests that it has in work */
    double limit;                  /* how many of them it may have */
    uint64_t in_flight_tokens, requests, documents, tokens, errors, overloads, ejections, hedges, hedges_won;
    double seconds;        /* that answered requests took, together */
    double sample_seconds; /* that the prompts of its latest check took */
} qr_replica;

typedef struct qr_backend_cfg {
    const qr_model *model; /* borrowed until close; NULL for a backend that keeps the model elsewhere (needs_model 0) */
    const char *model_dir; /* "builtin": no folder, the model is only in `model` */
    uint32_t yes_id, no_id;
    qr_dtype dtype;          /* AUTO: the backend chooses */
    int threads;             /* 0: the backend chooses */
    size_t max_length;       /* longest prefix + sequence that score will be given */
    size_t max_batch_tokens; /* the engine aims at batches of this many own tokens; a single longer sequence comes alone */
    size_t max_batch_documents, max_concurrent; /* as in qr_options; the scheduler sees to them */
    size_t prefix_cache_bytes;                  /* 0: keep the latest prefix only */
    int batch_is_default;                       /* nobody asked for max_batch_tokens: info may name another one */
    qr_backend_place place;                     /* borrowed until close */
    qr_switch flash_attention, compile;         /* as in qr_options */
    size_t memory_limit;                        /* bytes that may be planned for; 0: what is free; QR_SIZE_NONE: any */
    qr_log_fn log;                              /* or NULL */
    void *log_arg;
    const qr_sample *sample;   /* for backends without needs_model; borrowed until close */
    const uint32_t *first_ids; /* [n_first_ids], what every prompt with the default instruction begins with; borrowed until close */
    size_t n_first_ids;
    const qr_batch *calibration; /* prompts to check 8-bit products with (calibration.h), or NULL; borrowed for open */
    qr_memory memory;            /* as in qr_options */
    const char *cache_dir;       /* as in qr_options; borrowed for open */
} qr_backend_cfg;

typedef struct qr_backend_info {
    char device[128]; /* one line for people */
    char dtype[16];   /* the one in force */
    int threads;
    size_t memory_bytes; /* planned: weights as held, activations, caches when full; on the device where there is one */
    size_t batch_tokens; /* own tokens that it computes best together, where cfg.batch_is_default; 0: cfg.max_batch_tokens */
} qr_backend_info;

typedef struct qr_backend_stats {
    uint64_t computed_tokens, prefix_hits, prefix_misses;
    double stage_seconds[QR_N_STAGES]; /* zeros from a backend that does not know */
} qr_backend_stats;

typedef struct qr_backend qr_backend; /* each backend's own */

typedef struct qr_backend_ops {
    uint32_t abi; /* QR_BACKEND_ABI */
    const char *name;
    int needs_model; /* 1: cfg.model must be open */
    /* A QR_GRADE. Writes one line why (also when usable: what it found) to why[0..size). No side effects beyond loading libraries. */
    int (*probe)(const qr_backend_place *place, char *why, size_t size);
    /* Not NULL: probe loads libraries that are not ours. It is then called in a child process first, together with a check of known
     * scores (self_check.h), and this gives at once, without loading anything, the highest grade that probe could give. */
    int (*promise)(const qr_backend_place *place);
    qr_status (*open)(qr_backend **out, const qr_backend_cfg *cfg, qr_error *err);
    void (*close)(qr_backend *backend);
    /* Runs a tiny batch so that the first real one is not slow. NULL: nothing to warm up. */
    qr_status (*warm_up)(qr_backend *backend, qr_error *err);
    qr_status (*score)(qr_backend *backend, const qr_batch *batch, qr_logits *out /* [n_seqs] */, qr_error *err);
    void (*info)(const qr_backend *backend, qr_backend_info *out);
    void (*stats)(const qr_backend *backend, qr_backend_stats *out);

    /* For backends that compute elsewhere, where waiting for one batch before the next begins would leave servers idle and let the slowest
     * hold up everyone: all of these, or, as with what computes here, none. Called from the engine's thread, but for the last two, which
     * any thread may call. */
    /* 1 if another batch could be begun at once. */
    int (*has_room)(const qr_backend *backend);
    /* Returns at once; work, and what its batch points to, stay in place until `wait` or `withdraw` gives them back. */
    qr_status (*begin)(qr_backend *backend, qr_work *work, qr_error *err);
    /* Gives up a batch that has not been given back. */
    void (*withdraw)(qr_backend *backend, qr_work *work);
    /* A batch that has ended, with its status and error; NULL after so many seconds or after `wake`. */
    qr_work *(*wait)(qr_backend *backend, double seconds);
    void (*wake)(qr_backend *backend);
    /* Fills out[0..capacity) and returns how many servers there are. */
    size_t (*replicas)(qr_backend *backend, qr_replica *out, size_t capacity);
} qr_backend_ops;

/* Names of the backends that this version knows, in order of preference among equals, NULL at the end. */
extern const char *const qr_backend_names[];
/* The grade of a backend of that list, and why; plug-ins and foreign libraries are tried in a child process, once for each place. */
int qr_backend_probe(const char *name, const qr_backend_place *place, char *why, size_t size);
/* The same without trying anything: -1 for what has not been tried. */
int qr_backend_probed(const char *name, const qr_backend_place *place, char *why, size_t size);
/* Whether a backend of that list computes what it should there, by self_check.h; foreign libraries in a child process. `why` says by how
 * much it is off, or what is wrong. UNSUPPORTED: there is no such device, or not with that type. */
typedef enum qr_check { QR_CHECK_UNSUPPORTED = 0, QR_CHECK_OK, QR_CHECK_FAILED } qr_check;
qr_check qr_backend_check(const char *name, const qr_backend_place *place, qr_dtype dtype, qr_switch flash_attention, char *why,
                          size_t size);
/* Both in this process: what the child does. */
qr_check qr_backend_check_here(const char *name, const qr_backend_place *place, qr_dtype dtype, qr_switch flash_attention, char *why,
                               size_t size);
int qr_backend_probe_here(const char *name, const qr_backend_place *place, char *why, size_t size);
/* name NULL or "auto": the one with the highest grade; several, joined by commas: the first that is usable. E_NOT_FOUND lists what there
 * is; E_UNSUPPORTED says why it cannot be used. place may be NULL. */
qr_status qr_backend_choose(const qr_backend_ops **out, const char *name, const qr_backend_place *place, qr_error *err);

#endif
