/* Profiles: named sets of options in YAML, some built in, others in a user's file. */
#ifndef QR_CLI_CONFIG_H
#define QR_CLI_CONFIG_H

#include "base/json_out.h"
#include "cli/cli.h"

/* Fills what neither the command line nor the environment gave from the profile that they, or the user's file, name. Reports errors itself
 * and returns an exit code. Does nothing for commands without --profile. */
int cli_profile_apply(cli_args *args);
/* "profile", "settings": members of the object of /v1/config. `arg` is a const cli_args. */
void cli_config_write(qr_json_out *json, void *arg);

#endif
