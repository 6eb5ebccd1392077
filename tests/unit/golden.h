/* Golden scores (tests/golden/README.md) for unit tests: the cases whose ids are in the file. */
#ifndef QR_TESTS_GOLDEN_H
#define QR_TESTS_GOLDEN_H

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

typedef struct golden_case {
    uint32_t *ids;
    size_t n;
    double margin, hf_bf16_margin;
} golden_case;

typedef struct golden {
    golden_case *cases;
    size_t n;
} golden;

/* name: for example "micro-1" */
static inline golden golden_load(const char *name)
{
    char path[512];
    json_error_t error;
    snprintf(path, sizeof path, "%s/tests/golden/scores-%s.json", QR_SOURCE_DIR, name);
    json_t *json = json_load_file(path, JSON_ALLOW_NUL, &error);
    if (json == NULL) fail_msg("%s: %s", path, error.text);
    json_t *cases = json_object_get(json, "cases");
    golden g = {calloc(json_array_size(cases), sizeof(golden_case)), 0};
    for (size_t i = 0; i < json_array_size(cases); i++) {
        json_t *c = json_array_get(cases, i), *ids = json_object_get(c, "ids");
        if (ids == NULL) continue;
        golden_case *to = &g.cases[g.n++];
        to->n = json_array_size(ids);
        to->ids = calloc(to->n, sizeof *to->ids);
        for (size_t j = 0; j < to->n; j++) to->ids[j] = (uint32_t) json_integer_value(json_array_get(ids, j));
        to->margin = json_number_value(json_object_get(c, "margin"));
        to->hf_bf16_margin = json_number_value(json_object_get(c, "hf_bf16_margin"));
    }
    json_decref(json);
    assert_true(g.n > 20);
    return g;
}

static inline void golden_free(golden *g)
{
    for (size_t i = 0; i < g->n; i++) free(g->cases[i].ids);
    free(g->cases);
}

#endif
