/* Probing in a child process: a foreign library may crash or hang as it is loaded, for reasons that only trying shows, and must not take
 * the server down with it. The child is the program qwen-rerank itself, which is looked for beside the running program and in bin/ next to
 * the library's folder. fork() alone would not do: it leaves the child with locks of threads that it does not have, and Metal refuses to
 * work in it.
 */
#ifndef QR_ENGINE_PROBE_H
#define QR_ENGINE_PROBE_H

#include "engine/backend.h"

/* The hidden command of the program that probes: QR_PROBE_COMMAND NAME DEVICE TORCH_DIR PLUGIN_DIR [DTYPE FLASH_ATTENTION], "" for none.
 * With the last two, numbers, it checks that type. Its last line is "qwen-rerank VERSION: VALUE WHY", a grade or a qr_check. */
#define QR_PROBE_COMMAND "probe-backend"
int qr_probe_main(int argc, char **argv);

/* How many seconds it may take. */
#define QR_PROBE_VARIABLE "QR_PROBE_SECONDS"

typedef struct qr_probe_check {
    qr_dtype dtype;
    qr_switch flash_attention;
} qr_probe_check;

/* Runs that command; check may be NULL. The value, or -1 if there is no such program or it is of another version, or -2 if it died. */
enum { QR_PROBE_NO_PROGRAM = -1, QR_PROBE_DIED = -2 };
int qr_probe_in_child(const char *name, const qr_backend_place *place, const qr_probe_check *check, char *why, size_t size);

#endif
