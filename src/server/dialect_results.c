/* "results": Cohere v1 and v2, Jina, vLLM, llama.cpp, SiliconFlow, LocalAI, Xinference, GPUStack, TensorRT-LLM.
 * One answer with the fields of all of them; every client reads its own and ignores the rest.
 *
 * {"query", "documents": [...], "top_n"?, "return_documents"?} -> {"results": [{"index", "relevance_score", "document"?}], ...}, best
 * first. Ours: "partial": true -> "partial", "failed": [{"index", "error"}].
 */
#include "server/dialect.h"

static int matches(const char *path, const json_t *body)
{
    (void) path, (void) body;
    return 1; /* what no other dialect takes */
}

qr_status sv_read_results(sv_request *r, qr_error *err)
{
    int use_activation = 1;
    qr_status status = sv_read_common(r, err);
    if (status == QR_OK) status = sv_read_count(r->body, "top_n", &r->top_n, err);
    if (status == QR_OK) status = sv_read_bool(r->body, "return_documents", &r->return_documents, err);
    if (status == QR_OK) status = sv_read_bool(r->body, "raw_scores", &r->raw_scores, err);
    if (status == QR_OK) status = sv_read_bool(r->body, "activation", &use_activation, err); /* vLLM, older and newer */
    if (status == QR_OK) status = sv_read_bool(r->body, "use_activation", &use_activation, err);
    if (!use_activation) r->raw_scores = 1;
    if (status != QR_OK) return status;
    return sv_read_query_and_documents(r, r->body, "query", "documents", sv_field(r->body, "rank_fields"), err);
}

/* Some clients that call themselves OpenAI-like read `data`. */
static void write_mirror(qr_json_out *json, const sv_request *r, const sv_outcome *o)
{
    qr_out_open(json, "data", '[');
    for (size_t i = 0; i < o->n_shown; i++) {
        qr_out_open(json, NULL, '{');
        qr_out_int(json, "index", o->order[i]);
        sv_write_score(json, "relevance_score", r, &o->results[o->order[i]]);
        qr_out_close(json, '}');
    }
    qr_out_close(json, ']');
}

static qr_status read(sv_request *r, qr_error *err)
{
    qr_status status = sv_read_bool(r->body, "partial", &r->partial, err);
    return status == QR_OK ? sv_read_results(r, err) : status;
}

/* Of a request with "partial": which documents have no score, and why. */
static void write_failed(qr_json_out *json, const sv_request *r, const sv_outcome *o)
{
    qr_out_bool(json, "partial", o->failure != NULL);
    qr_out_open(json, "failed", '[');
    for (size_t i = 0; i < r->n_documents; i++) {
        if (o->results[i].flags & QR_RESULT_DONE) continue;
        qr_out_open(json, NULL, '{');
        qr_out_int(json, "index", i);
        qr_out_string(json, "error", o->failures != NULL && o->failures[i] != NULL ? o->failures[i] : o->failure);
        qr_out_close(json, '}');
    }
    qr_out_close(json, ']');
}

static void write(qr_json_out *json, const sv_request *r, const sv_outcome *o)
{
    qr_out_open(json, NULL, '{');
    qr_out_string(json, "id", o->id);
    qr_out_string(json, "object", "list");
    qr_out_string(json, "model", o->model);
    qr_out_int(json, "created", (uint64_t) o->created);
    qr_out_open(json, "results", '[');
    for (size_t i = 0; i < o->n_shown; i++) {
        const qr_result *result = &o->results[o->order[i]];
        qr_out_open(json, NULL, '{');
        qr_out_int(json, "index", o->order[i]);
        sv_write_score(json, "relevance_score", r, result);
        sv_write_score(json, "score", r, result);
        if (r->return_documents) sv_write_document(json, "document", r, o->order[i]);
        qr_out_close(json, '}');
    }
    qr_out_close(json, ']');
    if (r->partial) write_failed(json, r, o);
    if (o->mirror_data) write_mirror(json, r, o);
    sv_write_usage(json, o);
    qr_out_open(json, "meta", '{');
    qr_out_open(json, "api_version", '{');
    qr_out_string(json, "version", "2");
    qr_out_close(json, '}');
    qr_out_open(json, "billed_units", '{');
    qr_out_int(json, "search_units", 1);
    qr_out_int(json, "total_tokens", o->prompt_tokens);
    qr_out_close(json, '}');
    qr_out_open(json, "tokens", '{');
    qr_out_int(json, "input_tokens", o->prompt_tokens);
    qr_out_int(json, "output_tokens", 0);
    qr_out_close(json, '}');
    if (o->n_truncated > 0) {
        qr_out_open(json, "warnings", '[');
        qr_out_string(json, NULL, "documents were cut to fit; the X-Truncated-Documents header says how many");
        qr_out_close(json, ']');
    }
    qr_out_close(json, '}');
    qr_out_close(json, '}');
}

const sv_dialect sv_dialect_results = {"results", matches, read, write, sv_write_error, NULL, 0};
