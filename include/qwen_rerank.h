/* qwen-rerank: scores documents against queries with Qwen3-Reranker models.
 *
 * The whole public interface: open an engine on a model folder, score queries against documents, close it. Texts go in, P(yes) comes
 * out; tokens, tensors and backends stay inside. Plain C17, usable from C++ and through any foreign-function interface.
 *
 * Rules that hold everywhere:
 *  - An options struct filled with zeros means "good defaults". New fields are only ever appended.
 *  - Functions return QR_OK (0) or another qr_status and then fill *err, which is the last parameter and may be NULL.
 *  - Texts are UTF-8 with a length; they need no terminating NUL and may contain NUL. The library never keeps them after a call returns.
 *  - Nothing here prints, exits, or changes global state.
 */
#ifndef QWEN_RERANK_H
#define QWEN_RERANK_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define QR_API
#else
#define QR_API __attribute__((visibility("default")))
#endif

/* name, HTTP status that a service answers with, text */
#define QR_STATUS_MAP(X)                                                                                                                   \
    X(OK, 200, "ok")                                                                                                                       \
    X(E_ARG, 400, "bad argument")          /* the caller broke this header's contract, or an option has a bad value */                     \
    X(E_INPUT, 400, "bad input")           /* a query or document cannot be scored as given */                                             \
    X(E_TOO_LONG, 400, "input too long")   /* the query does not fit the token budget */                                                   \
    X(E_NOT_FOUND, 404, "not found")       /* no such model, file or backend */                                                            \
    X(E_IO, 500, "input/output error")     /* a file exists but cannot be read */                                                          \
    X(E_FORMAT, 500, "malformed file")     /* a model or tokenizer file is broken */                                                       \
    X(E_UNSUPPORTED, 501, "not supported") /* well formed, but of a kind that this program does not run */                                 \
    X(E_MEMORY, 500, "out of memory")                                                                                                      \
    X(E_BACKEND, 500, "backend failure") /* the compute library failed or gave a result that is not a number */                            \
    X(E_CANCELLED, 499, "cancelled")                                                                                                       \
    X(E_TIMEOUT, 504, "time is up")                                                                                                        \
    X(E_UNAVAILABLE, 503, "service unavailable") /* no server behind a backend could answer; later one may */

typedef enum qr_status {
#define QR_X(name, http, text) QR_##name,
    QR_STATUS_MAP(QR_X)
#undef QR_X
} qr_status;

/* Filled when a call fails. The message says what, where, what was expected and what was found. */
typedef struct qr_error {
    qr_status code;
    char msg[508];
} qr_error;

/* Static text for a status, for example "bad input"; never NULL. */
QR_API const char *qr_status_text(qr_status code);
/* HTTP status code that fits, for example 400. */
QR_API int qr_status_http(qr_status code);
/* "0.1.0"; also the version of the shared library. */
QR_API const char *qr_version(void);

typedef enum qr_dtype {
    QR_DTYPE_AUTO = 0, /* bf16 where the CPU multiplies it natively, else f32 */
    QR_DTYPE_F32,      /* exact mode: f32 activations and arithmetic; 16-bit weights are widened, which loses nothing */
    QR_DTYPE_BF16,     /* bf16 matrix products with f32 sums; residual stream, norms, RoPE and attention stay f32 */
    QR_DTYPE_F16,      /* for backends that have it; the CPU engine has not */
    QR_DTYPE_INT8, /* 8-bit matrix products, on processors with VNNI; the model is tried at the start and refused if it loses too much */
} qr_dtype;

/* A choice that may be left to the library. */
typedef enum qr_switch { QR_DEFAULT = 0, QR_ON, QR_OFF } qr_switch;

/* How the CPU engine holds weights: unpacked once, or as the file has them, each part unpacked whenever it is used. Same scores. */
typedef enum qr_memory {
    QR_MEMORY_AUTO = 0, /* fast where that fits with room to spare, else small */
    QR_MEMORY_FAST,
    QR_MEMORY_SMALL,
} qr_memory;

typedef enum qr_log_level { QR_LOG_ERROR = 1, QR_LOG_WARN, QR_LOG_INFO, QR_LOG_DEBUG } qr_log_level;
/* Called from the thread that opens the engine and from the engine's own thread; `message` is one line without a line end. */
typedef void (*qr_log_fn)(void *arg, qr_log_level level, const char *message);

#define QR_SIZE_NONE ((size_t) -1) /* "none at all", where 0 would mean the default */

typedef struct qr_options {
    /* Required: a folder with config.json, tokenizer.json and model.safetensors (or its shards and index); a GGUF file, or a folder
     * with one; or "builtin", the small demo model that is part of the library where it was built with it (else E_NOT_FOUND). A folder of
     * that name is "./builtin". */
    const char *model;
    const char *backend; /* NULL or "auto": the best one present; else its name, "cpu"; or several, "mlx,cpu": the first that is usable */
    qr_dtype dtype;
    int threads;               /* 0: the physical cores that this process may use */
    size_t max_length;         /* longest prompt in tokens, template included; 0: 8192, or the model's own limit if lower */
    size_t max_batch_tokens;   /* tokens computed together; 0: 2048. A longer prompt still works. Changes memory and speed, not scores */
    size_t prefix_cache_bytes; /* bound of the cache of computed query prefixes; 0: 256 MiB; QR_SIZE_NONE: only the latest query's */
    const char *instruction;   /* default instruction; NULL: the model card's web-search instruction; "" is used as it is */
    /* Prompt of another model of this family. NULL: canonical. The body is query_template followed by document_template; {instruction},
     * {query} and {document} are replaced once and never inside user text. Special tokens are recognised in these four strings only. */
    const char *prefix, *suffix, *query_template, *document_template;
    const char *yes_token, *no_token; /* NULL: "yes" and "no"; each must be a single token */
    qr_log_fn log;                    /* NULL: silent */
    void *log_arg;
    size_t result_cache_bytes; /* bound of a cache of scores, by prompt; 0: none */
    size_t memory_limit;       /* bytes that the backend may plan for; 0: what the machine, or the container, has free; QR_SIZE_NONE: any */
    size_t max_batch_documents; /* documents computed together, beside max_batch_tokens; 0: any number */
    size_t max_concurrent;      /* calls whose documents are computed at the same time, others wait; 0: any number */
    const char *device; /* of backends that have several: "cpu", "cuda", "cuda:1", "cuda:0,cuda:1", "mps"; NULL or "auto": the best */
    qr_switch flash_attention; /* pytorch: attention over packed sequences by CUDA's flash kernels; by default where they work */
    qr_switch compile;         /* mlx: compile the graph; by default where it is faster */
    int vllm_hedge;            /* vllm: 1: what takes longer than 95 of 100 requests is asked of a second server as well; at most 1 in 20 */
    int warm_up;               /* 1: run a tiny batch while opening, so that the first call is as fast as the next */
    const char *torch_dir;     /* pytorch: folder of libtorch; NULL: the torch that python3 would import */
    const char *plugin_dir;    /* folder of backends built as plug-ins; NULL: beside the program or library */
    /* The backend vllm: servers elsewhere that have the model; `model` then needs only config.json and tokenizer.json. */
    const char *const *vllm_urls; /* [n_vllm_urls] "http://HOST:8000"; a name with several addresses stands for as many servers */
    size_t n_vllm_urls;
    const char *vllm_model;      /* its name there; NULL: the first that a server names */
    const char *vllm_api_key;    /* or NULL */
    const char *vllm_protocol;   /* "completions", "classify", "generative-scoring"; NULL: the first of these that a server has */
    const char *vllm_ca_file;    /* certificates to trust, PEM; NULL: the system's */
    double vllm_timeout_seconds; /* for the answer to one request; 0: 120 */
    double vllm_wait_seconds;    /* how long opening waits for a server that cannot be reached yet; 0: not at all; -1: it needs none */
    qr_memory memory;            /* cpu: how weights are held */
    const char *cache_dir; /* cpu: folder for what the next start need not find out again (int8); made if missing; NULL: nothing is kept */
} qr_options;

typedef struct qr_engine qr_engine;

/* Opens a model. Blocks while weights are read and packed. On success *out must be closed with qr_engine_close. */
QR_API qr_status qr_engine_open(qr_engine **out, const qr_options *options, qr_error *err);
/* Waits for calls in progress, then frees everything. Accepts NULL. No other call may use the engine once this one has begun.
 * An engine works in the process that opened it only: in one forked from that, qr_score fails and this does nothing. */
QR_API void qr_engine_close(qr_engine *engine);

typedef struct qr_text {
    const char *data; /* UTF-8; invalid sequences are replaced by U+FFFD and flagged. NULL only if len is 0 */
    size_t len;       /* bytes */
} qr_text;

/* What happens to a document that is too long. */
typedef enum qr_truncation {
    QR_TRUNCATE_END = 0, /* its end is cut */
    QR_TRUNCATE_START,   /* its beginning is cut */
    QR_TRUNCATE_NEVER,   /* the call fails with E_TOO_LONG, which names the document */
} qr_truncation;

typedef struct qr_query {
    qr_text query;
    const qr_text *instruction; /* NULL: the engine's default; an empty text is used as it is */
    const qr_text *documents;   /* [n_documents] */
    size_t n_documents;         /* 0 is allowed and gives no results */
    size_t max_length;          /* 0: the engine's; else a lower limit on the whole prompt, in tokens */
    size_t max_document_tokens; /* 0: none; else a limit on each document's own tokens, beside that on the prompt */
    qr_truncation truncation;
} qr_query;

enum {
    QR_RESULT_DONE = 1 << 0,      /* the numbers below are valid; not set on what a cancelled call did not reach */
    QR_RESULT_TRUNCATED = 1 << 1, /* the document was cut to fit max_length or max_document_tokens */
    QR_RESULT_REPLACED = 1 << 2,  /* the query, instruction or document held invalid UTF-8, read as U+FFFD */
};

typedef struct qr_result {
    double score;                 /* P(yes) = sigmoid(margin), in [0, 1] */
    float margin;                 /* logit(yes) - logit(no) */
    float yes, no;                /* the two logits; a backend that knows only their difference gives yes = margin, no = 0 */
    uint32_t n_tokens;            /* tokens of the whole prompt as scored */
    uint32_t n_shared;            /* of these, tokens that all documents of the query have in common and that are computed once */
    uint32_t flags;               /* QR_RESULT_* */
    unsigned char ids_sha256[32]; /* SHA-256 of the prompt's token ids as ASCII decimals joined by commas; zero unless asked for */
} qr_result;

/* Called on the engine's thread after each batch. results_done counts documents of this call. Return non-zero to cancel the call. */
typedef int (*qr_progress_fn)(void *arg, size_t results_done, size_t results_total);

/* Called on the engine's thread for each document that the failure of its batch, or an output that is no number, leaves without a score. */
typedef void (*qr_failed_fn)(void *arg, size_t result, const char *reason);

/* Where the time of a call went; seconds. */
typedef struct qr_timing {
    double tokenize;
    double queue;   /* from tokenized until its first batch began */
    double compute; /* from there to the end; other callers' documents may have been in the same batches */
} qr_timing;

typedef struct qr_call {
    qr_progress_fn progress;
    void *progress_arg;
    const volatile int *cancel; /* polled many times a second; set it to non-zero from any thread or signal handler */
    int want_ids_sha256;        /* fill qr_result.ids_sha256 */
    double timeout_seconds;     /* 0: none; what is not computed by then fails the call with QR_E_TIMEOUT */
    qr_timing *timing;          /* or NULL; filled when the call ends */
    qr_failed_fn failed;        /* not NULL: where a batch fails, the others are computed all the same; the call fails then, too */
    void *failed_arg;
} qr_call;

/* Scores every document of every query. results[] holds the documents of queries[0], then those of queries[1], and so on.
 * Any number of threads may call this on one engine: calls share it fairly, so that a short one need not wait for a long one. A document's
 * score does not depend on what else is in the call, on other calls, on the thread count or on max_batch_tokens. Documents of a query that
 * are alike are computed once.
 * Of a call that fails, too, results with QR_RESULT_DONE set are valid: some of them with QR_E_CANCELLED, QR_E_TIMEOUT, QR_E_UNAVAILABLE
 * and QR_E_BACKEND. */
QR_API qr_status qr_score(qr_engine *engine, const qr_query *queries, size_t n_queries, qr_result *results /* [sum of n_documents] */,
                          const qr_call *call /* or NULL */, qr_error *err);

/* Order of results by falling score, ties by rising index: order[0] is the index of the best. Results that are not done come last. */
QR_API void qr_rank(const qr_result *results, size_t n_results, size_t *order /* [n_results] */);

/* Token ids of a text as the model's tokenizer gives them. With parse_special, the text of special tokens such as <|im_end|> becomes
 * these tokens. Without, it is plain text, as it always is in queries and documents; markup that the tokenizer does not mark as special,
 * such as <think>, is a token of its own either way. Writes at most `capacity` ids and returns in *n_ids how many there are (call again
 * with more room if larger). */
QR_API qr_status qr_tokenize(qr_engine *engine, qr_text text, int parse_special, uint32_t *ids /* [capacity] */, size_t capacity,
                             size_t *n_ids, qr_error *err);

/* Facts about an open engine. Strings are borrowed until the engine is closed. */
typedef struct qr_info {
    const char *backend; /* "cpu" */
    const char *device;  /* for example "AMD EPYC, avx512_bf16, 2 threads" */
    const char *dtype;   /* "f32" or "bf16" */
    const char *model;   /* the folder as given, or "builtin" */
    size_t max_length;   /* effective */
    size_t max_batch_tokens;
    size_t n_parameters;
    size_t weight_bytes; /* as stored in the files */
    size_t memory_bytes; /* planned by the backend: packed weights, activations, caches when full */
    uint32_t yes_id, no_id;
    int canonical_prompt; /* 1 if the template in force gives the canonical prefix and suffix ids */
    double load_seconds;
    int builtin_model; /* 1: the built-in demo model, whose scores should not be taken for those of Qwen3-Reranker */
} qr_info;
QR_API void qr_engine_info(const qr_engine *engine, qr_info *out);

/* Where the time of our CPU engine goes. */
typedef enum qr_stage {
    QR_STAGE_EMBED = 0,
    QR_STAGE_NORM,
    QR_STAGE_QKV, /* products, their norms and RoPE */
    QR_STAGE_ATTENTION,
    QR_STAGE_O,
    QR_STAGE_MLP,
    QR_STAGE_HEAD,
    QR_STAGE_IDLE, /* threads that wait for others */
    QR_N_STAGES
} qr_stage;
/* "embed", "norm", ... */
QR_API const char *qr_stage_name(qr_stage stage);

/* Counters since the engine was opened. */
typedef struct qr_stats {
    uint64_t documents;
    uint64_t prompt_tokens;   /* as if every prompt were computed whole */
    uint64_t computed_tokens; /* really computed: shared prefixes once, cached ones not at all */
    uint64_t prefix_hits, prefix_misses;
    double compute_seconds;              /* wall time inside the backend */
    uint64_t batches, batch_tokens;      /* calls of the backend, and the tokens in them before the prefix cache took its part */
    uint64_t result_hits, result_misses; /* of the cache of scores, if there is one */
    uint64_t documents_waiting;          /* at this moment, those in work included */
    double stage_seconds[QR_N_STAGES];   /* of compute_seconds, mean over the threads; zeros where the backend is not our own */
} qr_stats;
QR_API void qr_engine_stats(qr_engine *engine, qr_stats *out);

#ifdef __cplusplus
}
#endif
#endif
