/* Documents of `rank`, see input.h. Files of up to a megabyte are read, larger ones mapped: a folder of many small files would otherwise
 * use up the system's limit of mappings, and a large file would be copied for nothing. */
#define _GNU_SOURCE
#include "cli/input.h"

#include "base/mem.h"
#include "cli/output.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const size_t MAP_FROM_BYTES = (size_t) 1 << 20;
static const size_t MAX_STREAM_BYTES = (size_t) 1 << 30; /* standard input and pipes, which have to be held in memory */
enum { MAX_DEPTH = 64 };                                 /* of folders; deeper ones are nobody's document collection */

static int no_memory(const cli_args *args)
{
    cli_error(args, "out of memory");
    return CLI_FAILURE;
}

static cli_source *add_source(cli_docs *docs, const char *name)
{
    cli_source **grown = qr_grow(docs->sources, &docs->sources_capacity, docs->n_sources + 1, sizeof *grown);
    if (grown == NULL) return NULL;
    docs->sources = grown;
    cli_source *source = qr_calloc(1, sizeof *source);
    if (source == NULL) return NULL;
    source->name = qr_strndup(name, strlen(name));
    if (source->name == NULL) {
        qr_free(source);
        return NULL;
    }
    docs->sources[docs->n_sources++] = source;
    return source;
}

static cli_doc *add_doc(cli_docs *docs, const char *source, size_t line, const char *text, size_t len)
{
    cli_doc *grown = qr_grow(docs->items, &docs->capacity, docs->n + 1, sizeof *grown);
    if (grown == NULL) return NULL;
    docs->items = grown;
    docs->items[docs->n] = (cli_doc){.text = {text, len}, .source = source, .line = line};
    return &docs->items[docs->n++];
}

/* {"text": ..., "id"?: ...} or a bare string. Owns `json`. */
static int add_json(cli_docs *docs, const cli_args *args, const cli_source *source, size_t line, json_t *json, int replaced)
{
    const json_t *text = json_is_object(json) ? json_object_get(json, "text") : json;
    json_t *id = json_object_get(json, "id");
    cli_doc *doc = json_is_string(text) ? add_doc(docs, source->name, line, json_string_value(text), json_string_length(text)) : NULL;
    if (doc == NULL) {
        int bad = !json_is_string(text);
        json_decref(json);
        if (!bad) return no_memory(args);
        cli_error(args, "%s:%zu: expected {\"text\": \"...\"} or a string", source->name, line);
        return CLI_BAD_INPUT;
    }
    doc->json = json;
    doc->replaced = replaced;
    if (json_is_string(id)) {
        doc->id = json_string_value(id);
    } else if (json_is_integer(id)) {
        char digits[32];
        snprintf(digits, sizeof digits, "%lld", (long long) json_integer_value(id));
        json_t *text_id = json_string(digits); /* the object keeps the text alive */
        if (text_id == NULL || json_object_set_new(json, "id", text_id) != 0) return no_memory(args);
        doc->id = json_string_value(text_id);
    }
    return CLI_OK;
}

/* Splits data into documents according to `input`. */
static int add_data(cli_docs *docs, const cli_args *args, const cli_source *source, int input, const char *data, size_t len)
{
    /* A byte order mark says how the file is encoded and is no part of the text. */
    if (len >= 3 && memcmp(data, "\xEF\xBB\xBF", 3) == 0) {
        data += 3;
        len -= 3;
    }
    if (input == CLI_INPUT_TEXT) {
        /* The line end that editors put at the end of a file is not part of the text either, as in the shell's $(...). */
        if (len > 0 && data[len - 1] == '\n') len--;
        if (len > 0 && data[len - 1] == '\r') len--;
        return add_doc(docs, source->name, 0, data, len) != NULL ? CLI_OK : no_memory(args);
    }
    size_t line = 0;
    for (size_t i = 0; i < len;) {
        const char *end = memchr(data + i, '\n', len - i);
        size_t stop = end != NULL ? (size_t) (end - data) : len, n = stop - i;
        const char *text = data + i;
        i = stop + 1;
        line++;
        if (n > 0 && text[n - 1] == '\r') n--;
        size_t blank = 0;
        while (blank < n && (text[blank] == ' ' || text[blank] == '\t')) blank++;
        if (blank == n) continue; /* an empty line is no document */
        if (input == CLI_INPUT_LINES) {
            if (add_doc(docs, source->name, line, text, n) == NULL) return no_memory(args);
            continue;
        }
        json_t *json;
        qr_error err = {0};
        int replaced = 0;
        qr_status status = qr_json_parse_text(&json, text, n, &replaced, &err);
        if (status != QR_OK) {
            cli_error(args, "%s:%zu: %s", source->name, line, err.msg);
            return status == QR_E_MEMORY ? CLI_FAILURE : CLI_BAD_INPUT;
        }
        int code = add_json(docs, args, source, line, json, replaced);
        if (code != CLI_OK) return code;
    }
    return CLI_OK;
}

/* How to read a file, by option and suffix. */
static int input_of(const cli_args *args, const char *path, int otherwise)
{
    size_t n = strlen(path);
    if (args->input != CLI_INPUT_AUTO) return args->input;
    return n > 6 && strcmp(path + n - 6, ".jsonl") == 0 ? CLI_INPUT_JSONL : otherwise;
}

static int add_stdin(cli_docs *docs, const cli_args *args)
{
    cli_source *source = add_source(docs, "stdin");
    size_t len;
    qr_error err = {0};
    if (source == NULL) return no_memory(args);
    qr_status status = cli_read_all(STDIN_FILENO, "standard input", MAX_STREAM_BYTES, &source->block, &len, &err);
    if (status != QR_OK) {
        cli_error(args, "%s", err.msg);
        return status == QR_E_MEMORY ? CLI_FAILURE : CLI_BAD_INPUT;
    }
    return add_data(docs, args, source, args->input != CLI_INPUT_AUTO ? args->input : CLI_INPUT_LINES, source->block, len);
}

/* A NUL among the first bytes: the test that grep and git use. */
static int looks_binary(const char *data, size_t len) { return len > 0 && memchr(data, 0, len < 8192 ? len : 8192) != NULL; }

/* in_folder: the file was found, not named; what makes it no document is counted, what makes it unreadable is reported. */
static int add_file(cli_docs *docs, const cli_args *args, const char *path, int in_folder)
{
    qr_error err = {0};
    qr_status status = QR_OK;
    struct stat st;
    size_t len = 0;
    cli_source *source = add_source(docs, path);
    if (source == NULL) return no_memory(args);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0) {
        status = qr_fail(&err, QR_E_IO, "%s: cannot open: %s", path, strerror(errno));
    } else if (S_ISREG(st.st_mode) && (size_t) st.st_size >= MAP_FROM_BYTES) {
        status = qr_file_open(&source->file, path, &err);
        len = source->file.size;
    } else { /* also what is no regular file, such as the pipe of <(command), and files of /proc that claim to be empty */
        status = cli_read_all(fd, path, MAX_STREAM_BYTES, &source->block, &len, &err);
    }
    if (fd >= 0) close(fd);
    const char *data = source->file.data != NULL ? (const char *) source->file.data : source->block;
    int code = CLI_OK;
    if (status != QR_OK) {
        cli_error(args, "%s", err.msg);
        docs->n_unreadable += (size_t) in_folder;
        return status == QR_E_MEMORY ? CLI_FAILURE : in_folder ? CLI_OK : CLI_BAD_INPUT;
    }
    if (in_folder && looks_binary(data, len)) {
        cli_note(args, QR_LOG_INFO, "%s: left out, binary", path);
        docs->n_binary++;
        docs->n_sources--;
        qr_file_close(&source->file);
        qr_free(source->block);
        qr_free(source->name);
        qr_free(source);
        return CLI_OK;
    }
    code = add_data(docs, args, source, input_of(args, path, CLI_INPUT_TEXT), data, len);
    return code;
}

static int by_bytes(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

/* In the order of names as bytes, so that the same folder gives the same order in every locale. Links to files are followed, links to
 * folders are not: they may lead back up. */
static int add_folder(cli_docs *docs, const cli_args *args, const char *path, int depth)
{
    struct dirent **entries;
    int n = depth < MAX_DEPTH ? scandir(path, &entries, NULL, by_bytes) : (errno = ELOOP, -1), code = CLI_OK;
    if (n < 0) {
        cli_error(args, "%s: cannot read the folder: %s", path, strerror(errno));
        docs->n_unreadable += depth > 0;
        return depth > 0 ? CLI_OK : CLI_BAD_INPUT;
    }
    for (int i = 0; i < n; i++) {
        const char *name = entries[i]->d_name;
        struct stat st, link;
        char *child = NULL;
        if (code != CLI_OK || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
            /* only to be freed */
        } else if (name[0] == '.') {
            docs->n_hidden++;
        } else if ((child = qr_path_join(path, name)) == NULL) {
            code = no_memory(args);
        } else if (lstat(child, &link) != 0 || stat(child, &st) != 0) {
            cli_error(args, "%s: cannot open: %s", child, strerror(errno));
            docs->n_unreadable++;
        } else if (S_ISDIR(link.st_mode)) {
            code = add_folder(docs, args, child, depth + 1);
        } else if (S_ISREG(st.st_mode)) {
            code = add_file(docs, args, child, 1);
        } else {
            cli_note(args, QR_LOG_INFO, "%s: left out, neither a file nor a folder", child);
            docs->n_special++;
        }
        qr_free(child);
        free(entries[i]);
    }
    free(entries);
    return code;
}

int cli_docs_read(cli_docs *docs, const cli_args *args)
{
    int code = CLI_OK;
    *docs = (cli_docs){0};
    for (size_t i = 0; i < args->docs.n; i++)
        if (add_doc(docs, "doc", i + 1, args->docs.items[i], strlen(args->docs.items[i])) == NULL) return no_memory(args);
    if (args->operands.n < 2 && args->docs.n == 0) {
        if (isatty(STDIN_FILENO)) {
            cli_error(args, "no documents: give files, folders or --doc TEXT, or pipe one document per line to standard input");
            return CLI_USAGE;
        }
        code = add_stdin(docs, args);
    }
    int stdin_read = 0;
    for (size_t i = 1; i < args->operands.n && code == CLI_OK; i++) {
        const char *path = args->operands.items[i];
        struct stat st;
        if (strcmp(path, "-") == 0) {
            if (!stdin_read) code = add_stdin(docs, args);
            stdin_read = 1;
        } else if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) {
            code = add_folder(docs, args, path, 0);
        } else {
            code = add_file(docs, args, path, 0);
        }
    }
    size_t left_out = docs->n_hidden + docs->n_binary + docs->n_special;
    if (left_out > 0)
        cli_note(args, QR_LOG_WARN, "left out of folders: %zu hidden, %zu binary, %zu special", docs->n_hidden, docs->n_binary,
                 docs->n_special);
    if (code == CLI_OK && docs->n == 0) {
        cli_error(args, "nothing to rank: no documents in the input");
        code = CLI_BAD_INPUT;
    }
    return code;
}

void cli_docs_deinit(cli_docs *docs)
{
    for (size_t i = 0; i < docs->n; i++) json_decref(docs->items[i].json);
    for (size_t i = 0; i < docs->n_sources; i++) {
        qr_file_close(&docs->sources[i]->file);
        qr_free(docs->sources[i]->block);
        qr_free(docs->sources[i]->name);
        qr_free(docs->sources[i]);
    }
    qr_free(docs->items);
    qr_free(docs->sources);
    *docs = (cli_docs){0};
}

void cli_doc_name(const cli_doc *doc, char *out, size_t size)
{
    if (doc->id != NULL) snprintf(out, size, "%s", doc->id);
    else if (doc->line > 0) snprintf(out, size, "%s:%zu", doc->source, doc->line);
    else snprintf(out, size, "%s", doc->source);
}

/* ---- pairs ---------------------------------------------------------------------------------------------------------------------- */

static int get_text(const json_t *object, const char *key, qr_text *out)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_string(value)) return 0;
    *out = (qr_text){json_string_value(value), json_string_length(value)};
    return 1;
}

qr_status cli_pair_parse(cli_pair *pair, const char *line, size_t len, qr_error *err)
{
    *pair = (cli_pair){0};
    qr_status status = qr_json_parse_text(&pair->json, line, len, &pair->replaced, err);
    if (status != QR_OK) return status;
    const json_t *instruction = json_object_get(pair->json, "instruction"), *max_length = json_object_get(pair->json, "max_length");
    if (!json_is_object(pair->json)) return qr_fail(err, QR_E_INPUT, "expected an object with \"query\" and \"document\"");
    if (!get_text(pair->json, "query", &pair->query)) return qr_fail(err, QR_E_INPUT, "\"query\": expected a string");
    if (!get_text(pair->json, "document", &pair->document)) return qr_fail(err, QR_E_INPUT, "\"document\": expected a string");
    if (instruction != NULL && !json_is_null(instruction) &&
        !(pair->has_instruction = get_text(pair->json, "instruction", &pair->instruction)))
        return qr_fail(err, QR_E_INPUT, "\"instruction\": expected a string or null");
    if (max_length != NULL && !json_is_null(max_length)) {
        if (!json_is_integer(max_length) || json_integer_value(max_length) < 1)
            return qr_fail(err, QR_E_INPUT, "\"max_length\": expected a whole number of at least 1 or null");
        pair->max_length = (size_t) json_integer_value(max_length);
    }
    return QR_OK;
}

static int same_text(qr_text a, qr_text b) { return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0); }

int cli_pair_same_query(const cli_pair *a, const cli_pair *b)
{
    return same_text(a->query, b->query) && a->has_instruction == b->has_instruction && same_text(a->instruction, b->instruction) &&
           a->max_length == b->max_length;
}

qr_query cli_pair_query(const cli_pair *pair, const qr_text *documents)
{
    return (qr_query){.query = pair->query,
                      .instruction = pair->has_instruction ? &pair->instruction : NULL,
                      .documents = documents,
                      .max_length = pair->max_length};
}
