/* The program: finds the command, parses its options, runs it, and makes sure that what it wrote has arrived. */
#define _GNU_SOURCE
#include "cli/cli.h"
#include "cli/output.h"
#include "engine/probe.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

const cli_command *const cli_commands[] = {
    &cli_serve,    &cli_pull,    &cli_models, &cli_rank,   &cli_score,      &cli_tokenize, &cli_inspect, &cli_config,
    &cli_quantize, &cli_convert, &cli_doctor, &cli_parity, &cli_completion, &cli_version,  &cli_help,    NULL,
};

/* A standard descriptor that the caller closed would be handed out again by the next open(), and results could end up in a model file's
 * descriptor. Reserving the number with the wrong direction makes reads and writes on it fail as they would have. */
static void reserve_standard_descriptors(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) == -1 && open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) < 0) _exit(CLI_FAILURE);
}

static int run(int argc, char **argv)
{
    if (argc < 2) {
        cli_help_print(stderr, NULL);
        return CLI_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, QR_PROBE_COMMAND) == 0) return qr_probe_main(argc - 2, argv + 2);
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) name = "help";
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) name = "version";
    const cli_command *command = cli_command_find(name);
    if (command == NULL) {
        size_t distance = 0;
        const char *best = NULL;
        for (size_t i = 0; cli_commands[i] != NULL; i++) cli_suggest(name, cli_commands[i]->name, &distance, &best);
        const char *kind = name[0] == '-' ? "option" : "command";
        if (best != NULL) cli_error(NULL, "unknown %s '%s'; did you mean '%s'?", kind, name, best);
        else cli_error(NULL, "unknown %s '%s'; see '" CLI_PROGRAM " help'", kind, name);
        return CLI_USAGE;
    }
    cli_args args;
    int code = cli_args_parse(&args, command, argc - 2, argv + 2);
    if (code == CLI_OK && args.help) cli_help_print(stdout, command);
    else if (code == CLI_OK) code = command->run(&args);
    int closed = cli_stdout_close(&args);
    if (closed != CLI_OK && (code == CLI_OK || code == CLI_BAD_INPUT)) code = closed;
    cli_args_deinit(&args);
    return code;
}

int main(int argc, char **argv)
{
    reserve_standard_descriptors();
    signal(SIGPIPE, SIG_IGN); /* a reader that went away is reported as an exit code, after the engine has been closed */
    return run(argc, argv);
}
