/* See spawn.h. */
#define _GNU_SOURCE
#include "cli/spawn.h"

#include "base/mem.h"
#include "base/system.h"
#include "engine/scheduler.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* Every build of vLLM has the module; the program `vllm` is missing in some. */
#define DEFAULT_COMMAND "python3 -m vllm.entrypoints.openai.api_server"

enum { MAX_ARGUMENTS = 64, DEFAULT_MAX_LENGTH = 8192, MAX_VAIN_STARTS = 3, LINE_BYTES = 1024, STOP_S = 20 };
static const double longest_pause_s = 60, long_life_s = 60, poll_s = 0.1;

struct cli_spawn {
    char *text; /* what `arguments` points into, but for constants and args' own */
    char *arguments[MAX_ARGUMENTS + 1];
    size_t n_arguments;
    char url[48], port[8], max_model_len[24], tensor_parallel[24], gpu_memory[32];
    qr_log_fn log;
    void *log_arg;
    pthread_t thread;
    pid_t guard;
    int to_guard; /* the group to end should this process die, 0 for none */
    atomic_int stop, failed;
    int is_started;
    int is_ready; /* it has said so since it was started */
};

static void say(const cli_spawn *s, qr_log_level level, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void say(const cli_spawn *s, qr_log_level level, const char *format, ...)
{
    char line[LINE_BYTES + 64];
    va_list values;
    va_start(values, format);
    vsnprintf(line, sizeof line, format, values);
    va_end(values);
    s->log(s->log_arg, level, line);
}

/* ---- the process ----------------------------------------------------------------------------------------------------------------- */

/* Leader of a group of its own, since vLLM's engine and workers are children that would outlive it. Between fork and exec only what may be
 * called there. */
static pid_t start(const cli_spawn *s, int *output)
{
    int ends[2];
    if (pipe(ends) != 0) return -1;
    pid_t pid = fork();
    if (pid == 0) {
        setpgid(0, 0);
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        signal(SIGPIPE, SIG_DFL);
        int null = open("/dev/null", O_RDONLY);
        if (null >= 0) dup2(null, STDIN_FILENO);
        dup2(ends[1], STDOUT_FILENO);
        dup2(ends[1], STDERR_FILENO);
        for (int fd = STDERR_FILENO + 1; fd < 256; fd++) close(fd);
        execvp(s->arguments[0], s->arguments);
        static const char message[] = "cannot be started: no such program\n";
        if (write(STDOUT_FILENO, message, sizeof message - 1) < 0) _exit(126);
        _exit(127);
    }
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return -1;
    }
    setpgid(pid, pid); /* also here: a signal may be sent before the child has got so far */
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    *output = ends[0];
    return pid;
}

/* ---- the guard: a process that ends vLLM should this one die without a chance to, as by kill -9 -------------------------------------- */

/* The end of its input is our end. All groups that it was told of, but the last, have been ended here. */
static void watch(int input)
{
    pid_t group = 0;
    for (pid_t news; read(input, &news, sizeof news) == (ssize_t) sizeof news;) group = news;
    if (group > 0) kill(-group, SIGTERM);
    for (int i = 0; group > 0 && i < STOP_S * 50 && kill(-group, 0) == 0; i++) usleep(20000);
    if (group > 0) kill(-group, SIGKILL);
    _exit(0);
}

/* Before there are threads, sockets and handlers that it would share. */
static int start_guard(cli_spawn *s)
{
    int ends[2];
    if (pipe(ends) != 0) return 0;
    s->guard = fork();
    if (s->guard == 0) {
        setpgid(0, 0); /* Ctrl-C in a terminal is not for it */
        for (int fd = 0; fd < 256; fd++)
            if (fd != ends[0]) close(fd);
        watch(ends[0]);
    }
    close(ends[0]);
    fcntl(ends[1], F_SETFD, FD_CLOEXEC);
    s->to_guard = ends[1];
    return s->guard > 0;
}

static void tell_guard(const cli_spawn *s, pid_t group)
{
    if (write(s->to_guard, &group, sizeof group) < 0)
        say(s, QR_LOG_WARN, "vLLM would outlive this process if it were killed: its guard is gone");
}

static void stop_guard(cli_spawn *s)
{
    if (s->guard <= 0) return;
    close(s->to_guard);
    waitpid(s->guard, NULL, 0);
}

/* ---- following it -------------------------------------------------------------------------------------------------------------------- */

/* Its start-up is told to everyone, later only what went wrong. */
static void take_line(cli_spawn *s, const char *line)
{
    int is_bad = strstr(line, "ERROR") != NULL || strstr(line, "CRITICAL") != NULL;
    say(s, is_bad ? QR_LOG_WARN : s->is_ready ? QR_LOG_DEBUG : QR_LOG_INFO, "vLLM says: %s", line);
    if (strstr(line, "Application startup complete") != NULL) s->is_ready = 1;
}

static int has_ended(pid_t pid)
{
    siginfo_t info = {0};
    return waitid(P_PID, (id_t) pid, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == pid;
}

/* Reads lines until it has ended or `stop` is set. The end of its output says nothing: children of it may hold that open. */
static void follow(cli_spawn *s, pid_t pid, int output)
{
    char line[LINE_BYTES];
    size_t used = 0;
    while (!s->stop) {
        struct pollfd p = {output, POLLIN, 0};
        if (poll(&p, 1, (int) (poll_s * 1000)) <= 0) {
            if (has_ended(pid)) return;
            continue;
        }
        ssize_t n = read(output, line + used, sizeof line - 1 - used);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return;
        used += (size_t) n;
        line[used] = 0;
        char *begin = line, *end;
        while ((end = strchr(begin, '\n')) != NULL) {
            *end = 0;
            if (end > begin) take_line(s, begin);
            begin = end + 1;
        }
        used = strlen(begin);
        memmove(line, begin, used + 1);
        if (used == sizeof line - 1) { /* a longer line comes in pieces */
            take_line(s, line);
            used = 0;
        }
    }
}

/* Ends the group; returns how its leader ended. */
static int end(pid_t pid)
{
    int status = 0;
    double limit = qr_now() + STOP_S;
    kill(-pid, SIGTERM);
    while (!has_ended(pid) && qr_now() < limit) usleep(20000);
    kill(-pid, SIGKILL); /* what the leader has left behind, or all of them */
    waitpid(pid, &status, 0);
    return status;
}

static void *run(void *arg)
{
    cli_spawn *s = arg;
    double pause = 1;
    for (int n_vain = 0; !s->stop;) {
        int output = -1;
        double begun = qr_now();
        s->is_ready = 0;
        pid_t pid = start(s, &output);
        if (pid > 0) {
            tell_guard(s, pid);
            say(s, QR_LOG_INFO, "vLLM is started as process %ld, on %s", (long) pid, s->url);
            follow(s, pid, output);
            int status = end(pid);
            tell_guard(s, 0);
            close(output);
            if (s->stop) break;
            if (WIFSIGNALED(status)) say(s, QR_LOG_WARN, "vLLM was ended by signal %d", WTERMSIG(status));
            else say(s, QR_LOG_WARN, "vLLM has ended with code %d", WEXITSTATUS(status));
        }
        n_vain = s->is_ready ? 0 : n_vain + 1;
        if (n_vain == MAX_VAIN_STARTS) {
            say(s, QR_LOG_ERROR, "vLLM has ended %d times without being ready: it is not started again", n_vain);
            s->failed = 1;
            break;
        }
        pause = qr_now() - begun > long_life_s ? 1 : pause * 2 < longest_pause_s ? pause * 2 : longest_pause_s;
        for (double until = qr_now() + pause; !s->stop && qr_now() < until;) usleep((useconds_t) (poll_s * 1e6));
    }
    return NULL;
}

/* ---- its command line -------------------------------------------------------------------------------------------------------------- */

static void add(cli_spawn *s, const char *flag, const char *value)
{
    if (value == NULL || s->n_arguments + 2 > MAX_ARGUMENTS) return;
    s->arguments[s->n_arguments++] = (char *) (uintptr_t) flag;
    if (value[0] != 0) s->arguments[s->n_arguments++] = (char *) (uintptr_t) value;
}

/* A port that is free now; 0: none. */
static unsigned find_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0) return 0;
    int ok = bind(fd, (struct sockaddr *) &address, len) == 0 && getsockname(fd, (struct sockaddr *) &address, &len) == 0;
    close(fd);
    return ok ? ntohs(address.sin_port) : 0;
}

static void add_all(cli_spawn *s, const cli_args *args)
{
    static const char *const dtypes[] = {
        [QR_DTYPE_AUTO] = "auto", [QR_DTYPE_F32] = "float32", [QR_DTYPE_BF16] = "bfloat16", [QR_DTYPE_F16] = "float16"};
    size_t longest = args->max_length > 0 ? args->max_length : DEFAULT_MAX_LENGTH;
    unsigned port = find_port();
    char *rest = NULL;
    for (char *word = strtok_r(s->text, " ", &rest); word != NULL && s->n_arguments < MAX_ARGUMENTS / 2; word = strtok_r(NULL, " ", &rest))
        s->arguments[s->n_arguments++] = word;
    snprintf(s->port, sizeof s->port, "%u", port);
    snprintf(s->url, sizeof s->url, "http://127.0.0.1:%u", port);
    /* One more for the token that it generates. */
    snprintf(s->max_model_len, sizeof s->max_model_len, "%zu", args->max_model_len > 0 ? args->max_model_len : longest + 1);
    add(s, "--host", "127.0.0.1");
    add(s, "--port", s->port);
    add(s, "--served-model-name", "reranker");
    add(s, "--max-model-len", s->max_model_len);
    add(s, "--dtype", dtypes[args->dtype]);
    add(s, cli_is_on(args->prefix_caching, 1) ? "--enable-prefix-caching" : "--no-enable-prefix-caching", "");
    if (args->tensor_parallel > 0) {
        snprintf(s->tensor_parallel, sizeof s->tensor_parallel, "%zu", args->tensor_parallel);
        add(s, "--tensor-parallel-size", s->tensor_parallel);
    }
    if (args->gpu_memory > 0) {
        snprintf(s->gpu_memory, sizeof s->gpu_memory, "%g", args->gpu_memory);
        add(s, "--gpu-memory-utilization", s->gpu_memory);
    }
}

int cli_spawn_open(cli_spawn **out, const cli_args *args, const char *dir, qr_log_fn log, void *log_arg)
{
    const char *command = args->vllm_command != NULL ? args->vllm_command : DEFAULT_COMMAND;
    size_t n = strlen(command);
    *out = NULL;
    if (args->dtype > QR_DTYPE_F16 || command[strspn(command, " ")] == 0) {
        cli_error(args, args->dtype > QR_DTYPE_F16 ? "--spawn: vLLM computes in auto, f32, bf16 or f16 here"
                                                   : "--vllm-command: expected a command, found nothing");
        return CLI_USAGE;
    }
    cli_spawn *s = qr_calloc(1, sizeof *s);
    if (s == NULL || (s->text = qr_calloc(n + strlen(dir) + 2, 1)) == NULL) {
        qr_free(s);
        cli_error(args, "out of memory");
        return CLI_FAILURE;
    }
    if (!start_guard(s)) {
        qr_free(s->text);
        qr_free(s);
        cli_error(args, "--spawn: cannot start a process: %s", strerror(errno));
        return CLI_FAILURE;
    }
    memcpy(s->text, command, n);
    char *model = strcpy(s->text + n + 1, dir);
    s->log = log;
    s->log_arg = log_arg;
    add_all(s, args);
    add(s, "--model", model);
    *out = s;
    return CLI_OK;
}

int cli_spawn_start(cli_spawn *s, const cli_args *args)
{
    if (pthread_create(&s->thread, NULL, run, s) != 0) {
        cli_error(args, "cannot start a thread");
        return CLI_FAILURE;
    }
    s->is_started = 1;
    return CLI_OK;
}

void cli_spawn_close(cli_spawn *s)
{
    if (s == NULL) return;
    s->stop = 1;
    if (s->is_started) pthread_join(s->thread, NULL);
    stop_guard(s);
    qr_free(s->text);
    qr_free(s);
}

const char *cli_spawn_url(const cli_spawn *s) { return s->url; }
int cli_spawn_has_failed(const cli_spawn *s) { return s != NULL && s->failed; }
