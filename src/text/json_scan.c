/* See json_scan.h. RFC 8259, with three restrictions: no byte order mark, keys unique, depth bounded. */
#include "text/json_scan.h"

#include "base/mem.h"
#include "base/utf8.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void qr_json_init(qr_json *j, const void *text, size_t len, const char *name, qr_error *err)
{
    static const unsigned char empty[1];
    *j = (qr_json){.text = len ? text : empty, .name = name, .err = err};
    j->p = j->text;
    j->end = j->text + len;
}

void qr_json_deinit(qr_json *j)
{
    qr_free(j->decoded);
    j->decoded = NULL;
}

int qr_json_fail(qr_json *j, qr_status code, const char *format, ...)
{
    if (j->status != QR_OK) return 0;
    char message[400];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    j->status = qr_fail(j->err, code, "%s: byte %zu: %s", j->name, (size_t) (j->p - j->text), message);
    return 0;
}

/* "expected <what>, found <the next byte or bytes>" */
static int unexpected(qr_json *j, const char *what)
{
    if (j->p == j->end) return qr_json_fail(j, QR_E_FORMAT, "expected %s, found the end of the file", what);
    unsigned c = *j->p;
    if (c > 0x20 && c < 0x7F) return qr_json_fail(j, QR_E_FORMAT, "expected %s, found '%c'", what, (int) c);
    return qr_json_fail(j, QR_E_FORMAT, "expected %s, found byte 0x%02X", what, c);
}

static void skip_space(qr_json *j)
{
    const unsigned char *p = j->p, *end = j->end;
    if (p < end && *p == '\n') { /* indentation is most of a pretty-printed file: eight blanks at a time */
        uint64_t word;
        p++;
        while (end - p >= 8 && (memcpy(&word, p, 8), word == 0x2020202020202020u)) p += 8;
    }
    while (p < end && (*p == ' ' || *p == '\n' || *p == '\r' || *p == '\t')) p++;
    j->p = p;
}

int qr_json_peek(qr_json *j)
{
    if (j->status != QR_OK) return 0;
    skip_space(j);
    return j->p < j->end ? *j->p : 0;
}

int qr_json_begin(qr_json *j, char open)
{
    if (j->status != QR_OK) return 0;
    if (qr_json_peek(j) != open || j->p == j->end) return unexpected(j, open == '{' ? "an object" : "an array");
    if (j->depth == QR_JSON_MAX_DEPTH) return qr_json_fail(j, QR_E_FORMAT, "expected at most %d nested values", QR_JSON_MAX_DEPTH);
    j->p++;
    j->first[++j->depth] = 1;
    return 1;
}

/* Handles the separator or the end of the innermost array or object. */
static int next(qr_json *j, char close)
{
    if (j->status != QR_OK) return 0;
    int c = qr_json_peek(j);
    if (c == close && c != 0) {
        j->p++;
        j->depth--;
        return 0;
    }
    if (j->first[j->depth]) {
        j->first[j->depth] = 0;
        return 1;
    }
    if (c != ',') return unexpected(j, close == '}' ? "',' or '}'" : "',' or ']'");
    j->p++;
    return 1;
}

int qr_json_element(qr_json *j) { return next(j, ']'); }

int qr_json_member(qr_json *j, const unsigned char **key, size_t *len)
{
    if (!next(j, '}') || !qr_json_string(j, key, len)) return 0;
    if (qr_json_peek(j) != ':') return unexpected(j, "':'");
    j->p++;
    return 1;
}

int qr_json_known_member(qr_json *j, const char *what, const char *const *keys, unsigned n_keys, unsigned *seen, unsigned *index)
{
    const unsigned char *key;
    size_t len;
    if (!qr_json_member(j, &key, &len)) return 0;
    for (unsigned i = 0; i < n_keys; i++) {
        if (strlen(keys[i]) != len || memcmp(keys[i], key, len) != 0) continue;
        if (*seen & 1u << i) return qr_json_fail(j, QR_E_FORMAT, "%s: expected \"%s\" once, found it again", what, keys[i]);
        *seen |= 1u << i;
        *index = i;
        return 1;
    }
    return qr_json_fail(j, QR_E_UNSUPPORTED, "%s: found unknown field \"%.*s\"", what, (int) (len < 64 ? len : 64), (const char *) key);
}

static int hex4(const unsigned char *p, const unsigned char *end, uint32_t *value)
{
    if (end - p < 4) return 0;
    *value = 0;
    for (int i = 0; i < 4; i++) {
        unsigned c = p[i], lower = c | 0x20;
        if (c >= '0' && c <= '9') *value = *value << 4 | (c - '0');
        else if (lower >= 'a' && lower <= 'f') *value = *value << 4 | (lower - 'a' + 10);
        else return 0;
    }
    return 1;
}

/* j->p is after the backslash. Appends to j->decoded, which has room. */
static int escape(qr_json *j, size_t *n)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (j->p == j->end) return unexpected(j, "an escape");
    const char *simple = *j->p ? strchr(from, *j->p) : NULL;
    if (simple != NULL) {
        j->decoded[(*n)++] = (unsigned char) to[simple - from];
        j->p++;
        return 1;
    }
    uint32_t cp, low;
    if (*j->p != 'u') return unexpected(j, "an escape");
    if (!hex4(j->p + 1, j->end, &cp)) return qr_json_fail(j, QR_E_FORMAT, "expected four hexadecimal digits after \\u");
    j->p += 5;
    if (cp >= 0xD800 && cp < 0xDC00 && j->end - j->p >= 6 && j->p[0] == '\\' && j->p[1] == 'u' && hex4(j->p + 2, j->end, &low) &&
        low >= 0xDC00 && low < 0xE000) {
        cp = 0x10000 + ((cp - 0xD800) << 10) + (low - 0xDC00);
        j->p += 6;
    }
    if (cp >= 0xD800 && cp < 0xE000) return qr_json_fail(j, QR_E_FORMAT, "found half of a surrogate pair, \\u%04X", (unsigned) cp);
    *n += qr_utf8_encode(cp, j->decoded + *n);
    return 1;
}

/* j->p is at the first backslash of a string that began at `start`. */
static int string_with_escapes(qr_json *j, const unsigned char *start, const unsigned char **text, size_t *len)
{
    const unsigned char *close = j->p;
    while (close < j->end && *close != '"') close += *close == '\\' && j->end - close > 1 ? 2 : 1;
    unsigned char *grown = qr_grow(j->decoded, &j->decoded_capacity, (size_t) (close - start) + 1, 1); /* an escape only shrinks */
    if (grown == NULL) return qr_json_fail(j, QR_E_MEMORY, "no memory for a string of %zu bytes", (size_t) (close - start));
    j->decoded = grown;
    size_t n = (size_t) (j->p - start);
    memcpy(j->decoded, start, n);
    for (;;) {
        if (j->p == j->end) return unexpected(j, "'\"'");
        unsigned c = *j->p;
        if (c == '"') break;
        if (c < 0x20) return unexpected(j, "a character of a string");
        if (c == '\\') {
            j->p++;
            if (!escape(j, &n)) return 0;
            continue;
        }
        uint32_t cp;
        size_t size = qr_utf8_decode(j->p, (size_t) (j->end - j->p), &cp);
        if (cp == QR_UTF8_INVALID) return unexpected(j, "UTF-8");
        memcpy(j->decoded + n, j->p, size);
        n += size;
        j->p += size;
    }
    j->p++;
    *text = j->decoded;
    *len = n;
    return 1;
}

int qr_json_string(qr_json *j, const unsigned char **text, size_t *len)
{
    if (j->status != QR_OK) return 0;
    if (qr_json_peek(j) != '"') return unexpected(j, "a string");
    const unsigned char *start = ++j->p;
    for (;;) {
        if (j->p == j->end) return unexpected(j, "'\"'");
        unsigned c = *j->p;
        if (c == '"') break;
        if (c == '\\') return string_with_escapes(j, start, text, len);
        if (c < 0x20) return unexpected(j, "a character of a string");
        uint32_t cp;
        size_t size = qr_utf8_decode(j->p, (size_t) (j->end - j->p), &cp);
        if (cp == QR_UTF8_INVALID) return unexpected(j, "UTF-8");
        j->p += size;
    }
    *text = start;
    *len = (size_t) (j->p++ - start);
    return 1;
}

static int digit(const qr_json *j) { return j->p < j->end && *j->p >= '0' && *j->p <= '9'; }

int qr_json_uint(qr_json *j, uint32_t *value)
{
    if (j->status != QR_OK) return 0;
    qr_json_peek(j);
    if (!digit(j)) return unexpected(j, "a whole number");
    const unsigned char *start = j->p;
    uint64_t v = 0;
    while (digit(j)) {
        v = v * 10 + (unsigned) (*j->p++ - '0');
        if (v > UINT32_MAX) return qr_json_fail(j, QR_E_FORMAT, "expected a number up to %u", UINT32_MAX);
    }
    if (*start == '0' && j->p - start > 1) return qr_json_fail(j, QR_E_FORMAT, "found a number with a leading zero");
    if (j->p < j->end && (*j->p == '.' || *j->p == 'e' || *j->p == 'E')) return unexpected(j, "a whole number");
    *value = (uint32_t) v;
    return 1;
}

static int literal(qr_json *j, const char *word)
{
    size_t n = strlen(word);
    if (qr_json_peek(j) != word[0] || (size_t) (j->end - j->p) < n || memcmp(j->p, word, n) != 0) return 0;
    j->p += n;
    return 1;
}

int qr_json_bool(qr_json *j, int *value)
{
    if (j->status != QR_OK) return 0;
    *value = literal(j, "true");
    return *value || literal(j, "false") || unexpected(j, "true or false");
}

int qr_json_null(qr_json *j) { return j->status == QR_OK && literal(j, "null"); }

static int skip_number(qr_json *j)
{
    if (*j->p == '-') j->p++;
    if (!digit(j)) return unexpected(j, "a value");
    if (*j->p == '0') j->p++;
    else
        while (digit(j)) j->p++;
    if (j->p < j->end && *j->p == '.') {
        j->p++;
        if (!digit(j)) return unexpected(j, "a digit");
        while (digit(j)) j->p++;
    }
    if (j->p < j->end && (*j->p == 'e' || *j->p == 'E')) {
        j->p++;
        if (j->p < j->end && (*j->p == '+' || *j->p == '-')) j->p++;
        if (!digit(j)) return unexpected(j, "a digit");
        while (digit(j)) j->p++;
    }
    return 1;
}

static int skip_object(qr_json *j)
{
    /* Keys are compared as they are written: two spellings of one key pass, which is harmless in content that nobody reads. */
    struct {
        const unsigned char *text;
        size_t len;
    } keys[QR_JSON_MAX_SKIP_MEMBERS];
    size_t n = 0;
    if (!qr_json_begin(j, '{')) return 0;
    while (next(j, '}')) {
        qr_json_peek(j);
        const unsigned char *start = j->p, *key;
        size_t len;
        if (!qr_json_string(j, &key, &len)) return 0;
        len = (size_t) (j->p - start);
        for (size_t i = 0; i < n; i++) {
            if (keys[i].len == len && memcmp(keys[i].text, start, len) == 0)
                return qr_json_fail(j, QR_E_FORMAT, "found a key of an object for the second time");
        }
        if (n == QR_JSON_MAX_SKIP_MEMBERS) return qr_json_fail(j, QR_E_FORMAT, "expected an object of at most %zu members", n);
        keys[n].text = start;
        keys[n++].len = len;
        if (qr_json_peek(j) != ':') return unexpected(j, "':'");
        j->p++;
        if (!qr_json_skip(j)) return 0;
    }
    return j->status == QR_OK;
}

int qr_json_skip(qr_json *j)
{
    const unsigned char *text;
    size_t len;
    int value;
    switch (qr_json_peek(j)) {
    case '{':
        return skip_object(j);
    case '[':
        if (!qr_json_begin(j, '[')) return 0;
        while (qr_json_element(j)) qr_json_skip(j); /* recursion is bounded by QR_JSON_MAX_DEPTH */
        return j->status == QR_OK;
    case '"':
        return qr_json_string(j, &text, &len);
    case 't':
    case 'f':
        return qr_json_bool(j, &value);
    case 'n':
        return qr_json_null(j) || unexpected(j, "null");
    default:
        if (j->status != QR_OK || j->p == j->end) return unexpected(j, "a value");
        return skip_number(j);
    }
}

int qr_json_finish(qr_json *j)
{
    if (j->status != QR_OK) return 0;
    qr_json_peek(j);
    return j->p == j->end || unexpected(j, "the end of the file");
}
