/* Formatting of errors. Kept free of allocation so that an out-of-memory error can always be reported. */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

qr_status qr_fail(qr_error *err, qr_status code, const char *format, ...)
{
    if (err != NULL) {
        va_list args;
        va_start(args, format);
        err->code = code;
        vsnprintf(err->msg, sizeof err->msg, format, args);
        va_end(args);
    }
    return code;
}

qr_status qr_fail_prefix(qr_error *err, qr_status code, const char *format, ...)
{
    if (err != NULL) {
        char inner[sizeof err->msg];
        va_list args;
        memcpy(inner, err->msg, sizeof inner);
        va_start(args, format);
        vsnprintf(err->msg, sizeof err->msg - 2, format, args);
        va_end(args);
        strcat(err->msg, ": ");
        strncat(err->msg, inner, sizeof err->msg - 1 - strlen(err->msg));
        err->code = code;
    }
    return code;
}

static const struct {
    const char *text;
    int http;
} statuses[] = {
#define QR_X(name, http, text) {text, http},
    QR_STATUS_MAP(QR_X)
#undef QR_X
};

const char *qr_status_text(qr_status code)
{
    size_t i = (size_t) code;
    return i < sizeof statuses / sizeof statuses[0] ? statuses[i].text : "unknown status";
}

int qr_status_http(qr_status code)
{
    size_t i = (size_t) code;
    return i < sizeof statuses / sizeof statuses[0] ? statuses[i].http : 500;
}
