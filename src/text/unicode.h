/* Properties of code points, from the generated unicode_tables.c. */
#ifndef QR_TEXT_UNICODE_H
#define QR_TEXT_UNICODE_H

#include <stdint.h>

enum {
    /* the two low bits: class in the pre-tokenizer pattern, \p{L} \p{N} \s or none of them, by Unicode 16.0 */
    QR_CP_OTHER = 0,
    QR_CP_LETTER = 1,
    QR_CP_NUMBER = 2,
    QR_CP_SPACE = 3,
    QR_CP_CLASS = 3,
    /* part in NFC as the reference library sees it; with neither bit a code point stays as it is and nothing joins it from the right */
    QR_CP_NFC_FIRST = 4,  /* stays as it is alone, but it or its first letter composes with some code point after it */
    QR_CP_NFC_ACTIVE = 8, /* may change, move, or compose with what stands before it */
};

#define QR_UNICODE_BLOCK 128 /* code points in a block; two of them share a byte, the even one in the low half */
extern const uint16_t qr_unicode_index[];
extern const uint8_t qr_unicode_blocks[][QR_UNICODE_BLOCK / 2];

/* QR_CP_* of a code point up to U+10FFFF. */
static inline unsigned qr_unicode_flags(uint32_t cp)
{
    unsigned pair = qr_unicode_blocks[qr_unicode_index[cp / QR_UNICODE_BLOCK]][cp % QR_UNICODE_BLOCK / 2];
    return cp & 1 ? pair >> 4 : pair & 15;
}

#endif
