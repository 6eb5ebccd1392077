/* See engine.h. */
#define _GNU_SOURCE
#include "cli/engine.h"
#include "cli/pull.h"

#include "base/file.h"
#include "base/mem.h"
#include "engine/backend.h"
#include "model/builtin.h"
#include "model/locate.h"
#include "text/prompt.h"

#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MODEL_HELP                                                                                                                         \
    "Model: a folder with config.json, tokenizer.json and model.safetensors, a GGUF file, the name of a model in the Hugging Face cache, " \
    "or builtin, the small demo model inside this program (default: a Qwen3-Reranker of the cache, else builtin)."

const cli_option cli_model_options[] = {
    {"model", 'm', CLI_LIST, 0, offsetof(cli_args, models), "NAME|DIR", "QWEN_RERANK_MODEL_ID", MODEL_HELP, NULL, NULL},
    {0},
};

const cli_option cli_engine_options[] = {
    {"model", 'm', CLI_LIST, 0, offsetof(cli_args, models), "NAME|DIR", "QWEN_RERANK_MODEL_ID", MODEL_HELP, "model_id", NULL},
    {"pull", 0, CLI_SWITCH, 0, offsetof(cli_args, pull), NULL, "QWEN_RERANK_PULL",
     "Download the model if it is not there, as 'pull' does (default: false).", "pull", "false"},
    {"profile", 0, CLI_TEXT, 0, offsetof(cli_args, profile), "NAME", "QWEN_RERANK_PROFILE",
     "Options under a name: a built-in profile, or one of the file of --config. See 'config list'.", NULL, NULL},
    {"config", 0, CLI_FILE, 0, offsetof(cli_args, config), "FILE", "QWEN_RERANK_CONFIG",
     "YAML file with profiles (default: ~/.config/qwen-rerank/config.yaml or /etc/qwen-rerank/config.yaml, if there is one).", NULL, NULL},
    {"instruction", 'i', CLI_TEXT, 0, offsetof(cli_args, instruction), "TEXT", "QWEN_RERANK_INSTRUCTION",
     "What makes a document relevant (default: the model card's web search instruction).", "defaults.instruction",
     "Given a web search query, retrieve relevant passages that answer the query"},
    {"max-length", 0, CLI_COUNT, 1, offsetof(cli_args, max_length), "N", "QWEN_RERANK_MAX_LENGTH",
     "Longest prompt in tokens, template included; longer documents are cut at the end (default: 8192).", "limits.max_length", "8192"},
    {"backend", 0, CLI_TEXT, 0, offsetof(cli_args, backend), "NAME", "QWEN_RERANK_BACKEND",
     "What computes: a name that 'doctor' lists, several in order of preference (mlx,cpu), or auto (default).", "backend", "auto"},
    {"dtype", 0, CLI_CHOICE, QR_DTYPE_AUTO, offsetof(cli_args, dtype), "auto|f32|bf16|f16|int8", "QWEN_RERANK_DTYPE",
     "Arithmetic: f32 is exact, bf16 faster where the processor multiplies it natively, auto takes bf16 there and f32 elsewhere. int8 is "
     "faster still (cpu backend, processors with VNNI): the model is tried on 36 prompts at the start, and refused if it loses too much.",
     "dtype|cpu_options.dtype|pytorch_options.dtype", "auto"},
    {"threads", 0, CLI_COUNT, 1, offsetof(cli_args, threads), "N", "QWEN_RERANK_THREADS",
     "Threads that compute (default: the physical cores that this process may use).", "cpu_options.threads", NULL},
    {"max-batch-tokens", 0, CLI_COUNT, 1, offsetof(cli_args, max_batch_tokens), "N", "QWEN_RERANK_BATCH_TOKENS",
     "Tokens computed together (default: 2048). Changes memory and speed, not scores.", "batching.max_batch_tokens", "2048"},
    {"batch-size", 0, CLI_COUNT, 1, offsetof(cli_args, batch_size), "N", "QWEN_RERANK_BATCH_SIZE",
     "Documents computed together, at most (default: as many as have room in --max-batch-tokens).", "batching.batch_size", NULL},
    {"max-concurrent", 0, CLI_COUNT, 1, offsetof(cli_args, max_concurrent), "N", "QWEN_RERANK_MAX_CONCURRENT",
     "Requests that share the computer's time, others wait in line (default: all).", "batching.max_concurrent_forwards", NULL},
    {"prefix-cache", 0, CLI_COUNT, 0, offsetof(cli_args, prefix_cache_mib), "MIB", "QWEN_RERANK_PREFIX_CACHE",
     "Memory for computed beginnings of prompts, that is queries (default: 256; 0: only the latest).", "cache.prefix_mib", "256"},
    {"memory", 0, CLI_CHOICE, QR_MEMORY_AUTO, offsetof(cli_args, memory), "auto|fast|small", "QWEN_RERANK_MEMORY",
     "cpu: weights unpacked once (fast), or kept as in the file and unpacked part by part whenever they are used (small: slower, same "
     "scores); auto takes fast where it fits.",
     "cpu_options.memory", "auto"},
    {"cache-dir", 0, CLI_DIR, 0, offsetof(cli_args, cache_dir), "DIR", "QWEN_RERANK_CACHE_DIR",
     "Folder for what the next start need not find out again: how a model takes int8 (default: $XDG_CACHE_HOME/qwen-rerank, else "
     "~/.cache/qwen-rerank; none: nothing is kept).",
     "cache.dir", NULL},
    {"memory-limit", 0, CLI_COUNT, 1, offsetof(cli_args, memory_limit_mib), "MIB", "QWEN_RERANK_MEMORY_LIMIT",
     "Refuse a model whose weights need more (default: what is free).", "limits.memory_mib", NULL},
    {"prompt-prefix", 0, CLI_TEXT, 0, offsetof(cli_args, prompt_prefix), "TEXT", "QWEN_RERANK_PROMPT_PREFIX",
     "The prompt of another model of this family; leave these out for Qwen3-Reranker: it scores at random with others.", "prompts.prefix",
     NULL},
    {"prompt-suffix", 0, CLI_TEXT, 0, offsetof(cli_args, prompt_suffix), "TEXT", "QWEN_RERANK_PROMPT_SUFFIX", "Its end.", "prompts.suffix",
     NULL},
    {"query-template", 0, CLI_TEXT, 0, offsetof(cli_args, query_template), "TEXT", "QWEN_RERANK_QUERY_TEMPLATE",
     "Its part with {instruction} and {query}.", "prompts.query_template", NULL},
    {"document-template", 0, CLI_TEXT, 0, offsetof(cli_args, document_template), "TEXT", "QWEN_RERANK_DOCUMENT_TEMPLATE",
     "Its part with {document}.", "prompts.document_template", NULL},
    {"yes-token", 0, CLI_TEXT, 0, offsetof(cli_args, yes_token), "TEXT", "QWEN_RERANK_YES_TOKEN", "The token for relevant.",
     "scoring.yes_token", "yes"},
    {"no-token", 0, CLI_TEXT, 0, offsetof(cli_args, no_token), "TEXT", "QWEN_RERANK_NO_TOKEN", "The token for not relevant.",
     "scoring.no_token", "no"},
    {0},
};

/* Settings of backends that this build may not have; the cpu backend needs none of them. */
const cli_option cli_backend_options[] = {
    {"device", 0, CLI_TEXT, 0, offsetof(cli_args, device), "NAME", "QWEN_RERANK_DEVICE", "pytorch: cuda, cuda:1, mps or cpu.",
     "pytorch_options.device", NULL},
    {"flash-attn", 0, CLI_SWITCH, 0, offsetof(cli_args, flash_attn), NULL, "QWEN_RERANK_FLASH_ATTN",
     "pytorch: variable-length flash attention must work, or must not be used. By default it is used on CUDA where it works.",
     "pytorch_options.use_flash_attn", NULL},
    {"torch-dir", 0, CLI_DIR, 0, offsetof(cli_args, torch_dir), "DIR", "QWEN_RERANK_TORCH_DIR",
     "pytorch: folder of libtorch (default: the torch that python3 would import).", "pytorch_options.torch_dir", NULL},
    {"mlx-compile", 0, CLI_SWITCH, 0, offsetof(cli_args, mlx_compile), NULL, "QWEN_RERANK_MLX_COMPILE", "mlx: compile the graph.",
     "mlx_options.compile", NULL},
    {"plugin-dir", 0, CLI_DIR, 0, offsetof(cli_args, plugin_dir), "DIR", "QWEN_RERANK_PLUGIN_DIR",
     "mlx: folder of plug-ins (default: beside the program, or its lib/qwen-rerank).", "plugin_dir", NULL},
    {"tensor-parallel", 0, CLI_COUNT, 1, offsetof(cli_args, tensor_parallel), "N", "QWEN_RERANK_TP_SIZE", "vllm: GPUs that share a model.",
     "vllm_options.tensor_parallel_size", NULL},
    {"gpu-memory", 0, CLI_REAL, 1, offsetof(cli_args, gpu_memory), "PART", "QWEN_RERANK_GPU_UTIL",
     "vllm: part of the GPU's memory to take.", "vllm_options.gpu_memory_utilization", NULL},
    {"prefix-caching", 0, CLI_SWITCH, 0, offsetof(cli_args, prefix_caching), NULL, "QWEN_RERANK_PREFIX_CACHING",
     "vllm: its cache of prefixes.", "vllm_options.enable_prefix_caching", NULL},
    {"max-model-len", 0, CLI_COUNT, 1, offsetof(cli_args, max_model_len), "N", "QWEN_RERANK_MAX_MODEL_LEN", "vllm: its longest prompt.",
     "vllm_options.max_model_len", NULL},
    {"vllm-url", 0, CLI_LIST, CLI_SEPARATED, offsetof(cli_args, vllm_urls), "URL", "QWEN_RERANK_VLLM_URL",
     "vllm: a server, http://HOST:8000; may be repeated, the variable may hold several between commas or blanks. A name with several "
     "addresses stands for as many servers. The folder of --model "
     "then needs only config.json and tokenizer.json.",
     "vllm_options.urls", NULL},
    {"vllm-model", 0, CLI_TEXT, 0, offsetof(cli_args, vllm_model), "NAME", "QWEN_RERANK_VLLM_MODEL",
     "vllm: the model's name there (default: the first that a server names).", "vllm_options.model", NULL},
    {"vllm-api-key", 0, CLI_TEXT, 0, offsetof(cli_args, vllm_api_key), "KEY", "QWEN_RERANK_VLLM_API_KEY",
     "vllm: the servers' API key. On the command line others can read it: the variable or a file is better.", NULL, NULL},
    {"vllm-api-key-file", 0, CLI_FILE, 0, offsetof(cli_args, vllm_api_key_file), "FILE", "QWEN_RERANK_VLLM_API_KEY_FILE",
     "vllm: a file with that key in its first line.", "vllm_options.api_key_file", NULL},
    {"vllm-protocol", 0, CLI_CHOICE, 1, offsetof(cli_args, vllm_protocol), "auto|completions|classify|generative-scoring",
     "QWEN_RERANK_VLLM_PROTOCOL", "vllm: how servers are asked (default: auto, the first of these that a server has).",
     "vllm_options.protocol", "auto"},
    {"vllm-ca", 0, CLI_FILE, 0, offsetof(cli_args, vllm_ca), "FILE", "QWEN_RERANK_VLLM_CA",
     "vllm: certificates to trust, PEM (default: the system's).", "vllm_options.ca_file", NULL},
    {"vllm-timeout", 0, CLI_COUNT, 1, offsetof(cli_args, vllm_timeout), "SECONDS", "QWEN_RERANK_VLLM_TIMEOUT",
     "vllm: time for the answer to one request, after which another server is asked (default: 120).", "vllm_options.timeout_s", "120"},
    {"vllm-wait", 0, CLI_COUNT, 0, offsetof(cli_args, vllm_wait), "SECONDS", "QWEN_RERANK_VLLM_WAIT",
     "vllm: how long to wait at the start until a server can be reached (default: 0).", "vllm_options.wait_s", "0"},
    {"vllm-hedge", 0, CLI_SWITCH, 0, offsetof(cli_args, vllm_hedge), NULL, "QWEN_RERANK_VLLM_HEDGE",
     "vllm: ask a second server for what takes longer than 95 of 100 requests; at most one in twenty (default: no).", "vllm_options.hedge",
     NULL},
    {0},
};

int cli_exit_of_open(qr_status status)
{
    switch (status) {
    case QR_OK:
        return CLI_OK;
    case QR_E_ARG:
        return CLI_USAGE;
    case QR_E_MEMORY:
    case QR_E_BACKEND:
    case QR_E_UNAVAILABLE:
        return CLI_FAILURE;
    case QR_E_CANCELLED:
        return CLI_INTERRUPTED;
    default:
        return CLI_NO_MODEL;
    }
}

int cli_exit_of_score(qr_status status)
{
    switch (status) {
    case QR_OK:
        return CLI_OK;
    case QR_E_ARG:
        return CLI_USAGE;
    case QR_E_INPUT:
    case QR_E_TOO_LONG:
        return CLI_BAD_INPUT;
    case QR_E_CANCELLED:
        return CLI_INTERRUPTED;
    default:
        return CLI_FAILURE;
    }
}

int cli_model_locate(const cli_args *args, const char *name, char **dir)
{
    qr_error err = {0};
    qr_status status = qr_model_locate(name, dir, &err);
    if (status == QR_E_NOT_FOUND && name != NULL && cli_is_on(args->pull, 0) && cli_is_pullable(name))
        return cli_pull_model(args, name, NULL, dir);
    if (status != QR_OK) cli_error(args, "%s", err.msg);
    return cli_exit_of_open(status);
}

void cli_note_builtin(const cli_args *args, const char *dir)
{
    if (qr_is_builtin(dir)) cli_note(args, QR_LOG_WARN, "%s", QR_BUILTIN_NOTE);
}

void cli_log_print(void *arg, qr_log_level level, const char *message) { cli_note(arg, level, "%s", message); }

/* A prompt's part that equals the canonical one but for line ends at its end is taken for it: YAML's block scalars lose and add them. */
static const char *prompt_part(const char *given, const char *canonical, const char *name, const qr_options *o)
{
    char message[128];
    if (given == NULL || strcmp(given, canonical) == 0) return NULL;
    size_t n = strlen(given), m = strlen(canonical);
    while (n > 0 && given[n - 1] == '\n') n--;
    while (m > 0 && canonical[m - 1] == '\n') m--;
    if (n != m || memcmp(given, canonical, n) != 0) return given;
    snprintf(message, sizeof message, "%s: taken for the canonical one, from which only line ends at its end differ", name);
    o->log(o->log_arg, QR_LOG_INFO, message);
    return NULL;
}

/* Settings that the chosen backend has no use for: said, so that nobody believes in them. */
static void note_unused(const cli_args *args, const char *backend)
{
    static const char *const owners[] = {"pytorch", "pytorch", "pytorch", "mlx", "mlx"}; /* the rest is vllm's */
    for (size_t i = 0; cli_backend_options[i].name != NULL; i++)
        if (cli_origin(args, &cli_backend_options[i]) != NULL &&
            strcmp(i < sizeof owners / sizeof owners[0] ? owners[i] : "vllm", backend) != 0)
            cli_note(args, QR_LOG_INFO, "--%s has no effect on the backend %s", cli_backend_options[i].name, backend);
}

qr_backend_place cli_backend_place(const cli_args *args)
{
    return (qr_backend_place){.device = args->device,
                              .torch_dir = args->torch_dir,
                              .plugin_dir = args->plugin_dir,
                              .vllm = {.urls = args->vllm_urls.items, .n_urls = args->vllm_urls.n}};
}

int cli_backend_check(const cli_args *args, const char **name)
{
    const qr_backend_ops *ops;
    qr_error err = {0};
    qr_backend_place place = cli_backend_place(args);
    qr_status status = qr_backend_choose(&ops, args->backend, &place, &err);
    if (status == QR_OK) {
        *name = ops->name;
        return CLI_OK;
    }
    cli_error(args, "%s", err.msg);
    return status == QR_E_NOT_FOUND ? CLI_USAGE : CLI_FAILURE;
}

/* The first line of --vllm-api-key-file; *key NULL without one. The caller frees it. */
static int read_key_file(const cli_args *args, char **key)
{
    qr_error err = {0};
    size_t len;
    *key = NULL;
    if (args->vllm_api_key_file == NULL) return CLI_OK;
    if (qr_file_read(args->vllm_api_key_file, 1 << 16, key, &len, &err) == QR_OK) {
        (*key)[strcspn(*key, "\r\n")] = 0;
        if ((*key)[0] != 0) return CLI_OK;
        qr_fail(&err, QR_E_ARG, "%s: expected a key in its first line, found none", args->vllm_api_key_file);
    }
    cli_error(args, "%s", err.msg);
    qr_free(*key);
    *key = NULL;
    return CLI_USAGE;
}

/* A new block; NULL: nothing is kept, as on a system without a home. */
static char *find_cache_dir(const cli_args *args)
{
    const char *cache = cli_env("XDG_CACHE_HOME"), *home = cli_env("HOME");
    if (args->cache_dir != NULL && (args->cache_dir[0] == 0 || strcmp(args->cache_dir, "none") == 0)) return NULL;
    if (args->cache_dir != NULL) return qr_strndup(args->cache_dir, strlen(args->cache_dir));
    if (cache != NULL) return qr_path_join(cache, "qwen-rerank");
    return home != NULL ? qr_path_join(home, ".cache/qwen-rerank") : NULL;
}

int cli_engine_open(const cli_args *args, const char *model, qr_log_fn log, void *log_arg, qr_engine **engine)
{
    const char *backend;
    static const char *const protocols[] = {"completions", "classify", "generative-scoring"};
    qr_error err = {0};
    char *dir = NULL, *key = NULL, *cache_dir = NULL;
    *engine = NULL;
    if (args->threads > INT_MAX) {
        cli_error(args, "--threads: expected at most %d, found %zu", INT_MAX, args->threads);
        return CLI_USAGE;
    }
    /* Asked for first: a misspelt backend is a usage error, whereas the engine can only say that something was not found. */
    int code = cli_backend_check(args, &backend);
    if (code != CLI_OK) return code;
    note_unused(args, backend);
    if ((code = read_key_file(args, &key)) != CLI_OK) return code;
    if ((code = cli_model_locate(args, model, &dir)) != CLI_OK) {
        qr_free(key);
        return code;
    }
    cache_dir = find_cache_dir(args);
    qr_options options = {
        .model = dir,
        .backend = args->backend,
        .dtype = (qr_dtype) args->dtype,
        .threads = (int) args->threads,
        .max_length = args->max_length,
        .max_batch_tokens = args->max_batch_tokens,
        .max_batch_documents = args->batch_size,
        .max_concurrent = args->max_concurrent,
        .result_cache_bytes = args->result_cache_mib << 20,
        .memory_limit = args->memory_limit_mib << 20,
        .memory = (qr_memory) args->memory,
        .cache_dir = cache_dir,
        .instruction = args->instruction,
        .yes_token = args->yes_token,
        .no_token = args->no_token,
        .warm_up = cli_is_on(args->warm_up, args->command == &cli_serve),
        .device = args->device,
        .flash_attention = (qr_switch) args->flash_attn,
        .compile = (qr_switch) args->mlx_compile,
        .torch_dir = args->torch_dir,
        .plugin_dir = args->plugin_dir,
        .vllm_urls = args->vllm_urls.items,
        .n_vllm_urls = args->vllm_urls.n,
        .vllm_model = args->vllm_model,
        .vllm_api_key = key != NULL ? key : args->vllm_api_key,
        .vllm_protocol = args->vllm_protocol > 1 ? protocols[args->vllm_protocol - 2] : NULL,
        .vllm_ca_file = args->vllm_ca,
        .vllm_timeout_seconds = (double) args->vllm_timeout,
        .vllm_wait_seconds = args->needs_no_server ? -1 : (double) args->vllm_wait,
        .vllm_hedge = cli_is_on(args->vllm_hedge, 0),
        .log = log,
        .log_arg = log_arg,
    };
    if (cli_is_given(args, offsetof(cli_args, prefix_cache_mib)))
        options.prefix_cache_bytes = args->prefix_cache_mib > 0 ? args->prefix_cache_mib << 20 : QR_SIZE_NONE;
    options.prefix = prompt_part(args->prompt_prefix, QR_PROMPT_PREFIX, "prompts.prefix", &options);
    options.suffix = prompt_part(args->prompt_suffix, QR_PROMPT_SUFFIX, "prompts.suffix", &options);
    options.query_template = prompt_part(args->query_template, QR_PROMPT_QUERY, "prompts.query_template", &options);
    options.document_template = prompt_part(args->document_template, QR_PROMPT_DOCUMENT, "prompts.document_template", &options);
    qr_status status = qr_engine_open(engine, &options, &err);
    if (status != QR_OK) cli_error(args, "%s", err.msg);
    qr_free(dir);
    qr_free(key);
    qr_free(cache_dir);
    return cli_exit_of_open(status);
}

/* Signal handlers have no argument, hence the only mutable globals of the program. The handler may run on any thread. */
static volatile int cancelled;
static atomic_int cancellable;

static void on_signal(int number)
{
    (void) number;
    if (!cancellable || __atomic_exchange_n(&cancelled, 1, __ATOMIC_RELAXED)) _exit(CLI_INTERRUPTED);
}

const volatile int *cli_cancel_begin(void)
{
    static const int signals[] = {SIGINT, SIGTERM};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, old;
    sigemptyset(&action.sa_mask);
    cancellable = 1;
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++)
        /* A shell starts background jobs with SIGINT ignored; they must stay immune to the Ctrl-C of others. */
        if (sigaction(signals[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN) sigaction(signals[i], &action, NULL);
    return &cancelled;
}

int cli_cancel_end(void)
{
    cancellable = 0;
    return qr_is_set(&cancelled);
}
