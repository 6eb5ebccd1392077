/* What goes to the user: text made harmless, columns by display width, JSON, colours, progress, and a standard output that is checked. */
#ifndef QR_CLI_OUTPUT_H
#define QR_CLI_OUTPUT_H

#include "base/json_out.h"
#include "cli/cli.h"

#include <stdint.h>
#include <stdio.h>

enum { CLI_SAFE_ALL = -1 };
/* Copies the start of a text in a form that cannot disturb a terminal: runs of white space become one space; control, bidirectional and
 * private-use characters become a dot; invalid UTF-8 becomes U+FFFD. At most `columns` terminal columns (CLI_SAFE_ALL: no limit), an
 * ellipsis marks a cut. `out` is NUL-terminated and holds at most size - 1 bytes. Returns the columns used. */
int cli_text_safe(char *out, size_t size, const char *text, size_t len, int columns);

/* Columns of the terminal behind stdout, or COLUMNS, or 0 when unknown. */
int cli_terminal_columns(void);
/* Whether to colour stdout: --color, then NO_COLOR and TERM=dumb, then whether it is a terminal. */
int cli_use_color(const cli_args *args);

/* Flushes stdout. A failure is reported once (a reader that went away silently), gives CLI_FAILURE and makes later calls fail too. */
int cli_stdout_flush(const cli_args *args);
int cli_stdout_close(const cli_args *args);

/* JSON to stdout. */
qr_json_out cli_json(int pretty);

/* A bar on stderr, drawn from half a second on if stderr is a terminal. `update` is a qr_progress_fn. */
typedef struct cli_progress {
    int shown;
    double begin, last; /* seconds, monotonic */
} cli_progress;
void cli_progress_begin(cli_progress *progress, const cli_args *args);
int cli_progress_update(void *progress, size_t done, size_t total);
void cli_progress_end(cli_progress *progress);

/* "1.2 GB", decimal units, for people. */
const char *cli_bytes(char *out, size_t size, uint64_t bytes);

#endif
