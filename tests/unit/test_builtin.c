/* The built-in model: that the program holds the bytes of the files, that it scores like the folder that they came from, and when it is
 * chosen. It is the tiny one that CMakeLists.txt makes for this test, so the file that embeds it is part of this one. */
#define _GNU_SOURCE
#include "../../src/model/builtin.c" /* NOLINT(bugprone-suspicious-include): compiled here with another model */

#include "model/locate.h"
#include "model/weights.h"
#include "temp_dir.h"

#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>

#include <cmocka.h>

static int set_up_bare(void **state)
{
    static const char *const names[] = {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME",
                                        "HOME",         "QWEN_RERANK_MODEL_ID"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) unsetenv(names[i]);
    return set_up(state);
}

static void holds_the_files(void **state)
{
    (void) state;
    static const char *const names[] = {"config.json", "tokenizer.json", "model.safetensors"};
    qr_error err = {0};
    size_t n = 0;
    assert_int_equal(qr_builtin_present(), 1);
    for (size_t i = 0; i < 3; i++) {
        qr_file inside, outside;
        char path[1024];
        snprintf(path, sizeof path, QR_BUILTIN_DIR "/%s", names[i]);
        if (qr_file_open(&outside, path, &err) != QR_OK) fail_msg("%s", err.msg);
        assert_int_equal(qr_builtin_file(&inside, names[i], &err), QR_OK);
        assert_int_equal(inside.size, outside.size);
        assert_memory_equal(inside.data, outside.data, inside.size);
        assert_int_equal((uintptr_t) inside.data % 64, 0);
        assert_int_equal(inside.borrowed, 1);
        n += inside.size;
        qr_file_release(&inside, 0, inside.size); /* neither takes the memory away */
        qr_file_close(&inside);
        assert_null(inside.data);
        assert_int_equal(qr_builtin_file(&inside, names[i], &err), QR_OK);
        assert_memory_equal(inside.data, outside.data, inside.size);
        qr_file_close(&outside);
    }
    assert_int_equal(qr_builtin_bytes(), n);
    qr_file none;
    assert_int_equal(qr_builtin_file(&none, "vocab.json", &err), QR_E_NOT_FOUND);
    assert_null(none.data);
    assert_true(qr_is_builtin("builtin"));
    assert_false(qr_is_builtin("./builtin") || qr_is_builtin("Builtin") || qr_is_builtin("") || qr_is_builtin(NULL));
}

typedef struct log_lines {
    char warnings[1024];
    int n_warnings;
} log_lines;

static void on_log(void *arg, qr_log_level level, const char *message)
{
    log_lines *log = arg;
    if (level > QR_LOG_WARN) return;
    log->n_warnings++;
    snprintf(log->warnings, sizeof log->warnings, "%s", message);
}

static float score(const char *model, log_lines *log, qr_info *info)
{
    qr_options o = {.model = model, .dtype = QR_DTYPE_F32, .threads = 2, .log = on_log, .log_arg = log};
    qr_engine *e;
    qr_error err = {0};
    qr_result r;
    qr_text document = {"The capital of China is Beijing.", 32};
    qr_query q = {.query = {"capital of China", 16}, .documents = &document, .n_documents = 1};
    if (qr_engine_open(&e, &o, &err) != QR_OK) fail_msg("%s", err.msg);
    if (qr_score(e, &q, 1, &r, NULL, &err) != QR_OK) fail_msg("%s", err.msg);
    qr_engine_info(e, info);
    assert_int_equal(info->builtin_model, qr_is_builtin(model));
    assert_string_equal(info->model, model);
    assert_int_equal(info->canonical_prompt, 1);
    qr_engine_close(e);
    return r.margin;
}

static void scores_like_its_folder(void **state)
{
    (void) state;
    log_lines inside = {.n_warnings = 0}, outside = {.n_warnings = 0};
    qr_info info;
    for (int i = 0; i < 2; i++) { /* closing one leaves the memory as it was */
        float margin = score(QR_BUILTIN, &inside, &info);
        float expected = score(QR_BUILTIN_DIR, &outside, &info);
        assert_memory_equal(&margin, &expected, sizeof margin);
    }
    assert_int_equal(inside.n_warnings, 2);
    assert_non_null(strstr(inside.warnings, "built-in demo model"));
    assert_non_null(strstr(inside.warnings, "qwen-rerank pull 0.6b"));
    assert_int_equal(outside.n_warnings, 0);
}

static void expect_found(const char *name, const char *expected)
{
    char *found;
    qr_error err = {0};
    if (qr_model_locate(name, &found, &err) != QR_OK) fail_msg("%s: %s", name ? name : "NULL", err.msg);
    assert_string_equal(found, expected);
    qr_free(found);
}

static void expect_missing(const char *name)
{
    char *found;
    qr_error err = {0};
    assert_int_equal(qr_model_locate(name, &found, &err), QR_E_NOT_FOUND);
    assert_null(found);
}

static void is_the_last_resort(void **state)
{
    (void) state;
#define SNAPSHOT "hub/models--Qwen--Qwen3-Reranker-4B/snapshots/0123456789abcdef0123456789abcdef01234567"
    expect_found(NULL, "builtin"); /* no HOME at all */
    setenv("HF_HOME", dir.path, 1);
    expect_found(NULL, "builtin");
    setenv("QWEN_RERANK_MODEL_ID", "", 1);
    expect_found(NULL, "builtin");
    setenv("QWEN_RERANK_MODEL_ID", "builtin", 1);
    expect_found(NULL, "builtin");

    /* What was named and is missing stays missing. */
    expect_missing("0.6b");
    expect_missing("Qwen/Qwen3-Reranker-0.6B");
    expect_missing("no-such-folder");
    setenv("QWEN_RERANK_MODEL_ID", "someone/else", 1);
    expect_missing(NULL);
    unsetenv("QWEN_RERANK_MODEL_ID");

    /* A real model comes first, by the same rules as without a built-in one. */
    temp_mkdir(&dir, SNAPSHOT);
    temp_mkdir(&dir, "hub/models--Qwen--Qwen3-Reranker-4B/refs");
    temp_text(&dir, "hub/models--Qwen--Qwen3-Reranker-4B/refs/main", "0123456789abcdef0123456789abcdef01234567");
    expect_found(NULL, "builtin"); /* a download that was cut off */
    temp_text(&dir, SNAPSHOT "/config.json", "{}");
    expect_found(NULL, temp_name(&dir, SNAPSHOT).text);
    expect_found("builtin", "builtin");

    /* A broken cache is an error and not a reason to take something else. */
    char *found;
    qr_error err = {0};
    temp_text(&dir, "hub/models--Qwen--Qwen3-Reranker-4B/refs/main", "nonsense");
    assert_int_equal(qr_model_locate(NULL, &found, &err), QR_E_FORMAT);
    temp_mkdir(&dir, "hub/models--Qwen--Qwen3-Reranker-0.6B/refs/main"); /* where a file should be: as unreadable as one of another user */
    temp_path moved = temp_name(&dir, "4B");
    temp_require(rename(temp_name(&dir, "hub/models--Qwen--Qwen3-Reranker-4B").text, moved.text) == 0, moved.text);
    expect_found(NULL, "builtin");
}

static void a_folder_of_that_name_needs_a_slash(void **state)
{
    (void) state;
    char before[4096];
    temp_require(getcwd(before, sizeof before) != NULL, "getcwd");
    temp_mkdir(&dir, "builtin");
    temp_require(chdir(dir.path) == 0, dir.path);
    expect_found("builtin", "builtin");
    expect_found("./builtin", "./builtin");
    qr_model m;
    qr_error err = {0};
    assert_int_equal(qr_model_open(&m, "./builtin", &err), QR_E_NOT_FOUND);
    assert_non_null(strstr(err.msg, "not a model folder"));
    assert_int_equal(qr_model_open(&m, "builtin", &err), QR_OK);
    assert_string_equal(m.dir, "builtin");
    qr_model_close(&m);
    temp_require(chdir(before) == 0, before);
}

static void survives_running_out_of_memory(void **state)
{
    (void) state;
    qr_status status = QR_E_MEMORY;
    for (long n = 1; status != QR_OK; n++) {
        qr_model m;
        qr_tokenizer *tok = NULL;
        qr_error err = {0};
        assert_true(n < 200);
        qr_mem_fail_at(n);
        status = qr_model_open(&m, QR_BUILTIN, &err);
        if (status == QR_OK) status = qr_model_tokenizer_open(&tok, QR_BUILTIN, &err);
        qr_mem_fail_at(0);
        assert_true(status == QR_OK || (status == QR_E_MEMORY && err.msg[0] != 0));
        qr_tok_close(tok);
        qr_model_close(&m);
    }
}

int main(void)
{
#define T2(f) cmocka_unit_test_setup_teardown(f, set_up_bare, tear_down)
    const struct CMUnitTest tests[] = {
        T2(holds_the_files),
        T2(scores_like_its_folder),
        T2(is_the_last_resort),
        T2(a_folder_of_that_name_needs_a_slash),
        T2(survives_running_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
