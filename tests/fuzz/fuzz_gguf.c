/* A GGUF file: whatever it holds, it is refused with a message or gives tensors that lie in it, and what its metadata say can be asked for.
 * The file lives in memory and is opened by its /proc name. */
#define _GNU_SOURCE
#include "model/blocks.h"
#include "model/gguf_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void look_at(const qr_gguf *gguf, const qr_checkpoint *ckpt)
{
    qr_config config;
    qr_error err = {0};
    uint32_t ids[2];
    int swapped;
    if (qr_gguf_config(&config, gguf, ckpt, &err) != QR_OK && err.msg[0] == 0) abort();
    for (size_t i = 0; i < ckpt->n_tensors; i++) {
        const qr_tensor *t = &ckpt->tensors[i];
        float values[QR_BLOCK_MAX];
        if (qr_checkpoint_find(ckpt, t->name) != t) abort();
        size_t last = t->n_elements / qr_tensor_type_block(t->type) - 1;
        qr_blocks_f32(values, t->type, t->data, 1);
        qr_blocks_f32(values, t->type, t->data + last * qr_tensor_type_size(t->type), 1);
    }
    const qr_tensor *pair = qr_checkpoint_find(ckpt, "cls.output.weight"), *embed = qr_checkpoint_find(ckpt, "model.embed_tokens.weight");
    if (pair == NULL || embed == NULL || pair->n_dims != 2 || embed->n_dims != 2) return;
    if (pair->dims[0] == 2 && pair->dims[1] == embed->dims[1]) qr_gguf_pair(ids, &swapped, gguf, ckpt, pair, embed, &err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    char path[32];
    if (fd < 0 && (fd = memfd_create("model.gguf", 0)) < 0) abort();
    if (ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t) size) abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);

    qr_gguf gguf;
    qr_checkpoint ckpt;
    qr_tokenizer *tok;
    qr_error err = {0};
    if (qr_gguf_open(&gguf, &ckpt, path, &err) != QR_OK) {
        if (err.msg[0] == 0) abort();
        return 0;
    }
    look_at(&gguf, &ckpt);
    qr_gguf_close(&gguf);
    qr_checkpoint_close(&ckpt);
    if (qr_gguf_tokenizer_open(&tok, path, &err) == QR_OK) qr_tok_close(tok);
    return 0;
}
