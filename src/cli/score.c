/* score: JSON lines in, JSON lines out, in the same order. Made for scripts and tests: a big pipe is scored in groups that fill batches,
 * and a program that writes a line and waits for its answer gets it, because a group ends when no more input is there. */
#define _GNU_SOURCE
#include "base/mem.h"
#include "cli/engine.h"
#include "cli/input.h"
#include "cli/output.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

static const cli_option options[] = {
    {"logits", 0, CLI_SET, 1, offsetof(cli_args, logits), NULL, NULL, "Add yes_logit and no_logit to every result.", NULL, NULL},
    {0},
};

/* Enough for several batches, so that the engine never waits for input, and a bound on the memory for lines. */
enum { GROUP_LINES = 256, GROUP_BYTES = 8 << 20 };
static const size_t MAX_LINE_BYTES = (size_t) 256 << 20;

typedef struct item {
    cli_pair pair;
    qr_result result;
    qr_error err; /* of the line, or of scoring it; code QR_OK: the result is valid */
} item;

typedef struct group {
    const cli_args *args;
    qr_engine *engine;
    item items[GROUP_LINES];
    size_t n;
    uint64_t first_index; /* of items[0] */
    int any_bad;
    /* Scratch of one qr_score call. */
    qr_query queries[GROUP_LINES];
    qr_text documents[GROUP_LINES];
    qr_result results[GROUP_LINES];
} group;

static void parse_item(item *it, const char *line, size_t len)
{
    *it = (item){0};
    cli_pair_parse(&it->pair, line, len, &it->err);
}

/* Scores items[first..last). Neighbours with one query share its computed prefix. The library refuses a call as a whole, so when an input
 * cannot be scored the range is halved until the line at fault stands alone: few extra calls, and none for good input. */
static qr_status score_range(group *g, size_t first, size_t last, const volatile int *cancel, qr_error *err)
{
    size_t n_queries = 0, n_documents = 0;
    const item *previous = NULL;
    for (size_t i = first; i < last; i++) {
        item *it = &g->items[i];
        if (it->err.code != QR_OK) continue;
        g->documents[n_documents] = it->pair.document;
        if (previous == NULL || !cli_pair_same_query(&previous->pair, &it->pair))
            g->queries[n_queries++] = cli_pair_query(&it->pair, &g->documents[n_documents]);
        g->queries[n_queries - 1].n_documents++;
        n_documents++;
        previous = it;
    }
    if (n_documents == 0) return QR_OK;
    memset(g->results, 0, n_documents * sizeof g->results[0]);
    qr_call call = {.cancel = cancel, .want_ids_sha256 = 1};
    qr_status status = qr_score(g->engine, g->queries, n_queries, g->results, &call, err);
    if (status == QR_OK || status == QR_E_CANCELLED) {
        for (size_t i = first, d = 0; i < last; i++)
            if (g->items[i].err.code == QR_OK) g->items[i].result = g->results[d++];
        return status;
    }
    /* E_ARG can only be a max_length that the engine does not accept: everything else in the call is ours. */
    if (status != QR_E_INPUT && status != QR_E_TOO_LONG && status != QR_E_ARG) return status;
    if (last - first == 1) {
        g->items[first].err = *err;
        return QR_OK;
    }
    size_t middle = first + (last - first) / 2;
    status = score_range(g, first, middle, cancel, err);
    return status == QR_OK ? score_range(g, middle, last, cancel, err) : status;
}

static void print_item(const group *g, size_t i)
{
    const item *it = &g->items[i];
    qr_json_out json = cli_json(0);
    if (it->err.code == QR_OK && (it->result.flags & QR_RESULT_DONE) == 0) return; /* interrupted before its turn */
    qr_out_open(&json, NULL, '{');
    qr_out_int(&json, "index", g->first_index + i);
    if (it->err.code != QR_OK) {
        qr_out_string(&json, "error", it->err.msg);
    } else {
        char hex[65];
        for (size_t b = 0; b < 32; b++) snprintf(hex + 2 * b, 3, "%02x", it->result.ids_sha256[b]);
        qr_out_real(&json, "score", it->result.score, 17);
        qr_out_real(&json, "margin", (double) it->result.margin, 9);
        qr_out_int(&json, "n_tokens", it->result.n_tokens);
        qr_out_bool(&json, "truncated", (it->result.flags & QR_RESULT_TRUNCATED) != 0);
        qr_out_string(&json, "ids_sha256", hex);
        if (g->args->logits) {
            qr_out_real(&json, "yes_logit", (double) it->result.yes, 9);
            qr_out_real(&json, "no_logit", (double) it->result.no, 9);
        }
        if (it->pair.replaced || (it->result.flags & QR_RESULT_REPLACED) != 0) qr_out_bool(&json, "replaced", 1);
    }
    qr_out_close(&json, '}');
}

/* Scores and prints what was gathered, and empties the group. */
static int finish_group(group *g)
{
    qr_error err = {0};
    const volatile int *cancel = cli_cancel_begin();
    qr_status status = score_range(g, 0, g->n, cancel, &err);
    if (status == QR_OK || status == QR_E_CANCELLED)
        for (size_t i = 0; i < g->n; i++) {
            print_item(g, i);
            if (g->items[i].err.code != QR_OK) g->any_bad = 1;
        }
    else cli_error(g->args, "%s", err.msg);
    for (size_t i = 0; i < g->n; i++) json_decref(g->items[i].pair.json);
    g->first_index += g->n;
    g->n = 0;
    int flushed = cli_stdout_flush(g->args);
    if (cli_cancel_end() || status == QR_E_CANCELLED) {
        cli_error(g->args, "interrupted");
        return CLI_INTERRUPTED;
    }
    return status != QR_OK ? cli_exit_of_score(status) : flushed;
}

static int is_empty(const char *line, size_t len)
{
    while (len > 0 && (line[len - 1] == ' ' || line[len - 1] == '\t')) len--;
    return len == 0;
}

static int run(const cli_args *args)
{
    cli_reader reader = {.fd = STDIN_FILENO, .max_line = MAX_LINE_BYTES};
    group *g = qr_calloc(1, sizeof *g);
    if (g == NULL) {
        cli_error(args, "out of memory");
        return CLI_FAILURE;
    }
    g->args = args;
    size_t bytes = 0;
    int code = cli_engine_open(args, args->model, cli_log_print, (void *) (uintptr_t) args, &g->engine);
    while (code == CLI_OK) {
        const char *line;
        size_t len;
        cli_line got = cli_reader_next(&reader, g->n == 0, &line, &len);
        if (got == CLI_LINE_FAILED) {
            cli_error(args, "standard input: cannot read: %s", strerror(errno));
            code = errno == ENOMEM ? CLI_FAILURE : CLI_BAD_INPUT;
            break;
        }
        if (got == CLI_LINE_TOO_LONG) {
            g->items[g->n] = (item){0};
            qr_fail(&g->items[g->n++].err, QR_E_INPUT, "expected a line of at most %zu bytes", MAX_LINE_BYTES);
        }
        if (got == CLI_LINE && !is_empty(line, len)) { /* an empty line is neither an input nor counted */
            parse_item(&g->items[g->n++], line, len);
            bytes += len;
        }
        if (g->n > 0 && (got == CLI_LINE_LATER || got == CLI_LINE_END || g->n == GROUP_LINES || bytes >= GROUP_BYTES)) {
            code = finish_group(g);
            bytes = 0;
        }
        if (got == CLI_LINE_END) break;
    }
    for (size_t i = 0; i < g->n; i++) json_decref(g->items[i].pair.json);
    if (code == CLI_OK && g->any_bad) code = CLI_BAD_INPUT;
    qr_engine_close(g->engine);
    cli_reader_deinit(&reader);
    qr_free(g);
    return code;
}

const cli_command cli_score = {
    .name = "score",
    .operands = "",
    .summary = "score pairs given as JSON lines, for scripts",
    .text =
        "Reads lines {\"query\": ..., \"document\": ..., \"instruction\"?: ..., \"max_length\"?: N} from standard input and writes, in the "
        "same "
        "order, one line each: {\"index\", \"score\", \"margin\", \"n_tokens\", \"truncated\", \"ids_sha256\"}. The index counts lines "
        "that "
        "are not empty, from 0. An absent or null instruction means the default; \"\" is used as it is. ids_sha256 is the SHA-256 of the "
        "prompt's token ids as decimals joined by commas. \"replaced\": true tells that invalid UTF-8 or a lone surrogate was read as "
        "U+FFFD.\n\n"
        "A bad line gives {\"index\", \"error\"} in its place; the others are scored, and the exit code is 3. Answers are written as soon "
        "as no more input is there, so the program can be used as a coprocess: write a line, read its answer.\n\n"
        "  echo '{\"query\": \"capital of China\", \"document\": \"Beijing\"}' | qwen-rerank score",
    .groups = {options, cli_engine_options, cli_backend_options, cli_general_options},
    .run = run,
};
