/* NVIDIA NIM. Told by `passages`.
 *
 * {"query": {"text"}, "passages": [{"text"}, ...], "truncate"?: "NONE" | "END"} -> {"rankings": [{"index", "logit"}], "usage"}, best
 * first. The logit is the margin, logit(yes) - logit(no). top_n is RAGFlow's.
 */
#include "server/dialect.h"

static int matches(const char *path, const json_t *body)
{
    (void) path;
    return json_is_array(sv_field(body, "passages")) && sv_field(body, "documents") == NULL;
}

static qr_status read(sv_request *r, qr_error *err)
{
    qr_status status = sv_read_common(r, err);
    if (status == QR_OK) status = sv_read_count(r->body, "top_n", &r->top_n, err);
    return status != QR_OK ? status : sv_read_query_and_documents(r, r->body, "query", "passages", NULL, err);
}

static void write(qr_json_out *json, const sv_request *r, const sv_outcome *o)
{
    (void) r;
    qr_out_open(json, NULL, '{');
    qr_out_open(json, "rankings", '[');
    for (size_t i = 0; i < o->n_shown; i++) {
        qr_out_open(json, NULL, '{');
        qr_out_int(json, "index", o->order[i]);
        qr_out_real(json, "logit", (double) o->results[o->order[i]].margin, 9);
        qr_out_close(json, '}');
    }
    qr_out_close(json, ']');
    sv_write_usage(json, o);
    qr_out_close(json, '}');
}

const sv_dialect sv_dialect_nim = {"nim", matches, read, write, sv_write_error, NULL, 0};
