/* Log lines on standard error: text for people or one JSON object each for machines. Never the texts of requests. */
#ifndef QR_SERVER_LOG_H
#define QR_SERVER_LOG_H

#include "base/json_out.h"
#include "qwen_rerank.h"

typedef struct sv_log {
    int json;
    qr_log_level level; /* 0: info */
} sv_log;

/* A qr_log_fn; `log` is an sv_log. */
void sv_log_message(void *log, qr_log_level level, const char *message);

/* One line of fields: `write` adds them to an open JSON object; `text` is the same for people. */
void sv_log_event(const sv_log *log, qr_log_level level, const char *event, const char *text,
                  void (*write)(qr_json_out *json, const void *arg), const void *arg);

#endif
