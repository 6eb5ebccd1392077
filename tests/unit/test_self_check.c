/* The self-check itself: it must accept what is right, in every type, and refuse what is slightly wrong. */
#include "golden.h"

#include "engine/self_check.h"

#include <math.h>

extern const qr_backend_ops qr_backend_cpu;

static void test_our_own_engine_passes(void **state)
{
    (void) state;
    qr_error err = {0};
    double worst = 0;
    assert_int_equal(qr_self_check(&qr_backend_cpu, NULL, QR_DTYPE_F32, QR_DEFAULT, &worst, &err), QR_OK);
    print_message("f32: %g\n", worst);
    assert_true(worst < 5e-5);
    assert_int_equal(qr_self_check(&qr_backend_cpu, NULL, QR_DTYPE_AUTO, QR_DEFAULT, &worst, &err), QR_OK);
    print_message("auto: %g\n", worst);
}

static void test_what_cannot_be_opened_is_passed_on(void **state)
{
    (void) state;
    qr_error err = {0};
    double worst;
    assert_int_equal(qr_self_check(&qr_backend_cpu, NULL, QR_DTYPE_INT8, QR_DEFAULT, &worst, &err), QR_E_UNSUPPORTED);
    assert_non_null(strstr(err.msg, "int8"));
}

/* Our engine with one thing wrong. */
static qr_status wrong_prefix(qr_backend *b, const qr_batch *batch, qr_logits *out, qr_error *err)
{
    uint32_t changed[64];
    qr_prefix prefixes[8];
    qr_batch other = *batch;
    for (size_t i = 0; i < batch->n_prefixes; i++) {
        prefixes[i] = batch->prefixes[i];
        if (prefixes[i].n_ids < 33) continue;
        for (size_t j = 0; j < prefixes[i].n_ids; j++) changed[j] = prefixes[i].ids[j];
        changed[0] ^= 1; /* the token that is farthest away */
        prefixes[i].ids = changed;
    }
    other.prefixes = prefixes;
    return qr_backend_cpu.score(b, &other, out, err);
}

static qr_status not_a_number(qr_backend *b, const qr_batch *batch, qr_logits *out, qr_error *err)
{
    qr_status status = qr_backend_cpu.score(b, batch, out, err);
    out[1].yes = NAN;
    return status;
}

static void test_wrong_results_are_found(void **state)
{
    (void) state;
    qr_backend_ops wrong = qr_backend_cpu;
    qr_error err = {0};
    double worst;
    wrong.score = wrong_prefix;
    assert_int_equal(qr_self_check(&wrong, NULL, QR_DTYPE_AUTO, QR_DEFAULT, &worst, &err), QR_E_BACKEND);
    assert_non_null(strstr(err.msg, "expected"));
    print_message("%s\n", err.msg);
    wrong.score = not_a_number;
    assert_int_equal(qr_self_check(&wrong, NULL, QR_DTYPE_F32, QR_DEFAULT, &worst, &err), QR_E_BACKEND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_our_own_engine_passes),
        cmocka_unit_test(test_what_cannot_be_opened_is_passed_on),
        cmocka_unit_test(test_wrong_results_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
