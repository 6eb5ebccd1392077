/* See find_torch.h. Python only tells the place: importing torch there would take seconds. */
#define _GNU_SOURCE
#include "pytorch/find_torch.h"

#include "base/file.h"
#include "base/mem.h"
#include "base/system.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef __APPLE__
#define LIBRARY "libtorch_cpu.dylib"
#else
#define LIBRARY "libtorch_cpu.so"
#endif

enum { PYTHON_TIME_LIMIT_MS = 10000 };

static const char script[] = "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')";

/* dir or dir/lib, whichever has the library. */
static int has_library(char *dir, size_t size, const char *where)
{
    static const char *const below[] = {"", "/lib", "/torch/lib"};
    for (size_t i = 0; i < sizeof below / sizeof below[0]; i++) {
        char path[4300], real[PATH_MAX];
        snprintf(path, sizeof path, "%s%s/" LIBRARY, where, below[i]);
        if (!qr_file_exists(path)) continue;
        snprintf(path, sizeof path, "%s%s", where, below[i]);
        return realpath(path, real) != NULL && (size_t) snprintf(dir, size, "%s", real) < size;
    }
    return 0;
}

/* The first line that the program prints, "" if it fails or takes too long. */
static void ask(const char *python, char *line, size_t size)
{
    int out[2];
    pid_t pid;
    posix_spawn_file_actions_t actions;
    char *arguments[] = {(char *) (uintptr_t) python, (char *) (uintptr_t) "-c", (char *) (uintptr_t) script, NULL};
    size_t used = 0;
    line[0] = 0;
    if (pipe(out) != 0) return;
    fcntl(out[0], F_SETFD, FD_CLOEXEC);
    fcntl(out[1], F_SETFD, FD_CLOEXEC);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
    int started = posix_spawnp(&pid, python, &actions, NULL, arguments, environ) == 0;
    posix_spawn_file_actions_destroy(&actions);
    close(out[1]);
    struct pollfd p = {out[0], POLLIN, 0};
    while (started && used < size - 1 && poll(&p, 1, PYTHON_TIME_LIMIT_MS) > 0) {
        ssize_t n = read(out[0], line + used, size - 1 - used);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        used += (size_t) n;
    }
    close(out[0]);
    line[used] = 0;
    line[strcspn(line, "\n")] = 0;
    if (!started) return;
    kill(pid, SIGKILL); /* it has said what it has to say, or never will */
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) continue;
}

qr_status qr_torch_find(char *dir, size_t size, const char *given, qr_error *err)
{
    char place[4096], own[4096] = "";
    if (given != NULL) {
        if (has_library(dir, size, given)) return QR_OK;
        return qr_fail(err, QR_E_NOT_FOUND, "%s: expected " LIBRARY " there or in lib/, found none", given);
    }
    const char *environment = getenv("VIRTUAL_ENV");
    if (environment != NULL && environment[0] != 0) snprintf(own, sizeof own, "%s/bin/python3", environment);
    const char *const pythons[] = {own, "python3", "python"};
    for (size_t i = 0; i < sizeof pythons / sizeof pythons[0]; i++) {
        if (pythons[i][0] == 0) continue;
        ask(pythons[i], place, sizeof place);
        if (place[0] != 0 && has_library(dir, size, place)) return QR_OK;
    }
    return qr_fail(err, QR_E_NOT_FOUND, "python3 has no torch (pip install torch), and no --torch-dir was given");
}

void qr_torch_package_version(char *text, size_t size, const char *dir)
{
    enum { MAX_SIZE = 1 << 16 };
    static const char begin[] = "\n__version__ = '";
    char path[4300], *file = NULL;
    size_t len;
    qr_error ignored = {0};
    snprintf(path, sizeof path, "%s/../version.py", dir);
    text[0] = 0;
    if (qr_file_read(path, MAX_SIZE, &file, &len, &ignored) != QR_OK) return;
    const char *at = strstr(file, begin);
    if (at != NULL) snprintf(text, size, "%.*s", (int) strcspn(at + strlen(begin), "'\n"), at + strlen(begin));
    qr_free(file);
}
