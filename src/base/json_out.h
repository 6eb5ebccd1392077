/* JSON that we write: straight to wherever it goes, value by value. jansson writes every number of a document with one precision; scores
 * need 17 digits and margins 9. All strings are repaired to valid UTF-8. */
#ifndef QR_BASE_JSON_OUT_H
#define QR_BASE_JSON_OUT_H

#include <stddef.h>
#include <stdint.h>

typedef struct qr_json_out {
    void (*write)(void *arg, const char *text, size_t len);
    void *arg;
    int spaced;   /* a space after ':' and ',' */
    int pretty;   /* values of the outer two levels on lines of their own */
    int lines;    /* containers at the top end their line */
    int depth, n; /* n: values so far in the innermost container */
} qr_json_out;

void qr_out_open(qr_json_out *json, const char *key, char bracket); /* '{' or '['; key NULL inside an array or at the top */
void qr_out_close(qr_json_out *json, char bracket);                 /* '}' or ']' */
void qr_out_text(qr_json_out *json, const char *key, const char *text, size_t len);
void qr_out_string(qr_json_out *json, const char *key, const char *text); /* NULL text gives null */
void qr_out_signed(qr_json_out *json, const char *key, int64_t value);
void qr_out_int(qr_json_out *json, const char *key, uint64_t value);
void qr_out_real(qr_json_out *json, const char *key, double value, int digits); /* significant digits; the value is finite */
void qr_out_bool(qr_json_out *json, const char *key, int value);

#endif
