/* What the commands of the program share: the tables that declare commands and options, the parsed arguments, errors and exit codes.
 *
 * An option is declared once, in the table of its command or in one of the shared groups. Parsing, --help, the man page and the shell
 * completions are all generated from these tables. Knows nothing of how commands work.
 */
#ifndef QR_CLI_CLI_H
#define QR_CLI_CLI_H

#include "base/error.h"

#define CLI_PROGRAM "qwen-rerank"

/* value, name in the documentation's table */
#define CLI_EXIT_MAP(X)                                                                                                                    \
    X(CLI_OK, 0, "success")                                                                                                                \
    X(CLI_FAILURE, 1, "failure at run time: backend, memory, input/output, standard output closed or full")                                \
    X(CLI_USAGE, 2, "wrong usage: unknown option, missing argument, bad value")                                                            \
    X(CLI_BAD_INPUT, 3, "bad input data: a line that is not JSON, an unreadable document, a query that is too long, nothing to rank")      \
    X(CLI_NO_MODEL, 4, "the model was not found or cannot be used")                                                                        \
    X(CLI_INTERRUPTED, 130, "interrupted by SIGINT or SIGTERM; what was finished has been printed")

enum {
#define CLI_X(name, value, text) name = value,
    CLI_EXIT_MAP(CLI_X)
#undef CLI_X
};

typedef struct cli_list {
    const char **items; /* [n], borrowed from argv */
    size_t n, capacity;
} cli_list;

enum { CLI_FORMAT_TABLE, CLI_FORMAT_JSON, CLI_FORMAT_JSONL };              /* order of --format's choices */
enum { CLI_INPUT_AUTO, CLI_INPUT_TEXT, CLI_INPUT_LINES, CLI_INPUT_JSONL }; /* order of --input's choices */
enum { CLI_COLOR_AUTO, CLI_COLOR_ALWAYS, CLI_COLOR_NEVER };                /* order of --color's choices */

struct cli_command;

/* Every option of every command has a field here; an option that was not given leaves it zero, which means the default. */
typedef struct cli_args {
    const struct cli_command *command;
    cli_list operands;

    /* Where each value comes from, by the offset of its field: "--port", "QWEN_RERANK_PORT", "profile NAME (FILE:LINE)"; NULL: the default.
     */
    const char **origins; /* [sizeof(cli_args)] */
    cli_list owned;       /* texts that others here point to */

    const char *profile, *config;
    cli_list models;   /* "DIR" or "NAME=DIR"; only serve takes several */
    const char *model; /* the last of them, or NULL */
    const char *backend, *instruction;
    const char *prompt_prefix, *prompt_suffix, *query_template, *document_template, *yes_token, *no_token;
    int dtype;  /* qr_dtype */
    int memory; /* qr_memory */
    const char *cache_dir;
    size_t threads, max_length, max_batch_tokens, batch_size, max_concurrent, prefix_cache_mib, memory_limit_mib;

    /* for backends that have them */
    const char *device, *torch_dir, *plugin_dir;
    int flash_attn, mlx_compile, prefix_caching; /* CLI_ON, CLI_OFF */
    size_t tensor_parallel, max_model_len;
    double gpu_memory;
    cli_list vllm_urls;
    const char *vllm_model, *vllm_api_key, *vllm_api_key_file, *vllm_ca;
    int vllm_protocol; /* index into auto|completions|classify|generative-scoring, plus 1 */
    size_t vllm_timeout, vllm_wait;
    int vllm_hedge;      /* CLI_ON, CLI_OFF */
    int needs_no_server; /* no option: bad ones are to be reported of */
    const char *vllm_command;
    int spawn; /* CLI_ON, CLI_OFF */

    int log_level; /* index into error|warn|info|debug, plus 1: the values of qr_log_level */

    cli_list docs;
    int input, format, color;
    int raw, explain, text;
    size_t top_n;

    int logits, deep;

    const char *backends, *pairs, *calibrate, *file;
    int pull; /* CLI_ON, CLI_OFF */
    int yes;
    double tolerance;

    const char *type; /* of quantize */
    int no_check;
    int dequantize; /* index into bf16|f16|f32, plus 1 */

    const char *tokenizer;
    int special, count;

    const char *host, *unix_socket, *url_prefix, *api_key_file, *tls_cert, *tls_key, *served_name;
    cli_list api_keys, cors_origins;
    size_t port, max_documents, max_query_chars, max_document_chars, max_body_mib, max_waiting, max_connections, request_timeout,
        drain_timeout;
    size_t result_cache_mib;
    int log_format;
    int log_texts, warm_up, self_test, return_documents, mirror_data, protect_metrics; /* CLI_ON, CLI_OFF */

    int tensors;
    int man;
    int help;
} cli_args;

typedef enum cli_kind {
    CLI_SET,    /* no argument; stores `value` in an int */
    CLI_CHOICE, /* one of the words of `arg`, separated by '|'; stores its index + `value` in an int */
    CLI_SWITCH, /* no argument; stores CLI_ON, and CLI_OFF for --no-NAME; variables and profiles say true or false */
    CLI_COUNT,  /* a whole number of at least `value`, in a size_t */
    CLI_REAL,   /* a number above 0 and up to `value`, in a double */
    CLI_TEXT,   /* any text */
    CLI_FILE,   /* a file name: text, completed as one */
    CLI_DIR,    /* a folder name or a model name: text, completed as a folder */
    CLI_LIST,   /* any text; may be repeated; with the `value` CLI_SEPARATED, a variable holds several, between commas or white space */
} cli_kind;
enum { CLI_SEPARATED = 1 };

typedef struct cli_option {
    const char *name; /* without the dashes; NULL ends a table */
    char letter;      /* 0: no short form */
    cli_kind kind;
    int value;
    size_t field;    /* offsetof(cli_args, ...) */
    const char *arg; /* name of the argument, or the choices; NULL for CLI_SET */
    const char *env; /* variable that gives the default, or NULL */
    const char *help;
    const char *key;      /* where profiles have it, "limits.max_length"; several are separated by '|'; NULL: nowhere */
    const char *fallback; /* the default, for `config show` and the documentation; NULL: none to speak of */
} cli_option;

enum { CLI_ON = 1, CLI_OFF = 2 };

enum { CLI_MAX_GROUPS = 5 };

typedef struct cli_command {
    const char *name;
    const char *operands; /* as in the usage line, "" if none */
    size_t min_operands, max_operands;
    const char *summary; /* one line, lower case, no full stop */
    const char *text;    /* paragraphs separated by an empty line; a line that starts with a blank is an example, kept as it is */
    const cli_option *groups[CLI_MAX_GROUPS]; /* tables of options, own ones first; NULL ends */
    int (*run)(const cli_args *args);         /* returns an exit code */
} cli_command;

/* All commands in the order of the help, NULL at the end (main.c). */
extern const cli_command *const cli_commands[];
extern const cli_command cli_serve, cli_rank, cli_score, cli_config, cli_tokenize, cli_inspect, cli_pull, cli_models, cli_quantize,
    cli_convert, cli_doctor, cli_parity, cli_version, cli_help, cli_completion;
/* Shared groups: what opens an engine, which model, and what every command knows. */
extern const cli_option cli_serve_options[], cli_engine_options[], cli_backend_options[], cli_model_options[], cli_general_options[];

/* NULL if there is no command of that name. */
const cli_command *cli_command_find(const char *name);
/* Parses argv[0..argc), which follows the command's name, then the environment, then the profile. Messages go to stderr; returns CLI_OK or
 * an exit code. Free with cli_args_deinit in both cases. */
int cli_args_parse(cli_args *args, const cli_command *command, int argc, char **argv);
void cli_args_deinit(cli_args *args);
/* Where the option's value comes from; NULL: it is the default. */
const char *cli_origin(const cli_args *args, const cli_option *option);
/* 1 if something else than the default was given for the field at this offset. */
int cli_is_given(const cli_args *args, size_t field);
/* Takes over a value that ranks after what is already given; does nothing then. `source` names it in messages, `origin` for cli_origin;
 * all texts stay in place as long as args. */
int cli_args_offer(cli_args *args, const cli_option *option, const char *source, const char *origin, const char *value);
/* A copy of a text that lives as long as args; NULL: no memory. */
const char *cli_args_keep(cli_args *args, const char *text);
const char *cli_args_keep_part(cli_args *args, const char *text, size_t len);
int cli_is_on(int value, int otherwise);
/* "Did you mean": *best becomes `candidate` if that is near `word` and nearer than the best so far (NULL at the start). */
void cli_suggest(const char *word, const char *candidate, size_t *best_distance, const char **best);

/* "qwen-rerank: rank: <message>" on stderr. Control characters in the message are made harmless: it may quote hostile input. */
void cli_error(const cli_args *args, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The same, but only if the log level lets `level` through. */
void cli_note(const cli_args *args, qr_log_level level, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The help of one command, or of the program (NULL), on `out`, which is a FILE. */
void cli_help_print(void *out, const cli_command *command);

/* Default of a variable; an empty one counts as not set. */
const char *cli_env(const char *name);

#endif
