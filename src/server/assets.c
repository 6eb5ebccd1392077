/* See assets.h. */
#include "server/assets.h"

#include "base/embed.h"

#include <stddef.h>
#include <string.h>

QR_EMBED(sv_web_index, QR_WEB_DIR "/index.html");
QR_EMBED(sv_web_script, QR_WEB_DIR "/app.js");
QR_EMBED(sv_web_style, QR_WEB_DIR "/style.css");
QR_EMBED(sv_web_docs, QR_WEB_DIR "/docs.html");
QR_EMBED(sv_web_docs_script, QR_WEB_DIR "/docs.js");
QR_EMBED(sv_web_openapi, QR_WEB_DIR "/openapi.json");

static const sv_asset assets[] = {
    {"/ui", "text/html; charset=utf-8", sv_web_index, &sv_web_index_size},
    {"/ui/app.js", "text/javascript; charset=utf-8", sv_web_script, &sv_web_script_size},
    {"/ui/style.css", "text/css; charset=utf-8", sv_web_style, &sv_web_style_size},
    {"/docs", "text/html; charset=utf-8", sv_web_docs, &sv_web_docs_size},
    {"/ui/docs.js", "text/javascript; charset=utf-8", sv_web_docs_script, &sv_web_docs_script_size},
    {"/openapi.json", "application/json", sv_web_openapi, &sv_web_openapi_size},
};

const sv_asset *sv_asset_find(const char *path)
{
    for (size_t i = 0; i < sizeof assets / sizeof assets[0]; i++)
        if (strcmp(path, assets[i].path) == 0) return &assets[i];
    return NULL;
}
