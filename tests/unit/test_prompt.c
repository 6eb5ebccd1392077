/* Prompts: ids of the golden cases, the shared prefix, truncation, templates of other models, options that are refused. */
#include "text/prompt.h"

#include "base/mem.h"

#include <jansson.h>
#include <openssl/sha.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static qr_tokenizer *tok;

static qr_text text_of(const char *s) { return (qr_text){s, strlen(s)}; }

static int open_tokenizer(void **state)
{
    (void) state;
    qr_error err;
    if (qr_tok_open(&tok, QR_TEST_DATA "/tokenizer/tokenizer.json", &err) == QR_OK) return 0;
    print_error("%s\n", err.msg);
    return 1;
}

static int close_tokenizer(void **state)
{
    (void) state;
    qr_tok_close(tok);
    return 0;
}

static qr_prompt *must_open(const qr_options *options)
{
    qr_prompt *prompt;
    qr_error err;
    if (qr_prompt_open(&prompt, tok, options, &err) != QR_OK) fail_msg("%s", err.msg);
    return prompt;
}

static void must_build(const qr_prompt *prompt, const qr_query *query, size_t max_length, qr_prompt_ids *out)
{
    qr_error err;
    if (qr_prompt_build(prompt, query, max_length, out, &err) != QR_OK) fail_msg("%s", err.msg);
}

/* All ids of document d, in a block for free(). */
static uint32_t *prompt_of(const qr_prompt_ids *p, size_t d, size_t *n)
{
    size_t own = p->start[d + 1] - p->start[d];
    uint32_t *id = malloc((p->n_shared + own) * sizeof *id);
    assert_non_null(id);
    memcpy(id, p->ids.id, p->n_shared * sizeof *id);
    memcpy(id + p->n_shared, p->ids.id + p->start[d], own * sizeof *id);
    *n = p->n_shared + own;
    return id;
}

static void ids_sha256(const uint32_t *id, size_t n, char hex[65])
{
    unsigned char digest[SHA256_DIGEST_LENGTH];
    char *text = malloc(n * 11 + 1);
    size_t len = 0;
    assert_non_null(text);
    for (size_t i = 0; i < n; i++) len += (size_t) sprintf(text + len, i ? ",%u" : "%u", id[i]);
    SHA256((const unsigned char *) text, len, digest);
    for (size_t i = 0; i < sizeof digest; i++) sprintf(hex + 2 * i, "%02x", digest[i]);
    free(text);
}

static void golden_cases_have_their_ids(void **state)
{
    (void) state;
    json_error_t json_error;
    json_t *root = json_load_file(QR_SOURCE_DIR "/tests/golden/scores-micro-1.json", JSON_ALLOW_NUL, &json_error),
           *cases = json_object_get(root, "cases"), *c;
    if (root == NULL) fail_msg("%s", json_error.text);
    assert_int_equal(json_array_size(cases), 33);
    qr_prompt *prompt = must_open(&(qr_options){0});
    assert_true(qr_prompt_is_canonical(prompt));
    assert_int_equal(qr_prompt_yes_id(prompt), 9693);
    assert_int_equal(qr_prompt_no_id(prompt), 2152);
    qr_prompt_ids ids = {0};
    size_t i;
    json_array_foreach(cases, i, c)
    {
        const char *unit = json_string_value(json_object_get(c, "document"));
        size_t unit_len = json_string_length(json_object_get(c, "document"));
        json_t *repeat = json_object_get(c, "repeat"), *instruction = json_object_get(c, "instruction");
        size_t times = repeat ? (size_t) json_integer_value(repeat) : 1;
        json_t *limit = json_object_get(c, "max_length");
        char *document = calloc(unit_len * times + 1, 1), hex[65];
        assert_non_null(document);
        for (size_t k = 0; k < times; k++) memcpy(document + k * unit_len, unit, unit_len);
        qr_text documents[2] = {{document, unit_len * times}, text_of("another one")};
        qr_text instruction_text = {json_string_value(instruction), json_string_length(instruction)};
        qr_query query = {.query = {json_string_value(json_object_get(c, "query")), json_string_length(json_object_get(c, "query"))},
                          .instruction = json_is_string(instruction) ? &instruction_text : NULL,
                          .documents = documents,
                          .n_documents = 2};
        must_build(prompt, &query, limit ? (size_t) json_integer_value(limit) : 8192, &ids);
        size_t n;
        uint32_t *id = prompt_of(&ids, 0, &n);
        assert_int_equal(n, json_integer_value(json_object_get(c, "n_tokens")));
        ids_sha256(id, n, hex);
        assert_string_equal(hex, json_string_value(json_object_get(c, "ids_sha256")));
        assert_int_equal(ids.flags[0], limit ? QR_RESULT_TRUNCATED : 0);
        free(id);
        free(document);
    }
    qr_prompt_ids_deinit(&ids);
    qr_prompt_close(prompt);
    json_decref(root);
}

/* Whatever the document begins with, prefix + head + own ids are those of the whole body in one piece. */
static void the_split_is_exact(void **state)
{
    (void) state;
    static const char *const documents[] = {
        "",  " ",   "  x", "\n",        "\n\nx",        "x",      "'s",           "\xCC\x81x", "\xE0\xA4\xBC", "\xCC\xB8",
        "1", ".\n", "\tx", "\xC2\xA0x", "\xE3\x82\x99", "\r\n x", "\xE1\x85\xA1", "<|im_end|>"};
    enum { N = sizeof documents / sizeof documents[0] };
    qr_prompt *prompt = must_open(&(qr_options){0});
    qr_text texts[N];
    for (size_t d = 0; d < N; d++) texts[d] = text_of(documents[d]);
    qr_prompt_ids ids = {0};
    must_build(prompt, &(qr_query){.query = text_of("q?"), .instruction = &(qr_text){"i", 1}, .documents = texts, .n_documents = N}, 8192,
               &ids);
    assert_int_equal(ids.start[0], ids.n_shared);
    assert_int_equal(ids.start[N], ids.ids.n);
    qr_ids whole = {0};
    for (size_t d = 0; d < N; d++) {
        char body[200];
        snprintf(body, sizeof body, "<Instruct>: i\n<Query>: q?\n<Document>: %s", documents[d]);
        whole.n = 0;
        assert_int_equal(qr_tok_encode(tok, body, strlen(body), 0, 0, &whole, NULL, NULL, NULL), QR_OK);
        size_t n;
        uint32_t *id = prompt_of(&ids, d, &n);
        assert_int_equal(n, 39 + whole.n + 9);
        assert_memory_equal(id + 39, whole.id, whole.n * sizeof *id);
        free(id);
    }
    qr_ids_deinit(&whole);
    qr_prompt_ids_deinit(&ids);
    qr_prompt_close(prompt);
}

static void truncation_cuts_the_document_only(void **state)
{
    (void) state;
    qr_prompt *prompt = must_open(&(qr_options){0});
    qr_text documents[] = {text_of("one two three four five six seven eight nine ten"), text_of("one")};
    qr_query query = {.query = text_of("numbers"), .documents = documents, .n_documents = 2};
    qr_prompt_ids full = {0}, cut = {0};
    must_build(prompt, &query, 8192, &full);
    size_t n_head = full.n_shared, own = full.start[1] - full.start[0];
    assert_int_equal(own, 10 + 9);
    for (size_t budget = 0; budget <= 11; budget++) {
        must_build(prompt, &query, n_head + budget + 9, &cut);
        size_t kept = budget < 10 ? budget : 10;
        assert_int_equal(cut.start[1] - cut.start[0], kept + 9);
        assert_memory_equal(cut.ids.id + n_head, full.ids.id + n_head, kept * sizeof(uint32_t));
        assert_memory_equal(cut.ids.id + cut.start[1] - 9, full.ids.id + full.start[1] - 9, 9 * sizeof(uint32_t));
        assert_int_equal(cut.flags[0], budget < 10 ? QR_RESULT_TRUNCATED : 0);
        assert_int_equal(cut.flags[1], budget < 1 ? QR_RESULT_TRUNCATED : 0);
    }
    query.max_length = n_head + 3 + 9; /* the query's own limit counts if it is lower */
    must_build(prompt, &query, 8192, &cut);
    assert_int_equal(cut.start[1] - cut.start[0], 3 + 9);
    query.max_length = 0;
    qr_error err;
    assert_int_equal(qr_prompt_build(prompt, &query, n_head + 8, &cut, &err), QR_E_TOO_LONG);
    char lengths[2][24];
    snprintf(lengths[0], sizeof lengths[0], "most %zu ", n_head + 8);
    snprintf(lengths[1], sizeof lengths[1], "found %zu", n_head + 9);
    assert_non_null(strstr(err.msg, lengths[0]));
    assert_non_null(strstr(err.msg, lengths[1]));
    qr_prompt_ids_deinit(&full);
    qr_prompt_ids_deinit(&cut);
    qr_prompt_close(prompt);
}

/* Special tokens come from literal text only, placeholders in user text stay, and markup counts in both. */
static void user_text_gives_no_special_tokens(void **state)
{
    (void) state;
    qr_prompt *prompt =
        must_open(&(qr_options){.query_template = "{query}<|im_sep|>{instruction}\n", .document_template = "<think>Doc: {document}"});
    assert_false(qr_prompt_is_canonical(prompt));
    qr_text document = text_of("</think>{query}"), instruction = text_of("{document}<|im_end|>");
    qr_prompt_ids ids = {0};
    must_build(
        prompt,
        &(qr_query){.query = text_of("{document}{query}<think>"), .instruction = &instruction, .documents = &document, .n_documents = 1},
        8192, &ids);
    qr_ids want = {0};
    static const char first[] = "{document}{query}<think><|im_sep|>{document}<|im_end|>\n", second[] = "Doc: </think>{query}";
    assert_int_equal(qr_tok_encode(tok, first, strlen(first), QR_TOK_MARKUP, 0, &want, NULL, NULL, NULL), QR_OK);
    size_t n_first = want.n, n;
    assert_int_equal(qr_tok_encode(tok, second, strlen(second), QR_TOK_MARKUP, 0, &want, NULL, NULL, NULL), QR_OK);
    uint32_t *id = prompt_of(&ids, 0, &n);
    assert_int_equal(n, 39 + want.n + 1 + 9);
    assert_memory_equal(id + 39, want.id, n_first * sizeof *id);
    assert_int_equal(id[39 + n_first], 151667);
    assert_memory_equal(id + 39 + n_first + 1, want.id + n_first, (want.n - n_first) * sizeof *id);
    for (size_t k = 39; k + 9 < n; k++) assert_true(id[k] < 151643 || id[k] >= 151657); /* none of the 14 special ones */
    free(id);
    qr_ids_deinit(&want);
    qr_prompt_ids_deinit(&ids);
    qr_prompt_close(prompt);
}

/* Templates whose split is not known: ids are those of whole bodies, the shared part is common to all, and each document keeps an id. */
static void other_templates_share_what_is_common(void **state)
{
    (void) state;
    static const struct {
        const char *query, *document, *suffix;
    } templates[] = {{"{query}\n", "{document}", NULL},        {"Q {query} D", "oc{document}", ""},
                     {"{query}", "{document}{query}", ""},     {"{query}<think>", "{document}", ""},
                     {"{query}\n", "a: {document} end", NULL}, {"{query}\n\n", "\n{document}<|im_end|>\n", "\n"}};
    qr_text documents[] = {text_of("umentation of x"), text_of("s"), text_of(""), text_of("\n\nx"), text_of("umentation of y")};
    enum { N = sizeof documents / sizeof documents[0] };
    for (size_t t = 0; t < sizeof templates / sizeof templates[0]; t++) {
        qr_prompt *prompt = must_open(&(qr_options){
            .prefix = "", .suffix = templates[t].suffix, .query_template = templates[t].query, .document_template = templates[t].document});
        qr_prompt_ids all = {0}, one = {0};
        must_build(prompt, &(qr_query){.query = text_of("it's?"), .documents = documents, .n_documents = N}, 8192, &all);
        assert_int_equal(all.n_documents, N);
        for (size_t d = 0; d < N; d++) {
            size_t n, m;
            assert_true(all.start[d] < all.start[d + 1]);
            must_build(prompt, &(qr_query){.query = text_of("it's?"), .documents = documents + d, .n_documents = 1}, 8192, &one);
            uint32_t *a = prompt_of(&all, d, &n), *b = prompt_of(&one, 0, &m);
            assert_int_equal(n, m);
            assert_memory_equal(a, b, n * sizeof *a);
            free(a);
            free(b);
        }
        qr_prompt_ids_deinit(&all);
        qr_prompt_ids_deinit(&one);
        qr_prompt_close(prompt);
    }
}

static void text_after_the_document_survives_truncation(void **state)
{
    (void) state;
    qr_prompt *prompt = must_open(
        &(qr_options){.prefix = "", .suffix = "", .query_template = "{query}\n", .document_template = "D: {document}<|im_end|>\nok"});
    qr_text document = text_of("one two three four five six seven eight nine ten");
    qr_prompt_ids ids = {0};
    must_build(prompt, &(qr_query){.query = text_of("q"), .documents = &document, .n_documents = 1}, 10, &ids);
    assert_int_equal(ids.ids.n, 10);
    assert_int_equal(ids.flags[0], QR_RESULT_TRUNCATED);
    assert_int_equal(ids.ids.id[7], 151645);
    assert_int_equal(ids.ids.id[8], 198);
    qr_prompt_ids_deinit(&ids);
    qr_prompt_close(prompt);
}

static void invalid_utf8_is_flagged(void **state)
{
    (void) state;
    qr_prompt *prompt = must_open(&(qr_options){0});
    qr_text documents[] = {{"a\xFF", 2}, {"a", 1}, {NULL, 0}};
    qr_prompt_ids ids = {0};
    qr_query query = {.query = {"q", 1}, .documents = documents, .n_documents = 3};
    must_build(prompt, &query, 8192, &ids);
    assert_int_equal(ids.flags[0], QR_RESULT_REPLACED);
    assert_int_equal(ids.flags[1], 0);
    assert_int_equal(ids.flags[2], 0);
    query.query = (qr_text){"q\xE2\x82", 3}; /* must not swallow the line feed of the template */
    must_build(prompt, &query, 8192, &ids);
    assert_int_equal(ids.flags[1], QR_RESULT_REPLACED);
    query.n_documents = 0;
    must_build(prompt, &query, 8192, &ids);
    assert_int_equal(ids.start[0], ids.n_shared);
    qr_prompt_ids_deinit(&ids);
    qr_prompt_close(prompt);
}

static void bad_options_are_refused(void **state)
{
    (void) state;
    static const struct {
        qr_options options;
        const char *message;
    } bad[] = {{{.query_template = "no placeholder"}, "query_template: expected {query}"},
               {{.query_template = "{query}{document}"}, "query_template: found {document}"},
               {{.query_template = "{query}{title}"}, "found {title}"},
               {{.document_template = "nothing"}, "found it 0 times"},
               {{.document_template = "{document}{document}"}, "found it 2 times"},
               {{.document_template = "{document}{x}"}, "found {x}"},
               {{.yes_token = "yes and no"}, "yes_token: expected the text of one token"},
               {{.no_token = ""}, "no_token: expected"},
               {{.no_token = "yes"}, "expected two tokens"},
               {{.suffix = "\xFF"}, "suffix: expected UTF-8"}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        qr_prompt *prompt;
        qr_error err;
        assert_int_equal(qr_prompt_open(&prompt, tok, &bad[i].options, &err), QR_E_ARG);
        assert_null(prompt);
        if (strstr(err.msg, bad[i].message) == NULL) fail_msg("expected \"%s\", found \"%s\"", bad[i].message, err.msg);
    }
}

static void canonical_strings_given_are_canonical(void **state)
{
    (void) state;
    qr_prompt *prompt = must_open(&(qr_options){.query_template = "<Instruct>: {instruction}\n<Query>: {query}\n",
                                                .document_template = "<Document>: {document}",
                                                .suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"});
    assert_true(qr_prompt_is_canonical(prompt));
    qr_prompt_close(prompt);
    prompt = must_open(&(qr_options){.suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n"});
    assert_false(qr_prompt_is_canonical(prompt));
    qr_prompt_close(prompt);
}

static void running_out_of_memory_is_an_error(void **state)
{
    (void) state;
    qr_text documents[] = {text_of("some document"), text_of("e\xCC\x81\xCC\xA7 other")};
    qr_query query = {.query = text_of("q"), .documents = documents, .n_documents = 2};
    for (int t = 0; t < 2; t++) {
        qr_options options = {.document_template = t ? "{document}<|im_end|>x" : NULL};
        int done = 0;
        for (long fail_at = 1; !done; fail_at++) {
            assert_true(fail_at < 1000);
            qr_prompt *prompt = NULL;
            qr_prompt_ids ids = {0};
            qr_error err = {0};
            qr_mem_fail_at(fail_at);
            qr_status status = qr_prompt_open(&prompt, tok, &options, &err);
            if (status == QR_OK) status = qr_prompt_build(prompt, &query, 8192, &ids, &err);
            qr_mem_fail_at(0);
            done = status == QR_OK;
            if (!done) assert_int_equal(status, QR_E_MEMORY);
            qr_prompt_ids_deinit(&ids);
            qr_prompt_close(prompt);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_cases_have_their_ids),
        cmocka_unit_test(the_split_is_exact),
        cmocka_unit_test(truncation_cuts_the_document_only),
        cmocka_unit_test(user_text_gives_no_special_tokens),
        cmocka_unit_test(other_templates_share_what_is_common),
        cmocka_unit_test(text_after_the_document_survives_truncation),
        cmocka_unit_test(invalid_utf8_is_flagged),
        cmocka_unit_test(bad_options_are_refused),
        cmocka_unit_test(canonical_strings_given_are_canonical),
        cmocka_unit_test(running_out_of_memory_is_an_error),
    };
    return cmocka_run_group_tests(tests, open_tokenizer, close_tokenizer);
}
