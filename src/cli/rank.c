/* rank: orders documents by how well they answer a query. */
#define _GNU_SOURCE
#include "base/mem.h"
#include "cli/engine.h"
#include "cli/input.h"
#include "cli/output.h"

#include <string.h>

static const cli_option options[] = {
    {"top-n", 'n', CLI_COUNT, 1, offsetof(cli_args, top_n), "N", NULL, "Print only the N best documents.", NULL, NULL},
    {"doc", 'd', CLI_LIST, 0, offsetof(cli_args, docs), "TEXT", NULL, "A document given as an argument; may be repeated.", NULL, NULL},
    {"input", 0, CLI_CHOICE, 0, offsetof(cli_args, input), "auto|text|lines|jsonl", NULL,
     "How inputs hold documents: one per file (text), one per line (lines), JSON lines {\"text\": ..., \"id\": ...} or strings (jsonl). "
     "Default: .jsonl files as jsonl, other files as text, standard input as lines.",
     NULL, NULL},
    {"lines", 'l', CLI_SET, CLI_INPUT_LINES, offsetof(cli_args, input), NULL, NULL, "Short for --input lines.", NULL, NULL},
    {"format", 'f', CLI_CHOICE, 0, offsetof(cli_args, format), "table|json|jsonl", NULL, "Output (default: table).", NULL, NULL},
    {"json", 0, CLI_SET, CLI_FORMAT_JSON, offsetof(cli_args, format), NULL, NULL, "Short for --format json.", NULL, NULL},
    {"jsonl", 0, CLI_SET, CLI_FORMAT_JSONL, offsetof(cli_args, format), NULL, NULL, "Short for --format jsonl: one result per line.", NULL,
     NULL},
    {"text", 't', CLI_SET, 1, offsetof(cli_args, text), NULL, NULL, "Include the documents' texts in JSON output.", NULL, NULL},
    {"raw", 'r', CLI_SET, 1, offsetof(cli_args, raw), NULL, NULL,
     "Show the margin, logit(yes) - logit(no), instead of the probability in the table.", NULL, NULL},
    {"explain", 'e', CLI_SET, 1, offsetof(cli_args, explain), NULL, NULL,
     "Show tokens, shared tokens, margin, both logits, and whether the text was cut or held invalid UTF-8.", NULL, NULL},
    {"color", 0, CLI_CHOICE, 0, offsetof(cli_args, color), "auto|always|never", NULL,
     "Colours in the table (default: auto, on a terminal and without NO_COLOR).", NULL, NULL},
    {0},
};

enum { NAME_BYTES = 4096 + 32, SAFE_BYTES = 3 * NAME_BYTES };

typedef struct ranking {
    const cli_args *args;
    const char *query;
    const cli_docs *docs;
    const qr_result *results;
    const size_t *order;
    size_t n_shown, n_done;
    int complete;
} ranking;

static int is_replaced(const ranking *r, size_t i) { return r->docs->items[i].replaced || (r->results[i].flags & QR_RESULT_REPLACED) != 0; }

static void json_result(qr_json_out *json, const ranking *r, size_t place)
{
    size_t i = r->order[place];
    const qr_result *result = &r->results[i];
    const cli_doc *doc = &r->docs->items[i];
    char name[NAME_BYTES];
    cli_doc_name(doc, name, sizeof name);
    qr_out_open(json, NULL, '{');
    qr_out_int(json, "index", i);
    qr_out_int(json, "rank", place + 1);
    qr_out_real(json, "score", result->score, 17);
    qr_out_real(json, "margin", (double) result->margin, 9);
    qr_out_string(json, "name", name);
    if (r->args->text) qr_out_text(json, "text", doc->text.data, doc->text.len);
    qr_out_int(json, "n_tokens", result->n_tokens);
    qr_out_bool(json, "truncated", (result->flags & QR_RESULT_TRUNCATED) != 0);
    if (is_replaced(r, i)) qr_out_bool(json, "replaced", 1);
    if (r->args->explain) {
        qr_out_int(json, "n_shared", result->n_shared);
        qr_out_real(json, "yes_logit", (double) result->yes, 9);
        qr_out_real(json, "no_logit", (double) result->no, 9);
    }
    qr_out_close(json, '}');
}

static int print_json(const ranking *r, qr_engine *engine)
{
    qr_json_out json = cli_json(1);
    qr_info info;
    qr_stats stats;
    qr_engine_info(engine, &info);
    qr_engine_stats(engine, &stats);
    qr_out_open(&json, NULL, '{');
    qr_out_string(&json, "query", r->query);
    qr_out_string(&json, "model", info.model);
    qr_out_string(&json, "backend", info.backend);
    qr_out_string(&json, "dtype", info.dtype);
    qr_out_open(&json, "results", '[');
    for (size_t place = 0; place < r->n_shown; place++) json_result(&json, r, place);
    qr_out_close(&json, ']');
    qr_out_open(&json, "usage", '{');
    qr_out_int(&json, "documents", r->n_done);
    qr_out_int(&json, "prompt_tokens", stats.prompt_tokens);
    qr_out_int(&json, "computed_tokens", stats.computed_tokens);
    qr_out_real(&json, "compute_seconds", stats.compute_seconds, 6);
    qr_out_close(&json, '}');
    qr_out_bool(&json, "complete", r->complete);
    qr_out_close(&json, '}');
    return cli_stdout_flush(r->args);
}

static int print_jsonl(const ranking *r)
{
    qr_json_out json = cli_json(0);
    for (size_t place = 0; place < r->n_shown; place++) {
        json_result(&json, r, place);
        if (place % 256 == 255 && cli_stdout_flush(r->args) != CLI_OK) return CLI_FAILURE; /* nobody reads any more: stop */
    }
    return cli_stdout_flush(r->args);
}

static void format_score(const ranking *r, const qr_result *result, char *out, size_t size)
{
    if (r->args->raw) snprintf(out, size, "%+.4f", (double) result->margin);
    else if (result->score != 0 && result->score < 0.00005) /* would round to 0.0000 and hide the order */
        snprintf(out, size, "%.1e", result->score);
    else snprintf(out, size, "%.4f", result->score);
}

/* `text` padded to `width` columns, of which it takes `used`. */
static void put_padded(const char *text, int used, int width) { printf("%s%*s", text, width > used ? width - used : 0, ""); }

static int print_table(const ranking *r)
{
    static char name[NAME_BYTES], safe[SAFE_BYTES]; /* too large for comfort on the stack of a recursive caller, and there is one table */
    enum { TEXT_COLUMNS_IN_PIPE = 80 };
    int color = cli_use_color(r->args), columns = cli_terminal_columns();
    int score_width = 7, rank_width = r->n_shown > 9999 ? 8 : 4, fixed, name_width = 4, explain_width = r->args->explain ? 53 : 0;
    const char *dim = color ? "\x1b[2m" : "", *bold = color ? "\x1b[1m" : "", *end = color ? "\x1b[0m" : "";
    fixed = rank_width + 2 + score_width + 2 + explain_width;
    for (size_t place = 0; place < r->n_shown; place++) {
        cli_doc_name(&r->docs->items[r->order[place]], name, sizeof name);
        int w = cli_text_safe(safe, sizeof safe, name, strlen(name), CLI_SAFE_ALL);
        if (w > name_width) name_width = w;
    }
    /* On a terminal names share the line with the text; in a pipe they stay whole, for other programs to pick up. */
    int name_limit = CLI_SAFE_ALL, text_columns = TEXT_COLUMNS_IN_PIPE;
    if (columns > 0) {
        int room = columns - fixed - 2;
        name_limit = room / 2 > 12 ? room / 2 : 12;
        if (name_width > name_limit) name_width = name_limit;
        text_columns = room - name_width;
    }
    printf("%s%*s  %*s  ", dim, rank_width, "rank", score_width, r->args->raw ? "margin" : "score");
    if (r->args->explain) printf("%6s %6s  %8s %8s %8s  %-7s  ", "tokens", "shared", "margin", "yes", "no", "notes");
    put_padded("name", 4, name_width);
    printf("%s%s\n", text_columns > 4 ? "  text" : "", end);
    for (size_t place = 0; place < r->n_shown; place++) {
        const cli_doc *doc = &r->docs->items[r->order[place]];
        const qr_result *result = &r->results[r->order[place]];
        char score[32];
        format_score(r, result, score, sizeof score);
        const char *hue = !color ? "" : result->score >= 0.5 ? "\x1b[32m" : "\x1b[33m";
        printf("%*zu  %s%*s%s  ", rank_width, place + 1, hue, score_width, score, end);
        if (r->args->explain) {
            int cut = (result->flags & QR_RESULT_TRUNCATED) != 0, utf8 = is_replaced(r, r->order[place]);
            char notes[16];
            snprintf(notes, sizeof notes, "%s%s%s", cut ? "cut" : "", cut && utf8 ? "," : "", utf8 ? "utf" : cut ? "" : "-");
            printf("%6u %6u  %8.3f %8.3f %8.3f  %-7s  ", result->n_tokens, result->n_shared, (double) result->margin, (double) result->yes,
                   (double) result->no, notes);
        }
        cli_doc_name(doc, name, sizeof name);
        int used = cli_text_safe(safe, sizeof safe, name, strlen(name), name_limit);
        fputs(bold, stdout);
        put_padded(safe, used, name_width);
        fputs(end, stdout);
        if (text_columns > 4) {
            cli_text_safe(safe, sizeof safe, doc->text.data, doc->text.len, text_columns);
            printf("  %s", safe);
        }
        putchar('\n');
        if (place % 256 == 255 && cli_stdout_flush(r->args) != CLI_OK) return CLI_FAILURE;
    }
    if (!r->complete) printf("incomplete: interrupted after %zu of %zu documents\n", r->n_done, r->docs->n);
    return cli_stdout_flush(r->args);
}

static int run(const cli_args *args)
{
    cli_docs docs;
    qr_engine *engine = NULL;
    qr_text *texts = NULL;
    qr_result *results = NULL;
    size_t *order = NULL;
    const char *query_text = args->operands.items[0];
    int code = cli_docs_read(&docs, args);
    if (code != CLI_OK) goto done;
    texts = qr_calloc(docs.n, sizeof *texts);
    results = qr_calloc(docs.n, sizeof *results);
    order = qr_calloc(docs.n, sizeof *order);
    if (texts == NULL || results == NULL || order == NULL) {
        cli_error(args, "no memory for %zu documents", docs.n);
        code = CLI_FAILURE;
        goto done;
    }
    for (size_t i = 0; i < docs.n; i++) texts[i] = docs.items[i].text;
    if ((code = cli_engine_open(args, args->model, cli_log_print, (void *) (uintptr_t) args, &engine)) != CLI_OK) goto done;

    cli_progress progress;
    cli_progress_begin(&progress, args);
    qr_error err = {0};
    qr_query query = {.query = {query_text, strlen(query_text)}, .documents = texts, .n_documents = docs.n};
    qr_call call = {.progress = cli_progress_update, .progress_arg = &progress, .cancel = cli_cancel_begin()};
    qr_status status = qr_score(engine, &query, 1, results, &call, &err);
    cli_progress_end(&progress);
    code = cli_exit_of_score(status);
    if (status != QR_OK && status != QR_E_CANCELLED) {
        cli_error(args, "%s", err.msg);
        goto done;
    }

    ranking r = {.args = args, .query = query_text, .docs = &docs, .results = results, .order = order, .complete = status == QR_OK};
    qr_rank(results, docs.n, order);
    for (size_t i = 0; i < docs.n; i++) r.n_done += (results[i].flags & QR_RESULT_DONE) != 0;
    r.n_shown = args->top_n > 0 && args->top_n < r.n_done ? args->top_n : r.n_done;
    int printed = args->format == CLI_FORMAT_JSON    ? print_json(&r, engine)
                  : args->format == CLI_FORMAT_JSONL ? print_jsonl(&r)
                                                     : print_table(&r);
    cli_cancel_end();
    if (!r.complete) cli_error(args, "interrupted: %zu of %zu documents were scored", r.n_done, docs.n);
    if (printed != CLI_OK) code = printed;
    else if (code == CLI_OK && docs.n_unreadable > 0) code = CLI_BAD_INPUT;
done:
    qr_engine_close(engine);
    qr_free(order);
    qr_free(results);
    qr_free(texts);
    cli_docs_deinit(&docs);
    return code;
}

const cli_command cli_rank = {
    .name = "rank",
    .operands = "QUERY [FILE|DIR|-]...",
    .min_operands = 1,
    .max_operands = SIZE_MAX,
    .summary = "order documents by how well they answer a query",
    .text =
        "Every FILE is a document; of a DIR, every regular file below it, in the order of names, without hidden and binary ones. Lines of "
        "standard input are documents when '-' is given, or when neither a FILE nor --doc is and standard input is not a terminal. Write "
        "'--' "
        "before a query that starts with a dash.\n\n"
        "A file that is named and cannot be read ends the program before anything is scored; one inside a folder is reported and left out, "
        "and "
        "the exit code is 3. Scores are probabilities from 0 to 1 and can be compared between calls of one model.\n\n"
        "  qwen-rerank rank 'list open files' docs/\n"
        "  grep -ri raid notes/ | qwen-rerank rank 'configure RAID' --top-n 5\n"
        "  qwen-rerank rank 'capital of China' --doc Beijing --doc Paris --json",
    .groups = {options, cli_engine_options, cli_backend_options, cli_general_options},
    .run = run,
};
