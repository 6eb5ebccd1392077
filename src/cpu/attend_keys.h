/* The keys that attention goes through: those of the prefix and own ones as one list, in which own keys begin where a step begins, cut into
 * runs. A run may hold the end of the one and the beginning of the other, with a gap between them. */
#ifndef QR_CPU_ATTEND_KEYS_H
#define QR_CPU_ATTEND_KEYS_H

#include <stddef.h>

typedef struct key_list {
    size_t begins[2], ends[2]; /* of the prefix and of own keys: indices in the list */
} key_list;

/* What a run has of a part: n keys, maybe none, from the part's key `first` on, at place `at` of the run. */
typedef struct key_piece {
    size_t n, first, at;
} key_piece;

static inline key_piece piece_of(const key_list *keys, int part, size_t k0, size_t k1)
{
    size_t from = keys->begins[part] > k0 ? keys->begins[part] : k0, to = keys->ends[part] < k1 ? keys->ends[part] : k1;
    return (key_piece){to > from ? to - from : 0, from - keys->begins[part], from - k0};
}

/* Places of a run that a row sees: those before gap, and those from own on up to end. */
typedef struct seen_keys {
    size_t gap, own, end;
} seen_keys;

static inline size_t clamp(size_t x, size_t k0, size_t k1) { return x <= k0 ? 0 : x < k1 ? x - k0 : k1 - k0; }

static inline seen_keys seen_in_run(const key_list *keys, size_t end, size_t k0, size_t k1)
{
    return (seen_keys){clamp(keys->ends[0], k0, k1), clamp(keys->begins[1], k0, k1), clamp(end, k0, k1)};
}

/* Where what is seen ends for the step that begins at i. */
static inline size_t seen_end(const seen_keys *seen, size_t i) { return i < seen->own ? seen->gap : seen->end; }

#endif
