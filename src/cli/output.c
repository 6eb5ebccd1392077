/* See output.h. Widths and grapheme clusters come from utf8proc, so that columns line up for CJK, combining marks and most emoji; a
 * terminal with other ideas of a width shifts a column, nothing worse. The locale is never set: output is UTF-8 and numbers have a point.
 */
#define _GNU_SOURCE
#include "cli/output.h"

#include "base/utf8.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>
#include <utf8proc.h>

static int is_blank(int32_t code)
{
    return code == ' ' || (code >= '\t' && code <= '\r') || code == 0x85 || code == 0xA0 || code == 0x2028 || code == 0x2029;
}

static int is_harmful(int32_t code)
{
    utf8proc_category_t category = utf8proc_category(code);
    if (code == 0x200D) return 0; /* joins emoji */
    return category == UTF8PROC_CATEGORY_CC || category == UTF8PROC_CATEGORY_CF || category == UTF8PROC_CATEGORY_CO ||
           category == UTF8PROC_CATEGORY_CN;
}

int cli_text_safe(char *out, size_t size, const char *text, size_t len, int columns)
{
    static const char ellipsis[] = "\xE2\x80\xA6";
    size_t used = 0, fits = 0; /* fits: bytes that leave a column for the ellipsis */
    int width = 0, fits_width = 0, cluster = 0, after_blank = 1, cut = 0;
    int32_t previous = -1, state = 0;
    for (size_t i = 0; i < len;) {
        uint32_t next;
        i += qr_utf8_decode((const unsigned char *) text + i, len - i, &next);
        int32_t code = next == QR_UTF8_INVALID ? 0xFFFD : (int32_t) next;
        if (is_blank(code)) code = ' ';
        else if (is_harmful(code)) code = 0xB7;
        if (code == ' ' && after_blank) continue;
        after_blank = code == ' ';
        int begins = previous < 0 || utf8proc_grapheme_break_stateful(previous, code, &state);
        previous = code;
        int w = utf8proc_charwidth(code);
        if (begins) {
            if (columns != CLI_SAFE_ALL && width <= columns - 1) {
                fits = used;
                fits_width = width;
            }
            cluster = 0;
        }
        /* A cluster (a base with marks, joined emoji, a flag) is drawn as one character of at most two columns. */
        if (cluster + w > 2) w = 2 - cluster;
        utf8proc_uint8_t bytes[4];
        size_t n = (size_t) utf8proc_encode_char(code, bytes);
        if ((columns != CLI_SAFE_ALL && width + w > columns) || used + n + sizeof ellipsis > size) {
            cut = 1;
            break;
        }
        memcpy(out + used, bytes, n);
        used += n;
        width += w;
        cluster += w;
    }
    if (cut) {
        if (columns != CLI_SAFE_ALL && width > columns - 1) {
            used = fits;
            width = fits_width;
        }
        if (columns == CLI_SAFE_ALL || columns > 0) {
            memcpy(out + used, ellipsis, sizeof ellipsis - 1);
            used += sizeof ellipsis - 1;
            width++;
        }
    } else if (used > 0 && out[used - 1] == ' ') {
        used--;
        width--;
    }
    out[used] = 0;
    return width;
}

int cli_terminal_columns(void)
{
    struct winsize size;
    if (isatty(STDOUT_FILENO) && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
    const char *columns = cli_env("COLUMNS");
    long value = columns != NULL ? strtol(columns, NULL, 10) : 0;
    return value >= 20 && value <= 10000 ? (int) value : 0;
}

int cli_use_color(const cli_args *args)
{
    const char *term = cli_env("TERM");
    if (args->color != CLI_COLOR_AUTO) return args->color == CLI_COLOR_ALWAYS;
    return cli_env("NO_COLOR") == NULL && term != NULL && strcmp(term, "dumb") != 0 && isatty(STDOUT_FILENO);
}

static int output_failed(const cli_args *args, int reason)
{
    if (reason != EPIPE) cli_error(args, "standard output: cannot write: %s", strerror(reason));
    return CLI_FAILURE;
}

/* The reason that an earlier fprintf met is lost, only the stream's flag is left: a pipe without a reader, or, likeliest of all else, a
 * full device. */
static int lost_reason(void)
{
    struct pollfd p = {STDOUT_FILENO, POLLOUT, 0};
    return poll(&p, 1, 0) == 1 && (p.revents & POLLERR) != 0 ? EPIPE : ENOSPC;
}

int cli_stdout_flush(const cli_args *args)
{
    static int failed; /* of the process's one standard output */
    if (failed) return CLI_FAILURE;
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout)) return CLI_OK;
    failed = 1;
    return output_failed(args, errno != 0 ? errno : lost_reason());
}

int cli_stdout_close(const cli_args *args)
{
    if (cli_stdout_flush(args) != CLI_OK) return CLI_FAILURE;
    /* Some file systems report a full disk only here. Closing a descriptor that was never open for writing is nobody's loss. */
    if (fclose(stdout) != 0) return output_failed(args, errno);
    return CLI_OK;
}

static void write_stdout(void *arg, const char *text, size_t len) { (void) arg, fwrite(text, 1, len, stdout); }

qr_json_out cli_json(int pretty) { return (qr_json_out){.write = write_stdout, .spaced = 1, .pretty = pretty, .lines = 1}; }

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double) t.tv_sec + 1e-9 * (double) t.tv_nsec;
}

void cli_progress_begin(cli_progress *progress, const cli_args *args)
{
    int wanted = isatty(STDERR_FILENO) && args->log_level != QR_LOG_ERROR;
    *progress = (cli_progress){.begin = wanted ? now() : 0};
}

int cli_progress_update(void *arg, size_t done, size_t total)
{
    enum { BAR = 30 };
    cli_progress *progress = arg;
    double t = progress->begin > 0 && total > 0 ? now() : 0;
    /* Short work needs no bar; ten pictures a second are enough for an eye and cost nothing. */
    if (t == 0 || t - progress->begin < 0.5 || (t - progress->last < 0.1 && done < total)) return 0;
    progress->last = t;
    progress->shown = 1;
    char bar[BAR + 1];
    size_t filled = (size_t) ((double) BAR * (double) done / (double) total);
    for (size_t i = 0; i < BAR; i++) bar[i] = i < filled ? '#' : '.';
    bar[BAR] = 0;
    fprintf(stderr, "\r[%s] %zu/%zu  %.1f documents/s\x1b[K", bar, done, total, (double) done / (t - progress->begin));
    fflush(stderr);
    return 0;
}

void cli_progress_end(cli_progress *progress)
{
    if (progress->shown) fputs("\r\x1b[K", stderr);
    progress->shown = 0;
}

const char *cli_bytes(char *out, size_t size, uint64_t bytes)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    double value = (double) bytes;
    size_t unit = 0;
    while (value >= 999.5 && unit + 1 < sizeof units / sizeof units[0]) {
        value /= 1000;
        unit++;
    }
    snprintf(out, size, unit == 0 || value >= 99.5 ? "%.0f %s" : value >= 9.95 ? "%.1f %s" : "%.2f %s", value, units[unit]);
    return out;
}
