/* The bounded cache of results. */
#include "engine/result_cache.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static qr_result_key key(uint32_t n)
{
    uint32_t shared[] = {7, 8}, own[] = {n};
    return qr_result_key_of(shared, 2, own, 1);
}

static qr_result_cache *open_cache(size_t bytes)
{
    qr_result_cache *c;
    qr_error err = {0};
    if (qr_result_cache_open(&c, bytes, &err) != QR_OK) fail_msg("%s", err.msg);
    return c;
}

static void put(qr_result_cache *c, uint32_t n)
{
    qr_result_key k = key(n);
    qr_result_cache_put(c, &k, (qr_logits){(float) n, -1});
}

static int has(qr_result_cache *c, uint32_t n)
{
    qr_logits l = {0};
    qr_result_key k = key(n);
    if (!qr_result_cache_get(c, &k, &l)) return 0;
    assert_true(l.yes == (float) n && l.no == -1);
    return 1;
}

static void test_key_is_of_the_whole_prompt(void **state)
{
    (void) state;
    uint32_t ids[] = {1, 2, 3, 4};
    qr_result_key a = qr_result_key_of(ids, 1, ids + 1, 3), b = qr_result_key_of(ids, 3, ids + 3, 1),
                  c = qr_result_key_of(ids, 1, ids + 1, 2);
    assert_memory_equal(&a, &b, sizeof a);
    assert_memory_not_equal(&a, &c, sizeof a);
}

static void test_forgets_what_was_used_longest_ago(void **state)
{
    (void) state;
    qr_result_cache *c = open_cache(4096);
    uint32_t capacity = 0;
    for (uint32_t i = 0; i < 2000; i++) put(c, i);
    for (uint32_t i = 0; i < 2000; i++) capacity += (uint32_t) has(c, i);
    assert_in_range(capacity, 16, 4096 / 40);
    for (uint32_t i = 0; i < 2000; i++) assert_int_equal(has(c, i), i >= 2000 - capacity); /* the latest ones */
    assert_true(has(c, 2000 - capacity));
    put(c, 5000);
    assert_true(has(c, 2000 - capacity)); /* it was used just before */
    assert_false(has(c, 2001 - capacity));
    qr_result_cache_close(c);
}

static void test_a_bound_that_holds_nothing_is_refused(void **state)
{
    (void) state;
    qr_result_cache *c;
    qr_error err = {0};
    assert_int_equal(qr_result_cache_open(&c, 100, &err), QR_E_ARG);
    assert_non_null(strstr(err.msg, "4096"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_key_is_of_the_whole_prompt),
        cmocka_unit_test(test_forgets_what_was_used_longest_ago),
        cmocka_unit_test(test_a_bound_that_holds_nothing_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
