/* See probe.h. */
#define _GNU_SOURCE
#include "engine/probe.h"

#include "base/file.h"
#include "base/system.h"
#include "engine/plugin.h"
#include "engine/scheduler.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define ANSWER "qwen-rerank " QR_VERSION ": " /* begins the line that answers, as libraries may have said something before */

/* By default long enough for the first start of CUDA on a machine, which compiles kernels. 0: the variable is nonsense. */
static int time_limit_s(void)
{
    const char *text = getenv(QR_PROBE_VARIABLE);
    char *end;
    if (text == NULL || text[0] == 0) return 120;
    long seconds = strtol(text, &end, 10);
    return *end == 0 && seconds > 0 && seconds <= 86400 ? (int) seconds : 0;
}

int qr_probe_main(int argc, char **argv)
{
    char why[QR_REASON_SIZE] = "";
    if (argc != 4 && argc != 6) return 2; /* also what a program without this command does */
    alarm((unsigned) time_limit_s() + 5); /* whoever waited may be gone */
    qr_backend_place place = {.device = argv[1][0] != 0 ? argv[1] : NULL,
                              .torch_dir = argv[2][0] != 0 ? argv[2] : NULL,
                              .plugin_dir = argv[3][0] != 0 ? argv[3] : NULL};
    int value = argc == 4
                    ? qr_backend_probe_here(argv[0], &place, why, sizeof why)
                    : (int) qr_backend_check_here(argv[0], &place, (qr_dtype) atoi(argv[4]), (qr_switch) atoi(argv[5]), why, sizeof why);
    printf("\n" ANSWER "%d %s\n", value, why);
    return 0;
}

static int find_program(char *path, size_t size)
{
    char dir[3500];
    static const char *const beside[] = {"qwen-rerank", "../bin/qwen-rerank", "../../bin/qwen-rerank"}; /* lib/, lib/x86_64-linux-gnu/ */
    for (int i = 0; i < 2; i++) {
        if (!(i == 0 ? qr_program_dir(dir, sizeof dir) : qr_library_dir(dir, sizeof dir))) continue;
        for (size_t j = 0; j < sizeof beside / sizeof beside[0]; j++) {
            snprintf(path, size, "%s/%s", dir, beside[j]);
            if (qr_file_exists(path) && access(path, X_OK) == 0) return 1;
        }
    }
    return 0;
}

/* Keeps the end of what is said until it ends, at most so long. 0: time was up. */
static int read_all(int fd, int limit_s, char *text, size_t size)
{
    size_t used = 0;
    double end = qr_now() + limit_s;
    for (;;) {
        struct pollfd p = {fd, POLLIN, 0};
        double left = end - qr_now();
        int ready = left > 0 ? poll(&p, 1, (int) (left * 1000) + 1) : 0;
        if (ready < 0 && errno == EINTR) continue;
        if (ready <= 0) break;
        if (used > size / 2) { /* the latter half is enough */
            memmove(text, text + used - size / 2, size / 2);
            used = size / 2;
        }
        ssize_t n = read(fd, text + used, size - 1 - used);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            text[used] = 0;
            return 1;
        }
        used += (size_t) n;
    }
    text[used] = 0;
    return 0;
}

/* Without standard input; both outputs go to `out`. */
static int start(pid_t *pid, const char *program, char **arguments, int out)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none;
    sigemptyset(&none);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, out, 1);
    posix_spawn_file_actions_adddup2(&actions, out, 2);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    int failed = posix_spawn(pid, program, &actions, &attributes, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    return failed == 0;
}

/* The line that answers, or -1. */
static int parse(char *said, char *why, size_t size)
{
    char *answer = NULL, *end;
    for (char *at = said; (at = strstr(at, "\n" ANSWER)) != NULL; at++) answer = at + strlen("\n" ANSWER);
    if (answer == NULL) return -1;
    long value = strtol(answer, &end, 10);
    if (end == answer || *end != ' ' || value < 0 || value > 1000) return -1;
    end[strcspn(end, "\n")] = 0;
    snprintf(why, size, "%s", end + 1);
    return (int) value;
}

static const char *last_line(char *said)
{
    size_t n = strlen(said);
    while (n > 0 && said[n - 1] == '\n') said[--n] = 0;
    const char *begin = strrchr(said, '\n');
    return begin != NULL ? begin + 1 : said;
}

/* Another version's program, which does not know the command or answers for itself. */
static int is_other_program(const char *said, int status)
{
    return WIFEXITED(status) && ((WEXITSTATUS(status) == 2 && strstr(said, QR_PROBE_COMMAND) != NULL) ||
                                 (WEXITSTATUS(status) == 0 && strstr(said, "qwen-rerank ") != NULL));
}

/* What the child loads, for people. */
static void name_library(char *text, size_t size, const char *name, const qr_backend_place *place)
{
    qr_error ignored = {0};
    if (qr_plugin_find(text, size, name, place->plugin_dir, &ignored) == QR_OK) return;
    snprintf(text, size, "%s", place->torch_dir != NULL ? place->torch_dir : "the torch of python3");
}

/* Returns QR_PROBE_DIED. The library's name comes last, as it may be long. */
static int explain_end(int status, const char *library, char *said, char *why, size_t size)
{
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
    const char *line = last_line(said);
    if (WIFSIGNALED(status))
        snprintf(why, size, "the process that tried it was ended by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else snprintf(why, size, "the process that tried it ended with exit code %d", code);
    size_t used = strlen(why);
    if (line[0] != 0) snprintf(why + used, size - used, ", saying: %.200s", line);
    used = strlen(why);
    snprintf(why + used, size - used, ": %s", library);
    return QR_PROBE_DIED;
}

int qr_probe_in_child(const char *name, const qr_backend_place *place, const qr_probe_check *check, char *why, size_t size)
{
    char program[4096], library[4200], said[2048] = "", dtype[16] = "", flash[16] = "";
    int out[2], status = 0, limit_s = time_limit_s();
    pid_t pid;
    if (limit_s == 0) {
        snprintf(why, size, QR_PROBE_VARIABLE ": expected 1 to 86400 seconds, found \"%s\"", getenv(QR_PROBE_VARIABLE));
        return QR_PROBE_DIED;
    }
    if (!find_program(program, sizeof program) || pipe(out) != 0) return QR_PROBE_NO_PROGRAM;
    fcntl(out[0], F_SETFD, FD_CLOEXEC);
    fcntl(out[1], F_SETFD, FD_CLOEXEC);
    if (check != NULL) {
        snprintf(dtype, sizeof dtype, "%d", (int) check->dtype);
        snprintf(flash, sizeof flash, "%d", (int) check->flash_attention);
    }
    const char *arguments[] = {program,
                               QR_PROBE_COMMAND,
                               name,
                               place->device != NULL ? place->device : "",
                               place->torch_dir != NULL ? place->torch_dir : "",
                               place->plugin_dir != NULL ? place->plugin_dir : "",
                               check != NULL ? dtype : NULL,
                               check != NULL ? flash : NULL,
                               NULL};
    int started = start(&pid, program, (char **) (uintptr_t) arguments, out[1]);
    close(out[1]);
    int ended = started && read_all(out[0], limit_s, said, sizeof said);
    close(out[0]);
    if (!started) return QR_PROBE_NO_PROGRAM;
    if (!ended) kill(pid, SIGKILL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
    name_library(library, sizeof library, name, place);
    if (!ended) {
        snprintf(why, size, "trying it took longer than %d s (" QR_PROBE_VARIABLE "): %s", limit_s, library);
        return QR_PROBE_DIED;
    }
    int value = parse(said, why, size);
    if (value >= 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0) return value;
    if (is_other_program(said, status)) return QR_PROBE_NO_PROGRAM;
    return explain_end(status, library, said, why, size);
}
