/* convert: the same values in another kind of file. */
#include "cli/export.h"

static const cli_option options[] = {
    {"dequantize", 0, CLI_CHOICE, 1, offsetof(cli_args, dequantize), "bf16|f16|f32", NULL,
     "Write matrices as these, quantised ones too. Without it, a model with quantised matrices is refused.", NULL, NULL},
    {"json", 0, CLI_SET, CLI_FORMAT_JSON, offsetof(cli_args, format), NULL, NULL, "Print JSON.", NULL, NULL},
    {0},
};

static int run(const cli_args *args)
{
    static const char *const types[] = {"bf16", "f16", "f32"}; /* --dequantize's order */
    static const qr_recipe as_stored = {.name = "as stored", .type = QR_AS_STORED};
    const qr_recipe *recipe = args->dequantize > 0 ? qr_recipe_find(types[args->dequantize - 1], NULL) : &as_stored;
    return cli_export(args, args->operands.items[0], args->operands.items[1], recipe, 1, 0);
}

const cli_command cli_convert = {
    .name = "convert",
    .operands = "MODEL OUT",
    .min_operands = 2,
    .max_operands = 2,
    .summary = "write a model as GGUF or as a folder",
    .text = "OUT is a GGUF file if its name ends in .gguf, and else a folder of safetensors. Values stay as they are: bf16, f16 or f32. "
            "OUT must "
            "not exist, and appears when it is complete.\n\n"
            "The file keeps the texts of config.json, tokenizer.json and the folder's other small files, and the header of its weights, in "
            "keys of "
            "its own, and a head of its own in full.\n\n"
            "  qwen-rerank convert Qwen/Qwen3-Reranker-0.6B qwen3-reranker-0.6b.gguf",
    .groups = {options, cli_general_options},
    .run = run,
};
