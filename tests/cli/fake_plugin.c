/* Plug-ins that are wrong in one way, or right, for test_plugins.py, which compiles them with -DMODE_...; they pose as MLX. */
#include "engine/plugin.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION QR_VERSION
#endif

static int fake_probe(const qr_backend_place *place, char *why, size_t size)
{
    (void) place;
    snprintf(why, size, "a fake");
#ifdef MODE_CRASH_IN_PROBE
    raise(SIGSEGV);
#endif
    return QR_GRADE_MLX_CPU;
}

static qr_status fake_open(qr_backend **out, const qr_backend_cfg *cfg, qr_error *err)
{
    (void) cfg, (void) err;
    *out = malloc(1);
    return QR_OK;
}

static void fake_close(qr_backend *b) { free(b); }

static const struct {
    size_t prefix, n_ids;
    float margin;
} known[] = {
#include "engine/self_check_margins.h"
};

/* Knows the answers of the self-check, and otherwise says that shorter is better. */
static qr_status fake_score(qr_backend *b, const qr_batch *batch, qr_logits *out, qr_error *err)
{
    (void) b, (void) err;
    int is_check = batch->n_seqs == sizeof known / sizeof known[0];
    for (size_t i = 0; i < batch->n_seqs; i++) {
        out[i] = (qr_logits){is_check ? known[i].margin : 10 - (float) batch->seqs[i].n_ids / 10, 0};
#ifdef MODE_WRONG
        out[i].yes += 1;
#endif
    }
    return QR_OK;
}

static void fake_info(const qr_backend *b, qr_backend_info *out)
{
    (void) b;
    *out = (qr_backend_info){.device = "nowhere", .dtype = "f16", .threads = 1};
}

static void fake_stats(const qr_backend *b, qr_backend_stats *out)
{
    (void) b;
    *out = (qr_backend_stats){0};
}

static const qr_backend_ops ops = {
    .abi = QR_BACKEND_ABI,
    .name = "mlx",
    .needs_model = 1,
    .probe = fake_probe,
    .open = fake_open,
    .close = fake_close,
    .score = fake_score,
    .info = fake_info,
    .stats = fake_stats,
};

#ifndef MODE_NO_SYMBOL
const qr_plugin *qr_backend_plugin(void);
const qr_plugin *qr_backend_plugin(void)
{
    static const qr_plugin plugin = {QR_BACKEND_ABI, VERSION, &ops, NULL};
    return &plugin;
}
#endif

#ifdef MODE_CRASH
__attribute__((constructor)) static void crash(void) { raise(SIGSEGV); }
#endif
#ifdef MODE_EXIT
__attribute__((constructor)) static void leave(void)
{
    fputs("fake: no such device\n", stderr);
    _exit(3);
}
#endif
#ifdef MODE_MISSING
extern int nobody_has_this(void);
int needs_it(void);
int needs_it(void) { return nobody_has_this(); }
#endif
