/* Backends in shared objects of their own, qwen-rerank-NAME.so, for those that only C++ can reach. They are loaded when first chosen and
 * never unloaded.
 */
#ifndef QR_ENGINE_PLUGIN_H
#define QR_ENGINE_PLUGIN_H

#include "engine/backend.h"

typedef struct qr_plugin {
    uint32_t abi;        /* QR_BACKEND_ABI */
    const char *version; /* QR_VERSION: must be the program's own, since plug-ins read qr_model */
    const qr_backend_ops *ops;
    const char *conflict; /* why it cannot work with the libraries that it found; NULL: it can */
} qr_plugin;

/* What a plug-in exports: extern "C" const qr_plugin *qr_backend_plugin(void). Nothing of the program is visible to it, so it brings its
 * own copies of what it uses (base/error.c, base/mem.c). */
#define QR_PLUGIN_SYMBOL "qr_backend_plugin"
typedef const qr_plugin *(*qr_plugin_fn)(void);

/* Looks in `dir`, or, if that is NULL, beside the program, beside this library, in lib/qwen-rerank next to bin/, and where it was installed
 * to. */
qr_status qr_plugin_find(char *path, size_t size, const char *name, const char *dir, qr_error *err);
/* Finds and loads; from then on it stays loaded. */
qr_status qr_plugin_load(const qr_backend_ops **out, const char *name, const char *dir, qr_error *err);

#endif
