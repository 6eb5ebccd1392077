/* See system.h. */
#define _GNU_SOURCE
#include "base/system.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef __APPLE__
#include <mach-o/dyld.h>
#endif

double qr_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double) t.tv_sec + (double) t.tv_nsec * 1e-9;
}

/* The first number in a file of /proc or /sys, behind `label` if that is not NULL; SIZE_MAX: there is none, or it says "max". */
static size_t read_number(const char *path, const char *label)
{
    char line[256];
    unsigned long long value;
    size_t found = SIZE_MAX;
    FILE *f = fopen(path, "re");
    if (f == NULL) return SIZE_MAX;
    while (found == SIZE_MAX && fgets(line, sizeof line, f) != NULL) {
        size_t skip = label != NULL ? strlen(label) : 0;
        if (label != NULL && strncmp(line, label, skip) != 0) continue;
        if (sscanf(line + skip, "%llu", &value) == 1) found = (size_t) value;
        else if (label == NULL) break;
    }
    fclose(f);
    return found;
}

/* Of the control group: version 2, as containers see their own; then version 1. */
static size_t group_room(void)
{
    static const char *const files[][2] = {
        {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
        {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"},
    };
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        size_t limit = read_number(files[i][0], NULL), used = read_number(files[i][1], NULL);
        if (limit == SIZE_MAX || used == SIZE_MAX) continue;
        /* What is in use includes cached files, which give way; "inactive_file" is the part that surely does. */
        size_t cached = read_number(i == 0 ? "/sys/fs/cgroup/memory.stat" : "/sys/fs/cgroup/memory/memory.stat",
                                    i == 0 ? "inactive_file " : "total_inactive_file ");
        if (cached != SIZE_MAX) used -= cached < used ? cached : used;
        return limit > used ? limit - used : 1;
    }
    return SIZE_MAX;
}

size_t qr_memory_available(void)
{
    size_t machine = read_number("/proc/meminfo", "MemAvailable:"), group = group_room();
    if (machine != SIZE_MAX) machine *= 1024; /* it says kB */
    size_t least = machine < group ? machine : group;
    return least == SIZE_MAX ? 0 : least;
}

size_t qr_memory_resident(void)
{
    unsigned long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f == NULL) return 0;
    if (fscanf(f, "%*u %llu", &pages) != 1) pages = 0;
    fclose(f);
    return (size_t) pages * (size_t) sysconf(_SC_PAGESIZE);
}

int qr_socket(int family, int type, int protocol)
{
    int fd = socket(family, type, protocol); /* SOCK_CLOEXEC is not everywhere, and no program is started while sockets are made */
    if (fd >= 0) fcntl(fd, F_SETFD, FD_CLOEXEC);
    return fd;
}

/* Resolves links: what lies beside a program lies beside the file, not beside a link to it in /usr/local/bin. */
static int dir_of(const char *path, char *dir, size_t size)
{
    char real[PATH_MAX];
    if (realpath(path, real) == NULL) return 0;
    char *slash = strrchr(real, '/');
    if (slash == NULL) return 0;
    slash[slash == real] = 0;
    return (size_t) snprintf(dir, size, "%s", real) < size;
}

int qr_program_dir(char *dir, size_t size)
{
#ifdef __APPLE__
    char path[PATH_MAX];
    uint32_t room = sizeof path;
    return _NSGetExecutablePath(path, &room) == 0 && dir_of(path, dir, size);
#else
    return dir_of("/proc/self/exe", dir, size);
#endif
}

int qr_library_dir(char *dir, size_t size)
{
    Dl_info info;
    return dladdr((const void *) (uintptr_t) &qr_library_dir, &info) != 0 && info.dli_fname != NULL &&
           strchr(info.dli_fname, '/') != NULL && dir_of(info.dli_fname, dir, size);
}
