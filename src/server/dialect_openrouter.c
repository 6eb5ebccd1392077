/* OpenRouter, told by its path /api/v1/rerank: as `results`, but the documents come back unless they are refused. Its own clients check
 * that every result has one, and have no way to ask for it.
 */
#include "server/dialect.h"

#include <string.h>

extern const sv_dialect sv_dialect_results;

static int matches(const char *path, const json_t *body)
{
    return strcmp(path, "/api/v1/rerank") == 0 && sv_field(body, "documents") != NULL;
}

static qr_status read(sv_request *r, qr_error *err)
{
    r->return_documents = 1;
    return sv_read_results(r, err);
}

static void write(qr_json_out *json, const sv_request *r, const sv_outcome *o) { sv_dialect_results.write(json, r, o); }

const sv_dialect sv_dialect_openrouter = {"openrouter", matches, read, write, sv_write_error, NULL, 0};
