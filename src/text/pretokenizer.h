/* The pre-tokenizer pattern of the Qwen family, by hand: cuts normalised text into the pieces that BPE merges within. */
#ifndef QR_TEXT_PRETOKENIZER_H
#define QR_TEXT_PRETOKENIZER_H

#include <stddef.h>

/* Length of the first piece of s[0 .. n), valid UTF-8, n > 0. is_end: the text ends at n; otherwise 0 means that more of it must be seen to
 * tell. */
size_t qr_pretokenize(const unsigned char *s, size_t n, int is_end);

#endif
