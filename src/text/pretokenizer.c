/* The pattern, alternatives tried in this order at every position:
 *
 *   1  (?i:'s|'t|'re|'ve|'m|'ll|'d)
 *   2  [^\r\n\p{L}\p{N}]?\p{L}+
 *   3  \p{N}
 *   4   ?[^\s\p{L}\p{N}]+[\r\n]*
 *   5  \s*[\r\n]+
 *   6  \s+(?!\S)
 *   7  \s+
 *
 * Each can be decided by the class of one or two code points and one scan of a run, so no regular expression engine is needed: the fastest
 * one at hand would cost more than all the rest of the tokenizer.
 */
#include "text/pretokenizer.h"

#include "base/utf8.h"
#include "text/unicode.h"

enum { LOOK_AHEAD = 12 }; /* bytes that are enough for the two or three code points that choose the alternative */

/* Class of the code point at s[0], and its size. */
static unsigned class_at(const unsigned char *s, size_t *size)
{
    uint32_t cp;
    *size = qr_utf8_decode_valid(s, &cp);
    return qr_unicode_flags(cp) & QR_CP_CLASS;
}

/* End of the run of `class` that includes s[i - 1]. */
static size_t run_end(const unsigned char *s, size_t i, size_t n, unsigned class)
{
    size_t size;
    while (i < n && class_at(s + i, &size) == class) i += size;
    return i;
}

/* Alternative 1 at an apostrophe; 0 if it does not match. Case folding is Unicode's: U+017F, long s, is an s; no other letter outside ASCII
 * folds to one of these. */
static size_t contraction(const unsigned char *s, size_t n)
{
    if (n < 2) return 0;
    if (n >= 3 && s[1] == 0xC5 && s[2] == 0xBF) return 3;
    unsigned a = s[1] | 0x20u, b = n >= 3 ? s[2] | 0x20u : 0;
    if (s[1] >= 0x80) return 0;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if (n < 3 || s[2] >= 0x80) return 0;
    return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* Alternatives 5 to 7: a run of white space that starts at 0 and is followed by neither 2 nor 4. */
static size_t white_space(const unsigned char *s, size_t n, int is_end)
{
    size_t i = 0, last = 0, after_newline = 0, size;
    while (i < n && class_at(s + i, &size) == QR_CP_SPACE) {
        last = i;
        i += size;
        if (s[last] == '\n' || s[last] == '\r') after_newline = i;
    }
    if (i == n && !is_end) return 0;
    if (after_newline) return after_newline;
    return i == n || last == 0 ? i : last;
}

size_t qr_pretokenize(const unsigned char *s, size_t n, int is_end)
{
    if (n < LOOK_AHEAD && !is_end) return 0;
    size_t size, next_size = 0, i;
    if (s[0] == '\'' && (i = contraction(s, n)) != 0) return i;
    unsigned class = class_at(s, &size);
    if (class == QR_CP_NUMBER) return size;
    if (class == QR_CP_LETTER) {
        i = run_end(s, size, n, QR_CP_LETTER);
        return i < n || is_end ? i : 0;
    }
    unsigned next = size < n ? class_at(s + size, &next_size) : QR_CP_SPACE;
    if (next == QR_CP_LETTER && s[0] != '\r' && s[0] != '\n') {
        i = run_end(s, size + next_size, n, QR_CP_LETTER);
        return i < n || is_end ? i : 0;
    }
    if (class == QR_CP_OTHER || (s[0] == ' ' && next == QR_CP_OTHER)) {
        i = run_end(s, size, n, QR_CP_OTHER);
        while (i < n && (s[i] == '\r' || s[i] == '\n')) i++;
        return i < n || is_end ? i : 0;
    }
    return white_space(s, n, is_end);
}
