/* Golden scores (tests/golden/README.md) for unit tests. */
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
    uint32_t *ids; /* [n]; NULL for long prompts, whose ids are not in the file */
    size_t n;
    char ids_sha256[65];
    char *instruction, *query, *document; /* instruction NULL: the default */
    size_t instruction_len, query_len, document_len, max_length;
    double margin, hf_bf16_margin;
} golden_case;

typedef struct golden {
    golden_case *cases;
    size_t n;
} golden;

/* A member's text, repeated; NULL if it is absent or null. */
static inline char *golden_text(json_t *object, const char *key, size_t repeat, size_t *len)
{
    json_t *text = json_object_get(object, key);
    *len = json_is_string(text) ? json_string_length(text) * repeat : 0;
    if (!json_is_string(text)) return NULL;
    char *copy = malloc(*len + 1);
    for (size_t i = 0; i < repeat; i++) memcpy(copy + i * json_string_length(text), json_string_value(text), json_string_length(text));
    return copy;
}

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
        golden_case *to = &g.cases[g.n++];
        to->n = (size_t) json_integer_value(json_object_get(c, "n_tokens"));
        if (ids != NULL) to->ids = calloc(to->n, sizeof *to->ids);
        for (size_t j = 0; ids != NULL && j < to->n; j++) to->ids[j] = (uint32_t) json_integer_value(json_array_get(ids, j));
        snprintf(to->ids_sha256, sizeof to->ids_sha256, "%s", json_string_value(json_object_get(c, "ids_sha256")));
        to->instruction = golden_text(c, "instruction", 1, &to->instruction_len);
        to->query = golden_text(c, "query", 1, &to->query_len);
        json_t *repeat = json_object_get(c, "repeat");
        to->document = golden_text(c, "document", repeat ? (size_t) json_integer_value(repeat) : 1, &to->document_len);
        to->max_length = (size_t) json_integer_value(json_object_get(c, "max_length"));
        to->margin = json_number_value(json_object_get(c, "margin"));
        to->hf_bf16_margin = json_number_value(json_object_get(c, "hf_bf16_margin"));
    }
    json_decref(json);
    assert_true(g.n > 20);
    return g;
}

static inline void golden_free(golden *g)
{
    for (size_t i = 0; i < g->n; i++) {
        free(g->cases[i].ids);
        free(g->cases[i].instruction);
        free(g->cases[i].query);
        free(g->cases[i].document);
    }
    free(g->cases);
}

#endif
