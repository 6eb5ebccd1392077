/* The parts of a pull that need no network: what comes from it is hostile. */
#include "hub/blob.h"
#include "hub/fetch.h"
#include "hub/pull.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void test_paths(void **state)
{
    (void) state;
    static const char *const good[] = {"a",  "a/b", "1_LogitScore/config.json", "..a", "a..b/c...", "model-00001-of-00002.safetensors",
                                       "a b"};
    static const char *const bad[] = {"",       "/",    "/a",  "a/",  "a//b", ".",    "..",   "../a",
                                      "a/../b", "a/..", "./a", "a/.", "a\\b", "a\nb", "a\x7f"};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) assert_true(qr_hf_is_path(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) assert_false(qr_hf_is_path(bad[i]));
}

static void test_ids(void **state)
{
    (void) state;
    qr_hf_id id;
    assert_true(qr_hf_id_parse(&id, "Qwen/Qwen3-Reranker-0.6B@refs/pr/1"));
    assert_string_equal(id.repo, "Qwen/Qwen3-Reranker-0.6B");
    assert_string_equal(id.revision, "refs/pr/1");
    assert_string_equal(id.folder, "models--Qwen--Qwen3-Reranker-0.6B");
    assert_true(qr_hf_id_parse(&id, "a/b"));
    assert_string_equal(id.revision, "main");
    static const char *const bad[] = {"", "a", "a/", "/a", "a/b/c", "a/b@", "a/b@/x", "a/b@../x", "../b", "a/..", "a/b c", ".a/b", "a/b:c"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) assert_false(qr_hf_id_parse(&id, bad[i]));
    assert_string_equal(qr_hf_known("0.6B"), "Qwen/Qwen3-Reranker-0.6B");
    assert_null(qr_hf_known("0.7b"));
}

static void test_headers(void **state)
{
    (void) state;
    uint64_t first, total;
    char url[64];
    assert_true(qr_hub_parse_range("bytes 5-9/10", &first, &total) && first == 5 && total == 10);
    static const char *const bad[] = {"", "bytes */10", "bytes 9-5/10", "bytes 5-10/10", "bytes 5-9/10x", "items 5-9/10", "bytes 5-9"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) assert_false(qr_hub_parse_range(bad[i], &first, &total));
    assert_true(qr_hub_parse_next("<http://a/b?c=1>; rel=\"next\"", url, sizeof url));
    assert_string_equal(url, "http://a/b?c=1");
    assert_true(qr_hub_parse_next("<x>; rel=\"xet-auth\", <y>; rel=\"next\"", url, sizeof url));
    assert_string_equal(url, "y");
    assert_false(qr_hub_parse_next("<x>; rel=\"prev\"", url, sizeof url));
    assert_false(qr_hub_parse_next("<x", url, sizeof url));
    assert_false(qr_hub_parse_next("<0123456789>; rel=\"next\"", url, 10));
    assert_true(qr_hub_same_host("https://a.b/x?y", "HTTPS://A.b"));
    assert_false(qr_hub_same_host("https://a.b/x", "http://a.b/x"));
    assert_false(qr_hub_same_host("https://a.b:444/x", "https://a.b/x"));
    assert_false(qr_hub_same_host("https://a.b@evil/x", "https://a.b/x"));
    assert_false(qr_hub_same_host("https://a.bc/x", "https://a.b/x"));
}

static size_t journal(const char *text, unsigned char have[4]) { return qr_blob_read_journal(text, strlen(text), 350, 100, have, 4); }

static void test_journal(void **state)
{
    (void) state;
    unsigned char have[4];
    assert_int_equal(journal("qwen-rerank 1 350 100\n0\n3\n0\n", have), 2);
    assert_memory_equal(have, ((unsigned char[]){1, 0, 0, 1}), 4);
    assert_int_equal(journal("qwen-rerank 1 350 100\n0\n1", have), 1); /* a crash in the middle of a line: 1 could have been 12 */
    assert_int_equal(journal("qwen-rerank 1 350 100\n2\nx\n1\n", have), 1);
    assert_int_equal(journal("qwen-rerank 1 350 100\n4\n", have), 0);
    assert_int_equal(journal("qwen-rerank 1 350 100\n99999999999999999999\n", have), 0);
    assert_int_equal(journal("qwen-rerank 1 351 100\n0\n", have), 0);
    assert_int_equal(journal("qwen-rerank 2 350 100\n0\n", have), 0);
    assert_int_equal(journal("", have), 0);
}

static size_t chosen(const char *const *names, size_t n, const char *quantization, const char *file, char *text, size_t size)
{
    qr_hub_file files[16] = {{{0}, 0, {0}, 0, 0}};
    qr_error err = {0};
    size_t count = 0, used = 0;
    text[0] = 0;
    for (size_t i = 0; i < n; i++) snprintf(files[i].path, sizeof files[i].path, "%s", names[i]);
    if (qr_hub_choose(files, n, quantization, file, &err) != QR_OK) {
        assert_true(err.code == QR_E_INPUT && err.msg[0] != 0);
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        if (!files[i].wanted) continue;
        count++;
        used += (size_t) snprintf(text + used, size - used, "%.64s ", files[i].path);
    }
    return count;
}

static void test_choice(void **state)
{
    (void) state;
    char text[512];
    static const char *const sharded[] = {"config.json",
                                          "model-00001-of-00002.safetensors",
                                          "model-00002-of-00002.safetensors",
                                          "model.safetensors",
                                          "model.safetensors.index.json",
                                          "onnx/model.safetensors",
                                          "pytorch_model.bin",
                                          "tokenizer.json",
                                          "README.md"};
    assert_int_equal(chosen(sharded, 9, NULL, NULL, text, sizeof text), 5);
    assert_null(strstr(text, " model.safetensors "));
    assert_int_equal(chosen(sharded + 5, 4, NULL, NULL, text, sizeof text), 0);
    assert_int_equal(chosen(sharded, 9, "Q8_0", NULL, text, sizeof text), 0);
    static const char *const gguf[] = {"m.Q8_0.gguf", "m-Q4_K_M.gguf", "m-IQ4_K.gguf", "a/m-Q4_K.gguf", "mmproj-Q8_0.gguf"};
    assert_true(chosen(gguf, 5, NULL, NULL, text, sizeof text) == 1 && strcmp(text, "m.Q8_0.gguf ") == 0);
    assert_true(chosen(gguf, 5, "q4_k", NULL, text, sizeof text) == 1 && strcmp(text, "a/m-Q4_K.gguf ") == 0);
    assert_true(chosen(gguf, 5, NULL, "m-IQ4_K.gguf", text, sizeof text) == 1 && strcmp(text, "m-IQ4_K.gguf ") == 0);
    assert_int_equal(chosen(gguf, 5, "Q2_K", NULL, text, sizeof text), 0);
    assert_int_equal(chosen(gguf + 1, 3, NULL, NULL, text, sizeof text), 0); /* several, and none that is preferred */
    assert_int_equal(chosen(gguf + 1, 1, NULL, NULL, text, sizeof text), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_paths), cmocka_unit_test(test_ids), cmocka_unit_test(test_headers),
                                       cmocka_unit_test(test_journal), cmocka_unit_test(test_choice)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
