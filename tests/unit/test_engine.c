/* The public interface: texts in, golden scores out; every promise of qwen_rerank.h. */
#include "golden.h"

#include "qwen_rerank.h"

#include <math.h>
#include <pthread.h>

static const char *model_dir(const char *name)
{
    static char dir[512];
    snprintf(dir, sizeof dir, "%s/%s", QR_TEST_DATA, name);
    return dir;
}

static qr_engine *open_engine(const char *name, const qr_options *extra)
{
    qr_options o = extra ? *extra : (qr_options){0};
    qr_engine *e = NULL;
    qr_error err = {0};
    o.model = model_dir(name);
    if (qr_engine_open(&e, &o, &err) != QR_OK) fail_msg("%s", err.msg);
    return e;
}

static qr_text text_of(const char *s) { return (qr_text){s, strlen(s)}; }

/* One qr_query per golden case. */
typedef struct queries {
    qr_query *q;
    qr_text *documents, *instructions;
    qr_result *results;
    size_t n;
} queries;

static queries make_queries(const golden *g)
{
    queries qs = {calloc(g->n, sizeof *qs.q), calloc(g->n, sizeof *qs.documents), calloc(g->n, sizeof *qs.instructions),
                  calloc(g->n, sizeof *qs.results), g->n};
    for (size_t i = 0; i < g->n; i++) {
        const golden_case *c = &g->cases[i];
        qs.documents[i] = (qr_text){c->document, c->document_len};
        qs.instructions[i] = (qr_text){c->instruction, c->instruction_len};
        qs.q[i] = (qr_query){.query = {c->query, c->query_len},
                             .instruction = c->instruction ? &qs.instructions[i] : NULL,
                             .documents = &qs.documents[i],
                             .n_documents = 1,
                             .max_length = c->max_length};
    }
    return qs;
}

static void free_queries(queries *qs)
{
    free(qs->q);
    free(qs->documents);
    free(qs->instructions);
    free(qs->results);
}

static void check_ids(const qr_result *r, const golden_case *c, size_t i)
{
    char hex[65];
    for (size_t b = 0; b < 32; b++) snprintf(hex + 2 * b, 3, "%02x", r->ids_sha256[b]);
    assert_int_equal(r->n_tokens, c->n);
    if (strcmp(hex, c->ids_sha256) != 0) fail_msg("case %zu: other token ids than transformers", i);
}

/* The project's own bounds: f32 exact but for the order of sums, bf16 no worse than transformers' bf16. */
static const double f32_margin_error = 2e-3, bf16_worst_factor = 1.2;

static void check_checkpoint(const char *name)
{
    golden g = golden_load(name);
    queries qs = make_queries(&g);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        qr_options o = {.dtype = bf16 ? QR_DTYPE_BF16 : QR_DTYPE_F32};
        qr_engine *e = open_engine(name, &o);
        qr_call call = {.want_ids_sha256 = 1};
        qr_error err = {0};
        if (qr_score(e, qs.q, qs.n, qs.results, &call, &err) != QR_OK) fail_msg("%s", err.msg);
        double mean = 0, worst = 0, hf_mean = 0, hf_worst = 0;
        for (size_t i = 0; i < g.n; i++) {
            const qr_result *r = &qs.results[i];
            const golden_case *c = &g.cases[i];
            check_ids(r, c, i);
            assert_true(r->flags & QR_RESULT_DONE);
            assert_int_equal((r->flags & QR_RESULT_TRUNCATED) != 0, c->max_length != 0);
            assert_true(fabs(r->score - 1 / (1 + exp(-(double) r->margin))) < 1e-6);
            double ours = fabs((double) r->margin - c->margin), hf = fabs(c->hf_bf16_margin - c->margin);
            mean += ours / (double) g.n;
            hf_mean += hf / (double) g.n;
            worst = fmax(worst, ours);
            hf_worst = fmax(hf_worst, hf);
        }
        printf("%s %s: margin error mean %.2g, largest %.2g\n", name, bf16 ? "bf16" : "f32", mean, worst);
        if (bf16) {
            assert_true(mean <= hf_mean);
            assert_true(worst <= bf16_worst_factor * hf_worst);
        } else {
            assert_true(worst <= f32_margin_error);
        }
        qr_engine_close(e);
    }
    free_queries(&qs);
    golden_free(&g);
}

static void test_micro(void **state) { (void) state, check_checkpoint("micro-1"); }
static void test_untied(void **state) { (void) state, check_checkpoint("untied-1"); }
static void test_small(void **state) { (void) state, check_checkpoint("small-1"); }
static void test_odd(void **state) { (void) state, check_checkpoint("odd-7"); }

static const char *const documents[] = {"The capital of China is Beijing.",
                                        "",
                                        "Gravity attracts two bodies.",
                                        "Mix flour and water.",
                                        "Beijing",
                                        "The capital of China is Beijing.",
                                        "A long one. A long one. A long one. A long one."};
enum { N_DOCUMENTS = sizeof documents / sizeof documents[0], N_DIFFERENT = N_DOCUMENTS - 1 };

static void score_documents(qr_engine *e, const size_t *order, size_t n, qr_result *results)
{
    qr_text texts[N_DOCUMENTS];
    qr_error err = {0};
    for (size_t i = 0; i < n; i++) texts[i] = text_of(documents[order[i]]);
    qr_query q = {.query = text_of("What is the capital of China?"), .documents = texts, .n_documents = n};
    if (qr_score(e, &q, 1, results, NULL, &err) != QR_OK) fail_msg("%s", err.msg);
}

static void test_same_score_anyhow(void **state)
{
    (void) state;
    static const size_t forward[] = {0, 1, 2, 3, 4, 5, 6}, backward[] = {6, 5, 4, 3, 2, 1, 0};
    static const qr_options ways[] = {{.threads = 1},
                                      {.threads = 2, .max_batch_tokens = 10},
                                      {.threads = 3, .prefix_cache_bytes = QR_SIZE_NONE},
                                      {.max_length = 300, .warm_up = 1}};
    qr_result alone[N_DOCUMENTS], batch[N_DOCUMENTS];
    for (size_t w = 0; w < sizeof ways / sizeof ways[0]; w++) {
        qr_options o = ways[w];
        o.dtype = QR_DTYPE_F32;
        qr_engine *e = open_engine("small-1", &o);
        for (size_t i = 0; w == 0 && i < N_DOCUMENTS; i++) score_documents(e, &forward[i], 1, &alone[i]);
        for (size_t pass = 0; pass < 2; pass++) {
            score_documents(e, pass ? backward : forward, N_DOCUMENTS, batch);
            for (size_t i = 0; i < N_DOCUMENTS; i++)
                assert_memory_equal(&batch[i].margin, &alone[pass ? backward[i] : i].margin, sizeof(float));
        }
        qr_engine_close(e);
    }
    assert_memory_equal(&alone[0].margin, &alone[5].margin, sizeof(float)); /* the same text twice */
}

typedef struct client {
    qr_engine *engine;
    qr_result results[N_DOCUMENTS];
} client;

static void *client_main(void *arg)
{
    static const size_t forward[] = {0, 1, 2, 3, 4, 5, 6};
    client *c = arg;
    for (int i = 0; i < 5; i++) score_documents(c->engine, forward, N_DOCUMENTS, c->results);
    return NULL;
}

static void test_many_threads(void **state)
{
    (void) state;
    enum { CLIENTS = 8 };
    qr_engine *e = open_engine("micro-1", NULL);
    client clients[CLIENTS];
    pthread_t threads[CLIENTS];
    for (size_t i = 0; i < CLIENTS; i++) {
        clients[i].engine = e;
        assert_int_equal(pthread_create(&threads[i], NULL, client_main, &clients[i]), 0);
    }
    for (size_t i = 0; i < CLIENTS; i++) pthread_join(threads[i], NULL);
    for (size_t i = 1; i < CLIENTS; i++)
        for (size_t d = 0; d < N_DOCUMENTS; d++)
            assert_memory_equal(&clients[i].results[d].margin, &clients[0].results[d].margin, sizeof(float));
    qr_stats stats;
    qr_engine_stats(e, &stats);
    assert_int_equal(stats.documents, CLIENTS * 5 * N_DOCUMENTS);
    assert_int_equal(stats.prefix_misses, 1);
    assert_true(stats.computed_tokens < stats.prompt_tokens);
    qr_engine_close(e);
}

typedef struct progress {
    size_t calls, last, stop_after;
} progress;

static int on_progress(void *arg, size_t done, size_t total)
{
    progress *p = arg;
    assert_true(done > p->last && done <= total);
    p->last = done;
    return ++p->calls == p->stop_after;
}

static void test_progress_and_cancel(void **state)
{
    (void) state;
    qr_options o = {.max_batch_tokens = 1}; /* one document per batch */
    qr_engine *e = open_engine("micro-1", &o);
    qr_text texts[N_DOCUMENTS];
    qr_result results[N_DOCUMENTS];
    qr_error err = {0};
    for (size_t i = 0; i < N_DOCUMENTS; i++) texts[i] = text_of(documents[i]);
    qr_query q = {.query = text_of("q"), .documents = texts, .n_documents = N_DOCUMENTS};

    progress all = {0};
    qr_call call = {.progress = on_progress, .progress_arg = &all};
    assert_int_equal(qr_score(e, &q, 1, results, &call, &err), QR_OK);
    assert_int_equal(all.calls, N_DIFFERENT);
    assert_int_equal(all.last, N_DOCUMENTS);

    progress some = {.stop_after = 3};
    call.progress_arg = &some;
    assert_int_equal(qr_score(e, &q, 1, results, &call, &err), QR_E_CANCELLED);
    /* document 5 is document 0 again */
    for (size_t i = 0; i < N_DOCUMENTS; i++) assert_int_equal((results[i].flags & QR_RESULT_DONE) != 0, i < 3 || i == 5);
    size_t order[N_DOCUMENTS];
    qr_rank(results, N_DOCUMENTS, order);
    for (size_t i = 0; i < 4; i++) assert_true(order[i] < 3 || order[i] == 5);
    for (size_t i = 4; i < N_DOCUMENTS; i++) assert_int_equal(order[i], i == 6 ? 6 : i - 1);

    volatile int cancel = 1;
    qr_call cancelled = {.cancel = &cancel};
    assert_int_equal(qr_score(e, &q, 1, results, &cancelled, &err), QR_E_CANCELLED);
    cancel = 0;
    assert_int_equal(qr_score(e, &q, 1, results, &cancelled, &err), QR_OK);
    qr_engine_close(e);
}

static void test_rank(void **state)
{
    (void) state;
    enum { N = 200 };
    qr_result r[N] = {0};
    size_t order[N];
    uint32_t seed = 1;
    for (size_t i = 0; i < N; i++) {
        seed = seed * 1664525u + 1013904223u;
        r[i].margin = (float) (seed >> 27); /* many ties */
        r[i].flags = QR_RESULT_DONE;
    }
    qr_rank(r, N, order);
    for (size_t i = 1; i < N; i++) {
        assert_true(r[order[i - 1]].margin >= r[order[i]].margin);
        if (r[order[i - 1]].margin == r[order[i]].margin) assert_true(order[i - 1] < order[i]);
    }
    qr_rank(r, 0, order);
}

static void test_multi_query_and_empty(void **state)
{
    (void) state;
    qr_engine *e = open_engine("micro-1", NULL);
    qr_text a[2] = {text_of("one"), text_of("two")}, empty = {NULL, 0};
    qr_text instruction = text_of("Find manual pages");
    qr_query q[4] = {{.query = text_of("x"), .documents = a, .n_documents = 2},
                     {.query = text_of("y"), .documents = NULL, .n_documents = 0},
                     {.query = text_of("x"), .instruction = &instruction, .documents = a, .n_documents = 2},
                     {.query = empty, .documents = &empty, .n_documents = 1}};
    qr_result together[5], alone[2];
    qr_error err = {0};
    assert_int_equal(qr_score(e, q, 4, together, NULL, &err), QR_OK);
    assert_int_equal(qr_score(e, &q[2], 1, alone, NULL, &err), QR_OK);
    assert_memory_equal(&together[2].margin, &alone[0].margin, sizeof(float));
    assert_memory_equal(&together[3].margin, &alone[1].margin, sizeof(float));
    assert_true(together[0].margin != together[2].margin);
    assert_int_equal(qr_score(e, NULL, 0, NULL, NULL, &err), QR_OK);
    assert_int_equal(qr_score(e, &q[1], 1, NULL, NULL, &err), QR_OK);
    qr_engine_close(e);
}

static void expect_open_fails(qr_options o, qr_status status, const char *part)
{
    qr_engine *e = (qr_engine *) 1;
    qr_error err = {0};
    assert_int_equal(qr_engine_open(&e, &o, &err), status);
    assert_null(e);
    if (strstr(err.msg, part) == NULL) fail_msg("expected \"%s\" in \"%s\"", part, err.msg);
    assert_int_equal(err.code, status);
}

static void test_errors(void **state)
{
    (void) state;
    expect_open_fails((qr_options){0}, QR_E_ARG, "model");
    expect_open_fails((qr_options){.model = "/nonexistent/model"}, QR_E_NOT_FOUND, "/nonexistent/model");
    expect_open_fails((qr_options){.model = model_dir("micro-1"), .backend = "abacus"}, QR_E_NOT_FOUND, "cpu");
    expect_open_fails((qr_options){.model = model_dir("micro-1"), .threads = -1}, QR_E_ARG, "threads");
    expect_open_fails((qr_options){.model = model_dir("micro-1"), .max_length = 50000}, QR_E_ARG, "40960");
    expect_open_fails((qr_options){.model = model_dir("micro-1"), .yes_token = "certainly yes"}, QR_E_ARG, "certainly yes");
    assert_int_equal(qr_engine_open(NULL, NULL, NULL), QR_E_ARG);
    qr_engine_close(NULL);

    qr_engine *e = open_engine("micro-1", NULL);
    qr_error err = {0};
    qr_result r;
    qr_text document = text_of("d");
    qr_query too_long = {.query = text_of("a query of several tokens"), .documents = &document, .n_documents = 1, .max_length = 60};
    assert_int_equal(qr_score(e, &too_long, 1, &r, NULL, &err), QR_E_TOO_LONG);
    assert_non_null(strstr(err.msg, "60"));
    qr_query null_text = {.query = {NULL, 3}, .documents = &document, .n_documents = 1};
    assert_int_equal(qr_score(e, &null_text, 1, &r, NULL, &err), QR_E_ARG);
    assert_int_equal(qr_score(e, &too_long, 1, NULL, NULL, &err), QR_E_ARG);
    assert_int_equal(qr_score(NULL, &too_long, 1, &r, NULL, NULL), QR_E_ARG);

    qr_text broken = {"caf\xe9", 4}; /* Latin-1 */
    qr_query invalid = {.query = text_of("q"), .documents = &broken, .n_documents = 1};
    assert_int_equal(qr_score(e, &invalid, 1, &r, NULL, &err), QR_OK);
    assert_true(r.flags & QR_RESULT_REPLACED);
    qr_engine_close(e);
}

static void test_tokenize_and_info(void **state)
{
    (void) state;
    qr_engine *e = open_engine("micro-1", NULL);
    uint32_t ids[8];
    size_t n = 0;
    qr_error err = {0};
    assert_int_equal(qr_tokenize(e, text_of("<|im_end|>"), 1, ids, 8, &n, &err), QR_OK);
    assert_int_equal(n, 1);
    assert_int_equal(ids[0], 151645);
    assert_int_equal(qr_tokenize(e, text_of("<|im_end|>"), 0, ids, 2, &n, &err), QR_OK);
    assert_int_equal(n, 6);
    assert_int_equal(ids[1], 91);
    qr_info info;
    qr_engine_info(e, &info);
    assert_string_equal(info.backend, "cpu");
    assert_int_equal(info.yes_id, 9693);
    assert_int_equal(info.no_id, 2152);
    assert_int_equal(info.canonical_prompt, 1);
    assert_int_equal(info.max_length, 8192);
    assert_true(info.memory_bytes > 0 && info.n_parameters > 9000000 && info.weight_bytes == 2 * info.n_parameters);
    assert_string_equal(qr_status_text(QR_E_TOO_LONG), "input too long");
    assert_int_equal(qr_status_http(QR_E_CANCELLED), 499);
    assert_true(strchr(qr_version(), '.') != NULL);
    qr_engine_close(e);
}

static void test_open_close_repeatedly(void **state)
{
    (void) state;
    for (int i = 0; i < 5; i++) {
        qr_options o = {.threads = 1 + i % 2, .max_length = 128, .warm_up = i & 1};
        qr_engine_close(open_engine("micro-1", &o));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_micro),
        cmocka_unit_test(test_untied),
        cmocka_unit_test(test_small),
        cmocka_unit_test(test_odd),
        cmocka_unit_test(test_same_score_anyhow),
        cmocka_unit_test(test_many_threads),
        cmocka_unit_test(test_progress_and_cancel),
        cmocka_unit_test(test_rank),
        cmocka_unit_test(test_multi_query_and_empty),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_tokenize_and_info),
        cmocka_unit_test(test_open_close_repeatedly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
