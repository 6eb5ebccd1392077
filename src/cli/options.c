/* Options: parsing by table, defaults from the environment, suggestions for misspelt names, and messages.
 *
 * An own parser of a hundred lines instead of getopt_long: its messages name the command and suggest the nearest option, it does not
 * accept abbreviations (scripts that use them break when an option is added), and it has no global state. */
#define _GNU_SOURCE
#include "base/mem.h"
#include "cli/cli.h"
#include "cli/config.h"
#include "cli/output.h"

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

const cli_option cli_general_options[] = {
    {"verbose", 'v', CLI_SET, QR_LOG_INFO, offsetof(cli_args, log_level), NULL, NULL, "Log what happens on standard error.", NULL, NULL},
    {"quiet", 'q', CLI_SET, QR_LOG_ERROR, offsetof(cli_args, log_level), NULL, NULL,
     "No notes, warnings or progress on standard error, only errors.", NULL, NULL},
    {"log-level", 0, CLI_CHOICE, QR_LOG_ERROR, offsetof(cli_args, log_level), "error|warn|info|debug", "QWEN_RERANK_LOG_LEVEL",
     "The same by name (default: warn; of serve: info).", "logging.level", "warn"},
    {"help", 'h', CLI_SET, 1, offsetof(cli_args, help), NULL, NULL, "Print the help of the command.", NULL, NULL},
    {0},
};

const char *cli_env(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && value[0] != 0 ? value : NULL;
}

const cli_command *cli_command_find(const char *name)
{
    for (size_t i = 0; cli_commands[i] != NULL; i++)
        if (strcmp(cli_commands[i]->name, name) == 0) return cli_commands[i];
    return NULL;
}

static void print_message(const cli_args *args, const char *level, const char *format, va_list values)
{
    char message[2048], safe[3 * sizeof message];
    vsnprintf(message, sizeof message, format, values);
    cli_text_safe(safe, sizeof safe, message, strlen(message), CLI_SAFE_ALL);
    fprintf(stderr, CLI_PROGRAM ": %s%s%s%s\n", args != NULL ? args->command->name : "", args != NULL ? ": " : "", level, safe);
}

void cli_error(const cli_args *args, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    print_message(args, "", format, values);
    va_end(values);
}

void cli_note(const cli_args *args, qr_log_level level, const char *format, ...)
{
    static const char *const labels[] = {"", "", "warning: ", "", "debug: "};
    int limit = args->log_level != 0 ? args->log_level : QR_LOG_WARN;
    if ((int) level > limit) return;
    va_list values;
    va_start(values, format);
    print_message(args, labels[level], format, values);
    va_end(values);
}

/* Optimal string alignment distance: insertions, deletions, substitutions and swaps of neighbours cost 1. Long words give a large value. */
static size_t distance(const char *a, const char *b)
{
    enum { LIMIT = 40 };
    size_t rows[3][LIMIT + 1], n = strlen(a), m = strlen(b);
    if (n > LIMIT || m > LIMIT) return LIMIT;
    for (size_t j = 0; j <= m; j++) rows[0][j] = j;
    for (size_t i = 1; i <= n; i++) {
        size_t *row = rows[i % 3], *up = rows[(i + 2) % 3], *up2 = rows[(i + 1) % 3];
        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t best = up[j - 1] + (a[i - 1] != b[j - 1]);
            if (up[j] + 1 < best) best = up[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && up2[j - 2] + 1 < best) best = up2[j - 2] + 1;
            row[j] = best;
        }
    }
    return rows[n % 3][m];
}

void cli_suggest(const char *word, const char *candidate, size_t *best_distance, const char **best)
{
    size_t n = strlen(word), limit = n < 6 ? 2 : n / 3;
    size_t d = distance(word, candidate);
    /* A word that was merely cut short ("--max-len") is near, whatever the count says. */
    if (n >= 3 && strncmp(word, candidate, n) == 0) d = 1;
    if (d <= limit && d < n && (*best == NULL || d < *best_distance)) {
        *best_distance = d;
        *best = candidate;
    }
}

static const cli_option *find_option(const cli_command *command, const char *name, size_t len, char letter)
{
    for (size_t g = 0; g < CLI_MAX_GROUPS && command->groups[g] != NULL; g++)
        for (const cli_option *o = command->groups[g]; o->name != NULL; o++)
            if (letter != 0 ? o->letter == letter : strlen(o->name) == len && memcmp(o->name, name, len) == 0) return o;
    return NULL;
}

static int unknown_option(const cli_args *args, const char *name, size_t len)
{
    size_t d = 0;
    const char *best = NULL;
    char word[64];
    snprintf(word, sizeof word, "%.*s", (int) (len < sizeof word ? len : sizeof word - 1), name);
    for (size_t g = 0; g < CLI_MAX_GROUPS && args->command->groups[g] != NULL; g++)
        for (const cli_option *o = args->command->groups[g]; o->name != NULL; o++) cli_suggest(word, o->name, &d, &best);
    if (best != NULL) cli_error(args, "unknown option '--%s'; did you mean '--%s'?", word, best);
    else cli_error(args, "unknown option '--%s'; see '" CLI_PROGRAM " help %s'", word, args->command->name);
    return CLI_USAGE;
}

/* Index of `value` among the words of "a|b|c", or -1. */
static int choice_index(const char *choices, const char *value)
{
    size_t len = strlen(value);
    for (int i = 0;; i++) {
        const char *end = choices + strcspn(choices, "|");
        if ((size_t) (end - choices) == len && memcmp(choices, value, len) == 0) return i;
        if (*end == 0) return -1;
        choices = end + 1;
    }
}

/* A whole number in decimal digits and nothing else: no sign, blanks or fractions. */
static int parse_count(const char *text, size_t *out)
{
    size_t value = 0;
    if (text[0] == 0) return 0;
    for (const char *p = text; *p != 0; p++) {
        if (*p < '0' || *p > '9') return 0;
        if (__builtin_mul_overflow(value, (size_t) 10, &value) || __builtin_add_overflow(value, (size_t) (*p - '0'), &value)) return 0;
    }
    *out = value;
    return 1;
}

/* What several programs call the same. */
static const char *synonym(const char *value)
{
    static const char *const words[][2] = {{"float32", "f32"}, {"fp32", "f32"}, {"bfloat16", "bf16"}, {"float16", "f16"}, {"fp16", "f16"}};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (strcmp(value, words[i][0]) == 0) return words[i][1];
    return value;
}

static int parse_switch(const char *value)
{
    static const char *const words[] = {"true", "false", "on", "off", "yes", "no", "1", "0"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (strcasecmp(value, words[i]) == 0) return i % 2 == 0 ? CLI_ON : CLI_OFF;
    return 0;
}

static int append(const cli_args *args, cli_list *list, const char *item)
{
    const char **items = qr_grow(list->items, &list->capacity, list->n + 1, sizeof *items);
    if (items == NULL) {
        cli_error(args, "out of memory");
        return CLI_FAILURE;
    }
    list->items = items;
    items[list->n++] = item;
    return CLI_OK;
}

/* `source` names where the value comes from: "--threads" or "QWEN_RERANK_THREADS". */
static int store(cli_args *args, const cli_option *o, const char *source, const char *value)
{
    char *field = (char *) args + o->field;
    switch (o->kind) {
    case CLI_SET:
        *(int *) (void *) field = o->value;
        return CLI_OK;
    case CLI_CHOICE: {
        int i = choice_index(o->arg, synonym(value));
        if (i < 0) {
            cli_error(args, "%s: expected one of %s, found '%s'", source, o->arg, value);
            return CLI_USAGE;
        }
        *(int *) (void *) field = i + o->value;
        return CLI_OK;
    }
    case CLI_COUNT: {
        size_t n;
        if (!parse_count(value, &n) || n < (size_t) o->value) {
            cli_error(args, "%s: expected a whole number of at least %d, found '%s'", source, o->value, value);
            return CLI_USAGE;
        }
        *(size_t *) (void *) field = n;
        return CLI_OK;
    }
    case CLI_SWITCH: {
        int on = parse_switch(value);
        if (on == 0) {
            cli_error(args, "%s: expected true or false, found '%s'", source, value);
            return CLI_USAGE;
        }
        *(int *) (void *) field = on;
        return CLI_OK;
    }
    case CLI_REAL: {
        char *end;
        double number = strtod(value, &end);
        if (end == value || *end != 0 || !(number > 0 && number <= o->value)) {
            cli_error(args, "%s: expected a number above 0 and up to %d, found '%s'", source, o->value, value);
            return CLI_USAGE;
        }
        *(double *) (void *) field = number;
        return CLI_OK;
    }
    case CLI_LIST:
        return append(args, (cli_list *) (void *) field, value);
    case CLI_TEXT:
    case CLI_FILE:
    case CLI_DIR:
        *(const char **) (void *) field = value;
        return CLI_OK;
    }
    return CLI_USAGE;
}

int cli_is_given(const cli_args *args, size_t field) { return args->origins != NULL && args->origins[field] != NULL; }
const char *cli_origin(const cli_args *args, const cli_option *o) { return args->origins != NULL ? args->origins[o->field] : NULL; }
int cli_is_on(int value, int otherwise) { return value == 0 ? otherwise : value == CLI_ON; }

const char *cli_args_keep(cli_args *args, const char *text) { return cli_args_keep_part(args, text, strlen(text)); }

const char *cli_args_keep_part(cli_args *args, const char *text, size_t len)
{
    char *copy = qr_strndup(text, len);
    if (copy == NULL || append(args, &args->owned, copy) != CLI_OK) {
        qr_free(copy);
        return NULL;
    }
    return copy;
}

/* Fields are told apart by their offset, so that -v on the command line wins over QWEN_RERANK_LOG_LEVEL, which another option declares. */
int cli_args_offer(cli_args *args, const cli_option *o, const char *source, const char *origin, const char *value)
{
    if (args->origins[o->field] != NULL && args->origins[o->field] != origin) return CLI_OK;
    int code = store(args, o, source, value);
    if (code == CLI_OK) args->origins[o->field] = origin;
    return code;
}

/* A variable; one that holds a list holds its items between commas or white space. */
static int offer_variable(cli_args *args, const cli_option *o, const char *value)
{
    static const char between[] = ", \t\r\n";
    if (o->kind != CLI_LIST || o->value != CLI_SEPARATED) return cli_args_offer(args, o, o->env, o->env, value);
    int code = CLI_OK;
    for (size_t n; code == CLI_OK && (n = strcspn(value += strspn(value, between), between)) > 0; value += n) {
        const char *item = cli_args_keep_part(args, value, n);
        code = item != NULL ? cli_args_offer(args, o, o->env, o->env, item) : CLI_FAILURE;
    }
    return code;
}

static int apply_environment(cli_args *args)
{
    for (size_t g = 0; g < CLI_MAX_GROUPS && args->command->groups[g] != NULL; g++)
        for (const cli_option *o = args->command->groups[g]; o->name != NULL; o++) {
            const char *value = o->env != NULL ? cli_env(o->env) : NULL;
            int code = value != NULL ? offer_variable(args, o, value) : CLI_OK;
            if (code != CLI_OK) return code;
        }
    return CLI_OK;
}

/* From the command line: the last one counts. */
static int take(cli_args *args, const cli_option *o, const char *source, const char *value)
{
    if (args->origins[o->field] == NULL && (args->origins[o->field] = cli_args_keep(args, source)) == NULL) return CLI_FAILURE;
    return store(args, o, source, value);
}

/* The option "no-NAME" stands for, if NAME is a switch. */
static const cli_option *find_negated(const cli_command *command, const char *name, size_t len)
{
    const cli_option *o = len > 3 && strncmp(name, "no-", 3) == 0 ? find_option(command, name + 3, len - 3, 0) : NULL;
    return o != NULL && o->kind == CLI_SWITCH ? o : NULL;
}

static int takes_argument(const cli_option *o) { return o->kind != CLI_SET && o->kind != CLI_SWITCH; }

int cli_args_parse(cli_args *args, const cli_command *command, int argc, char **argv)
{
    int code = CLI_OK, only_operands = 0;
    *args = (cli_args){.command = command};
    if ((args->origins = qr_calloc(sizeof *args, sizeof *args->origins)) == NULL) {
        cli_error(args, "out of memory");
        return CLI_FAILURE;
    }
    for (int i = 0; i < argc && code == CLI_OK; i++) {
        const char *word = argv[i];
        if (only_operands || word[0] != '-' || word[1] == 0) {
            code = append(args, &args->operands, word);
        } else if (strcmp(word, "--") == 0) {
            only_operands = 1;
        } else if (word[1] == '-') {
            const char *name = word + 2, *equals = strchr(name, '=');
            size_t len = equals != NULL ? (size_t) (equals - name) : strlen(name);
            const cli_option *o = find_option(command, name, len, 0), *negated = o == NULL ? find_negated(command, name, len) : NULL;
            if (o == NULL && negated == NULL) return unknown_option(args, name, len);
            char source[64];
            snprintf(source, sizeof source, "--%s%s", negated != NULL ? "no-" : "", negated != NULL ? negated->name : o->name);
            const char *value = equals != NULL ? equals + 1 : NULL;
            if (negated != NULL) o = negated;
            if (!takes_argument(o) && value != NULL) {
                cli_error(args, "%s takes no argument, found '%s'", source, value);
                return CLI_USAGE;
            }
            if (o->kind == CLI_SWITCH) value = negated != NULL ? "false" : "true";
            if (takes_argument(o) && value == NULL && (value = ++i < argc ? argv[i] : NULL) == NULL) {
                cli_error(args, "%s needs an argument: %s", source, o->arg);
                return CLI_USAGE;
            }
            code = take(args, o, source, value);
        } else {
            for (const char *p = word + 1; *p != 0 && code == CLI_OK; p++) {
                const cli_option *o = find_option(command, NULL, 0, *p);
                if (o == NULL) {
                    cli_error(args, "unknown option '-%c' in '%s'; see '" CLI_PROGRAM " help %s'", *p, word, command->name);
                    return CLI_USAGE;
                }
                char source[3] = {'-', *p, 0};
                const char *value = o->kind == CLI_SWITCH ? "true" : NULL;
                if (takes_argument(o)) {
                    value = p[1] != 0 ? p + 1 : ++i < argc ? argv[i] : NULL;
                    if (value == NULL) {
                        cli_error(args, "%s needs an argument: %s", source, o->arg);
                        return CLI_USAGE;
                    }
                }
                code = take(args, o, source, value);
                if (takes_argument(o)) break;
            }
        }
    }
    if (code == CLI_OK && args->help) return CLI_OK; /* asked for help: neither operands nor environment matter */
    if (code == CLI_OK) code = apply_environment(args);
    if (code == CLI_OK) code = cli_profile_apply(args);
    if (code == CLI_OK && args->models.n > 0) args->model = args->models.items[args->models.n - 1];
    if (code == CLI_OK && args->operands.n < command->min_operands) {
        cli_error(args, "expected %s; see '" CLI_PROGRAM " help %s'", command->operands, command->name);
        code = CLI_USAGE;
    }
    if (code == CLI_OK && args->operands.n > command->max_operands) {
        cli_error(args, "unexpected argument '%s'; see '" CLI_PROGRAM " help %s'", args->operands.items[command->max_operands],
                  command->name);
        code = CLI_USAGE;
    }
    return code;
}

void cli_args_deinit(cli_args *args)
{
    qr_free(args->operands.items);
    qr_free(args->docs.items);
    qr_free(args->models.items);
    qr_free(args->api_keys.items);
    qr_free(args->cors_origins.items);
    qr_free(args->vllm_urls.items);
    qr_free(args->origins);
    for (size_t i = 0; i < args->owned.n; i++) qr_free((void *) (uintptr_t) args->owned.items[i]);
    qr_free(args->owned.items);
    *args = (cli_args){0};
}
