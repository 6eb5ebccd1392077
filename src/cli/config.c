/* See config.h; and the command config.
 *
 * A profile is a YAML mapping whose keys are those of the option tables: every option that may stand there names its place ("key"), so that
 * profiles, variables and flags cannot drift apart. libyaml reads; its nodes keep the line that messages name.
 */
#define _GNU_SOURCE
#include "cli/config.h"

#include "base/embed.h"
#include "base/file.h"
#include "base/mem.h"
#include "base/system.h"
#include "cli/engine.h"
#include "cli/output.h"
#include "engine/backend.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>
#include <yaml.h>

QR_EMBED(cli_builtin_profiles, QR_PROFILES_FILE);

enum { MAX_DEPTH = 16, MAX_FILE_BYTES = 1 << 20, PATH_BYTES = 160 };

/* Keys of profiles that say something to people only. */
static const char *const informational[] = {"description", "hf_tokenizer_id", "performance", NULL};

typedef struct file {
    const char *name; /* "built in", or the path */
    char *text;
    yaml_document_t doc;
    int is_open;
} file;

/* A profile on its way into the arguments. */
typedef struct reader {
    cli_args *args;
    file *file;
    const char *profile, *origin;
    int depth;
} reader;

static const char *scalar(const yaml_node_t *node)
{
    return node != NULL && node->type == YAML_SCALAR_NODE ? (const char *) node->data.scalar.value : NULL;
}

static int is_null(const yaml_node_t *node)
{
    const char *text = scalar(node);
    return text != NULL && node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
           (text[0] == 0 || strcmp(text, "~") == 0 || strcasecmp(text, "null") == 0);
}

static size_t line_of(const yaml_node_t *node) { return node->start_mark.line + 1; }

/* ---- keys ----------------------------------------------------------------------------------------------------------------------- */

/* All options that profiles may set: serve has every one. Calls `body` for each. */
#define FOR_EACH_SETTING(o)                                                                                                                \
    for (size_t g = 0; g < CLI_MAX_GROUPS && cli_serve.groups[g] != NULL; g++)                                                             \
        for (const cli_option *o = cli_serve.groups[g]; o->name != NULL; o++)

/* Is `path` one of the places "a.b|c.d", or (prefix) what such a place lies in? */
static int has_place(const char *keys, const char *path, int prefix)
{
    size_t n = strlen(path);
    for (const char *p = keys; p != NULL && *p != 0;) {
        size_t len = strcspn(p, "|");
        if (prefix ? len > n && p[n] == '.' && memcmp(p, path, n) == 0 : len == n && memcmp(p, path, n) == 0) return 1;
        p += len + (p[len] == '|');
    }
    return 0;
}

static const cli_option *find_setting(const char *path)
{
    FOR_EACH_SETTING(o)
    if (has_place(o->key, path, 0)) return o;
    return NULL;
}

static int is_section(const char *path)
{
    if (strcmp(path, "scoring") == 0) return 1;
    FOR_EACH_SETTING(o)
    if (has_place(o->key, path, 1)) return 1;
    return 0;
}

static int is_informational(const char *path)
{
    for (size_t i = 0; informational[i] != NULL; i++)
        if (strcmp(informational[i], path) == 0) return 1;
    return 0;
}

static int fail_unknown(const reader *r, const yaml_node_t *key, const char *path)
{
    size_t distance = 0;
    const char *best = NULL;
    char places[64][PATH_BYTES];
    size_t n = 0;
    FOR_EACH_SETTING(o)
    for (const char *p = o->key; p != NULL && *p != 0 && n < 64; n++) {
        size_t len = strcspn(p, "|");
        snprintf(places[n], PATH_BYTES, "%.*s", (int) len, p);
        cli_suggest(path, places[n], &distance, &best);
        p += len + (p[len] == '|');
    }
    for (size_t i = 0; informational[i] != NULL; i++) cli_suggest(path, informational[i], &distance, &best);
    cli_error(r->args, "%s:%zu: unknown key '%s'%s%s%s", r->file->name, line_of(key), path, best ? "; did you mean '" : "",
              best ? best : "", best ? "'?" : "");
    return CLI_USAGE;
}

/* ---- values --------------------------------------------------------------------------------------------------------------------- */

static int read_mapping(reader *r, const yaml_node_t *node, const char *path);

/* A sequence of scalars, as a list option takes them, or joined by commas (backend: [mlx, cpu]). */
static int read_sequence(reader *r, const cli_option *o, const char *source, const yaml_node_t *node)
{
    char joined[512] = "";
    for (const yaml_node_item_t *i = node->data.sequence.items.start; i < node->data.sequence.items.top; i++) {
        const char *text = scalar(yaml_document_get_node(&r->file->doc, *i));
        size_t used = strlen(joined);
        if (text == NULL || used + strlen(text) + 2 > sizeof joined) {
            cli_error(r->args, "%s: expected a list of short texts", source);
            return CLI_USAGE;
        }
        if (o->kind == CLI_LIST) {
            const char *kept = cli_args_keep(r->args, text);
            int code = kept != NULL ? cli_args_offer(r->args, o, source, r->origin, kept) : CLI_FAILURE;
            if (code != CLI_OK) return code;
        } else {
            snprintf(joined + used, sizeof joined - used, "%s%s", used > 0 ? "," : "", text);
        }
    }
    if (o->kind == CLI_LIST || joined[0] == 0) return CLI_OK;
    const char *kept = cli_args_keep(r->args, joined);
    return kept != NULL ? cli_args_offer(r->args, o, source, r->origin, kept) : CLI_FAILURE;
}

static int read_setting(reader *r, const cli_option *o, const char *path, const yaml_node_t *node)
{
    char source[PATH_BYTES + 512];
    snprintf(source, sizeof source, "%s:%zu: %s", r->file->name, line_of(node), path);
    if (is_null(node)) return CLI_OK;
    if (node->type == YAML_SEQUENCE_NODE && (o->kind == CLI_LIST || o->kind == CLI_TEXT)) return read_sequence(r, o, source, node);
    const char *text = scalar(node);
    if (text == NULL) {
        cli_error(r->args, "%s: expected a value, found a %s", source, node->type == YAML_SEQUENCE_NODE ? "list" : "mapping");
        return CLI_USAGE;
    }
    if (strlen(text) != node->data.scalar.length) {
        cli_error(r->args, "%s: expected text without NUL characters", source);
        return CLI_USAGE;
    }
    const char *kept = cli_args_keep(r->args, text), *origin = r->origin;
    char where[512];
    snprintf(where, sizeof where, "profile %s (%s%s", r->profile, r->file->name, "");
    size_t n = strlen(where);
    if (r->file->text != NULL) snprintf(where + n, sizeof where - n, ":%zu)", line_of(node));
    else snprintf(where + n, sizeof where - n, ")");
    if (kept != NULL && o->kind != CLI_LIST) origin = cli_args_keep(r->args, where);
    return kept != NULL && origin != NULL ? cli_args_offer(r->args, o, source, origin, kept) : CLI_FAILURE;
}

static int read_method(const reader *r, const yaml_node_t *node)
{
    const char *text = scalar(node);
    if (text != NULL && strcmp(text, "yes_no_next_token_prob") == 0) return CLI_OK;
    cli_error(r->args, "%s:%zu: scoring.method: expected yes_no_next_token_prob, found '%s'", r->file->name, line_of(node),
              text != NULL ? text : "a list or mapping");
    return CLI_USAGE;
}

/* "<<: *other": what the other mapping has and this one has not. */
static int read_merge(reader *r, const yaml_node_t *node, const char *path)
{
    if (node->type != YAML_SEQUENCE_NODE) return read_mapping(r, node, path);
    int code = CLI_OK;
    for (const yaml_node_item_t *i = node->data.sequence.items.start; i < node->data.sequence.items.top && code == CLI_OK; i++)
        code = read_mapping(r, yaml_document_get_node(&r->file->doc, *i), path);
    return code;
}

static int read_pair(reader *r, const yaml_node_t *key, const yaml_node_t *value, const char *path)
{
    char inner[PATH_BYTES];
    const char *name = scalar(key);
    int n = snprintf(inner, sizeof inner, "%s%s%s", path, path[0] != 0 ? "." : "", name != NULL ? name : "?");
    if (name == NULL || n >= PATH_BYTES) return fail_unknown(r, key, "?");
    const cli_option *o = find_setting(inner);
    if (o != NULL) return read_setting(r, o, inner, value);
    if (strcmp(inner, "scoring.method") == 0) return read_method(r, value);
    if (is_informational(inner) || is_null(value))
        return is_informational(inner) || is_section(inner) ? CLI_OK : fail_unknown(r, key, inner);
    return is_section(inner) ? read_mapping(r, value, inner) : fail_unknown(r, key, inner);
}

static int read_mapping(reader *r, const yaml_node_t *node, const char *path)
{
    const yaml_node_t *merged = NULL;
    int code = CLI_OK;
    if (node->type != YAML_MAPPING_NODE || ++r->depth > MAX_DEPTH) {
        cli_error(r->args, "%s:%zu: %s: expected a mapping%s", r->file->name, line_of(node), path[0] != 0 ? path : r->profile,
                  node->type == YAML_MAPPING_NODE ? ", not so deep" : "");
        return CLI_USAGE;
    }
    for (const yaml_node_pair_t *p = node->data.mapping.pairs.start; p < node->data.mapping.pairs.top && code == CLI_OK; p++) {
        const yaml_node_t *key = yaml_document_get_node(&r->file->doc, p->key), *value = yaml_document_get_node(&r->file->doc, p->value);
        if (scalar(key) != NULL && strcmp(scalar(key), "<<") == 0) merged = value;
        else code = read_pair(r, key, value, path);
    }
    if (merged != NULL && code == CLI_OK) code = read_merge(r, merged, path); /* last: what is given first counts */
    r->depth--;
    return code;
}

/* ---- files ---------------------------------------------------------------------------------------------------------------------- */

static void close_file(file *f)
{
    if (f->is_open) yaml_document_delete(&f->doc);
    qr_free(f->text);
    *f = (file){0};
}

static int parse_file(const cli_args *args, file *f, const char *text, size_t len)
{
    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser)) {
        cli_error(args, "out of memory");
        return CLI_FAILURE;
    }
    yaml_parser_set_input_string(&parser, (const unsigned char *) text, len);
    f->is_open = yaml_parser_load(&parser, &f->doc);
    if (!f->is_open)
        cli_error(args, "%s:%zu: not valid YAML: %s", f->name, parser.problem_mark.line + 1,
                  parser.problem != NULL ? parser.problem : "cannot be read");
    yaml_parser_delete(&parser);
    return f->is_open ? CLI_OK : CLI_USAGE;
}

static yaml_node_t *member(file *f, const yaml_node_t *node, const char *name)
{
    if (node == NULL || node->type != YAML_MAPPING_NODE) return NULL;
    for (const yaml_node_pair_t *p = node->data.mapping.pairs.start; p < node->data.mapping.pairs.top; p++) {
        const char *key = scalar(yaml_document_get_node(&f->doc, p->key));
        if (key != NULL && strcmp(key, name) == 0) return yaml_document_get_node(&f->doc, p->value);
    }
    return NULL;
}

static const yaml_node_t *profiles_of(file *f) { return f->is_open ? member(f, yaml_document_get_root_node(&f->doc), "profiles") : NULL; }

/* At the top: profiles, default_profile, and nothing else. */
static int check_top(const cli_args *args, file *f)
{
    const yaml_node_t *root = yaml_document_get_root_node(&f->doc);
    if (root == NULL) return CLI_OK; /* an empty file */
    if (root->type != YAML_MAPPING_NODE) {
        cli_error(args, "%s:%zu: expected a mapping with 'profiles'", f->name, line_of(root));
        return CLI_USAGE;
    }
    for (const yaml_node_pair_t *p = root->data.mapping.pairs.start; p < root->data.mapping.pairs.top; p++) {
        const yaml_node_t *key = yaml_document_get_node(&f->doc, p->key), *value = yaml_document_get_node(&f->doc, p->value);
        const char *name = scalar(key);
        size_t distance = 0;
        const char *best = NULL;
        if (name != NULL && strcmp(name, "profiles") == 0 && (value->type == YAML_MAPPING_NODE || is_null(value))) continue;
        if (name != NULL && strcmp(name, "default_profile") == 0 && scalar(value) != NULL) continue;
        if (name != NULL) cli_suggest(name, "profiles", &distance, &best);
        if (name != NULL) cli_suggest(name, "default_profile", &distance, &best);
        cli_error(args, "%s:%zu: expected 'profiles', a mapping, or 'default_profile', a name; found '%s'%s%s%s", f->name, line_of(key),
                  name != NULL ? name : "?", best ? "; did you mean '" : "", best ? best : "", best ? "'?" : "");
        return CLI_USAGE;
    }
    return CLI_OK;
}

/* Every profile of a user's file, so that a mistake shows when it is made and not when the profile is used. */
static int check_profiles(const cli_args *args, file *f)
{
    const yaml_node_t *profiles = profiles_of(f);
    int code = CLI_OK;
    if (profiles == NULL || profiles->type != YAML_MAPPING_NODE) return CLI_OK;
    for (const yaml_node_pair_t *p = profiles->data.mapping.pairs.start; p < profiles->data.mapping.pairs.top && code == CLI_OK; p++) {
        cli_args scratch = {.command = args->command, .origins = qr_calloc(sizeof scratch, sizeof *scratch.origins)};
        const char *name = scalar(yaml_document_get_node(&f->doc, p->key));
        reader r = {&scratch, f, name != NULL ? name : "?", "profile", 0};
        if (scratch.origins == NULL) return CLI_FAILURE;
        const yaml_node_t *value = yaml_document_get_node(&f->doc, p->value);
        if (!is_null(value)) code = read_mapping(&r, value, "");
        cli_args_deinit(&scratch);
    }
    return code;
}

/* The file of --config, or the one that is found where such files are; none is fine unless it was named. */
static int open_user_file(cli_args *args, file *f)
{
    char path[4096];
    const char *home = cli_env("HOME"), *xdg = cli_env("XDG_CONFIG_HOME");
    qr_error err = {0};
    size_t len;
    f->name = args->config;
    if (f->name == NULL) {
        path[0] = 0;
        if (xdg != NULL) snprintf(path, sizeof path, "%s/qwen-rerank/config.yaml", xdg);
        else if (home != NULL) snprintf(path, sizeof path, "%s/.config/qwen-rerank/config.yaml", home);
        if (path[0] == 0 || access(path, F_OK) != 0) snprintf(path, sizeof path, "/etc/qwen-rerank/config.yaml");
        if (access(path, F_OK) != 0) return CLI_OK;
        if ((f->name = cli_args_keep(args, path)) == NULL) return CLI_FAILURE;
    }
    if (qr_file_read(f->name, MAX_FILE_BYTES, &f->text, &len, &err) != QR_OK) {
        cli_error(args, "%s", err.msg);
        return CLI_USAGE;
    }
    int code = parse_file(args, f, f->text, len);
    if (code == CLI_OK) code = check_top(args, f);
    return code == CLI_OK ? check_profiles(args, f) : code;
}

static int open_builtin(const cli_args *args, file *f)
{
    f->name = "built in";
    return parse_file(args, f, (const char *) cli_builtin_profiles, (size_t) cli_builtin_profiles_size);
}

/* ---- profiles ------------------------------------------------------------------------------------------------------------------- */

static void suggest_profile(file *f, const char *word, size_t *distance, const char **best)
{
    const yaml_node_t *profiles = profiles_of(f);
    if (profiles == NULL || profiles->type != YAML_MAPPING_NODE) return;
    for (const yaml_node_pair_t *p = profiles->data.mapping.pairs.start; p < profiles->data.mapping.pairs.top; p++) {
        const char *name = scalar(yaml_document_get_node(&f->doc, p->key));
        if (name != NULL) cli_suggest(word, name, distance, best);
    }
}

static int apply(cli_args *args, file *f, const char *name, int *found)
{
    const yaml_node_t *node = member(f, profiles_of(f), name);
    char origin[512];
    if (node == NULL) return CLI_OK;
    *found = 1;
    if (is_null(node)) return CLI_OK;
    snprintf(origin, sizeof origin, "profile %s (%s)", name, f->name);
    reader r = {args, f, name, cli_args_keep(args, origin), 0};
    return r.origin != NULL ? read_mapping(&r, node, "") : CLI_FAILURE;
}

static int has_profiles(const cli_command *command)
{
    for (size_t g = 0; g < CLI_MAX_GROUPS && command->groups[g] != NULL; g++)
        if (command->groups[g] == cli_engine_options) return 1;
    return 0;
}

/* A misspelt variable would go unnoticed. */
static void check_environment(const cli_args *args)
{
    static const char prefix[] = "QWEN_RERANK_";
    for (char **e = environ; *e != NULL; e++) {
        size_t distance = 0, n = strcspn(*e, "="), known = 0;
        const char *best = NULL;
        char name[128];
        if (strncmp(*e, prefix, sizeof prefix - 1) != 0 || n >= sizeof name) continue;
        snprintf(name, sizeof name, "%.*s", (int) n, *e);
        FOR_EACH_SETTING(o)
        {
            if (o->env == NULL) continue;
            known |= strcmp(o->env, name) == 0;
            cli_suggest(name, o->env, &distance, &best);
        }
        if (!known)
            cli_note(args, QR_LOG_WARN, "unknown variable %s%s%s%s", name, best ? "; did you mean " : "", best ? best : "",
                     best ? "?" : "");
    }
}

int cli_profile_apply(cli_args *args)
{
    file user = {0}, builtin = {0};
    int found = 0;
    if (!has_profiles(args->command)) return CLI_OK;
    if (args->command == &cli_serve || args->command == &cli_config) check_environment(args);
    int code = open_user_file(args, &user);
    if (code == CLI_OK && args->profile == NULL && user.is_open) {
        const yaml_node_t *root = yaml_document_get_root_node(&user.doc);
        const char *name = scalar(member(&user, root, "default_profile"));
        if (name != NULL && (args->profile = cli_args_keep(args, name)) == NULL) code = CLI_FAILURE;
    }
    if (code == CLI_OK && args->profile != NULL && (code = open_builtin(args, &builtin)) == CLI_OK) {
        /* The user's comes first; what it does not say is as in the built-in one of that name. */
        code = apply(args, &user, args->profile, &found);
        if (code == CLI_OK) code = apply(args, &builtin, args->profile, &found);
        if (code == CLI_OK && !found) {
            size_t distance = 0;
            const char *best = NULL;
            suggest_profile(&user, args->profile, &distance, &best);
            suggest_profile(&builtin, args->profile, &distance, &best);
            if (best != NULL) cli_error(args, "unknown profile '%s'; did you mean '%s'?", args->profile, best);
            else cli_error(args, "unknown profile '%s'; see '" CLI_PROGRAM " config list'", args->profile);
            code = CLI_USAGE;
        }
    }
    close_file(&user);
    close_file(&builtin);
    return code;
}

/* ---- the command ---------------------------------------------------------------------------------------------------------------- */

static int is_setting(const cli_option *o) { return o->kind != CLI_SET && (o->key != NULL || o->env != NULL); }

/* The value in force as text; NULL: none. Keys of the API are not shown. */
static const char *value_text(const cli_args *args, const cli_option *o, char *out, size_t size)
{
    const char *field = (const char *) args + o->field;
    if (cli_origin(args, o) == NULL) return o->fallback;
    out[0] = 0;
    switch (o->kind) {
    case CLI_CHOICE: {
        int index = *(const int *) (const void *) field - o->value;
        const char *p = o->arg;
        for (; index > 0; index--) p += strcspn(p, "|") + 1;
        snprintf(out, size, "%.*s", (int) strcspn(p, "|"), p);
        return out;
    }
    case CLI_SWITCH:
        return *(const int *) (const void *) field == CLI_ON ? "true" : "false";
    case CLI_COUNT:
        snprintf(out, size, "%zu", *(const size_t *) (const void *) field);
        return out;
    case CLI_REAL:
        snprintf(out, size, "%g", *(const double *) (const void *) field);
        return out;
    case CLI_LIST: {
        const cli_list *list = (const cli_list *) (const void *) field;
        for (size_t i = 0; i < list->n; i++) {
            size_t used = strlen(out);
            const char *item = o->field == offsetof(cli_args, api_keys) ? "(hidden)" : list->items[i];
            if (used + 2 < size) snprintf(out + used, size - used, "%s%s", i > 0 ? "," : "", item);
        }
        return out;
    }
    default:
        return o->field == offsetof(cli_args, vllm_api_key) ? "(hidden)" : *(const char *const *) (const void *) field;
    }
}

static void write_settings(qr_json_out *json, const cli_args *args)
{
    char text[1024];
    qr_out_string(json, "profile", args->profile);
    qr_out_open(json, "settings", '[');
    FOR_EACH_SETTING(o)
    {
        if (!is_setting(o)) continue;
        const char *origin = cli_origin(args, o);
        qr_out_open(json, NULL, '{');
        qr_out_string(json, "name", o->name);
        qr_out_string(json, "value", value_text(args, o, text, sizeof text));
        qr_out_string(json, "origin", origin != NULL ? origin : "default");
        qr_out_close(json, '}');
    }
    qr_out_close(json, ']');
}

void cli_config_write(qr_json_out *json, void *arg) { write_settings(json, arg); }

static int show(const cli_args *args)
{
    if (args->format == CLI_FORMAT_JSON) {
        qr_json_out json = cli_json(1);
        qr_out_open(&json, NULL, '{');
        write_settings(&json, args);
        qr_out_close(&json, '}');
        return cli_stdout_flush(args);
    }
    FOR_EACH_SETTING(o)
    {
        char text[1024], safe[3 * sizeof text];
        if (!is_setting(o)) continue;
        const char *value = value_text(args, o, text, sizeof text), *origin = cli_origin(args, o);
        if (value == NULL) value = "-";
        cli_text_safe(safe, sizeof safe, value, strlen(value), CLI_SAFE_ALL);
        printf("%-20s %-44s %s\n", o->name, safe, origin != NULL ? origin : "default");
    }
    return cli_stdout_flush(args);
}

static int list_profiles(const cli_args *args, file *f)
{
    const yaml_node_t *profiles = profiles_of(f);
    if (profiles == NULL || profiles->type != YAML_MAPPING_NODE) return CLI_OK;
    for (const yaml_node_pair_t *p = profiles->data.mapping.pairs.start; p < profiles->data.mapping.pairs.top; p++) {
        char safe[600] = "";
        const char *name = scalar(yaml_document_get_node(&f->doc, p->key));
        const char *text = scalar(member(f, yaml_document_get_node(&f->doc, p->value), "description"));
        if (text != NULL) cli_text_safe(safe, sizeof safe, text, strlen(text) < 180 ? strlen(text) : 180, CLI_SAFE_ALL);
        printf("%-24s %s%s%s%s\n", name != NULL ? name : "?", safe, f->text != NULL ? " (" : "", f->text != NULL ? f->name : "",
               f->text != NULL ? ")" : "");
    }
    return cli_stdout_flush(args);
}

static int list(const cli_args *args)
{
    file user = {0}, builtin = {0};
    cli_args copy = {.command = args->command, .config = args->config};
    int code = open_user_file(&copy, &user);
    if (code == CLI_OK && user.is_open) code = list_profiles(args, &user);
    if (code == CLI_OK) code = open_builtin(args, &builtin);
    if (code == CLI_OK) code = list_profiles(args, &builtin);
    close_file(&user);
    close_file(&builtin);
    cli_args_deinit(&copy);
    return code;
}

/* docs/CONFIG.md's table. */
static int document(const cli_args *args)
{
    fputs("| option | variable | in profiles | default | |\n|---|---|---|---|---|\n", stdout);
    FOR_EACH_SETTING(o)
    {
        if (!is_setting(o)) continue;
        printf("| `--%s%s` | %s%s%s | ", o->kind == CLI_SWITCH ? "[no-]" : "", o->name, o->env != NULL ? "`" : "",
               o->env != NULL ? o->env : "", o->env != NULL ? "`" : "");
        for (const char *p = o->key; p != NULL && *p != 0;) {
            size_t len = strcspn(p, "|");
            printf("`%.*s`%s", (int) len, p, p[len] == '|' ? " " : "");
            p += len + (p[len] == '|');
        }
        printf(" | %s%s%s | ", o->fallback != NULL ? "`" : "", o->fallback != NULL ? o->fallback : "", o->fallback != NULL ? "`" : "");
        if (o->kind == CLI_CHOICE) {
            fputs("One of ", stdout);
            for (const char *p = o->arg; *p != 0; p++) fputs(*p == '|' ? ", " : (char[]){*p, 0}, stdout);
            fputs(". ", stdout);
        }
        for (const char *p = o->help; *p != 0; p++) fputs(*p == '|' ? "\\|" : *p == '<' ? "&lt;" : (char[]){*p, 0}, stdout);
        fputs(" |\n", stdout);
    }
    return cli_stdout_flush(args);
}

static int run(const cli_args *args)
{
    const char *what = args->operands.n > 0 ? args->operands.items[0] : "show";
    if (strcmp(what, "show") == 0) return show(args);
    if (strcmp(what, "list") == 0) return list(args);
    if (strcmp(what, "docs") == 0) return document(args);
    cli_error(args, "expected show, list or docs, found '%s'", what);
    return CLI_USAGE;
}

static const cli_option options[] = {
    {"json", 0, CLI_SET, CLI_FORMAT_JSON, offsetof(cli_args, format), NULL, NULL, "Print JSON.", NULL, NULL},
    {0},
};

const cli_command cli_config = {
    .name = "config",
    .operands = "[show|list|docs]",
    .max_operands = 1,
    .summary = "show every setting and where it comes from",
    .text =
        "show: every setting of 'serve', its value, and where that comes from: a flag, a variable, a profile with file and line, or the "
        "default. It takes the flags of 'serve'. list: the profiles. docs: all settings as a table in Markdown.\n\n"
        "  qwen-rerank config show --profile qwen3_06b_cpu_bf16\n"
        "  QWEN_RERANK_PORT=8000 qwen-rerank config show",
    .groups = {options, cli_serve_options, cli_engine_options, cli_backend_options, cli_general_options},
    .run = run,
};
