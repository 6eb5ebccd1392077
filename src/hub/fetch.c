/* See fetch.h. */
#define _GNU_SOURCE
#include "hub/fetch.h"

#include "base/file.h"
#include "base/json_in.h"
#include "base/mem.h"
#include "base/system.h"
#include "model/hf_cache.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

enum { MAX_REDIRECTS = 8, MAX_TRIES = 6, MAX_WAIT_S = 60, CONNECT_TIMEOUT_S = 10, MAX_TOKEN = 4096, MAX_ENDPOINT = 1000 };

struct qr_fetch {
    const qr_hub *hub;
    CURL *easy;
    struct curl_slist *plain, *with_token; /* headers */
};

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;
static void init_curl(void) { curl_global_init(CURL_GLOBAL_DEFAULT); }

/* ---- the environment ------------------------------------------------------------------------------------------------------------ */

static char *trimmed(const char *text)
{
    size_t begin = strspn(text, " \t\r\n"), end = strlen(text);
    while (end > begin && strchr(" \t\r\n", text[end - 1]) != NULL) end--;
    return end > begin ? qr_strndup(text + begin, end - begin) : NULL;
}

/* None is no error: the models are public. */
static void find_token(qr_hub *hub)
{
    const char *named = qr_env("HF_TOKEN") ? qr_env("HF_TOKEN") : qr_env("HUGGING_FACE_HUB_TOKEN");
    const char *off = qr_env("HF_HUB_DISABLE_IMPLICIT_TOKEN");
    char *path = NULL, *text = NULL;
    size_t len;
    if (off != NULL && (strcmp(off, "1") == 0 || strcasecmp(off, "true") == 0 || strcasecmp(off, "yes") == 0 || strcasecmp(off, "on") == 0))
        return;
    if (named != NULL) hub->token = trimmed(named);
    else if (qr_hf_token_path(&path, NULL) == QR_OK && qr_file_read(path, MAX_TOKEN, &text, &len, NULL) == QR_OK)
        hub->token = trimmed(text);
    qr_free(text);
    qr_free(path);
}

qr_status qr_hub_open(qr_hub *hub, const volatile int *cancel, qr_error *err)
{
    const char *endpoint = qr_env("HF_ENDPOINT"), *timeout = qr_env("HF_HUB_DOWNLOAD_TIMEOUT");
    *hub = (qr_hub){.timeout_s = timeout != NULL ? strtod(timeout, NULL) : 10, .cancel = cancel};
    if (!(hub->timeout_s >= 1 && hub->timeout_s <= 86400)) hub->timeout_s = 10;
    if (qr_hf_is_offline()) return qr_fail(err, QR_E_UNSUPPORTED, "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: nothing is downloaded");
    if (endpoint == NULL) endpoint = "https://huggingface.co";
    if (strncasecmp(endpoint, "http://", 7) != 0 && strncasecmp(endpoint, "https://", 8) != 0)
        return qr_fail(err, QR_E_ARG, "HF_ENDPOINT: expected http://... or https://..., found %s", qr_label_of(endpoint).text);
    size_t n = strlen(endpoint);
    if (n > MAX_ENDPOINT) return qr_fail(err, QR_E_ARG, "HF_ENDPOINT: expected at most %d characters, found %zu", MAX_ENDPOINT, n);
    while (n > 0 && endpoint[n - 1] == '/') n--;
    if ((hub->endpoint = qr_strndup(endpoint, n)) == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for an address");
    find_token(hub);
    if (hub->token != NULL && strpbrk(hub->token, "\r\n") != NULL) {
        qr_hub_close(hub);
        return qr_fail(err, QR_E_ARG, "HF_TOKEN: expected one line, found a line end in it");
    }
    return QR_OK;
}

void qr_hub_close(qr_hub *hub)
{
    qr_free(hub->endpoint);
    qr_free(hub->token);
    *hub = (qr_hub){0};
}

/* ---- headers -------------------------------------------------------------------------------------------------------------------- */

int qr_hub_parse_range(const char *value, uint64_t *first, uint64_t *total)
{
    unsigned long long a, b, n;
    char after;
    if (sscanf(value, "bytes %llu-%llu/%llu%c", &a, &b, &n, &after) != 3 || a > b || b >= n) return 0;
    *first = a;
    *total = n;
    return 1;
}

int qr_hub_parse_next(const char *value, char *url, size_t size)
{
    for (const char *p = value; (p = strchr(p, '<')) != NULL;) {
        const char *end = strchr(++p, '>');
        if (end == NULL) return 0;
        const char *comma = strchr(end, ',');
        const char *rel = strstr(end, "rel=\"next\"");
        if (rel != NULL && (comma == NULL || rel < comma)) {
            if ((size_t) (end - p) >= size) return 0;
            memcpy(url, p, (size_t) (end - p));
            url[end - p] = 0;
            return 1;
        }
        p = end;
    }
    return 0;
}

int qr_hub_same_host(const char *a, const char *b)
{
    const char *x = strstr(a, "://"), *y = strstr(b, "://");
    if (x == NULL || y == NULL) return 0;
    size_t n = (size_t) (x + 3 - a) + strcspn(x + 3, "/?#"), m = (size_t) (y + 3 - b) + strcspn(y + 3, "/?#");
    return n == m && strncasecmp(a, b, n) == 0;
}

static void copy_trimmed(char *to, size_t size, const char *value, size_t n)
{
    while (n > 0 && strchr(" \t", *value) != NULL) value++, n--;
    while (n > 0 && strchr(" \t\r\n", value[n - 1]) != NULL) n--;
    snprintf(to, size, "%.*s", (int) (n < size ? n : size - 1), value);
}

typedef struct transfer {
    qr_fetch *fetch;
    qr_fetch_job *job;
    uint64_t at, end, skip; /* next byte of the file to be given to the sink, first one that must not; bytes to pass over */
    int takes;              /* the answer is one with content that is wanted */
    int overrun, refused_by_sink;
    char error[CURL_ERROR_SIZE];
} transfer;

/* libcurl's callback, once a header. */
static size_t take_header(char *line, size_t size, size_t n, void *arg)
{
    transfer *t = arg;
    qr_hub_answer *answer = &t->job->answer;
    char value[2200];
    n *= size;
    const char *colon = memchr(line, ':', n);
    if (colon == NULL) return n;
    size_t name = (size_t) (colon - line);
    copy_trimmed(value, sizeof value, colon + 1, n - name - 1);
#define IS(text) (name == sizeof text - 1 && strncasecmp(line, text, name) == 0)
    if (IS("Content-Range") && !qr_hub_parse_range(value, &answer->first, &answer->total)) answer->total = 0;
    if (answer->elsewhere) return n;
    if (IS("X-Error-Code")) snprintf(answer->error_code, sizeof answer->error_code, "%.60s", qr_label_of(value).text);
    if (IS("Link") && !qr_hub_parse_next(value, answer->next, sizeof answer->next)) answer->next[0] = 0;
    if (IS("X-Linked-Etag")) {
        const char *from = strncmp(value, "W/", 2) == 0 ? value + 2 : value;
        copy_trimmed(answer->linked_etag, sizeof answer->linked_etag, from + (*from == '"'), strcspn(from + (*from == '"'), "\""));
    }
#undef IS
    return n;
}

/* libcurl's callback: fewer bytes than given end the transfer. */
static size_t take_data(char *data, size_t size, size_t n, void *arg)
{
    transfer *t = arg;
    long status = 0;
    n *= size;
    curl_easy_getinfo(t->fetch->easy, CURLINFO_RESPONSE_CODE, &status);
    if (status != 200 && status != 206) return n; /* a page about the error */
    if (!t->takes) {                              /* the first bytes: where do they belong? */
        uint64_t first = status == 206 ? t->job->answer.first : 0;
        if (status == 206 && t->job->answer.total == 0) return 0;
        if (first > t->at) return 0;
        t->skip = t->at - first; /* a server that ignores ranges begins at the beginning */
        t->takes = 1;
    }
    const char *from = data;
    size_t left = n;
    if (t->skip > 0) {
        size_t passed = t->skip < left ? (size_t) t->skip : left;
        t->skip -= passed;
        from += passed;
        left -= passed;
    }
    if (left > t->end - t->at) {
        left = (size_t) (t->end - t->at);
        t->overrun = 1;
    }
    if (left > 0 && t->job->sink(t->job->arg, from, left) != 0) {
        t->refused_by_sink = 1;
        return 0;
    }
    t->at += left;
    return t->overrun ? 0 : n;
}

static int on_progress(void *arg, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    const transfer *t = arg;
    (void) a, (void) b, (void) c, (void) d;
    return qr_is_set(t->fetch->hub->cancel);
}

/* ---- one request ---------------------------------------------------------------------------------------------------------------- */

static int add_header(struct curl_slist **list, const char *line)
{
    struct curl_slist *longer = curl_slist_append(*list, line);
    if (longer != NULL) *list = longer;
    return longer != NULL;
}

qr_status qr_fetch_open(qr_fetch **out, const qr_hub *hub, qr_error *err)
{
    pthread_once(&curl_once, init_curl);
    qr_fetch *fetch = *out = qr_calloc(1, sizeof *fetch);
    if (fetch == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for a connection");
    fetch->hub = hub;
    fetch->easy = curl_easy_init();
    int ok = fetch->easy != NULL;
    struct curl_slist **lists[] = {&fetch->plain, &fetch->with_token};
    for (size_t i = 0; i < 2; i++) /* identity: a range of compressed bytes would be of no use */
        ok = ok && add_header(lists[i], "User-Agent: qwen-rerank/" QR_VERSION) && add_header(lists[i], "Accept-Encoding: identity");
    if (hub->token != NULL) {
        qr_buf line = {0};
        qr_buf_printf(&line, "Authorization: Bearer %s", hub->token);
        qr_buf_add(&line, "", 1);
        ok = ok && !line.failed && add_header(&fetch->with_token, line.data);
        qr_buf_deinit(&line);
    }
    if (ok) return QR_OK;
    qr_fetch_close(fetch);
    *out = NULL;
    return qr_fail(err, QR_E_MEMORY, "no memory for a connection");
}

void qr_fetch_close(qr_fetch *fetch)
{
    if (fetch == NULL) return;
    if (fetch->easy != NULL) curl_easy_cleanup(fetch->easy);
    curl_slist_free_all(fetch->plain);
    curl_slist_free_all(fetch->with_token);
    qr_free(fetch);
}

static CURLcode ask(qr_fetch *fetch, transfer *t, const char *url, const char *range)
{
    CURL *easy = fetch->easy;
    int ok = 1;
    t->job->answer.elsewhere = !qr_hub_same_host(url, fetch->hub->endpoint);
    curl_easy_reset(easy);
#define SET(option, value) ok = ok && curl_easy_setopt(easy, CURLOPT_##option, value) == CURLE_OK
    SET(URL, url);
    SET(HTTPHEADER, t->job->answer.elsewhere ? fetch->plain : fetch->with_token);
    SET(ERRORBUFFER, t->error);
    SET(HEADERFUNCTION, take_header);
    SET(HEADERDATA, (void *) t);
    SET(WRITEFUNCTION, take_data);
    SET(WRITEDATA, (void *) t);
    SET(XFERINFOFUNCTION, on_progress);
    SET(XFERINFODATA, (void *) t);
    SET(NOPROGRESS, 0L);
    SET(NOSIGNAL, 1L);
    SET(FOLLOWLOCATION, 0L);
    SET(CONNECTTIMEOUT, (long) CONNECT_TIMEOUT_S);
    SET(LOW_SPEED_LIMIT, 1L);
    SET(LOW_SPEED_TIME, (long) fetch->hub->timeout_s);
    SET(TCP_KEEPALIVE, 1L);
#if LIBCURL_VERSION_NUM >= 0x075500
    SET(PROTOCOLS_STR, "http,https");
#else
    SET(PROTOCOLS, (long) (CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
    if (range != NULL) SET(RANGE, range);
#undef SET
    return ok ? curl_easy_perform(easy) : CURLE_OUT_OF_MEMORY;
}

/* One try: the request and where it is sent on to. */
static CURLcode try_once(qr_fetch *fetch, transfer *t)
{
    qr_fetch_job *job = t->job;
    char range[64], *url = qr_strndup(job->url, strlen(job->url));
    CURLcode code = url != NULL ? CURLE_OK : CURLE_OUT_OF_MEMORY;
    job->answer = (qr_hub_answer){0};
    if (job->begin != NULL) job->begin(job->arg, &job->first);
    t->at = job->first;
    t->end = job->last > 0 ? job->last + 1 : job->max_bytes;
    snprintf(range, sizeof range, "%llu-%llu", (unsigned long long) job->first, (unsigned long long) job->last);
    for (int i = 0; code == CURLE_OK; i++) {
        char *location = NULL;
        t->takes = 0;
        code = ask(fetch, t, url, job->last > 0 ? range : NULL);
        curl_off_t wait = 0;
        curl_easy_getinfo(fetch->easy, CURLINFO_RESPONSE_CODE, &job->answer.status);
        curl_easy_getinfo(fetch->easy, CURLINFO_RETRY_AFTER, &wait);
        job->answer.retry_after_s = (double) wait;
        if (code != CURLE_OK || curl_easy_getinfo(fetch->easy, CURLINFO_REDIRECT_URL, &location) != CURLE_OK || location == NULL) break;
        if (i == MAX_REDIRECTS) {
            code = CURLE_TOO_MANY_REDIRECTS;
            break;
        }
        qr_free(url);
        url = qr_strndup(location, strlen(location));
        if (url == NULL) code = CURLE_OUT_OF_MEMORY;
    }
    qr_free(url);
    return code;
}

static int may_pass(const qr_fetch_job *job, CURLcode code, const transfer *t)
{
    long status = job->answer.status;
    if (t->refused_by_sink || t->overrun) return 0;
    if (code == CURLE_OK)
        return status == 408 || status == 429 || status >= 500 ||
               (status == 403 && job->answer.elsewhere); /* a signed address that expired */
    return code != CURLE_OUT_OF_MEMORY && code != CURLE_URL_MALFORMAT && code != CURLE_UNSUPPORTED_PROTOCOL &&
           code != CURLE_TOO_MANY_REDIRECTS && code != CURLE_PEER_FAILED_VERIFICATION && code != CURLE_ABORTED_BY_CALLBACK;
}

static qr_status say(const qr_fetch_job *job, CURLcode code, const transfer *t, const qr_hub *hub, qr_error *err)
{
    const qr_hub_answer *a = &job->answer;
    const char *url = job->url;
    if (qr_is_set(hub->cancel)) return qr_fail(err, QR_E_CANCELLED, "interrupted; the next pull goes on from there");
    if (t->refused_by_sink) return err != NULL && err->code != QR_OK ? err->code : QR_E_IO;
    if (t->overrun) return qr_fail(err, QR_E_FORMAT, "%s: expected at most %llu bytes, found more", url, (unsigned long long) t->end);
    if (code != CURLE_OK && a->status != 429 && a->status < 500)
        return qr_fail(err, QR_E_IO, "%s: %s%s", url, t->error[0] != 0 ? t->error : curl_easy_strerror(code),
                       code == CURLE_COULDNT_RESOLVE_HOST || code == CURLE_COULDNT_CONNECT
                           ? "; behind a proxy set https_proxy, for a mirror HF_ENDPOINT"
                           : "");
    if (a->status == 401 || a->status == 403)
        return qr_fail(err, QR_E_NOT_FOUND, "%s: refused with %ld%s%s: %s", url, a->status, a->error_code[0] ? " " : "", a->error_code,
                       strcmp(a->error_code, "GatedRepo") == 0 ? "accept the model's terms on its page, and set HF_TOKEN"
                       : hub->token == NULL                    ? "no such model, or a private one, which needs HF_TOKEN"
                                                               : "no such model, or one that this token may not read");
    if (a->status == 404)
        return qr_fail(err, QR_E_NOT_FOUND, "%s: not found%s%s: check the name and the revision", url, a->error_code[0] ? ", " : "",
                       a->error_code);
    if (a->status == 429) return qr_fail(err, QR_E_IO, "%s: too many requests (429), after %d tries; try again later", url, MAX_TRIES);
    return qr_fail(err, QR_E_IO, "%s: expected 200 or 206, found %ld", url, a->status);
}

static void wait_s(const qr_hub *hub, double seconds)
{
    for (double end = qr_now() + seconds; qr_now() < end && !qr_is_set(hub->cancel);) usleep(20000);
}

qr_status qr_fetch_run(qr_fetch *fetch, qr_fetch_job *job, qr_error *err)
{
    uint64_t before = UINT64_MAX;
    double pause = 0.2;
    for (int tries = 0;;) {
        transfer t = {.fetch = fetch, .job = job};
        CURLcode code = try_once(fetch, &t);
        long status = job->answer.status;
        int whole = job->last == 0 || t.at == t.end;
        if (code == CURLE_OK && (status == 200 || status == 206) && whole && !t.overrun) return QR_OK;
        int answered = status == 200 || status == 206;
        if (answered && job->last > 0 && t.at == t.end) return QR_OK; /* all that was wanted came, however the answer ended */
        int short_answer = code == CURLE_OK && answered;
        if (qr_is_set(fetch->hub->cancel) || (!short_answer && !may_pass(job, code, &t))) return say(job, code, &t, fetch->hub, err);
        tries = before != UINT64_MAX && t.at > before ? 1 : tries + 1; /* what gets on may go on */
        before = t.at;
        if (tries >= MAX_TRIES)
            return short_answer ? qr_fail(err, QR_E_IO, "%s: expected bytes up to %llu, found %llu, %d times", job->url,
                                          (unsigned long long) t.end, (unsigned long long) t.at, tries)
                                : say(job, code, &t, fetch->hub, err);
        double asked = job->answer.retry_after_s;
        wait_s(fetch->hub, asked > pause ? (asked < MAX_WAIT_S ? asked : MAX_WAIT_S) : pause);
        pause = pause * 2 < 8 ? pause * 2 : 8;
    }
}

/* ---- texts ---------------------------------------------------------------------------------------------------------------------- */

static void begin_text(void *arg, uint64_t *first)
{
    ((qr_buf *) arg)->n = 0;
    *first = 0;
}

static int take_text(void *arg, const char *data, size_t n)
{
    qr_buf_add(arg, data, n);
    return ((qr_buf *) arg)->failed;
}

qr_status qr_fetch_text(qr_fetch *fetch, const char *url, size_t max_bytes, qr_buf *out, char next[2048], qr_error *err)
{
    qr_fetch_job job = {.url = url, .max_bytes = max_bytes, .begin = begin_text, .sink = take_text, .arg = out};
    if (err != NULL) *err = (qr_error){0};
    qr_status status = qr_fetch_run(fetch, &job, err);
    if (next != NULL) memcpy(next, job.answer.next, sizeof job.answer.next);
    if (out->failed) status = qr_fail(err, QR_E_MEMORY, "%s: no memory for the answer", url);
    return status;
}
