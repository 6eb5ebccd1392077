/* vLLM as a child of `serve` (--spawn): started with the flags that the backend needs, started again when it ends, stopped with the
 * service. */
#ifndef QR_CLI_SPAWN_H
#define QR_CLI_SPAWN_H

#include "cli/cli.h"

typedef struct cli_spawn cli_spawn;

/* Prepares vLLM for the model in `dir`, on a free port of this machine. `log` is called from a thread of its own, with what vLLM says, too.
 * Returns an exit code. */
int cli_spawn_open(cli_spawn **out, const cli_args *args, const char *dir, qr_log_fn log, void *log_arg);
int cli_spawn_start(cli_spawn *spawn, const cli_args *args);
/* SIGTERM to it and all its children, SIGKILL to those that are still there after 20 seconds. Accepts NULL. */
void cli_spawn_close(cli_spawn *spawn);
/* Where it answers; borrowed. */
const char *cli_spawn_url(const cli_spawn *spawn);
/* 1 if it has ended so often without ever being ready that it is not started any more. NULL: 0. */
int cli_spawn_has_failed(const cli_spawn *spawn);

#endif
