/* See json_out.h. */
#include "base/json_out.h"

#include "base/utf8.h"

#include <stdio.h>
#include <string.h>

static void put(qr_json_out *json, const char *text) { json->write(json->arg, text, strlen(text)); }

static void quote(qr_json_out *json, const char *text, size_t len)
{
    size_t plain = 0; /* begin of what needs no change: written in one piece */
    put(json, "\"");
    for (size_t i = 0; i < len;) {
        uint32_t code;
        char escape[8] = "";
        size_t n = qr_utf8_decode((const unsigned char *) text + i, len - i, &code);
        if (code == QR_UTF8_INVALID) strcpy(escape, "\xEF\xBF\xBD");
        else if (code == '"' || code == '\\') snprintf(escape, sizeof escape, "\\%c", (int) code);
        else if (code == '\n') strcpy(escape, "\\n");
        else if (code == '\t') strcpy(escape, "\\t");
        else if (code == '\r') strcpy(escape, "\\r");
        else if (code < 0x20 || code == 0x7F) snprintf(escape, sizeof escape, "\\u%04x", (unsigned) code);
        if (escape[0] != 0) {
            if (i > plain) json->write(json->arg, text + plain, i - plain);
            put(json, escape);
            plain = i + n;
        }
        i += n;
    }
    if (len > plain) json->write(json->arg, text + plain, len - plain);
    put(json, "\"");
}

static void new_line(qr_json_out *json)
{
    char line[8];
    snprintf(line, sizeof line, "\n%*s", 2 * json->depth, "");
    put(json, line);
}

static void begin_value(qr_json_out *json, const char *key)
{
    if (json->n > 0) put(json, ",");
    if (json->pretty && json->depth > 0 && json->depth <= 2) new_line(json);
    else if (json->n > 0 && json->spaced) put(json, " ");
    if (key != NULL) {
        quote(json, key, strlen(key));
        put(json, json->spaced ? ": " : ":");
    }
    json->n++;
}

void qr_out_open(qr_json_out *json, const char *key, char bracket)
{
    begin_value(json, key);
    json->write(json->arg, &bracket, 1);
    json->depth++;
    json->n = 0;
}

void qr_out_close(qr_json_out *json, char bracket)
{
    int empty = json->n == 0;
    json->depth--;
    if (json->pretty && json->depth < 2 && !empty) new_line(json);
    json->write(json->arg, &bracket, 1);
    json->n = 1; /* the container itself is a value of the outer one */
    if (json->depth == 0 && json->lines) {
        put(json, "\n");
        json->n = 0;
    }
}

void qr_out_text(qr_json_out *json, const char *key, const char *text, size_t len)
{
    begin_value(json, key);
    quote(json, text, len);
}

void qr_out_string(qr_json_out *json, const char *key, const char *text)
{
    begin_value(json, key);
    if (text != NULL) quote(json, text, strlen(text));
    else put(json, "null");
}

void qr_out_int(qr_json_out *json, const char *key, uint64_t value)
{
    char text[24];
    begin_value(json, key);
    snprintf(text, sizeof text, "%llu", (unsigned long long) value);
    put(json, text);
}

void qr_out_signed(qr_json_out *json, const char *key, int64_t value)
{
    char text[24];
    begin_value(json, key);
    snprintf(text, sizeof text, "%lld", (long long) value);
    put(json, text);
}

void qr_out_real(qr_json_out *json, const char *key, double value, int digits)
{
    char text[40];
    begin_value(json, key);
    snprintf(text, sizeof text, "%.*g", digits, value);
    put(json, text);
    if (strpbrk(text, ".en") == NULL) put(json, ".0"); /* "1" would be read as an integer by typed readers */
}

void qr_out_bool(qr_json_out *json, const char *key, int value)
{
    begin_value(json, key);
    put(json, value ? "true" : "false");
}
