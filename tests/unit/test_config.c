/* config.json: what the Qwen team and re-savers write is read; what would change the result and is not implemented is refused. */
#define _GNU_SOURCE
#include "base/mem.h"
#include "model/config.h"
#include "temp_dir.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static qr_status read_text(const char *text, qr_config *config, qr_error *err)
{
    temp_text(&dir, "config.json", text);
    *err = (qr_error){0};
    qr_status status = qr_config_read(config, temp_name(&dir, "config.json").text, err);
    if (status != QR_OK) {
        assert_int_equal(err->code, status);
        assert_non_null(strstr(err->msg, "config.json: "));
        assert_null(strchr(err->msg, '\n'));
    }
    return status;
}

/* A good file in which the line of `key` is replaced by `line` (NULL: left out); a key that is not there is added. */
static void make(char *out, size_t room, const char *key, const char *line)
{
    static const char *const lines[][2] = {
        {"architectures", "[\"Qwen3ForCausalLM\"]"},
        {"model_type", "\"qwen3\""},
        {"num_hidden_layers", "3"},
        {"hidden_size", "64"},
        {"intermediate_size", "160"},
        {"num_attention_heads", "4"},
        {"num_key_value_heads", "2"},
        {"head_dim", "32"},
        {"vocab_size", "151669"},
        {"max_position_embeddings", "40960"},
        {"rms_norm_eps", "1e-06"},
        {"rope_theta", "1000000"},
        {"rope_scaling", "null"},
        {"tie_word_embeddings", "true"},
        {"torch_dtype", "\"bfloat16\""},
        {"attention_bias", "false"},
        {"use_sliding_window", "false"},
        {"sliding_window", "null"},
        {"hidden_act", "\"silu\""},
    };
    size_t used = (size_t) snprintf(out, room, "{\"extra\": [1, {}]");
    int found = 0;
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        int same = key != NULL && strcmp(key, lines[i][0]) == 0;
        found |= same;
        const char *value = same ? line : lines[i][1];
        if (value != NULL) used += (size_t) snprintf(out + used, room - used, ",\n\"%s\": %s", lines[i][0], value);
    }
    if (key != NULL && !found) used += (size_t) snprintf(out + used, room - used, ",\n\"%s\": %s", key, line ? line : "null");
    snprintf(out + used, room - used, "}");
}

static void expect(const char *key, const char *value, qr_status status, const char *part)
{
    char text[4096];
    qr_config c;
    qr_error err;
    make(text, sizeof text, key, value);
    qr_status got = read_text(text, &c, &err);
    if (got != status || strstr(err.msg, part) == NULL)
        fail_msg("%s %s: expected %d \"%s\", found %d \"%s\"", key, value ? value : "absent", status, part, got, err.msg);
}

static void reads_what_tools_write(void **state)
{
    (void) state;
    char text[4096];
    qr_config c;
    qr_error err;
    make(text, sizeof text, NULL, NULL);
    assert_int_equal(read_text(text, &c, &err), QR_OK);
    assert_int_equal(c.n_layers, 3);
    assert_int_equal(c.hidden, 64);
    assert_int_equal(c.inter, 160);
    assert_int_equal(c.n_heads, 4);
    assert_int_equal(c.n_kv_heads, 2);
    assert_int_equal(c.head_dim, 32);
    assert_int_equal(c.vocab, 151669);
    assert_int_equal(c.max_positions, 40960);
    assert_true(c.rope_theta == 1000000.0 && c.rms_eps == 1e-6f && c.tied == 1);
    assert_string_equal(c.torch_dtype, "bfloat16");

    make(text, sizeof text, "head_dim", NULL);
    assert_int_equal(read_text(text, &c, &err), QR_OK);
    assert_int_equal(c.head_dim, 128); /* Qwen3Config's default, not 64 / 4 */
    make(text, sizeof text, "tie_word_embeddings", NULL);
    assert_int_equal(read_text(text, &c, &err), QR_OK);
    assert_int_equal(c.tied, 0);
    make(text, sizeof text, "torch_dtype", "\"a type name that is much too long\"");
    assert_int_equal(read_text(text, &c, &err), QR_OK);
    assert_string_equal(c.torch_dtype, "a type name tha");
    make(text, sizeof text, "rope_theta", NULL);
    strcpy(strrchr(text, '}'), ", \"rope_parameters\": {\"rope_theta\": 5e5, \"rope_type\": \"default\"}, \"dtype\": \"float32\"}");
    assert_int_equal(read_text(text, &c, &err), QR_OK);
    assert_true(c.rope_theta == 500000.0);

    expect("hidden_size", "64.0", QR_OK, "");
    expect("rope_theta", "1000000.0", QR_OK, "");
    expect("layer_types", "[\"full_attention\", \"full_attention\", \"full_attention\"]", QR_OK, "");
    expect("sliding_window", "4096", QR_OK, "");
    expect("hidden_act", NULL, QR_OK, "");
    expect("architectures", NULL, QR_OK, "");
    expect("rope_scaling", "{\"type\": \"default\"}", QR_OK, "");
    expect("quantization_config", "null", QR_OK, "");
}

static void refuses_what_it_does_not_run(void **state)
{
    (void) state;
    expect("model_type", "\"qwen2\"", QR_E_UNSUPPORTED, "model_type: this program runs \"qwen3\", found \"qwen2\"");
    expect("architectures", "[\"Qwen3ForSequenceClassification\"]", QR_E_UNSUPPORTED, "use the original model");
    expect("architectures", "[\"BertModel\"]", QR_E_UNSUPPORTED, "found \"BertModel\"");
    expect("hidden_act", "\"gelu\"", QR_E_UNSUPPORTED, "hidden_act");
    expect("attention_bias", "true", QR_E_UNSUPPORTED, "attention_bias");
    expect("use_sliding_window", "true", QR_E_UNSUPPORTED, "use_sliding_window");
    expect("rope_scaling", "{\"rope_type\": \"yarn\", \"factor\": 4.0}", QR_E_UNSUPPORTED, "found \"yarn\"");
    expect("rope_scaling", "{\"type\": \"linear\"}", QR_E_UNSUPPORTED, "found \"linear\"");
    expect("rope_scaling", "{}", QR_E_UNSUPPORTED, "rope_scaling");
    expect("rope_parameters", "{\"rope_type\": \"dynamic\"}", QR_E_UNSUPPORTED, "found \"dynamic\"");
    expect("layer_types", "[\"full_attention\", \"sliding_attention\", \"full_attention\"]", QR_E_UNSUPPORTED,
           "found \"sliding_attention\"");
    expect("quantization_config", "{\"quant_method\": \"bitsandbytes\"}", QR_E_UNSUPPORTED, "quant_method \"bitsandbytes\"");
}

static void reads_affine_mlx_weights_only(void **state)
{
    (void) state;
    char text[4096];
    qr_config c;
    qr_error err;
    make(text, sizeof text, "quantization", "{\"group_size\": 64, \"bits\": 4}");
    assert_int_equal(read_text(text, &c, &err), QR_OK);
    assert_int_equal(c.quantization, QR_QUANT_MLX);
    expect("quantization", "{\"group_size\": 64, \"bits\": 4, \"mode\": \"affine\", \"lm_head\": false, \"model.embed_tokens\": true}",
           QR_OK, "");
    expect("quantization", "{\"model.layers.0.mlp.up_proj\": {\"bits\": 6, \"group_size\": 32, \"mode\": \"affine\"}}", QR_OK, "");
    expect("quantization", "{\"bits\": 4, \"mode\": \"mxfp4\"}", QR_E_UNSUPPORTED, "mode: this program runs \"affine\", found \"mxfp4\"");
    expect("quantization", "{\"model.layers.0.mlp.up_proj\": {\"mode\": \"nvfp4\"}}", QR_E_UNSUPPORTED,
           "model.layers.0.mlp.up_proj: mode: this program runs \"affine\", found \"nvfp4\"");
    expect("quantization", "4", QR_E_FORMAT, "quantization: expected an object or null, found 4");
}

/* The quantization_config of 8-bit weights with `key`: `value` added in `where`: 0 at the top, 1 in the group, 2 in its weights. A later
 * key would be a duplicate, so that what is there by default is left out when it is given. */
static void expect_int8(int where, const char *key, const char *value, qr_status status, const char *part)
{
    static const char *const defaults[][3] = {{"0", "quant_method", "\"compressed-tensors\""},
                                              {"0", "format", "\"int-quantized\""},
                                              {"2", "num_bits", "8"},
                                              {"2", "type", "\"int\""},
                                              {"2", "symmetric", "true"},
                                              {"2", "strategy", "\"channel\""}};
    char members[3][512] = {"\"ignore\": [\"lm_head\"]", "\"targets\": [\"Linear\"]", "\"group_size\": null"}, text[2048];
    int groups = strcmp(key, "config_groups") == 0, weights = strcmp(key, "weights") == 0;
    for (size_t i = 0; i < sizeof defaults / sizeof defaults[0]; i++) {
        char *to = members[defaults[i][0][0] - '0'];
        if (strcmp(defaults[i][1], key) != 0 || where != defaults[i][0][0] - '0')
            snprintf(to + strlen(to), sizeof members[0] - strlen(to), ", \"%s\": %s", defaults[i][1], defaults[i][2]);
    }
    if (value != NULL)
        snprintf(members[where] + strlen(members[where]), sizeof members[0] - strlen(members[where]), ", \"%s\": %s", key, value);
    if (weights) snprintf(text, sizeof text, "{%s, \"config_groups\": {\"group_0\": {%s}}}", members[0], members[1]);
    else if (groups) snprintf(text, sizeof text, "{%s}", members[0]);
    else snprintf(text, sizeof text, "{%s, \"config_groups\": {\"group_0\": {%s, \"weights\": {%s}}}}", members[0], members[1], members[2]);
    expect("quantization_config", text, status, part);
}

static void reads_8_bit_weights_only(void **state)
{
    (void) state;
    char text[4096];
    qr_config c;
    qr_error err;
    make(text, sizeof text, NULL, NULL);
    assert_int_equal(read_text(text, &c, &err), QR_OK);
    assert_int_equal(c.quantization, QR_QUANT_NONE);
    make(text, sizeof text, "quantization_config",
         "{\"quant_method\": \"compressed-tensors\", \"format\": \"int-quantized\", \"config_groups\": {\"g\": {\"weights\": "
         "{\"num_bits\": 8, "
         "\"strategy\": \"channel\"}}}}");
    assert_int_equal(read_text(text, &c, &err), QR_OK);
    assert_int_equal(c.quantization, QR_QUANT_INT8);

    expect_int8(0, "more", "[]", QR_OK, "");
    expect_int8(0, "sparsity_config", "{}", QR_OK, "");
    expect_int8(0, "sparsity_config", "{\"format\": \"dense\"}", QR_OK, "");
    expect_int8(0, "kv_cache_scheme", "null", QR_OK, "");
    expect_int8(0, "quantization_status", "\"compressed\"", QR_OK, "");
    expect_int8(1, "format", "\"int-quantized\"", QR_OK, "");
    expect_int8(1, "input_activations", "{\"num_bits\": 8, \"dynamic\": true}", QR_OK, ""); /* we compute with them as they are */
    expect_int8(2, "dynamic", "false", QR_OK, "");

    expect_int8(0, "quant_method", "\"bitsandbytes\"", QR_E_UNSUPPORTED, "found quant_method \"bitsandbytes\"");
    expect_int8(0, "quant_method", NULL, QR_E_UNSUPPORTED, "found quant_method nothing");
    expect_int8(0, "format", "\"pack-quantized\"", QR_E_UNSUPPORTED,
                "format: this program runs \"int-quantized\" or \"float-quantized\", found \"pack-quantized\"");
    expect_int8(0, "format", NULL, QR_E_UNSUPPORTED, "found nothing");
    expect_int8(0, "sparsity_config", "{\"format\": \"sparse-bitmask\"}", QR_E_UNSUPPORTED, "sparsity_config");
    expect_int8(0, "kv_cache_scheme", "{\"num_bits\": 8}", QR_E_UNSUPPORTED, "kv_cache_scheme");
    expect_int8(0, "transform_config", "{\"config_groups\": {}}", QR_E_UNSUPPORTED, "transform_config");
    expect_int8(0, "quantization_status", "\"frozen\"", QR_E_UNSUPPORTED, "\"frozen\"");
    expect_int8(0, "config_groups", NULL, QR_E_FORMAT, "at least one group");
    expect_int8(0, "config_groups", "{}", QR_E_FORMAT, "at least one group");
    expect_int8(0, "config_groups", "[]", QR_E_FORMAT, "at least one group");
    expect_int8(0, "config_groups", "{\"g\": 7}", QR_E_FORMAT, "found 7");
    expect_int8(1, "weights", NULL, QR_E_FORMAT, "objects with weights");
    expect_int8(1, "weights", "7", QR_E_FORMAT, "found 7");
    expect_int8(1, "format", "\"pack-quantized\"", QR_E_UNSUPPORTED, "format of a group");
    expect_int8(2, "num_bits", "4", QR_E_UNSUPPORTED, "num_bits: this program runs 8, found 4");
    expect_int8(2, "num_bits", "{\"mlp\": 8}", QR_E_UNSUPPORTED, "num_bits");
    expect_int8(2, "num_bits", NULL, QR_E_UNSUPPORTED, "num_bits");
    expect_int8(2, "type", "\"float\"", QR_E_UNSUPPORTED, "found \"float\"");
    expect_int8(2, "symmetric", "false", QR_E_UNSUPPORTED, "symmetric");
    expect_int8(2, "strategy", "\"group\"", QR_E_UNSUPPORTED, "found \"group\"");
    expect_int8(2, "strategy", NULL, QR_E_UNSUPPORTED, "strategy");
    expect_int8(2, "dynamic", "true", QR_E_UNSUPPORTED, "dynamic");
    expect("quantization_config", "7", QR_E_UNSUPPORTED, "quant_method nothing");
}

static void refuses_absurd_values(void **state)
{
    (void) state;
    static const char *const sizes[][2] = {{"num_hidden_layers", "1025"},    {"hidden_size", "65537"},
                                           {"intermediate_size", "1048577"}, {"num_attention_heads", "1025"},
                                           {"num_key_value_heads", "1025"},  {"head_dim", "1025"},
                                           {"vocab_size", "16777217"},       {"max_position_embeddings", "16777217"}};
    static const char *const bad[] = {"0", "-1", "1.5", "\"64\"", "[64]", "true", "9223372036854775807", "1e300", "-0.0"};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        expect(sizes[i][0], sizes[i][1], QR_E_FORMAT, sizes[i][0]);
        for (size_t k = 0; k < sizeof bad / sizeof bad[0]; k++) expect(sizes[i][0], bad[k], QR_E_FORMAT, "expected an integer from");
        if (strcmp(sizes[i][0], "head_dim") != 0) expect(sizes[i][0], NULL, QR_E_FORMAT, "found nothing");
    }
    expect("head_dim", "33", QR_E_FORMAT, "even");
    expect("num_attention_heads", "3", QR_E_FORMAT, "multiple of num_key_value_heads = 2, found 3");
    static const char *const eps[] = {"0", "-1e-6", "1", "1e-300", "\"1e-6\"", "null"};
    for (size_t i = 0; i < sizeof eps / sizeof eps[0]; i++)
        expect("rms_norm_eps", eps[i], QR_E_FORMAT, "rms_norm_eps: expected a number above 0");
    static const char *const theta[] = {"0", "-1", "\"x\"", "null"};
    for (size_t i = 0; i < sizeof theta / sizeof theta[0]; i++)
        expect("rope_theta", theta[i], QR_E_FORMAT, "rope_theta: expected a number above 0");
    expect("rope_theta", "1e999", QR_E_FORMAT, "expected JSON");
    expect("rope_parameters", "{\"rope_theta\": 7}", QR_E_FORMAT, "the same number");
    expect("rope_parameters", "7", QR_E_FORMAT, "expected an object or null, found 7");
    expect("layer_types", "[\"full_attention\"]", QR_E_FORMAT, "layer_types: expected a list of num_hidden_layers = 3, found a list of 1");
    expect("model_type", NULL, QR_E_FORMAT, "model_type");
    expect("architectures", "[]", QR_E_FORMAT, "architectures");
    expect("architectures", "\"x\"", QR_E_FORMAT, "architectures");
    expect("attention_bias", "\"no\"", QR_E_FORMAT, "expected true or false, found \"no\"");
    expect("tie_word_embeddings", "1", QR_E_FORMAT, "tie_word_embeddings");
    expect("torch_dtype", "7", QR_E_FORMAT, "torch_dtype");
    expect("extra", "1", QR_E_FORMAT, "duplicate"); /* `make` writes that key itself */
}

static void survives_truncation_and_changed_bytes(void **state)
{
    (void) state;
    char text[4096];
    qr_config c;
    qr_error err;
    make(text, sizeof text, NULL, NULL);
    for (size_t n = strlen(text); n-- > 0;) {
        char old = text[n];
        for (unsigned k = 0; k < 8; k++) {
            text[n] = (char) (old ^ 1 << k);
            if (read_text(text, &c, &err) == QR_OK) assert_true(c.n_heads % c.n_kv_heads == 0 && c.head_dim % 2 == 0 && c.rms_eps > 0);
        }
        text[n] = old;
    }
    for (size_t n = strlen(text); n-- > 0;) {
        text[n] = 0;
        assert_int_equal(read_text(text, &c, &err), QR_E_FORMAT);
    }
}

static void refuses_what_is_no_config(void **state)
{
    (void) state;
    qr_config c;
    qr_error err;
    static char deep[100000];
    assert_int_equal(qr_config_read(&c, temp_name(&dir, "none.json").text, &err), QR_E_NOT_FOUND);
    assert_int_equal(qr_config_read(&c, dir.path, &err), QR_E_IO);
    assert_int_equal(read_text("", &c, &err), QR_E_FORMAT);
    assert_int_equal(read_text("[]", &c, &err), QR_E_FORMAT);
    memset(deep, '[', sizeof deep - 1);
    assert_int_equal(read_text(deep, &c, &err), QR_E_FORMAT);
    temp_path big = temp_name(&dir, "big.json");
    temp_text(&dir, "big.json", "{");
    temp_require(truncate(big.text, (16 << 20) + 1) == 0, big.text);
    assert_int_equal(qr_config_read(&c, big.text, &err), QR_E_FORMAT);
    qr_mem_fail_at(1);
    assert_int_equal(read_text("{}", &c, &err), QR_E_MEMORY);
    qr_mem_fail_at(0);
}

int main(void)
{
#define T2(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T2(reads_what_tools_write),        T2(refuses_what_it_does_not_run), T2(reads_8_bit_weights_only),
        T2(reads_affine_mlx_weights_only), T2(refuses_absurd_values),        T2(survives_truncation_and_changed_bytes),
        T2(refuses_what_is_no_config),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
