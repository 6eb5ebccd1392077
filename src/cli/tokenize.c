/* tokenize: shows the token ids of a text. Needs nothing of the model but its tokenizer.json. */
#define _GNU_SOURCE
#include "base/mem.h"
#include "base/utf8.h"
#include "cli/engine.h"
#include "cli/input.h"
#include "cli/output.h"
#include "model/builtin.h"

#include <string.h>
#include <unistd.h>

static const cli_option options[] = {
    {"tokenizer", 0, CLI_FILE, 0, offsetof(cli_args, tokenizer), "FILE", NULL, "A tokenizer.json, instead of that of --model.", NULL, NULL},
    {"special", 's', CLI_SET, 1, offsetof(cli_args, special), NULL, NULL,
     "Recognise special tokens such as <|im_end|>; without it they are plain text, as in queries and documents.", NULL, NULL},
    {"count", 'c', CLI_SET, 1, offsetof(cli_args, count), NULL, NULL, "Print only the number of tokens.", NULL, NULL},
    {"json", 0, CLI_SET, CLI_FORMAT_JSON, offsetof(cli_args, format), NULL, NULL, "Print JSON.", NULL, NULL},
    {0},
};

static const size_t MAX_STDIN_BYTES = (size_t) 1 << 30;

static void print_json(const qr_tokenizer *tok, const qr_ids *ids, int replaced)
{
    qr_json_out json = cli_json(1);
    qr_out_open(&json, NULL, '{');
    qr_out_int(&json, "count", ids->n);
    qr_out_bool(&json, "replaced", replaced);
    qr_out_open(&json, "tokens", '[');
    for (size_t i = 0; i < ids->n; i++) {
        size_t len = 0;
        const char *bytes = qr_tok_bytes(tok, ids->id[i], &len);
        qr_out_open(&json, NULL, '{');
        qr_out_int(&json, "id", ids->id[i]);
        qr_out_text(&json, "text", bytes, len);
        if (!qr_utf8_is_valid(bytes, len)) { /* a part of a character: its text says nothing, its bytes do */
            char hex[2 * 64 + 1] = "";
            for (size_t b = 0; b < len && b < 64; b++) snprintf(hex + 2 * b, 3, "%02x", (unsigned char) bytes[b]);
            qr_out_string(&json, "bytes", hex);
        }
        if (qr_tok_is_added(tok, ids->id[i])) qr_out_bool(&json, "special", 1);
        qr_out_close(&json, '}');
    }
    qr_out_close(&json, ']');
    qr_out_close(&json, '}');
}

/* Quoted as in JSON, so that blanks and line ends can be seen. */
static void print_lines(const qr_tokenizer *tok, const qr_ids *ids)
{
    for (size_t i = 0; i < ids->n; i++) {
        size_t len = 0;
        const char *bytes = qr_tok_bytes(tok, ids->id[i], &len);
        qr_json_out none = cli_json(0);
        printf("%8u  ", ids->id[i]);
        qr_out_text(&none, NULL, bytes, len);
        putchar('\n');
    }
}

static int run(const cli_args *args)
{
    qr_error err = {0};
    qr_tokenizer *tok = NULL;
    qr_ids ids = {0};
    char *dir = NULL, *block = NULL;
    const char *text = args->operands.n > 0 ? args->operands.items[0] : "-";
    size_t len = strlen(text);
    int code = CLI_OK, replaced = 0;
    if (args->tokenizer == NULL) {
        if ((code = cli_model_locate(args, args->model, &dir)) != CLI_OK) goto done;
        cli_note_builtin(args, dir);
    }
    qr_status status = dir != NULL ? qr_model_tokenizer_open(&tok, dir, &err) : qr_tok_open(&tok, args->tokenizer, &err);
    if (status != QR_OK) {
        cli_error(args, "%s", err.msg);
        code = cli_exit_of_open(status);
        goto done;
    }
    if (strcmp(text, "-") == 0) {
        status = cli_read_all(STDIN_FILENO, "standard input", MAX_STDIN_BYTES, &block, &len, &err);
        text = block;
    }
    if (status == QR_OK)
        status = qr_tok_encode(tok, text, len, args->special ? QR_TOK_SPECIAL : QR_TOK_MARKUP, 0, &ids, &replaced, NULL, &err);
    if (status != QR_OK) {
        cli_error(args, "%s", err.msg);
        code = status == QR_E_MEMORY ? CLI_FAILURE : CLI_BAD_INPUT;
        goto done;
    }
    if (args->count) printf("%zu\n", ids.n);
    else if (args->format == CLI_FORMAT_JSON) print_json(tok, &ids, replaced);
    else print_lines(tok, &ids);
    code = cli_stdout_flush(args);
done:
    qr_ids_deinit(&ids);
    qr_tok_close(tok);
    qr_free(block);
    qr_free(dir);
    return code;
}

const cli_command cli_tokenize = {
    .name = "tokenize",
    .operands = "[TEXT|-]",
    .max_operands = 1,
    .summary = "show the token ids of a text",
    .text = "Prints one line per token: its id and its text. Without TEXT, or with '-', reads standard input to its end, line ends "
            "included.\n\n"
            "  qwen-rerank tokenize 'What is Python?'\n"
            "  qwen-rerank tokenize --count < report.txt",
    .groups = {options, cli_model_options, cli_general_options},
    .run = run,
};
