/* Which GGUF file a model's name means, see gguf.h. */
#define _POSIX_C_SOURCE 200809L /* strcasecmp */
#include "model/gguf.h"

#include "base/mem.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

static int is_gguf(const char *name)
{
    size_t n = strlen(name);
    return n > 5 && strcasecmp(name + n - 5, ".gguf") == 0;
}

/* The first part of a split set, or a file that is no part. */
static int is_first(const char *name)
{
    unsigned no, count;
    size_t n = strlen(name), length = strlen("-00001-of-00003.gguf");
    return n < length || sscanf(name + n - length, "-%5u-of-%5u.gguf", &no, &count) != 2 || no == 1;
}

static int has(const char *dir, const char *name)
{
    char *path = qr_path_join(dir, name);
    int there = path != NULL && qr_file_exists(path);
    qr_free(path);
    return there;
}

static qr_status fail_several(DIR *folder, const char *dir, qr_error *err)
{
    char names[300] = "";
    size_t used = 0;
    rewinddir(folder);
    for (struct dirent *entry; used < sizeof names && (entry = readdir(folder)) != NULL;)
        if (is_gguf(entry->d_name) && is_first(entry->d_name))
            used += (size_t) snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", entry->d_name);
    return qr_fail(err, QR_E_INPUT, "%s: expected one GGUF file, found several, so name one of them: %s", dir, names);
}

qr_status qr_gguf_locate(const char *model, char **path, qr_error *err)
{
    int several = 0;
    *path = NULL;
    if (is_gguf(model) && qr_file_exists(model)) {
        *path = qr_strndup(model, strlen(model));
        return *path != NULL ? QR_OK : qr_fail(err, QR_E_MEMORY, "%s: no memory for a path", model);
    }
    DIR *folder = opendir(model);
    if (folder == NULL) return QR_OK;
    qr_status status = QR_OK;
    if (!has(model, "model.safetensors") && !has(model, "model.safetensors.index.json")) {
        for (struct dirent *entry; status == QR_OK && !several && (entry = readdir(folder)) != NULL;) {
            if (!is_gguf(entry->d_name) || !is_first(entry->d_name)) continue;
            several = *path != NULL;
            if (!several && (*path = qr_path_join(model, entry->d_name)) == NULL)
                status = qr_fail(err, QR_E_MEMORY, "%s: no memory for a path", model);
        }
    }
    if (several) {
        qr_free(*path);
        *path = NULL;
        status = fail_several(folder, model, err);
    }
    closedir(folder);
    return status;
}
