/* See int8_file.h. The file: MAGIC, the key, margins as doubles, the rotation of each input as 32 bits, the factors as floats, in this
 * machine's byte order, and the SHA-256 of all that. */
#define _GNU_SOURCE
#include "cpu/int8_file.h"

#include "base/file.h"
#include "base/mem.h"
#include "base/output.h"
#include "cpu/features.h"
#include "cpu/gemm.h"

#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC "qwen-rerank int8"
#define NAME_PREFIX "int8-"
#define NAME_SUFFIX ".bin"
enum { NAME_DIGITS = 16, MAGIC_BYTES = sizeof MAGIC - 1, KEY_BYTES = 32, HEAD_BYTES = MAGIC_BYTES + KEY_BYTES };

#ifdef __APPLE__
#define st_mtim st_mtimespec
#endif

/* ---- the key -------------------------------------------------------------------------------------------------------------------- */

/* Whoever writes a file again in place, or puts another one there, changes one of these numbers. The device is not one of them: it may have
 * another number after each start of the system. */
static int add_file(EVP_MD_CTX *md, const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0) return 0;
    const uint64_t numbers[] = {(uint64_t) st.st_ino, (uint64_t) st.st_size, (uint64_t) st.st_mtim.tv_sec, (uint64_t) st.st_mtim.tv_nsec};
    return EVP_DigestUpdate(md, numbers, sizeof numbers);
}

static int add_model(EVP_MD_CTX *md, const qr_model *model)
{
    int ok = model->ckpt.n_shards > 0;
    for (size_t i = 0; ok && i < model->ckpt.n_shards; i++) ok = add_file(md, model->ckpt.shards[i].path);
    char *config = qr_path_join(model->dir, "config.json");
    if (config == NULL) return 0;
    if (ok && qr_file_exists(config)) ok = add_file(md, config); /* a GGUF file has its own */
    qr_free(config);
    return ok;
}

static int add_ids(EVP_MD_CTX *md, const uint32_t *ids, size_t n)
{
    const uint64_t length = n;
    return EVP_DigestUpdate(md, &length, sizeof length) && EVP_DigestUpdate(md, ids, n * sizeof *ids);
}

static int find_key(unsigned char *key, const qr_backend_cfg *cfg)
{
    const char *isa = qr_isa_name(qr_cpu_get()->isa);
    const qr_batch *prompts = cfg->calibration;
    const uint32_t words[] = {cfg->yes_id, cfg->no_id};
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    int ok = md != NULL && EVP_DigestInit_ex(md, EVP_sha256(), NULL) && EVP_DigestUpdate(md, QR_VERSION, sizeof QR_VERSION) &&
             EVP_DigestUpdate(md, isa, strlen(isa)) && EVP_DigestUpdate(md, words, sizeof words) && add_model(md, cfg->model);
    for (size_t i = 0; ok && i < prompts->n_seqs; i++) {
        const qr_prefix *prefix = &prompts->prefixes[prompts->seqs[i].prefix];
        ok = add_ids(md, prefix->ids, prefix->n_ids) && add_ids(md, prompts->seqs[i].ids, prompts->seqs[i].n_ids);
    }
    ok = ok && EVP_DigestFinal_ex(md, key, NULL);
    EVP_MD_CTX_free(md);
    return ok;
}

void qr_int8_file_name(qr_int8_file *file, const qr_backend_cfg *cfg)
{
    char name[sizeof NAME_PREFIX + NAME_DIGITS + sizeof NAME_SUFFIX] = NAME_PREFIX;
    *file = (qr_int8_file){0};
    if (cfg->cache_dir == NULL || !find_key(file->key, cfg)) return;
    for (size_t i = 0; i < NAME_DIGITS / 2; i++) snprintf(name + strlen(name), 3, "%02x", file->key[i]);
    strcat(name, NAME_SUFFIX);
    file->path = qr_path_join(cfg->cache_dir, name);
}

void qr_int8_file_free(qr_int8_file *file)
{
    qr_free(file->path);
    *file = (qr_int8_file){0};
}

/* ---- its contents --------------------------------------------------------------------------------------------------------------- */

static size_t find_bytes(const qr_int8_plan *plan, size_t n)
{
    size_t bytes = HEAD_BYTES + n * sizeof(double) + KEY_BYTES;
    for (size_t i = 0; i < plan->n_layers * QR_N_INPUTS; i++) bytes += sizeof(uint32_t) + plan->inputs[i].k * sizeof(float);
    return bytes;
}

static int find_sum(unsigned char *sum, const char *text, size_t len) { return EVP_Digest(text, len, sum, NULL, EVP_sha256(), NULL); }

/* Whole, ours, and with nothing in it that a plan cannot have; the sum tells of damage, not of intent. */
static int is_valid(const qr_int8_file *file, const qr_int8_plan *plan, size_t n, const char *text, size_t len)
{
    unsigned char sum[KEY_BYTES];
    if (len != find_bytes(plan, n) || memcmp(text, MAGIC, MAGIC_BYTES) != 0 || memcmp(text + MAGIC_BYTES, file->key, KEY_BYTES) != 0)
        return 0;
    if (!find_sum(sum, text, len - KEY_BYTES) || memcmp(text + len - KEY_BYTES, sum, KEY_BYTES) != 0) return 0;
    const char *at = text + HEAD_BYTES;
    for (size_t i = 0; i < n; i++, at += sizeof(double)) {
        double margin;
        memcpy(&margin, at, sizeof margin);
        if (!isfinite(margin)) return 0;
    }
    for (size_t i = 0; i < plan->n_layers * QR_N_INPUTS; i++, at += sizeof(uint32_t)) {
        uint32_t rotation;
        memcpy(&rotation, at, sizeof rotation);
        if (rotation != 0 && rotation != qr_gemm_rotation(plan->inputs[i].k)) return 0;
    }
    for (; at < text + len - KEY_BYTES; at += sizeof(float)) {
        float factor;
        memcpy(&factor, at, sizeof factor);
        if (!isnormal(factor)) return 0; /* nor 0, nor infinite */
    }
    return 1;
}

int qr_int8_file_load(const qr_int8_file *file, qr_int8_plan *plan, double *margins, size_t n)
{
    char *text = NULL;
    size_t len;
    qr_error ignored;
    int found = file->path != NULL && qr_file_read(file->path, find_bytes(plan, n), &text, &len, &ignored) == QR_OK &&
                is_valid(file, plan, n, text, len);
    if (found) {
        const char *at = text + HEAD_BYTES + n * sizeof(double), *factors = at + plan->n_layers * QR_N_INPUTS * sizeof(uint32_t);
        memcpy(margins, text + HEAD_BYTES, n * sizeof(double));
        for (size_t i = 0; i < plan->n_layers * QR_N_INPUTS; i++) {
            qr_int8_input *in = &plan->inputs[i];
            uint32_t rotation;
            memcpy(&rotation, at + i * sizeof rotation, sizeof rotation);
            in->rotation = rotation;
            memcpy(in->factors, factors, in->k * sizeof(float));
            factors += in->k * sizeof(float);
        }
        plan->has_factors = 1;
        utimensat(AT_FDCWD, file->path, NULL, 0); /* used just now */
    }
    qr_free(text);
    return found;
}

static int is_ours(const char *name)
{
    size_t prefix = sizeof NAME_PREFIX - 1, suffix = sizeof NAME_SUFFIX - 1;
    return strlen(name) == prefix + NAME_DIGITS + suffix && strncmp(name, NAME_PREFIX, prefix) == 0 &&
           strcmp(name + prefix + NAME_DIGITS, NAME_SUFFIX) == 0;
}

static int is_before(struct timespec a, struct timespec b)
{
    return a.tv_sec < b.tv_sec || (a.tv_sec == b.tv_sec && a.tv_nsec < b.tv_nsec);
}

/* Removes the file used least recently, if there are too many for one more; returns whether it did. */
static int drop_oldest(DIR *dir)
{
    char oldest[64] = "";
    struct timespec when = {0};
    size_t n = 0;
    for (const struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        struct stat st;
        if (!is_ours(entry->d_name) || fstatat(dirfd(dir), entry->d_name, &st, 0) != 0) continue;
        if (n++ > 0 && !is_before(st.st_mtim, when)) continue;
        when = st.st_mtim;
        snprintf(oldest, sizeof oldest, "%s", entry->d_name);
    }
    return n >= QR_INT8_FILES && unlinkat(dirfd(dir), oldest, 0) == 0;
}

/* Beside `path`. Programs that do so at the same time may leave fewer than the most. */
static void make_room(const char *path)
{
    char *folder = qr_strndup(path, (size_t) (strrchr(path, '/') - path));
    DIR *dir = folder != NULL ? opendir(folder) : NULL;
    while (dir != NULL && drop_oldest(dir)) rewinddir(dir);
    if (dir != NULL) closedir(dir);
    qr_free(folder);
}

static void fill(char *text, size_t len, const qr_int8_file *file, const qr_int8_plan *plan, const double *margins, size_t n)
{
    char *at = text;
    memcpy(at, MAGIC, MAGIC_BYTES);
    memcpy(at + MAGIC_BYTES, file->key, KEY_BYTES);
    memcpy(at + HEAD_BYTES, margins, n * sizeof(double));
    at += HEAD_BYTES + n * sizeof(double);
    for (size_t i = 0; i < plan->n_layers * QR_N_INPUTS; i++, at += sizeof(uint32_t)) {
        uint32_t rotation = (uint32_t) plan->inputs[i].rotation;
        memcpy(at, &rotation, sizeof rotation);
    }
    for (size_t i = 0; i < plan->n_layers * QR_N_INPUTS; at += plan->inputs[i++].k * sizeof(float))
        memcpy(at, plan->inputs[i].factors, plan->inputs[i].k * sizeof(float));
    find_sum((unsigned char *) at, text, len - KEY_BYTES);
}

static qr_status write_file(const char *path, const char *text, size_t len, qr_error *err)
{
    qr_output out = {.fd = -1};
    qr_status status = qr_output_open(&out, path, err);
    if (status == QR_OK) status = qr_output_at(&out, 0, text, len, err);
    if (status == QR_OK) status = qr_output_commit(&out, err);
    qr_output_close(&out);
    return status;
}

qr_status qr_int8_file_save(const qr_int8_file *file, const qr_int8_plan *plan, const double *margins, size_t n, qr_error *err)
{
    if (file->path == NULL) return QR_OK;
    size_t len = find_bytes(plan, n);
    char *text = qr_calloc(len, 1);
    if (text == NULL) return qr_fail(err, QR_E_MEMORY, "%s: no memory for %zu bytes", file->path, len);
    fill(text, len, file, plan, margins, n);
    qr_status status = qr_make_folders(file->path, err);
    if (status == QR_OK) {
        unlink(file->path); /* it does not fit, as it was not loaded */
        make_room(file->path);
        status = write_file(file->path, text, len, err);
    }
    qr_free(text);
    return status;
}
