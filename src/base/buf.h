/* A text that grows. Running out of memory is remembered instead of reported at each step: ask once at the end. */
#ifndef QR_BASE_BUF_H
#define QR_BASE_BUF_H

#include <stddef.h>

typedef struct qr_buf {
    char *data;
    size_t n, capacity;
    int failed; /* out of memory: the content is incomplete */
} qr_buf;

void qr_buf_add(qr_buf *buf, const char *data, size_t n);
void qr_buf_printf(qr_buf *buf, const char *format, ...) __attribute__((format(printf, 2, 3)));
void qr_buf_deinit(qr_buf *buf);
/* A sink for qr_json_out. */
void qr_buf_write(void *buf, const char *data, size_t n);

#endif
