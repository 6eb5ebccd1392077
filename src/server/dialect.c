/* See dialect.h: the list, and what dialects have in common. */
#define _GNU_SOURCE /* memmem */
#include "server/dialect.h"

#include "base/mem.h"
#include "text/prompt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

extern const sv_dialect sv_dialect_tei, sv_dialect_mixedbread, sv_dialect_dashscope, sv_dialect_nim, sv_dialect_score, sv_dialect_ollama,
    sv_dialect_infinity, sv_dialect_voyage, sv_dialect_openrouter, sv_dialect_results;

static const sv_dialect *const dialects[] = {&sv_dialect_tei,        &sv_dialect_mixedbread, &sv_dialect_dashscope, &sv_dialect_nim,
                                             &sv_dialect_score,      &sv_dialect_ollama,     &sv_dialect_infinity,  &sv_dialect_voyage,
                                             &sv_dialect_openrouter, &sv_dialect_results};

const sv_dialect *sv_dialect_of(const char *path, const json_t *body)
{
    size_t last = sizeof dialects / sizeof dialects[0] - 1;
    for (size_t i = 0; i < last; i++)
        if (dialects[i]->matches(path, body)) return dialects[i];
    return dialects[last];
}

/* ---- reading --------------------------------------------------------------------------------------------------------------------- */

json_t *sv_field(const json_t *object, const char *name)
{
    json_t *value = json_object_get(object, name);
    return value == NULL || json_is_null(value) ? NULL : value;
}

qr_status sv_read_bool(const json_t *object, const char *name, int *out, qr_error *err)
{
    const json_t *value = sv_field(object, name);
    const char *text = json_string_value(value);
    if (value == NULL) return QR_OK;
    if (json_is_true(value) || (text != NULL && (strcmp(text, "true") == 0 || strcmp(text, "True") == 0))) *out = 1;
    else if (json_is_false(value) || (text != NULL && (strcmp(text, "false") == 0 || strcmp(text, "False") == 0))) *out = 0;
    else return qr_fail(err, QR_E_INPUT, "\"%s\" must be true or false, found %s", name, qr_json_label(value).text);
    return QR_OK;
}

qr_status sv_read_count(const json_t *object, const char *name, size_t *out, qr_error *err)
{
    const json_t *value = sv_field(object, name);
    if (value == NULL) return QR_OK;
    double number = -1;
    if (json_is_number(value)) {
        number = json_number_value(value);
    } else if (json_is_string(value)) {
        const char *text = json_string_value(value);
        char *end;
        number = strtod(text, &end);
        if (end == text || *end != 0) number = -1;
    }
    if (!(number >= 0) || number > 1e15 || number != (double) (size_t) number)
        return qr_fail(err, QR_E_INPUT, "\"%s\" must be a whole number of at least 0, found %s", name, qr_json_label(value).text);
    *out = (size_t) number;
    return QR_OK;
}

static int is_word(const char *text, const char *word) { return text != NULL && strcasecmp(text, word) == 0; }

/* truncate, truncation: true, false; NIM's "END", "START", "NONE". truncation_direction, truncation_side: "Left", "right". */
static qr_status read_truncation(sv_request *r, qr_error *err)
{
    static const char *const switches[] = {"truncate", "truncation"}, *const sides[] = {"truncation_direction", "truncation_side"};
    for (size_t i = 0; i < 2; i++) {
        const char *side = json_string_value(sv_field(r->body, sides[i]));
        if (is_word(side, "left")) r->truncation = QR_TRUNCATE_START;
        else if (sv_field(r->body, sides[i]) != NULL && !is_word(side, "right"))
            return qr_fail(err, QR_E_INPUT, "\"%s\" must be \"left\" or \"right\", found %s", sides[i],
                           qr_json_label(sv_field(r->body, sides[i])).text);
    }
    for (size_t i = 0; i < 2; i++) {
        int on = 1;
        const char *word = json_string_value(sv_field(r->body, switches[i]));
        if (is_word(word, "none")) on = 0;
        else if (is_word(word, "start")) r->truncation = QR_TRUNCATE_START;
        else if (!is_word(word, "end")) {
            qr_status status = sv_read_bool(r->body, switches[i], &on, err);
            if (status != QR_OK) return status;
        }
        if (!on) r->truncation = QR_TRUNCATE_NEVER;
    }
    return QR_OK;
}

/* truncate_prompt_tokens (vLLM; -1: the model's length), max_length (oMLX), max_tokens_per_doc (Cohere, vLLM; 0: none). */
static qr_status read_lengths(sv_request *r, qr_error *err)
{
    const json_t *tokens = sv_field(r->body, "truncate_prompt_tokens");
    qr_status status = sv_read_count(r->body, "max_length", &r->max_length, err);
    if (status == QR_OK && !(json_is_integer(tokens) && json_integer_value(tokens) == -1))
        status = sv_read_count(r->body, "truncate_prompt_tokens", &r->max_length, err);
    return status == QR_OK ? sv_read_count(r->body, "max_tokens_per_doc", &r->max_document_tokens, err) : status;
}

static qr_text text_of(const json_t *string) { return (qr_text){json_string_value(string), json_string_length(string)}; }

qr_status sv_read_common(sv_request *r, qr_error *err)
{
    /* SiliconFlow and most; SGLang and DashScope; others */
    static const char *const names[] = {"instruction", "instruct", "task", "prompt"};
    const json_t *model = sv_field(r->body, "model"), *value = NULL, *kwargs = sv_field(r->body, "chat_template_kwargs");
    if (model != NULL && !json_is_string(model))
        return qr_fail(err, QR_E_INPUT, "\"model\" must be a string, found %s", qr_json_label(model).text);
    r->model = json_string_value(model);
    qr_status status = read_truncation(r, err);
    if (status == QR_OK) status = read_lengths(r, err);
    if (status != QR_OK) return status;
    for (size_t i = 0; value == NULL && i < sizeof names / sizeof names[0]; i++)
        if ((value = sv_field(r->body, names[i])) == NULL) value = sv_field(kwargs, names[i]); /* vLLM */
    if (value == NULL) return QR_OK;
    if (!json_is_string(value)) return qr_fail(err, QR_E_INPUT, "the instruction must be a string, found %s", qr_json_label(value).text);
    r->instruction = text_of(value);
    r->has_instruction = 1;
    return QR_OK;
}

qr_status sv_make_room(sv_request *r, size_t n_queries, size_t n_documents, qr_error *err)
{
    r->queries = qr_calloc(n_queries, sizeof *r->queries);
    r->documents = qr_calloc(n_documents, sizeof *r->documents);
    r->originals = qr_calloc(n_documents, sizeof(json_t *));
    r->made = qr_calloc(n_documents, sizeof(char *));
    if (r->queries == NULL || r->documents == NULL || r->originals == NULL || r->made == NULL)
        return qr_fail(err, QR_E_MEMORY, "no memory for %zu documents", n_documents);
    r->n_queries = n_queries;
    r->n_documents = n_documents;
    for (size_t q = 0; q < n_queries; q++) {
        size_t begin = n_documents * q / n_queries;
        r->queries[q] = (qr_query){.instruction = r->has_instruction ? &r->instruction : NULL,
                                   .documents = r->documents + begin,
                                   .n_documents = n_documents * (q + 1) / n_queries - begin,
                                   .max_length = r->max_length,
                                   .max_document_tokens = r->max_document_tokens,
                                   .truncation = r->truncation};
    }
    return QR_OK;
}

/* The named fields of an object, those that are there, joined by line ends, as "name: value" if there are several. */
static qr_status join_fields(sv_request *r, size_t i, const json_t *object, const json_t *fields, qr_error *err)
{
    size_t n = 0, room = 1, used = 0, n_fields = json_array_size(fields);
    for (size_t f = 0; f < n_fields; f++) {
        const json_t *value = json_object_get(object, json_string_value(json_array_get(fields, f)));
        if (!json_is_string(value)) continue;
        n++;
        room += json_string_length(json_array_get(fields, f)) + json_string_length(value) + 3;
    }
    if (n == 0) return QR_OK; /* an empty text: one odd document must not fail the others */
    char *text = qr_calloc(room, 1);
    if (text == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for a document");
    for (size_t f = 0; f < n_fields; f++) {
        const json_t *name = json_array_get(fields, f), *value = json_object_get(object, json_string_value(name));
        if (!json_is_string(value)) continue;
        if (used > 0) text[used++] = '\n';
        if (n > 1) used += (size_t) snprintf(text + used, room - used, "%s: ", json_string_value(name));
        memcpy(text + used, json_string_value(value), json_string_length(value));
        used += json_string_length(value);
    }
    r->made[i] = text;
    r->documents[i] = (qr_text){text, used};
    return QR_OK;
}

qr_status sv_read_text(sv_request *r, size_t i, json_t *item, const char *field, const json_t *rank_fields, qr_error *err)
{
    r->originals[i] = item;
    if (json_is_string(item)) {
        r->documents[i] = text_of(item);
        return QR_OK;
    }
    if (!json_is_object(item))
        return qr_fail(err, QR_E_INPUT, "\"%s\"[%zu] must be a string or an object with \"text\", found %s", field, i,
                       qr_json_label(item).text);
    if (json_array_size(rank_fields) > 0) return join_fields(r, i, item, rank_fields, err);
    const json_t *text = json_object_get(item, "text");
    if (!json_is_string(text))
        return qr_fail(err, QR_E_INPUT, "\"%s\"[%zu].text must be a string, found %s", field, i, qr_json_label(text).text);
    r->documents[i] = text_of(text);
    return QR_OK;
}

qr_status sv_read_query_and_documents(sv_request *r, const json_t *object, const char *query_field, const char *list_field,
                                      const json_t *rank_fields, qr_error *err)
{
    json_t *query = sv_field(object, query_field), *list = sv_field(object, list_field);
    if (json_is_object(query)) query = json_object_get(query, "text"); /* Jina, NIM */
    if (query == NULL) return qr_fail(err, QR_E_INPUT, "\"%s\" must be provided", query_field);
    if (!json_is_string(query))
        return qr_fail(err, QR_E_INPUT, "\"%s\" must be a string, found %s", query_field, qr_json_label(query).text);
    if (list == NULL) return qr_fail(err, QR_E_INPUT, "\"%s\" must be provided", list_field);
    size_t n = json_is_array(list) ? json_array_size(list) : 1;
    if (n == 0) return qr_fail(err, QR_E_INPUT, "\"%s\" must be a non-empty array", list_field);
    if (!json_is_array(list) && !json_is_string(list))
        return qr_fail(err, QR_E_INPUT, "\"%s\" must be an array of strings, found %s", list_field, qr_json_label(list).text);
    if (rank_fields != NULL && !json_is_array(rank_fields))
        return qr_fail(err, QR_E_INPUT, "\"rank_fields\" must be an array of strings, found %s", qr_json_label(rank_fields).text);
    for (size_t f = 0; f < json_array_size(rank_fields); f++)
        if (!json_is_string(json_array_get(rank_fields, f))) return qr_fail(err, QR_E_INPUT, "\"rank_fields\" must be an array of strings");
    qr_status status = sv_make_room(r, 1, n, err);
    if (status != QR_OK) return status;
    r->queries[0].query = text_of(query);
    for (size_t i = 0; i < n && status == QR_OK; i++)
        status = sv_read_text(r, i, json_is_array(list) ? json_array_get(list, i) : list, list_field, rank_fields, err);
    return status;
}

static const char *find(qr_text text, const char *part) { return text.len > 0 ? memmem(text.data, text.len, part, strlen(part)) : NULL; }

/* Cuts `part` off the text's beginning or end; 0 if it is not there. */
static int strip(qr_text *text, const char *begin, const char *end)
{
    size_t n = strlen(begin), m = strlen(end);
    if (text->len < n + m || memcmp(text->data, begin, n) != 0 || memcmp(text->data + text->len - m, end, m) != 0) return 0;
    text->data += n;
    text->len -= n + m;
    return 1;
}

/* "<prefix><Instruct>: I\n<Query>: Q\n" becomes Q, and I the instruction. */
static int unwrap_query(qr_text *query, qr_text *instruction)
{
    static const char mark[] = "\n<Query>: ";
    qr_text inner = *query;
    if (!strip(&inner, QR_PROMPT_PREFIX "<Instruct>: ", "")) return 0;
    const char *at = find(inner, mark);
    if (at == NULL) return 0;
    *instruction = (qr_text){inner.data, (size_t) (at - inner.data)};
    *query = (qr_text){at + strlen(mark), inner.len - instruction->len - strlen(mark)};
    strip(query, "", "\n");
    return 1;
}

qr_status sv_unwrap(sv_request *r, qr_error *err)
{
    const json_t *value = sv_field(r->body, "template");
    const char *mode = json_string_value(value);
    int never = is_word(mode, "never");
    if (value != NULL && !never && !is_word(mode, "auto") && !is_word(mode, "always"))
        return qr_fail(err, QR_E_INPUT, "\"template\" must be \"auto\", \"always\" or \"never\", found %s", qr_json_label(value).text);
    if (is_word(mode, "always")) return QR_OK;
    r->instructions = qr_calloc(r->n_queries, sizeof *r->instructions);
    if (r->instructions == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for %zu queries", r->n_queries);
    for (size_t q = 0; q < r->n_queries; q++) {
        qr_query *query = &r->queries[q];
        if (unwrap_query(&query->query, &r->instructions[q])) {
            query->instruction = &r->instructions[q];
            for (size_t d = 0; d < query->n_documents; d++)
                strip(&r->documents[(size_t) (query->documents - r->documents) + d], "<Document>: ", QR_PROMPT_SUFFIX);
        } else if (never) {
            return qr_fail(err, QR_E_INPUT,
                           "\"template\" is \"never\", but the query is not in the prompt's form, from <|im_start|>system on");
        }
    }
    return QR_OK;
}

void sv_request_deinit(sv_request *r)
{
    for (size_t i = 0; r->made != NULL && i < r->n_documents; i++) qr_free(r->made[i]);
    qr_free(r->made);
    qr_free(r->queries);
    qr_free(r->instructions);
    qr_free(r->documents);
    qr_free(r->originals);
    json_decref(r->body);
    *r = (sv_request){0};
}

/* ---- writing --------------------------------------------------------------------------------------------------------------------- */

void sv_write_score(qr_json_out *json, const char *key, const sv_request *request, const qr_result *result)
{
    if (request->raw_scores) qr_out_real(json, key, (double) result->margin, 9);
    else qr_out_real(json, key, result->score, 17);
}

void sv_write_json(qr_json_out *json, const char *key, const json_t *value)
{
    const char *name;
    json_t *item;
    size_t i;
    switch (value != NULL ? json_typeof(value) : JSON_NULL) {
    case JSON_OBJECT:
        qr_out_open(json, key, '{');
        json_object_foreach((json_t *) (uintptr_t) value, name, item) sv_write_json(json, name, item);
        qr_out_close(json, '}');
        break;
    case JSON_ARRAY:
        qr_out_open(json, key, '[');
        json_array_foreach(value, i, item) sv_write_json(json, NULL, item);
        qr_out_close(json, ']');
        break;
    case JSON_STRING:
        qr_out_text(json, key, json_string_value(value), json_string_length(value));
        break;
    case JSON_INTEGER:
        qr_out_signed(json, key, json_integer_value(value));
        break;
    case JSON_REAL:
        qr_out_real(json, key, json_real_value(value), 17);
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        qr_out_bool(json, key, json_is_true(value));
        break;
    default:
        qr_out_string(json, key, NULL);
    }
}

void sv_write_document(qr_json_out *json, const char *key, const sv_request *request, size_t document)
{
    const json_t *original = request->originals[document];
    if (json_is_object(original)) {
        sv_write_json(json, key, original);
        return;
    }
    qr_out_open(json, key, '{');
    qr_out_text(json, "text", request->documents[document].data, request->documents[document].len);
    qr_out_close(json, '}');
}

void sv_write_results(qr_json_out *json, const char *key, const sv_request *r, const sv_outcome *o)
{
    qr_out_open(json, key, '[');
    for (size_t i = 0; i < o->n_shown; i++) {
        qr_text text = r->documents[o->order[i]];
        qr_out_open(json, NULL, '{');
        qr_out_int(json, "index", o->order[i]);
        sv_write_score(json, "relevance_score", r, &o->results[o->order[i]]);
        sv_write_score(json, "score", r, &o->results[o->order[i]]);
        if (r->return_documents) qr_out_text(json, "document", text.data, text.len);
        qr_out_close(json, '}');
    }
    qr_out_close(json, ']');
}

void sv_write_usage(qr_json_out *json, const sv_outcome *o)
{
    qr_out_open(json, "usage", '{');
    qr_out_int(json, "prompt_tokens", o->prompt_tokens);
    qr_out_int(json, "total_tokens", o->prompt_tokens);
    qr_out_close(json, '}');
}

void sv_write_error(qr_json_out *json, const sv_error *error)
{
    qr_out_open(json, NULL, '{');
    qr_out_string(json, "id", error->id);
    qr_out_string(json, "message", error->message);
    qr_out_string(json, "detail", error->message);
    qr_out_open(json, "error", '{');
    qr_out_string(json, "message", error->message);
    qr_out_string(json, "type", error->type);
    qr_out_string(json, "param", error->param);
    qr_out_int(json, "code", (uint64_t) error->http);
    qr_out_close(json, '}');
    qr_out_close(json, '}');
}
