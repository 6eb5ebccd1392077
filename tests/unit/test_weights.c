/* Opening a whole model folder: names, shapes and types against the config, and finding the folder by name in a made-up cache. */
#define _GNU_SOURCE
#include "base/mem.h"
#include "model/locate.h"
#include "model/weights.h"
#include "temp_dir.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static temp_dir dir;

static int set_up(void **state)
{
    (void) state;
    dir = temp_dir_make();
    return 0;
}

static int tear_down(void **state)
{
    (void) state;
    temp_dir_remove(&dir);
    return 0;
}

/* hidden 8, inter 6, 2 heads of 4, 1 key head, vocab 10, 1 layer */
static const char config_format[] =
    "{\"architectures\":[\"Qwen3ForCausalLM\"],\"model_type\":\"qwen3\",\"num_hidden_layers\":1,\"hidden_size\":8,\"intermediate_size\":6,"
    "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"head_dim\":4,\"vocab_size\":10,\"max_position_embeddings\":64,\"rms_norm_eps\":"
    "1e-6,"
    "\"rope_theta\":1000000,\"tie_word_embeddings\":%s}";

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
} change;
static const change none = {.leave_out = -1, .widen = -1, .retype = -1};

static void write_model(const change *c)
{
    static char file[1 << 16];
    char text[1024];
    snprintf(text, sizeof text, config_format, c->tied ? "true" : "false");
    temp_text(&dir, "config.json", text);
    size_t used = 9, offset = 0;
    memset(file, 0, sizeof file);
    file[8] = '{';
    for (int i = 0; i < N_TENSORS; i++) {
        if (i == c->leave_out || (i == LM_HEAD && c->no_head)) continue;
        int rows = tensors[i].rows + (i == c->widen), cols = tensors[i].cols;
        const char *type = i == c->retype ? c->type : "BF16", *name = tensors[i].name;
        size_t bytes = (size_t) rows * (size_t) (cols ? cols : 1) * (strstr(type, "32") ? 4 : 2);
        if (c->bare && i != LM_HEAD) name += strlen("model.");
        snprintf(text, sizeof text, cols ? "%d,%d" : "%d", rows, cols);
        used += (size_t) sprintf(file + used, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}", offset ? "," : "",
                                 name, type, text, offset, offset + bytes);
        offset += bytes;
    }
    if (c->scales)
        used += (size_t) sprintf(
            file + used, ",\"model.layers.0.self_attn.q_proj.scales\":{\"dtype\":\"BF16\",\"shape\":[0],\"data_offsets\":[%zu,%zu]}",
            offset, offset);
    file[used++] = '}';
    uint64_t n = used - 8;
    memcpy(file, &n, 8);
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
    expect(&c, QR_E_UNSUPPORTED, "MLX quantisation");
}

static void says_what_a_folder_lacks(void **state)
{
    (void) state;
    qr_model m;
    qr_error err;
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
    expect_missing(NULL, QR_E_NOT_FOUND, "huggingface-cli download Qwen/Qwen3-Reranker-0.6B");
    expect_missing("4b", QR_E_NOT_FOUND, "huggingface-cli download Qwen/Qwen3-Reranker-4B");
    temp_mkdir(&dir, SNAPSHOT("Qwen3-Reranker-4B"));
    temp_mkdir(&dir, "h/hub/models--Qwen--Qwen3-Reranker-4B/refs");
    temp_text(&dir, "h/hub/models--Qwen--Qwen3-Reranker-4B/refs/main", COMMIT);
    expect_missing("4b", QR_E_NOT_FOUND, "huggingface-cli"); /* a download that was cut off: no config.json yet */
    temp_text(&dir, SNAPSHOT("Qwen3-Reranker-4B") "/config.json", "{}");
    expect_found("4b", SNAPSHOT("Qwen3-Reranker-4B"));
    expect_found("4B", SNAPSHOT("Qwen3-Reranker-4B"));
    expect_found(NULL, SNAPSHOT("Qwen3-Reranker-4B"));
    expect_found("Qwen/Qwen3-Reranker-4B@main", SNAPSHOT("Qwen3-Reranker-4B"));
    expect_found("Qwen/Qwen3-Reranker-4B@" COMMIT, SNAPSHOT("Qwen3-Reranker-4B"));
    expect_missing("Qwen/Qwen3-Reranker-4B@v2", QR_E_NOT_FOUND, "download Qwen/Qwen3-Reranker-4B`");
    temp_mkdir(&dir, "h/hub/models--Qwen--Qwen3-Reranker-4B/refs/refs/pr");
    temp_text(&dir, "h/hub/models--Qwen--Qwen3-Reranker-4B/refs/refs/pr/1", COMMIT "\n");
    expect_found("Qwen/Qwen3-Reranker-4B@refs/pr/1", SNAPSHOT("Qwen3-Reranker-4B"));
    temp_text(&dir, "h/hub/models--Qwen--Qwen3-Reranker-4B/refs/bad", "../../../../etc");
    expect_missing("Qwen/Qwen3-Reranker-4B@bad", QR_E_FORMAT, "expected a commit of 40 hex digits");

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
        T2(says_what_a_folder_lacks),
        T2(survives_running_out_of_memory),
        T2(finds_models_in_the_cache),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
