/* What the files of the tokenizer share, and what prompt.c and the fuzz targets need beyond tokenizer.h. */
#ifndef QR_TEXT_TOKENIZER_INTERNAL_H
#define QR_TEXT_TOKENIZER_INTERNAL_H

#include "text/tokenizer.h"

enum {
    QR_TOK_MAX_ID = (1 << 22) - 1, /* 27 times Qwen3's: a larger id in a file is a mistake, and would cost memory by itself */
    QR_TOK_MAX_ENTRY = 1024,       /* bytes of a vocabulary entry; Qwen3's longest has 128 */
    QR_TOK_MAX_ADDED = 1 << 14,    /* added tokens; Qwen3 has 26 */
    QR_TOK_MAX_FILE = 256 << 20,   /* bytes of tokenizer.json; Qwen3's has 11.4 million */
};
#define QR_TOK_NO_ID UINT32_MAX

/* Longest pre-token that is merged as a whole, in bytes of normalised text. A longer one is cut there, and its ids then may differ from the
 * reference's. At 128 bytes for the longest entry it has at least 65,536 ids, more than any prompt may have. */
#define QR_TOK_MAX_PIECE ((size_t) 8 << 20)

/* A merge of two neighbouring symbols. Open addressing, empty where result is QR_TOK_NO_ID. */
typedef struct qr_merge {
    uint32_t left, right;
    uint32_t rank; /* lower is merged first */
    uint32_t result;
} qr_merge;

typedef struct qr_added_token {
    uint32_t id;
    int special;      /* may close a turn or end the text: never recognised in user text */
    size_t text, len; /* in `blob` */
} qr_added_token;

struct qr_tokenizer {
    /* bytes of all entries, and of the added tokens after them */
    unsigned char *blob;
    size_t blob_len, blob_capacity;
    struct qr_entry {
        uint32_t text; /* in blob */
        uint32_t len;  /* 0: no such id */
        uint32_t hash;
        uint32_t added; /* 1: an added token */
    } * entry;          /* [n_ids] */
    size_t n_ids, entry_capacity;
    uint32_t *by_text; /* [by_text_mask + 1] while loading: ids of the vocabulary by hash of their bytes, QR_TOK_NO_ID where empty */
    size_t by_text_mask;
    qr_merge *merge; /* [merge_mask + 1] */
    size_t merge_mask, n_merges;
    uint32_t byte_id[256];
    qr_added_token *added; /* [n_added] by first byte, then longest first */
    size_t n_added, added_capacity;
    uint32_t added_begin[257]; /* added[added_begin[b] .. added_begin[b + 1]) start with byte b */
    uint64_t fingerprint;      /* of the file: tells whose pieces a scratch holds */
};

/* Where the search for a pair begins. */
static inline size_t qr_tok_merge_slot(const qr_tokenizer *tok, uint32_t left, uint32_t right)
{
    uint64_t h = ((uint64_t) left << 32 | right) * 0x9E3779B97F4A7C15u;
    return (size_t) (h ^ h >> 32) & tok->merge_mask;
}

/* The merge of a pair; NULL if there is none. */
static inline const qr_merge *qr_tok_merge(const qr_tokenizer *tok, uint32_t left, uint32_t right)
{
    for (size_t i = qr_tok_merge_slot(tok, left, right);; i = (i + 1) & tok->merge_mask) {
        const qr_merge *m = &tok->merge[i];
        if (m->result == QR_TOK_NO_ID) return NULL;
        if (m->left == left && m->right == right) return m;
    }
}

/* As qr_tok_encode, for the concatenation of `parts`. It is one text, except that invalid UTF-8 and added tokens are looked for in each
 * part alone, so that parts from different hands cannot make something together. */
qr_status qr_tok_encode_parts(const qr_tokenizer *tok, const qr_text *parts, size_t n_parts, unsigned flags, size_t limit, qr_ids *ids,
                              int *replaced, int *complete, qr_error *err);

/* Leftmost added token in text[from .. len) of those that `flags` name, the longest if several start there. Returns its id, *at and *size;
 * QR_TOK_NO_ID if none. */
uint32_t qr_tok_find_added(const qr_tokenizer *tok, unsigned flags, const char *text, size_t len, size_t from, size_t *at, size_t *size);

#endif
