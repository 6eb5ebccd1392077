/* Lines as they arrive, and JSON in them, see input.h. */
#define _GNU_SOURCE
#include "base/mem.h"
#include "cli/input.h"
#include "cli/output.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

static int hex4(const char *p, unsigned *out)
{
    unsigned value = 0;
    for (int i = 0; i < 4; i++) {
        char c = p[i];
        unsigned digit = c >= '0' && c <= '9' ? (unsigned) (c - '0') : (unsigned) ((c | 32) - 'a') + 10;
        if (digit > 15) return 0;
        value = value << 4 | digit;
    }
    *out = value;
    return 1;
}

/* If text[i] begins an escape \uXXXX with a value in [low, low + 0x400), returns 1. */
static int is_surrogate(const char *text, size_t len, size_t i, unsigned low)
{
    unsigned value;
    return i + 6 <= len && text[i] == '\\' && text[i + 1] == 'u' && hex4(text + i + 2, &value) && value >= low && value < low + 0x400;
}

/* Finds the next escape of a surrogate without its other half at or after `i`; returns `len` if there is none. Backslashes occur only in
 * strings (elsewhere the parser refuses them anyway), so strings need not be told apart from the rest. */
static size_t find_lone_surrogate(const char *text, size_t len, size_t i)
{
    for (;;) {
        const char *backslash = i < len ? memchr(text + i, '\\', len - i) : NULL;
        if (backslash == NULL) return len;
        i = (size_t) (backslash - text);
        if (is_surrogate(text, len, i, 0xD800)) {
            if (!is_surrogate(text, len, i + 6, 0xDC00)) return i;
            i += 12;
        } else if (is_surrogate(text, len, i, 0xDC00)) {
            return i;
        } else {
            i += 2;
        }
    }
}

/* A repaired copy for qr_free, or NULL when out of memory. growth: bytes by which replacements of invalid UTF-8 lengthen the text. */
static char *repair(const char *line, size_t *len, size_t growth)
{
    char *copy = qr_calloc(*len + growth + 1, 1);
    size_t n = 0;
    if (copy == NULL) return NULL;
    for (size_t i = 0; i < *len;) {
        int32_t code;
        size_t used = cli_utf8_next(line + i, *len - i, &code);
        memcpy(copy + n, code < 0 ? "\xEF\xBF\xBD" : line + i, code < 0 ? 3 : used);
        n += code < 0 ? 3 : used;
        i += used;
    }
    for (size_t i = find_lone_surrogate(copy, n, 0); i < n; i = find_lone_surrogate(copy, n, i + 6)) memcpy(copy + i, "\\ufffd", 6);
    *len = n;
    return copy;
}

qr_status cli_json_parse(json_t **out, const char *line, size_t len, int *replaced, qr_error *err)
{
    size_t growth = 0;
    int broken = find_lone_surrogate(line, len, 0) < len;
    char *copy = NULL;
    json_error_t reason;
    *out = NULL;
    for (size_t i = 0; i < len;) {
        int32_t code;
        size_t used = cli_utf8_next(line + i, len - i, &code);
        if (code < 0) {
            broken = 1;
            growth += 3 - used; /* an invalid sequence has at most three bytes */
        }
        i += used;
    }
    if (broken) {
        if ((copy = repair(line, &len, growth)) == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for a line of %zu bytes", len);
        line = copy;
        *replaced = 1;
    }
    *out = json_loadb(line, len, JSON_ALLOW_NUL | JSON_DECODE_ANY, &reason);
    qr_free(copy);
    if (*out != NULL) return QR_OK;
    if (json_error_code(&reason) == json_error_out_of_memory) return qr_fail(err, QR_E_MEMORY, "no memory for a line of %zu bytes", len);
    return qr_fail(err, QR_E_INPUT, "not JSON: %s, column %d", reason.text, reason.column);
}

qr_status cli_read_all(int fd, const char *name, size_t max_bytes, char **block, size_t *len, qr_error *err)
{
    size_t capacity = 0;
    *block = NULL;
    *len = 0;
    for (;;) {
        if (*len + (64 << 10) > capacity) {
            char *grown = qr_grow(*block, &capacity, *len + (64 << 10), 1);
            if (grown == NULL) {
                qr_free(*block);
                *block = NULL;
                return qr_fail(err, QR_E_MEMORY, "%s: no memory for %zu bytes", name, *len + (64 << 10));
            }
            *block = grown;
        }
        ssize_t n = read(fd, *block + *len, capacity - *len);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 || *len + (size_t) n > max_bytes) {
            qr_status status = n < 0 ? qr_fail(err, QR_E_IO, "%s: cannot read: %s", name, strerror(errno))
                                     : qr_fail(err, QR_E_INPUT, "%s: expected at most %zu bytes", name, max_bytes);
            qr_free(*block);
            *block = NULL;
            return status;
        }
        if (n == 0) return QR_OK;
        *len += (size_t) n;
    }
}

static int readable_now(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) > 0;
}

/* Makes room and reads once. 1: got something or the end, 0: failed. */
static int fill(cli_reader *r)
{
    enum { CHUNK = 64 << 10 };
    if (r->begin > 0 && (r->begin == r->end || r->capacity - r->end < CHUNK)) {
        memmove(r->buffer, r->buffer + r->begin, r->end - r->begin);
        r->scanned -= r->begin;
        r->end -= r->begin;
        r->begin = 0;
    }
    if (r->capacity - r->end < CHUNK) {
        char *grown = qr_grow(r->buffer, &r->capacity, r->end + CHUNK, 1);
        if (grown == NULL) {
            errno = ENOMEM;
            return 0;
        }
        r->buffer = grown;
    }
    ssize_t n;
    do n = read(r->fd, r->buffer + r->end, r->capacity - r->end);
    while (n < 0 && errno == EINTR);
    if (n < 0) return 0;
    if (n == 0) r->eof = 1;
    r->end += (size_t) n;
    return 1;
}

cli_line cli_reader_next(cli_reader *r, int wait, const char **line, size_t *len)
{
    for (;;) {
        const char *end = r->scanned < r->end ? memchr(r->buffer + r->scanned, '\n', r->end - r->scanned) : NULL;
        size_t stop = end != NULL ? (size_t) (end - r->buffer) : r->end;
        r->scanned = stop;
        if (end != NULL || (r->eof && (stop > r->begin || r->skipping))) {
            *line = r->buffer + r->begin;
            *len = stop - r->begin;
            r->begin = r->scanned = stop + (end != NULL);
            int too_long = r->skipping || *len > r->max_line;
            r->skipping = 0;
            if (too_long) return CLI_LINE_TOO_LONG;
            if (*len > 0 && (*line)[*len - 1] == '\r') --*len;
            return CLI_LINE;
        }
        if (r->eof) return CLI_LINE_END;
        if (r->skipping || r->end - r->begin > r->max_line) { /* held no longer: only its end matters now */
            r->skipping = 1;
            r->begin = r->scanned = r->end = 0;
        }
        if (!wait && !readable_now(r->fd)) return CLI_LINE_LATER;
        if (!fill(r)) return CLI_LINE_FAILED;
    }
}

void cli_reader_deinit(cli_reader *reader)
{
    qr_free(reader->buffer);
    *reader = (cli_reader){0};
}
