/* DashScope, the native form. Told by an object `input`.
 *
 * {"model", "input": {"query", "documents"}, "parameters"?: {"top_n", "return_documents", "instruct"}}
 * -> {"output": {"results": [{"index", "relevance_score", "document"?: {"text"}}]}, "usage", "request_id"}, best first.
 */
#include "server/dialect.h"

static int matches(const char *path, const json_t *body)
{
    (void) path;
    return json_is_object(sv_field(body, "input"));
}

static qr_status read(sv_request *r, qr_error *err)
{
    const json_t *input = sv_field(r->body, "input"), *parameters = sv_field(r->body, "parameters");
    /* Their parameters are the others' fields. */
    if (json_is_object(parameters) && json_object_update_missing(r->body, (json_t *) (uintptr_t) parameters) != 0)
        return qr_fail(err, QR_E_MEMORY, "no memory for the request");
    qr_status status = sv_read_common(r, err);
    if (status == QR_OK) status = sv_read_count(r->body, "top_n", &r->top_n, err);
    if (status == QR_OK) status = sv_read_bool(r->body, "return_documents", &r->return_documents, err);
    return status != QR_OK ? status : sv_read_query_and_documents(r, input, "query", "documents", NULL, err);
}

static void write(qr_json_out *json, const sv_request *r, const sv_outcome *o)
{
    qr_out_open(json, NULL, '{');
    qr_out_open(json, "output", '{');
    qr_out_open(json, "results", '[');
    for (size_t i = 0; i < o->n_shown; i++) {
        qr_out_open(json, NULL, '{');
        qr_out_int(json, "index", o->order[i]);
        sv_write_score(json, "relevance_score", r, &o->results[o->order[i]]);
        if (r->return_documents) sv_write_document(json, "document", r, o->order[i]);
        qr_out_close(json, '}');
    }
    qr_out_close(json, ']');
    qr_out_close(json, '}');
    qr_out_open(json, "usage", '{');
    qr_out_int(json, "total_tokens", o->prompt_tokens);
    qr_out_close(json, '}');
    qr_out_string(json, "request_id", o->id);
    qr_out_close(json, '}');
}

static void write_error(qr_json_out *json, const sv_error *e)
{
    qr_out_open(json, NULL, '{');
    qr_out_string(json, "code", e->http == 401 ? "InvalidApiKey" : e->http < 500 ? "InvalidParameter" : "InternalError");
    qr_out_string(json, "message", e->message);
    qr_out_string(json, "request_id", e->id);
    qr_out_close(json, '}');
}

const sv_dialect sv_dialect_dashscope = {"dashscope", matches, read, write, write_error, NULL, 0};
