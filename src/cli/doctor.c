/* doctor: what this machine and this build can do, for bug reports and for "why is it slow". */
#define _GNU_SOURCE
#include "base/mem.h"
#include "cli/engine.h"
#include "cli/output.h"
#include "cpu/features.h"
#include "engine/backend.h"
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
    {0},
};

/* A line of the report: printed as "key  value", or as a member of the JSON object. */
static void put(qr_json_out *json, int as_json, const char *key, const char *value)
{
    if (as_json) qr_out_string(json, key, value);
    else printf("%-14s %s\n", key, value);
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
        char why[256] = "";
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
            "output to bug reports. The exit code is 4 if there is no model.",
    .groups = {options, cli_engine_options, cli_backend_options, cli_general_options},
    .run = run,
};
