/* See http.h.
 *
 * libmicrohttpd calls on_request several times for each request: when the head is there, for every piece of the body, and at the end; once
 * more when a suspended connection is resumed because its answer is ready. A suspended connection is not looked at, so a thread of our own
 * notices clients that go away meanwhile.
 */
#define _GNU_SOURCE
#include "server/http.h"

#include "base/file.h"
#include "base/mem.h"
#include "base/system.h"
#include "engine/scheduler.h"

#include <errno.h>
#include <fcntl.h>
#include <microhttpd.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <netdb.h>
#include <openssl/rand.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static const double watch_interval_s = 0.25;
static const double settle_s = 0.2;
static const double silent_s = 1;
static const size_t large_bytes = (size_t) 1 << 20;

enum phase { READING, WAITING, STREAMING, ANSWERED };

typedef struct header {
    char *name, *value;
} header;

/* What libmicrohttpd keeps for us of a connection. */
typedef struct peer {
    int is_silent; /* guarded by http->lock */
} peer;

typedef struct sv_http_part {
    sv_http *http;
    struct MHD_Connection *connection;
    enum phase phase; /* guarded by http->lock from WAITING on */
    int too_large, status, suspended;
    int is_large; /* the body has more than large_bytes */
    const char *content_type;
    header headers[SV_MAX_HEADERS];
    size_t n_headers;
    /* of an answer that is sent piece by piece */
    qr_buf pending; /* the first n_sent bytes of it are with the client */
    size_t n_sent;
    int has_ended, is_orphan;         /* the handler has said all; the client has gone before that */
    double closed_at;                 /* when the client was seen to have closed its side; 0: it has not */
    struct sv_exchange *next, **link; /* among all */
} part;

struct sv_http {
    sv_http_options options;
    struct MHD_Daemon *daemon;
    int listener; /* -1 once the daemon or quiesce has closed it */
    unsigned port;
    char *unix_socket, *tls_cert, *tls_key;
    pthread_t watcher;
    int watching;

    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t changed;
    sv_exchange *exchanges; /* requests whose answer is not sent yet */
    size_t n_exchanges;
    size_t n_in_work; /* of these, those that the handler has */
    size_t n_begun;   /* requests since the start */
    size_t n_silent;  /* connections on which no request has come so far */
    int quiesced, closing, watcher_sleeps;
    int has_freed_much; /* since memory was last given back to the system */
};

static void log_message(const sv_http *h, qr_log_level level, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void log_message(const sv_http *h, qr_log_level level, const char *format, ...)
{
    char text[512];
    va_list values;
    if (h->options.log == NULL) return;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    h->options.log(h->options.arg, level, text);
}

/* ---- exchanges ------------------------------------------------------------------------------------------------------------------ */

/* A client's id goes into logs and headers: what could break a line or hide something is refused. */
static int is_harmless_id(const char *id)
{
    size_t n = strlen(id);
    if (n == 0 || n >= SV_ID_BYTES) return 0;
    for (size_t i = 0; i < n; i++)
        if (id[i] <= ' ' || id[i] > '~' || id[i] == '"' || id[i] == '\\') return 0;
    return 1;
}

static void choose_id(sv_exchange *x)
{
    const char *given = sv_header(x, "X-Request-ID");
    if (given != NULL && is_harmless_id(given)) {
        snprintf(x->id, sizeof x->id, "%s", given);
        return;
    }
    unsigned char bytes[16] = {0};
    RAND_bytes(bytes, sizeof bytes);
    for (size_t i = 0; i < sizeof bytes; i++) snprintf(x->id + 2 * i, 3, "%02x", bytes[i]);
}

/* "00-<32 hexadecimal digits>-<16>-<2>" */
static void read_trace(sv_exchange *x)
{
    static const char digits[] = "0123456789abcdef";
    const char *value = sv_header(x, "traceparent");
    if (value == NULL || strlen(value) < 55 || strspn(value, digits) != 2 || value[2] != '-' || strspn(value + 3, digits) != 32 ||
        value[35] != '-' || strspn(value + 3, "0") >= 32)
        return;
    memcpy(x->trace_id, value + 3, 32);
}

/* "http://host/path", which every server must take, is "/path". */
static const char *path_of(const char *target)
{
    size_t n = strncasecmp(target, "http://", 7) == 0 ? 7 : strncasecmp(target, "https://", 8) == 0 ? 8 : 0;
    if (n == 0) return target;
    const char *path = strchr(target + n, '/');
    return path != NULL ? path : "/";
}

/* With the lock held: there is a request, or there will be none. */
static void hear(sv_http *h, peer *c)
{
    if (c == NULL || !c->is_silent) return;
    c->is_silent = 0;
    h->n_silent--;
    if (__atomic_load_n(&h->quiesced, __ATOMIC_RELAXED)) pthread_cond_broadcast(&h->changed);
}

static void on_connection(void *arg, struct MHD_Connection *connection, void **context, enum MHD_ConnectionNotificationCode code)
{
    (void) connection;
    sv_http *h = arg;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        peer *c = *context = qr_calloc(1, sizeof *c);
        if (c == NULL) return; /* it is not waited for */
        pthread_mutex_lock(&h->lock);
        c->is_silent = 1;
        h->n_silent++;
        pthread_mutex_unlock(&h->lock);
    } else {
        pthread_mutex_lock(&h->lock);
        hear(h, *context);
        pthread_mutex_unlock(&h->lock);
        qr_free(*context);
    }
}

static sv_exchange *new_exchange(sv_http *h, struct MHD_Connection *connection, const char *method, const char *target)
{
    const char *path = path_of(target);
    sv_exchange *x = qr_calloc(1, sizeof *x);
    part *p = qr_calloc(1, sizeof *p);
    char *copy = qr_strndup(path, strlen(path));
    if (x == NULL || p == NULL || copy == NULL) {
        qr_free(x);
        qr_free(p);
        qr_free(copy);
        return NULL;
    }
    *p = (part){.http = h, .connection = connection};
    x->http = p;
    snprintf(x->method, sizeof x->method, "%s", method);
    x->path = copy;
    x->begin = qr_now();
    choose_id(x);
    read_trace(x);
    pthread_mutex_lock(&h->lock);
    h->n_exchanges++;
    h->n_begun++;
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    if (info != NULL) hear(h, info->socket_context);
    p->link = &h->exchanges;
    if ((p->next = h->exchanges) != NULL) p->next->http->link = &p->next;
    h->exchanges = x;
    if (h->watcher_sleeps) pthread_cond_broadcast(&h->changed);
    pthread_mutex_unlock(&h->lock);
    return x;
}

static void free_exchange(sv_exchange *x)
{
    for (size_t i = 0; i < x->http->n_headers; i++) {
        qr_free(x->http->headers[i].name);
        qr_free(x->http->headers[i].value);
    }
    qr_buf_deinit(&x->body);
    qr_buf_deinit(&x->answer);
    qr_buf_deinit(&x->http->pending);
    qr_free(x->path);
    qr_free(x->http);
    qr_free(x);
}

const char *sv_header(const sv_exchange *x, const char *name)
{
    return MHD_lookup_connection_value(x->http->connection, MHD_HEADER_KIND, name);
}

void sv_add_header(sv_exchange *x, const char *name, const char *format, ...)
{
    char value[1024];
    va_list values;
    part *p = x->http;
    va_start(values, format);
    int n = vsnprintf(value, sizeof value, format, values);
    va_end(values);
    if (p->n_headers == SV_MAX_HEADERS || n < 0 || (size_t) n >= sizeof value) return;
    header *h = &p->headers[p->n_headers];
    h->name = qr_strndup(name, strlen(name));
    h->value = qr_strndup(value, (size_t) n);
    if (h->name != NULL && h->value != NULL) {
        p->n_headers++;
        return;
    }
    qr_free(h->name); /* an answer without this header is better than none */
    qr_free(h->value);
}

static void unlink_exchange(sv_exchange *x)
{
    const part *p = x->http;
    *p->link = p->next;
    if (p->next != NULL) p->next->http->link = p->link;
}

/* With the lock held: the connection that has to be resumed after it, or NULL. */
static struct MHD_Connection *take_suspended(part *p)
{
    struct MHD_Connection *connection = p->suspended ? p->connection : NULL;
    p->suspended = 0;
    return connection;
}

/* With the lock held: nothing more is to come from the handler. */
static void end_waiting(sv_exchange *x)
{
    sv_http *h = x->http->http;
    h->n_in_work--;
    if (h->closing) pthread_cond_broadcast(&h->changed);
}

void sv_answer(sv_exchange *x, int status, const char *content_type)
{
    part *p = x->http;
    sv_http *h = p->http;
    pthread_mutex_lock(&h->lock);
    end_waiting(x);
    p->status = status;
    p->content_type = content_type;
    p->phase = ANSWERED;
    struct MHD_Connection *resume = take_suspended(p);
    pthread_mutex_unlock(&h->lock);
    if (resume != NULL) MHD_resume_connection(resume);
}

/* Ends the exchange: tells the handler, and frees it. */
static void finish(sv_exchange *x, int status)
{
    sv_http *h = x->http->http;
    if (status != 0 && h->options.finished != NULL) h->options.finished(h->options.arg, x, status);
    pthread_mutex_lock(&h->lock);
    unlink_exchange(x);
    h->n_exchanges--;
    h->has_freed_much |= x->http->is_large;
    if (__atomic_load_n(&h->quiesced, __ATOMIC_RELAXED)) pthread_cond_broadcast(&h->changed);
    pthread_mutex_unlock(&h->lock);
    free_exchange(x);
}

void sv_stream(sv_exchange *x, int status, const char *content_type, int is_last)
{
    part *p = x->http;
    sv_http *h = p->http;
    pthread_mutex_lock(&h->lock);
    if (!p->is_orphan) qr_buf_add(&p->pending, x->answer.data, x->answer.n);
    x->answer.n = 0;
    if (p->phase == WAITING) {
        p->status = status;
        p->content_type = content_type;
        p->phase = STREAMING;
    }
    int is_orphan = p->is_orphan;
    if (is_last) {
        p->has_ended = 1;
        end_waiting(x);
    }
    struct MHD_Connection *resume = take_suspended(p);
    pthread_mutex_unlock(&h->lock);
    if (resume != NULL) MHD_resume_connection(resume);
    else if (is_last && is_orphan) finish(x, 499);
}

/* ---- libmicrohttpd -------------------------------------------------------------------------------------------------------------- */

static void free_answer(void *data) { qr_free(data); }

/* libmicrohttpd asks for more of a streamed answer. */
static ssize_t read_stream(void *arg, uint64_t position, char *out, size_t room)
{
    (void) position;
    part *p = arg;
    ssize_t n = 0;
    pthread_mutex_lock(&p->http->lock);
    if (p->pending.failed) {
        n = MHD_CONTENT_READER_END_WITH_ERROR;
    } else if (p->pending.n > p->n_sent) {
        size_t left = p->pending.n - p->n_sent;
        n = (ssize_t) (left < room ? left : room);
        memcpy(out, p->pending.data + p->n_sent, (size_t) n);
        p->n_sent += (size_t) n;
        if (p->n_sent == p->pending.n) p->n_sent = p->pending.n = 0;
    } else if (p->has_ended) {
        n = MHD_CONTENT_READER_END_OF_STREAM;
    } else {
        MHD_suspend_connection(p->connection); /* until there is more */
        p->suspended = 1;
    }
    pthread_mutex_unlock(&p->http->lock);
    return n;
}

static struct MHD_Response *make_response(sv_exchange *x, enum phase phase)
{
    static const char memory[] =
        "{\"message\": \"out of memory\", \"detail\": \"out of memory\", \"error\": {\"message\": \"out of memory\"}}";
    part *p = x->http;
    if (phase == STREAMING) return MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 16384, read_stream, p, NULL);
    if (x->answer.failed) {
        p->status = 500;
        return MHD_create_response_from_buffer(sizeof memory - 1, (void *) (uintptr_t) memory, MHD_RESPMEM_PERSISTENT);
    }
    if (x->answer.n == 0) return MHD_create_response_from_buffer(0, (void *) (uintptr_t) "", MHD_RESPMEM_PERSISTENT);
    struct MHD_Response *r = MHD_create_response_from_buffer_with_free_callback(x->answer.n, x->answer.data, free_answer);
    if (r != NULL) x->answer.data = NULL; /* it is libmicrohttpd's now */
    return r;
}

/* Gives the answer to libmicrohttpd, which sends it. */
static enum MHD_Result send_answer(sv_exchange *x, enum phase phase)
{
    part *p = x->http;
    struct MHD_Response *r = make_response(x, phase);
    if (r == NULL) return MHD_NO;
    if (p->content_type != NULL) MHD_add_response_header(r, "Content-Type", p->content_type);
    MHD_add_response_header(r, "X-Request-ID", x->id);
    for (size_t i = 0; i < p->n_headers; i++) MHD_add_response_header(r, p->headers[i].name, p->headers[i].value);
    if (__atomic_load_n(&p->http->quiesced, __ATOMIC_RELAXED)) MHD_add_response_header(r, "Connection", "close");
    enum MHD_Result result = MHD_queue_response(p->connection, (unsigned) p->status, r);
    MHD_destroy_response(r);
    return result;
}

/* Answers by itself, without the handler, and ends the connection: what follows on it may not be a request at all. */
static enum MHD_Result refuse(sv_exchange *x, int status, const char *message)
{
    sv_http *h = x->http->http;
    qr_buf_printf(&x->answer,
                  "{\"id\": \"%s\", \"message\": \"%s\", \"detail\": \"%s\", "
                  "\"error\": {\"message\": \"%s\", \"type\": \"invalid_request_error\", \"param\": null, \"code\": %d}}\n",
                  x->id, message, message, message, status);
    pthread_mutex_lock(&h->lock);
    x->http->phase = ANSWERED;
    pthread_mutex_unlock(&h->lock);
    x->http->status = status;
    x->http->content_type = "application/json";
    sv_add_header(x, "Connection", "close");
    return send_answer(x, ANSWERED);
}

static enum MHD_Result refuse_large(sv_exchange *x)
{
    char message[64];
    snprintf(message, sizeof message, "the body is larger than %zu bytes", x->http->http->options.max_body_bytes);
    return refuse(x, 413, message);
}

/* The whole request is here. */
static enum MHD_Result begin_work(sv_exchange *x)
{
    part *p = x->http;
    sv_http *h = p->http;
    x->read = qr_now();
    pthread_mutex_lock(&h->lock);
    p->phase = WAITING;
    h->n_in_work++;
    pthread_mutex_unlock(&h->lock);
    h->options.handler(h->options.arg, x);
    pthread_mutex_lock(&h->lock);
    enum phase phase = p->phase;
    if (phase == WAITING) {                    /* else answered at once: the common case for all but scores */
        MHD_suspend_connection(p->connection); /* sv_answer cannot resume it before the lock is free */
        p->suspended = 1;
    }
    pthread_mutex_unlock(&h->lock);
    return phase == WAITING ? MHD_YES : send_answer(x, phase);
}

/* What of a request's head decides where the request ends. */
typedef struct framing {
    size_t hosts, lengths, encodings;
    int is_odd, is_chunked;
} framing;

static enum MHD_Result read_framing(void *arg, enum MHD_ValueKind kind, const char *name, const char *value)
{
    static const char token[] = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    (void) kind;
    framing *f = arg;
    f->is_odd |= name[strspn(name, token)] != 0 || (value != NULL && strchr(value, '\r') != NULL);
    f->hosts += strcasecmp(name, "Host") == 0;
    f->lengths += strcasecmp(name, "Content-Length") == 0;
    if (strcasecmp(name, "Transfer-Encoding") == 0) {
        f->encodings++;
        f->is_chunked = value != NULL && strcasecmp(value, "chunked") == 0;
    }
    return MHD_YES;
}

/* libmicrohttpd takes heads that a proxy in front may understand otherwise, which lets one client put words into another one's mouth
 * (request smuggling); RFC 9112 asks to refuse these. NULL: the head is clear. */
static const char *check_framing(struct MHD_Connection *connection, const char *version)
{
    framing f = {0};
    int is_old = strcmp(version, "HTTP/1.0") == 0;
    MHD_get_connection_values(connection, MHD_HEADER_KIND, read_framing, &f);
    if (f.is_odd) return "a header is not well-formed";
    if (f.hosts > 1 || (f.hosts == 0 && !is_old)) return "expected one Host header";
    if (f.lengths > 1 || f.encodings > 1 || f.lengths + f.encodings > 1) return "expected one Content-Length or Transfer-Encoding header";
    if (f.encodings > 0 && (is_old || !f.is_chunked)) return "Transfer-Encoding: expected chunked, of HTTP/1.1";
    return NULL;
}

static enum MHD_Result on_request(void *arg, struct MHD_Connection *connection, const char *url, const char *method, const char *version,
                                  const char *data, size_t *size, void **context)
{
    sv_http *h = arg;
    sv_exchange *x = *context;
    if (x == NULL) {
        if ((x = new_exchange(h, connection, method, url)) == NULL) return MHD_NO;
        *context = x;
        const char *length = sv_header(x, "Content-Length"), *flaw = check_framing(connection, version);
        if (flaw != NULL) return refuse(x, 400, flaw);
        /* Digits only: libmicrohttpd has checked the header. */
        unsigned long long n = length != NULL ? strtoull(length, NULL, 10) : 0;
        if (n > h->options.max_body_bytes) {
            x->http->too_large = 1;
            /* It asks before it sends, or it would not be read to its end anyway. */
            if (sv_header(x, "Expect") != NULL || n / 4 > h->options.max_body_bytes) return refuse_large(x);
        }
        return MHD_YES;
    }
    part *p = x->http;
    if (*size > 0) {
        if (p->too_large || *size > h->options.max_body_bytes - x->body.n) {
            if (p->too_large++ == 0) qr_buf_deinit(&x->body);
            /* What is on its way is read, or the client would fail at sending and never see the answer; but not for ever. */
            if (p->too_large > 10000) return MHD_NO;
        } else {
            qr_buf_add(&x->body, data, *size);
            p->is_large = x->body.n > large_bytes;
        }
        *size = 0;
        return MHD_YES;
    }
    pthread_mutex_lock(&h->lock);
    enum phase phase = p->phase;
    pthread_mutex_unlock(&h->lock);
    if (phase == ANSWERED || phase == STREAMING) return send_answer(x, phase);
    if (phase == WAITING) return MHD_YES;
    if (p->too_large) return refuse_large(x);
    return begin_work(x);
}

static void on_completed(void *arg, struct MHD_Connection *connection, void **context, enum MHD_RequestTerminationCode reason)
{
    (void) connection;
    sv_http *h = arg;
    sv_exchange *x = *context;
    if (x == NULL) return;
    *context = NULL;
    part *p = x->http;
    pthread_mutex_lock(&h->lock);
    int in_work = p->phase == STREAMING && !p->has_ended;
    if (in_work) {
        p->is_orphan = 1; /* the handler's until it ends the stream */
        p->connection = NULL;
        p->suspended = 0;
        __atomic_store_n(&x->cancel, 1, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&h->lock);
    if (!in_work) finish(x, p->status == 0 || reason == MHD_REQUEST_TERMINATED_COMPLETED_OK ? p->status : 499);
}

/* Nothing here asks for the query string, and libmicrohttpd 0.9.75 leaves a connection without an answer if one has so many parts that they
 * do not fit its memory: it does not get to see them. */
static void *cut_query_string(void *arg, const char *target, struct MHD_Connection *connection)
{
    (void) arg, (void) connection;
    char *begin = target != NULL ? strchr((char *) (uintptr_t) target, '?') : NULL;
    if (begin != NULL && begin[1] != 0) begin[1] = 0;
    return NULL; /* the request's context: none yet */
}

/* A path with %00 would end there and be another one. */
static size_t unescape(void *arg, struct MHD_Connection *connection, char *text)
{
    (void) arg, (void) connection;
    return strstr(text, "%00") != NULL ? strlen(text) : MHD_http_unescape(text);
}

static void on_mhd_log(void *arg, const char *format, va_list values)
{
    char text[512];
    sv_http *h = arg;
    vsnprintf(text, sizeof text, format, values);
    text[strcspn(text, "\r\n")] = 0;
    log_message(h, QR_LOG_DEBUG, "libmicrohttpd: %s", text); /* its warnings are about what single clients do */
}

/* ---- clients that go away ------------------------------------------------------------------------------------------------------- */

static void watch_client(const sv_http *h, sv_exchange *x, double now)
{
    part *p = x->http;
    char byte;
    if (p->is_orphan || p->phase == ANSWERED) return; /* the connection is no more, or libmicrohttpd sees to it */
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(p->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    if (info == NULL) return;
    ssize_t n = recv(info->connect_fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))) return;
    if (p->closed_at == 0) p->closed_at = now;
    /* An end of file may mean that the client has gone, or that it has said all and listens (`nc -N`): TCP does not tell. */
    int gone = n < 0 || (h->options.disconnect_grace_s >= 0 && now - p->closed_at >= h->options.disconnect_grace_s);
    if (!gone) return;
    __atomic_store_n(&x->cancel, 1, __ATOMIC_RELAXED);
    /* libmicrohttpd 0.9.75 misses now and then that a client has gone in the middle of its request, and would keep the connection until it
     * times out. This wakes it. The exchange is in the list, so the descriptor is still this connection's. */
    if (p->phase == READING) shutdown(info->connect_fd, SHUT_RDWR);
}

/* After large requests glibc would keep what they needed for ever. */
static void give_memory_back(void)
{
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

static struct timespec after(double seconds)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    double whole = seconds < 1e9 ? seconds : 1e9;
    t.tv_sec += (time_t) whole;
    t.tv_nsec += (long) ((whole - (double) (time_t) whole) * 1e9);
    t.tv_sec += t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    return t;
}

static void *watch(void *arg)
{
    sv_http *h = arg;
    pthread_mutex_lock(&h->lock);
    while (!h->closing) {
        struct timespec until = after(watch_interval_s);
        h->watcher_sleeps = h->exchanges == NULL && !h->has_freed_much;
        if (h->watcher_sleeps) pthread_cond_wait(&h->changed, &h->lock);
        else pthread_cond_timedwait(&h->changed, &h->lock, &until);
        double now = qr_now();
        h->watcher_sleeps = 0;
        for (sv_exchange *x = h->exchanges; x != NULL; x = x->http->next) watch_client(h, x, now);
        if (h->has_freed_much && h->n_in_work == 0) {
            h->has_freed_much = 0;
            pthread_mutex_unlock(&h->lock);
            give_memory_back();
            pthread_mutex_lock(&h->lock);
        }
    }
    pthread_mutex_unlock(&h->lock);
    return NULL;
}

/* ---- open and close ------------------------------------------------------------------------------------------------------------- */

static qr_status listen_unix(sv_http *h, const char *path, qr_error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct stat found;
    if (strlen(path) >= sizeof address.sun_path)
        return qr_fail(err, QR_E_ARG, "unix socket %s: expected a path of at most %zu bytes", path, sizeof address.sun_path - 1);
    strcpy(address.sun_path, path);
    if (lstat(path, &found) == 0 && !S_ISSOCK(found.st_mode)) return qr_fail(err, QR_E_ARG, "%s: exists and is no socket", path);
    h->listener = qr_socket(AF_UNIX, SOCK_STREAM, 0);
    if (h->listener < 0) return qr_fail(err, QR_E_IO, "cannot make a socket: %s", strerror(errno));
    /* A socket that a crashed server left behind may be taken over, one that is in use must not. */
    if (connect(h->listener, (struct sockaddr *) &address, sizeof address) == 0)
        return qr_fail(err, QR_E_ARG, "%s: another process listens there", path);
    unlink(path);
    if (bind(h->listener, (struct sockaddr *) &address, sizeof address) != 0 || listen(h->listener, SOMAXCONN) != 0)
        return qr_fail(err, QR_E_IO, "cannot listen on %s: %s", path, strerror(errno));
    h->unix_socket = qr_strndup(path, strlen(path));
    return QR_OK;
}

static qr_status listen_tcp(sv_http *h, const char *host, unsigned port, qr_error *err)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *found;
    char service[8];
    int all = host == NULL || host[0] == 0 || strcmp(host, "*") == 0, reason = 0;
    snprintf(service, sizeof service, "%u", port);
    int code = getaddrinfo(all ? NULL : host, service, &hints, &found);
    if (code != 0) return qr_fail(err, QR_E_ARG, "cannot listen on \"%s\": %s", host, gai_strerror(code));
    for (struct addrinfo *a = found; a != NULL && h->listener < 0; a = a->ai_next) {
        int fd = qr_socket(a->ai_family, a->ai_socktype, a->ai_protocol), yes = 1;
        if (fd < 0) {
            reason = errno;
            continue;
        }
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
        if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, SOMAXCONN) == 0) {
            h->listener = fd;
        } else {
            reason = errno;
            close(fd);
        }
    }
    freeaddrinfo(found);
    if (h->listener < 0)
        return qr_fail(err, QR_E_IO, "cannot listen on %s port %u: %s", all ? "any address" : host, port, strerror(reason));
    struct sockaddr_storage own;
    socklen_t size = sizeof own;
    if (getsockname(h->listener, (struct sockaddr *) &own, &size) == 0)
        h->port = ntohs(own.ss_family == AF_INET6 ? ((struct sockaddr_in6 *) &own)->sin6_port : ((struct sockaddr_in *) &own)->sin_port);
    return QR_OK;
}

static qr_status start_daemon(sv_http *h, qr_error *err)
{
    const sv_http_options *o = &h->options;
    unsigned flags = MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ITC | MHD_USE_ERROR_LOG | MHD_USE_TURBO;
#ifdef __linux__
    flags |= MHD_USE_EPOLL_INTERNAL_THREAD;
#else
    flags |= MHD_USE_AUTO_INTERNAL_THREAD; /* poll; libmicrohttpd knows no kqueue */
#endif
    struct MHD_OptionItem items[8];
    size_t n = 0;
    items[n++] = (struct MHD_OptionItem){MHD_OPTION_LISTEN_SOCKET, h->listener, NULL};
    items[n++] = (struct MHD_OptionItem){MHD_OPTION_THREAD_POOL_SIZE, (intptr_t) o->threads, NULL};
    items[n++] = (struct MHD_OptionItem){MHD_OPTION_CONNECTION_LIMIT, (intptr_t) o->max_connections, NULL};
    items[n++] = (struct MHD_OptionItem){MHD_OPTION_CONNECTION_TIMEOUT, (intptr_t) o->idle_timeout_s, NULL};
    if (o->tls_cert != NULL) {
        flags |= MHD_USE_TLS;
        items[n++] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_CERT, 0, h->tls_cert};
        items[n++] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_KEY, 0, h->tls_key};
    }
    items[n] = (struct MHD_OptionItem){MHD_OPTION_END, 0, NULL};
    h->daemon =
        MHD_start_daemon(flags, 0, NULL, NULL, on_request, h, MHD_OPTION_EXTERNAL_LOGGER, on_mhd_log, h, MHD_OPTION_NOTIFY_CONNECTION,
                         on_connection, h, MHD_OPTION_NOTIFY_COMPLETED, on_completed, h, MHD_OPTION_URI_LOG_CALLBACK, cut_query_string,
                         NULL, MHD_OPTION_UNESCAPE_CALLBACK, unescape, NULL, MHD_OPTION_ARRAY, items, MHD_OPTION_END);
    if (h->daemon == NULL)
        return qr_fail(err, QR_E_IO, "libmicrohttpd does not start%s",
                       o->tls_cert != NULL ? ": are certificate and key PEM, and a pair?" : "");
    return QR_OK;
}

static qr_status read_pem(const char *path, char **out, qr_error *err)
{
    size_t len;
    return qr_file_read(path, 1 << 20, out, &len, err);
}

qr_status sv_http_open(sv_http **out, const sv_http_options *options, qr_error *err)
{
    *out = NULL;
    sv_http *h = qr_calloc(1, sizeof *h);
    if (h == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for the HTTP server");
    h->options = *options;
    sv_http_options *o = &h->options;
    if (o->threads == 0) o->threads = 2;
    if (o->max_connections == 0) o->max_connections = 4096;
    if (o->idle_timeout_s == 0) o->idle_timeout_s = 75;
    if (o->max_body_bytes == 0) o->max_body_bytes = (size_t) 64 << 20;
    if (o->disconnect_grace_s == 0) o->disconnect_grace_s = 1;
    h->listener = -1;
    pthread_mutex_init(&h->lock, NULL);
    pthread_cond_init(&h->changed, NULL);
    qr_status status = QR_OK;
    if (o->tls_cert != NULL && (status = read_pem(o->tls_cert, &h->tls_cert, err)) == QR_OK)
        status = read_pem(o->tls_key, &h->tls_key, err);
    if (status == QR_OK) status = o->unix_socket != NULL ? listen_unix(h, o->unix_socket, err) : listen_tcp(h, o->host, o->port, err);
    if (status == QR_OK) status = start_daemon(h, err);
    if (status == QR_OK && pthread_create(&h->watcher, NULL, watch, h) == 0) h->watching = 1;
    else if (status == QR_OK) status = qr_fail(err, QR_E_MEMORY, "cannot start a thread");
    if (status != QR_OK) {
        sv_http_close(h);
        return status;
    }
    *out = h;
    return QR_OK;
}

/* Connections that the system has made but nobody has accepted would be reset with the listener, and their requests lost. */
static void accept_rest(sv_http *h, int listener)
{
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    int fd;
    fcntl(listener, F_SETFL, O_NONBLOCK);
    while ((fd = accept(listener, (struct sockaddr *) &address, &size)) >= 0) {
        MHD_add_connection(h->daemon, fd, (struct sockaddr *) &address, size);
        size = sizeof address;
    }
}

/* With the lock held: until no request is left, or until then. */
static int wait_for_answers(sv_http *h, const struct timespec *until)
{
    while (h->n_exchanges > 0)
        if (pthread_cond_timedwait(&h->changed, &h->lock, until) == ETIMEDOUT) return 0;
    return 1;
}

size_t sv_http_drain(sv_http *h, double seconds)
{
    struct timespec until = after(seconds), heard = after(seconds < silent_s ? seconds : silent_s);
    __atomic_store_n(&h->quiesced, 1, __ATOMIC_RELAXED);
    MHD_socket listener = MHD_quiesce_daemon(h->daemon);
    if (listener != MHD_INVALID_SOCKET) {
        accept_rest(h, listener);
        close(listener);
    }
    h->listener = -1;
    if (h->unix_socket != NULL) unlink(h->unix_socket);
    pthread_mutex_lock(&h->lock);
    /* A request may have been sent and not be read yet: there are none once nothing has begun for a while. Who has just connected gets
     * longer, but not for ever: browsers connect in advance. */
    for (size_t begun = h->n_begun + 1; begun != h->n_begun && wait_for_answers(h, &until);) {
        struct timespec quiet = after(settle_s);
        begun = h->n_begun;
        while (begun == h->n_begun && pthread_cond_timedwait(&h->changed, &h->lock, &quiet) != ETIMEDOUT) continue;
        while (h->n_silent > 0 && pthread_cond_timedwait(&h->changed, &h->lock, &heard) != ETIMEDOUT) continue;
    }
    size_t left = h->n_exchanges;
    pthread_mutex_unlock(&h->lock);
    return left;
}

void sv_http_close(sv_http *h)
{
    if (h == NULL) return;
    pthread_mutex_lock(&h->lock);
    h->closing = 1;
    for (sv_exchange *x = h->exchanges; x != NULL; x = x->http->next) __atomic_store_n(&x->cancel, 1, __ATOMIC_RELAXED);
    pthread_cond_broadcast(&h->changed);
    /* libmicrohttpd must not be stopped while a connection is suspended. */
    while (h->n_in_work > 0) pthread_cond_wait(&h->changed, &h->lock);
    pthread_mutex_unlock(&h->lock);
    if (h->watching) pthread_join(h->watcher, NULL);
    if (h->daemon != NULL) MHD_stop_daemon(h->daemon);
    else if (h->listener >= 0) close(h->listener);
    if (h->unix_socket != NULL) unlink(h->unix_socket);
    pthread_cond_destroy(&h->changed);
    pthread_mutex_destroy(&h->lock);
    qr_free(h->unix_socket);
    qr_free(h->tls_cert);
    qr_free(h->tls_key);
    qr_free(h);
}

unsigned sv_http_port(const sv_http *h) { return h->port; }
