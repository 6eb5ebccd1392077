/* The tokenizer: ids of the reference library on fixtures, the pattern's pieces, limits, invalid UTF-8, and hostile tokenizer files.
 *
 * tests/golden/tokenizer_cases.json: hand-made cases. tests/golden/tokenizer_vectors.json: [text, ids as plain text, ids with added tokens
 * if they differ], written by tools/compare_tokenizers.py. */
#include "base/mem.h"
#include "small_tokenizer.h"
#include "text/pretokenizer.h"
#include "text/tokenizer_internal.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static qr_tokenizer *tok;
static json_t *vectors;

static json_t *load(const char *path)
{
    json_error_t error;
    json_t *root = json_load_file(path, JSON_ALLOW_NUL, &error);
    if (root == NULL) fail_msg("%s: %s", path, error.text);
    return root;
}

static int set_up(void **state)
{
    (void) state;
    qr_error err;
    if (qr_tok_open(&tok, QR_TEST_DATA "/tokenizer/tokenizer.json", &err) != QR_OK) {
        print_error("%s\n", err.msg);
        return 1;
    }
    vectors = load(QR_SOURCE_DIR "/tests/golden/tokenizer_vectors.json");
    return 0;
}

static int tear_down(void **state)
{
    (void) state;
    qr_tok_close(tok);
    json_decref(vectors);
    return 0;
}

/* Appends; fails the test on an error. */
static void encode(const qr_tokenizer *t, const char *text, size_t len, unsigned flags, qr_ids *ids)
{
    qr_error err;
    int complete = 0;
    if (qr_tok_encode(t, text, len, flags, 0, ids, NULL, &complete, &err) != QR_OK) fail_msg("%s", err.msg);
    assert_true(complete);
}

static void check(const json_t *text, unsigned flags, const json_t *want, qr_ids *ids)
{
    ids->n = 0;
    encode(tok, json_string_value(text), json_string_length(text), flags, ids);
    size_t n = json_array_size(want), i = 0;
    while (i < n && i < ids->n && ids->id[i] == json_integer_value(json_array_get(want, i))) i++;
    if (i < n || i < ids->n) {
        char *shown = json_dumps(text, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
        fail_msg("%s, flags %u: expected %zu ids, found %zu, the first %zu are equal", shown, flags, n, ids->n, i);
    }
}

static void ids_equal_the_reference(void **state)
{
    (void) state;
    qr_ids ids = {0};
    json_t *cases = load(QR_SOURCE_DIR "/tests/golden/tokenizer_cases.json"), *c;
    size_t i;
    assert_true(json_array_size(json_object_get(cases, "ids")) >= 90);
    json_array_foreach(json_object_get(cases, "ids"), i, c) check(json_array_get(c, 0), QR_TOK_SPECIAL, json_array_get(c, 1), &ids);
    json_decref(cases);
    assert_int_equal(json_array_size(vectors), 1600);
    json_array_foreach(vectors, i, c)
    {
        const json_t *plain = json_array_get(c, 1), *special = json_array_get(c, 2), *markup = json_array_get(c, 3);
        check(json_array_get(c, 0), 0, plain, &ids);
        check(json_array_get(c, 0), QR_TOK_SPECIAL, json_array_size(special) ? special : plain, &ids);
        check(json_array_get(c, 0), QR_TOK_MARKUP, json_array_size(markup) ? markup : plain, &ids);
    }
    qr_ids_deinit(&ids);
}

static void pieces_equal_the_pattern(void **state)
{
    (void) state;
    json_t *cases = load(QR_SOURCE_DIR "/tests/golden/tokenizer_cases.json"), *c, *piece;
    size_t i, k;
    assert_true(json_array_size(json_object_get(cases, "pieces")) >= 80);
    json_array_foreach(json_object_get(cases, "pieces"), i, c)
    {
        const unsigned char *s = (const unsigned char *) json_string_value(json_array_get(c, 0));
        size_t left = json_string_length(json_array_get(c, 0));
        json_array_foreach(json_array_get(c, 1), k, piece)
        {
            size_t n = qr_pretokenize(s, left, 1), partial;
            if (n != json_string_length(piece))
                fail_msg("case %zu, piece %zu: expected %zu bytes, found %zu", i, k, json_string_length(piece), n);
            /* Told that more may follow, it either waits or says the same. */
            partial = qr_pretokenize(s, left, 0);
            assert_true(partial == 0 || partial == n);
            s += n;
            left -= n;
        }
        assert_int_equal(left, 0);
    }
    json_decref(cases);
}

/* Long texts pass through a window: wherever its borders fall, the ids are those of the parts. */
static void windows_do_not_show(void **state)
{
    (void) state;
    qr_ids parts = {0}, whole = {0};
    size_t capacity = 1 << 20, i;
    char *text = malloc(capacity);
    assert_non_null(text);
    for (size_t shift = 0; shift < 9; shift++) {
        size_t len = 0;
        parts.n = whole.n = 0;
        json_t *v;
        for (size_t round = 0; round < 4; round++) {
            json_array_foreach(vectors, i, v)
            {
                /* "x...x\n" is closed at both ends: no pre-token and no composition reaches over it. */
                size_t n = json_string_length(json_array_get(v, 0)), begin = len, pad = len == 0 ? 7 * shift : 0;
                memset(text + len, 'x', pad + 1);
                memcpy(text + len + pad + 1, json_string_value(json_array_get(v, 0)), n);
                memcpy(text + len + pad + 1 + n, "x\n", 2);
                len += pad + n + 3;
                encode(tok, text + begin, len - begin, 0, &parts);
            }
        }
        assert_true(len > 200000 && len < capacity);
        encode(tok, text, len, 0, &whole);
        assert_int_equal(whole.n, parts.n);
        assert_memory_equal(whole.id, parts.id, parts.n * sizeof *parts.id);
    }
    free(text);
    qr_ids_deinit(&parts);
    qr_ids_deinit(&whole);
}

static void a_limit_gives_a_prefix(void **state)
{
    (void) state;
    static const char text[] = "One two, three<|im_end|> four\n\n  five 678 nine's <think>ten";
    for (unsigned flags = 0; flags <= QR_TOK_SPECIAL; flags++) {
        qr_ids all = {0}, some = {0};
        encode(tok, text, sizeof text - 1, flags, &all);
        for (size_t limit = 1; limit <= all.n + 1; limit++) {
            int complete = -1;
            some.n = 0;
            assert_int_equal(qr_tok_encode(tok, text, sizeof text - 1, flags, limit, &some, NULL, &complete, NULL), QR_OK);
            assert_true(some.n >= limit || some.n == all.n);
            assert_int_equal(complete, some.n == all.n);
            assert_memory_equal(some.id, all.id, some.n * sizeof *all.id);
        }
        qr_ids_deinit(&all);
        qr_ids_deinit(&some);
    }
}

static void invalid_utf8_becomes_replacement_characters(void **state)
{
    (void) state;
    static const struct {
        const char *text;
        int n_replaced; /* U+FFFD between "a" and "b" */
    } cases[] = {{"a\xFF"
                  "b",
                  1},
                 {"a\xED\xA0\x80"
                  "b",
                  3},
                 {"a\xC0\x80"
                  "b",
                  2},
                 {"a\xE2\x82"
                  "b",
                  1},
                 {"a\xF0\x9F\x98"
                  "b",
                  1},
                 {"a\x80"
                  "b",
                  1},
                 {"a\xE0\x80\x80"
                  "b",
                  3},
                 {"a\xF4\x90\x80\x80"
                  "b",
                  4},
                 {"a\xF0\x9F"
                  "\xE2"
                  "b",
                  2},
                 {"a\xC3"
                  "b",
                  1}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char want[32] = "a";
        for (int k = 0; k < cases[i].n_replaced; k++) strcat(want, "\xEF\xBF\xBD");
        strcat(want, "b");
        qr_ids a = {0}, b = {0};
        int replaced = 0;
        assert_int_equal(qr_tok_encode(tok, cases[i].text, strlen(cases[i].text), 0, 0, &a, &replaced, NULL, NULL), QR_OK);
        assert_int_equal(replaced, 1);
        replaced = 0;
        assert_int_equal(qr_tok_encode(tok, want, strlen(want), 0, 0, &b, &replaced, NULL, NULL), QR_OK);
        assert_int_equal(replaced, 0);
        assert_int_equal(a.n, b.n);
        assert_memory_equal(a.id, b.id, a.n * sizeof *a.id);
        qr_ids_deinit(&a);
        qr_ids_deinit(&b);
    }
}

/* A megabyte without a break: the counts are exact, and a quadratic step anywhere would take minutes. */
static void long_runs_take_linear_time(void **state)
{
    (void) state;
    static const struct {
        const char *unit;
        size_t times, n_ids;
    } runs[] = {{"a", 1000000, 125000}, {"7", 1000000, 1000000}, {"\xF0\x9F\x98\x80", 250000, 250000}, {"\xCC\x81", 500000, 500000}};
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++) {
        size_t unit = strlen(runs[i].unit), len = unit * runs[i].times;
        char *text = malloc(len);
        assert_non_null(text);
        for (size_t k = 0; k < len; k++) text[k] = runs[i].unit[k % unit];
        qr_ids ids = {0};
        encode(tok, text, len, 0, &ids);
        assert_int_equal(ids.n, runs[i].n_ids);
        ids.n = 0;
        int complete = 1;
        assert_int_equal(qr_tok_encode(tok, text, len, 0, 10, &ids, NULL, &complete, NULL), QR_OK);
        assert_true(ids.n >= 10);
        qr_ids_deinit(&ids);
        free(text);
    }
    /* Marks in an order that NFC has to reverse, which is quadratic by insertion. */
    size_t half = 400000;
    char *marks = malloc(4 * half);
    assert_non_null(marks);
    for (size_t k = 0; k < 2 * half; k++) memcpy(marks + 2 * k, k < half ? "\xCC\x81" : "\xCC\xA7", 2);
    qr_ids ids = {0}, first = {0};
    encode(tok, marks, 4 * half, 0, &ids);
    encode(tok, "\xCC\xA7\xCC\xA7\xCC\xA7\xCC\xA7", 8, 0, &first);
    assert_memory_equal(ids.id, first.id, first.n * sizeof *first.id);
    qr_ids_deinit(&first);
    qr_ids_deinit(&ids);
    free(marks);
}

static void ids_have_bytes(void **state)
{
    (void) state;
    size_t len;
    assert_int_equal(qr_tok_vocab_size(tok), 151669);
    assert_memory_equal(qr_tok_bytes(tok, 9693, &len), "yes", 3);
    assert_int_equal(len, 3);
    assert_memory_equal(qr_tok_bytes(tok, 5267, &len), "?\n", 2);
    assert_memory_equal(qr_tok_bytes(tok, 151645, &len), "<|im_end|>", 10);
    assert_true(qr_tok_is_added(tok, 151645));
    assert_false(qr_tok_is_added(tok, 9693));
    assert_null(qr_tok_bytes(tok, 151669, &len));
}

static void a_reduced_vocabulary_works(void **state)
{
    (void) state;
    /* " aaaab" is aaaab after a space, not " a" before anything: ranks decide. */
    static const char text[] = "abc aaaab<|x|>!!\xC3\x8C.";
    static const uint32_t plain[] = {421, 268, 456, 240, 176, 180, 176, 238, 442, 300 - 0xC3, 300 - 0x8C, 254};
    for (int variant = 0; variant < 4; variant++) {
        char json[SMALL_CAPACITY];
        qr_tokenizer *small;
        qr_error err;
        qr_ids ids = {0};
        size_t n = small_tokenizer(json, variant & 1, variant >> 1);
        if (qr_tok_open_memory(&small, json, n, "small", &err) != QR_OK) fail_msg("%s", err.msg);
        assert_int_equal(qr_tok_vocab_size(small), SMALL_SPECIAL + 1);
        encode(small, "abc", 3, 0, &ids);
        assert_int_equal(ids.n, 1);
        assert_int_equal(ids.id[0], 421);
        ids.n = 0;
        encode(small, "<|x|>", 5, QR_TOK_SPECIAL, &ids);
        assert_int_equal(ids.n, 1);
        assert_int_equal(ids.id[0], SMALL_SPECIAL);
        /* The same list of ids serves another tokenizer: its cache of words must not. */
        ids.n = 0;
        encode(tok, "abc", 3, 0, &ids);
        assert_int_equal(ids.id[0], 13683);
        ids.n = 0;
        encode(small, text, sizeof text - 1, 0, &ids);
        assert_int_equal(ids.n, sizeof plain / sizeof plain[0]);
        assert_memory_equal(ids.id, plain, sizeof plain);
        qr_ids_deinit(&ids);
        qr_tok_close(small);
    }
}

/* Whatever is cut off or changed: an error with a message, or a tokenizer that encodes; never anything else (run under sanitizers). */
static void broken_files_are_refused(void **state)
{
    (void) state;
    char json[SMALL_CAPACITY], copy[SMALL_CAPACITY];
    size_t n = small_tokenizer(json, 0, 0);
    qr_tokenizer *small;
    qr_error err;
    for (size_t len = 0; len < n; len++) {
        char *exact = malloc(len ? len : 1); /* so that a read past the end is seen */
        assert_non_null(exact);
        memcpy(exact, json, len);
        assert_int_equal(qr_tok_open_memory(&small, exact, len, "small", &err), QR_E_FORMAT);
        assert_null(small);
        assert_non_null(strstr(err.msg, "small: byte "));
        free(exact);
    }
    uint32_t random = 1;
    for (int round = 0; round < 20000; round++) {
        memcpy(copy, json, n);
        random = random * 1664525 + 1013904223;
        copy[(random >> 8) % n] ^= (char) (1 << (random >> 5 & 7));
        qr_status status = qr_tok_open_memory(&small, copy, n, "small", &err);
        if (status == QR_OK) {
            qr_ids ids = {0};
            encode(small, json, 300, QR_TOK_SPECIAL, &ids);
            assert_true(ids.n > 0);
            qr_ids_deinit(&ids);
            qr_tok_close(small);
        } else {
            assert_true(status == QR_E_FORMAT || status == QR_E_UNSUPPORTED);
            assert_null(small);
        }
    }
}

/* Replaces `from` by `to` in the small tokenizer and opens it. */
static qr_status open_edited(const char *from, const char *to, qr_error *err)
{
    char json[SMALL_CAPACITY], edited[2 * SMALL_CAPACITY];
    small_tokenizer(json, 0, 0);
    char *at = strstr(json, from);
    if (at == NULL) fail_msg("\"%s\" is not in the file", from);
    snprintf(edited, sizeof edited, "%.*s%s%s", (int) (at - json), json, to, at + strlen(from));
    qr_tokenizer *small;
    qr_status status = qr_tok_open_memory(&small, edited, strlen(edited), "small", err);
    qr_tok_close(small);
    return status;
}

static void other_kinds_are_refused(void **state)
{
    (void) state;
    static const struct {
        const char *from, *to;
        qr_status status;
    } edits[] = {
        {"\"NFC\"", "\"NFKC\"", QR_E_UNSUPPORTED},
        {"{\"type\":\"NFC\"}", "null", QR_E_UNSUPPORTED},
        {"(?i:'s", "(?i:'z", QR_E_UNSUPPORTED},
        {"\"Isolated\"", "\"Removed\"", QR_E_UNSUPPORTED},
        {"\"invert\":false", "\"invert\":true", QR_E_UNSUPPORTED},
        {"\"use_regex\":false", "\"use_regex\":true", QR_E_UNSUPPORTED},
        {",\"use_regex\":false", "", QR_E_UNSUPPORTED},
        {"\"add_prefix_space\":false", "\"add_prefix_space\":true", QR_E_UNSUPPORTED},
        {"\"post_processor\":{\"type\":\"ByteLevel\"", "\"post_processor\":{\"type\":\"TemplateProcessing\"", QR_E_UNSUPPORTED},
        {"\"truncation\":null", "\"truncation\":{\"max_length\":5}", QR_E_UNSUPPORTED},
        {"\"padding\":null", "\"padding\":{}", QR_E_UNSUPPORTED},
        {"\"type\":\"BPE\"", "\"type\":\"WordPiece\"", QR_E_UNSUPPORTED},
        {"\"dropout\":null", "\"dropout\":0.1", QR_E_UNSUPPORTED},
        {"\"unk_token\":null", "\"unk_token\":\"a\"", QR_E_UNSUPPORTED},
        {"subword_prefix\":\"\"", "subword_prefix\":\"##\"", QR_E_UNSUPPORTED},
        {"word_suffix\":\"\"", "word_suffix\":\"</w>\"", QR_E_UNSUPPORTED},
        {"\"byte_fallback\":false", "\"byte_fallback\":true", QR_E_UNSUPPORTED},
        {"\"ignore_merges\":false", "\"ignore_merges\":true", QR_E_UNSUPPORTED},
        {"\"ignore_merges\":false", "\"new_field\":false", QR_E_UNSUPPORTED},
        {"\"normalized\":false", "\"normalized\":true", QR_E_UNSUPPORTED},
        {"\"lstrip\":false", "\"lstrip\":true", QR_E_UNSUPPORTED},
        {"\"rstrip\":false", "\"rstrip\":true", QR_E_UNSUPPORTED},
        {"\"single_word\":false", "\"single_word\":true", QR_E_UNSUPPORTED},
        {"\"ignore_merges\":false,", "", QR_OK},
        {"\"dropout\":null,\"unk_token\":null,", "", QR_OK},
        {"\"padding\":null,", "", QR_OK},
        {"\"trim_offsets\":false", "\"trim_offsets\":true", QR_OK},
        {"\"a\":203", "\"\\u0061\":203", QR_OK},
        {"\"truncation\":null", "\"version\":\"1.0\"", QR_E_FORMAT},
        {"\"a\":203", "\"a\":204", QR_E_FORMAT}, /* an id twice */
        {"\"a\":203", "\"b\":203", QR_E_FORMAT}, /* an entry twice */
        {"\"a\":203,", "", QR_E_FORMAT},         /* no symbol for a byte */
        {"\"a\":203", "\"a\":99999999", QR_E_FORMAT},
        {"\"a\":203", "\"a\":4294967296", QR_E_FORMAT},
        {"\"a\":203", "\"a\":-1", QR_E_FORMAT},
        {"\"a\":203", "\"a\":203.0", QR_E_FORMAT},
        {"\"a\":203", "\"a\":0203", QR_E_FORMAT},
        {"\"a\":203", "\"a\":\"203\"", QR_E_FORMAT},
        {"\"a\":203", "\"a b\":203", QR_E_FORMAT},        /* a space is no byte symbol */
        {"\"aaaa\":407,", "", QR_E_FORMAT},               /* a merge without its result */
        {"[\"a\",\"a\"]", "[\"a\",\"zz\"]", QR_E_FORMAT}, /* a merge of what is no entry */
        {"[\"a\",\"b\"]", "[\"a\",\"a\"]", QR_E_FORMAT},  /* a merge twice */
        {"[\"a\",\"a\"]", "[\"a\"]", QR_E_FORMAT},
        {"[\"a\",\"a\"]", "[\"a\",\"a\",\"a\"]", QR_E_FORMAT},
        {"[\"a\",\"a\"]", "\"aa\"", QR_E_FORMAT},
        {"\"id\":900", "\"id\":203", QR_E_FORMAT}, /* an added token in another entry's place */
        {"\"id\":900,", "", QR_E_FORMAT},
        {"<|x|>", "", QR_E_FORMAT},
        {"<|x|>", "a", QR_E_FORMAT}, /* an entry's text with another id */
        {"<|x|>", "\\ufffd", QR_E_UNSUPPORTED},
        {"\\ud83d\\ude00", "\\ud83d", QR_E_FORMAT},
        {"\\ud83d\\ude00", "\x01", QR_E_FORMAT},
        {"\\ud83d\\ude00", "\xFF", QR_E_FORMAT},
        {"\\ud83d\\ude00", "\\x", QR_E_FORMAT},
        {"\"k\":", "\"k\":1,\"k\":", QR_E_FORMAT},
        {"-1.5e+3", "-01", QR_E_FORMAT},
        {"-1.5e+3", "[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]", QR_E_FORMAT},
        {"]}}", "]}} x", QR_E_FORMAT},
    };
    for (size_t i = 0; i < sizeof edits / sizeof edits[0]; i++) {
        qr_error err = {0};
        qr_status status = open_edited(edits[i].from, edits[i].to, &err);
        if (status != edits[i].status)
            fail_msg("%s -> %s: expected status %d, found %d %s", edits[i].from, edits[i].to, edits[i].status, status, err.msg);
    }
    qr_tokenizer *none;
    qr_error err;
    assert_int_equal(qr_tok_open(&none, QR_TEST_DATA "/no/such/tokenizer.json", &err), QR_E_NOT_FOUND);
    assert_null(none);
}

static void running_out_of_memory_is_an_error(void **state)
{
    (void) state;
    char json[SMALL_CAPACITY], text[4000];
    size_t n = small_tokenizer(json, 1, 0);
    memset(text, 'a', sizeof text); /* long enough for the heap */
    memcpy(text + 3000, "b e\xCC\x81\xCC\xA7 <|x|> ", 15);
    int done = 0;
    for (long fail_at = 1; !done; fail_at++) {
        assert_true(fail_at < 1000);
        qr_tokenizer *small = NULL;
        qr_ids ids = {0};
        qr_error err = {0};
        qr_mem_fail_at(fail_at);
        qr_status status = qr_tok_open_memory(&small, json, n, "small", &err);
        if (status == QR_OK) status = qr_tok_encode(small, text, sizeof text, QR_TOK_SPECIAL, 0, &ids, NULL, NULL, &err);
        qr_mem_fail_at(0);
        done = status == QR_OK;
        if (!done) assert_int_equal(status, QR_E_MEMORY);
        qr_ids_deinit(&ids);
        qr_tok_close(small);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_equal_the_reference),
        cmocka_unit_test(pieces_equal_the_pattern),
        cmocka_unit_test(windows_do_not_show),
        cmocka_unit_test(a_limit_gives_a_prefix),
        cmocka_unit_test(invalid_utf8_becomes_replacement_characters),
        cmocka_unit_test(long_runs_take_linear_time),
        cmocka_unit_test(ids_have_bytes),
        cmocka_unit_test(a_reduced_vocabulary_works),
        cmocka_unit_test(broken_files_are_refused),
        cmocka_unit_test(other_kinds_are_refused),
        cmocka_unit_test(running_out_of_memory_is_an_error),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
