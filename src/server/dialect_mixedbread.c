/* Mixedbread. Told by an array `input` without `documents`; llama.cpp has the same path for another dialect.
 *
 * {"query", "input": [...], "rank_fields"?, "top_k"?, "return_input"?} -> {"data": [{"index", "score", "input"?}], "top_k", ...}, best
 * first.
 */
#include "server/dialect.h"

static int matches(const char *path, const json_t *body)
{
    (void) path;
    return json_is_array(sv_field(body, "input")) && sv_field(body, "documents") == NULL;
}

static qr_status read(sv_request *r, qr_error *err)
{
    qr_status status = sv_read_common(r, err);
    if (status == QR_OK) status = sv_read_count(r->body, "top_k", &r->top_n, err);
    if (status == QR_OK) status = sv_read_bool(r->body, "return_input", &r->return_documents, err);
    return status != QR_OK ? status : sv_read_query_and_documents(r, r->body, "query", "input", sv_field(r->body, "rank_fields"), err);
}

static void write(qr_json_out *json, const sv_request *r, const sv_outcome *o)
{
    qr_out_open(json, NULL, '{');
    qr_out_string(json, "object", "list");
    qr_out_string(json, "model", o->model);
    qr_out_open(json, "data", '[');
    for (size_t i = 0; i < o->n_shown; i++) {
        qr_out_open(json, NULL, '{');
        qr_out_int(json, "index", o->order[i]);
        sv_write_score(json, "score", r, &o->results[o->order[i]]);
        if (r->return_documents) sv_write_json(json, "input", r->originals[o->order[i]]);
        qr_out_string(json, "object", "rank_result");
        qr_out_close(json, '}');
    }
    qr_out_close(json, ']');
    qr_out_int(json, "top_k", o->n_shown);
    qr_out_bool(json, "return_input", r->return_documents);
    sv_write_usage(json, o);
    qr_out_close(json, '}');
}

const sv_dialect sv_dialect_mixedbread = {"mixedbread", matches, read, write, sv_write_error, NULL, 0};
