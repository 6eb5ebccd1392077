/* serve: the HTTP service. */
#define _GNU_SOURCE
#include "base/file.h"
#include "base/mem.h"
#include "base/system.h"
#include "cli/config.h"
#include "cli/engine.h"
#include "cli/spawn.h"
#include "engine/self_test.h"
#include "server/server.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { DEFAULT_PORT = 9003, DEFAULT_DRAIN_S = 30 };

const cli_option cli_serve_options[] = {
    {"host", 0, CLI_TEXT, 0, offsetof(cli_args, host), "ADDRESS", "QWEN_RERANK_HOST",
     "Address or name to listen on; * for all (default: 127.0.0.1, this machine only).", "server.host", "127.0.0.1"},
    {"port", 'p', CLI_COUNT, 0, offsetof(cli_args, port), "N", "QWEN_RERANK_PORT",
     "Port to listen on (default: 9003; 0: any free one, which the log names).", "server.port", "9003"},
    {"unix-socket", 0, CLI_FILE, 0, offsetof(cli_args, unix_socket), "PATH", "QWEN_RERANK_UNIX_SOCKET",
     "Listen there instead of on a port.", "server.unix_socket", NULL},
    {"api-key", 0, CLI_LIST, 0, offsetof(cli_args, api_keys), "KEY", "QWEN_RERANK_API_KEY",
     "Ask for this key; may be repeated. Others see keys of the command line: better use the variable or a file.", NULL, NULL},
    {"api-key-file", 0, CLI_FILE, 0, offsetof(cli_args, api_key_file), "FILE", "QWEN_RERANK_API_KEY_FILE",
     "File with one key a line, any of which is good.", "server.api_key_file", NULL},
    {"protect-metrics", 0, CLI_SWITCH, 0, offsetof(cli_args, protect_metrics), NULL, "QWEN_RERANK_PROTECT_METRICS",
     "Ask for a key at /metrics, too.", "server.protect_metrics", "false"},
    {"cors-origin", 0, CLI_LIST, 0, offsetof(cli_args, cors_origins), "ORIGIN", "QWEN_RERANK_CORS_ORIGIN",
     "Let web pages from there ask, for example https://app.example; * for all; may be repeated.", "server.cors_origins", NULL},
    {"served-name", 0, CLI_TEXT, 0, offsetof(cli_args, served_name), "NAME", "QWEN_RERANK_SERVED_NAME",
     "What answers call the model when the request does not (default: the model's name).", "server.served_name", NULL},
    {"url-prefix", 0, CLI_TEXT, 0, offsetof(cli_args, url_prefix), "PATH", "QWEN_RERANK_URL_PREFIX",
     "Serve every route below this path, too, for example /v3.", "server.url_prefix", NULL},
    {"spawn", 0, CLI_SWITCH, 0, offsetof(cli_args, spawn), NULL, "QWEN_RERANK_SPAWN",
     "Start vLLM here, on --model, let it compute, start it again when it ends, and stop it with the service.", "vllm_options.spawn",
     "false"},
    {"vllm-command", 0, CLI_TEXT, 0, offsetof(cli_args, vllm_command), "COMMAND", "QWEN_RERANK_VLLM_COMMAND",
     "How --spawn starts it; words separated by blanks, flags follow (default: python3 -m vllm.entrypoints.openai.api_server).",
     "vllm_options.command", NULL},
    {"max-documents", 0, CLI_COUNT, 1, offsetof(cli_args, max_documents), "N", "QWEN_RERANK_MAX_DOCUMENTS",
     "Most documents in a request (default: 100000).", "limits.max_docs_per_request", "100000"},
    {"max-query-chars", 0, CLI_COUNT, 1, offsetof(cli_args, max_query_chars), "N", "QWEN_RERANK_MAX_QUERY_CHARS",
     "Longest query in characters; longer ones are refused.", "limits.max_query_chars", NULL},
    {"max-document-chars", 0, CLI_COUNT, 1, offsetof(cli_args, max_document_chars), "N", "QWEN_RERANK_MAX_DOC_CHARS",
     "Longest document in characters; longer ones are cut.", "limits.max_doc_chars", NULL},
    {"max-body", 0, CLI_COUNT, 1, offsetof(cli_args, max_body_mib), "MIB", "QWEN_RERANK_MAX_BODY", "Largest request in MiB (default: 64).",
     "limits.max_body_mib", "64"},
    {"max-waiting", 0, CLI_COUNT, 1, offsetof(cli_args, max_waiting), "N", "QWEN_RERANK_MAX_WAITING",
     "Requests in work or waiting; more are told to come again, status 429 (default: 512).", "limits.max_waiting", "512"},
    {"max-connections", 0, CLI_COUNT, 16, offsetof(cli_args, max_connections), "N", "QWEN_RERANK_MAX_CONNECTIONS",
     "Open connections; more wait until one is closed (default: 4096).", "limits.max_connections", "4096"},
    {"request-timeout", 0, CLI_COUNT, 1, offsetof(cli_args, request_timeout), "S", "QWEN_RERANK_REQUEST_TIMEOUT",
     "Seconds after which a request fails with status 504 (default: 300).", "limits.request_timeout_s", "300"},
    {"drain-timeout", 0, CLI_COUNT, 1, offsetof(cli_args, drain_timeout), "S", "QWEN_RERANK_DRAIN_TIMEOUT",
     "Seconds that requests in work are given after SIGTERM (default: 30). A second signal ends at once.", "server.drain_timeout_s", "30"},
    {"result-cache", 0, CLI_COUNT, 1, offsetof(cli_args, result_cache_mib), "MIB", "QWEN_RERANK_RESULT_CACHE",
     "Memory for scores of documents that were asked for before (default: none).", "cache.results_mib", NULL},
    {"warm-up", 0, CLI_SWITCH, 0, offsetof(cli_args, warm_up), NULL, "QWEN_RERANK_WARM_UP",
     "Compute something before the first request comes (default: true).", "server.warm_up", "true"},
    {"self-test", 0, CLI_SWITCH, 0, offsetof(cli_args, self_test), NULL, "QWEN_RERANK_SELF_TEST",
     "Once ready, rank four answers against unrelated texts, and warn if one comes out below (default: true).", "server.self_test", "true"},
    {"return-documents", 0, CLI_SWITCH, 0, offsetof(cli_args, return_documents), NULL, "QWEN_RERANK_RETURN_DOCUMENTS",
     "Send documents back if the request says neither yes nor no.", "server.return_documents", "false"},
    {"mirror-data", 0, CLI_SWITCH, 0, offsetof(cli_args, mirror_data), NULL, "QWEN_RERANK_MIRROR_DATA",
     "Send the list of results as \"data\", too, where some OpenAI-like clients look.", "server.mirror_data", "false"},
    {"log-format", 0, CLI_CHOICE, 0, offsetof(cli_args, log_format), "text|json", "QWEN_RERANK_LOG_FORMAT",
     "Log lines for people or for machines (default: text).", "logging.format", "text"},
    {"log-texts", 0, CLI_SWITCH, 0, offsetof(cli_args, log_texts), NULL, "QWEN_RERANK_LOG_TEXTS",
     "Log queries and documents, too, in JSON lines.", "logging.texts", "false"},
    {"tls-cert", 0, CLI_FILE, 0, offsetof(cli_args, tls_cert), "FILE", "QWEN_RERANK_TLS_CERT", "Certificate (PEM): serve HTTPS.",
     "server.tls_cert", NULL},
    {"tls-key", 0, CLI_FILE, 0, offsetof(cli_args, tls_key), "FILE", "QWEN_RERANK_TLS_KEY", "Its private key (PEM).", "server.tls_key",
     NULL},
    {0},
};

/* ---- keys ----------------------------------------------------------------------------------------------------------------------- */

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
    size_t len;
    int ok = 1;
    for (size_t i = 0; i < args->api_keys.n; i++) ok &= add_key(k, args->api_keys.items[i]);
    if (args->api_key_file != NULL) {
        size_t before = k->n;
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

/* ---- models --------------------------------------------------------------------------------------------------------------------- */

typedef struct served {
    char name[128];
    const char *model; /* NULL: the default one */
    qr_engine *engine;
} served;

/* What loads the models, in a thread of its own: the service answers meanwhile that it is loading. */
typedef struct loader {
    const cli_args *args;
    sv_log *log;
    sv_server *server;
    served *models;
    size_t n;
    const volatile int *stop;
    cli_spawn *spawn; /* or NULL */
    int code;
    atomic_int done;
} loader;

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL && slash[1] != 0 ? slash + 1 : path;
}

/* "NAME=MODEL", or "MODEL", which is then its own name. */
static void read_model(const cli_args *args, const char *text, served *m)
{
    const char *equals = text != NULL ? strchr(text, '=') : NULL, *slash = text != NULL ? strchr(text, '/') : NULL;
    m->model = text;
    if (equals != NULL && equals > text && (slash == NULL || slash > equals)) {
        snprintf(m->name, sizeof m->name, "%.*s", (int) (equals - text), text);
        m->model = equals + 1;
    } else if (args->served_name != NULL) {
        snprintf(m->name, sizeof m->name, "%s", args->served_name);
    }
}

/* A name for each, before anything is loaded: requests and answers use it. */
static int name_models(const cli_args *args, served *models, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        served *m = &models[i];
        read_model(args, args->models.n > 0 ? args->models.items[i] : NULL, m);
        if (m->name[0] == 0) {
            char *dir = NULL;
            int code = cli_model_locate(args, m->model, &dir);
            if (code != CLI_OK) return code;
            size_t len = strlen(dir);
            while (len > 1 && dir[len - 1] == '/') dir[--len] = 0;
            /* A snapshot of the Hugging Face cache has a hash for its name: what was asked for says more. */
            snprintf(m->name, sizeof m->name, "%s", m->model != NULL && access(m->model, F_OK) != 0 ? m->model : base_name(dir));
            qr_free(dir);
        }
        for (size_t k = 0; k < i; k++)
            if (strcmp(models[k].name, m->name) == 0) {
                cli_error(args, "two models are called '%s'; give them names: --model NAME=DIR", m->name);
                return CLI_USAGE;
            }
    }
    return CLI_OK;
}

static void *load(void *arg)
{
    loader *l = arg;
    l->code = CLI_OK;
    for (size_t i = 0; i < l->n && l->code == CLI_OK && !qr_is_set(l->stop); i++) {
        l->code = cli_engine_open(l->args, l->models[i].model, sv_log_message, l->log, &l->models[i].engine);
        if (l->code == CLI_OK) sv_server_set_engine(l->server, i, l->models[i].engine);
    }
    l->done = 1;
    return NULL;
}

/* ---- running -------------------------------------------------------------------------------------------------------------------- */

/* Tells systemd (Type=notify), as sd_notify does; does nothing elsewhere. */
static void notify(const char *state)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *path = cli_env("NOTIFY_SOCKET");
    if (path == NULL || (path[0] != '/' && path[0] != '@') || strlen(path) >= sizeof address.sun_path) return;
    strcpy(address.sun_path, path);
    if (path[0] == '@') address.sun_path[0] = 0;
    int fd = qr_socket(AF_UNIX, SOCK_DGRAM, 0);
    if (fd < 0) return;
    sendto(fd, state, strlen(state), 0, (struct sockaddr *) &address, (socklen_t) (offsetof(struct sockaddr_un, sun_path) + strlen(path)));
    close(fd);
}

/* A model that ranks at random looks like any other from outside. Requests are answered meanwhile. */
static void test_models(const loader *l)
{
    char line[1024];
    for (size_t i = 0; i < l->n && !qr_is_set(l->stop); i++) {
        qr_self_test_result result;
        qr_error err = {0};
        qr_status status = qr_self_test(l->models[i].engine, l->stop, &result, &err);
        if (status == QR_E_CANCELLED) return;
        int right = status == QR_OK && result.n_right == result.n;
        if (status != QR_OK) snprintf(line, sizeof line, "%s: self-test: %s", l->models[i].name, err.msg);
        else if (right)
            snprintf(line, sizeof line, "%s: self-test: %zu of %zu answers above unrelated texts", l->models[i].name, result.n_right,
                     result.n);
        else
            snprintf(line, sizeof line,
                     "%s: self-test: only %zu of %zu answers above unrelated texts: this model does not rank; it may be wrongly converted, "
                     "untrained, or no "
                     "reranker",
                     l->models[i].name, result.n_right, result.n);
        sv_log_message(l->log, right ? QR_LOG_INFO : QR_LOG_WARN, line);
    }
}

/* Until SIGTERM or SIGINT, which cli_cancel_begin turns into a flag, or a model that cannot be loaded. */
static int serve_until_stopped(const cli_args *args, loader *l, const char *address)
{
    char message[512];
    pthread_t thread;
    if (pthread_create(&thread, NULL, load, l) != 0) {
        cli_error(args, "cannot start a thread");
        return CLI_FAILURE;
    }
    while (!l->done && !qr_is_set(l->stop) && !cli_spawn_has_failed(l->spawn)) usleep(5000);
    if (!l->done) {
        int code = cli_spawn_has_failed(l->spawn) ? CLI_FAILURE : CLI_OK;
        sv_log_message(l->log, QR_LOG_INFO, "stopped while loading");
        pthread_detach(thread);
        cli_spawn_close(l->spawn);
        _exit(code); /* reading weights cannot be interrupted, and nothing is lost */
    }
    pthread_join(thread, NULL);
    if (l->code != CLI_OK) return l->code;
    snprintf(message, sizeof message, "ready on %s", address);
    sv_log_message(l->log, QR_LOG_INFO, message);
    notify("READY=1");
    if (cli_is_on(args->self_test, 1)) test_models(l);
    while (!qr_is_set(l->stop)) usleep(50000);
    notify("STOPPING=1");
    sv_log_message(l->log, QR_LOG_INFO, "stopping: requests in work are finished, new connections refused; a second signal ends at once");
    size_t left = sv_server_drain(l->server, args->drain_timeout > 0 ? (double) args->drain_timeout : DEFAULT_DRAIN_S);
    if (left > 0) {
        snprintf(message, sizeof message, "%zu requests were not finished in time and are cancelled", left);
        sv_log_message(l->log, QR_LOG_WARN, message);
    }
    sv_log_message(l->log, QR_LOG_INFO, "stopped");
    return CLI_OK;
}

static int check_args(const cli_args *args)
{
    if ((args->tls_cert != NULL) != (args->tls_key != NULL)) cli_error(args, "--tls-cert and --tls-key belong together");
    else if (args->port > 65535) cli_error(args, "--port: expected at most 65535, found %zu", args->port);
    else if (args->max_connections > 1000000)
        cli_error(args, "--max-connections: expected at most 1000000, found %zu", args->max_connections);
    else if (args->max_body_mib > 1 << 20) cli_error(args, "--max-body: expected at most %d, found %zu", 1 << 20, args->max_body_mib);
    else return CLI_OK;
    return CLI_USAGE;
}

/* Every connection is a file. Systems allow 1,024 by default and far more to those who ask. */
static void allow_files(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit); /* if it fails, fewer connections are open at a time */
}

/* glibc gives every thread a heap of its own, up to eight for each processor, and all of them grow to the size of the largest request. Few
 * threads allocate here at the same time: two heaps are as fast. */
static void share_heaps(void)
{
#ifdef __GLIBC__
    mallopt(M_ARENA_MAX, 2);
#endif
}

/* Prepares vLLM, and puts its URL in the place of --vllm-url; it may take long to load. */
static int prepare_vllm(const cli_args *args, const served *model, size_t n_models, sv_log *log, cli_spawn **spawn, const char **url,
                        cli_args *with)
{
    static const size_t load_s = 3600;
    char *dir = NULL;
    if (!cli_is_on(args->spawn, 0)) return CLI_OK;
    if (n_models > 1 || args->vllm_urls.n > 0) {
        cli_error(args, "--spawn: expected one --model and no --vllm-url");
        return CLI_USAGE;
    }
    int code = cli_model_locate(args, model->model, &dir);
    if (code == CLI_OK) code = cli_spawn_open(spawn, args, dir, sv_log_message, log);
    qr_free(dir);
    if (code != CLI_OK) return code;
    *url = cli_spawn_url(*spawn);
    with->vllm_urls = (cli_list){.items = url, .n = 1};
    if (with->backend == NULL) with->backend = "vllm";
    if (with->vllm_wait == 0) with->vllm_wait = load_s;
    return CLI_OK;
}

static int run(const cli_args *given)
{
    cli_args with_spawned = *given; /* the lists stay the caller's */
    const cli_args *args = &with_spawned;
    cli_spawn *spawn = NULL;
    const char *backend, *url;
    sv_log log = {.json = args->log_format, .level = (qr_log_level) args->log_level};
    sv_server *server = NULL;
    keys k = {0};
    qr_error err = {0};
    size_t n = args->models.n > 0 ? args->models.n : 1;
    served *models = qr_calloc(n, sizeof *models);
    const char **names = qr_calloc(n, sizeof *names);
    int code = models == NULL || names == NULL ? CLI_FAILURE : check_args(args);
    if (code == CLI_OK) code = read_keys(args, &k);
    if (code == CLI_OK) code = name_models(args, models, n);
    if (code == CLI_OK) code = prepare_vllm(args, models, n, &log, &spawn, &url, &with_spawned);
    if (code == CLI_OK) code = cli_backend_check(args, &backend);
    if (code != CLI_OK) goto done;
    allow_files();
    share_heaps();
    for (size_t i = 0; i < n; i++) names[i] = models[i].name;
    sv_server_options server_options = {
        .place = cli_backend_place(args),
        .host = args->host,
        .port = cli_is_given(args, offsetof(cli_args, port)) ? (unsigned) args->port : DEFAULT_PORT,
        .unix_socket = args->unix_socket,
        .url_prefix = args->url_prefix,
        .api_keys = k.items,
        .n_api_keys = k.n,
        .protect_metrics = cli_is_on(args->protect_metrics, 0),
        .cors_origins = args->cors_origins.items,
        .n_cors_origins = args->cors_origins.n,
        .tls_cert = args->tls_cert,
        .tls_key = args->tls_key,
        .models = names,
        .n_models = n,
        .max_body_bytes = args->max_body_mib << 20,
        .max_documents = args->max_documents,
        .max_query_chars = args->max_query_chars,
        .max_document_chars = args->max_document_chars,
        .max_waiting = args->max_waiting,
        .max_connections = (unsigned) args->max_connections,
        .request_timeout_s = (double) args->request_timeout,
        .return_documents = cli_is_on(args->return_documents, 0),
        .mirror_data = cli_is_on(args->mirror_data, 0),
        .log = &log,
        .log_texts = cli_is_on(args->log_texts, 0),
        .write_settings = cli_config_write,
        .settings_arg = (void *) (uintptr_t) given,
    };
    const volatile int *stop = cli_cancel_begin(); /* whoever can connect may also stop it in order */
    if (sv_server_open(&server, &server_options, &err) != QR_OK) {
        cli_error(args, "%s", err.msg);
        code = err.code == QR_E_ARG ? CLI_USAGE : CLI_FAILURE;
        goto done;
    }
    char address[300];
    const char *host = args->host != NULL ? args->host : "127.0.0.1";
    if (args->unix_socket != NULL) snprintf(address, sizeof address, "unix:%s", args->unix_socket);
    else snprintf(address, sizeof address, "http%s://%s:%u", args->tls_cert != NULL ? "s" : "", host, sv_server_port(server));
    loader l = {.args = args, .log = &log, .server = server, .models = models, .n = n, .stop = stop, .spawn = spawn};
    if (spawn != NULL) code = cli_spawn_start(spawn, args);
    if (code == CLI_OK) code = serve_until_stopped(args, &l, address);
done:
    sv_server_close(server);
    for (size_t i = 0; models != NULL && i < n; i++) qr_engine_close(models[i].engine);
    cli_spawn_close(spawn);
    qr_free(models);
    qr_free(names);
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
    .text =
        "Serves POST /v1/rerank and what clients of Cohere, Jina, Voyage, Mixedbread, text-embeddings-inference, vLLM, llama.cpp, NIM and "
        "DashScope call instead, told apart by what they send; and a page for people at /. With several --model NAME=DIR a request's "
        "\"model\" chooses.\n\n"
        "  qwen-rerank serve --port 9003\n"
        "  curl -s localhost:9003/v1/rerank -d '{\"query\": \"capital of China\", \"documents\": [\"Beijing\", \"Paris\"]}'",
    .groups = {cli_serve_options, cli_engine_options, cli_backend_options, cli_general_options},
    .run = run,
};
