/* See builtin.h. This file is compiled twice: with QR_BUILTIN_DIR for the libraries and the program, without it for tools and most tests,
 * which need no copy of 8 MB each, and for builds that leave the model out. */
#include "model/builtin.h"

#include "base/embed.h"
#include "base/mem.h"
#include "model/gguf_model.h"

#include <string.h>

int qr_is_builtin(const char *model) { return model != NULL && strcmp(model, QR_BUILTIN) == 0; }

#ifdef QR_BUILTIN_DIR

QR_EMBED(qr_builtin_config, QR_BUILTIN_DIR "/config.json");
QR_EMBED(qr_builtin_tokenizer, QR_BUILTIN_DIR "/tokenizer.json");
QR_EMBED(qr_builtin_weights, QR_BUILTIN_DIR "/model.safetensors");

static const struct {
    const char *name;
    const unsigned char *data;
    const uint64_t *size;
} files[] = {
    {"config.json", qr_builtin_config, &qr_builtin_config_size},
    {"tokenizer.json", qr_builtin_tokenizer, &qr_builtin_tokenizer_size},
    {"model.safetensors", qr_builtin_weights, &qr_builtin_weights_size},
};
enum { N_FILES = sizeof files / sizeof files[0] };

int qr_builtin_present(void) { return 1; }

size_t qr_builtin_bytes(void)
{
    size_t n = 0;
    for (size_t i = 0; i < N_FILES; i++) n += *files[i].size;
    return n;
}

qr_status qr_builtin_file(qr_file *file, const char *name, qr_error *err)
{
    for (size_t i = 0; i < N_FILES; i++) {
        if (strcmp(files[i].name, name) != 0) continue;
        *file = (qr_file){.data = files[i].data, .size = *files[i].size, .borrowed = 1};
        return QR_OK;
    }
    *file = (qr_file){0};
    return qr_fail(err, QR_E_NOT_FOUND, QR_BUILTIN ": has no file %s", name);
}

#else

int qr_builtin_present(void) { return 0; }
size_t qr_builtin_bytes(void) { return 0; }

qr_status qr_builtin_file(qr_file *file, const char *name, qr_error *err)
{
    (void) name;
    *file = (qr_file){0};
    return qr_fail(err, QR_E_NOT_FOUND,
                   QR_BUILTIN ": expected a build with the " QR_BUILTIN_TITLE ", found one without (QR_BUILTIN was off, or models/builtin "
                              "was missing); a folder of that name is ./" QR_BUILTIN);
}

#endif

qr_status qr_model_tokenizer_open(qr_tokenizer **out, const char *model, qr_error *err)
{
    static const char name[] = "tokenizer.json";
    *out = NULL;
    if (qr_is_builtin(model)) {
        qr_file file;
        qr_status status = qr_builtin_file(&file, name, err);
        return status != QR_OK ? status : qr_tok_open_memory(out, file.data, file.size, QR_BUILTIN "/tokenizer.json", err);
    }
    char *path;
    qr_status status = qr_gguf_locate(model, &path, err);
    if (path != NULL) {
        status = qr_gguf_tokenizer_open(out, path, err);
    } else if (status == QR_OK) {
        path = qr_path_join(model, name);
        status = path != NULL ? qr_tok_open(out, path, err) : qr_fail(err, QR_E_MEMORY, "%s: no memory for a path", model);
    }
    qr_free(path);
    return status;
}
