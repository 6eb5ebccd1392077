/* See engine.h. */
#define _GNU_SOURCE
#include "cli/engine.h"

#include "base/mem.h"
#include "engine/backend.h"
#include "model/builtin.h"
#include "model/locate.h"

#include <limits.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#define MODEL_HELP                                                                                                                         \
    "Model: a folder with config.json, tokenizer.json and model.safetensors, the name of a model in the Hugging Face cache, or builtin, "  \
    "the small demo model inside this program (default: a Qwen3-Reranker of the cache, else builtin)."

const cli_option cli_model_options[] = {
    {"model", 'm', CLI_DIR, 0, offsetof(cli_args, model), "NAME|DIR", "QWEN_RERANK_MODEL_ID", MODEL_HELP},
    {0},
};

const cli_option cli_engine_options[] = {
    {"model", 'm', CLI_DIR, 0, offsetof(cli_args, model), "NAME|DIR", "QWEN_RERANK_MODEL_ID", MODEL_HELP},
    {"instruction", 'i', CLI_TEXT, 0, offsetof(cli_args, instruction), "TEXT", "QWEN_RERANK_INSTRUCTION",
     "What makes a document relevant (default: the model card's web search instruction)."},
    {"max-length", 0, CLI_COUNT, 1, offsetof(cli_args, max_length), "N", "QWEN_RERANK_MAX_LENGTH",
     "Longest prompt in tokens, template included; longer documents are cut at the end (default: 8192)."},
    {"backend", 0, CLI_TEXT, 0, offsetof(cli_args, backend), "NAME", "QWEN_RERANK_BACKEND",
     "What computes: a name that 'doctor' lists, or auto (default)."},
    {"dtype", 0, CLI_CHOICE, QR_DTYPE_AUTO, offsetof(cli_args, dtype), "auto|f32|bf16", "QWEN_RERANK_DTYPE",
     "Arithmetic: f32 is exact, bf16 faster where the processor multiplies it natively, auto takes bf16 there and f32 elsewhere."},
    {"threads", 0, CLI_COUNT, 1, offsetof(cli_args, threads), "N", "QWEN_RERANK_THREADS",
     "Threads that compute (default: the physical cores that this process may use)."},
    {"max-batch-tokens", 0, CLI_COUNT, 1, offsetof(cli_args, max_batch_tokens), "N", "QWEN_RERANK_BATCH_TOKENS",
     "Tokens computed together (default: 2048). Changes memory and speed, not scores."},
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
    if (status != QR_OK) cli_error(args, "%s", err.msg);
    return cli_exit_of_open(status);
}

void cli_note_builtin(const cli_args *args, const char *dir)
{
    if (qr_is_builtin(dir)) cli_note(args, QR_LOG_WARN, "%s", QR_BUILTIN_NOTE);
}

static void print_log(void *arg, qr_log_level level, const char *message) { cli_note(arg, level, "%s", message); }

int cli_engine_open(const cli_args *args, qr_engine **engine)
{
    const qr_backend_ops *ops;
    qr_error err = {0};
    char *dir = NULL;
    *engine = NULL;
    if (args->threads > INT_MAX) {
        cli_error(args, "--threads: expected at most %d, found %zu", INT_MAX, args->threads);
        return CLI_USAGE;
    }
    /* Asked for first: a misspelt backend is a usage error, whereas the engine can only say that something was not found. */
    qr_status status = qr_backend_choose(&ops, args->backend, &err);
    if (status != QR_OK) {
        cli_error(args, "%s", err.msg);
        return status == QR_E_NOT_FOUND ? CLI_USAGE : CLI_FAILURE;
    }
    int code = cli_model_locate(args, args->model, &dir);
    if (code != CLI_OK) return code;
    qr_options options = {
        .model = dir,
        .backend = args->backend,
        .dtype = (qr_dtype) args->dtype,
        .threads = (int) args->threads,
        .max_length = args->max_length,
        .max_batch_tokens = args->max_batch_tokens,
        .instruction = args->instruction,
        .log = print_log,
        .log_arg = (void *) (uintptr_t) args,
    };
    status = qr_engine_open(engine, &options, &err);
    if (status != QR_OK) cli_error(args, "%s", err.msg);
    qr_free(dir);
    return cli_exit_of_open(status);
}

/* Signal handlers have no argument, hence the only mutable globals of the program. */
static volatile int cancelled;
static volatile sig_atomic_t cancellable;

static void on_signal(int number)
{
    (void) number;
    if (!cancellable || cancelled) _exit(CLI_INTERRUPTED);
    cancelled = 1;
}

const volatile int *cli_cancel_begin(void)
{
    static const int signals[] = {SIGINT, SIGTERM};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, old;
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++)
        /* A shell starts background jobs with SIGINT ignored; they must stay immune to the Ctrl-C of others. */
        if (sigaction(signals[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN) sigaction(signals[i], &action, NULL);
    cancellable = 1;
    return &cancelled;
}

int cli_cancel_end(void)
{
    cancellable = 0;
    return cancelled;
}
