/* vLLM's scores of pairs. Two sides, each a text or a list: one against all, or pair by pair. The answer keeps the order of the request.
 *
 * {"text_1", "text_2"}, {"data_1", "data_2"}, {"queries", "documents"} or {"queries", "items"} -> {"data": [{"index", "score"}], ...}
 */
#include "server/dialect.h"

#include <string.h>

static int is_score_path(const char *path)
{
    size_t n = strlen(path);
    return n >= 6 && strcmp(path + n - 6, "/score") == 0;
}

static int matches(const char *path, const json_t *body)
{
    return is_score_path(path) || sv_field(body, "queries") != NULL || sv_field(body, "data_1") != NULL || sv_field(body, "text_1") != NULL;
}

static size_t count(const json_t *side) { return json_is_array(side) ? json_array_size(side) : 1; }
static json_t *item(json_t *side, size_t i)
{
    return json_is_array(side) ? json_array_get(side, json_array_size(side) == 1 ? 0 : i) : side;
}

static qr_status read(sv_request *r, qr_error *err)
{
    static const char *const names[][2] = {
        {"queries", "documents"}, {"queries", "items"}, {"text_1", "text_2"}, {"data_1", "data_2"}, {"query", "documents"}};
    enum { N_NAMES = sizeof names / sizeof names[0] };
    int use_activation = 1;
    size_t k = 0;
    qr_status status = sv_read_common(r, err);
    if (status == QR_OK) status = sv_read_bool(r->body, "activation", &use_activation, err);
    if (status == QR_OK) status = sv_read_bool(r->body, "use_activation", &use_activation, err);
    r->raw_scores = !use_activation;
    if (status != QR_OK) return status;
    while (k < N_NAMES && (sv_field(r->body, names[k][0]) == NULL || sv_field(r->body, names[k][1]) == NULL)) k++;
    if (k == N_NAMES) return qr_fail(err, QR_E_INPUT, "\"text_1\" and \"text_2\" must be provided (or \"queries\" and \"documents\")");
    json_t *left = sv_field(r->body, names[k][0]), *right = sv_field(r->body, names[k][1]);
    size_t n_left = count(left), n_right = count(right);
    if (n_left == 0) return qr_fail(err, QR_E_INPUT, "\"%s\" must be a non-empty array", names[k][0]);
    if (n_right == 0) return qr_fail(err, QR_E_INPUT, "\"%s\" must be a non-empty array", names[k][1]);
    if (n_left != 1 && n_left != n_right)
        return qr_fail(err, QR_E_INPUT, "\"%s\" and \"%s\" must be of the same length, or the first a single text: found %zu and %zu",
                       names[k][0], names[k][1], n_left, n_right);
    if ((status = sv_make_room(r, n_left, n_right, err)) != QR_OK) return status;
    for (size_t q = 0; q < n_left; q++) {
        const json_t *query = item(left, q);
        if (json_is_object(query)) query = json_object_get(query, "text");
        if (!json_is_string(query))
            return qr_fail(err, QR_E_INPUT, "\"%s\"[%zu] must be a string, found %s", names[k][0], q, qr_json_label(query).text);
        r->queries[q].query = (qr_text){json_string_value(query), json_string_length(query)};
    }
    for (size_t i = 0; i < n_right && status == QR_OK; i++) status = sv_read_text(r, i, item(right, i), names[k][1], NULL, err);
    return status;
}

static void write(qr_json_out *json, const sv_request *r, const sv_outcome *o)
{
    qr_out_open(json, NULL, '{');
    qr_out_string(json, "id", o->id);
    qr_out_string(json, "object", "list");
    qr_out_int(json, "created", (uint64_t) o->created);
    qr_out_string(json, "model", o->model);
    qr_out_open(json, "data", '[');
    for (size_t i = 0; i < r->n_documents; i++) {
        qr_out_open(json, NULL, '{');
        qr_out_int(json, "index", i);
        qr_out_string(json, "object", "score");
        sv_write_score(json, "score", r, &o->results[i]);
        qr_out_close(json, '}');
    }
    qr_out_close(json, ']');
    qr_out_open(json, "usage", '{');
    qr_out_int(json, "prompt_tokens", o->prompt_tokens);
    qr_out_int(json, "total_tokens", o->prompt_tokens);
    qr_out_int(json, "completion_tokens", 0);
    qr_out_string(json, "prompt_tokens_details", NULL);
    qr_out_close(json, '}');
    qr_out_close(json, '}');
}

const sv_dialect sv_dialect_score = {"score", matches, read, write, sv_write_error, NULL, 0};
