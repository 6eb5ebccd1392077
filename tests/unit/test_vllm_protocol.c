/* What is said to vLLM servers, to the byte, and what is made of their answers: right ones, and all kinds of wrong ones. */
#include "golden.h"

#include "vllm/protocol.h"

#include <math.h>

enum { YES = 9693, NO = 2152 };
static const uint32_t head[] = {10, 20, 30}, other_head[] = {40}, tails[] = {1, 2, 3, 4, 4294967295u};
static const qr_prefix prefixes[] = {{head, 3}, {other_head, 1}};
static const qr_seq seqs[] = {{tails, 2, 0}, {tails + 2, 1, 0}, {tails + 3, 2, 1}};
static const qr_batch batch = {prefixes, 2, seqs, 3, NULL};

static qr_vllm_call call_of(qr_vllm_protocol protocol, size_t first, size_t n)
{
    return (qr_vllm_call){protocol, "a \"model\"", YES, NO, &batch, first, n};
}

static void check_body(qr_vllm_protocol protocol, size_t first, size_t n, const char *expected)
{
    qr_buf body = {0};
    qr_vllm_call call = call_of(protocol, first, n);
    qr_vllm_write_call(&call, &body);
    qr_buf_add(&body, "", 1);
    assert_false(body.failed);
    assert_string_equal(body.data, expected);
    qr_buf_deinit(&body);
}

static void test_requests(void **state)
{
    (void) state;
    check_body(
        QR_VLLM_COMPLETIONS, 0, 3,
        "{\"model\":\"a \\\"model\\\"\",\"prompt\":[[10,20,30,1,2],[10,20,30,3],[40,4,4294967295]],\"max_tokens\":1,\"temperature\":0,"
        "\"logprobs\":0,\"logprob_token_ids\":[9693,2152],\"allowed_token_ids\":[9693,2152],\"return_tokens_as_token_ids\":true}");
    check_body(QR_VLLM_CLASSIFY, 1, 1, "{\"model\":\"a \\\"model\\\"\",\"input\":[[10,20,30,3]],\"use_activation\":false}");
    check_body(QR_VLLM_GENERATIVE, 0, 2,
               "{\"model\":\"a \\\"model\\\"\",\"query\":[10,20,30],\"items\":[[1,2],[3]],\"label_token_ids\":[9693,2152],"
               "\"apply_softmax\":true,\"item_first\":false,\"add_special_tokens\":false}");
}

static void test_capacity(void **state)
{
    (void) state;
    static qr_seq many[5000];
    for (size_t i = 0; i < 5000; i++) many[i] = (qr_seq){tails, 1, i < 3000 ? 0 : 1};
    const qr_batch large = {prefixes, 2, many, 5000, NULL};
    qr_vllm_call call = {QR_VLLM_COMPLETIONS, "m", YES, NO, &large, 0, 5000};
    assert_int_equal(qr_vllm_capacity(&call), 1024);
    call.protocol = QR_VLLM_CLASSIFY;
    assert_int_equal(qr_vllm_capacity(&call), 2048);
    call = call_of(QR_VLLM_GENERATIVE, 0, 3);
    assert_int_equal(qr_vllm_capacity(&call), 2); /* one query a request */
    call = call_of(QR_VLLM_GENERATIVE, 2, 1);
    assert_int_equal(qr_vllm_capacity(&call), 1);
    assert_int_equal(qr_vllm_longest_prompt(QR_VLLM_COMPLETIONS, 8193), 8192);
    assert_int_equal(qr_vllm_longest_prompt(QR_VLLM_CLASSIFY, 8193), 8193);
}

static qr_status read_answer(qr_vllm_protocol protocol, const char *text, qr_logits *out, qr_error *err)
{
    qr_vllm_call call = call_of(protocol, 0, 2);
    *err = (qr_error){0};
    return qr_vllm_read_answer(&call, text, strlen(text), out, err);
}

#define CHOICE(index, yes, no)                                                                                                             \
    "{\"index\":" #index ",\"logprobs\":{\"top_logprobs\":[{\"token_id:9693\":" #yes ",\"token_id:2152\":" #no "}]}}"

static void test_answers(void **state)
{
    (void) state;
    qr_logits out[2];
    qr_error err;
    assert_int_equal(read_answer(QR_VLLM_COMPLETIONS,
                                 "{\"choices\":[" CHOICE(1, -3.5, -1) "," CHOICE(0, -1, -31) "],\"usage\":{\"prompt_tokens\":9}}", out,
                                 &err),
                     QR_OK);
    assert_true(out[0].yes - out[0].no == 30 && out[1].yes - out[1].no == -2.5f);
    assert_int_equal(read_answer(QR_VLLM_CLASSIFY, "{\"data\":[{\"index\":0,\"probs\":[-11.375]},{\"index\":1,\"probs\":[8]}]}", out, &err),
                     QR_OK);
    assert_true(out[0].yes - out[0].no == -11.375f && out[1].yes - out[1].no == 8);
    assert_int_equal(read_answer(QR_VLLM_GENERATIVE, "{\"data\":[{\"index\":0,\"score\":0.75},{\"index\":1,\"score\":1e-9}]}", out, &err),
                     QR_OK);
    assert_true(fabsf(out[0].yes - logf(3)) < 1e-6f && fabsf(out[1].yes + 20.723266f) < 1e-5f);
    /* What a probability cannot tell any more is the largest margin that it can. */
    assert_int_equal(read_answer(QR_VLLM_GENERATIVE, "{\"data\":[{\"index\":0,\"score\":1},{\"index\":1,\"score\":0}]}", out, &err), QR_OK);
    assert_true(out[0].yes > 36 && out[0].yes < 37 && out[1].yes == -out[0].yes);
}

static void test_wrong_answers(void **state)
{
    (void) state;
    static const struct {
        qr_vllm_protocol protocol;
        const char *text, *reason;
    } cases[] = {
        {QR_VLLM_COMPLETIONS, "", "expected JSON"},
        {QR_VLLM_COMPLETIONS, "<html>", "expected JSON"},
        {QR_VLLM_COMPLETIONS, "[]", "expected a JSON object"},
        {QR_VLLM_COMPLETIONS, "{}", "expected 2 results"},
        {QR_VLLM_COMPLETIONS, "{\"choices\":[" CHOICE(0, -1, -2) "]}", "expected 2 results"},
        {QR_VLLM_COMPLETIONS, "{\"choices\":[" CHOICE(0, -1, -2) "," CHOICE(0, -1, -2) "]}", "that no other has"},
        {QR_VLLM_COMPLETIONS, "{\"choices\":[" CHOICE(0, -1, -2) "," CHOICE(2, -1, -2) "]}", "that no other has"},
        {QR_VLLM_COMPLETIONS, "{\"choices\":[" CHOICE(0, -1, -2) "," CHOICE(-1, -1, -2) "]}", "that no other has"},
        {QR_VLLM_COMPLETIONS, "{\"choices\":[" CHOICE(0, -1, -2) "," CHOICE(1.0, -1, -2) "]}", "that no other has"},
        {QR_VLLM_COMPLETIONS, "{\"choices\":[" CHOICE(0, -1, -2) "," CHOICE(1, null, -2) "]}", "token 9693, found null"},
        {QR_VLLM_COMPLETIONS, "{\"choices\":[" CHOICE(0, -1, -2) "," CHOICE(1, -1, -9999.0) "]}", "token 2152"},
        {QR_VLLM_COMPLETIONS, "{\"choices\":[" CHOICE(0, -1, -2) "," CHOICE(1, -1, 3) "]}", "token 2152"},
        {QR_VLLM_COMPLETIONS, "{\"choices\":[" CHOICE(0, -1, -2) "," CHOICE(1, -1, NaN) "]}", "expected JSON"},
        {QR_VLLM_COMPLETIONS, "{\"choices\":[" CHOICE(0, -1, -2) ",{\"index\":1,\"logprobs\":null}]}", "token 9693, found nothing"},
        {QR_VLLM_COMPLETIONS, "{\"choices\":[" CHOICE(0, -1, -2) ",7]}", "that no other has"},
        {QR_VLLM_COMPLETIONS, "{\"choices\":[" CHOICE(0, -1, -2) "," CHOICE(1, -1, -2) "],\"usage\":{\"prompt_tokens\":8}}", "were cut"},
        {QR_VLLM_CLASSIFY, "{\"data\":[{\"index\":0,\"probs\":[1]},{\"index\":1,\"probs\":[0.5,0.5]}]}", "expected one class, found 2"},
        {QR_VLLM_CLASSIFY, "{\"data\":[{\"index\":0,\"probs\":[1]},{\"index\":1,\"probs\":[\"1\"]}]}", "found \"1\""},
        {QR_VLLM_CLASSIFY, "{\"data\":[{\"index\":0,\"probs\":[1e42]},{\"index\":1,\"probs\":[-2]}]}",
         "a finite number as the class's value, found 1e+42"},
        {QR_VLLM_GENERATIVE, "{\"data\":[{\"index\":0,\"score\":0.5},{\"index\":1,\"score\":1.5}]}", "from 0 to 1, found 1.5"},
        {QR_VLLM_GENERATIVE, "{\"data\":[{\"index\":0,\"score\":0.5},{\"index\":1}]}", "found nothing"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        qr_logits out[2];
        qr_error err;
        assert_int_equal(read_answer(cases[i].protocol, cases[i].text, out, &err), QR_E_BACKEND);
        if (strstr(err.msg, cases[i].reason) == NULL) fail_msg("%s: %s", cases[i].text, err.msg);
    }
}

static void test_models(void **state)
{
    (void) state;
    static const char text[] = "{\"data\":[{\"id\":\"a\",\"max_model_len\":100},{\"id\":\"b\"},{\"id\":5}]}";
    char model[16], small[2];
    size_t most = 7;
    qr_error err = {0};
    assert_int_equal(qr_vllm_read_models(text, strlen(text), NULL, model, sizeof model, &most, &err), QR_OK);
    assert_true(strcmp(model, "a") == 0 && most == 100);
    assert_int_equal(qr_vllm_read_models(text, strlen(text), "b", model, sizeof model, &most, &err), QR_OK);
    assert_true(strcmp(model, "b") == 0 && most == 0);
    assert_int_equal(qr_vllm_read_models(text, strlen(text), "c", model, sizeof model, &most, &err), QR_E_BACKEND);
    assert_non_null(strstr(err.msg, "expected the model c, found a"));
    assert_int_equal(qr_vllm_read_models("{\"data\":[{\"id\":\"abc\"}]}", 23, NULL, small, sizeof small, &most, &err), QR_E_BACKEND);
    assert_int_equal(qr_vllm_read_models("{}", 2, NULL, model, sizeof model, &most, &err), QR_E_BACKEND);
}

static void test_tokenize(void **state)
{
    (void) state;
    static const uint32_t ids[] = {1, 2};
    static const char *const wrong[] = {"{}", "{\"tokens\":[1]}", "{\"tokens\":[1,2,3]}", "{\"tokens\":[1,3]}", "{\"tokens\":[1,\"2\"]}",
                                        "[]"};
    qr_error err = {0};
    assert_int_equal(qr_vllm_read_tokenize("{\"tokens\":[1,2]}", 16, ids, 2, &err), QR_OK);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        assert_int_equal(qr_vllm_read_tokenize(wrong[i], strlen(wrong[i]), ids, 2, &err), QR_E_BACKEND);
}

static void test_version(void **state)
{
    (void) state;
    static const char *const cases[][2] = {{"{\"version\":\"0.32.0\"}", "0.32.0"},
                                           {"{\"version\":\"\\u001b[31m0123456\"}", "?[31m01"},
                                           {"{\"version\":7}", ""},
                                           {"[]", ""},
                                           {"<html>", ""},
                                           {"", ""}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char version[8] = "before";
        qr_vllm_read_version(cases[i][0], strlen(cases[i][0]), version, sizeof version);
        assert_string_equal(version, cases[i][1]);
    }
}

static void test_error_texts(void **state)
{
    (void) state;
    static const char *const cases[][2] = {
        {"{\"error\":{\"message\":\"too long\",\"code\":400}}", "too long"},
        {"{\"error\":\"Unauthorized\"}", "Unauthorized"},
        {"{\"detail\":\"Not Found\"}", "Not Found"},
        {"<html>\n\x1b[31m", "<html>??[31m"},
        {"", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[40];
        qr_vllm_error_text(cases[i][0], strlen(cases[i][0]), text, sizeof text);
        assert_string_equal(text, cases[i][1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_requests),      cmocka_unit_test(test_capacity),    cmocka_unit_test(test_answers),
        cmocka_unit_test(test_wrong_answers), cmocka_unit_test(test_models),      cmocka_unit_test(test_tokenize),
        cmocka_unit_test(test_version),       cmocka_unit_test(test_error_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
