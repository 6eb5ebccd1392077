/* The backends that this version knows, what they are worth here, and the choice among them. */
#include "engine/plugin.h"
#include "engine/probe.h"
#include "engine/self_check.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

extern const qr_backend_ops qr_backend_cpu, qr_backend_pytorch, qr_backend_vllm;

const char *const qr_backend_names[] = {"mlx", "vllm", "pytorch", "cpu", NULL};
static const qr_backend_ops *const tables[] = {NULL, &qr_backend_vllm, &qr_backend_pytorch, &qr_backend_cpu}; /* NULL: a plug-in */
static const qr_backend_place anywhere;

enum { NOT_TRIED = -1, MAX_FINDINGS = 16 };

static int index_of(const char *name)
{
    for (int i = 0; qr_backend_names[i] != NULL; i++)
        if (strcmp(qr_backend_names[i], name) == 0) return i;
    return -1;
}

/* Whether its probe runs code that is not ours. */
static int is_foreign(int i) { return tables[i] == NULL || tables[i]->promise != NULL; }

static int promise(int i, const qr_backend_place *place)
{
    if (tables[i] != NULL) return tables[i]->promise(place);
#if defined(__APPLE__) && defined(__aarch64__)
    return QR_GRADE_MLX_GPU;
#else
    return access("/dev/nvidiactl", F_OK) == 0 ? QR_GRADE_MLX_CUDA : QR_GRADE_MLX_CPU;
#endif
}

static qr_status load(const qr_backend_ops **ops, int i, const qr_backend_place *place, qr_error *err)
{
    *ops = tables[i];
    return *ops != NULL ? QR_OK : qr_plugin_load(ops, qr_backend_names[i], place->plugin_dir, err);
}

int qr_backend_probe_here(const char *name, const qr_backend_place *place, char *why, size_t size)
{
    const qr_backend_ops *ops;
    qr_error err = {0};
    double worst;
    int i = index_of(name);
    if (size > 0) why[0] = 0;
    if (i < 0) return QR_GRADE_NONE;
    qr_status status = load(&ops, i, place, &err);
    int grade = status == QR_OK ? ops->probe(place, why, size) : QR_GRADE_NONE;
    if (grade > QR_GRADE_NONE && is_foreign(i)) status = qr_self_check(ops, place, QR_DTYPE_AUTO, QR_DEFAULT, &worst, &err);
    if (status == QR_OK) return grade;
    snprintf(why, size, "%.*s", (int) (size - 1), err.msg);
    return QR_GRADE_NONE;
}

/* ---- what was found out in a child process, once for each place ----------------------------------------------------------------- */

typedef struct finding {
    int backend, grade;
    char place[8300], why[QR_REASON_SIZE]; /* two paths and a device */
} finding;

static struct {
    pthread_mutex_t lock;
    finding findings[MAX_FINDINGS]; /* the oldest gives way */
    size_t n;
} known = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void name_place(char *text, size_t size, const qr_backend_place *p)
{
    snprintf(text, size, "%s\n%s\n%s", p->device != NULL ? p->device : "", p->torch_dir != NULL ? p->torch_dir : "",
             p->plugin_dir != NULL ? p->plugin_dir : "");
}

static const finding *find_known(int backend, const char *place)
{
    for (size_t i = 0; i < MAX_FINDINGS; i++) {
        const finding *f = &known.findings[i];
        if (f->place[0] != 0 && f->backend == backend && strcmp(f->place, place) == 0) return f;
    }
    return NULL;
}

static int probe_foreign(int i, const qr_backend_place *place, int may_try, char *why, size_t size)
{
    char path[4200];
    finding new = {.backend = i, .grade = NOT_TRIED};
    qr_error err = {0};
    if (tables[i] == NULL && qr_plugin_find(path, sizeof path, qr_backend_names[i], place->plugin_dir, &err) != QR_OK) {
        snprintf(why, size, "%.*s", (int) (size - 1), err.msg);
        return QR_GRADE_NONE;
    }
    name_place(new.place, sizeof new.place, place);
    pthread_mutex_lock(&known.lock);
    const finding *f = find_known(i, new.place);
    if (f == NULL && may_try) {
        new.grade = qr_probe_in_child(qr_backend_names[i], place, NULL, new.why, sizeof new.why);
        if (new.grade == QR_PROBE_DIED) new.grade = QR_GRADE_NONE;
        if (new.grade == QR_PROBE_NO_PROGRAM) new.grade = qr_backend_probe_here(qr_backend_names[i], place, new.why, sizeof new.why);
        known.findings[known.n % MAX_FINDINGS] = new;
        f = &known.findings[known.n++ % MAX_FINDINGS];
    }
    int grade = f != NULL ? f->grade : NOT_TRIED;
    snprintf(why, size, "%s", f != NULL ? f->why : "it could not have come before what was chosen");
    pthread_mutex_unlock(&known.lock);
    return grade;
}

static int probe(const char *name, const qr_backend_place *place, int may_try, char *why, size_t size)
{
    int i = index_of(name);
    if (size > 0) why[0] = 0;
    if (i < 0) return QR_GRADE_NONE;
    if (place == NULL) place = &anywhere;
    return is_foreign(i) ? probe_foreign(i, place, may_try, why, size) : tables[i]->probe(place, why, size);
}

int qr_backend_probe(const char *name, const qr_backend_place *place, char *why, size_t size) { return probe(name, place, 1, why, size); }

int qr_backend_probed(const char *name, const qr_backend_place *place, char *why, size_t size) { return probe(name, place, 0, why, size); }

/* ---- checks --------------------------------------------------------------------------------------------------------------------- */

qr_check qr_backend_check_here(const char *name, const qr_backend_place *place, qr_dtype dtype, qr_switch flash_attention, char *why,
                               size_t size)
{
    const qr_backend_ops *ops;
    qr_error err = {0};
    double worst = 0;
    int i = index_of(name);
    qr_status status = i < 0 ? qr_fail(&err, QR_E_NOT_FOUND, "no backend \"%s\"", name) : load(&ops, i, place, &err);
    if (status == QR_OK && ops->probe(place, why, size) == QR_GRADE_NONE) return QR_CHECK_UNSUPPORTED;
    if (status == QR_OK) status = qr_self_check(ops, place, dtype, flash_attention, &worst, &err);
    if (status == QR_OK) {
        snprintf(why, size, "margins off by at most %.2g", worst);
        return QR_CHECK_OK;
    }
    snprintf(why, size, "%.*s", (int) (size - 1), err.msg);
    return status == QR_E_UNSUPPORTED || status == QR_E_NOT_FOUND ? QR_CHECK_UNSUPPORTED : QR_CHECK_FAILED;
}

qr_check qr_backend_check(const char *name, const qr_backend_place *place, qr_dtype dtype, qr_switch flash_attention, char *why,
                          size_t size)
{
    int i = index_of(name);
    qr_probe_check check = {dtype, flash_attention};
    int value = i >= 0 && is_foreign(i) ? qr_probe_in_child(name, place, &check, why, size) : QR_PROBE_NO_PROGRAM;
    if (value == QR_PROBE_NO_PROGRAM) return qr_backend_check_here(name, place, dtype, flash_attention, why, size);
    return value == QR_PROBE_DIED ? QR_CHECK_FAILED : (qr_check) value;
}

/* ---- the choice ------------------------------------------------------------------------------------------------------------------ */

static qr_status fail_unknown(const char *name, qr_error *err)
{
    char all[128] = "";
    for (size_t i = 0; qr_backend_names[i] != NULL; i++) {
        size_t used = strlen(all);
        snprintf(all + used, sizeof all - used, "%s%s", i > 0 ? ", " : "", qr_backend_names[i]);
    }
    return qr_fail(err, QR_E_NOT_FOUND, "no backend \"%s\"; this build has: %s", name, all);
}

/* Of several names, the first that is usable. All are tried before one that this build does not know is an error: a profile may be made for
 * several machines. */
static qr_status choose_first(const qr_backend_ops **out, const char *names, const qr_backend_place *place, qr_error *err)
{
    char name[64], tried[480] = "";
    for (const char *p = names; *p != 0;) {
        size_t n = strcspn(p, ",");
        qr_error error = {0};
        if (n > 0 && n < sizeof name) {
            snprintf(name, sizeof name, "%.*s", (int) n, p);
            if (qr_backend_choose(out, name, place, &error) == QR_OK) return QR_OK;
            size_t used = strlen(tried);
            snprintf(tried + used, sizeof tried - used, "%s%.220s", used > 0 ? "; " : "", error.msg);
        }
        p += n + (p[n] == ',');
    }
    return qr_fail(err, QR_E_UNSUPPORTED, "no backend of \"%s\" can be used: %s", names, tried);
}

/* Whoever names a GPU does not want to be served by the CPU without a word. */
static int is_excluded(int i, const qr_backend_place *place)
{
    const char *device = place->device;
    return tables[i] == &qr_backend_cpu && device != NULL && strcmp(device, "auto") != 0 && strncmp(device, "cpu", 3) != 0;
}

/* Most promising first, so that nothing is loaded that could not be the choice. */
static qr_status choose_best(const qr_backend_ops **out, const qr_backend_place *place, qr_error *err)
{
    enum { N = sizeof tables / sizeof tables[0] };
    int hope[N], best = QR_GRADE_NONE, chosen = -1;
    char why[QR_REASON_SIZE], tried[480] = "";
    for (int i = 0; i < N; i++)
        hope[i] = is_excluded(i, place) ? NOT_TRIED : is_foreign(i) ? promise(i, place) : tables[i]->probe(place, why, sizeof why);
    for (;;) {
        int next = 0;
        for (int i = 1; i < N; i++)
            if (hope[i] > hope[next]) next = i;
        if (hope[next] <= best) break;
        hope[next] = NOT_TRIED;
        int grade = qr_backend_probe(qr_backend_names[next], place, why, sizeof why);
        if (grade > best) {
            best = grade;
            chosen = next;
        }
        size_t used = strlen(tried);
        snprintf(tried + used, sizeof tried - used, "%s%s: %.220s", used > 0 ? "; " : "", qr_backend_names[next], why);
    }
    if (chosen < 0)
        return qr_fail(err, QR_E_UNSUPPORTED, "no backend can be used%s%s: %s", place->device != NULL ? " on the device " : "",
                       place->device != NULL ? place->device : " here", tried);
    return load(out, chosen, place, err);
}

qr_status qr_backend_choose(const qr_backend_ops **out, const char *name, const qr_backend_place *place, qr_error *err)
{
    char why[QR_REASON_SIZE] = "";
    *out = NULL;
    if (place == NULL) place = &anywhere;
    if (name == NULL || strcmp(name, "auto") == 0) return choose_best(out, place, err);
    if (strchr(name, ',') != NULL) return choose_first(out, name, place, err);
    int i = index_of(name);
    if (i < 0) return fail_unknown(name, err);
    if (qr_backend_probe(name, place, why, sizeof why) > QR_GRADE_NONE) return load(out, i, place, err);
    return qr_fail(err, QR_E_UNSUPPORTED, "backend \"%s\" cannot be used here: %s", name, why);
}
