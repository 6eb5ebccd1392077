/* The backends that this version knows, and the choice among them. */
#include "engine/backend.h"

#include <stdio.h>
#include <string.h>

extern const qr_backend_ops qr_backend_cpu;

const char *const qr_backend_names[] = {"cpu", NULL};
static const qr_backend_ops *const tables[] = {&qr_backend_cpu};

static const qr_backend_ops *find(const char *name)
{
    for (size_t i = 0; qr_backend_names[i] != NULL; i++)
        if (strcmp(qr_backend_names[i], name) == 0) return tables[i];
    return NULL;
}

int qr_backend_probe(const char *name, const qr_backend_place *place, char *why, size_t size)
{
    static const qr_backend_place anywhere;
    const qr_backend_ops *ops = find(name);
    if (size > 0) why[0] = 0;
    return ops != NULL ? ops->probe(place != NULL ? place : &anywhere, why, size) : QR_GRADE_NONE;
}

static qr_status fail_unknown(const char *name, qr_error *err)
{
    char known[128] = "";
    for (size_t i = 0; qr_backend_names[i] != NULL; i++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i > 0 ? ", " : "", qr_backend_names[i]);
    }
    return qr_fail(err, QR_E_NOT_FOUND, "no backend \"%s\"; this build has: %s", name, known);
}

/* Of several names, the first that is usable. All are tried before one that this build does not know is an error: a profile may be made for
 * several machines. */
static qr_status choose_first(const qr_backend_ops **out, const char *names, const qr_backend_place *place, qr_error *err)
{
    char name[64], tried[400] = "";
    for (const char *p = names; *p != 0;) {
        size_t n = strcspn(p, ",");
        qr_error error = {0};
        if (n > 0 && n < sizeof name) {
            snprintf(name, sizeof name, "%.*s", (int) n, p);
            if (qr_backend_choose(out, name, place, &error) == QR_OK) return QR_OK;
            size_t used = strlen(tried);
            snprintf(tried + used, sizeof tried - used, "%s%.150s", used > 0 ? "; " : "", error.msg);
        }
        p += n + (p[n] == ',');
    }
    return qr_fail(err, QR_E_UNSUPPORTED, "no backend of \"%s\" can be used: %s", names, tried);
}

qr_status qr_backend_choose(const qr_backend_ops **out, const char *name, const qr_backend_place *place, qr_error *err)
{
    char why[256] = "";
    *out = NULL;
    if (name != NULL && strchr(name, ',') != NULL) return choose_first(out, name, place, err);
    if (name != NULL && strcmp(name, "auto") != 0) {
        if ((*out = find(name)) == NULL) return fail_unknown(name, err);
        if (qr_backend_probe(name, place, why, sizeof why) > QR_GRADE_NONE) return QR_OK;
        *out = NULL;
        return qr_fail(err, QR_E_UNSUPPORTED, "backend \"%s\" cannot be used here: %s", name, why);
    }
    int best = QR_GRADE_NONE;
    for (size_t i = 0; qr_backend_names[i] != NULL; i++) {
        int grade = qr_backend_probe(qr_backend_names[i], place, why, sizeof why);
        if (grade > best) {
            best = grade;
            *out = tables[i];
        }
    }
    return *out != NULL ? QR_OK : qr_fail(err, QR_E_UNSUPPORTED, "no backend can be used here; the last one says: %s", why);
}
