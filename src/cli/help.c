/* help and version, and the man page: all generated from the tables of commands and options. */
#define _GNU_SOURCE
#include "cli/cli.h"
#include "cli/output.h"

#include <string.h>

enum { WIDTH = 92, INDENT = 30 };

/* Prints words of text[0..len) from column `column` on, broken before WIDTH, later lines indented. */
static void put_wrapped(FILE *out, const char *text, size_t len, int column, int indent)
{
    for (size_t i = 0; i < len;) {
        size_t n = strcspn(text + i, " ");
        if (i + n > len) n = len - i;
        if (column > indent && column + 1 + (int) n > WIDTH) {
            fprintf(out, "\n%*s", indent, "");
            column = indent;
        } else if (column > indent) {
            fputc(' ', out);
            column++;
        }
        fprintf(out, "%.*s", (int) n, text + i);
        column += (int) n;
        i += n + 1;
    }
    fputc('\n', out);
}

/* "-n, --top-n N" */
static void option_label(const cli_option *o, char *out, size_t size)
{
    char letter[8] = "    ";
    if (o->letter != 0) snprintf(letter, sizeof letter, "-%c, ", o->letter);
    snprintf(out, size, "%s--%s%s%s%s", letter, o->kind == CLI_SWITCH ? "[no-]" : "", o->name, o->arg != NULL ? " " : "",
             o->arg != NULL ? o->arg : "");
}

static void put_options(FILE *out, const cli_command *command)
{
    for (size_t g = 0; g < CLI_MAX_GROUPS && command->groups[g] != NULL; g++) {
        fprintf(out, "\n%s:\n",
                command->groups[g] == cli_general_options   ? "General options"
                : command->groups[g] == cli_backend_options ? "Options of some backends"
                : g == 0                                    ? "Options"
                                                            : "Model options");
        for (const cli_option *o = command->groups[g]; o->name != NULL; o++) {
            char label[128], text[512];
            option_label(o, label, sizeof label);
            snprintf(text, sizeof text, "%s%s%s%s", o->help, o->env != NULL ? " Default from $" : "", o->env != NULL ? o->env : "",
                     o->env != NULL ? "." : "");
            int used = fprintf(out, "  %-*s", INDENT - 2, label);
            if (used > INDENT) fprintf(out, "\n%*s", INDENT, "");
            put_wrapped(out, text, strlen(text), INDENT, INDENT);
        }
    }
}

static void put_exit_codes(FILE *out)
{
    fputs("\nExit codes:\n", out);
#define CLI_X(name, value, text)                                                                                                           \
    fprintf(out, "  %-4d", value);                                                                                                         \
    put_wrapped(out, text, strlen(text), 6, 6);
    CLI_EXIT_MAP(CLI_X)
#undef CLI_X
}

static void put_program(FILE *out)
{
    fputs("usage: " CLI_PROGRAM " COMMAND [OPTION]... [ARGUMENT]...\n\n"
          "Orders documents by how well they answer a query, with Qwen3-Reranker models.\n\nCommands:\n",
          out);
    for (size_t i = 0; cli_commands[i] != NULL; i++) fprintf(out, "  %-12s%s\n", cli_commands[i]->name, cli_commands[i]->summary);
    put_exit_codes(out);
    fputs("\n'" CLI_PROGRAM " help COMMAND' tells more.\n", out);
}

/* Paragraphs of a command's text; lines that start with a blank are examples and stay as they are. */
static void put_text(FILE *out, const char *text)
{
    while (*text != 0) {
        size_t len = strcspn(text, "\n");
        if (text[0] == ' ') fprintf(out, "%.*s\n", (int) len, text);
        else put_wrapped(out, text, len, 0, 0);
        text += len + (text[len] != 0);
    }
}

void cli_help_print(void *file, const cli_command *command)
{
    FILE *out = file;
    if (command == NULL) {
        put_program(out);
        return;
    }
    fprintf(out, "usage: " CLI_PROGRAM " %s [OPTION]... %s\n\n", command->name, command->operands);
    put_text(out, command->text);
    put_options(out, command);
    put_exit_codes(out);
}

/* roff text: a backslash and a dash need an escape, and a dot or quote at the start of a line would be a request. */
static void put_roff(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (i == 0 && (text[i] == '.' || text[i] == '\'')) fputs("\\&", stdout);
        if (text[i] == '\\') fputs("\\e", stdout);
        else if (text[i] == '-') fputs("\\-", stdout);
        else putchar(text[i]);
    }
}

static void put_man_text(const char *text)
{
    for (int example = 0; *text != 0;) {
        size_t len = strcspn(text, "\n");
        if ((text[0] == ' ') != example) fputs(example ? ".EE\n" : ".PP\n.EX\n", stdout);
        example = text[0] == ' ';
        if (len == 0) fputs(".PP", stdout);
        put_roff(text, len);
        putchar('\n');
        text += len + (text[len] != 0);
        if (*text == 0 && example) fputs(".EE\n", stdout);
    }
}

static void put_man_options(const cli_option *options)
{
    for (const cli_option *o = options; o->name != NULL; o++) {
        fputs(".TP\n", stdout);
        if (o->letter != 0) printf("\\fB\\-%c\\fR, ", o->letter);
        fputs("\\fB\\-\\-", stdout);
        if (o->kind == CLI_SWITCH) fputs("\\fR[\\fBno\\-\\fR]\\fB", stdout);
        put_roff(o->name, strlen(o->name));
        fputs("\\fR", stdout);
        if (o->arg != NULL) printf(" \\fI%s\\fR", o->arg);
        putchar('\n');
        put_roff(o->help, strlen(o->help));
        if (o->env != NULL) printf(" Default from \\fB%s\\fR.", o->env);
        putchar('\n');
    }
}

static void put_man(void)
{
    printf(".\\\" Generated by '" CLI_PROGRAM " help --man' from the option tables.\n"
           ".TH QWEN\\-RERANK 1 \"\" \"qwen\\-rerank %s\" \"User Commands\"\n"
           ".SH NAME\nqwen\\-rerank \\- order documents by how well they answer a query\n"
           ".SH SYNOPSIS\n.B qwen\\-rerank\n.I COMMAND\n[\\fIOPTION\\fR]... [\\fIARGUMENT\\fR]...\n"
           ".SH DESCRIPTION\nScores documents against queries with Qwen3\\-Reranker models on this machine. A score is the model's "
           "probability, from 0 to 1, that the document meets the query under the instruction.\n.SH COMMANDS\n",
           qr_version());
    for (size_t i = 0; cli_commands[i] != NULL; i++) {
        const cli_command *c = cli_commands[i];
        printf(".SS \"");
        put_roff(c->name, strlen(c->name));
        printf("%s", c->operands[0] != 0 ? " " : "");
        put_roff(c->operands, strlen(c->operands));
        printf("\"\n");
        put_man_text(c->text);
        if (c->groups[0] != cli_general_options) put_man_options(c->groups[0]);
        for (size_t g = 1; g < CLI_MAX_GROUPS && c->groups[g] != NULL; g++)
            if (c->groups[g] == cli_engine_options || c->groups[g] == cli_model_options)
                printf(".PP\nAlso%s \\fIMODEL OPTIONS\\fR.\n", c->groups[g] == cli_model_options ? " \\fB\\-\\-model\\fR of the" : " the");
            else if (c->groups[g] == cli_backend_options) fputs(".PP\nAlso the \\fIOPTIONS OF SOME BACKENDS\\fR.\n", stdout);
    }
    fputs(".SH MODEL OPTIONS\n", stdout);
    put_man_options(cli_engine_options);
    fputs(".SH OPTIONS OF SOME BACKENDS\n", stdout);
    put_man_options(cli_backend_options);
    fputs(".SH GENERAL OPTIONS\n", stdout);
    put_man_options(cli_general_options);
    fputs(".SH ENVIRONMENT\nVariables named with the options above give their defaults. An empty variable counts as not set, a bad value "
          "is an "
          "error.\n.TP\n\\fBNO_COLOR\\fR\nNo colours unless asked for with \\-\\-color.\n.SH EXIT STATUS\n",
          stdout);
#define CLI_X(name, value, text)                                                                                                           \
    printf(".TP\n%d\n", value);                                                                                                            \
    put_roff(text, strlen(text));                                                                                                          \
    putchar('\n');
    CLI_EXIT_MAP(CLI_X)
#undef CLI_X
}

static int run_help(const cli_args *args)
{
    const cli_command *command = NULL;
    if (args->man) {
        put_man();
        return CLI_OK;
    }
    if (args->operands.n > 0 && (command = cli_command_find(args->operands.items[0])) == NULL) {
        size_t distance = 0;
        const char *best = NULL;
        for (size_t i = 0; cli_commands[i] != NULL; i++) cli_suggest(args->operands.items[0], cli_commands[i]->name, &distance, &best);
        cli_error(args, "unknown command '%s'%s%s%s", args->operands.items[0], best ? "; did you mean '" : "", best ? best : "",
                  best ? "'?" : "");
        return CLI_USAGE;
    }
    cli_help_print(stdout, command);
    return CLI_OK;
}

static int run_version(const cli_args *args)
{
    (void) args;
    printf(CLI_PROGRAM " %s\n", qr_version());
    return CLI_OK;
}

static const cli_option help_options[] = {
    {"man", 0, CLI_SET, 1, offsetof(cli_args, man), NULL, NULL, "Print the manual page, for man(1).", NULL, NULL},
    {0},
};

const cli_command cli_help = {
    .name = "help",
    .operands = "[COMMAND]",
    .max_operands = 1,
    .summary = "show the help of the program or of a command",
    .text = "Shows all commands, or what one of them does and its options.",
    .groups = {help_options, cli_general_options},
    .run = run_help,
};

const cli_command cli_version = {
    .name = "version",
    .operands = "",
    .summary = "show the version",
    .text = "Prints the name and version of the program.",
    .groups = {cli_general_options},
    .run = run_version,
};
