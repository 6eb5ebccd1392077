/* Decoding of UTF-8: hostile input by the WHATWG rule, and text that is known to be valid without any check. */
#ifndef QR_BASE_UTF8_H
#define QR_BASE_UTF8_H

#include <stddef.h>
#include <stdint.h>

#define QR_UTF8_INVALID 0xFFFFFFFFu

/* Reads one code point from s[0 .. n), n > 0. Returns the bytes it takes. An invalid sequence gives QR_UTF8_INVALID and takes its maximal
 * valid beginning, at least one byte, as a decoder that writes one U+FFFD for each (WHATWG, Python "replace") does. Encoded surrogates are
 * invalid, byte by byte. */
static inline size_t qr_utf8_decode(const unsigned char *s, size_t n, uint32_t *cp)
{
    unsigned b = s[0];
    if (b < 0x80) {
        *cp = b;
        return 1;
    }
    *cp = QR_UTF8_INVALID;
    size_t len = b < 0xE0 ? 2 : b < 0xF0 ? 3 : 4;
    if (b < 0xC2 || b > 0xF4) return 1;
    /* The second byte's range excludes overlong forms, surrogates and what lies beyond U+10FFFF. */
    unsigned low = b == 0xE0 ? 0xA0 : b == 0xF0 ? 0x90 : 0x80, high = b == 0xED ? 0x9F : b == 0xF4 ? 0x8F : 0xBF;
    uint32_t value = b & (0x7Fu >> len);
    for (size_t i = 1; i < len; i++) {
        if (i >= n || s[i] < low || s[i] > high) return i;
        value = value << 6 | (s[i] & 0x3Fu);
        low = 0x80;
        high = 0xBF;
    }
    *cp = value;
    return len;
}

static inline int qr_utf8_is_valid(const char *text, size_t n)
{
    uint32_t cp;
    for (size_t i = 0; i < n;) {
        i += qr_utf8_decode((const unsigned char *) text + i, n - i, &cp);
        if (cp == QR_UTF8_INVALID) return 0;
    }
    return 1;
}

/* The same for text that is known to be valid. */
static inline size_t qr_utf8_decode_valid(const unsigned char *s, uint32_t *cp)
{
    uint32_t b = s[0];
    if (b < 0x80) {
        *cp = b;
        return 1;
    }
    if (b < 0xE0) {
        *cp = (b & 0x1F) << 6 | (s[1] & 0x3Fu);
        return 2;
    }
    if (b < 0xF0) {
        *cp = (b & 0x0F) << 12 | (s[1] & 0x3Fu) << 6 | (s[2] & 0x3Fu);
        return 3;
    }
    *cp = (b & 0x07) << 18 | (s[1] & 0x3Fu) << 12 | (s[2] & 0x3Fu) << 6 | (s[3] & 0x3Fu);
    return 4;
}

/* Writes a scalar value, at most 4 bytes; returns how many. */
static inline size_t qr_utf8_encode(uint32_t cp, unsigned char *out)
{
    if (cp < 0x80) {
        out[0] = (unsigned char) cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (unsigned char) (0xC0 | cp >> 6);
        out[1] = (unsigned char) (0x80 | (cp & 0x3F));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (unsigned char) (0xE0 | cp >> 12);
        out[1] = (unsigned char) (0x80 | (cp >> 6 & 0x3F));
        out[2] = (unsigned char) (0x80 | (cp & 0x3F));
        return 3;
    }
    out[0] = (unsigned char) (0xF0 | cp >> 18);
    out[1] = (unsigned char) (0x80 | (cp >> 12 & 0x3F));
    out[2] = (unsigned char) (0x80 | (cp >> 6 & 0x3F));
    out[3] = (unsigned char) (0x80 | (cp & 0x3F));
    return 4;
}

#endif
