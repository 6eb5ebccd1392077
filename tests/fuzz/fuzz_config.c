/* config.json: whatever it holds, it is refused with a message or gives sizes that the rest of the program can rely on. The file lives in
 * memory and is opened by its /proc name. */
#define _GNU_SOURCE
#include "model/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    char path[32];
    if (fd < 0 && (fd = memfd_create("config.json", 0)) < 0) abort();
    if (ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t) size) abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);

    qr_config c;
    qr_error err = {0};
    if (qr_config_read(&c, path, &err) != QR_OK) {
        if (err.msg[0] == 0) abort();
        return 0;
    }
    if (c.n_layers == 0 || c.hidden == 0 || c.inter == 0 || c.vocab == 0 || c.max_positions == 0) abort();
    if (c.n_kv_heads == 0 || c.n_heads % c.n_kv_heads != 0 || c.head_dim == 0 || c.head_dim % 2 != 0) abort();
    if (!(c.rope_theta > 0) || !(c.rms_eps > 0) || !(c.rms_eps < 1)) abort();
    return 0;
}
