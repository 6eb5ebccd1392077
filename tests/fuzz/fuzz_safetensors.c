/* A checkpoint of one file: two bytes say how many data bytes follow the header, the rest is the header; the length in front is always
 * right, so that no effort goes into guessing it (the unit tests cover wrong ones). An odd first byte puts the rest in as the index of
 * shards instead, beside one fixed shard. */
#define _GNU_SOURCE
#include "model/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char dir[] = "/dev/shm/qr-fuzz-XXXXXX";

static void remove_dir(void)
{
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    if (system(command) != 0) perror(command);
}

static void write_file(const char *name, const uint8_t *header, size_t n, size_t n_data, int with_length)
{
    char path[64];
    const uint64_t length = n;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    if (f == NULL || (with_length && fwrite(&length, 8, 1, f) != 1) || fwrite(header, 1, n, f) != n) abort();
    fflush(f);
    if (ftruncate(fileno(f), (off_t) (n + n_data + (with_length ? 8 : 0))) != 0) abort();
    fclose(f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int ready;
    static const char shard[] =
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[2,2]}}";
    if (size < 2) return 0;
    if (!ready) {
        if (mkdtemp(dir) == NULL) abort();
        atexit(remove_dir);
        write_file("s", (const uint8_t *) shard, sizeof shard - 1, 2, 1);
        ready = 1;
    }
    if (data[0] & 1) {
        write_file("model.safetensors.index.json", data + 2, size - 2, 0, 0);
    } else {
        char path[64];
        snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
        unlink(path);
        write_file("model.safetensors", data + 2, size - 2, (size_t) data[0] / 2 + 128u * data[1], 1);
    }

    qr_checkpoint c;
    qr_error err = {0};
    if (qr_checkpoint_open(&c, dir, &err) != QR_OK) {
        if (err.msg[0] == 0) abort();
        return 0;
    }
    for (size_t i = 0; i < c.n_tensors; i++) {
        const qr_tensor *t = &c.tensors[i];
        if (qr_checkpoint_find(&c, t->name) != t) abort();
        const volatile unsigned char *bytes = t->data; /* volatile: the reads are the test */
        if (t->n_bytes > 0) (void) bytes[0], (void) bytes[t->n_bytes - 1];
        qr_checkpoint_release(&c, t);
    }
    qr_checkpoint_close(&c);
    return 0;
}
