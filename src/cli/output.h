/* What goes to the user: text made harmless, columns by display width, JSON, colours, progress, and a standard output that is checked. */
#ifndef QR_CLI_OUTPUT_H
#define QR_CLI_OUTPUT_H

#include "cli/cli.h"

#include <stdint.h>
#include <stdio.h>

/* Decodes the code point at text[0..len), len > 0, and returns its bytes. *code is -1 for an invalid sequence, of which the maximal
 * subsequence is consumed, as WHATWG decoders and the library do. */
size_t cli_utf8_next(const char *text, size_t len, int32_t *code);
/* 1 if the text is valid UTF-8. */
int cli_utf8_valid(const char *text, size_t len);

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

/* JSON, written straight to stdout. jansson writes every number of a document with one precision; scores need 17 digits and margins 9.
 * Values of the outer two levels come on lines of their own when `pretty`. All strings are repaired to valid UTF-8. */
typedef struct cli_json {
    int pretty, depth, n; /* n: values so far in the innermost container */
} cli_json;
void cli_json_open(cli_json *json, const char *key, char bracket); /* '{' or '['; key NULL inside an array or at the top */
void cli_json_close(cli_json *json, char bracket);                 /* '}' or ']'; ends the line at the top level */
void cli_json_text(cli_json *json, const char *key, const char *text, size_t len);
void cli_json_string(cli_json *json, const char *key, const char *text); /* NULL text gives null */
void cli_json_int(cli_json *json, const char *key, uint64_t value);
void cli_json_real(cli_json *json, const char *key, double value, int digits); /* significant digits */
void cli_json_bool(cli_json *json, const char *key, int value);

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
