/* text-embeddings-inference, and llama.cpp when it is sent texts.
 *
 * {"query", "texts": [...], "return_text"?, "raw_scores"?} -> a bare array [{"index", "text"?, "score"}], best first. top_n is not TEI's
 * own, but litellm sends it in this dialect. Errors are {"error", "error_type"}, both strings: Haystack reads them so.
 */
#include "server/dialect.h"

#include <string.h>

static int matches(const char *path, const json_t *body)
{
    (void) path;
    return json_is_array(sv_field(body, "texts"));
}

static qr_status read(sv_request *r, qr_error *err)
{
    qr_status status = sv_read_common(r, err);
    if (status == QR_OK) status = sv_read_count(r->body, "top_n", &r->top_n, err);
    if (status == QR_OK) status = sv_read_bool(r->body, "return_text", &r->return_documents, err);
    if (status == QR_OK) status = sv_read_bool(r->body, "raw_scores", &r->raw_scores, err);
    return status != QR_OK ? status : sv_read_query_and_documents(r, r->body, "query", "texts", NULL, err);
}

static void write(qr_json_out *json, const sv_request *r, const sv_outcome *o)
{
    qr_out_open(json, NULL, '[');
    for (size_t i = 0; i < o->n_shown; i++) {
        qr_text text = r->documents[o->order[i]];
        qr_out_open(json, NULL, '{');
        qr_out_int(json, "index", o->order[i]);
        if (r->return_documents) qr_out_text(json, "text", text.data, text.len);
        sv_write_score(json, "score", r, &o->results[o->order[i]]);
        qr_out_close(json, '}');
    }
    qr_out_close(json, ']');
}

static int is_empty(const char *message) { return strstr(message, "non-empty") != NULL; }

static const char *error_type(const sv_error *e)
{
    if (e->http == 429) return "Overloaded";
    if (e->http == 503) return "Unhealthy";
    if (e->http == 400 && is_empty(e->message)) return "Empty";
    return e->http >= 500 || e->http == 424 ? "Backend" : "Validation";
}

static void write_error(qr_json_out *json, const sv_error *e)
{
    qr_out_open(json, NULL, '{');
    qr_out_string(json, "error", e->message);
    qr_out_string(json, "error_type", error_type(e));
    qr_out_close(json, '}');
}

static int http_of(const qr_error *error)
{
    switch (error->code) {
    case QR_E_INPUT:
        return is_empty(error->msg) ? 400 : 422;
    case QR_E_TOO_LONG:
        return 422;
    case QR_E_BACKEND:
        return 424;
    default:
        return qr_status_http(error->code);
    }
}

const sv_dialect sv_dialect_tei = {"tei", matches, read, write, write_error, http_of, 1};
