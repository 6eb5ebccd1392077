/* Lines as they arrive, see input.h. */
#define _GNU_SOURCE
#include "base/mem.h"
#include "cli/input.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

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
