/* inspect: what a model folder holds and what running it will need. Loads no weights. */
#define _GNU_SOURCE
#include "base/mem.h"
#include "cli/engine.h"
#include "cli/inspect_gguf.h"
#include "cli/output.h"
#include "engine/self_test.h"
#include "model/builtin.h"
#include "model/forms.h"
#include "model/weights.h"
#include "text/prompt.h"

#include <stdlib.h>
#include <string.h>

static const cli_option options[] = {
    {"tensors", 0, CLI_SET, 1, offsetof(cli_args, tensors), NULL, NULL, "List every tensor instead of a summary per layer.", NULL, NULL},
    {"self-test", 0, CLI_SET, CLI_ON, offsetof(cli_args, self_test), NULL, NULL,
     "Load the model, and rank four answers against unrelated texts: exit code 1 if one comes out below.", NULL, NULL},
    {"json", 0, CLI_SET, CLI_FORMAT_JSON, offsetof(cli_args, format), NULL, NULL, "Print JSON.", NULL, NULL},
    {0},
};

typedef struct facts {
    qr_model model;
    size_t vocab; /* of the tokenizer */
    uint32_t yes_id, no_id;
    int canonical;
    int tested;
    qr_self_test_result test;
    uint64_t bytes_bf16, bytes_f32; /* estimates of memory in use, without cached prefixes */
} facts;

/* Rough on purpose: packed matrices at 2 bytes per weight (4 where f32 and 8-bit files are computed in f32: 16-bit weights stay 16-bit
 * there), the embedding rows that a working set of text touches, residual, K and V of the default 2048 tokens, and the activations of 512.
 */
static void estimate(facts *f)
{
    const qr_config *c = &f->model.config;
    enum { BATCH_TOKENS = 2048, CHUNK_TOKENS = 512, TOUCHED_ROWS = 20000 };
    size_t table = f->model.embed->n_elements + (f->model.head == f->model.embed ? 0 : f->model.head->n_elements);
    size_t rows = c->vocab < TOUCHED_ROWS ? c->vocab : TOUCHED_ROWS;
    uint64_t weights = f->model.n_parameters > table ? f->model.n_parameters - table : 0;
    uint64_t others = (uint64_t) rows * (f->model.embed->n_bytes / f->model.embed->dims[0]) +
                      (uint64_t) BATCH_TOKENS * 4 * (c->hidden + 2 * c->n_kv_heads * c->head_dim) +
                      (uint64_t) CHUNK_TOKENS * 4 * (c->hidden + 2 * c->n_heads * c->head_dim + c->inter);
    f->bytes_bf16 = 2 * weights + others;
    f->bytes_f32 = (qr_tensor_type_size(f->model.layers[0].q_proj->type) == 2 ? 2 : 4) * weights + others;
}

/* Layer of "model.layers.12.mlp.up_proj.weight", or -1. */
static long layer_of(const char *name)
{
    const char *p = strstr(name, "layers.");
    return p != NULL ? strtol(p + 7, NULL, 10) : -1;
}

static void format_shape(const qr_tensor *t, char *out, size_t size)
{
    size_t n = 0;
    out[0] = 0;
    for (int d = 0; d < t->n_dims && n < size; d++) n += (size_t) snprintf(out + n, size - n, "%s%zu", d > 0 ? " x " : "", t->dims[d]);
}

/* The scales of quantised matrices, and MLX's biases, are no parameters of the network. */
static int is_scale(const char *name)
{
    static const char *const ends[] = {"_scale", "_scale_inv", ".scales", ".biases", ".qzeros", ".g_idx", ".input_scale"};
    size_t n = strlen(name);
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++)
        if (n >= strlen(ends[i]) && strcmp(name + n - strlen(ends[i]), ends[i]) == 0) return 1;
    return 0;
}

static const char *quantization_name(const qr_model *model)
{
    qr_quantization q = model->config.quantization;
    const char *form = qr_form_name(model->layers[0].q_proj);
    return form != NULL ? form : q == QR_QUANT_INT8 ? "int8" : q == QR_QUANT_MLX ? "mlx" : q == QR_QUANT_GGUF ? "gguf" : NULL;
}

static const char *quantization_text(qr_quantization q)
{
    static const char *const texts[] = {[QR_QUANT_INT8] = ", 8-bit integers with a scale per row",
                                        [QR_QUANT_MLX] = ", quantised by MLX (affine, groups)",
                                        [QR_QUANT_FP8] = ", 8-bit floats with scales",
                                        [QR_QUANT_GPTQ] = ", quantised by GPTQ",
                                        [QR_QUANT_AWQ] = ", quantised by AWQ",
                                        [QR_QUANT_GGUF] = NULL};
    return texts[q] != NULL ? texts[q] : "";
}

/* "U32" says nothing of a matrix that MLX packed: "4-bit, 64" is its integers' width and its groups' size. */
static const char *type_text(const qr_tensor *t, char *text, size_t size)
{
    if (t->group == 0) return qr_tensor_type_name(t->type);
    snprintf(text, size, "%u-bit, %u", t->bits, t->group);
    return text;
}

typedef struct layer_sum {
    size_t n_tensors, n_parameters, n_bytes;
    char types[64]; /* each once */
} layer_sum;

/* layer -1: everything outside layers. */
static layer_sum sum_layer(const qr_checkpoint *ckpt, long layer)
{
    layer_sum sum = {0};
    for (size_t i = 0; i < ckpt->n_tensors; i++) {
        const qr_tensor *t = &ckpt->tensors[i];
        if (layer_of(t->name) != layer) continue;
        const char *type = qr_tensor_type_name(t->type);
        if (strstr(sum.types, type) == NULL) {
            size_t used = strlen(sum.types);
            snprintf(sum.types + used, sizeof sum.types - used, "%s%s", used ? " and " : "", type);
        }
        sum.n_tensors++;
        sum.n_parameters += is_scale(t->name) ? 0 : t->n_elements;
        sum.n_bytes += t->n_bytes;
    }
    return sum;
}

static int same_sum(layer_sum a, layer_sum b)
{
    return a.n_tensors == b.n_tensors && a.n_parameters == b.n_parameters && a.n_bytes == b.n_bytes && strcmp(a.types, b.types) == 0;
}

static void print_tensors(const qr_checkpoint *ckpt)
{
    char shape[128], bytes[32], name[512], type[32];
    for (size_t i = 0; i < ckpt->n_tensors; i++) {
        const qr_tensor *t = &ckpt->tensors[i];
        format_shape(t, shape, sizeof shape);
        cli_text_safe(name, sizeof name, t->name, strlen(t->name), CLI_SAFE_ALL);
        printf("  %-48s %-16s %-5s %s\n", name, shape, type_text(t, type, sizeof type), cli_bytes(bytes, sizeof bytes, t->n_bytes));
    }
}

static void print_layers(const facts *f)
{
    const qr_checkpoint *ckpt = &f->model.ckpt;
    char bytes[32];
    layer_sum outside = sum_layer(ckpt, -1);
    long n = (long) f->model.config.n_layers;
    printf("  outside layers: %zu tensors, %zu parameters, %s, %s\n", outside.n_tensors, outside.n_parameters,
           cli_bytes(bytes, sizeof bytes, outside.n_bytes), outside.types);
    for (long first = 0, last; first < n; first = last) {
        layer_sum sum = sum_layer(ckpt, first);
        for (last = first + 1; last < n && same_sum(sum, sum_layer(ckpt, last));) last++;
        printf("  layers %ld-%ld: each %zu tensors, %zu parameters, %s, %s\n", first, last - 1, sum.n_tensors, sum.n_parameters,
               cli_bytes(bytes, sizeof bytes, sum.n_bytes), sum.types);
    }
}

static void print_text(const cli_args *args, const facts *f)
{
    const qr_config *c = &f->model.config;
    char a[32], b[32], path[4096];
    printf("model        %s%s\n", f->model.dir, qr_is_builtin(f->model.dir) ? ", the " QR_BUILTIN_TITLE : "");
    for (size_t i = 0; i < f->model.ckpt.n_shards; i++) {
        const struct qr_shard *shard = &f->model.ckpt.shards[i];
        cli_text_safe(path, sizeof path, shard->path, strlen(shard->path), CLI_SAFE_ALL);
        printf("file         %s, %s\n", path, cli_bytes(a, sizeof a, shard->file.size));
    }
    printf("shape        %zu layers, hidden %zu, inter %zu, heads %zu, kv heads %zu, head dim %zu\n", c->n_layers, c->hidden, c->inter,
           c->n_heads, c->n_kv_heads, c->head_dim);
    printf("positions    %zu, rope theta %g, rms eps %g\n", c->max_positions, c->rope_theta, (double) c->rms_eps);
    printf("vocabulary   %zu rows, tokenizer %zu ids, yes %u, no %u\n", c->vocab, f->vocab, f->yes_id, f->no_id);
    if (f->model.gguf.n_keys > 0) cli_gguf_print(&f->model);
    printf("head         %s\n", cli_head_text(&f->model));
    printf("prompt       %s\n", f->canonical ? "canonical" : "not the canonical prefix and suffix ids");
    printf("parameters   %zu, stored in %s%s\n", f->model.n_parameters, cli_bytes(a, sizeof a, f->model.weight_bytes),
           quantization_text(c->quantization));
    printf("memory       about %s in bf16, %s in f32; cached prefixes come on top\n", cli_bytes(a, sizeof a, f->bytes_bf16),
           cli_bytes(b, sizeof b, f->bytes_f32));
    if (f->tested)
        printf("self-test    %zu of %zu answers above unrelated texts%s\n", f->test.n_right, f->test.n,
               f->test.n_right < f->test.n ? ": this model does not rank" : "");
    printf("tensors      %zu\n", f->model.ckpt.n_tensors);
    if (args->tensors) print_tensors(&f->model.ckpt);
    else print_layers(f);
}

static void print_json(const cli_args *args, const facts *f)
{
    const qr_config *c = &f->model.config;
    qr_json_out json = cli_json(1);
    qr_out_open(&json, NULL, '{');
    qr_out_string(&json, "model", f->model.dir);
    qr_out_bool(&json, "builtin_model", qr_is_builtin(f->model.dir));
    qr_out_open(&json, "files", '[');
    for (size_t i = 0; i < f->model.ckpt.n_shards; i++) {
        qr_out_open(&json, NULL, '{');
        qr_out_string(&json, "path", f->model.ckpt.shards[i].path);
        qr_out_int(&json, "bytes", f->model.ckpt.shards[i].file.size);
        qr_out_close(&json, '}');
    }
    qr_out_close(&json, ']');
    qr_out_open(&json, "config", '{');
    qr_out_int(&json, "n_layers", c->n_layers);
    qr_out_int(&json, "hidden", c->hidden);
    qr_out_int(&json, "inter", c->inter);
    qr_out_int(&json, "vocab", c->vocab);
    qr_out_int(&json, "n_heads", c->n_heads);
    qr_out_int(&json, "n_kv_heads", c->n_kv_heads);
    qr_out_int(&json, "head_dim", c->head_dim);
    qr_out_int(&json, "max_positions", c->max_positions);
    qr_out_real(&json, "rope_theta", c->rope_theta, 17);
    qr_out_real(&json, "rms_eps", (double) c->rms_eps, 9);
    qr_out_string(&json, "torch_dtype", c->torch_dtype);
    qr_out_string(&json, "quantization", quantization_name(&f->model));
    qr_out_close(&json, '}');
    if (f->model.gguf.n_keys > 0) cli_gguf_json(&json, &f->model);
    qr_out_bool(&json, "tied", f->model.head == f->model.embed);
    qr_out_int(&json, "n_parameters", f->model.n_parameters);
    qr_out_int(&json, "weight_bytes", f->model.weight_bytes);
    qr_out_int(&json, "n_tensors", f->model.ckpt.n_tensors);
    qr_out_open(&json, "tokenizer", '{');
    qr_out_int(&json, "vocab", f->vocab);
    qr_out_int(&json, "yes_id", f->yes_id);
    qr_out_int(&json, "no_id", f->no_id);
    qr_out_bool(&json, "canonical_prompt", f->canonical);
    qr_out_close(&json, '}');
    qr_out_open(&json, "memory_estimate", '{');
    qr_out_int(&json, "bytes_bf16", f->bytes_bf16);
    qr_out_int(&json, "bytes_f32", f->bytes_f32);
    qr_out_close(&json, '}');
    if (f->tested) {
        qr_out_open(&json, "self_test", '{');
        qr_out_int(&json, "pairs", f->test.n);
        qr_out_int(&json, "right", f->test.n_right);
        qr_out_close(&json, '}');
    }
    if (args->tensors) {
        qr_out_open(&json, "tensors", '[');
        for (size_t i = 0; i < f->model.ckpt.n_tensors; i++) {
            const qr_tensor *t = &f->model.ckpt.tensors[i];
            qr_out_open(&json, NULL, '{');
            qr_out_string(&json, "name", t->name);
            qr_out_open(&json, "shape", '[');
            for (int d = 0; d < t->n_dims; d++) qr_out_int(&json, NULL, t->dims[d]);
            qr_out_close(&json, ']');
            qr_out_string(&json, "dtype", qr_tensor_type_name(t->type));
            if (t->group > 0) {
                qr_out_int(&json, "bits", t->bits);
                qr_out_int(&json, "group_size", t->group);
            }
            qr_out_int(&json, "bytes", t->n_bytes);
            qr_out_close(&json, '}');
        }
        qr_out_close(&json, ']');
    }
    qr_out_close(&json, '}');
}

static int run_self_test(const cli_args *args, const char *dir, facts *f)
{
    qr_engine *engine;
    qr_error err = {0};
    int code = cli_engine_open(args, dir, NULL, NULL, &engine);
    if (code != CLI_OK) return code;
    qr_status status = qr_self_test(engine, NULL, &f->test, &err);
    if (status != QR_OK) {
        cli_error(args, "%s", err.msg);
        code = cli_exit_of_score(status);
    }
    f->tested = status == QR_OK;
    qr_engine_close(engine);
    return code;
}

static int run(const cli_args *args)
{
    facts f = {0};
    qr_error err = {0};
    qr_tokenizer *tok = NULL;
    qr_prompt *prompt = NULL;
    char *dir = NULL;
    int opened = 0, code = cli_model_locate(args, args->operands.n > 0 ? args->operands.items[0] : args->model, &dir);
    if (code != CLI_OK) return code;
    cli_note_builtin(args, dir);
    qr_status status = qr_model_open(&f.model, dir, &err);
    opened = status == QR_OK;
    if (status == QR_OK) status = qr_model_tokenizer_open(&tok, dir, &err);
    if (status == QR_OK) status = qr_prompt_open(&prompt, tok, &(qr_options){0}, &err);
    if (status == QR_OK) {
        f.vocab = qr_tok_vocab_size(tok);
        f.yes_id = qr_prompt_yes_id(prompt);
        f.no_id = qr_prompt_no_id(prompt);
        f.canonical = qr_prompt_is_canonical(prompt);
        estimate(&f);
        code = args->self_test == CLI_ON ? run_self_test(args, dir, &f) : CLI_OK;
    }
    if (status == QR_OK && code == CLI_OK) {
        if (args->format == CLI_FORMAT_JSON) print_json(args, &f);
        else print_text(args, &f);
        code = cli_stdout_flush(args);
        if (code == CLI_OK && f.test.n_right < f.test.n) code = CLI_FAILURE;
    } else if (status != QR_OK) {
        cli_error(args, "%s", err.msg);
        code = cli_exit_of_open(status);
    }
    qr_prompt_close(prompt);
    qr_tok_close(tok);
    if (opened) qr_model_close(&f.model);
    qr_free(dir);
    return code;
}

const cli_command cli_inspect = {
    .name = "inspect",
    .operands = "[MODEL]",
    .max_operands = 1,
    .summary = "show what a model holds and needs",
    .text = "Checks the configuration, every tensor's name, shape and type, the tokenizer and the prompt, without loading weights (but for "
            "--self-test).",
    .groups = {options, cli_model_options, cli_general_options},
    .run = run,
};
