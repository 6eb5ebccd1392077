/* See calibrate.h. */
#include "cli/calibrate.h"

#include "base/mem.h"
#include "cli/engine.h"
#include "cli/pairs.h"
#include "cpu/importance.h"
#include "model/builtin.h"
#include "text/prompt.h"

static const size_t MAX_LENGTH = 4096; /* tokens of a prompt: what is typical shows in fewer */

typedef struct prompts {
    qr_prompt_ids *ids; /* [n] by query */
    size_t n;
    qr_batch batch;
    qr_prefix *prefixes;
    qr_seq *seqs;
} prompts;

static void drop(prompts *p)
{
    for (size_t i = 0; i < p->n; i++) qr_prompt_ids_deinit(&p->ids[i]);
    qr_free(p->ids);
    qr_free(p->prefixes);
    qr_free(p->seqs);
}

static qr_status build(prompts *p, const cli_pairs *pairs, const qr_prompt *prompt, size_t max_length, qr_error *err)
{
    size_t n = 0;
    p->ids = qr_calloc(pairs->n_queries, sizeof *p->ids);
    p->prefixes = qr_calloc(pairs->n_queries, sizeof *p->prefixes);
    p->seqs = qr_calloc(pairs->n, sizeof *p->seqs);
    if (p->ids == NULL || p->prefixes == NULL || p->seqs == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for %zu prompts", pairs->n);
    for (; p->n < pairs->n_queries; p->n++) {
        qr_prompt_ids *ids = &p->ids[p->n];
        qr_status status = qr_prompt_build(prompt, &pairs->queries[p->n], max_length, ids, err);
        if (status != QR_OK) return qr_fail_prefix(err, status, "query %zu", p->n + 1);
        p->prefixes[p->n] = (qr_prefix){ids->ids.id, ids->n_shared};
        for (size_t d = 0; d < pairs->queries[p->n].n_documents; d++)
            p->seqs[n++] = (qr_seq){ids->ids.id + ids->start[d], ids->start[d + 1] - ids->start[d], p->n};
    }
    p->batch = (qr_batch){p->prefixes, p->n, p->seqs, n, NULL};
    return QR_OK;
}

int cli_calibrate(const cli_args *args, const qr_model *model, const char *path, qr_int8_plan *plan)
{
    size_t max_length = model->config.max_positions < MAX_LENGTH ? model->config.max_positions : MAX_LENGTH;
    qr_tokenizer *tok = NULL;
    qr_prompt *prompt = NULL;
    prompts p = {0};
    cli_pairs pairs;
    qr_error err = {0};
    int code = cli_pairs_read(&pairs, args, path);
    if (code == CLI_OK) {
        qr_status status = qr_model_tokenizer_open(&tok, model->dir, &err);
        if (status == QR_OK) status = qr_prompt_open(&prompt, tok, &(qr_options){0}, &err);
        if (status == QR_OK) status = build(&p, &pairs, prompt, max_length, &err);
        if (status == QR_OK) {
            p.batch.cancel = cli_cancel_begin();
            qr_backend_cfg cfg = {.model = model,
                                  .yes_id = qr_prompt_yes_id(prompt),
                                  .no_id = qr_prompt_no_id(prompt),
                                  .threads = (int) args->threads,
                                  .max_length = max_length,
                                  .calibration = &p.batch};
            status = qr_find_importance(plan, &cfg, &err);
            cli_cancel_end();
        }
        if (status != QR_OK) {
            cli_error(args, "%s", err.msg);
            code = cli_exit_of_score(status);
        }
    }
    drop(&p);
    qr_prompt_close(prompt);
    qr_tok_close(tok);
    cli_pairs_deinit(&pairs);
    return code;
}
