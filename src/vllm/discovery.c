/* See discovery.h. */
#define _GNU_SOURCE
#include "vllm/discovery.h"

#include "base/mem.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { RESOLVE_EVERY_S = 15, MAX_ADDRESS = 80 };

/* ---- URLs ------------------------------------------------------------------------------------------------------------------------ */

static int is_literal(const char *host)
{
    unsigned char address[16];
    return host[0] == '[' || inet_pton(AF_INET, host, address) == 1 || strcmp(host, "localhost") == 0;
}

/* A part of a URL in our own memory; NULL: there is none, or no memory. */
static char *url_part(CURLU *url, CURLUPart part, unsigned flags)
{
    char *text, *copy;
    if (curl_url_get(url, part, &text, flags) != CURLUE_OK) return NULL;
    copy = qr_strndup(text, strlen(text));
    curl_free(text);
    return copy;
}

/* People give the base URL of OpenAI's clients, which ends in /v1; what is meant is the server. */
static void cut_end(char *url)
{
    size_t n = strlen(url);
    while (n > 0 && url[n - 1] == '/') n--;
    if (n > 3 && memcmp(url + n - 3, "/v1", 3) == 0) n -= 3;
    while (n > 0 && url[n - 1] == '/') n--;
    url[n] = 0;
}

static qr_status read_url(qr_vllm_endpoint *e, const char *text, qr_error *err)
{
    qr_status status = QR_OK;
    CURLU *url = curl_url();
    if (url == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for a URL");
    if (strlen(text) > 200 || curl_url_set(url, CURLUPART_URL, text, 0) != CURLUE_OK) {
        status = qr_fail(err, QR_E_ARG, "vllm_urls: expected a URL such as http://HOST:8000, found %.200s", text);
        goto done;
    }
    char *scheme = url_part(url, CURLUPART_SCHEME, 0), *user = url_part(url, CURLUPART_USER, 0);
    if (scheme == NULL || (strcmp(scheme, "http") != 0 && strcmp(scheme, "https") != 0))
        status = qr_fail(err, QR_E_ARG, "vllm_urls: expected http:// or https://, found %.200s", text);
    else if (user != NULL) status = qr_fail(err, QR_E_ARG, "vllm_urls: expected no user name in a URL; a key is given by vllm_api_key");
    qr_free(scheme);
    qr_free(user);
    if (status != QR_OK) goto done;
    curl_url_set(url, CURLUPART_QUERY, NULL, 0);
    curl_url_set(url, CURLUPART_FRAGMENT, NULL, 0);
    e->base = url_part(url, CURLUPART_URL, 0);
    e->host = url_part(url, CURLUPART_HOST, 0);
    e->port = url_part(url, CURLUPART_PORT, CURLU_DEFAULT_PORT);
    if (e->base == NULL || e->host == NULL || e->port == NULL) {
        status = qr_fail(err, QR_E_MEMORY, "no memory for a URL");
        goto done;
    }
    cut_end(e->base);
    e->is_named = !is_literal(e->host);
done:
    curl_url_cleanup(url);
    return status;
}

/* ---- names ----------------------------------------------------------------------------------------------------------------------- */

static void free_addresses(char **addresses, size_t n)
{
    for (size_t i = 0; i < n; i++) qr_free(addresses[i]);
    qr_free(addresses);
}

/* The addresses of one family, of IPv4 if there are any: a server that has both should not count twice. One address alone is as good as
 * none: libcurl resolves it itself, and tries both families. NULL with *n SIZE_MAX: the name service does not answer. */
static char **resolve(const qr_vllm_endpoint *e, size_t *n)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *all;
    char **found = NULL;
    size_t capacity = 0;
    int family = AF_INET6;
    *n = SIZE_MAX;
    if (getaddrinfo(e->host, e->port, &hints, &all) != 0) return NULL;
    *n = 0;
    for (struct addrinfo *a = all; a != NULL; a = a->ai_next)
        if (a->ai_family == AF_INET) family = AF_INET;
    for (struct addrinfo *a = all; a != NULL && *n < QR_VLLM_MAX_REPLICAS; a = a->ai_next) {
        char host[64], text[MAX_ADDRESS];
        if (a->ai_family != family || getnameinfo(a->ai_addr, a->ai_addrlen, host, sizeof host, NULL, 0, NI_NUMERICHOST) != 0) continue;
        snprintf(text, sizeof text, family == AF_INET6 ? "::[%s]:%s" : "::%s:%s", host, e->port);
        char **grown = qr_grow(found, &capacity, *n + 1, sizeof *found);
        if (grown == NULL) break;
        found = grown;
        if ((found[*n] = qr_strndup(text, strlen(text))) == NULL) break;
        ++*n;
    }
    freeaddrinfo(all);
    return found;
}

static void update(qr_vllm_pool *p, qr_vllm_endpoint *e)
{
    size_t n;
    char **found = resolve(e, &n);
    if (n == SIZE_MAX) return; /* what was known stays */
    pthread_mutex_lock(&p->lock);
    char **old = e->addresses;
    size_t n_old = e->n_addresses;
    e->addresses = found;
    e->n_addresses = n;
    e->changed = 1;
    pthread_mutex_unlock(&p->lock);
    free_addresses(old, n_old);
}

static void *run(void *arg)
{
    qr_vllm_pool *p = arg;
    pthread_mutex_lock(&p->lock);
    while (!p->closing) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += RESOLVE_EVERY_S;
        if (pthread_cond_timedwait(&p->closing_changed, &p->lock, &until) == 0) continue;
        pthread_mutex_unlock(&p->lock);
        for (size_t i = 0; i < p->n_endpoints; i++)
            if (p->endpoints[i].is_named) update(p, &p->endpoints[i]);
        pthread_mutex_lock(&p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* ---- replicas -------------------------------------------------------------------------------------------------------------------- */

static uint64_t hash_text(uint64_t h, const char *text)
{
    for (; *text != 0; text++) h = (h ^ (unsigned char) *text) * 0x100000001b3u;
    return h;
}

/* address NULL: that of the URL. Without memory, or with too many, there is one replica less. */
static void add_replica(qr_vllm_pool *p, size_t endpoint, const char *address, double now)
{
    const qr_vllm_endpoint *e = &p->endpoints[endpoint];
    size_t capacity = p->capacity;
    if (p->n >= QR_VLLM_MAX_REPLICAS) return;
    qr_vllm_replica **replicas = qr_grow(p->replicas, &capacity, p->n + 1, sizeof *replicas);
    if (replicas == NULL) return;
    p->replicas = replicas;
    const qr_load **loads = qr_grow(p->loads, &p->capacity, p->n + 1, sizeof *loads);
    if (loads == NULL) return;
    p->loads = loads;
    qr_vllm_replica *r = qr_calloc(1, sizeof *r);
    if (r == NULL) return;
    r->base = qr_strndup(e->base, strlen(e->base));
    if (address != NULL) r->connect_to = qr_strndup(address, strlen(address));
    if (r->base == NULL || (address != NULL && r->connect_to == NULL)) {
        qr_free(r->base);
        qr_free(r->connect_to);
        qr_free(r);
        return;
    }
    snprintf(r->name, sizeof r->name, address != NULL ? "%s (%s)" : "%s", e->base, address != NULL ? address + 2 : "");
    r->pool = p;
    r->endpoint = endpoint;
    r->next_check = now;
    r->load.seed = qr_load_hash(hash_text(0xcbf29ce484222325u, r->name));
    qr_load_reset(&r->load);
    p->loads[p->n] = &r->load;
    p->replicas[p->n++] = r;
}

void qr_vllm_replica_remove(qr_vllm_pool *p, size_t i)
{
    qr_vllm_replica *r = p->replicas[i];
    qr_http_cancel(p->http, &r->check);
    qr_http_request_deinit(&r->check);
    qr_free(r->base);
    qr_free(r->connect_to);
    qr_free(r);
    p->n--;
    p->replicas[i] = p->replicas[p->n];
    p->loads[i] = p->loads[p->n];
}

static int is_at(const qr_vllm_replica *r, size_t endpoint, const char *address)
{
    if (r->endpoint != endpoint || r->state == QR_VLLM_LEAVING) return 0;
    return address == NULL ? r->connect_to == NULL : r->connect_to != NULL && strcmp(r->connect_to, address) == 0;
}

static int is_wanted(const qr_vllm_endpoint *e, const qr_vllm_replica *r)
{
    if (e->n_addresses < 2) return r->connect_to == NULL;
    for (size_t i = 0; i < e->n_addresses; i++)
        if (r->connect_to != NULL && strcmp(r->connect_to, e->addresses[i]) == 0) return 1;
    return 0;
}

static void apply(qr_vllm_pool *p, size_t endpoint, double now)
{
    qr_vllm_endpoint *e = &p->endpoints[endpoint];
    size_t n_wanted = e->n_addresses < 2 ? 1 : e->n_addresses;
    for (size_t i = 0; i < p->n; i++) {
        qr_vllm_replica *r = p->replicas[i];
        if (r->endpoint == endpoint && !is_wanted(e, r)) qr_vllm_pool_leave(p, r, now);
    }
    for (size_t i = 0; i < n_wanted; i++) {
        const char *address = e->n_addresses < 2 ? NULL : e->addresses[i];
        size_t at = 0;
        while (at < p->n && !is_at(p->replicas[at], endpoint, address)) at++;
        if (at == p->n) add_replica(p, endpoint, address, now);
    }
    e->changed = 0;
}

void qr_vllm_discover(qr_vllm_pool *p, double now)
{
    pthread_mutex_lock(&p->lock);
    for (size_t i = 0; i < p->n_endpoints; i++)
        if (p->endpoints[i].changed) apply(p, i, now);
    pthread_mutex_unlock(&p->lock);
    for (size_t i = p->n; i-- > 0;)
        if (p->replicas[i]->state == QR_VLLM_LEAVING && p->replicas[i]->load.in_flight == 0) qr_vllm_replica_remove(p, i);
}

qr_status qr_vllm_discovery_open(qr_vllm_pool *p, qr_error *err)
{
    const qr_vllm_place *place = &p->cfg->place.vllm;
    int n_named = 0;
    if (place->n_urls == 0) return qr_fail(err, QR_E_ARG, "vllm_urls: expected at least one URL, found none");
    p->endpoints = qr_calloc(place->n_urls, sizeof *p->endpoints);
    if (p->endpoints == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for %zu URLs", place->n_urls);
    p->n_endpoints = place->n_urls;
    for (size_t i = 0; i < p->n_endpoints; i++) {
        qr_status status = read_url(&p->endpoints[i], place->urls[i], err);
        if (status != QR_OK) return status;
        if (p->endpoints[i].is_named) update(p, &p->endpoints[i]);
        p->endpoints[i].changed = 1;
        n_named += p->endpoints[i].is_named;
    }
    qr_vllm_discover(p, 0);
    if (p->n == 0) return qr_fail(err, QR_E_MEMORY, "no memory for %zu URLs", p->n_endpoints);
    if (n_named == 0) return QR_OK;
    if (pthread_create(&p->resolver, NULL, run, p) != 0) return qr_fail(err, QR_E_MEMORY, "cannot start the thread that resolves names");
    p->resolving = 1;
    return QR_OK;
}

void qr_vllm_discovery_close(qr_vllm_pool *p)
{
    pthread_mutex_lock(&p->lock);
    p->closing = 1;
    pthread_cond_broadcast(&p->closing_changed);
    pthread_mutex_unlock(&p->lock);
    if (p->resolving) pthread_join(p->resolver, NULL);
    for (size_t i = 0; i < p->n_endpoints; i++) {
        qr_vllm_endpoint *e = &p->endpoints[i];
        free_addresses(e->addresses, e->n_addresses);
        qr_free(e->base);
        qr_free(e->host);
        qr_free(e->port);
    }
    qr_free(p->endpoints);
}
