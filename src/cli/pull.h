/* Downloading a model from the command line: pull itself, and --pull of other commands. */
#ifndef QR_CLI_PULL_H
#define QR_CLI_PULL_H

#include "cli/cli.h"

/* 1 if `name` could be a model of the Hub: 0.6b, ORG/NAME, ORG/NAME@REVISION, ORG/NAME:QUANTISATION. */
int cli_is_pullable(const char *name);
/* Brings it into the cache, showing how far it is. *dir, if not NULL, is for qr_free. Reports errors itself, returns an exit code. */
int cli_pull_model(const cli_args *args, const char *name, const char *file, char **dir);

#endif
