/* Reads UTF-8 text as the tokenizer sees it: repaired, normalised to NFC, piece after piece into a buffer. */
#ifndef QR_TEXT_NFC_H
#define QR_TEXT_NFC_H

#include "qwen_rerank.h"

#include "base/error.h"

/* Code points that are normalised together at most. Only a base followed by this many marks is longer; it is cut there, and then may differ
 * from the reference. At 2 bytes and more each it lies beyond the cut of any prompt. */
#define QR_NFC_MAX_UNIT ((size_t) 4 << 20)

/* Where the text comes from: parts that count as one text, except that invalid UTF-8 is judged within each part. */
typedef struct qr_nfc_source {
    const qr_text *parts;     /* [n_parts] borrowed */
    size_t n_parts, part, at; /* the next byte is parts[part].data[at] */
    int replaced;             /* 1 once an invalid sequence was read as U+FFFD */
} qr_nfc_source;

/* Scratch of one encoder. All zero is empty. */
typedef struct qr_nfc_scratch {
    int32_t *cp;     /* [cp_capacity] the unit, decomposed */
    int32_t *sorted; /* [sorted_capacity] */
    size_t cp_capacity, sorted_capacity;
} qr_nfc_scratch;
void qr_nfc_scratch_deinit(qr_nfc_scratch *scratch);

/* Appends normalised text to (*out)[*len], growing it, until at least `want` bytes are there or the source is at its end, which sets
 * *at_end. What was appended never changes by what follows. */
qr_status qr_nfc_read(qr_nfc_source *source, qr_nfc_scratch *scratch, unsigned char **out, size_t *len, size_t *capacity, size_t want,
                      int *at_end, qr_error *err);

#endif
