/* Opening the model that the common options ask for, exit codes of the library's errors, and interruption. */
#ifndef QR_CLI_ENGINE_H
#define QR_CLI_ENGINE_H

#include "cli/cli.h"
#include "engine/backend.h"

/* Folder of the model that `name` stands for (NULL: the default one). The caller frees *dir with qr_free. Reports errors itself. */
int cli_model_locate(const cli_args *args, const char *name, char **dir);
/* The note that every engine logs, for commands that read the built-in model without one. */
void cli_note_builtin(const cli_args *args, const char *dir);
/* Where the options say that backends compute and are looked for. */
qr_backend_place cli_backend_place(const cli_args *args);
/* Whether the backend that the options ask for can be used here, and its name. Reports errors itself and returns an exit code. */
int cli_backend_check(const cli_args *args, const char **name);
/* Opens the engine of the common options on a model (NULL: the default one); close with qr_engine_close. Reports errors itself and returns
 * an exit code. */
int cli_engine_open(const cli_args *args, const char *model, qr_log_fn log, void *log_arg, qr_engine **engine);
/* For `log`: by cli_note; `arg` is the cli_args. */
void cli_log_print(void *arg, qr_log_level level, const char *message);
/* Exit code for an error met while opening a model, or while scoring. */
int cli_exit_of_open(qr_status status);
int cli_exit_of_score(qr_status status);

/* SIGINT and SIGTERM end the program with CLI_INTERRUPTED. Between cli_cancel_begin and cli_cancel_end the first one sets the flag that
 * begin returns instead (for qr_call.cancel), so that finished results can be printed; a second one still ends the program at once. */
const volatile int *cli_cancel_begin(void);
/* Returns whether the flag was set. */
int cli_cancel_end(void);

#endif
