/* Opening a whole model folder: names, shapes and types against the config, and finding the folder by name in a made-up cache. */
#define _GNU_SOURCE
#include "base/mem.h"
#include "model/locate.h"
#include "model/weights.h"
#include "temp_dir.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

/* hidden 8, inter 6, 2 heads of 4, 1 key head, vocab 10, 1 layer */
static const char config_format[] =
    "{\"architectures\":[\"Qwen3ForCausalLM\"],\"model_type\":\"qwen3\",\"num_hidden_layers\":1,\"hidden_size\":8,\"intermediate_size\":6,"
    "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"head_dim\":4,\"vocab_size\":10,\"max_position_embeddings\":64,\"rms_norm_eps\":"
    "1e-6,"
    "\"rope_theta\":1000000,\"tie_word_embeddings\":%s%s}";
static const char int8_config[] = ",\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"format\":\"int-quantized\","
                                  "\"config_groups\":{\"group_0\":{\"targets\":[\"Linear\"],\"weights\":{\"num_bits\":8,\"type\":\"int\","
                                  "\"symmetric\":true,\"strategy\":\"channel\"}}}}";

static const struct {
    const char *name;
    int rows, cols;
} tensors[] = {{"model.embed_tokens.weight", 10, 8},
               {"model.layers.0.input_layernorm.weight", 8, 0},
               {"model.layers.0.self_attn.q_proj.weight", 8, 8},
               {"model.layers.0.self_attn.k_proj.weight", 4, 8},
               {"model.layers.0.self_attn.v_proj.weight", 4, 8},
               {"model.layers.0.self_attn.q_norm.weight", 4, 0},
               {"model.layers.0.self_attn.k_norm.weight", 4, 0},
               {"model.layers.0.self_attn.o_proj.weight", 8, 8},
               {"model.layers.0.post_attention_layernorm.weight", 8, 0},
               {"model.layers.0.mlp.gate_proj.weight", 6, 8},
               {"model.layers.0.mlp.up_proj.weight", 6, 8},
               {"model.layers.0.mlp.down_proj.weight", 8, 6},
               {"model.norm.weight", 8, 0},
               {"lm_head.weight", 10, 8}};
enum {
    N_TENSORS = sizeof tensors / sizeof tensors[0],
    LM_HEAD = N_TENSORS - 1,
    PARAMETERS = 10 * 8 + 3 * 8 + 2 * 4 + 3 * 6 * 8 + 2 * 8 * 8 + 2 * 4 * 8
};

typedef struct change {
    int tied, no_head, bare;      /* bare: names without "model." */
    int leave_out, widen, retype; /* index of a tensor, -1 for none */
    const char *type;             /* of `retype`; 4 bytes per element if U32 or F32 */
    int scales;                   /* q_proj has a .scales beside it */
    int int8;                     /* matrices are I8 with scales of the type of `scale_type`, vectors BF16 */
    int no_config;                /* config.json does not say so */
    int odd_scale;                /* index of the matrix whose scales are changed in one of these ways, -1 for none */
    const char *scale_type;       /* NULL: F32 */
    int scale_rows, scale_cols;   /* added to the shape */
    const void *scale_value;      /* 4 bytes (2 for 16-bit types) of the last row */
    int no_scale, zero_point;
} change;
static const change none = {.leave_out = -1, .widen = -1, .retype = -1, .odd_scale = -1};

static size_t bytes_of(const char *type) { return strstr(type, "32") ? 4 : strcmp(type, "I8") == 0 ? 1 : 2; }

static void write_model(const change *c)
{
    static char file[1 << 16];
    static unsigned char data[1 << 14];
    char text[1024];
    snprintf(text, sizeof text, config_format, c->tied ? "true" : "false", c->int8 && !c->no_config ? int8_config : "");
    temp_text(&dir, "config.json", text);
    size_t used = 9, offset = 0;
    memset(file, 0, sizeof file);
    file[8] = '{';
    for (int i = 0; i < N_TENSORS; i++) {
        if (i == c->leave_out || (i == LM_HEAD && c->no_head)) continue;
        int rows = tensors[i].rows + (i == c->widen), cols = tensors[i].cols;
        int int8 = c->int8 && cols > 0;
        const char *type = i == c->retype ? c->type : int8 ? "I8" : "BF16", *name = tensors[i].name;
        size_t bytes = (size_t) rows * (size_t) (cols ? cols : 1) * bytes_of(type);
        if (c->bare && i != LM_HEAD) name += strlen("model.");
        snprintf(text, sizeof text, cols ? "%d,%d" : "%d", rows, cols);
        used += (size_t) sprintf(file + used, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}", offset ? "," : "",
                                 name, type, text, offset, offset + bytes);
        memset(data + offset, 3, bytes);
        offset += bytes;
        if (!int8) continue;
        const change *s = i == c->odd_scale ? c : &none;
        const char *scale_type = s->scale_type ? s->scale_type : "F32";
        size_t size = bytes_of(scale_type);
        rows += s->scale_rows;
        cols = 1 + s->scale_cols;
        bytes = (size_t) rows * (size_t) cols * size;
        for (int row = 0; row < rows; row++) /* 0.5, or 2 bytes of it: the upper ones, which is right for bf16 and near 1.75 for f16 */
            memcpy(data + offset + (size_t) row * size, (const unsigned char *) &(float){0.5f} + 4 - size, size);
        if (s->scale_value) memcpy(data + offset + (size_t) (rows - 1) * size, s->scale_value, size);
        if (s->zero_point)
            used += (size_t) sprintf(file + used, ",\"%s_zero_point\":{\"dtype\":\"I8\",\"shape\":[0],\"data_offsets\":[%zu,%zu]}", name,
                                     offset, offset);
        used += (size_t) sprintf(file + used, ",\"%s_%s\":{\"dtype\":\"%s\",\"shape\":[%d,%d],\"data_offsets\":[%zu,%zu]}", name,
                                 s->no_scale ? "other" : "scale", scale_type, rows, cols, offset, offset + bytes);
        offset += bytes;
    }
    if (c->scales)
        used += (size_t) sprintf(
            file + used, ",\"model.layers.0.self_attn.q_proj.scales\":{\"dtype\":\"BF16\",\"shape\":[0],\"data_offsets\":[%zu,%zu]}",
            offset, offset);
    file[used++] = '}';
    uint64_t n = used - 8;
    memcpy(file, &n, 8);
    memcpy(file + used, data, offset);
    temp_write(&dir, "model.safetensors", file, used + offset);
}

static void expect(const change *c, qr_status status, const char *part)
{
    qr_model m;
    qr_error err = {0};
    write_model(c);
    qr_status got = qr_model_open(&m, dir.path, &err);
    if (got != status || strstr(err.msg, part) == NULL) fail_msg("expected %d \"%s\", found %d \"%s\"", status, part, got, err.msg);
    qr_model_close(&m);
}

static void opens_models(void **state)
{
    (void) state;
    qr_model m;
    qr_error err;
    for (int bare = 0; bare < 2; bare++) {
        for (int tied = 0; tied < 2; tied++) {
            for (int no_head = 0; no_head <= tied; no_head++) {
                change c = none;
                c.bare = bare;
                c.tied = tied;
                c.no_head = no_head;
                write_model(&c);
                assert_int_equal(qr_model_open(&m, dir.path, &err), QR_OK);
                assert_string_equal(m.dir, dir.path);
                assert_true((m.head == m.embed) == tied);
                assert_int_equal(m.n_parameters, PARAMETERS + (tied ? 0 : 80));
                assert_int_equal(m.weight_bytes, 2 * m.n_parameters);
                assert_int_equal(m.layers[0].down_proj->dims[1], 6);
                assert_int_equal(m.layers[0].k_proj->dims[0], 4);
                qr_model_close(&m);
            }
        }
    }
    change c = none;
    c.retype = 2;
    c.type = "F32";
    expect(&c, QR_OK, "");
    c.type = "F16";
    expect(&c, QR_OK, "");
    qr_model_close(NULL);
}

static void refuses_other_tensors(void **state)
{
    (void) state;
    for (int i = 0; i < N_TENSORS; i++) {
        change c = none;
        c.leave_out = i;
        expect(&c, QR_E_FORMAT, tensors[i].name);
        c = none;
        c.widen = i;
        expect(&c, QR_E_FORMAT, tensors[i].name);
        expect(&c, QR_E_FORMAT, "from config.json, found [");
        c = none;
        c.retype = i;
        c.type = "I16";
        expect(&c, QR_E_UNSUPPORTED, tensors[i].name);
        expect(&c, QR_E_UNSUPPORTED, "found I16");
    }
    change c = none;
    c.widen = 0;
    expect(&c, QR_E_FORMAT, "expected shape [10, 8] from config.json, found [11, 8]");
    c = none;
    c.retype = 2;
    c.type = "U32";
    expect(&c, QR_E_UNSUPPORTED, "found U32");
    c.scales = 1;
    expect(&c, QR_E_UNSUPPORTED, "which needs scales beside it and a quantization in config.json");
    c.type = "BF16";
    expect(&c, QR_E_UNSUPPORTED, "expected U32 beside \"model.layers.0.self_attn.q_proj.scales\", found BF16");
}

static const char *const scale_types[] = {"F32", "F16", "BF16"};

static void opens_8_bit_models(void **state)
{
    (void) state;
    for (int bare = 0; bare < 2; bare++) {
        for (int tied = 0; tied < 2; tied++) {
            qr_model m;
            qr_error err = {0};
            change c = none;
            c.int8 = 1;
            c.bare = bare;
            c.tied = tied;
            write_model(&c);
            if (qr_model_open(&m, dir.path, &err) != QR_OK) fail_msg("%s", err.msg);
            size_t vectors = 3 * 8 + 2 * 4, rows = 10 + 8 + 4 + 4 + 8 + 6 + 6 + 8, head = tied ? 0 : 10;
            assert_int_equal(m.config.quantization, QR_QUANT_INT8);
            assert_int_equal(m.n_parameters, PARAMETERS + 8 * head);
            assert_int_equal(m.weight_bytes, m.n_parameters + vectors + 4 * (rows + head));
            assert_non_null(m.embed->scales);
            assert_non_null(m.layers[0].down_proj->scales);
            assert_int_equal(m.layers[0].down_proj->scales->dims[0], 8);
            assert_null(m.norm->scales);
            qr_model_close(&m);
        }
    }
    for (size_t k = 0; k < 3; k++) {
        change c = none;
        c.int8 = 1;
        c.odd_scale = 2;
        c.scale_type = scale_types[k];
        expect(&c, QR_OK, "");
        c.scale_value = "\0\0\0"; /* what a row of zeros may have */
        expect(&c, QR_OK, "");
        c.scale_value = k == 0 ? "\0\0\0\x80" : "\0\x80"; /* -0 */
        expect(&c, QR_OK, "");
    }
    change c = none; /* a file that keeps some matrices as they were, as the `ignore` list of the format says */
    c.int8 = 1;
    c.retype = 0;
    c.type = "BF16";
    c.odd_scale = 0;
    c.no_scale = 1;
    expect(&c, QR_OK, "");
}

static void refuses_wrong_scales(void **state)
{
    (void) state;
    for (int i = 0; i < N_TENSORS; i++) {
        change c = none;
        c.int8 = 1;
        if (tensors[i].cols == 0) { /* no vector has scales */
            c.retype = i;
            c.type = "I8";
            expect(&c, QR_E_UNSUPPORTED, "found I8 in a vector");
            expect(&c, QR_E_UNSUPPORTED, tensors[i].name);
            continue;
        }
        char part[128];
        c.odd_scale = i;
        c.no_scale = 1;
        snprintf(part, sizeof part, "expected \"%s_scale\" beside I8 weights, found none", tensors[i].name);
        expect(&c, QR_E_FORMAT, part);
        c.no_scale = 0;
        c.zero_point = 1;
        expect(&c, QR_E_UNSUPPORTED, "found zero points");
        c.zero_point = 0;
        c.scale_type = "I32";
        expect(&c, QR_E_FORMAT, "expected F32, F16 or BF16, found I32");
        expect(&c, QR_E_FORMAT, tensors[i].name);
        c.scale_type = NULL;
        c.scale_rows = -1;
        snprintf(part, sizeof part, "expected shape [%d, 1], found [%d, 1]", tensors[i].rows, tensors[i].rows - 1);
        expect(&c, QR_E_FORMAT, part);
        c.scale_rows = 0;
        c.scale_cols = 1; /* a scale per group of columns: another strategy */
        snprintf(part, sizeof part, "expected shape [%d, 1], found [%d, 2]", tensors[i].rows, tensors[i].rows);
        expect(&c, QR_E_FORMAT, part);
        c = none;
        c.int8 = 1;
        c.retype = i; /* scales beside something else */
        c.type = "BF16";
        snprintf(part, sizeof part, "expected I8 beside \"%s_scale\", found BF16", tensors[i].name);
        expect(&c, QR_E_UNSUPPORTED, part);
    }
    change c = none;
    c.int8 = c.no_config = 1;
    expect(&c, QR_E_UNSUPPORTED, "found I8, which needs a quantization_config in config.json");

    static const struct {
        const char *type, *value, *part;
    } bad[] = {{"F32", "\0\0\xc0\x7f", "not finite at row 7"},
               {"F32", "\0\0\x80\xff", "not finite"},
               {"F32", "\1\0\0\x80", "negative one at row 7"},
               {"F16", "\0\x7c", "not finite"},
               {"F16", "\1\xfc", "not finite"},
               {"F16", "\0\xb8", "negative"},
               {"BF16", "\x80\x7f", "not finite"},
               {"BF16", "\xc0\xff", "not finite"},
               {"BF16", "\0\xbf", "negative"}};
    for (size_t k = 0; k < sizeof bad / sizeof bad[0]; k++) {
        c = none;
        c.int8 = 1;
        c.odd_scale = 2;
        c.scale_type = bad[k].type;
        c.scale_value = bad[k].value;
        expect(&c, QR_E_FORMAT, "expected finite numbers of at least 0");
        expect(&c, QR_E_FORMAT, bad[k].part);
    }
}

/* The same tensors in MLX's form, with sizes that groups of 32 divide: hidden 64, inter 96, 2 heads of 32, 1 key head. */
typedef struct mlx_change {
    int bits, group;
    int plain; /* index of a matrix that stays BF16 */
    int odd;   /* index of the matrix that the rest changes */
    int no_scales, no_biases;
    int scale_cols, bias_cols, word_cols; /* added */
    const char *scale_type;
    const void *bias_value; /* 2 bytes of the last bias */
    const char *quantization;
} mlx_change;
static const mlx_change mlx_none = {.bits = 4, .group = 32, .plain = -1, .odd = -1};

static int widened(int n) { return n == 8 ? 64 : n == 6 ? 96 : n == 4 ? 32 : n; }

static char mlx_file[1 << 16];
static unsigned char mlx_data[1 << 18];
static size_t mlx_used, mlx_offset;

static void add_tensor(const char *name, int name_bytes, const char *suffix, const char *type, int rows, int cols, const void *last)
{
    char shape[32];
    size_t size = bytes_of(type), bytes = (size_t) rows * (size_t) (cols ? cols : 1) * size;
    snprintf(shape, sizeof shape, cols ? "%d,%d" : "%d", rows, cols);
    mlx_used += (size_t) sprintf(mlx_file + mlx_used, "%s\"%.*s%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
                                 mlx_offset ? "," : "", name_bytes, name, suffix, type, shape, mlx_offset, mlx_offset + bytes);
    assert_true(mlx_offset + bytes <= sizeof mlx_data / 2);
    memset(mlx_data + mlx_offset, 0x3c, bytes);
    if (last != NULL) memcpy(mlx_data + mlx_offset + bytes - size, last, size);
    mlx_offset += bytes;
}

static void write_mlx(const mlx_change *c)
{
    char text[2048];
    snprintf(text, sizeof text,
             "{\"model_type\":\"qwen3\",\"num_hidden_layers\":1,\"hidden_size\":64,\"intermediate_size\":96,\"num_attention_heads\":2,"
             "\"num_key_value_heads\":1,\"head_dim\":32,\"vocab_size\":10,\"max_position_embeddings\":64,\"rms_norm_eps\":1e-6,"
             "\"rope_theta\":1000000,\"tie_word_embeddings\":false,\"quantization\":%s}",
             c->quantization ? c->quantization : "{\"bits\":4,\"group_size\":32}");
    temp_text(&dir, "config.json", text);
    memset(mlx_file, 0, sizeof mlx_file);
    mlx_file[8] = '{';
    mlx_used = 9;
    mlx_offset = 0;
    for (int i = 0; i < N_TENSORS; i++) {
        const char *name = tensors[i].name;
        const mlx_change *s = i == c->odd ? c : &mlx_none;
        int rows = widened(tensors[i].rows), cols = widened(tensors[i].cols);
        int whole = (int) strlen(name), stem = whole - (int) strlen("weight");
        if (cols == 0 || i == c->plain) {
            add_tensor(name, whole, "", "BF16", rows, cols, NULL);
            continue;
        }
        const char *type = s->scale_type ? s->scale_type : "BF16";
        add_tensor(name, whole, "", "U32", rows, cols * c->bits / 32 + s->word_cols, NULL);
        if (!s->no_scales) add_tensor(name, stem, "scales", type, rows, cols / c->group + s->scale_cols, NULL);
        if (!s->no_biases) add_tensor(name, stem, "biases", "BF16", rows, cols / c->group + s->bias_cols, s->bias_value);
    }
    mlx_file[mlx_used++] = '}';
    uint64_t n = mlx_used - 8;
    memcpy(mlx_file, &n, 8);
    memmove(mlx_data + mlx_used, mlx_data, mlx_offset);
    memcpy(mlx_data, mlx_file, mlx_used);
    temp_write(&dir, "model.safetensors", mlx_data, mlx_used + mlx_offset);
}

static void expect_mlx(const mlx_change *c, qr_status status, const char *part)
{
    qr_model m;
    qr_error err = {0};
    write_mlx(c);
    qr_status got = qr_model_open(&m, dir.path, &err);
    if (got != status || strstr(err.msg, part) == NULL) fail_msg("expected %d \"%s\", found %d \"%s\"", status, part, got, err.msg);
    qr_model_close(&m);
}

static void opens_mlx_models(void **state)
{
    (void) state;
    static const int widths[] = {2, 3, 4, 5, 6, 8};
    for (size_t k = 0; k < sizeof widths / sizeof widths[0]; k++) {
        qr_model m;
        qr_error err = {0};
        mlx_change c = mlx_none;
        c.bits = widths[k];
        c.plain = 0; /* mixed files are usual: the shapes of a matrix decide, whatever config.json says */
        write_mlx(&c);
        if (qr_model_open(&m, dir.path, &err) != QR_OK) fail_msg("%s", err.msg);
        const qr_tensor *t = m.layers[0].down_proj;
        assert_int_equal(t->bits, widths[k]);
        assert_int_equal(t->group, 32);
        assert_int_equal(t->dims[1], 96);
        assert_int_equal(t->n_elements, 64 * 96);
        assert_int_equal(t->n_bytes, 64 * 96 * widths[k] / 8);
        assert_int_equal(t->scales->dims[1], 3);
        assert_ptr_not_equal(t->scales, t->biases);
        assert_int_equal(m.embed->group, 0);
        size_t vectors = 3 * 64 + 2 * 32, matrices = 3 * 96 * 64 + 2 * 64 * 64 + 2 * 32 * 64 + 10 * 64;
        assert_int_equal(m.n_parameters, 10 * 64 + vectors + matrices);
        assert_int_equal(m.weight_bytes, 2 * (10 * 64 + vectors) + matrices * (size_t) widths[k] / 8 + 4 * matrices / 32);
        qr_model_close(&m);
    }
}

static void refuses_wrong_mlx_weights(void **state)
{
    (void) state;
    for (int i = 0; i < N_TENSORS; i++) {
        if (tensors[i].cols == 0) continue;
        char part[160];
        int stem = (int) strlen(tensors[i].name) - (int) strlen("weight");
        mlx_change c = mlx_none;
        c.odd = i;
        c.no_scales = 1;
        snprintf(part, sizeof part, "expected \"%.*sscales\" beside U32 weights, found none", stem, tensors[i].name);
        expect_mlx(&c, QR_E_FORMAT, part);
        c.no_scales = 0;
        c.no_biases = 1;
        snprintf(part, sizeof part, "expected \"%.*sbiases\" beside U32 weights, found none", stem, tensors[i].name);
        expect_mlx(&c, QR_E_FORMAT, part);
        c.no_biases = 0;
        c.bias_cols = 1;
        snprintf(part, sizeof part, "biases\": expected shape [%d, %d], found", widened(tensors[i].rows), widened(tensors[i].cols) / 32);
        expect_mlx(&c, QR_E_FORMAT, part);
        c.bias_cols = 0;
        c.word_cols = 1;
        expect_mlx(&c, QR_E_FORMAT, "of 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128, found [");
        c.word_cols = 0;
        c.scale_cols = c.bias_cols = 5;
        expect_mlx(&c, QR_E_FORMAT, "scales a row");
        c.scale_cols = c.bias_cols = 0;
        c.scale_type = "I32"; /* block formats have U8 there */
        expect_mlx(&c, QR_E_FORMAT, "expected F32, F16 or BF16, found I32");
        c.scale_type = NULL;
        c.bias_value = "\x80\x7f";
        snprintf(part, sizeof part, "expected finite numbers, found one that is not finite at row %d", widened(tensors[i].rows) - 1);
        expect_mlx(&c, QR_E_FORMAT, part);
        c.bias_value = "\0\xbf"; /* negative ones are usual */
        expect_mlx(&c, QR_OK, "");
        c.plain = i;
        expect_mlx(&c, QR_OK, "");
    }
    mlx_change c = mlx_none;
    c.quantization = "null";
    expect_mlx(&c, QR_E_UNSUPPORTED, "found U32, which needs scales beside it and a quantization in config.json");
    c = mlx_none;
    c.bits = 7;
    expect_mlx(&c, QR_E_FORMAT, "expected 64 columns of 2, 3, 4, 5, 6 or 8 bits");
    c.bits = 16;
    expect_mlx(&c, QR_E_FORMAT, "expected 64 columns of 2, 3, 4, 5, 6 or 8 bits");
}

static void says_what_a_folder_lacks(void **state)
{
    (void) state;
    qr_model m;
    qr_error err;
    assert_int_equal(qr_model_open(&m, "builtin", &err), QR_E_NOT_FOUND); /* these tests are built without one, see test_builtin.c */
    assert_non_null(strstr(err.msg, "expected a build with the built-in demo model, found one without"));
    assert_non_null(strstr(err.msg, "a folder of that name is ./builtin"));
    assert_int_equal(qr_model_open(&m, temp_name(&dir, "none").text, &err), QR_E_NOT_FOUND);
    assert_non_null(strstr(err.msg, "expected a model folder, found none"));
    assert_int_equal(qr_model_open(&m, dir.path, &err), QR_E_NOT_FOUND);
    assert_non_null(strstr(err.msg, "found no config.json"));
    temp_text(&dir, "config.json", "{}");
    assert_int_equal(qr_model_open(&m, dir.path, &err), QR_E_NOT_FOUND);
    assert_non_null(strstr(err.msg, "found no model.safetensors"));
    assert_int_equal(qr_model_open(&m, temp_name(&dir, "config.json").text, &err), QR_E_NOT_FOUND);
    assert_non_null(strstr(err.msg, "found a file"));
    temp_text(&dir, "model.safetensors", "");
    assert_int_equal(qr_model_open(&m, dir.path, &err), QR_E_FORMAT);
}

static void survives_running_out_of_memory(void **state)
{
    (void) state;
    qr_status status = QR_E_MEMORY;
    write_model(&none);
    for (long n = 1; status != QR_OK; n++) {
        qr_model m;
        qr_error err;
        assert_true(n < 100);
        qr_mem_fail_at(n);
        status = qr_model_open(&m, dir.path, &err);
        qr_mem_fail_at(0);
        assert_true(status == QR_OK || status == QR_E_MEMORY);
        qr_model_close(&m);
    }
}

#define COMMIT "0123456789abcdef0123456789abcdef01234567"
static void expect_found(const char *name, const char *below)
{
    char *found;
    qr_error err = {0};
    qr_status status = qr_model_locate(name, &found, &err);
    if (status != QR_OK) fail_msg("%s: %s", name ? name : "NULL", err.msg);
    assert_string_equal(found, temp_name(&dir, below).text);
    qr_free(found);
}

static void expect_missing(const char *name, qr_status status, const char *part)
{
    char *found;
    qr_error err = {0};
    qr_status got = qr_model_locate(name, &found, &err);
    if (got != status || strstr(err.msg, part) == NULL)
        fail_msg("%s: expected %d \"%s\", found %d \"%s\"", name ? name : "NULL", status, part, got, err.msg);
    assert_null(found);
}

static void clear_environment(void)
{
    static const char *const names[] = {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME",
                                        "HOME",         "QWEN_RERANK_MODEL_ID"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) unsetenv(names[i]);
}

static void finds_models_in_the_cache(void **state)
{
    (void) state;
#define SNAPSHOT(name) "h/hub/models--Qwen--" name "/snapshots/" COMMIT
    clear_environment();
    expect_missing(NULL, QR_E_NOT_FOUND, "no Hugging Face cache");
    setenv("HF_HOME", temp_name(&dir, "h").text, 1);
    expect_missing(NULL, QR_E_NOT_FOUND, "qwen-rerank pull 0.6b");
    expect_missing("4b", QR_E_NOT_FOUND, "qwen-rerank pull 4b");
    temp_mkdir(&dir, SNAPSHOT("Qwen3-Reranker-4B"));
    temp_mkdir(&dir, "h/hub/models--Qwen--Qwen3-Reranker-4B/refs");
    temp_text(&dir, "h/hub/models--Qwen--Qwen3-Reranker-4B/refs/main", COMMIT);
    expect_missing("4b", QR_E_NOT_FOUND, "qwen-rerank pull"); /* a download that was cut off: no config.json yet */
    temp_text(&dir, SNAPSHOT("Qwen3-Reranker-4B") "/config.json", "{}");
    expect_found("4b", SNAPSHOT("Qwen3-Reranker-4B"));
    expect_found("4B", SNAPSHOT("Qwen3-Reranker-4B"));
    expect_found(NULL, SNAPSHOT("Qwen3-Reranker-4B"));
    expect_found("Qwen/Qwen3-Reranker-4B@main", SNAPSHOT("Qwen3-Reranker-4B"));
    expect_found("Qwen/Qwen3-Reranker-4B@" COMMIT, SNAPSHOT("Qwen3-Reranker-4B"));
    expect_missing("Qwen/Qwen3-Reranker-4B@v2", QR_E_NOT_FOUND, "pull Qwen/Qwen3-Reranker-4B@v2`");
    temp_mkdir(&dir, "h/hub/models--Qwen--Qwen3-Reranker-4B/refs/refs/pr");
    temp_text(&dir, "h/hub/models--Qwen--Qwen3-Reranker-4B/refs/refs/pr/1", COMMIT "\n");
    expect_found("Qwen/Qwen3-Reranker-4B@refs/pr/1", SNAPSHOT("Qwen3-Reranker-4B"));
    temp_text(&dir, "h/hub/models--Qwen--Qwen3-Reranker-4B/refs/bad", "../../../../etc");
    expect_missing("Qwen/Qwen3-Reranker-4B@bad", QR_E_FORMAT, "expected a commit of 40 hex digits");

    expect_missing("builtin", QR_E_NOT_FOUND, "expected a build with the built-in demo model, found one without");
    setenv("QWEN_RERANK_MODEL_ID", "someone/else", 1);
    expect_missing(NULL, QR_E_NOT_FOUND, "someone/else: not in the Hugging Face cache");
    setenv("QWEN_RERANK_MODEL_ID", temp_name(&dir, "h").text, 1);
    expect_found(NULL, "h");
    unsetenv("QWEN_RERANK_MODEL_ID");

    clear_environment();
    setenv("HUGGINGFACE_HUB_CACHE", temp_name(&dir, "h/hub").text, 1);
    setenv("HF_HOME", "/nonexistent", 1);
    expect_found("4b", SNAPSHOT("Qwen3-Reranker-4B"));
    setenv("HF_HUB_CACHE", "/nonexistent", 1);
    expect_missing("4b", QR_E_NOT_FOUND, "/nonexistent");
    clear_environment();
    temp_mkdir(&dir, "x");
    temp_require(symlink("../h", temp_name(&dir, "x/huggingface").text) == 0, "symlink");
    setenv("XDG_CACHE_HOME", temp_name(&dir, "x").text, 1);
    expect_found("4b", "x/huggingface/hub/models--Qwen--Qwen3-Reranker-4B/snapshots/" COMMIT);
    clear_environment();
    temp_require(symlink("x", temp_name(&dir, ".cache").text) == 0, "symlink");
    setenv("HOME", dir.path, 1);
    expect_found("4b", ".cache/huggingface/hub/models--Qwen--Qwen3-Reranker-4B/snapshots/" COMMIT);

    static const char *const bad[] = {"",         "nothing", "../x/y",     "a/..",  "a/b/c", "/etc/none", "a/b@",
                                      "a/b@../x", "a/b@/x",  "a/b@x/../y", "a b/c", "a/",    "/b",        "a/b@x y"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) expect_missing(bad[i], QR_E_NOT_FOUND, "expected a folder, 0.6b, 4b, 8b");
    for (long n = 1; n < 100; n++) {
        char *found;
        qr_error err;
        qr_mem_fail_at(n);
        qr_status status = qr_model_locate("4b", &found, &err);
        qr_mem_fail_at(0);
        assert_true(status == QR_E_MEMORY || (status == QR_OK && n > 4));
        qr_free(found);
    }
}

int main(void)
{
#define T2(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T2(opens_models),
        T2(refuses_other_tensors),
        T2(opens_8_bit_models),
        T2(refuses_wrong_scales),
        T2(opens_mlx_models),
        T2(refuses_wrong_mlx_weights),
        T2(says_what_a_folder_lacks),
        T2(survives_running_out_of_memory),
        T2(finds_models_in_the_cache),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
