/* What quantize and convert share: writing a model anew, the table of what became of it, and how far the scores moved. */
#ifndef QR_CLI_EXPORT_H
#define QR_CLI_EXPORT_H

#include "cli/cli.h"
#include "model/export.h"

typedef struct cli_drift {
    size_t n, n_orders;
    double score_max, score_mean, margin_max, margin_mean, tau;
} cli_drift;

/* Scores a small list of queries and documents with both models, by the CPU engine in f32. Reports errors itself, returns an exit code. */
int cli_drift_measure(const cli_args *args, const char *a, const char *b, cli_drift *drift);

/* Whether a file of that name is to be GGUF. */
int cli_is_gguf_name(const char *name);

/* Writes the model IN (a folder, a name) to OUT by the recipe, prints the table, and measures unless --no-check. Returns an exit code. */
int cli_export(const cli_args *args, const char *in, const char *out, const qr_recipe *recipe, int keep_files, int check);

#endif
