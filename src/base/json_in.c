/* See json_in.h. jansson suits hostile input: it bounds nesting (2,048), rejects invalid UTF-8, NUL in strings, numbers out of range and
 * text after the value, and seeds its hash table so that chosen keys cannot collide. Memory grows with the text, whose size the caller
 * bounds. Its own allocations do not pass through mem.c: the hook to redirect them is global to the process, and a library must not
 * take it from the program that it is part of. */
#include "base/json_in.h"

#include "base/file.h"
#include "base/mem.h"
#include "base/utf8.h"

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

/* ---- broken text ----------------------------------------------------------------------------------------------------------------- */

static int hex4(const char *p, unsigned *out)
{
    unsigned value = 0;
    for (int i = 0; i < 4; i++) {
        char c = p[i];
        unsigned digit = c >= '0' && c <= '9' ? (unsigned) (c - '0') : (unsigned) ((c | 32) - 'a') + 10;
        if (digit > 15) return 0;
        value = value << 4 | digit;
    }
    *out = value;
    return 1;
}

/* If text[i] begins an escape \uXXXX with a value in [low, low + 0x400), returns 1. */
static int is_surrogate(const char *text, size_t len, size_t i, unsigned low)
{
    unsigned value;
    return i + 6 <= len && text[i] == '\\' && text[i + 1] == 'u' && hex4(text + i + 2, &value) && value >= low && value < low + 0x400;
}

/* Finds the next escape of a surrogate without its other half at or after `i`; returns `len` if there is none. Backslashes occur only in
 * strings (elsewhere the parser refuses them anyway), so strings need not be told apart from the rest. */
static size_t find_lone_surrogate(const char *text, size_t len, size_t i)
{
    for (;;) {
        const char *backslash = i < len ? memchr(text + i, '\\', len - i) : NULL;
        if (backslash == NULL) return len;
        i = (size_t) (backslash - text);
        if (is_surrogate(text, len, i, 0xD800)) {
            if (!is_surrogate(text, len, i + 6, 0xDC00)) return i;
            i += 12;
        } else if (is_surrogate(text, len, i, 0xDC00)) {
            return i;
        } else {
            i += 2;
        }
    }
}

/* A repaired copy for qr_free, or NULL when out of memory. growth: bytes by which replacements of invalid UTF-8 lengthen the text. */
static char *repair(const char *text, size_t *len, size_t growth)
{
    char *copy = qr_calloc(*len + growth + 1, 1);
    size_t n = 0;
    if (copy == NULL) return NULL;
    for (size_t i = 0; i < *len;) {
        uint32_t code;
        size_t used = qr_utf8_decode((const unsigned char *) text + i, *len - i, &code);
        int valid = code != QR_UTF8_INVALID;
        memcpy(copy + n, valid ? text + i : "\xEF\xBF\xBD", valid ? used : 3);
        n += valid ? used : 3;
        i += used;
    }
    for (size_t i = find_lone_surrogate(copy, n, 0); i < n; i = find_lone_surrogate(copy, n, i + 6)) memcpy(copy + i, "\\ufffd", 6);
    *len = n;
    return copy;
}

qr_status qr_json_parse_text(json_t **out, const char *text, size_t len, int *replaced, qr_error *err)
{
    size_t growth = 0;
    int broken = find_lone_surrogate(text, len, 0) < len;
    char *copy = NULL;
    json_error_t reason;
    *out = NULL;
    for (size_t i = 0; i < len;) {
        uint32_t code;
        size_t used = qr_utf8_decode((const unsigned char *) text + i, len - i, &code);
        if (code == QR_UTF8_INVALID) {
            broken = 1;
            growth += 3 - used; /* an invalid sequence has at most three bytes */
        }
        i += used;
    }
    if (broken) {
        if ((copy = repair(text, &len, growth)) == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for %zu bytes of JSON", len);
        text = copy;
        *replaced = 1;
    }
    *out = json_loadb(text, len, JSON_ALLOW_NUL | JSON_DECODE_ANY, &reason);
    qr_free(copy);
    if (*out != NULL) return QR_OK;
    if (json_error_code(&reason) == json_error_out_of_memory) return qr_fail(err, QR_E_MEMORY, "no memory for %zu bytes of JSON", len);
    return qr_fail(err, QR_E_INPUT, "not JSON: %s, line %d, column %d", reason.text, reason.line, reason.column);
}
