/* Voyage. Told by `top_k`, or by `truncation` without `top_n`.
 *
 * {"query", "documents", "top_k"?, "return_documents"?} -> {"data": [{"index", "relevance_score", "document"?: string}]}, best first. The
 * same as `results`, for a client of another kind that merely said top_k.
 */
#include "server/dialect.h"

#include <string.h>

static int matches(const char *path, const json_t *body)
{
    (void) path;
    return json_object_get(body, "top_k") != NULL ||
           (json_is_boolean(json_object_get(body, "truncation")) && json_object_get(body, "top_n") == NULL);
}

static qr_status read(sv_request *r, qr_error *err)
{
    qr_status status = sv_read_common(r, err);
    if (status == QR_OK) status = sv_read_count(r->body, "top_k", &r->top_n, err);
    if (status == QR_OK) status = sv_read_bool(r->body, "return_documents", &r->return_documents, err);
    return status != QR_OK ? status : sv_read_query_and_documents(r, r->body, "query", "documents", NULL, err);
}

static void write(qr_json_out *json, const sv_request *r, const sv_outcome *o)
{
    qr_out_open(json, NULL, '{');
    qr_out_string(json, "object", "list");
    sv_write_results(json, "data", r, o);
    sv_write_results(json, "results", r, o);
    qr_out_string(json, "model", o->model);
    qr_out_open(json, "usage", '{');
    qr_out_int(json, "total_tokens", o->prompt_tokens);
    qr_out_close(json, '}');
    qr_out_close(json, '}');
}

const sv_dialect sv_dialect_voyage = {"voyage", matches, read, write, sv_write_error, NULL, 0};
