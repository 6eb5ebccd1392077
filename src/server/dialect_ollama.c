/* Ollama-style, told by its path /api/rerank: as `results`, but a document that comes back is a plain string.
 *
 * {"model", "query", "documents": [...], "top_n"?} -> {"model", "results": [{"index", "relevance_score", "document"?: string}]}
 */
#include "server/dialect.h"

#include <string.h>

static int matches(const char *path, const json_t *body) { return strcmp(path, "/api/rerank") == 0 && sv_field(body, "documents") != NULL; }

static void write(qr_json_out *json, const sv_request *r, const sv_outcome *o)
{
    qr_out_open(json, NULL, '{');
    qr_out_string(json, "model", o->model);
    sv_write_results(json, "results", r, o);
    sv_write_usage(json, o);
    qr_out_close(json, '}');
}

const sv_dialect sv_dialect_ollama = {"ollama", matches, sv_read_results, write, sv_write_error, NULL, 0};
