/* The balancer of the vllm backend in a simulation: replicas with a queue each, a clock that jumps from event to event, a seeded generator.
 * What is measured: how even the work is, whether queries stay together, what a slow replica and a returning one get. */
#include "golden.h"

#include "vllm/balancer.h"

#include <math.h>

enum { MAX_REPLICAS = 100 };

/* A server that computes its requests together: each gets an equal part of its speed, up to so many; the others wait. */
typedef struct server {
    qr_load load;
    double speed;   /* tokens per second, of all requests together */
    double fixed_s; /* what a request costs beside */
    double busy_until;
    uint64_t n_requests, n_tokens;
} server;

typedef struct event {
    double at, began;
    size_t server;
    uint64_t tokens;
} event;
#include "event_queue.h"

static struct {
    server servers[MAX_REPLICAS];
    const qr_load *loads[MAX_REPLICAS];
    size_t n;
    event_queue queue;
    uint64_t state, n_refused;
    double now;
} sim;

static double chance(void)
{
    sim.state = qr_load_hash(sim.state);
    return (double) (sim.state >> 11) / (double) (UINT64_C(1) << 53);
}

static void start(size_t n, double speed)
{
    memset(&sim, 0, sizeof sim);
    sim.n = n;
    sim.state = 1;
    for (size_t i = 0; i < n; i++) {
        server *s = &sim.servers[i];
        *s = (server){.speed = speed, .fixed_s = 0.005};
        s->load.seed = qr_load_hash(i + 1);
        s->load.is_up = 1;
        qr_load_reset(&s->load);
        sim.loads[i] = &s->load;
    }
}

/* Answers that are due by `until`. */
static void advance(double until)
{
    while (sim.queue.n > 0 && sim.queue.events[0].at <= until) {
        event e = pop(&sim.queue);
        sim.now = e.at;
        qr_load_answered(&sim.servers[e.server].load, e.tokens, e.at - e.began);
    }
    sim.now = until;
}

/* 0: no replica has room. */
static int request(uint64_t query, uint64_t tokens)
{
    size_t i = qr_balance(sim.loads, sim.n, qr_load_hash(query), tokens, SIZE_MAX, sim.now);
    if (i == SIZE_MAX) {
        sim.n_refused++;
        return 0;
    }
    server *s = &sim.servers[i];
    double begin = s->busy_until > sim.now ? s->busy_until : sim.now;
    s->busy_until = begin + (double) tokens / s->speed;
    s->n_requests++;
    s->n_tokens += tokens;
    qr_load_begin(&s->load, tokens);
    push(&sim.queue, (event){s->busy_until + s->fixed_s, sim.now, i, tokens});
    return 1;
}

/* So many requests a second for so long, of random queries and 100 to 2,000 tokens; those that find no room wait for a millisecond. */
static void run(double requests_per_s, double seconds)
{
    double end = sim.now + seconds, next = sim.now;
    while (next < end) {
        advance(next);
        uint64_t query = (uint64_t) (chance() * 1e6), tokens = 100 + (uint64_t) (chance() * 1900);
        while (!request(query, tokens)) advance(sim.now + 0.001);
        next += -log(1 - chance()) / requests_per_s;
        if (next < sim.now) next = sim.now;
    }
    advance(end);
}

static void forget_counts(void)
{
    for (size_t i = 0; i < sim.n; i++) sim.servers[i].n_requests = sim.servers[i].n_tokens = 0;
}

static double mean_tokens(size_t from)
{
    double sum = 0;
    for (size_t i = from; i < sim.n; i++) sum += (double) sim.servers[i].n_tokens;
    return sum / (double) (sim.n - from);
}

/* 100 replicas, 10,000 requests a second, three quarters of what they can do. */
static void test_even_work(void **state)
{
    (void) state;
    start(100, 140e3);
    run(10000, 5);
    forget_counts();
    run(10000, 10);
    double mean = mean_tokens(0);
    for (size_t i = 0; i < sim.n; i++) assert_true(fabs((double) sim.servers[i].n_tokens / mean - 1) < 0.15);
}

/* Ten replicas of half the speed get about half the work, though nobody told. */
static void test_slow_replicas(void **state)
{
    (void) state;
    start(100, 140e3);
    for (size_t i = 0; i < 10; i++) sim.servers[i].speed = 70e3;
    run(11000, 5);
    forget_counts();
    sim.n_refused = 0;
    run(11000, 10);
    double fast = mean_tokens(10), slow = 0;
    for (size_t i = 0; i < 10; i++) slow += (double) sim.servers[i].n_tokens / 10;
    assert_true(slow / fast > 0.3 && slow / fast < 0.8);
}

/* Whoever returns with nothing to do is everybody's first choice, but gets one request at first, and more with each answer. */
static void test_no_herd_on_recovery(void **state)
{
    (void) state;
    start(10, 140e3);
    run(900, 5);
    server *s = &sim.servers[3];
    s->load.is_up = 0;
    run(900, 2);
    forget_counts();
    assert_int_equal(s->load.in_flight, 0);
    s->load.is_up = 1;
    qr_load_reset(&s->load);
    size_t n = 0;
    while (request(n, 1000)) n += 1; /* all that comes at this moment */
    assert_int_equal(s->n_requests, 1);
    run(900, 5);
    assert_true((double) s->n_tokens > mean_tokens(0) / 2);
}

static void test_queries_stay_together(void **state)
{
    (void) state;
    start(8, 140e3);
    run(800, 5); /* limits are learnt */
    for (uint64_t query = 0; query < 50; query++) {
        size_t first = qr_balance(sim.loads, sim.n, qr_load_hash(query), 500, SIZE_MAX, sim.now);
        for (int again = 0; again < 10; again++) {
            advance(sim.now + 1); /* idle */
            assert_int_equal(qr_balance(sim.loads, sim.n, qr_load_hash(query), 500, SIZE_MAX, sim.now), first);
        }
    }
    /* One replica less moves only its own queries. */
    size_t before[200], n_moved = 0, n_own = 0;
    for (uint64_t q = 0; q < 200; q++) before[q] = qr_balance(sim.loads, sim.n, qr_load_hash(q), 500, SIZE_MAX, sim.now);
    sim.servers[5].load.is_up = 0;
    for (uint64_t q = 0; q < 200; q++) {
        n_own += before[q] == 5;
        n_moved += qr_balance(sim.loads, sim.n, qr_load_hash(q), 500, SIZE_MAX, sim.now) != before[q];
    }
    assert_true(n_own > 5 && n_moved == n_own);
}

static void test_overload(void **state)
{
    (void) state;
    qr_load l = {.is_up = 1};
    const qr_load *loads[] = {&l};
    qr_load_reset(&l);
    l.limit = 16;
    qr_load_begin(&l, 100);
    qr_load_overloaded(&l, 100, 0, 10);
    assert_true(l.limit == 8 && l.in_flight == 0 && l.tokens == 0);
    assert_true(!qr_load_has_room(&l, 10.05) && qr_load_has_room(&l, 10.11));
    qr_load_begin(&l, 100);
    qr_load_overloaded(&l, 100, 0, 10.05); /* of the same moment: one overload, not two */
    qr_load_begin(&l, 100);
    qr_load_overloaded(&l, 100, 3, 11); /* for as long as the server says */
    assert_true(l.limit == 4 && !qr_load_has_room(&l, 13.9) && qr_load_has_room(&l, 14));
    for (int i = 0; i < 10; i++) {
        qr_load_begin(&l, 100);
        qr_load_overloaded(&l, 100, 1e9, 100 + 100 * i);
    }
    assert_true(l.limit == 1 && !qr_load_has_room(&l, 1001) && qr_load_has_room(&l, 1061)); /* not for ever, whatever it says */
    assert_int_equal(qr_balance(loads, 1, 1, 10, 0, 1061), 0);
    l.is_up = 0;
    assert_true(qr_balance(loads, 1, 1, 10, SIZE_MAX, 1061) == SIZE_MAX);
}

static void test_avoided(void **state)
{
    (void) state;
    start(2, 1e5);
    for (uint64_t q = 0; q < 20; q++) assert_int_equal(qr_balance(sim.loads, 2, qr_load_hash(q), 100, 0, 0), 1);
    sim.servers[1].load.is_up = 0; /* no other: better this one than none */
    assert_int_equal(qr_balance(sim.loads, 2, 7, 100, 0, 0), 0);
}

/* 100,000 requests of 100 to 1,100 tokens at 0.1 ms each, 2 of 100 of them 20 times as slow as they should be: hedging finds these, and
 * takes at most one in twenty even while all become three times as slow. */
static void test_hedging(void **state)
{
    (void) state;
    qr_hedge h = {0};
    uint32_t seed = 7;
    unsigned n_hedges = 0, n_slow = 0, n_found = 0;
    assert_true(isinf(qr_hedge_after(&h, 100)));
    assert_false(qr_hedge_take(&h));
    for (unsigned i = 0; i < 100000; i++) {
        seed = seed * 1664525u + 1013904223u;
        uint64_t tokens = 100 + (seed >> 8) % 1000;
        int is_slow = (seed >> 20) % 50 == 0;
        double usual = (double) (tokens + 512) * 1e-4 * (0.8 + 0.4 * (seed >> 24) / 256.0) * (i >= 50000 && i < 60000 ? 3 : 1);
        double seconds = is_slow ? 20 * usual : usual, after = qr_hedge_after(&h, tokens);
        n_slow += (unsigned) is_slow;
        if (seconds > after && qr_hedge_take(&h)) {
            n_hedges++;
            n_found += (unsigned) is_slow;
            seconds = fmin(seconds, after + usual);
        }
        qr_hedge_answered(&h, tokens, seconds);
    }
    assert_true(n_hedges <= 5000 + 10);
    assert_true(n_found > n_slow * 9 / 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hedging),
        cmocka_unit_test(test_even_work),
        cmocka_unit_test(test_slow_replicas),
        cmocka_unit_test(test_no_herd_on_recovery),
        cmocka_unit_test(test_queries_stay_together),
        cmocka_unit_test(test_overload),
        cmocka_unit_test(test_avoided),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
