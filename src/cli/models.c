/* models: what is in the cache of Hugging Face models, and what of it can rank. */
#define _GNU_SOURCE
#include "base/file.h"
#include "base/mem.h"
#include "cli/engine.h"
#include "cli/output.h"
#include "model/builtin.h"
#include "model/forms.h"
#include "model/gguf.h"
#include "model/hf_cache.h"
#include "model/weights.h"
#include "text/prompt.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static const cli_option options[] = {
    {"yes", 'y', CLI_SET, 1, offsetof(cli_args, yes), NULL, NULL, "Remove without asking.", NULL, NULL},
    {"json", 0, CLI_SET, CLI_FORMAT_JSON, offsetof(cli_args, format), NULL, NULL, "Print JSON.", NULL, NULL},
    {0},
};

/* A snapshot of a repository. */
typedef struct entry {
    char repo[QR_HF_MAX_NAME + 1], commit[QR_HF_COMMIT_LEN + 1], revisions[256]; /* "main, v1" */
    char format[64], reason[512];                                                /* reason: why it cannot rank */
    uint64_t bytes;
    int usable;
} entry;

typedef struct list {
    entry *items; /* [n] */
    size_t n, capacity;
} list;

/* ---- looking ------------------------------------------------------------------------------------------------------------------- */

/* Names in a folder, sorted; freed with free_names. -1: there is no such folder. */
static int read_names(const char *path, struct dirent ***names) { return scandir(path, names, NULL, alphasort); }

static void free_names(struct dirent **names, int n)
{
    for (int i = 0; i < n; i++) free(names[i]);
    if (n >= 0) free(names);
}

static int is_hidden(const struct dirent *d) { return d->d_name[0] == '.'; }

/* Bytes of the files below a folder, links followed. */
static uint64_t size_below(const char *path, int depth)
{
    struct dirent **names = NULL;
    uint64_t bytes = 0;
    int n = depth < 16 ? read_names(path, &names) : -1;
    for (int i = 0; i < n; i++) {
        struct stat st;
        if (strcmp(names[i]->d_name, ".") == 0 || strcmp(names[i]->d_name, "..") == 0) continue;
        char *at = qr_path_join(path, names[i]->d_name);
        if (at != NULL && stat(at, &st) == 0) bytes += S_ISDIR(st.st_mode) ? size_below(at, depth + 1) : (uint64_t) st.st_size;
        qr_free(at);
    }
    free_names(names, n);
    return bytes;
}

static void add_revision(entry *e, const char *revision)
{
    size_t n = strlen(e->revisions);
    snprintf(e->revisions + n, sizeof e->revisions - n, "%s%s", n > 0 ? ", " : "", revision);
}

/* Names of refs (also in folders, refs/pr/1) that lead to the commit. */
static void find_revisions(entry *e, const char *folder, const char *below)
{
    struct dirent **names = NULL;
    int n = read_names(folder, &names);
    for (int i = 0; i < n; i++) {
        char revision[QR_HF_MAX_NAME + 1], *text = NULL, *at = qr_path_join(folder, names[i]->d_name);
        size_t len;
        struct stat st;
        if (!is_hidden(names[i]) && at != NULL && stat(at, &st) == 0) {
            snprintf(revision, sizeof revision, "%s%s", below, names[i]->d_name);
            if (S_ISDIR(st.st_mode) && below[0] == 0) {
                snprintf(revision, sizeof revision, "%.200s/", names[i]->d_name);
                find_revisions(e, at, revision);
            } else if (qr_file_read(at, QR_HF_MAX_NAME, &text, &len, NULL) == QR_OK && strncmp(text, e->commit, QR_HF_COMMIT_LEN) == 0) {
                add_revision(e, revision);
            }
        }
        qr_free(text);
        qr_free(at);
    }
    free_names(names, n);
}

static void name_format(entry *e, const qr_model *model)
{
    const qr_tensor *t = model->layers[0].q_proj;
    const char *type = qr_tensor_type_name(t->type);
    if (qr_form_name(t) != NULL) snprintf(e->format, sizeof e->format, "safetensors, %s", qr_form_name(t));
    else if (t->group > 0) snprintf(e->format, sizeof e->format, "MLX, %u-bit", t->bits);
    else if (model->config.quantization == QR_QUANT_GGUF) snprintf(e->format, sizeof e->format, "GGUF, %s", type);
    else snprintf(e->format, sizeof e->format, "safetensors, %s", type);
}

/* Opens it as for ranking, but for the weights themselves. */
static void examine(entry *e, const char *folder)
{
    qr_model model;
    qr_tokenizer *tok = NULL;
    qr_prompt *prompt = NULL;
    qr_error err = {0};
    qr_status status = qr_model_open(&model, folder, &err);
    int opened = status == QR_OK;
    if (opened) {
        name_format(e, &model);
        status = qr_model_tokenizer_open(&tok, folder, &err);
    }
    if (status == QR_OK) status = qr_prompt_open(&prompt, tok, &(qr_options){0}, &err);
    e->usable = status == QR_OK;
    if (!e->usable) snprintf(e->reason, sizeof e->reason, "%s", err.msg);
    qr_prompt_close(prompt);
    qr_tok_close(tok);
    if (opened) qr_model_close(&model);
}

static int add_snapshots(list *l, const char *cache, const qr_hf_id *id)
{
    struct dirent **names = NULL;
    char *folder = qr_hf_path(cache, id, "snapshots"), *refs = qr_hf_path(cache, id, "refs");
    int n = folder != NULL ? read_names(folder, &names) : -1, good = folder != NULL && refs != NULL;
    for (int i = 0; i < n && good; i++) {
        if (!qr_hf_is_commit(names[i]->d_name)) continue;
        char *snapshot = qr_path_join(folder, names[i]->d_name);
        entry *grown = qr_grow(l->items, &l->capacity, l->n + 1, sizeof *grown);
        good = snapshot != NULL && grown != NULL;
        if (grown != NULL) l->items = grown;
        if (good) {
            entry *e = &l->items[l->n++];
            *e = (entry){.bytes = size_below(snapshot, 0)};
            memcpy(e->repo, id->repo, sizeof e->repo);
            memcpy(e->commit, names[i]->d_name, sizeof e->commit); /* of just that length */
            find_revisions(e, refs, "");
            examine(e, snapshot);
        }
        qr_free(snapshot);
    }
    free_names(names, n);
    qr_free(refs);
    qr_free(folder);
    return good;
}

/* models--ORG--NAME; a name may have -- in it, an organisation not. */
static int id_of_folder(qr_hf_id *id, const char *folder)
{
    char text[QR_HF_MAX_NAME + 1];
    const char *org = folder + strlen("models--"), *dashes = strncmp(folder, "models--", 8) == 0 ? strstr(org, "--") : NULL;
    if (dashes == NULL) return 0;
    int n = snprintf(text, sizeof text, "%.*s/%s", (int) (dashes - org), org, dashes + 2);
    return n > 0 && (size_t) n < sizeof text && qr_hf_id_parse(id, text);
}

static int find_models(list *l, const char *cache)
{
    struct dirent **names = NULL;
    int n = read_names(cache, &names), good = 1;
    for (int i = 0; i < n && good; i++) {
        qr_hf_id id;
        if (id_of_folder(&id, names[i]->d_name)) good = add_snapshots(l, cache, &id);
    }
    free_names(names, n);
    return good;
}

/* ---- saying ------------------------------------------------------------------------------------------------------------------- */

static void print_list(const list *l, const char *cache)
{
    char bytes[32], text[640];
    if (l->n == 0) printf("no models in %s; `qwen-rerank pull 0.6b` gets one\n", cache);
    else printf("%-44s %-10s %-12s %10s  %s\n", "model", "commit", "revision", "size", "");
    for (size_t i = 0; i < l->n; i++) {
        const entry *e = &l->items[i];
        cli_text_safe(text, sizeof text, e->usable ? e->format : e->reason, strlen(e->usable ? e->format : e->reason), CLI_SAFE_ALL);
        printf("%-44s %-10.8s %-12s %10s  %s%s\n", e->repo, e->commit, e->revisions[0] != 0 ? e->revisions : "-",
               cli_bytes(bytes, sizeof bytes, e->bytes), e->usable ? "" : "cannot rank: ", text);
    }
}

static void print_json(const list *l, const char *cache)
{
    qr_json_out json = cli_json(1);
    qr_out_open(&json, NULL, '{');
    qr_out_string(&json, "cache", cache);
    qr_out_open(&json, "models", '[');
    for (size_t i = 0; i < l->n; i++) {
        const entry *e = &l->items[i];
        qr_out_open(&json, NULL, '{');
        qr_out_string(&json, "model", e->repo);
        qr_out_string(&json, "commit", e->commit);
        qr_out_string(&json, "revisions", e->revisions);
        qr_out_int(&json, "bytes", e->bytes);
        qr_out_string(&json, "format", e->format[0] != 0 ? e->format : NULL);
        qr_out_bool(&json, "usable", e->usable);
        qr_out_string(&json, "reason", e->usable ? NULL : e->reason);
        qr_out_close(&json, '}');
    }
    qr_out_close(&json, ']');
    qr_out_close(&json, '}');
}

/* ---- removing ------------------------------------------------------------------------------------------------------------------ */

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void) st, (void) type, (void) ftw;
    return remove(path);
}

static int is_confirmed(const cli_args *args, const char *repo, uint64_t bytes)
{
    char size[32], answer[8] = "";
    if (args->yes) return 1;
    if (!isatty(STDIN_FILENO)) {
        cli_error(args, "%s: not removed: nobody is there to be asked; --yes does it", repo);
        return 0;
    }
    fprintf(stderr, "Remove %s, %s? [y/N] ", repo, cli_bytes(size, sizeof size, bytes));
    if (fgets(answer, sizeof answer, stdin) == NULL) return 0;
    return answer[0] == 'y' || answer[0] == 'Y';
}

/* 1 if nobody is just writing one of its blobs. */
static int is_free(const char *cache, const qr_hf_id *id)
{
    struct dirent **names = NULL;
    char below[QR_HF_MAX_NAME + 32];
    snprintf(below, sizeof below, ".locks/%s", id->folder);
    char *folder = qr_path_join(cache, below);
    int n = folder != NULL ? read_names(folder, &names) : -1, good = folder != NULL;
    for (int i = 0; i < n && good; i++) {
        char *path = is_hidden(names[i]) ? NULL : qr_path_join(folder, names[i]->d_name);
        int fd = path != NULL ? open(path, O_RDWR | O_CLOEXEC) : -1;
        good = fd < 0 || flock(fd, LOCK_EX | LOCK_NB) == 0;
        if (fd >= 0) close(fd);
        qr_free(path);
    }
    free_names(names, n);
    qr_free(folder);
    return good;
}

/* Everything of a repository: all its snapshots share blobs that nobody else uses. */
static int remove_model(const cli_args *args, const char *cache, const char *name)
{
    qr_hf_id id;
    const char *known = qr_hf_known(name);
    if (!qr_hf_id_parse(&id, known != NULL ? known : name)) {
        cli_error(args, "%s: expected 0.6b, 4b, 8b or a name such as %s, found none of these", name, qr_hf_known_at(0));
        return CLI_USAGE;
    }
    struct stat st;
    char *folder = qr_path_join(cache, id.folder);
    int code = folder != NULL ? CLI_OK : CLI_FAILURE;
    if (code == CLI_OK && (lstat(folder, &st) != 0 || !S_ISDIR(st.st_mode))) {
        cli_error(args, "%s: not in the Hugging Face cache %s", id.repo, cache);
        code = CLI_FAILURE;
    }
    if (code == CLI_OK && !is_free(cache, &id)) {
        cli_error(args, "%s: is being downloaded; not removed", id.repo);
        code = CLI_FAILURE;
    }
    char *blobs = code == CLI_OK ? qr_path_join(folder, "blobs") : NULL;
    if (code == CLI_OK && !is_confirmed(args, id.repo, blobs != NULL ? size_below(blobs, 0) : 0)) code = CLI_FAILURE;
    if (code == CLI_OK && nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS) != 0) {
        cli_error(args, "%s: cannot remove all of it: %s", folder, strerror(errno));
        code = CLI_FAILURE;
    }
    qr_free(blobs);
    qr_free(folder);
    return code;
}

static int run(const cli_args *args)
{
    list l = {0};
    char *cache = NULL;
    qr_error err = {0};
    int code = CLI_OK, removes = args->operands.n > 0;
    if (removes && (strcmp(args->operands.items[0], "rm") != 0 || args->operands.n != 2)) {
        cli_error(args, "expected nothing or 'rm MODEL'; see '" CLI_PROGRAM " help models'");
        return CLI_USAGE;
    }
    if (qr_hf_cache_folder(&cache, &err) != QR_OK) {
        cli_error(args, "%s", err.msg);
        return CLI_FAILURE;
    }
    if (removes) {
        code = remove_model(args, cache, args->operands.items[1]);
    } else if (!find_models(&l, cache)) {
        cli_error(args, "out of memory");
        code = CLI_FAILURE;
    } else {
        if (args->format == CLI_FORMAT_JSON) print_json(&l, cache);
        else print_list(&l, cache);
        code = cli_stdout_flush(args);
    }
    qr_free(l.items);
    qr_free(cache);
    return code;
}

const cli_command cli_models = {
    .name = "models",
    .operands = "[rm MODEL]",
    .max_operands = 2,
    .summary = "list downloaded models, or remove one",
    .text = "Lists what is in the cache that Python's tools share (HF_HUB_CACHE, HF_HOME): commit, revisions, size, and the format of what "
            "this "
            "program can rank with, or why it cannot. 'rm' removes a model with all its revisions, after asking.\n\n"
            "  qwen-rerank models\n"
            "  qwen-rerank models rm Qwen/Qwen3-Reranker-0.6B",
    .groups = {options, cli_general_options},
    .run = run,
};
