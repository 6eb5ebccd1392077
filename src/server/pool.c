/* See pool.h. */
#include "server/pool.h"

#include "base/mem.h"

#include <pthread.h>

struct sv_pool {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    sv_work *first, **last;
    int closing;
    unsigned n_threads;
    pthread_t threads[];
};

static void *run(void *arg)
{
    sv_pool *p = arg;
    for (;;) {
        pthread_mutex_lock(&p->lock);
        while (p->first == NULL && !p->closing) pthread_cond_wait(&p->changed, &p->lock);
        sv_work *work = p->first;
        if (work != NULL && (p->first = work->next) == NULL) p->last = &p->first;
        pthread_mutex_unlock(&p->lock);
        if (work == NULL) return NULL;
        work->run(work);
    }
}

qr_status sv_pool_open(sv_pool **out, unsigned n_threads, qr_error *err)
{
    *out = NULL;
    sv_pool *p = qr_calloc(1, sizeof *p + n_threads * sizeof p->threads[0]);
    if (p == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for %u threads", n_threads);
    p->last = &p->first;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
    for (; p->n_threads < n_threads; p->n_threads++)
        if (pthread_create(&p->threads[p->n_threads], NULL, run, p) != 0) {
            sv_pool_close(p);
            return qr_fail(err, QR_E_MEMORY, "cannot start %u threads", n_threads);
        }
    *out = p;
    return QR_OK;
}

unsigned sv_pool_size(const sv_pool *p) { return p->n_threads; }

void sv_pool_add(sv_pool *p, sv_work *work)
{
    work->next = NULL;
    pthread_mutex_lock(&p->lock);
    *p->last = work;
    p->last = &work->next;
    pthread_cond_signal(&p->changed);
    pthread_mutex_unlock(&p->lock);
}

void sv_pool_close(sv_pool *p)
{
    if (p == NULL) return;
    pthread_mutex_lock(&p->lock);
    p->closing = 1;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < p->n_threads; i++) pthread_join(p->threads[i], NULL);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
    qr_free(p);
}
