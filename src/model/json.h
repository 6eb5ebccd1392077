/* JSON of files that we did not write (configuration, tensor headers), read with jansson, and what error messages say about it. Every
 * text from such a file passes through a label before it reaches a message, so that a message stays one short printable line. */
#ifndef QR_MODEL_JSON_H
#define QR_MODEL_JSON_H

#include "base/error.h"

#include <jansson.h>

/* `path` is only for messages. Exactly one JSON object, no duplicate keys. The caller ends with json_decref(*root). */
qr_status qr_json_parse(json_t **root, const char *text, size_t len, const char *path, qr_error *err);
/* The same for a whole file of at most max_bytes. */
qr_status qr_json_read(json_t **root, const char *path, size_t max_bytes, qr_error *err);

typedef struct qr_label {
    char text[104];
} qr_label;
/* Control characters become '?', a long text is cut and ends in "...". */
qr_label qr_label_of(const char *text);
/* What was found, for example `12`, `"text"`, `a list` or, for NULL, `nothing`. */
qr_label qr_json_label(const json_t *value);

#endif
