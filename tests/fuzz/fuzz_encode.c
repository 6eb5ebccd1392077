/* Any bytes as a text, with a small built-in tokenizer. What must hold: ids stand for the text (where it needs no repair or composition); a
 * limit gives a prefix; cutting the text into parts at a code point changes nothing; two scratches with
 * different words in their caches agree. */
#include "../small_tokenizer.h"
#include "text/tokenizer_internal.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(int condition)
{
    if (!condition) abort();
}

static int ascii(const uint8_t *s, size_t n)
{
    while (n > 0 && s[n - 1] < 0x80) n--;
    return n == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static qr_tokenizer *tok;
    static qr_ids all, used; /* kept from input to input: a fresh scratch has a megabyte of cache to clear */
    if (tok == NULL) {
        char json[SMALL_CAPACITY];
        must(qr_tok_open_memory(&tok, json, small_tokenizer(json, 0, 0), "small", NULL) == QR_OK);
    }
    if (size < 2) return 0;
    unsigned flags = data[0] & (QR_TOK_SPECIAL | QR_TOK_MARKUP);
    size_t at = data[1];
    const char *text = (const char *) data + 2;
    size_t len = size - 2;
    all.n = 0;
    int complete, replaced = 0;
    must(qr_tok_encode(tok, text, len, flags, 0, &all, &replaced, &complete, NULL) == QR_OK && complete);

    if (ascii(data + 2, len)) {
        size_t pos = 0, n;
        for (size_t i = 0; i < all.n; i++) {
            const char *bytes = qr_tok_bytes(tok, all.id[i], &n);
            must(bytes != NULL && n <= len - pos && memcmp(bytes, text + pos, n) == 0);
            pos += n;
        }
        must(pos == len && !replaced);
    }
    for (size_t limit = 1; limit <= all.n + 1; limit += 1 + limit / 4) {
        used.n = 0;
        must(qr_tok_encode(tok, text, len, flags, limit, &used, NULL, &complete, NULL) == QR_OK);
        must(used.n <= all.n && (used.n >= limit || used.n == all.n) && complete == (used.n == all.n));
        must(used.n == 0 || memcmp(used.id, all.id, used.n * sizeof *all.id) == 0);
    }
    if (flags == 0 && at < len && ((uint8_t) text[at] < 0x80 || (uint8_t) text[at] >= 0xC0)) {
        qr_text parts[] = {{text, at}, {NULL, 0}, {text + at, len - at}};
        used.n = 0;
        must(qr_tok_encode_parts(tok, parts, 3, 0, 0, &used, NULL, &complete, NULL) == QR_OK && complete);
        must(used.n == all.n && (all.n == 0 || memcmp(used.id, all.id, all.n * sizeof *all.id) == 0));
    }
    return 0;
}
