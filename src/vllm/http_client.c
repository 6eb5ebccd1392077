/* See http_client.h. */
#include "vllm/http_client.h"

#include "base/mem.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

/* vLLM closes idle connections after 5 s; a request on one that is just being closed would fail. */
enum { MAX_IDLE_S = 4, CONNECT_TIMEOUT_MS = 5000, MAX_CONNECTIONS = 4096 };

struct qr_http {
    CURLM *multi;
    struct curl_slist *headers;
    char *ca_file;
};

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;
static void init_curl(void) { curl_global_init(CURL_GLOBAL_DEFAULT); }

static int add_header(struct curl_slist **list, const char *line)
{
    struct curl_slist *longer = curl_slist_append(*list, line);
    if (longer != NULL) *list = longer;
    return longer != NULL;
}

static qr_status set_headers(qr_http *http, const char *api_key, qr_error *err)
{
    /* "Expect:" without a value: large bodies are sent at once instead of after a round trip. */
    int ok = add_header(&http->headers, "Content-Type: application/json") && add_header(&http->headers, "Accept: application/json") &&
             add_header(&http->headers, "Expect:") && add_header(&http->headers, "User-Agent: qwen-rerank/" QR_VERSION);
    if (ok && api_key != NULL) {
        static const char scheme[] = "Authorization: Bearer ";
        qr_buf line = {0};
        qr_buf_add(&line, scheme, strlen(scheme));
        qr_buf_add(&line, api_key, strlen(api_key) + 1);
        ok = !line.failed && add_header(&http->headers, line.data);
        qr_buf_deinit(&line);
    }
    return ok ? QR_OK : qr_fail(err, QR_E_MEMORY, "no memory for HTTP headers");
}

qr_status qr_http_open(qr_http **out, const char *api_key, const char *ca_file, qr_error *err)
{
    *out = NULL;
    pthread_once(&curl_once, init_curl);
    if (api_key != NULL && strpbrk(api_key, "\r\n") != NULL)
        return qr_fail(err, QR_E_ARG, "the API key: expected one line, found a line end in it");
    qr_http *http = qr_calloc(1, sizeof *http);
    if (http == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for an HTTP client");
    http->multi = curl_multi_init();
    qr_status status = http->multi != NULL ? set_headers(http, api_key, err) : qr_fail(err, QR_E_MEMORY, "libcurl does not start");
    if (status == QR_OK && ca_file != NULL && (http->ca_file = qr_strndup(ca_file, strlen(ca_file))) == NULL)
        status = qr_fail(err, QR_E_MEMORY, "no memory for an HTTP client");
    if (status != QR_OK) {
        qr_http_close(http);
        return status;
    }
    curl_multi_setopt(http->multi, CURLMOPT_MAXCONNECTS, (long) MAX_CONNECTIONS);
    *out = http;
    return QR_OK;
}

/* The request whose handle this is. */
static qr_http_request *request_of(CURL *easy)
{
    char *request = NULL;
    curl_easy_getinfo(easy, CURLINFO_PRIVATE, &request);
    return (qr_http_request *) (void *) request;
}

void qr_http_close(qr_http *http)
{
    if (http == NULL) return;
    if (http->multi != NULL) curl_multi_cleanup(http->multi);
    curl_slist_free_all(http->headers);
    qr_free(http->ca_file);
    qr_free(http);
}

/* libcurl's callback: fewer bytes than given end the transfer. */
static size_t take_answer(char *data, size_t size, size_t n, void *arg)
{
    qr_http_request *r = arg;
    n *= size;
    if (n > r->max_answer_bytes - r->answer.n) return 0;
    qr_buf_add(&r->answer, data, n);
    return r->answer.failed ? 0 : n;
}

static int set_options(const qr_http *http, qr_http_request *r, CURL *easy, struct curl_slist **connect_to)
{
    int ok = 1;
#define SET(option, value) ok = ok && curl_easy_setopt(easy, CURLOPT_##option, value) == CURLE_OK
    SET(URL, r->url);
    SET(PRIVATE, (void *) r);
    SET(HTTPHEADER, http->headers);
    SET(ERRORBUFFER, r->error);
    SET(WRITEFUNCTION, take_answer);
    SET(WRITEDATA, (void *) r);
    SET(NOSIGNAL, 1L);
    SET(PROXY, "");
    SET(HTTP_VERSION, (long) CURL_HTTP_VERSION_2TLS);
    SET(CONNECTTIMEOUT_MS, (long) CONNECT_TIMEOUT_MS);
    SET(TIMEOUT_MS, (long) (r->timeout_seconds * 1000) + 1);
    SET(MAXAGE_CONN, (long) MAX_IDLE_S);
    SET(TCP_KEEPALIVE, 1L);
#if LIBCURL_VERSION_NUM >= 0x075500
    SET(PROTOCOLS_STR, "http,https");
#else
    SET(PROTOCOLS, (long) (CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
    if (http->ca_file != NULL) SET(CAINFO, http->ca_file);
    if (r->body.n > 0) {
        SET(POSTFIELDSIZE_LARGE, (curl_off_t) r->body.n);
        SET(POSTFIELDS, r->body.data);
    }
    if (r->connect_to != NULL) {
        *connect_to = curl_slist_append(NULL, r->connect_to);
        ok = ok && *connect_to != NULL;
        SET(CONNECT_TO, *connect_to);
    }
#undef SET
    return ok;
}

/* The handle, with the list that was made for it. */
typedef struct transfer {
    CURL *easy;
    struct curl_slist *connect_to;
} transfer;

static void end_transfer(qr_http *http, qr_http_request *r)
{
    transfer *t = r->easy;
    r->easy = NULL;
    curl_multi_remove_handle(http->multi, t->easy);
    curl_easy_cleanup(t->easy);
    curl_slist_free_all(t->connect_to);
    qr_free(t);
}

qr_status qr_http_start(qr_http *http, qr_http_request *r, qr_error *err)
{
    r->status = r->is_refused = 0;
    r->retry_after_s = r->seconds = 0;
    r->address[0] = r->error[0] = 0;
    r->answer.n = 0;
    transfer *t = qr_calloc(1, sizeof *t);
    if (t != NULL) t->easy = curl_easy_init();
    if (t == NULL || t->easy == NULL) {
        qr_free(t);
        return qr_fail(err, QR_E_MEMORY, "no memory for an HTTP request");
    }
    r->easy = t;
    if (set_options(http, r, t->easy, &t->connect_to) && curl_multi_add_handle(http->multi, t->easy) == CURLM_OK) return QR_OK;
    end_transfer(http, r);
    return qr_fail(err, QR_E_BACKEND, "%s: libcurl does not take the request: %s", r->url, r->error);
}

void qr_http_cancel(qr_http *http, qr_http_request *r)
{
    if (r->easy != NULL) end_transfer(http, r);
}

static void finish(qr_http *http, CURL *easy, CURLcode code)
{
    qr_http_request *r = request_of(easy);
    curl_off_t retry_after = 0, connected = 0;
    long status = 0;
    const char *address = NULL;
    curl_easy_getinfo(easy, CURLINFO_TOTAL_TIME, &r->seconds);
    if (curl_easy_getinfo(easy, CURLINFO_PRIMARY_IP, &address) == CURLE_OK && address != NULL)
        snprintf(r->address, sizeof r->address, "%s", address);
    curl_easy_getinfo(easy, CURLINFO_PRETRANSFER_TIME_T, &connected); /* 0 until a connection, TLS included, can be used */
    if (code == CURLE_OK) {
        curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
        curl_easy_getinfo(easy, CURLINFO_RETRY_AFTER, &retry_after);
        r->retry_after_s = (double) retry_after;
    } else {
        r->is_refused = connected == 0;
        if (code == CURLE_WRITE_ERROR) /* from take_answer, whatever libcurl says of it */
            snprintf(r->error, sizeof r->error, "the answer has more than %zu bytes, or there is no memory for it", r->max_answer_bytes);
        else if (r->error[0] == 0) snprintf(r->error, sizeof r->error, "%s", curl_easy_strerror(code));
    }
    r->status = (int) status;
    end_transfer(http, r);
    r->done(r);
}

void qr_http_run(qr_http *http, double seconds)
{
    int n;
    curl_multi_perform(http->multi, &n);
    CURLMsg *message = curl_multi_info_read(http->multi, &n);
    if (message == NULL) {
        curl_multi_poll(http->multi, NULL, 0, seconds <= 0 ? 0 : seconds > 3600 ? 3600000 : (int) (seconds * 1000) + 1, NULL);
        curl_multi_perform(http->multi, &n);
        message = curl_multi_info_read(http->multi, &n);
    }
    for (; message != NULL; message = curl_multi_info_read(http->multi, &n))
        if (message->msg == CURLMSG_DONE) finish(http, message->easy_handle, message->data.result);
}

void qr_http_wake(qr_http *http) { curl_multi_wakeup(http->multi); }

void qr_http_request_deinit(qr_http_request *r)
{
    qr_buf_deinit(&r->body);
    qr_buf_deinit(&r->answer);
}
