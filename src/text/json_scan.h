/* A strict pull scanner for JSON in memory: the caller asks for what it expects, in order, and gets it or an error that names the byte.
 *
 * The project's JSON library is jansson. This file exists for tokenizer.json alone: building a tree of its 11.4 MB and 300,000 strings took
 * jansson 325 ms (November 2026, 2-core build machine), longer than reading the rest of a small model, where scanning in place allocates
 * nothing. Knows nothing of tokenizers.
 *
 * The first error sticks: from then on every function returns 0 and consumes nothing, so a caller may check the status once per value.
 */
#ifndef QR_TEXT_JSON_SCAN_H
#define QR_TEXT_JSON_SCAN_H

#include "base/error.h"

enum {
    QR_JSON_MAX_DEPTH = 16,       /* arrays and objects inside each other; tokenizer.json needs 5 */
    QR_JSON_MAX_SKIP_MEMBERS = 64 /* members of an object whose content is skipped: duplicates are found by comparing all pairs */
};

typedef struct qr_json {
    const unsigned char *text, *p, *end;
    const char *name;       /* of the file, for messages */
    unsigned char *decoded; /* [decoded_capacity] the last string that had escapes */
    size_t decoded_capacity;
    unsigned depth;
    unsigned char first[QR_JSON_MAX_DEPTH + 1]; /* at this depth no member was read yet */
    qr_status status;
    qr_error *err;
} qr_json;

/* text is borrowed until qr_json_deinit. Freed with qr_json_deinit, which accepts a zeroed struct. */
void qr_json_init(qr_json *j, const void *text, size_t len, const char *name, qr_error *err);
void qr_json_deinit(qr_json *j);

/* Sets the scanner's error: "name: byte N: message". Returns 0, so that readers can return it. */
int qr_json_fail(qr_json *j, qr_status code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Each returns 1 when the value was there. */
int qr_json_begin(qr_json *j, char open /* '{' or '[' */);
/* 1: another element follows; 0: the array ended (and was consumed) or an error happened. */
int qr_json_element(qr_json *j);
/* The same for an object; on 1 its key was read (borrowed until the next string) and the value comes next. */
int qr_json_member(qr_json *j, const unsigned char **key, size_t *len);
/* The same for an object that may only hold the keys of a list, each once. *index tells which. seen: bits of the keys met so far; an
 * unknown key is E_UNSUPPORTED, because it may mean something that changes ids. `what` names the object in messages. */
int qr_json_known_member(qr_json *j, const char *what, const char *const *keys, unsigned n_keys, unsigned *seen, unsigned *index);
/* A string, decoded; borrowed until the next string is read. Valid UTF-8. */
int qr_json_string(qr_json *j, const unsigned char **text, size_t *len);
int qr_json_uint(qr_json *j, uint32_t *value);
int qr_json_bool(qr_json *j, int *value);
/* Consumes a null if one is next and returns 1; else 0 and no error. */
int qr_json_null(qr_json *j);
/* The first byte of the next value, 0 at the end. */
int qr_json_peek(qr_json *j);
/* Reads any value and checks that it is well formed. */
int qr_json_skip(qr_json *j);
/* After the top value: nothing but white space may follow. */
int qr_json_finish(qr_json *j);

#endif
