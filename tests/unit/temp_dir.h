/* A folder of its own for a test, with files that the test makes up. Names are short and the tests are ours, so paths have fixed room and
 * every failure ends the test. */
#ifndef QR_TESTS_TEMP_DIR_H
#define QR_TESTS_TEMP_DIR_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct temp_dir {
    char path[64];
} temp_dir;

typedef struct temp_path {
    char text[512];
} temp_path;

static inline void temp_require(int ok, const char *what)
{
    if (ok) return;
    perror(what);
    abort();
}

static inline temp_dir temp_dir_make(void)
{
    /* Memory where there is some: ext4 flushes a file that is written anew, and the tests do that thousands of times. */
    temp_dir d = {"/dev/shm/qr-test-XXXXXX"};
    if (mkdtemp(d.path) != NULL) return d;
    strcpy(d.path, "/tmp/qr-test-XXXXXX");
    temp_require(mkdtemp(d.path) != NULL, d.path);
    return d;
}

static inline temp_path temp_name(const temp_dir *d, const char *name)
{
    temp_path p;
    temp_require((size_t) snprintf(p.text, sizeof p.text, "%s/%s", d->path, name) < sizeof p.text, name);
    return p;
}

static inline void temp_write(const temp_dir *d, const char *name, const void *data, size_t n)
{
    temp_path p = temp_name(d, name);
    FILE *f = fopen(p.text, "wb");
    temp_require(f != NULL && fwrite(data, 1, n, f) == n && fclose(f) == 0, p.text);
}

static inline void temp_text(const temp_dir *d, const char *name, const char *text) { temp_write(d, name, text, strlen(text)); }

/* With all folders above it. */
static inline void temp_mkdir(const temp_dir *d, const char *name)
{
    temp_path p = temp_name(d, name);
    for (char *s = p.text + strlen(d->path) + 1; *s; s++) {
        if (*s != '/') continue;
        *s = 0;
        mkdir(p.text, 0700);
        *s = '/';
    }
    temp_require(mkdir(p.text, 0700) == 0, p.text);
}

static inline void temp_dir_remove(const temp_dir *d)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", d->path);
    temp_require(system(command) == 0, command);
}

/* The fixture of a test program: one folder, made before and removed after what cmocka runs between. */
static temp_dir dir;

static inline int set_up(void **state)
{
    (void) state;
    dir = temp_dir_make();
    return 0;
}

static inline int tear_down(void **state)
{
    (void) state;
    temp_dir_remove(&dir);
    return 0;
}

#endif
