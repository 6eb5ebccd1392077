/* Infinity's own client, told by `raw_scores` beside `documents`: as `results`, but `object` is "rerank", which it checks, and a document
 * that comes back is a plain string.
 *
 * {"query", "documents": [...], "raw_scores", "return_documents"?, "top_n"?} -> {"object": "rerank", "results": [{"index",
 * "relevance_score", "document"?: string}], "model", "usage", "id", "created"}
 */
#include "server/dialect.h"

static int matches(const char *path, const json_t *body)
{
    (void) path;
    return json_object_get(body, "raw_scores") != NULL && sv_field(body, "documents") != NULL;
}

static void write(qr_json_out *json, const sv_request *r, const sv_outcome *o)
{
    qr_out_open(json, NULL, '{');
    qr_out_string(json, "id", o->id);
    qr_out_string(json, "object", "rerank");
    qr_out_string(json, "model", o->model);
    qr_out_int(json, "created", (uint64_t) o->created);
    sv_write_results(json, "results", r, o);
    sv_write_usage(json, o);
    qr_out_close(json, '}');
}

const sv_dialect sv_dialect_infinity = {"infinity", matches, sv_read_results, write, sv_write_error, NULL, 0};
