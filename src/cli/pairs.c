/* See pairs.h. */
#define _GNU_SOURCE
#include "cli/pairs.h"

#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

enum { MAX_PAIRS = 1000000 };
static const size_t MAX_LINE_BYTES = (size_t) 64 << 20;

int cli_pairs_add(cli_pairs *pairs, const cli_pair *pair)
{
    size_t capacity = pairs->capacity;
    cli_pair *grown = qr_grow(pairs->items, &capacity, pairs->n + 1, sizeof *grown);
    if (grown == NULL) return 0;
    pairs->items = grown;
    pairs->capacity = capacity;
    pairs->items[pairs->n++] = *pair;
    return 1;
}

int cli_pairs_finish(cli_pairs *pairs)
{
    pairs->documents = qr_calloc(pairs->n, sizeof *pairs->documents);
    pairs->queries = qr_calloc(pairs->n, sizeof *pairs->queries);
    if (pairs->documents == NULL || pairs->queries == NULL) return 0;
    for (size_t i = 0; i < pairs->n; i++) {
        pairs->documents[i] = pairs->items[i].document;
        if (i == 0 || !cli_pair_same_query(&pairs->items[i - 1], &pairs->items[i]))
            pairs->queries[pairs->n_queries++] = cli_pair_query(&pairs->items[i], &pairs->documents[i]);
        pairs->queries[pairs->n_queries - 1].n_documents++;
    }
    return 1;
}

static int read_lines(cli_pairs *pairs, const cli_args *args, cli_reader *reader, const char *path)
{
    for (size_t number = 1;; number++) {
        const char *line;
        size_t len;
        cli_pair pair;
        qr_error err = {0};
        cli_line got = cli_reader_next(reader, 1, &line, &len);
        if (got == CLI_LINE_END) break;
        if (got != CLI_LINE) {
            cli_error(args, "%s:%zu: %s", path, number, got == CLI_LINE_TOO_LONG ? "the line is too long" : strerror(errno));
            return CLI_BAD_INPUT;
        }
        if (strspn(line, " \t\r") >= len) continue;
        qr_status status = cli_pair_parse(&pair, line, len, &err);
        if (status == QR_OK && pairs->n >= MAX_PAIRS) status = qr_fail(&err, QR_E_INPUT, "expected at most %d pairs", MAX_PAIRS);
        if (status == QR_OK && !cli_pairs_add(pairs, &pair)) status = qr_fail(&err, QR_E_MEMORY, "out of memory");
        if (status != QR_OK) {
            json_decref(pair.json);
            cli_error(args, "%s:%zu: %s", path, number, err.msg);
            return status == QR_E_MEMORY ? CLI_FAILURE : CLI_BAD_INPUT;
        }
    }
    if (pairs->n == 0) {
        cli_error(args, "%s: expected lines of JSON, found none", path);
        return CLI_BAD_INPUT;
    }
    if (cli_pairs_finish(pairs)) return CLI_OK;
    cli_error(args, "out of memory");
    return CLI_FAILURE;
}

int cli_pairs_read(cli_pairs *pairs, const cli_args *args, const char *path)
{
    int is_stdin = strcmp(path, "-") == 0;
    cli_reader reader = {.fd = is_stdin ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC), .max_line = MAX_LINE_BYTES};
    *pairs = (cli_pairs){0};
    if (reader.fd < 0) {
        cli_error(args, "%s: cannot open: %s", path, strerror(errno));
        return CLI_BAD_INPUT;
    }
    int code = read_lines(pairs, args, &reader, is_stdin ? "standard input" : path);
    cli_reader_deinit(&reader);
    if (!is_stdin) close(reader.fd);
    return code;
}

void cli_pairs_deinit(cli_pairs *pairs)
{
    for (size_t i = 0; i < pairs->n; i++) json_decref(pairs->items[i].json);
    qr_free(pairs->items);
    qr_free(pairs->documents);
    qr_free(pairs->queries);
    *pairs = (cli_pairs){0};
}
