/* JSON that we did not write, read with jansson, and what error messages say about it. Every text from such a file passes through a label
 * before it reaches a message, so that a message stays one short printable line. */
#ifndef QR_BASE_JSON_IN_H
#define QR_BASE_JSON_IN_H

#include "base/error.h"

#include <jansson.h>

/* `path` is only for messages. Exactly one JSON object, no duplicate keys. The caller ends with json_decref(*root). */
qr_status qr_json_parse(json_t **root, const char *text, size_t len, const char *path, qr_error *err);
/* The same for a whole file of at most max_bytes. */
qr_status qr_json_read(json_t **root, const char *path, size_t max_bytes, qr_error *err);

/* JSON of users and clients, any value: what is merely broken text in it, invalid UTF-8 and escapes of half a surrogate pair, is read as
 * U+FFFD, and *replaced becomes 1 (else it stays). One bad character must not refuse a thousand documents. The last of duplicate keys
 * counts. E_INPUT says where it stops being JSON. */
qr_status qr_json_parse_text(json_t **out, const char *text, size_t len, int *replaced, qr_error *err);

typedef struct qr_label {
    char text[104];
} qr_label;
/* Control characters become '?', a long text is cut and ends in "...". */
qr_label qr_label_of(const char *text);
/* What was found, for example `12`, `"text"`, `a list` or, for NULL, `nothing`. */
qr_label qr_json_label(const json_t *value);

#endif
