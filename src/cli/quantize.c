/* quantize: a model with fewer bits per weight. */
#include "cli/export.h"

static const cli_option options[] = {
    {"type", 't', CLI_TEXT, 0, offsetof(cli_args, type), "TYPE", NULL,
     "q8_0, q6_k, q5_k_m, q5_k, q4_k_m, q4_k, q3_k, q2_k, q5_1, q5_0, q4_1, q4_0 (GGUF); mlx2, mlx3, mlx4, mlx5, mlx6, mlx8, with "
     "-g32, -g64 (default) or -g128 (folder); bf16, f16, f32 (either).",
     NULL, "q8_0, mlx8 for a folder"},
    {"calibrate", 0, CLI_FILE, 0, offsetof(cli_args, calibrate), "FILE", NULL,
     "JSON lines as for 'score': run them through the model, and weigh each column of a matrix by how large what it multiplies was.", NULL,
     NULL},
    {"no-check", 0, CLI_SET, 1, offsetof(cli_args, no_check), NULL, NULL, "Do not compare the scores of both models.", NULL, NULL},
    {"json", 0, CLI_SET, CLI_FORMAT_JSON, offsetof(cli_args, format), NULL, NULL, "Print JSON.", NULL, NULL},
    {0},
};

static int run(const cli_args *args)
{
    const char *out = args->operands.items[1], *type = args->type;
    qr_recipe mlx;
    if (type == NULL) type = cli_is_gguf_name(out) ? "q8_0" : "mlx8";
    const qr_recipe *recipe = qr_recipe_find(type, &mlx);
    if (recipe == NULL) {
        cli_error(args, "--type: expected one of %s; found '%s'", qr_recipe_names(), type);
        return CLI_USAGE;
    }
    return cli_export(args, args->operands.items[0], out, recipe, 0, !args->no_check);
}

const cli_command cli_quantize = {
    .name = "quantize",
    .operands = "MODEL OUT",
    .min_operands = 2,
    .max_operands = 2,
    .summary = "write a model with fewer bits per weight",
    .text =
        "OUT is a GGUF file if its name ends in .gguf, for this program and llama.cpp, and else a folder in MLX's form, for this program "
        "and "
        "MLX. It must not exist, and appears when it is complete. Every tensor is listed with its type, bits per weight, the root of the "
        "mean square error relative to that of its values, and the largest error. Then a small list of documents is scored with both "
        "models, "
        "in f32, to show how far scores moved.\n\n"
        "The scales of each block are searched for the least square error. q4_k_m and q5_k_m keep the token table and half of v_proj and "
        "down_proj in q6_k, as llama.cpp does. Matrices whose rows are no whole blocks of the type get another one of as many bits or "
        "more; "
        "the table says so. The rows of \"yes\" and \"no\" are kept in f32 as cls.output.weight; of a head of its own, the rest is left "
        "out "
        "of GGUF files, as llama.cpp's converter does.\n\n"
        "  qwen-rerank quantize 0.6b qwen3-reranker-0.6b.q8_0.gguf --type q8_0\n"
        "  qwen-rerank quantize 0.6b qwen3-reranker-0.6b-4bit --type mlx4-g32",
    .groups = {options, cli_general_options},
    .run = run,
};
