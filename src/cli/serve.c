/* serve: the HTTP service. */
#define _GNU_SOURCE
#include "base/file.h"
#include "base/mem.h"
#include "cli/engine.h"
#include "server/server.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { DEFAULT_PORT = 9003, DEFAULT_DRAIN_S = 30 };

static const cli_option options[] = {
    {"host", 0, CLI_TEXT, 0, offsetof(cli_args, host), "ADDRESS", "QWEN_RERANK_HOST",
     "Address or name to listen on; * for all (default: 127.0.0.1, this machine only)."},
    {"port", 'p', CLI_COUNT, 1, offsetof(cli_args, port), "N", "QWEN_RERANK_PORT", "Port to listen on (default: 9003)."},
    {"unix-socket", 0, CLI_FILE, 0, offsetof(cli_args, unix_socket), "PATH", "QWEN_RERANK_UNIX_SOCKET",
     "Listen there instead of on a port."},
    {"api-key", 0, CLI_LIST, 0, offsetof(cli_args, api_keys), "KEY", NULL,
     "Ask for this key; may be repeated. Others see keys of the command line: better use the variable QWEN_RERANK_API_KEY or a file."},
    {"api-key-file", 0, CLI_FILE, 0, offsetof(cli_args, api_key_file), "FILE", "QWEN_RERANK_API_KEY_FILE",
     "File with one key a line, any of which is good."},
    {"served-name", 0, CLI_TEXT, 0, offsetof(cli_args, served_name), "NAME", "QWEN_RERANK_SERVED_NAME",
     "What answers call the model when the request does not (default: the model's name)."},
    {"url-prefix", 0, CLI_TEXT, 0, offsetof(cli_args, url_prefix), "PATH", "QWEN_RERANK_URL_PREFIX",
     "Serve every route below this path, too, for example /v3."},
    {"max-documents", 0, CLI_COUNT, 1, offsetof(cli_args, max_documents), "N", "QWEN_RERANK_MAX_DOCUMENTS",
     "Most documents in a request (default: 100000)."},
    {"max-body", 0, CLI_COUNT, 1, offsetof(cli_args, max_body_mib), "MIB", "QWEN_RERANK_MAX_BODY", "Largest request in MiB (default: 64)."},
    {"max-waiting", 0, CLI_COUNT, 1, offsetof(cli_args, max_waiting), "N", "QWEN_RERANK_MAX_WAITING",
     "Requests in work or waiting; more are told to come again, status 429 (default: 512)."},
    {"request-timeout", 0, CLI_COUNT, 1, offsetof(cli_args, request_timeout), "S", "QWEN_RERANK_REQUEST_TIMEOUT",
     "Seconds after which a request fails with status 504 (default: 300)."},
    {"drain-timeout", 0, CLI_COUNT, 1, offsetof(cli_args, drain_timeout), "S", "QWEN_RERANK_DRAIN_TIMEOUT",
     "Seconds that requests in work are given after SIGTERM (default: 30). A second signal ends at once."},
    {"log-format", 0, CLI_CHOICE, 0, offsetof(cli_args, log_format), "text|json", "QWEN_RERANK_LOG_FORMAT",
     "Log lines for people or for machines (default: text)."},
    {"tls-cert", 0, CLI_FILE, 0, offsetof(cli_args, tls_cert), "FILE", "QWEN_RERANK_TLS_CERT", "Certificate (PEM): serve HTTPS."},
    {"tls-key", 0, CLI_FILE, 0, offsetof(cli_args, tls_key), "FILE", "QWEN_RERANK_TLS_KEY", "Its private key (PEM)."},
    {0},
};

/* Keys of the options, the variable and the file, in one list. */
typedef struct keys {
    const char **items;
    size_t n, capacity;
    char *file;
} keys;

static int add_key(keys *k, const char *key)
{
    const char **items = qr_grow(k->items, &k->capacity, k->n + 1, sizeof *items);
    if (items == NULL) return 0;
    k->items = items;
    items[k->n++] = key;
    return 1;
}

static int read_keys(const cli_args *args, keys *k)
{
    qr_error err = {0};
    const char *variable = cli_env("QWEN_RERANK_API_KEY");
    size_t len, before;
    int ok = 1;
    for (size_t i = 0; i < args->api_keys.n; i++) ok &= add_key(k, args->api_keys.items[i]);
    if (variable != NULL) ok &= add_key(k, variable);
    before = k->n;
    if (args->api_key_file != NULL) {
        if (qr_file_read(args->api_key_file, 1 << 20, &k->file, &len, &err) != QR_OK) {
            cli_error(args, "%s", err.msg);
            return CLI_USAGE;
        }
        char *rest = NULL;
        for (char *line = strtok_r(k->file, "\r\n", &rest); line != NULL; line = strtok_r(NULL, "\r\n", &rest))
            if (line[0] != '#') ok &= add_key(k, line);
        if (k->n == before) {
            /* An empty file must not mean that everybody may come in. */
            cli_error(args, "%s: expected a key a line, found none", args->api_key_file);
            return CLI_USAGE;
        }
    }
    if (!ok) cli_error(args, "out of memory");
    return ok ? CLI_OK : CLI_FAILURE;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL && slash[1] != 0 ? slash + 1 : path;
}

/* Waits for SIGTERM or SIGINT, which cli_cancel_begin turns into a flag. */
static void wait_for_signal(const volatile int *stop)
{
    while (!qr_is_set(stop)) usleep(50000);
}

static int run(const cli_args *args)
{
    sv_log log = {.json = args->log_format, .level = (qr_log_level) args->log_level};
    sv_server *server = NULL;
    qr_engine *engine = NULL;
    keys k = {0};
    qr_error err = {0};
    char message[512];
    int code = read_keys(args, &k);
    if (code != CLI_OK) goto done;
    if ((args->tls_cert != NULL) != (args->tls_key != NULL)) {
        cli_error(args, "--tls-cert and --tls-key belong together");
        code = CLI_USAGE;
        goto done;
    }
    if (args->port > 65535) {
        cli_error(args, "--port: expected at most 65535, found %zu", args->port);
        code = CLI_USAGE;
        goto done;
    }
    if ((code = cli_engine_open(args, &engine)) != CLI_OK) goto done;
    qr_info info;
    qr_engine_info(engine, &info);
    const char *model_name = args->served_name != NULL ? args->served_name : base_name(info.model);
    sv_server_options server_options = {
        .host = args->host,
        .port = args->port > 0 ? (unsigned) args->port : DEFAULT_PORT,
        .unix_socket = args->unix_socket,
        .url_prefix = args->url_prefix,
        .api_keys = k.items,
        .n_api_keys = k.n,
        .max_body_bytes = args->max_body_mib << 20,
        .max_documents = args->max_documents,
        .max_waiting = args->max_waiting,
        .request_timeout_s = (double) args->request_timeout,
        .tls_cert = args->tls_cert,
        .tls_key = args->tls_key,
        .models = &model_name,
        .n_models = 1,
        .log = &log,
    };
    if (sv_server_open(&server, &server_options, &err) != QR_OK) {
        cli_error(args, "%s", err.msg);
        code = err.code == QR_E_ARG ? CLI_USAGE : CLI_FAILURE;
        goto done;
    }
    sv_server_set_engine(server, 0, engine);
    const volatile int *stop = cli_cancel_begin();
    const char *host = args->host != NULL ? args->host : "127.0.0.1";
    if (args->unix_socket != NULL) snprintf(message, sizeof message, "ready on unix:%s", args->unix_socket);
    else snprintf(message, sizeof message, "ready on http%s://%s:%u", args->tls_cert != NULL ? "s" : "", host, sv_server_port(server));
    sv_log_message(&log, QR_LOG_INFO, message);
    wait_for_signal(stop);
    sv_log_message(&log, QR_LOG_INFO, "stopping: requests in work are finished, new connections refused; a second signal ends at once");
    size_t left = sv_server_drain(server, args->drain_timeout > 0 ? (double) args->drain_timeout : DEFAULT_DRAIN_S);
    if (left > 0) {
        snprintf(message, sizeof message, "%zu requests were not finished in time and are cancelled", left);
        sv_log_message(&log, QR_LOG_WARN, message);
    }
    sv_log_message(&log, QR_LOG_INFO, "stopped");
done:
    sv_server_close(server);
    qr_engine_close(engine);
    qr_free(k.items);
    qr_free(k.file);
    return code;
}

const cli_command cli_serve = {
    .name = "serve",
    .operands = "",
    .min_operands = 0,
    .max_operands = 0,
    .summary = "answer rerank requests over HTTP",
    .text = "Serves POST /v1/rerank and what Cohere, Jina, Voyage, Mixedbread, text-embeddings-inference, vLLM and llama.cpp clients call "
            "instead, "
            "told apart by what they send.\n\n"
            "  qwen-rerank serve --port 9003\n"
            "  curl -s localhost:9003/v1/rerank -d '{\"query\": \"capital of China\", \"documents\": [\"Beijing\", \"Paris\"]}'",
    .groups = {options, cli_engine_options, cli_general_options},
    .run = run,
};
