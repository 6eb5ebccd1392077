/* Which files of a repository a reranker needs. */
#define _GNU_SOURCE
#include "base/buf.h"
#include "hub/pull.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

static int ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcasecmp(text + n - m, end) == 0;
}

static int is_plain(const char *path) { return strchr(path, '/') == NULL; }

/* Small files that say what the model is; weights in other forms (ONNX, PyTorch's own) and pictures are left out. */
static int is_small_part(const char *path)
{
    static const char *const names[] = {"tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "generation_config.json",
                                        "config.json",
                                        "modules.json",
                                        "chat_template.jinja",
                                        "sentence_bert_config.json",
                                        "vocab.json",
                                        "merges.txt",
                                        "config_sentence_transformers.json",
                                        "LICENSE",
                                        "1_LogitScore/config.json"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(path, names[i]) == 0) return 1;
    return 0;
}

/* "-00002-of-00003" before the ending; *number the first of the two. */
static int is_split(const char *path, unsigned *number)
{
    unsigned of;
    int used = 0;
    const char *dot = strrchr(path, '.');
    if (dot == NULL || dot - path < 15) return 0;
    return sscanf(dot - 15, "-%5u-of-%5u%n", number, &of, &used) == 2 && used == 15;
}

static qr_status fail_with_list(const qr_hub_file *files, size_t n, const char *what, const char *wanted, qr_error *err)
{
    enum { MAX_LISTED = 12 };
    qr_buf list = {0};
    size_t listed = 0;
    for (size_t i = 0; i < n; i++)
        if (ends_with(files[i].path, ".gguf") && listed++ < MAX_LISTED) qr_buf_printf(&list, "%s%s", list.n > 0 ? ", " : "", files[i].path);
    if (listed > MAX_LISTED) qr_buf_printf(&list, " and %zu more", listed - MAX_LISTED);
    qr_buf_add(&list, "", 1);
    qr_status status = qr_fail(err, QR_E_INPUT, "%s%s; there are %s", what, wanted, list.failed ? "others" : list.data);
    qr_buf_deinit(&list);
    return status;
}

/* The file, and the others of its split set. */
static void take_set(qr_hub_file *files, size_t n, const char *path)
{
    unsigned number;
    size_t stem = strlen(path) - 5;
    if (is_split(path, &number)) stem -= 15;
    for (size_t i = 0; i < n; i++) {
        int same = strcmp(files[i].path, path) == 0;
        int of_set = is_split(path, &number) && is_split(files[i].path, &number) && strncmp(files[i].path, path, stem) == 0 &&
                     strlen(files[i].path) == strlen(path);
        files[i].wanted |= same || of_set;
    }
}

static qr_status choose_gguf(qr_hub_file *files, size_t n, const char *quantization, const char *file, qr_error *err)
{
    static const char *const preferred[] = {"Q8_0", "F16", "BF16", "F32"};
    const char *found = NULL;
    size_t n_found = 0;
    unsigned number = 1;
    for (int pass = quantization != NULL || file != NULL ? 4 : 0; pass <= 4 && found == NULL; pass++)
        for (size_t i = 0; i < n; i++) {
            const char *path = files[i].path;
            number = 1;
            if (!ends_with(path, ".gguf") || strcasestr(path, "mmproj") != NULL) continue;
            if (is_split(path, &number) && number != 1) continue;
            const char *word = pass < 4 ? preferred[pass] : quantization;
            if (file != NULL ? strcmp(path, file) != 0 : word != NULL && strcasestr(path, word) == NULL) continue;
            /* "F16" is in "BF16", "Q4_K" in "Q4_K_M": what goes on before or after is another name */
            if (file == NULL && word != NULL) {
                const char *at = strcasestr(path, word), *end = at + strlen(word);
                if ((at > path && strchr("-._/", at[-1]) == NULL) || strchr("-./", *end) == NULL) continue;
            }
            n_found++;
            if (found == NULL) found = path;
        }
    if (found == NULL && file != NULL) return fail_with_list(files, n, "no file ", file, err);
    if (found == NULL && quantization != NULL) return fail_with_list(files, n, "no GGUF file of the quantisation ", quantization, err);
    if (found == NULL || n_found > 1)
        return fail_with_list(files, n, "expected one GGUF file; name it with --file, or its quantisation as in ORG/NAME:Q4_K_M", "", err);
    take_set(files, n, found);
    return QR_OK;
}

qr_status qr_hub_choose(qr_hub_file *files, size_t n, const char *quantization, const char *file, qr_error *err)
{
    int safetensors = 0, index = 0, gguf = 0, config = 0;
    unsigned number;
    for (size_t i = 0; i < n; i++) {
        const char *path = files[i].path;
        index |= strcmp(path, "model.safetensors.index.json") == 0;
        safetensors |= is_plain(path) && strncmp(path, "model", 5) == 0 && ends_with(path, ".safetensors");
        gguf |= ends_with(path, ".gguf");
        config |= strcmp(path, "config.json") == 0;
    }
    if (gguf && (!safetensors || quantization != NULL || file != NULL)) return choose_gguf(files, n, quantization, file, err);
    if (quantization != NULL || file != NULL) return qr_fail(err, QR_E_INPUT, "expected GGUF files to choose one from, found none");
    if (!safetensors || !config)
        return qr_fail(err, QR_E_INPUT,
                       "expected config.json and model.safetensors, or a GGUF file, found %s; this is no model for this program",
                       safetensors ? "no config.json" : "neither");
    for (size_t i = 0; i < n; i++) {
        const char *path = files[i].path;
        int weights = is_plain(path) && strncmp(path, "model", 5) == 0 && ends_with(path, ".safetensors");
        files[i].wanted =
            is_small_part(path) || strcmp(path, "model.safetensors.index.json") == 0 || (weights && index == is_split(path, &number));
    }
    return QR_OK;
}
