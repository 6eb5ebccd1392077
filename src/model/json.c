/* See json.h. jansson suits hostile input: it bounds nesting (2,048), rejects invalid UTF-8, NUL in strings, numbers out of range and
 * text after the value, and seeds its hash table so that chosen keys cannot collide. Memory grows with the text, whose size the caller
 * bounds. Its own allocations do not pass through mem.c: the hook to redirect them is global to the process, and a library must not
 * take it from the program that it is part of. */
#include "model/json.h"

#include "base/file.h"
#include "base/mem.h"

#include <stdio.h>
#include <string.h>

qr_status qr_json_parse(json_t **root, const char *text, size_t len, const char *path, qr_error *err)
{
    json_error_t e;
    *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &e);
    if (*root == NULL && json_error_code(&e) == json_error_out_of_memory)
        return qr_fail(err, QR_E_MEMORY, "%s: no memory for its JSON", path);
    if (*root == NULL)
        return qr_fail(err, QR_E_FORMAT, "%s: expected JSON, found at line %d column %d (byte %d): %s", path, e.line, e.column, e.position,
                       qr_label_of(e.text).text);
    if (!json_is_object(*root)) {
        qr_fail(err, QR_E_FORMAT, "%s: expected a JSON object, found %s", path, qr_json_label(*root).text);
        json_decref(*root);
        *root = NULL;
        return QR_E_FORMAT;
    }
    return QR_OK;
}

qr_status qr_json_read(json_t **root, const char *path, size_t max_bytes, qr_error *err)
{
    char *text;
    size_t len;
    *root = NULL;
    qr_status status = qr_file_read(path, max_bytes, &text, &len, err);
    if (status == QR_OK) status = qr_json_parse(root, text, len, path, err);
    qr_free(text);
    return status;
}

qr_label qr_label_of(const char *text)
{
    qr_label label;
    size_t n = strlen(text), room = sizeof label.text - 1;
    size_t keep = n <= room ? n : room - 3;
    if (keep < n) /* not inside a UTF-8 sequence */
        while (keep > 0 && ((unsigned char) text[keep] & 0xC0) == 0x80) keep--;
    for (size_t i = 0; i < keep; i++) label.text[i] = (unsigned char) text[i] < 0x20 || text[i] == 0x7F ? '?' : text[i];
    strcpy(label.text + keep, keep < n ? "..." : "");
    return label;
}

qr_label qr_json_label(const json_t *value)
{
    qr_label label;
    if (value == NULL) return qr_label_of("nothing");
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return qr_label_of("an object");
    case JSON_ARRAY:
        return qr_label_of("a list");
    case JSON_STRING: {
        size_t room = sizeof label.text - 2;
        label = qr_label_of(json_string_value(value));
        size_t n = strlen(label.text);
        if (n > room) n = room - 1;
        memmove(label.text + 1, label.text, n);
        label.text[0] = '"';
        strcpy(label.text + 1 + n, n + 2 < sizeof label.text ? "\"" : "");
        return label;
    }
    case JSON_INTEGER:
        snprintf(label.text, sizeof label.text, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        return label;
    case JSON_REAL:
        snprintf(label.text, sizeof label.text, "%.17g", json_real_value(value));
        return label;
    case JSON_TRUE:
        return qr_label_of("true");
    case JSON_FALSE:
        return qr_label_of("false");
    default:
        return qr_label_of("null");
    }
}
