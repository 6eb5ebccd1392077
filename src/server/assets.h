/* The files of src/server/web, which are part of the program: the page for people, the API's description. */
#ifndef QR_SERVER_ASSETS_H
#define QR_SERVER_ASSETS_H

#include <stdint.h>

typedef struct sv_asset {
    const char *path, *content_type; /* "/ui/app.js", "text/javascript; charset=utf-8" */
    const unsigned char *data;
    const uint64_t *n;
} sv_asset;

/* NULL: there is none. */
const sv_asset *sv_asset_find(const char *path);

#endif
