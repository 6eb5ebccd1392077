/* The one error pattern: callees fill a qr_error with qr_fail and return its status, callers only pass it on. */
#ifndef QR_BASE_ERROR_H
#define QR_BASE_ERROR_H

#include "qwen_rerank.h"

/* Fills *err (which may be NULL) and returns `code`. A message that does not fit is cut, never dropped. */
qr_status qr_fail(qr_error *err, qr_status code, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Puts "text: " before the message that a callee left, to say where it happened. Returns the code found in *err. */
qr_status qr_fail_prefix(qr_error *err, qr_status code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* 1 if a flag that another thread or a signal handler may set is there and set. */
static inline int qr_is_set(const volatile int *flag) { return flag != NULL && __atomic_load_n(flag, __ATOMIC_RELAXED) != 0; }

#endif
