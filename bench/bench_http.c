/* The service around a backend that answers at once: what is left is HTTP, JSON, tokenizing, scheduling. For `make bench-http`; no part of
 * the program.
 *
 * usage: bench_http PORT      ends on SIGTERM or SIGINT
 */
#define _GNU_SOURCE
#include "engine/engine.h"
#include "server/server.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int null_probe(const qr_backend_place *place, char *why, size_t size)
{
    (void) place;
    snprintf(why, size, "answers at once");
    return 1;
}

static qr_status null_open(qr_backend **out, const qr_backend_cfg *cfg, qr_error *err)
{
    static char nothing;
    (void) cfg, (void) err;
    *out = (qr_backend *) (void *) &nothing;
    return QR_OK;
}

static void null_close(qr_backend *backend) { (void) backend; }

static qr_status null_score(qr_backend *backend, const qr_batch *batch, qr_logits *out, qr_error *err)
{
    (void) backend, (void) err;
    for (size_t i = 0; i < batch->n_seqs; i++) out[i] = (qr_logits){(float) (batch->seqs[i].n_ids % 17), 8};
    return QR_OK;
}

static void null_info(const qr_backend *backend, qr_backend_info *out)
{
    (void) backend;
    *out = (qr_backend_info){.device = "none", .dtype = "none"};
}

static const qr_backend_ops null_backend = {.abi = QR_BACKEND_ABI,
                                            .name = "null",
                                            .needs_model = 1,
                                            .probe = null_probe,
                                            .open = null_open,
                                            .close = null_close,
                                            .score = null_score,
                                            .info = null_info};

int main(int argc, char **argv)
{
    const char *model = "builtin";
    sv_log log = {.level = QR_LOG_ERROR};
    sv_server_options options = {.port = argc > 1 ? (unsigned) atoi(argv[1]) : 0, .models = &model, .n_models = 1, .log = &log};
    qr_engine *engine = NULL;
    sv_server *server = NULL;
    qr_error err = {0};
    sigset_t signals;
    int number;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    qr_status status = qr_engine_open_on(&engine, &null_backend, &(qr_options){.model = model, .max_batch_tokens = 65536}, &err);
    if (status == QR_OK) status = sv_server_open(&server, &options, &err);
    if (status == QR_OK) {
        sv_server_set_engine(server, 0, engine);
        sigwait(&signals, &number);
        sv_server_drain(server, 10);
    } else {
        fprintf(stderr, "bench_http: %s\n", err.msg);
    }
    sv_server_close(server);
    qr_engine_close(engine);
    return status == QR_OK ? 0 : 1;
}
