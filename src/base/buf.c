/* See buf.h. */
#include "base/buf.h"

#include "base/mem.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

void qr_buf_add(qr_buf *buf, const char *data, size_t n)
{
    if (buf->failed || n == 0) return;
    char *grown = n <= SIZE_MAX - buf->n ? qr_grow(buf->data, &buf->capacity, buf->n + n, 1) : NULL;
    if (grown == NULL) {
        buf->failed = 1;
        return;
    }
    buf->data = grown;
    memcpy(buf->data + buf->n, data, n);
    buf->n += n;
}

void qr_buf_printf(qr_buf *buf, const char *format, ...)
{
    char text[1024];
    va_list values;
    va_start(values, format);
    int n = vsnprintf(text, sizeof text, format, values);
    va_end(values);
    if (n < 0 || (size_t) n >= sizeof text) buf->failed = 1; /* for short pieces only */
    else qr_buf_add(buf, text, (size_t) n);
}

void qr_buf_deinit(qr_buf *buf)
{
    qr_free(buf->data);
    *buf = (qr_buf){0};
}

void qr_buf_write(void *buf, const char *data, size_t n) { qr_buf_add(buf, data, n); }
