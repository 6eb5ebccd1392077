/* pull: a model from the Hugging Face Hub into the cache that Python's tools share. */
#define _GNU_SOURCE
#include "cli/pull.h"

#include "base/mem.h"
#include "base/system.h"
#include "cli/engine.h"
#include "cli/output.h"
#include "hub/pull.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const cli_option options[] = {
    {"file", 0, CLI_TEXT, 0, offsetof(cli_args, file), "NAME", NULL, "Of a repository with several GGUF files, this one.", NULL, NULL},
    {0},
};

/* Name, quantisation. 0: no name of a model on the Hub. */
static int parse(const char *text, qr_hf_id *id, char quantization[64])
{
    const char *colon = strrchr(text, ':');
    char name[QR_HF_MAX_NAME + 1];
    quantization[0] = 0;
    if (colon != NULL) snprintf(quantization, 64, "%s", colon + 1);
    size_t n = colon != NULL ? (size_t) (colon - text) : strlen(text);
    if (n >= sizeof name || (colon != NULL && (quantization[0] == 0 || strlen(colon + 1) >= 64))) return 0;
    memcpy(name, text, n);
    name[n] = 0;
    return qr_hf_id_parse(id, qr_hf_known(name) != NULL ? qr_hf_known(name) : name);
}

int cli_is_pullable(const char *name)
{
    qr_hf_id id;
    char quantization[64];
    return parse(name, &id, quantization);
}

/* ---- how far it is -------------------------------------------------------------------------------------------------------------- */

typedef struct display {
    const cli_args *args;
    int terminal, began;
    double start, last, next_line; /* when it began, was drawn, may be drawn where there is no terminal */
    uint64_t last_done;
    double rate; /* bytes a second, smoothed */
} display;

static void time_left(char *text, size_t size, double seconds)
{
    unsigned s = seconds < 0 || seconds > 359999 ? 359999 : (unsigned) seconds;
    if (s >= 3600) snprintf(text, size, "%u h %02u min", s / 3600, s / 60 % 60);
    else snprintf(text, size, "%u:%02u", s / 60, s % 60);
}

static void draw(void *arg, const qr_pull_progress *p)
{
    display *d = arg;
    double now = qr_now(), since = now - d->last;
    char done[32], total[32], rate[32], left[32] = "";
    int finished = p->file == NULL;
    if (!d->began) {
        d->began = 1;
        d->start = d->last = now;
        d->next_line = now + 5;
        d->last_done = p->done;
        return;
    }
    if (d->args->log_level == QR_LOG_ERROR || (since < 0.2 && !finished)) return;
    double current = since > 0 && p->done > d->last_done ? (double) (p->done - d->last_done) / since : 0;
    d->rate = d->rate > 0 ? 0.9 * d->rate + 0.1 * current : current;
    d->last = now;
    d->last_done = p->done;
    if (!d->terminal && !finished && now < d->next_line) return;
    d->next_line = now + 5;
    cli_bytes(done, sizeof done, p->done);
    cli_bytes(total, sizeof total, p->total);
    cli_bytes(rate, sizeof rate, (uint64_t) d->rate);
    if (!finished && d->rate > 0) time_left(left, sizeof left, (double) (p->total - (p->done < p->total ? p->done : p->total)) / d->rate);
    if (finished) {
        uint64_t fetched = p->done - (p->kept < p->done ? p->kept : p->done);
        cli_bytes(rate, sizeof rate, now > d->start ? (uint64_t) ((double) fetched / (now - d->start)) : 0);
        fprintf(stderr, "%s%s in %zu files, %s/s\n", d->terminal ? "\r\033[K" : "", total, p->n_files, rate);
    } else {
        fprintf(stderr, "%s%3.0f %%  %s of %s, %s/s%s%s  %s%s", d->terminal ? "\r\033[K" : "",
                p->total > 0 ? 100.0 * (double) p->done / (double) p->total : 100, done, total, rate, left[0] != 0 ? ", left " : "", left,
                p->file, d->terminal ? "" : "\n");
    }
}

/* ---- the command ---------------------------------------------------------------------------------------------------------------- */

int cli_pull_model(const cli_args *args, const char *name, const char *file, char **dir)
{
    qr_hf_id id;
    qr_error err = {0};
    char quantization[64], *found = NULL;
    display d = {.args = args, .terminal = isatty(STDERR_FILENO)};
    if (!parse(name, &id, quantization)) {
        cli_error(args, "%s: expected 0.6b, 4b, 8b or a name such as %s, found none of these", name, qr_hf_known_at(0));
        return CLI_USAGE;
    }
    qr_pull_options o = {.quantization = quantization[0] != 0 ? quantization : NULL, .file = file, .progress = draw, .arg = &d};
    o.cancel = cli_cancel_begin();
    qr_status status = qr_pull(&id, &o, &found, &err);
    if (cli_cancel_end() && status != QR_OK) status = QR_E_CANCELLED;
    if (status != QR_OK) {
        if (d.terminal && d.began && args->log_level != QR_LOG_ERROR) fputc('\n', stderr);
        cli_error(args, "%s", err.msg);
    }
    if (dir != NULL) *dir = found;
    else qr_free(found);
    return status == QR_E_NOT_FOUND ? cli_exit_of_open(status) : cli_exit_of_score(status);
}

static int run(const cli_args *args)
{
    char *dir = NULL;
    int code = cli_pull_model(args, args->operands.items[0], args->file, &dir);
    if (code == CLI_OK) {
        printf("%s\n", dir);
        code = cli_stdout_flush(args);
    }
    qr_free(dir);
    return code;
}

const cli_command cli_pull = {
    .name = "pull",
    .operands = "MODEL",
    .min_operands = 1,
    .max_operands = 1,
    .summary = "download a model from the Hugging Face Hub",
    .text =
        "MODEL is 0.6b, 4b or 8b (Qwen/Qwen3-Reranker-0.6B and so on), ORG/NAME, ORG/NAME@REVISION, or ORG/NAME:Q4_K_M for one of several "
        "GGUF "
        "files. Only the files that a reranker needs are fetched, over several connections, into the cache that Python's tools share "
        "(HF_HUB_CACHE, HF_HOME); their hashes are checked. An interrupted pull goes on where it was. Prints the folder of the model, or "
        "the GGUF file.\n\n"
        "HF_ENDPOINT names a mirror, HF_TOKEN a token for private models; proxies are those of the environment (https_proxy). With "
        "HF_HUB_OFFLINE=1 nothing is fetched.\n\n"
        "  qwen-rerank pull 0.6b && qwen-rerank serve",
    .groups = {options, cli_general_options},
    .run = run,
};
