/* `make bench`: speed of an engine beside the machine's own matrix rate, in one run.
 *
 * Machines differ and are shared, so absolute figures mean little. Each workload is timed several times with a new query each time (no
 * prefix is found in the cache), the library's whole-matrix products at the model's shapes are timed before and after, and the ratio
 * "of GEMM" is the time that those products alone would take over the time that was taken; "of unit" the time at which the multiply units
 * would do them if nothing had to be loaded. Texts: Debian package descriptions, bench/workloads.
 */
#include "base/system.h"
#include "cpu/features.h"
#include "cpu/gemm.h"
#include "model/config.h"
#include "qwen_rerank.h"
#include "unit_peak.h"

#include <ctype.h>
#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MAX_REPEATS = 100, MAX_WORKLOADS = 32, RATE_ROWS = 512 };

typedef struct workload {
    json_t *json;
    const char *query;
    qr_text *documents;
    size_t n;
} workload;

static void die(const char *what, const char *detail)
{
    fprintf(stderr, "bench: %s: %s\n", what, detail);
    exit(1);
}

static workload load_workload(const char *path)
{
    json_error_t error;
    workload w = {.json = json_load_file(path, 0, &error)};
    if (w.json == NULL) die(path, error.text);
    w.query = json_string_value(json_object_get(w.json, "query"));
    json_t *list = json_object_get(w.json, "documents");
    w.n = json_array_size(list);
    w.documents = calloc(w.n ? w.n : 1, sizeof *w.documents);
    if (w.query == NULL || w.n == 0 || w.documents == NULL) die(path, "expected {\"query\": text, \"documents\": [text, ...]}");
    for (size_t i = 0; i < w.n; i++) {
        json_t *text = json_array_get(list, i);
        if (!json_is_string(text)) die(path, "expected documents to be texts");
        w.documents[i] = (qr_text){json_string_value(text), json_string_length(text)};
    }
    return w;
}

/* Seconds that the library's products of one layer take per token, and operations per token: all of it, and the part (K and V) that the
 * last layer needs of every token. */
typedef struct layer_cost {
    double all_s, kv_s, all_ops, kv_ops;
} layer_cost;

static layer_cost measure_layer(const qr_config *c, qr_gemm_type type, int threads)
{
    size_t q = c->n_heads * c->head_dim, kv = 2 * c->n_kv_heads * c->head_dim;
    size_t shapes[][2] = {{c->hidden, kv}, {c->hidden, q}, {q, c->hidden}, {c->hidden, 2 * c->inter}, {c->inter, c->hidden}};
    layer_cost cost = {0};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        double ops = 2.0 * (double) shapes[i][0] * (double) shapes[i][1];
        double rate = qr_gemm_library_rate(type, RATE_ROWS, shapes[i][0], shapes[i][1], threads) * 1e9;
        double s = rate > 0 ? ops / rate : 0;
        cost.all_s += s;
        cost.all_ops += ops;
        if (i == 0) cost.kv_s = s, cost.kv_ops = ops;
    }
    return cost;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *) a, y = *(const double *) b;
    return (x > y) - (x < y);
}

/* A line of /proc/self/status. */
static long memory_mib(const char *name)
{
    char line[128];
    long kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f != NULL && fgets(line, sizeof line, f) != NULL)
        if (strncmp(line, name, strlen(name)) == 0 && sscanf(line + strlen(name), ": %ld", &kib) == 1) break;
    if (f != NULL) fclose(f);
    return kib / 1024;
}

typedef struct timing {
    double seconds[MAX_REPEATS], whole_tokens, computed_tokens;
    double all, tokenize, stages[QR_N_STAGES]; /* seconds of all runs together */
    int n;
} timing;

static timing run(qr_engine *engine, const workload *w, int repeats)
{
    static unsigned run_number;
    timing t = {.n = repeats};
    qr_result *results = calloc(w->n, sizeof *results);
    qr_error err;
    if (results == NULL) die("memory", "no room for results");
    for (int i = 0; i < repeats; i++) {
        char query[512]; /* a number makes the prefix new */
        int len = snprintf(query, sizeof query, "%.480s (%u)", w->query, run_number++);
        qr_query q = {.query = {query, (size_t) len}, .documents = w->documents, .n_documents = w->n};
        qr_stats before, after;
        qr_timing parts;
        qr_call call = {.timing = &parts};
        qr_engine_stats(engine, &before);
        double start = qr_now();
        if (qr_score(engine, &q, 1, results, &call, &err) != QR_OK) die("score", err.msg);
        t.all += t.seconds[i] = qr_now() - start;
        t.tokenize += parts.tokenize;
        qr_engine_stats(engine, &after);
        for (size_t s = 0; s < QR_N_STAGES; s++) t.stages[s] += after.stage_seconds[s] - before.stage_seconds[s];
        t.whole_tokens = (double) (after.prompt_tokens - before.prompt_tokens);
        t.computed_tokens = (double) (after.computed_tokens - before.computed_tokens);
    }
    free(results);
    qsort(t.seconds, (size_t) repeats, sizeof *t.seconds, compare_doubles);
    return t;
}

static const char *workload_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

typedef struct report {
    const char *name;
    size_t n_documents;
    timing t;
    double median, gemm_rate, unit_rate, of_gemm, of_unit; /* rates in Gop/s */
} report;

/* What the timing means beside the limits. Every layer but the last treats all tokens; the last one only K and V of all. */
static void judge(report *r, const qr_config *c, const layer_cost *cost, double unit_rate)
{
    double full = (double) (c->n_layers - 1), tokens = r->t.computed_tokens, n = (double) r->n_documents;
    double library_s = tokens * (full * cost->all_s + cost->kv_s) + n * (cost->all_s - cost->kv_s);
    double ops = tokens * (full * cost->all_ops + cost->kv_ops) + n * (cost->all_ops - cost->kv_ops);
    r->median = r->t.seconds[r->t.n / 2];
    r->gemm_rate = cost->all_s > 0 ? cost->all_ops / cost->all_s / 1e9 : 0;
    r->unit_rate = unit_rate;
    r->of_gemm = library_s / r->median;
    r->of_unit = unit_rate > 0 ? ops / (unit_rate * 1e9) / r->median : 0;
}

static void print_report(const report *r)
{
    printf("%-18s %9.3f %8.2f %12.0f %12.0f %7.0f%% %8.0f%% %8.0f%%\n", r->name, r->median, (double) r->n_documents / r->median,
           r->t.whole_tokens / r->median, r->t.computed_tokens / r->median, 100 * (r->t.seconds[r->t.n - 1] - r->t.seconds[0]) / r->median,
           100 * r->of_gemm, 100 * r->of_unit);
    fflush(stdout);
}

/* Seconds of a mean run by stage; "other" is what no stage has: scheduling, results, the wake-up of threads. */
static double stage_seconds(const timing *t, size_t row)
{
    if (row == 0) return t->tokenize / t->n;
    if (row <= QR_N_STAGES) return t->stages[row - 1] / t->n;
    double known = t->tokenize;
    for (size_t s = 0; s < QR_N_STAGES; s++) known += t->stages[s];
    return (t->all - known) / t->n;
}

static const char *stage_name(size_t row)
{
    return row == 0 ? "tokenize" : row <= QR_N_STAGES ? qr_stage_name((qr_stage) (row - 1)) : "other";
}

enum { N_ROWS = QR_N_STAGES + 2 };

static void print_stages(const report *reports, size_t n)
{
    printf("\n%-10s", "seconds");
    for (size_t i = 0; i < n; i++) printf(" %19.17s", reports[i].name);
    for (size_t row = 0; row < N_ROWS; row++) {
        printf("\n%-10s", stage_name(row));
        for (size_t i = 0; i < n; i++) {
            double s = stage_seconds(&reports[i].t, row);
            printf(" %11.3f %5.1f %%", s, 100 * s * reports[i].t.n / reports[i].t.all);
        }
    }
    printf("\n%-10s", "all");
    for (size_t i = 0; i < n; i++) printf(" %11.3f %5.1f %%", reports[i].t.all / reports[i].t.n, 100.0);
    printf("\n\n");
}

/* Appends one line per workload; a new file begins with the names of the columns. */
static void append_csv(const char *path, const report *reports, size_t n, const qr_info *info, int threads)
{
    FILE *f = fopen(path, "a");
    if (f == NULL) die(path, "cannot be written");
    if (ftell(f) == 0) {
        fprintf(f, "time,version,backend,device,library,model,dtype,threads,workload,documents,runs,seconds,least,most,"
                   "tokens_whole,tokens_computed,gemm_gops,unit_gops,of_gemm,of_unit");
        for (size_t row = 0; row < N_ROWS; row++) fprintf(f, ",%s_s", stage_name(row));
        fprintf(f, "\n");
    }
    char at[32];
    time_t now = time(NULL);
    strftime(at, sizeof at, "%Y-%m-%dT%H:%M:%SZ", gmtime(&now));
    for (size_t i = 0; i < n; i++) {
        const report *r = &reports[i];
        const timing *t = &r->t;
        fprintf(f, "%s,%s,%s,\"%s\",\"%s\",%s,%s,%d,%s,%zu,%d,%.4f,%.4f,%.4f,%.0f,%.0f,%.1f,%.1f,%.4f,%.4f", at, qr_version(),
                info->backend, info->device, qr_cpu_libraries(), workload_name(info->model), info->dtype, threads, r->name, r->n_documents,
                t->n, r->median, t->seconds[0], t->seconds[t->n - 1], t->whole_tokens, t->computed_tokens, r->gemm_rate, r->unit_rate,
                r->of_gemm, r->of_unit);
        for (size_t row = 0; row < N_ROWS; row++) fprintf(f, ",%.4f", stage_seconds(t, row));
        fprintf(f, "\n");
    }
    if (fclose(f) != 0) die(path, "cannot be written");
}

/* FOLDER/ becomes FOLDER/ and the device's name in small letters and hyphens, ".csv". */
static const char *csv_path(const char *path, const char *device)
{
    static char whole[4096];
    size_t n = strlen(path);
    if (n == 0 || path[n - 1] != '/' || n + strlen(device) + sizeof ".csv" > sizeof whole) return path;
    memcpy(whole, path, n);
    for (const char *c = device; *c != 0; c++) {
        if (isalnum((unsigned char) *c)) whole[n++] = (char) tolower((unsigned char) *c);
        else if (whole[n - 1] != '-' && whole[n - 1] != '/') whole[n++] = '-';
    }
    memcpy(whole + n, ".csv", sizeof ".csv");
    return whole;
}

static const char usage[] =
    "usage: bench --model DIR [--backend NAME] [--device D] [--torch-dir DIR] [--plugin-dir DIR] [--dtype f32|bf16|f16|int8]\n"
    "             [--memory fast|small] [--threads N] [--batch-tokens N] [--repeat N] [--csv FILE or FOLDER/] WORKLOAD.json...\n"
    "       bench --compare --model DIR [--backend NAME]... [--dtype f32|bf16] [--batch 1,4,8,all] [--vllm PYTHON] [--repeat N]\n"
    "             WORKLOAD.json...\n"
    "The second runs transformers, and vLLM if told where, on the same checkpoint and texts, and prints the ratios; `make bench-compare`\n"
    "installs the first, with VLLM=1 both.\n";

static qr_dtype parse_dtype(const char *word)
{
    static const char *const words[] = {"f32", "bf16", "f16", "int8"};
    static const qr_dtype types[] = {QR_DTYPE_F32, QR_DTYPE_BF16, QR_DTYPE_F16, QR_DTYPE_INT8};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (strcmp(word, words[i]) == 0) return types[i];
    die("--dtype", "expected f32, bf16, f16 or int8");
    return QR_DTYPE_AUTO;
}

/* bench/compare.py does it, and calls this program for our side. */
static void compare(char **argv, int argc)
{
    static char python[] = QR_SOURCE_DIR "/build/bench-venv/bin/python", script[] = QR_SOURCE_DIR "/bench/compare.py", option[] = "--bench";
    char **arguments = calloc((size_t) argc + 3, sizeof *arguments);
    if (arguments == NULL) die("memory", "no room for arguments");
    memcpy(arguments, (char *[]){python, script, option, argv[0]}, 4 * sizeof *arguments);
    memcpy(arguments + 4, argv + 2, (size_t) (argc - 2) * sizeof *arguments);
    execv(python, arguments);
    die(python, "expected Python with PyTorch and transformers there, which `make bench-compare` installs");
}

/* What only a benchmark wants to know of the start: how the kernels were chosen, where there was a choice. */
static void print_detail(void *arg, qr_log_level level, const char *message)
{
    (void) arg;
    if (level == QR_LOG_DEBUG) printf("kernel    %s\n", message);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"model", 1, NULL, 'm'},
                                            {"dtype", 1, NULL, 'd'},
                                            {"threads", 1, NULL, 't'},
                                            {"backend", 1, NULL, 'b'},
                                            {"device", 1, NULL, 'D'},
                                            {"torch-dir", 1, NULL, 'T'},
                                            {"plugin-dir", 1, NULL, 'P'},
                                            {"repeat", 1, NULL, 'r'},
                                            {"batch-tokens", 1, NULL, 'B'},
                                            {"csv", 1, NULL, 'c'},
                                            {"help", 0, NULL, 'h'},
                                            {"memory", 1, NULL, 'M'},
                                            {0}};
    if (argc > 1 && strcmp(argv[1], "--compare") == 0) compare(argv, argc);
    qr_options o = {.warm_up = 1, .backend = "cpu", .log = print_detail};
    const char *csv = NULL;
    int repeats = 3;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c == 'm') o.model = optarg;
        else if (c == 'd') o.dtype = parse_dtype(optarg);
        else if (c == 't') o.threads = atoi(optarg);
        else if (c == 'b') o.backend = optarg;
        else if (c == 'D') o.device = optarg;
        else if (c == 'T') o.torch_dir = optarg;
        else if (c == 'P') o.plugin_dir = optarg;
        else if (c == 'B') o.max_batch_tokens = strtoul(optarg, NULL, 10);
        else if (c == 'M') o.memory = strcmp(optarg, "small") == 0 ? QR_MEMORY_SMALL : QR_MEMORY_FAST;
        else if (c == 'r') repeats = atoi(optarg);
        else if (c == 'c') csv = optarg;
        else {
            fputs(usage, c == 'h' ? stdout : stderr);
            return c == 'h' ? 0 : 2;
        }
    }
    size_t n = (size_t) (argc - optind);
    if (o.model == NULL || n == 0 || n > MAX_WORKLOADS || repeats < 1 || repeats > MAX_REPEATS) die("usage", "see bench --help");

    qr_error err;
    qr_engine *engine = NULL;
    qr_config config;
    qr_info info;
    char path[4096];
    snprintf(path, sizeof path, "%s/config.json", o.model);
    if (qr_config_read(&config, path, &err) != QR_OK || qr_engine_open(&engine, &o, &err) != QR_OK) die("open", err.msg);
    qr_engine_info(engine, &info);
    int threads = o.threads > 0 ? o.threads : qr_cpu_get()->n_usable;
    qr_gemm_type type = strcmp(info.dtype, "int8") == 0 ? QR_GEMM_INT8 : strcmp(info.dtype, "bf16") == 0 ? QR_GEMM_BF16 : QR_GEMM_F32;
    const char *unit;
    double unit_rate = unit_peak(type, threads, &unit);
    printf("machine   %s: %s; %s\n", info.backend, info.device, qr_cpu_libraries());
    printf("model     %s, %.1f M parameters, %s; open %.2f s\n", info.model, (double) info.n_parameters / 1e6, info.dtype,
           info.load_seconds);
    printf("limits    unit: %.0f Gop/s of %s from registers; GEMM: the library at these shapes, %d rows, around each workload\n", unit_rate,
           unit, RATE_ROWS);
    printf("%-18s %9s %8s %12s %12s %8s %9s %9s\n", "workload", "seconds", "docs/s", "tok/s whole", "tok/s comp.", "spread", "of GEMM",
           "of unit");

    static report reports[MAX_WORKLOADS];
    layer_cost before = measure_layer(&config, type, threads);
    for (size_t i = 0; i < n; i++) {
        workload w = load_workload(argv[optind + (int) i]);
        report *r = &reports[i];
        *r = (report){.name = workload_name(argv[optind + (int) i]), .n_documents = w.n, .t = run(engine, &w, repeats)};
        layer_cost after = measure_layer(&config, type, threads);
        layer_cost mean = {(before.all_s + after.all_s) / 2, (before.kv_s + after.kv_s) / 2, after.all_ops, after.kv_ops};
        judge(r, &config, &mean, unit_rate);
        print_report(r);
        before = after;
        free(w.documents);
        json_decref(w.json);
    }
    print_stages(reports, n);
    printf("GEMM rate of the library, last measured: %.0f Gop/s %s\n", reports[n - 1].gemm_rate, info.dtype);
    printf("peak memory %ld MiB, anonymous now %ld MiB; weights %.0f MiB as stored\n", memory_mib("VmHWM"), memory_mib("RssAnon"),
           (double) info.weight_bytes / 1048576);
    if (csv != NULL) {
        csv = csv_path(csv, info.device);
        append_csv(csv, reports, n, &info, threads);
        printf("appended to %s\n", csv);
    }
    qr_engine_close(engine);
    return 0;
}
