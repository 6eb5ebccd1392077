/* See export.h. */
#define _GNU_SOURCE
#include "cli/export.h"

#include "base/mem.h"
#include "cli/calibrate.h"
#include "cli/engine.h"
#include "cli/output.h"

#include <string.h>
#include <sys/stat.h>

int cli_is_gguf_name(const char *name)
{
    size_t n = strlen(name);
    return n > 5 && strcmp(name + n - 5, ".gguf") == 0;
}

/* "Q4_K", "4-bit, 64". */
static const char *form_text(const qr_quant_form *form, char *text, size_t size)
{
    if (form->group == 0) return qr_tensor_type_name(form->type);
    snprintf(text, size, "%u-bit, %u", form->bits, form->group);
    return text;
}

static double bits_of(const qr_export_row *row) { return 8 * (double) row->bytes / ((double) row->rows * (double) row->cols); }

static void print_table(const qr_export *job, const char *out, const cli_drift *drift)
{
    char type[32], bytes[32];
    uint64_t total = 0;
    printf("%-46s %-10s %6s %10s %10s\n", "tensor", "type", "bits", "rmse", "max error");
    for (size_t i = 0; i < job->n_rows; i++) {
        const qr_export_row *r = &job->rows[i];
        total += r->bytes;
        printf("%-46s %-10s %6.3f %10.3g %10.3g%s\n", r->name, form_text(&r->form, type, sizeof type), bits_of(r), r->rmse, r->max_error,
               r->fell_back ? "  (its rows are no whole blocks of the type asked for)" : "");
    }
    printf("%s: %s of tensors, %.3f bits per weight\n", out, cli_bytes(bytes, sizeof bytes, total),
           8 * (double) total / (double) job->model->n_parameters);
    if (drift != NULL)
        printf("drift on %zu documents: score max %.4f, mean %.4f; margin max %.3f, mean %.3f; Kendall's tau %.3f\n", drift->n,
               drift->score_max, drift->score_mean, drift->margin_max, drift->margin_mean, drift->tau);
}

static void print_json(const qr_export *job, const char *out, const cli_drift *drift)
{
    qr_json_out json = cli_json(1);
    char type[32];
    uint64_t total = 0;
    qr_out_open(&json, NULL, '{');
    qr_out_string(&json, "model", job->model->dir);
    qr_out_string(&json, "out", out);
    qr_out_string(&json, "type", job->recipe->name);
    qr_out_open(&json, "tensors", '[');
    for (size_t i = 0; i < job->n_rows; i++) {
        const qr_export_row *r = &job->rows[i];
        total += r->bytes;
        qr_out_open(&json, NULL, '{');
        qr_out_string(&json, "name", r->name);
        qr_out_string(&json, "type", form_text(&r->form, type, sizeof type));
        qr_out_int(&json, "rows", r->rows);
        qr_out_int(&json, "cols", r->cols);
        qr_out_int(&json, "bytes", r->bytes);
        qr_out_real(&json, "bits_per_weight", bits_of(r), 6);
        qr_out_real(&json, "rmse", r->rmse, 6);
        qr_out_real(&json, "max_error", r->max_error, 6);
        qr_out_bool(&json, "fell_back", r->fell_back);
        qr_out_close(&json, '}');
    }
    qr_out_close(&json, ']');
    qr_out_int(&json, "bytes", total);
    qr_out_real(&json, "bits_per_weight", 8 * (double) total / (double) job->model->n_parameters, 6);
    if (drift != NULL) {
        qr_out_open(&json, "drift", '{');
        qr_out_int(&json, "documents", drift->n);
        qr_out_real(&json, "score_max", drift->score_max, 6);
        qr_out_real(&json, "score_mean", drift->score_mean, 6);
        qr_out_real(&json, "margin_max", drift->margin_max, 6);
        qr_out_real(&json, "margin_mean", drift->margin_mean, 6);
        qr_out_real(&json, "kendall_tau", drift->tau, 6);
        qr_out_close(&json, '}');
    }
    qr_out_close(&json, '}');
}

/* What the kind of output cannot hold. */
static int check_kind(const cli_args *args, const char *out, const qr_recipe *recipe)
{
    int gguf = cli_is_gguf_name(out), mlx = recipe->type == QR_T_U32;
    int blocks = recipe->type != QR_AS_STORED && !mlx && qr_tensor_type_block((qr_tensor_type) recipe->type) > 1;
    if (gguf && mlx) cli_error(args, "%s: expected a folder for %s, found a name of a GGUF file", out, recipe->name);
    else if (!gguf && blocks) cli_error(args, "%s: expected a name that ends in .gguf for %s, found another", out, recipe->name);
    else return CLI_OK;
    return CLI_USAGE;
}

int cli_export(const cli_args *args, const char *in, const char *out, const qr_recipe *recipe, int keep_files, int check)
{
    qr_model model;
    qr_error err = {0};
    char *dir = NULL;
    cli_drift drift;
    int code = check_kind(args, out, recipe);
    if (code == CLI_OK) code = cli_model_locate(args, in, &dir);
    if (code != CLI_OK) return code;
    qr_status status = qr_model_open(&model, dir, &err);
    if (status != QR_OK) {
        cli_error(args, "%s", err.msg);
        qr_free(dir);
        return cli_exit_of_open(status);
    }
    qr_int8_plan plan = {0};
    if (args->calibrate != NULL && (code = cli_calibrate(args, &model, args->calibrate, &plan)) != CLI_OK) {
        qr_model_close(&model);
        qr_free(dir);
        return code;
    }
    qr_export job = {.model = &model,
                     .recipe = recipe,
                     .keep_files = keep_files,
                     .importance = args->calibrate != NULL ? &plan : NULL,
                     .cancel = cli_cancel_begin()};
    status = cli_is_gguf_name(out) ? qr_export_gguf(&job, out, &err) : qr_export_folder(&job, out, &err);
    cli_cancel_end();
    if (status != QR_OK) {
        cli_error(args, "%s", err.msg);
        code = status == QR_E_ARG ? CLI_USAGE : cli_exit_of_score(status);
    }
    if (code == CLI_OK && check) code = cli_drift_measure(args, dir, out, &drift);
    if (status == QR_OK) {
        if (args->format == CLI_FORMAT_JSON) print_json(&job, out, code == CLI_OK && check ? &drift : NULL);
        else print_table(&job, out, code == CLI_OK && check ? &drift : NULL);
        int flushed = cli_stdout_flush(args);
        code = code != CLI_OK ? code : flushed;
    }
    qr_export_deinit(&job);
    qr_int8_plan_close(&plan);
    qr_model_close(&model);
    qr_free(dir);
    return code;
}
