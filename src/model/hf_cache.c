/* See hf_cache.h. */
#define _GNU_SOURCE /* strcasecmp, vasprintf */
#include "model/hf_cache.h"

#include "base/file.h"
#include "base/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const struct {
    const char *short_name, *id;
} known[] = {{"0.6b", "Qwen/Qwen3-Reranker-0.6B"}, {"4b", "Qwen/Qwen3-Reranker-4B"}, {"8b", "Qwen/Qwen3-Reranker-8B"}};
enum { N_KNOWN = sizeof known / sizeof known[0] };

const char *qr_env(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && value[0] != 0 ? value : NULL;
}

typedef struct place {
    const char *name, *below;
} place;

static qr_status first_place(char **out, const place *places, size_t n, qr_error *err)
{
    size_t i = 0;
    *out = NULL;
    while (i < n && qr_env(places[i].name) == NULL) i++;
    if (i == n)
        return qr_fail(err, QR_E_NOT_FOUND, "no Hugging Face cache: expected one of HF_HUB_CACHE, HF_HOME or HOME to be set, found none");
    const char *at = qr_env(places[i].name);
    *out = places[i].below[0] != 0 ? qr_path_join(at, places[i].below) : qr_strndup(at, strlen(at));
    return *out != NULL ? QR_OK : qr_fail(err, QR_E_MEMORY, "no memory for a path");
}

qr_status qr_hf_cache_folder(char **out, qr_error *err)
{
    static const place places[] = {{"HF_HUB_CACHE", ""},
                                   {"HUGGINGFACE_HUB_CACHE", ""},
                                   {"HF_HOME", "hub"},
                                   {"XDG_CACHE_HOME", "huggingface/hub"},
                                   {"HOME", ".cache/huggingface/hub"}};
    return first_place(out, places, sizeof places / sizeof places[0], err);
}

qr_status qr_hf_token_path(char **out, qr_error *err)
{
    static const place places[] = {
        {"HF_TOKEN_PATH", ""}, {"HF_HOME", "token"}, {"XDG_CACHE_HOME", "huggingface/token"}, {"HOME", ".cache/huggingface/token"}};
    return first_place(out, places, sizeof places / sizeof places[0], err);
}

int qr_hf_is_offline(void)
{
    static const char *const names[] = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}, *const yes[] = {"1", "on", "yes", "true"};
    for (size_t i = 0; i < 2; i++)
        for (size_t k = 0; k < 4; k++)
            if (qr_env(names[i]) != NULL && strcasecmp(qr_env(names[i]), yes[k]) == 0) return 1;
    return 0;
}

const char *qr_hf_known(const char *short_name)
{
    for (size_t i = 0; i < N_KNOWN; i++)
        if (strcasecmp(short_name, known[i].short_name) == 0) return known[i].id;
    return NULL;
}

const char *qr_hf_known_at(size_t i) { return i < N_KNOWN ? known[i].id : NULL; }

int qr_hf_is_commit(const char *text)
{
    return strlen(text) == QR_HF_COMMIT_LEN && strspn(text, "0123456789abcdefABCDEF") == QR_HF_COMMIT_LEN;
}

/* Slashes in a revision are real folders below refs/ (refs/pr/1). */
int qr_hf_id_parse(qr_hf_id *id, const char *text)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
    *id = (qr_hf_id){.revision = "main"};
    size_t org = strspn(text, plain), name = text[org] == '/' ? strspn(text + org + 1, plain) : 0;
    if (org == 0 || name == 0 || strlen(text) > QR_HF_MAX_NAME || strstr(text, "..") != NULL) return 0;
    if (text[0] == '.' || text[org + 1] == '.') return 0;
    const char *rest = text + org + 1 + name;
    if (*rest != 0) {
        if (*rest++ != '@' || *rest == 0 || *rest == '/' || *rest == '.') return 0;
        snprintf(id->revision, sizeof id->revision, "%s", rest);
        while (*rest == '/' || (*rest != 0 && strchr(plain, *rest) != NULL)) rest++;
        if (*rest != 0) return 0;
    }
    snprintf(id->repo, sizeof id->repo, "%.*s", (int) (org + 1 + name), text);
    snprintf(id->folder, sizeof id->folder, "models--%.*s--%.*s", (int) org, text, (int) name, text + org + 1);
    return 1;
}

int qr_hf_is_path(const char *path)
{
    if (path[0] == 0 || strlen(path) > QR_HF_MAX_NAME) return 0;
    for (const char *p = path; *p != 0;) {
        size_t n = strcspn(p, "/");
        if (n == 0 || (n == 1 && p[0] == '.') || (n == 2 && p[0] == '.' && p[1] == '.')) return 0;
        for (size_t i = 0; i < n; i++)
            if (p[i] == '\\' || (unsigned char) p[i] < 0x20 || p[i] == 0x7F) return 0;
        p += n;
        if (*p == '/' && *++p == 0) return 0;
    }
    return 1;
}

char *qr_hf_path(const char *cache, const qr_hf_id *id, const char *format, ...)
{
    char below[4 * QR_HF_MAX_NAME];
    va_list list;
    int n = snprintf(below, sizeof below, "%s/", id->folder);
    va_start(list, format);
    vsnprintf(below + n, sizeof below - (size_t) n, format, list);
    va_end(list);
    return qr_path_join(cache, below);
}

qr_status qr_hf_commit(const char *cache, const qr_hf_id *id, char commit[QR_HF_COMMIT_LEN + 1], qr_error *err)
{
    char *text = NULL;
    size_t len;
    if (qr_hf_is_commit(id->revision)) {
        memcpy(commit, id->revision, QR_HF_COMMIT_LEN + 1);
        return QR_OK;
    }
    char *ref = qr_hf_path(cache, id, "refs/%s", id->revision);
    if (ref == NULL) return qr_fail(err, QR_E_MEMORY, "%s: no memory for a path", cache);
    qr_status status = qr_file_read(ref, QR_HF_MAX_NAME, &text, &len, err);
    if (status == QR_OK) text[strcspn(text, " \r\n")] = 0;
    if (status == QR_OK && qr_hf_is_commit(text)) memcpy(commit, text, QR_HF_COMMIT_LEN + 1);
    else if (status == QR_OK || status == QR_E_FORMAT)
        status = qr_fail(err, QR_E_FORMAT, "%s: expected a commit of %d hex digits", ref, QR_HF_COMMIT_LEN);
    qr_free(text);
    qr_free(ref);
    return status;
}
