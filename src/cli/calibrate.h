/* The columns that matter to a model, from prompts of a file. */
#ifndef QR_CLI_CALIBRATE_H
#define QR_CLI_CALIBRATE_H

#include "cli/cli.h"
#include "cpu/int8.h"

/* path: JSON lines as for `score`. Reports errors itself, returns an exit code; the plan is then to be closed with qr_int8_plan_close. */
int cli_calibrate(const cli_args *args, const qr_model *model, const char *path, qr_int8_plan *plan);

#endif
