/* See log.h. */
#define _GNU_SOURCE
#include "server/log.h"

#include "base/buf.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *const names[] = {"", "error", "warning", "info", "debug"};

static void format_time(char out[32])
{
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    size_t n = strftime(out, 24, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(out + n, 32 - n, ".%03dZ", (int) (now.tv_nsec / 1000000));
}

/* In one write, so that lines of several threads do not mix. A log that cannot be written is no reason to stop serving. */
static void put_line(qr_buf *line)
{
    qr_buf_add(line, "\n", 1);
    if (!line->failed && write(STDERR_FILENO, line->data, line->n) < 0) {
    }
    qr_buf_deinit(line);
}

void sv_log_event(const sv_log *log, qr_log_level level, const char *event, const char *text,
                  void (*write_fields)(qr_json_out *json, const void *arg), const void *arg)
{
    qr_buf line = {0};
    char now[32];
    if (level > (log->level != 0 ? log->level : QR_LOG_INFO)) return;
    format_time(now);
    if (log->json) {
        qr_json_out json = {.write = qr_buf_write, .arg = &line, .spaced = 1};
        qr_out_open(&json, NULL, '{');
        qr_out_string(&json, "time", now);
        qr_out_string(&json, "level", names[level]);
        qr_out_string(&json, "event", event);
        if (write_fields != NULL) write_fields(&json, arg);
        else qr_out_string(&json, "message", text);
        qr_out_close(&json, '}');
    } else {
        qr_buf_printf(&line, "%s %-7s ", now, names[level]);
        /* A message may quote what a client sent: one line stays one line. */
        for (const char *p = text; *p != 0; p++) qr_buf_add(&line, (unsigned char) *p < ' ' || *p == 0x7F ? "?" : p, 1);
    }
    put_line(&line);
}

void sv_log_message(void *log, qr_log_level level, const char *message) { sv_log_event(log, level, "message", message, NULL, NULL); }
