/* The backends that this build has, and the choice among them. */
#include "engine/backend.h"

#include <stdio.h>
#include <string.h>

extern const qr_backend_ops qr_backend_cpu;

const qr_backend_ops *const qr_backends[] = {&qr_backend_cpu, NULL};

static qr_status fail_unknown(const char *name, qr_error *err)
{
    char known[128] = "";
    for (size_t i = 0; qr_backends[i] != NULL; i++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i > 0 ? ", " : "", qr_backends[i]->name);
    }
    return qr_fail(err, QR_E_NOT_FOUND, "no backend \"%s\"; this build has: %s", name, known);
}

/* Of several names, the first that is usable. All are tried before one that this build does not know is an error: a profile may be made for
 * several machines. */
static qr_status choose_first(const qr_backend_ops **out, const char *names, qr_error *err)
{
    char name[64], tried[400] = "";
    for (const char *p = names; *p != 0;) {
        size_t n = strcspn(p, ",");
        qr_error error = {0};
        if (n > 0 && n < sizeof name) {
            snprintf(name, sizeof name, "%.*s", (int) n, p);
            if (qr_backend_choose(out, name, &error) == QR_OK) return QR_OK;
            size_t used = strlen(tried);
            snprintf(tried + used, sizeof tried - used, "%s%.150s", used > 0 ? "; " : "", error.msg);
        }
        p += n + (p[n] == ',');
    }
    return qr_fail(err, QR_E_UNSUPPORTED, "no backend of \"%s\" can be used: %s", names, tried);
}

qr_status qr_backend_choose(const qr_backend_ops **out, const char *name, qr_error *err)
{
    char why[256] = "";
    *out = NULL;
    if (name != NULL && strchr(name, ',') != NULL) return choose_first(out, name, err);
    if (name != NULL && strcmp(name, "auto") != 0) {
        for (size_t i = 0; qr_backends[i] != NULL; i++)
            if (strcmp(qr_backends[i]->name, name) == 0) *out = qr_backends[i];
        if (*out == NULL) return fail_unknown(name, err);
        if ((*out)->probe(why, sizeof why) > 0) return QR_OK;
        return qr_fail(err, QR_E_UNSUPPORTED, "backend \"%s\" cannot be used here: %s", name, why);
    }
    int best = 0;
    for (size_t i = 0; qr_backends[i] != NULL; i++) {
        int grade = qr_backends[i]->probe(why, sizeof why);
        if (grade > best) {
            best = grade;
            *out = qr_backends[i];
        }
    }
    return *out != NULL ? QR_OK : qr_fail(err, QR_E_UNSUPPORTED, "no backend can be used here; the last one says: %s", why);
}
