/* NFC as the reference tokenizer does it, by utf8proc.
 *
 * The reference's tables are those of about Unicode 9, utf8proc's are newer and depend on what is installed. unicode_tables.c says which
 * code points take part in the reference's NFC: text is copied, and only a unit of [one code point that may begin a composition] and the
 * active ones after it goes through utf8proc. Unicode's stability policy promises that all versions agree on such a unit, because it
 * contains nothing that the oldest of them does not know. (Splitting there is exact: every code point that is not active has combining
 * class 0 and the property NFC_Quick_Check=Yes, so nothing before it acts on it.)
 *
 * utf8proc orders marks by insertion, which is quadratic: a document of a million marks would hang the server. So units are decomposed one
 * code point at a time, ordered here by counting, and given back to utf8proc to compose, which is linear.
 */
#include "text/nfc.h"

#include "base/mem.h"
#include "base/utf8.h"
#include "text/unicode.h"

#include <string.h>
#include <utf8proc.h>

void qr_nfc_scratch_deinit(qr_nfc_scratch *scratch)
{
    qr_free(scratch->cp);
    qr_free(scratch->sorted);
    *scratch = (qr_nfc_scratch){0};
}

static qr_status no_memory(qr_error *err) { return qr_fail(err, QR_E_MEMORY, "no memory to normalise a text"); }

/* The next code point, not consumed: 0 at the end, else the bytes it takes. Moves over finished parts. */
static size_t peek(qr_nfc_source *source, uint32_t *cp)
{
    while (source->part < source->n_parts && source->at == source->parts[source->part].len) {
        source->part++;
        source->at = 0;
    }
    if (source->part == source->n_parts) return 0;
    const qr_text *part = &source->parts[source->part];
    return qr_utf8_decode((const unsigned char *) part->data + source->at, part->len - source->at, cp);
}

static unsigned flags_of(uint32_t cp) { return cp == QR_UTF8_INVALID ? 0 : qr_unicode_flags(cp); }

static qr_status unit_add(qr_nfc_scratch *scratch, size_t *n, uint32_t cp, qr_error *err)
{
    /* No canonical decomposition has more than 4 code points. */
    int32_t *grown = qr_grow(scratch->cp, &scratch->cp_capacity, *n + 8, sizeof *scratch->cp);
    if (grown == NULL) return no_memory(err);
    scratch->cp = grown;
    int boundary = 0;
    utf8proc_ssize_t size =
        utf8proc_decompose_char((utf8proc_int32_t) cp, scratch->cp + *n, 8, UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, &boundary);
    if (size < 1 || size > 8) return qr_fail(err, QR_E_BACKEND, "utf8proc cannot decompose U+%04X", (unsigned) cp);
    *n += (size_t) size;
    return QR_OK;
}

static unsigned combining_class(int32_t cp) { return (unsigned) utf8proc_get_property(cp)->combining_class; }

/* Canonical ordering: each run of marks by rising combining class, stable. Counting sort, since classes are below 256. */
static qr_status order_marks(qr_nfc_scratch *scratch, size_t n, qr_error *err)
{
    int32_t *cp = scratch->cp;
    for (size_t i = 0; i < n;) {
        size_t end = i;
        unsigned class, last = 0, unordered = 0;
        while (end < n && (class = combining_class(cp[end])) != 0) {
            unordered |= class < last;
            last = class;
            end++;
        }
        if (unordered) {
            size_t start[256] = {0};
            int32_t *grown = qr_grow(scratch->sorted, &scratch->sorted_capacity, end - i, sizeof *cp);
            if (grown == NULL) return no_memory(err);
            scratch->sorted = grown;
            for (size_t k = i; k < end; k++) start[combining_class(cp[k])]++;
            size_t sum = 0;
            for (unsigned k = 0; k < 256; k++) {
                size_t count = start[k];
                start[k] = sum;
                sum += count;
            }
            for (size_t k = i; k < end; k++) grown[start[combining_class(cp[k])]++] = cp[k];
            memcpy(cp + i, grown, (end - i) * sizeof *cp);
        }
        i = end + (end < n);
    }
    return QR_OK;
}

/* Room for `more` bytes after len. */
static int reserve(unsigned char **out, size_t len, size_t *capacity, size_t more)
{
    unsigned char *grown = qr_grow(*out, capacity, len + more, 1);
    if (grown != NULL) *out = grown;
    return grown != NULL;
}

/* Reads a unit: the code point at *len - first_bytes of the output, if first_bytes is not 0, and all active ones that come next. */
static qr_status read_unit(qr_nfc_source *source, qr_nfc_scratch *scratch, size_t first_bytes, unsigned char **out, size_t *len,
                           size_t *capacity, qr_error *err)
{
    size_t n = 0, size;
    uint32_t cp;
    qr_status status = QR_OK;
    *len -= first_bytes;
    if (first_bytes) {
        qr_utf8_decode_valid(*out + *len, &cp);
        status = unit_add(scratch, &n, cp, err);
    }
    while (status == QR_OK && n < QR_NFC_MAX_UNIT && (size = peek(source, &cp)) != 0 && flags_of(cp) & QR_CP_NFC_ACTIVE) {
        source->at += size;
        status = unit_add(scratch, &n, cp, err);
    }
    if (status == QR_OK) status = order_marks(scratch, n, err);
    if (status != QR_OK) return status;
    utf8proc_ssize_t composed = utf8proc_normalize_utf32(scratch->cp, (utf8proc_ssize_t) n, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    if (composed < 0) return qr_fail(err, QR_E_BACKEND, "utf8proc cannot compose: %s", utf8proc_errmsg(composed));
    if (!reserve(out, *len, capacity, (size_t) composed * 4)) return no_memory(err);
    for (utf8proc_ssize_t i = 0; i < composed; i++) *len += qr_utf8_encode((uint32_t) scratch->cp[i], *out + *len);
    return QR_OK;
}

qr_status qr_nfc_read(qr_nfc_source *source, qr_nfc_scratch *scratch, unsigned char **out, size_t *len, size_t *capacity, size_t want,
                      int *at_end, qr_error *err)
{
    uint32_t cp;
    size_t size, last_bytes = 0; /* of the last code point written, if it may begin a composition */
    for (;;) {
        size = peek(source, &cp);
        *at_end = size == 0;
        unsigned flags = size == 0 ? 0 : flags_of(cp);
        if (size == 0) return QR_OK;
        if (flags & QR_CP_NFC_ACTIVE) {
            qr_status status = read_unit(source, scratch, last_bytes, out, len, capacity, err);
            if (status != QR_OK) return status;
            last_bytes = 0;
            continue;
        }
        if (*len >= want) return QR_OK; /* only here: the code point before is now known to stay */
        const qr_text *part = &source->parts[source->part];
        const unsigned char *s = (const unsigned char *) part->data;
        if (!reserve(out, *len, capacity, (want - *len) + 8)) return no_memory(err);
        if (cp >= 0x80) {
            if (cp == QR_UTF8_INVALID) {
                source->replaced = 1;
                *len += qr_utf8_encode(0xFFFD, *out + *len);
            } else {
                memcpy(*out + *len, s + source->at, size);
                *len += size;
            }
            source->at += size;
            last_bytes = flags & QR_CP_NFC_FIRST ? size : 0;
            continue;
        }
        /* A run of ASCII is copied as it is. Its last code point counts as one that may begin a composition: at worst a unit that need not
         * be touched gets an ASCII base, which is inert in every version. */
        size_t n = part->len - source->at, i = 0;
        if (n > want - *len) n = want - *len;
        unsigned char *to = *out + *len;
        s += source->at;
        uint64_t word;
        for (; n - i >= 8 && (memcpy(&word, s + i, 8), (word & 0x8080808080808080u) == 0); i += 8) memcpy(to + i, &word, 8);
        for (; i < n && s[i] < 0x80; i++) to[i] = s[i];
        source->at += i;
        *len += i;
        last_bytes = 1;
    }
}
