/* `make bench`: speed of an engine beside the machine's own matrix rate, in one run.
 *
 * Machines differ and are shared, so absolute figures mean little. Each workload is timed several times with a new query each time (no
 * prefix is found in the cache), the library's whole-matrix products at the model's shapes are timed before and after, and the ratio is
 * the time that those products alone would take over the time that was taken. Texts: Debian package descriptions, bench/workloads.
 */
#define _GNU_SOURCE
#include "cpu/features.h"
#include "cpu/gemm.h"
#include "model/config.h"
#include "qwen_rerank.h"

#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_REPEATS = 100, RATE_ROWS = 512 };

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

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double) t.tv_sec + (double) t.tv_nsec * 1e-9;
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

static layer_cost measure_layer(const qr_config *c, int bf16, int threads)
{
    size_t q = c->n_heads * c->head_dim, kv = 2 * c->n_kv_heads * c->head_dim;
    size_t shapes[][2] = {{c->hidden, kv}, {c->hidden, q}, {q, c->hidden}, {c->hidden, 2 * c->inter}, {c->inter, c->hidden}};
    layer_cost cost = {0};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        double ops = 2.0 * (double) shapes[i][0] * (double) shapes[i][1];
        double rate = qr_gemm_library_rate(bf16, RATE_ROWS, shapes[i][0], shapes[i][1], threads) * 1e9;
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
        qr_engine_stats(engine, &before);
        double start = now();
        if (qr_score(engine, &q, 1, results, NULL, &err) != QR_OK) die("score", err.msg);
        t.seconds[i] = now() - start;
        qr_engine_stats(engine, &after);
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
                                            {"help", 0, NULL, 'h'},
                                            {0}};
    qr_options o = {.warm_up = 1, .backend = "cpu"};
    int repeats = 3;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c == 'm') o.model = optarg;
        else if (c == 'd')
            o.dtype = strcmp(optarg, "f32") == 0 ? QR_DTYPE_F32 : strcmp(optarg, "bf16") == 0 ? QR_DTYPE_BF16 : QR_DTYPE_AUTO;
        else if (c == 't') o.threads = atoi(optarg);
        else if (c == 'b') o.backend = optarg;
        else if (c == 'D') o.device = optarg;
        else if (c == 'T') o.torch_dir = optarg;
        else if (c == 'P') o.plugin_dir = optarg;
        else if (c == 'B') o.max_batch_tokens = strtoul(optarg, NULL, 10);
        else if (c == 'r') repeats = atoi(optarg);
        else {
            fprintf(c == 'h' ? stdout : stderr,
                    "usage: bench --model DIR [--backend NAME] [--device D] [--torch-dir DIR] [--plugin-dir DIR] [--dtype f32|bf16]\n"
                    "             [--threads N] [--batch-tokens N] [--repeat N] WORKLOAD.json...\n");
            return c == 'h' ? 0 : 2;
        }
    }
    if (o.model == NULL || optind == argc || repeats < 1 || repeats > MAX_REPEATS) die("usage", "see bench --help");

    qr_error err;
    qr_engine *engine = NULL;
    qr_config config;
    qr_info info;
    char path[4096];
    snprintf(path, sizeof path, "%s/config.json", o.model);
    if (qr_config_read(&config, path, &err) != QR_OK || qr_engine_open(&engine, &o, &err) != QR_OK) die("open", err.msg);
    qr_engine_info(engine, &info);
    int threads = o.threads > 0 ? o.threads : qr_cpu_get()->n_usable, bf16 = strcmp(info.dtype, "bf16") == 0;
    printf("machine   %s: %s; %s\n", info.backend, info.device, qr_cpu_libraries());
    printf("model     %s, %.1f M parameters, %s; open %.2f s\n", info.model, (double) info.n_parameters / 1e6, info.dtype,
           info.load_seconds);

    layer_cost before = measure_layer(&config, bf16, threads);
    printf("%-20s %9s %9s %12s %12s %8s %8s\n", "workload", "seconds", "docs/s", "tok/s whole", "tok/s comp.", "spread", "of GEMM");
    for (int i = optind; i < argc; i++) {
        workload w = load_workload(argv[i]);
        timing t = run(engine, &w, repeats);
        layer_cost after = measure_layer(&config, bf16, threads);
        double median = t.seconds[t.n / 2], full_layers = (double) (config.n_layers - 1);
        double all_s = (before.all_s + after.all_s) / 2, kv_s = (before.kv_s + after.kv_s) / 2;
        double limit = t.computed_tokens * (full_layers * all_s + kv_s) + (double) w.n * (all_s - kv_s);
        printf("%-20s %9.3f %9.2f %12.0f %12.0f %7.0f%% %7.0f%%\n", workload_name(argv[i]), median, (double) w.n / median,
               t.whole_tokens / median, t.computed_tokens / median, 100 * (t.seconds[t.n - 1] - t.seconds[0]) / median,
               100 * limit / median);
        fflush(stdout);
        before = after;
        free(w.documents);
        json_decref(w.json);
    }
    printf("GEMM rate of the library at these shapes, %d rows, last measured: %.0f Gop/s %s\n", RATE_ROWS,
           before.all_s > 0 ? before.all_ops / before.all_s / 1e9 : 0, info.dtype);
    printf("peak memory %ld MiB, anonymous now %ld MiB; weights %.0f MiB as stored\n", memory_mib("VmHWM"), memory_mib("RssAnon"),
           (double) info.weight_bytes / 1048576);
    qr_engine_close(engine);
    return 0;
}
