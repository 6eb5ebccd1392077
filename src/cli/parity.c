/* parity: the same prompts through several backends, and how far their answers are apart. */
#define _GNU_SOURCE
#include "base/mem.h"
#include "base/system.h"
#include "cli/engine.h"
#include "cli/output.h"
#include "cli/pairs.h"
#include "engine/scheduler.h"

#include <math.h>
#include <string.h>

static const cli_option options[] = {
    {"backends", 0, CLI_TEXT, 0, offsetof(cli_args, backends), "LIST", NULL,
     "Backends to compare, each NAME[:DTYPE[:DEVICE]], joined by commas (default: cpu:f32 and all that are usable).", NULL, NULL},
    {"pairs", 0, CLI_FILE, 0, offsetof(cli_args, pairs), "FILE", NULL,
     "JSON lines as for 'score' (default: three questions with six documents each); - is standard input.", NULL, NULL},
    {"tolerance", 0, CLI_REAL, 1, offsetof(cli_args, tolerance), "DIFF", NULL,
     "Largest difference between two scores that is no failure (default: 0.05).", NULL, NULL},
    {"json", 0, CLI_SET, CLI_FORMAT_JSON, offsetof(cli_args, format), NULL, NULL, "Print JSON.", NULL, NULL},
    {0},
};

static const double default_tolerance = 0.05;
enum { MAX_RUNS = 16 };

static const char *const default_queries[] = {"What is the capital of China?", "Explain gravity", "What is Python used for?"};
static const char *const default_documents[] = {
    "The capital of China is Beijing.",
    "Shanghai is the largest city of China by population, but it is not the seat of its government.",
    "Gravity is a force that attracts two bodies towards each other. It gives weight to physical objects.",
    "An apple falls because the Earth pulls on it, and the Moon stays on its way around the Earth for the same reason.",
    "Python is a programming language for scripts, web services, data analysis and machine learning.",
    "The python is a large snake of Africa, Asia and Australia that has no venom.",
};

/* One backend with one type on one device, and what it said. */
typedef struct run_of {
    char spec[128]; /* as given; the parts below point into `parts` */
    char parts[128];
    char name[200]; /* "cpu f32" */
    char device[128];
    const char *backend, *dtype, *device_option;
    qr_result *results; /* [n] */
    double seconds;
} run_of;

typedef struct comparison {
    const cli_args *args;
    cli_pairs pairs;
    run_of runs[MAX_RUNS];
    size_t n_runs;
} comparison;

/* How far two runs are apart. Orders are compared within queries. */
typedef struct distance {
    double margin_max, margin_mean, score_max, score_mean;
    size_t worst;          /* index of the pair with score_max */
    size_t n_orders;       /* pairs of documents of one query */
    size_t n_changed;      /* of these, in another order */
    double changed_by_max; /* largest difference of two scores, in either run, whose order changed */
    double tau;            /* Kendall's: 1 same order everywhere, -1 the opposite */
} distance;

/* ---- pairs ---------------------------------------------------------------------------------------------------------------------- */

static qr_text text_of(const char *s) { return (qr_text){s, strlen(s)}; }

static int read_pairs(comparison *c)
{
    if (c->args->pairs != NULL) return cli_pairs_read(&c->pairs, c->args, c->args->pairs);
    int good = 1;
    for (size_t q = 0; q < sizeof default_queries / sizeof default_queries[0]; q++)
        for (size_t d = 0; d < sizeof default_documents / sizeof default_documents[0]; d++) {
            cli_pair pair = {.query = text_of(default_queries[q]), .document = text_of(default_documents[d])};
            good = good && cli_pairs_add(&c->pairs, &pair);
        }
    if (good && cli_pairs_finish(&c->pairs)) return CLI_OK;
    cli_error(c->args, "out of memory");
    return CLI_FAILURE;
}

/* ---- runs ----------------------------------------------------------------------------------------------------------------------- */

static int add_run(comparison *c, const char *spec, size_t len)
{
    run_of *r = &c->runs[c->n_runs];
    if (c->n_runs == MAX_RUNS || len == 0 || len >= sizeof r->spec) {
        cli_error(c->args, "--backends: expected up to %d of NAME[:DTYPE[:DEVICE]], joined by commas", MAX_RUNS);
        return CLI_USAGE;
    }
    memcpy(r->spec, spec, len);
    memcpy(r->parts, spec, len);
    r->backend = r->parts;
    char *colon = strchr(r->parts, ':');
    if (colon != NULL) {
        *colon = 0;
        r->dtype = colon + 1;
        if ((colon = strchr(colon + 1, ':')) != NULL) {
            *colon = 0;
            r->device_option = colon + 1; /* which may have a colon of its own, "cuda:1" */
        }
    }
    c->n_runs++;
    return CLI_OK;
}

static int choose_runs(comparison *c)
{
    const char *list = c->args->backends;
    int code = CLI_OK;
    if (list != NULL) {
        for (const char *p = list; code == CLI_OK; p++) {
            size_t n = strcspn(p, ",");
            code = add_run(c, p, n);
            p += n;
            if (*p == 0) break;
        }
        return code;
    }
    qr_backend_place place = cli_backend_place(c->args);
    code = add_run(c, "cpu:f32", 7);
    for (size_t i = 0; qr_backend_names[i] != NULL && code == CLI_OK; i++) {
        char why[QR_REASON_SIZE];
        if (qr_backend_probe(qr_backend_names[i], &place, why, sizeof why) > QR_GRADE_NONE)
            code = add_run(c, qr_backend_names[i], strlen(qr_backend_names[i]));
        else cli_note(c->args, QR_LOG_WARN, "%s is left out: %s", qr_backend_names[i], why);
    }
    return code;
}

static int set_dtype(const run_of *r, cli_args *args)
{
    static const char *const names[] = {"auto", "f32", "bf16", "f16", "int8"};
    static const int dtypes[] = {QR_DTYPE_AUTO, QR_DTYPE_F32, QR_DTYPE_BF16, QR_DTYPE_F16, QR_DTYPE_INT8};
    if (r->dtype == NULL) return CLI_OK;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(r->dtype, names[i]) == 0) {
            args->dtype = dtypes[i];
            return CLI_OK;
        }
    cli_error(args, "--backends: %s: expected auto, f32, bf16, f16 or int8 after the colon, found \"%s\"", r->spec, r->dtype);
    return CLI_USAGE;
}

/* Models are open one after another, so that the largest decides about memory, not the sum. */
static int run_one(comparison *c, run_of *r)
{
    cli_args args = *c->args;
    qr_engine *engine;
    qr_info info;
    qr_error err = {0};
    args.backend = r->backend;
    if (r->device_option != NULL) args.device = r->device_option;
    int code = set_dtype(r, &args);
    if (code == CLI_OK) code = cli_engine_open(&args, args.model, cli_log_print, (void *) (uintptr_t) c->args, &engine);
    if (code != CLI_OK) return code;
    qr_engine_info(engine, &info);
    snprintf(r->name, sizeof r->name, "%s %s", info.backend, info.dtype);
    snprintf(r->device, sizeof r->device, "%s", info.device);
    r->results = qr_calloc(c->pairs.n, sizeof *r->results);
    const volatile int *cancel = cli_cancel_begin();
    qr_call call = {.cancel = cancel};
    double start = qr_now();
    qr_status status = r->results != NULL ? qr_score(engine, c->pairs.queries, c->pairs.n_queries, r->results, &call, &err)
                                          : qr_fail(&err, QR_E_MEMORY, "out of memory");
    r->seconds = qr_now() - start;
    if (cli_cancel_end()) status = QR_E_CANCELLED;
    if (status == QR_E_CANCELLED) cli_error(c->args, "interrupted");
    else if (status != QR_OK) cli_error(c->args, "%s: %s", r->spec, err.msg);
    qr_engine_close(engine);
    return cli_exit_of_score(status);
}

/* ---- the comparison -------------------------------------------------------------------------------------------------------------- */

static void compare_orders(const comparison *c, const qr_result *a, const qr_result *b, distance *d)
{
    double agreed = 0;
    size_t first = 0;
    for (size_t q = 0; q < c->pairs.n_queries; first += c->pairs.queries[q++].n_documents)
        for (size_t i = first; i < first + c->pairs.queries[q].n_documents; i++)
            for (size_t j = first; j < i; j++) {
                float x = a[i].margin - a[j].margin, y = b[i].margin - b[j].margin;
                d->n_orders++;
                agreed += (double) ((x > 0) - (x < 0)) * (double) ((y > 0) - (y < 0)) + (x == 0 && y == 0);
                if (!((x > 0 && y < 0) || (x < 0 && y > 0))) continue;
                d->n_changed++;
                d->changed_by_max = fmax(d->changed_by_max, fmax(fabs(a[i].score - a[j].score), fabs(b[i].score - b[j].score)));
            }
    d->tau = d->n_orders > 0 ? agreed / (double) d->n_orders : 1;
}

static distance compare(const comparison *c, const run_of *r, const run_of *s)
{
    distance d = {0};
    for (size_t i = 0; i < c->pairs.n; i++) {
        double margin = fabs((double) r->results[i].margin - (double) s->results[i].margin);
        double score = fabs(r->results[i].score - s->results[i].score);
        d.margin_max = fmax(d.margin_max, margin);
        d.margin_mean += margin / (double) c->pairs.n;
        d.score_mean += score / (double) c->pairs.n;
        if (score > d.score_max) {
            d.score_max = score;
            d.worst = i;
        }
    }
    compare_orders(c, r->results, s->results, &d);
    return d;
}

/* Two documents may change places if their scores were within the tolerance anyway. */
static int is_within(const distance *d, double tolerance) { return d->score_max <= tolerance && d->changed_by_max <= tolerance; }

static void print_json_distance(qr_json_out *json, const run_of *r, const run_of *s, const distance *d, double tolerance)
{
    qr_out_open(json, NULL, '{');
    qr_out_string(json, "a", r->spec);
    qr_out_string(json, "b", s->spec);
    qr_out_real(json, "margin_max", d->margin_max, 6);
    qr_out_real(json, "margin_mean", d->margin_mean, 6);
    qr_out_real(json, "score_max", d->score_max, 6);
    qr_out_real(json, "score_mean", d->score_mean, 6);
    qr_out_int(json, "worst", d->worst);
    qr_out_int(json, "orders", d->n_orders);
    qr_out_int(json, "order_changes", d->n_changed);
    qr_out_real(json, "order_changed_by_max", d->changed_by_max, 6);
    qr_out_real(json, "kendall_tau", d->tau, 6);
    qr_out_bool(json, "within_tolerance", is_within(d, tolerance));
    qr_out_close(json, '}');
}

static void print_json(const comparison *c, double tolerance, int all_within)
{
    qr_json_out json = cli_json(1);
    qr_out_open(&json, NULL, '{');
    qr_out_int(&json, "pairs", c->pairs.n);
    qr_out_int(&json, "queries", c->pairs.n_queries);
    qr_out_real(&json, "tolerance", tolerance, 6);
    qr_out_open(&json, "backends", '[');
    for (size_t i = 0; i < c->n_runs; i++) {
        const run_of *r = &c->runs[i];
        qr_out_open(&json, NULL, '{');
        qr_out_string(&json, "spec", r->spec);
        qr_out_string(&json, "name", r->name);
        qr_out_string(&json, "device", r->device);
        qr_out_real(&json, "seconds", r->seconds, 4);
        qr_out_close(&json, '}');
    }
    qr_out_close(&json, ']');
    qr_out_open(&json, "distances", '[');
    for (size_t i = 0; i < c->n_runs; i++)
        for (size_t j = 0; j < i; j++) {
            distance d = compare(c, &c->runs[j], &c->runs[i]);
            print_json_distance(&json, &c->runs[j], &c->runs[i], &d, tolerance);
        }
    qr_out_close(&json, ']');
    qr_out_bool(&json, "within_tolerance", all_within);
    qr_out_close(&json, '}');
}

static void print_table(const comparison *c, double tolerance, int all_within)
{
    printf("%zu pairs of %zu quer%s\n\n%-20s %-10s %9s  %s\n", c->pairs.n, c->pairs.n_queries, c->pairs.n_queries == 1 ? "y" : "ies",
           "backend", "", "seconds", "device");
    for (size_t i = 0; i < c->n_runs; i++) {
        const run_of *r = &c->runs[i];
        printf("%-20s %-10s %9.3f  %s\n", r->spec, strchr(r->name, ' ') + 1, r->seconds, r->device);
    }
    printf("\n%-20s %-20s %22s %22s %15s %8s\n", "a", "b", "|margin| max, mean", "|score| max, mean", "order changes", "tau");
    for (size_t i = 0; i < c->n_runs; i++)
        for (size_t j = 0; j < i; j++) {
            const run_of *a = &c->runs[j], *b = &c->runs[i];
            distance d = compare(c, a, b);
            char orders[32];
            snprintf(orders, sizeof orders, "%zu of %zu", d.n_changed, d.n_orders);
            printf("%-20s %-20s %11.2g %10.2g %11.2g %10.2g %15s %8.4f%s\n", a->spec, b->spec, d.margin_max, d.margin_mean, d.score_max,
                   d.score_mean, orders, d.tau, is_within(&d, tolerance) ? "" : "  FAILS");
            if (!is_within(&d, tolerance)) {
                char query[200], document[200];
                cli_text_safe(query, sizeof query, c->pairs.items[d.worst].query.data, c->pairs.items[d.worst].query.len, 60);
                cli_text_safe(document, sizeof document, c->pairs.items[d.worst].document.data, c->pairs.items[d.worst].document.len, 60);
                printf("  farthest apart: %.6f and %.6f for \"%s\" and \"%s\"\n", a->results[d.worst].score, b->results[d.worst].score,
                       query, document);
            }
        }
    printf("\n%s: scores within %g of each other, and no change of order between documents farther apart than that\n",
           all_within ? "passed" : "FAILED", tolerance);
}

static int report(const comparison *c)
{
    double tolerance = c->args->tolerance > 0 ? c->args->tolerance : default_tolerance;
    int all_within = 1;
    for (size_t i = 0; i < c->n_runs; i++)
        for (size_t j = 0; j < i; j++) {
            distance d = compare(c, &c->runs[j], &c->runs[i]);
            all_within = all_within && is_within(&d, tolerance);
        }
    if (c->args->format == CLI_FORMAT_JSON) print_json(c, tolerance, all_within);
    else print_table(c, tolerance, all_within);
    int flushed = cli_stdout_flush(c->args);
    return flushed != CLI_OK ? flushed : all_within ? CLI_OK : CLI_FAILURE;
}

static int run(const cli_args *args)
{
    comparison *c = qr_calloc(1, sizeof *c);
    if (c == NULL) {
        cli_error(args, "out of memory");
        return CLI_FAILURE;
    }
    c->args = args;
    int code = read_pairs(c);
    if (code == CLI_OK) code = choose_runs(c);
    if (code == CLI_OK && c->n_runs < 2) {
        cli_error(args, "expected at least two backends to compare, found %zu", c->n_runs);
        code = CLI_USAGE;
    }
    for (size_t i = 0; i < c->n_runs && code == CLI_OK; i++) code = run_one(c, &c->runs[i]);
    if (code == CLI_OK) code = report(c);
    for (size_t i = 0; i < c->n_runs; i++) qr_free(c->runs[i].results);
    cli_pairs_deinit(&c->pairs);
    qr_free(c);
    return code;
}

const cli_command cli_parity = {
    .name = "parity",
    .operands = "",
    .summary = "compare the scores of several backends",
    .text =
        "Runs the same prompts through each backend and prints, for each two of them, the largest and the mean difference between margins "
        "and between scores, how many documents of a query change places, and Kendall's tau. The exit code is 1 if two scores differ by "
        "more than the tolerance, or if two documents change places that are farther apart than that.\n\n"
        "  qwen-rerank parity --backends cpu:f32,cpu:bf16,pytorch:bf16:cuda:0 --pairs pairs.jsonl",
    .groups = {options, cli_engine_options, cli_backend_options, cli_general_options},
    .run = run,
};
