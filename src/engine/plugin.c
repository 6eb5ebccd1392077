/* See plugin.h. */
#define _GNU_SOURCE
#include "engine/plugin.h"

#include "base/file.h"
#include "base/system.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#ifdef __APPLE__
#define SUFFIX ".dylib"
#else
#define SUFFIX ".so"
#endif

/* Where to look; "" where the running program has no such place. */
enum { N_PLACES = 5 };

static void places(char dirs[N_PLACES][4096], const char *dir)
{
    char own[4000];
    memset(dirs, 0, N_PLACES * sizeof dirs[0]);
    if (dir != NULL) {
        snprintf(dirs[0], sizeof dirs[0], "%s", dir);
        return;
    }
    if (qr_program_dir(own, sizeof own)) {
        snprintf(dirs[0], sizeof dirs[0], "%s", own);
        snprintf(dirs[1], sizeof dirs[1], "%s/../lib/qwen-rerank", own);
    }
    if (qr_library_dir(own, sizeof own) && strcmp(own, dirs[0]) != 0) {
        snprintf(dirs[2], sizeof dirs[2], "%s", own);
        snprintf(dirs[3], sizeof dirs[3], "%s/qwen-rerank", own);
    }
    snprintf(dirs[4], sizeof dirs[4], "%s", QR_PLUGIN_DIR);
}

qr_status qr_plugin_find(char *path, size_t size, const char *name, const char *dir, qr_error *err)
{
    char dirs[N_PLACES][4096], looked[400] = "";
    places(dirs, dir);
    for (size_t i = 0; i < N_PLACES; i++) {
        if (dirs[i][0] == 0) continue;
        if ((size_t) snprintf(path, size, "%s/qwen-rerank-%s" SUFFIX, dirs[i], name) < size && qr_file_exists(path)) return QR_OK;
        size_t used = strlen(looked);
        snprintf(looked + used, sizeof looked - used, "%s%.140s", used > 0 ? ", " : "", dirs[i]);
    }
    return qr_fail(err, QR_E_NOT_FOUND, "no plug-in qwen-rerank-%s" SUFFIX " (`make build-backends` builds it); looked in %s", name,
                   looked);
}

qr_status qr_plugin_load(const qr_backend_ops **out, const char *name, const char *dir, qr_error *err)
{
    char path[4200];
    *out = NULL;
    qr_status status = qr_plugin_find(path, sizeof path, name, dir, err);
    if (status != QR_OK) return status;
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL) {
        const char *why = dlerror();
        return qr_fail(err, QR_E_UNSUPPORTED, "the plug-in cannot be loaded: %s%s%s", why, strstr(why, path) == NULL ? ", needed by " : "",
                       strstr(why, path) == NULL ? path : "");
    }
    qr_plugin_fn get;
    void *symbol = dlsym(handle, QR_PLUGIN_SYMBOL);
    memcpy(&get, &symbol, sizeof get); /* ISO C has no cast from data to function pointers */
    const qr_plugin *plugin = symbol != NULL ? get() : NULL;
    if (plugin == NULL) status = qr_fail(err, QR_E_UNSUPPORTED, "%s is no plug-in of this program: it has no " QR_PLUGIN_SYMBOL, path);
    else if (plugin->abi != QR_BACKEND_ABI || strcmp(plugin->version, QR_VERSION) != 0)
        status = qr_fail(err, QR_E_UNSUPPORTED, "%s is of version %s (interface %u), this is version " QR_VERSION " (interface %u)", path,
                         plugin->version, plugin->abi, (unsigned) QR_BACKEND_ABI);
    else if (plugin->conflict != NULL) status = qr_fail(err, QR_E_UNSUPPORTED, "%s: %s", path, plugin->conflict);
    if (status != QR_OK) {
        dlclose(handle);
        return status;
    }
    *out = plugin->ops;
    return QR_OK;
}
