/* doctor: what this machine and this build can do, for bug reports and for "why is it slow". */
#define _GNU_SOURCE
#include "base/mem.h"
#include "base/system.h"
#include "cli/engine.h"
#include "cli/output.h"
#include "cpu/features.h"
#include "engine/engine.h"
#include "engine/replica.h"
#include "engine/scheduler.h"
#include "model/builtin.h"
#include "model/locate.h"

#include <jansson.h>
#include <openssl/crypto.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <utf8proc.h>

static const cli_option options[] = {
    {"json", 0, CLI_SET, CLI_FORMAT_JSON, offsetof(cli_args, format), NULL, NULL, "Print JSON.", NULL, NULL},
    {"deep", 0, CLI_SET, 1, offsetof(cli_args, deep), NULL, NULL,
     "Also compute known scores on every device, in every type and kind of attention.", NULL, NULL},
    {0},
};

/* A line of the report: printed as "key  value", or as a member of the JSON object. */
static void put(qr_json_out *json, int as_json, const char *key, const char *value)
{
    if (as_json) qr_out_string(json, key, value);
    else printf("%-14s %s\n", key, value);
}

/* ---- --deep -------------------------------------------------------------------------------------------------------------------- */

static const char *const dtype_names[] = {
    [QR_DTYPE_F32] = "f32", [QR_DTYPE_BF16] = "bf16", [QR_DTYPE_F16] = "f16", [QR_DTYPE_INT8] = "int8"};

typedef struct deep {
    qr_json_out *json;
    int as_json;
    size_t n_failed;
} deep;

static void put_check(deep *d, const char *backend, const char *device, qr_dtype dtype, const char *attention, qr_check check,
                      const char *why)
{
    static const char *const words[] = {"not supported", "right", "FAILED"};
    d->n_failed += check == QR_CHECK_FAILED;
    if (!d->as_json) {
        printf("%-14s %s %s %s%s: %s, %s\n", "check", backend, device, dtype_names[dtype], attention, words[check], why);
        fflush(stdout); /* a check of a GPU may take a minute, and the line says how far it got */
        return;
    }
    qr_out_open(d->json, NULL, '{');
    qr_out_string(d->json, "backend", backend);
    qr_out_string(d->json, "device", device);
    qr_out_string(d->json, "dtype", dtype_names[dtype]);
    if (attention[0] != 0) qr_out_string(d->json, "attention", attention + 1);
    qr_out_string(d->json, "result", words[check]);
    qr_out_string(d->json, "why", why);
    qr_out_close(d->json, '}');
}

/* Whether there is such a device. */
static int check_device(deep *d, const char *backend, const qr_backend_place *place, const char *device)
{
    qr_backend_place there = *place;
    char why[QR_REASON_SIZE] = "";
    if (device[0] != 0) there.device = device;
    if (qr_backend_probe(backend, &there, why, sizeof why) == QR_GRADE_NONE) return 0;
    int has_flash = strncmp(device, "cuda", 4) == 0;
    for (int dtype = QR_DTYPE_F32; dtype <= QR_DTYPE_INT8; dtype++)
        for (int flash = 0; flash <= has_flash; flash++) {
            qr_switch attention = has_flash ? flash ? QR_ON : QR_OFF : QR_DEFAULT;
            qr_check check = qr_backend_check(backend, &there, (qr_dtype) dtype, attention, why, sizeof why);
            put_check(d, backend, device[0] != 0 ? device : "cpu", (qr_dtype) dtype,
                      !has_flash ? ""
                      : flash    ? " flash"
                                 : " plain",
                      check, why);
        }
    return 1;
}

/* Only devices that exist show up; GPUs are numbered without gaps. */
static void check_all(deep *d, const qr_backend_place *place)
{
    enum { MAX_GPUS = 64 };
    static const char *const devices[] = {"cpu", "gpu", "mps"};
    for (size_t i = 0; qr_backend_names[i] != NULL; i++) {
        const char *name = qr_backend_names[i];
        if (strcmp(name, "cpu") == 0) {
            check_device(d, name, place, "");
            continue;
        }
        if (strcmp(name, "vllm") == 0) continue; /* what is there computes elsewhere */
        for (size_t j = 0; j < sizeof devices / sizeof devices[0]; j++) check_device(d, name, place, devices[j]);
        char device[16];
        for (int gpu = 0; gpu < MAX_GPUS; gpu++) {
            snprintf(device, sizeof device, "cuda:%d", gpu);
            if (!check_device(d, name, place, device)) break;
        }
    }
}

static size_t run_checks(qr_json_out *json, int as_json, const qr_backend_place *place)
{
    deep d = {json, as_json, 0};
    if (as_json) qr_out_open(json, "checks", '[');
    check_all(&d, place);
    if (as_json) qr_out_close(json, ']');
    return d.n_failed;
}

/* ---- servers -------------------------------------------------------------------------------------------------------------------- */

enum { MAX_SERVERS = 1024 };

/* Until each has been found good or bad; a check has time limits of its own, which add up to less than this. */
static size_t await_servers(qr_engine *engine, qr_replica *servers)
{
    const double patience_s = 100;
    for (double end = qr_now() + patience_s;; usleep(50000)) {
        size_t n = qr_engine_replicas(engine, servers, MAX_SERVERS), undecided = 0;
        if (n > MAX_SERVERS) n = MAX_SERVERS;
        for (size_t i = 0; i < n; i++) undecided += strcmp(servers[i].state, "up") != 0 && servers[i].reason[0] == 0;
        if (undecided == 0 || qr_now() > end) return n;
    }
}

static void put_server(qr_json_out *json, int as_json, const qr_replica *r)
{
    if (!as_json) {
        printf("%-14s %s: %s%s%s\n", "server", r->name, r->state, r->reason[0] != 0 ? ", " : "", r->reason);
        if (r->address[0] != 0) printf("%-14s address %s, vLLM %s", "", r->address, r->version[0] != 0 ? r->version : "of unknown version");
        if (r->model[0] != 0) printf(", model %s", r->model);
        if (r->max_model_len > 0) printf(", %zu tokens", r->max_model_len);
        if (r->address[0] != 0) printf("\n");
        if (r->protocol[0] != 0)
            printf("%-14s asked by %s (%s), %.1f ms for known prompts\n", "", r->protocol, r->why_protocol, r->sample_seconds * 1e3);
        return;
    }
    qr_out_open(json, NULL, '{');
    qr_replica_write(json, r);
    qr_out_close(json, '}');
}

/* What the vLLM servers are, and how long one short prompt takes from here by the whole way. */
static int run_servers(qr_json_out *json, const cli_args *args, int as_json)
{
    cli_args own = *args;
    qr_engine *engine = NULL;
    qr_error err = {0};
    qr_replica *servers = qr_calloc(MAX_SERVERS, sizeof *servers);
    own.backend = "vllm";
    own.needs_no_server = 1;
    int code = servers != NULL ? cli_engine_open(&own, args->model, NULL, NULL, &engine) : CLI_FAILURE;
    size_t n = engine != NULL ? await_servers(engine, servers) : 0, n_up = 0;
    if (as_json) qr_out_open(json, "servers", '[');
    for (size_t i = 0; i < n; i++) {
        put_server(json, as_json, &servers[i]);
        n_up += strcmp(servers[i].state, "up") == 0;
    }
    if (as_json) qr_out_close(json, ']');
    if (engine != NULL && n_up == 0) {
        cli_error(args, "no vLLM server can be used");
        code = CLI_FAILURE;
    }
    if (n_up > 0) {
        qr_text document = {"a", 1};
        qr_query query = {.query = {"a", 1}, .documents = &document, .n_documents = 1};
        qr_result result;
        double begin = qr_now();
        qr_status status = qr_score(engine, &query, 1, &result, NULL, &err);
        if (status != QR_OK) cli_error(args, "%s", err.msg);
        else if (as_json) qr_out_real(json, "round_trip_seconds", qr_now() - begin, 4);
        else printf("%-14s %.1f ms for a prompt of %u tokens\n", "round trip", (qr_now() - begin) * 1e3, result.n_tokens);
        code = status == QR_OK ? CLI_OK : CLI_FAILURE;
    }
    qr_engine_close(engine);
    qr_free(servers);
    return code;
}

static int run(const cli_args *args)
{
    int as_json = args->format == CLI_FORMAT_JSON;
    qr_json_out json = cli_json(1);
    struct utsname os = {0};
    qr_error err = {0};
    char text[512], *dir = NULL;
    const qr_cpu *cpu = qr_cpu_get();
    const qr_backend_ops *chosen = NULL;
    int code = CLI_OK;

    if (as_json) qr_out_open(&json, NULL, '{');
    put(&json, as_json, "version", qr_version());
    uname(&os);
    snprintf(text, sizeof text, "%s %s %s", os.sysname, os.release, os.machine);
    put(&json, as_json, "system", text);
    put(&json, as_json, "cpu", cpu->model);
    qr_cpu_features(text, sizeof text);
    put(&json, as_json, "features", text);
    put(&json, as_json, "kernels", qr_isa_name(cpu->isa));
    put(&json, as_json, "native bf16", cpu->native_bf16 ? "yes" : "no");
    put(&json, as_json, "native int8", cpu->native_int8 ? "yes" : "no");
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    uint64_t memory = pages > 0 && page > 0 ? (uint64_t) pages * (uint64_t) page : 0;
    if (as_json) {
        qr_out_int(&json, "memory_bytes", memory);
        qr_out_int(&json, "threads", (uint64_t) cpu->n_usable);
    } else {
        printf("%-14s %s\n%-14s %d\n", "memory", cli_bytes(text, sizeof text, memory), "threads", cpu->n_usable);
    }
    snprintf(text, sizeof text, "%s, jansson %s, utf8proc %s, %s", qr_cpu_libraries(), jansson_version_str(), utf8proc_version(),
             OpenSSL_version(OPENSSL_VERSION));
    put(&json, as_json, "libraries", text);

    if (as_json) qr_out_open(&json, "backends", '[');
    qr_backend_place place = cli_backend_place(args);
    for (size_t i = 0; qr_backend_names[i] != NULL; i++) {
        char why[QR_REASON_SIZE] = "";
        int value = qr_backend_probe(qr_backend_names[i], &place, why, sizeof why);
        if (as_json) {
            qr_out_open(&json, NULL, '{');
            qr_out_string(&json, "name", qr_backend_names[i]);
            qr_out_int(&json, "probe", value > 0 ? (uint64_t) value : 0);
            qr_out_string(&json, "why", why);
            qr_out_close(&json, '}');
        } else {
            printf("%-14s %s: %s (%d) %s\n", "backend", qr_backend_names[i], value > 0 ? "usable" : "not usable", value, why);
        }
    }
    if (as_json) qr_out_close(&json, ']');
    if (args->vllm_urls.n > 0) code = run_servers(&json, args, as_json);
    if (args->deep && run_checks(&json, as_json, &place) > 0) code = CLI_FAILURE;
    qr_status status = qr_backend_choose(&chosen, args->backend, &place, &err);
    if (status != QR_OK) {
        cli_error(args, "%s", err.msg);
        code = status == QR_E_NOT_FOUND ? CLI_USAGE : CLI_FAILURE;
    }
    put(&json, as_json, "chosen", chosen != NULL ? chosen->name : "none");

    /* A missing model is a finding, not a failure of the report, whose other lines may explain it; the exit code tells scripts. */
    if (qr_builtin_present()) cli_bytes(text, sizeof text, qr_builtin_bytes());
    put(&json, as_json, "built-in model", qr_builtin_present() ? text : "none in this build");
    status = qr_model_locate(args->model, &dir, &err);
    const char *model = status == QR_OK ? dir : as_json ? NULL : err.msg;
    put(&json, as_json, "model", qr_is_builtin(dir) && !as_json ? QR_BUILTIN ", the " QR_BUILTIN_TITLE : model);
    if (as_json) qr_out_bool(&json, "builtin_model", qr_is_builtin(dir));
    cli_note_builtin(args, dir);
    if (as_json && status != QR_OK) qr_out_string(&json, "model_error", err.msg);
    if (status != QR_OK && code == CLI_OK) code = cli_exit_of_open(status);
    if (as_json) qr_out_close(&json, '}');
    qr_free(dir);
    int flushed = cli_stdout_flush(args);
    return flushed != CLI_OK ? flushed : code;
}

const cli_command cli_doctor = {
    .name = "doctor",
    .operands = "",
    .summary = "show what this machine and this build can do",
    .text = "Prints processor, memory, libraries, every backend and why it can or cannot be used, and the model that would be used. Please "
            "add its "
            "output to bug reports. Given --vllm-url, it says what each server is. The exit code is 4 if there is no model, "
            "and 1 if a check of --deep failed or no server can be used.",
    .groups = {options, cli_engine_options, cli_backend_options, cli_general_options},
    .run = run,
};
