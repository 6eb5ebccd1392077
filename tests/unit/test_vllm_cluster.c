/* A hundred replicas behind ten front ends, 10,000 requests a second, with slow replicas, replicas that die, and answers that are spoilt: a
 * simulation of what the balancer and the allowance for repetitions do together. Time jumps from event to event; the generator is seeded,
 * so that a failure can be repeated. docs/SCALING.md quotes what this prints.
 *
 * A replica computes its requests one after the other at so many tokens a second. Of the backend, this repeats what is not in balancer.c:
 * when a replica is checked again, when a repetition may be sent, and when a hedge is. What a withdrawn request would have cost its replica
 * is not given back to it, though vLLM stops such work.
 */
#include "vllm/balancer.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { REPLICAS = 100, SLOW = 10, FRONTS = 10, MAX_WAITING = 1 << 14, MAX_FLIGHTS = 1 << 17, REQUESTS_PER_S = 10000, TIMES = 400000 };
static const double speed = 140e3, fixed_s = 0.005, check_s = 0.02;
/* What a replica that returns may be given at once; without slow start it would be 2.9 s of work. */
static const double herd_s = 1;
/* backend_vllm.c's and pool.c's. */
static const double retries_per_s = 10, retries_per_request = 0.1, most_retries = 50, first_pause_s = 0.5, longest_pause_s = 15;
static const double hedge_again_s = 0.05;

typedef struct request {
    uint64_t query, tokens;
    double arrived, sent;
    size_t front, avoid, flight;
    int is_retry;
} request;

/* Where a request is: at a replica, and perhaps at a second one. */
typedef struct flight {
    size_t at[2]; /* SIZE_MAX: nowhere */
    double sent;  /* to the first */
} flight;

typedef enum kind { ANSWER, DEATH, CHECK, HEDGE } kind;

typedef struct event {
    double at;
    kind kind;
    size_t replica;
    unsigned life; /* of the replica, when it was sent there: an answer of an earlier one never comes */
    int is_hedge;
    request request;
} event;
#include "event_queue.h"

typedef struct replica {
    double speed, busy_until, alive_at; /* dead until then */
    unsigned life;
    double spoils; /* part of its answers */
    uint64_t n_tokens;
    double up_s;          /* while front ends had it in use, on average */
    double returned_at;   /* to the first front end */
    uint64_t most_queued; /* tokens of all front ends in the first second after a return */
} replica;

typedef struct front {
    qr_load loads[REPLICAS];
    const qr_load *views[REPLICAS];
    unsigned n_failures[REPLICAS];
    double up_since[REPLICAS];
    double retries, retries_at;
    qr_hedge hedging;
    request waiting[MAX_WAITING];
    size_t n_waiting;
} front;

static struct {
    replica replicas[REPLICAS];
    front fronts[FRONTS];
    event_queue queue;
    flight flights[MAX_FLIGHTS];
    size_t n_flights; /* of all time */
    uint64_t state;
    double now, death_every_s, dead_s;
    int hedges;
    double straggles, straggle_s; /* part of the answers that come so much later, and hold up nothing else */
    uint64_t n_requests, n_sent, n_answered, n_deaths, n_spoilt, n_hedges;
    double times[TIMES];
    size_t n_times;
} sim;

static double chance(void)
{
    sim.state = qr_load_hash(sim.state);
    return (double) (sim.state >> 11) / (double) (UINT64_C(1) << 53);
}

static double pause_after(unsigned n_failures)
{
    return fmin(ldexp(first_pause_s, n_failures < 10 ? (int) n_failures : 10), longest_pause_s) * (0.5 + 0.5 * chance());
}

static int may_retry(front *f)
{
    f->retries = fmin(f->retries + (sim.now - f->retries_at) * retries_per_s, most_retries);
    f->retries_at = sim.now;
    if (f->retries < 1) return 0;
    f->retries--;
    return 1;
}

static void keep_waiting(const request *r)
{
    front *f = &sim.fronts[r->front];
    assert_true(f->n_waiting < MAX_WAITING);
    f->waiting[f->n_waiting++] = *r;
}

static void send_to(size_t i, request r, int is_hedge)
{
    replica *to = &sim.replicas[i];
    qr_load_begin(&sim.fronts[r.front].loads[i], r.tokens);
    r.sent = sim.now;
    sim.flights[r.flight].at[is_hedge] = i;
    sim.n_sent++;
    to->n_tokens += r.tokens;
    to->busy_until = fmax(to->busy_until, sim.now) + (double) r.tokens / to->speed;
    double late = sim.straggles > 0 && chance() < sim.straggles ? sim.straggle_s : 0;
    push(&sim.queue, (event){to->busy_until + fixed_s + late, ANSWER, i, to->life, is_hedge, r});
}

/* 0: no replica has room, or it is a repetition too many. */
static int send(request r)
{
    front *f = &sim.fronts[r.front];
    size_t i = qr_balance(f->views, REPLICAS, qr_load_hash(r.query), r.tokens, r.avoid, sim.now);
    if (i == SIZE_MAX || (r.is_retry && !may_retry(f))) return 0;
    f->retries = fmin(f->retries + retries_per_request, most_retries);
    send_to(i, r, 0);
    sim.flights[r.flight].sent = r.sent = sim.now;
    double due = sim.now + qr_hedge_after(&f->hedging, r.tokens);
    if (sim.hedges && isfinite(due)) push(&sim.queue, (event){due, HEDGE, i, 0, 0, r});
    return 1;
}

/* Whether it is where it was when the event was made. */
static int is_there(const event *e) { return sim.flights[e->request.flight].at[e->is_hedge] == e->replica; }

static void on_hedge(const event *e)
{
    const request *r = &e->request;
    front *f = &sim.fronts[r->front];
    const flight *is = &sim.flights[r->flight];
    if (!is_there(e) || is->sent != r->sent) return;
    size_t i = f->n_waiting > 0 ? SIZE_MAX : qr_balance(f->views, REPLICAS, qr_load_hash(r->query), r->tokens, e->replica, sim.now);
    if (i != SIZE_MAX && i != e->replica && qr_hedge_take(&f->hedging)) {
        sim.n_hedges++;
        send_to(i, *r, 1);
    } else push(&sim.queue, (event){sim.now + hedge_again_s, HEDGE, e->replica, 0, 0, *r});
}

/* In the order of arrival; what finds no room now stays. */
static void send_waiting(front *f)
{
    size_t kept = 0;
    for (size_t i = 0; i < f->n_waiting; i++)
        if (!send(f->waiting[i])) f->waiting[kept++] = f->waiting[i];
    f->n_waiting = kept;
}

/* Takes what failed from its replica; it is asked for again, unless it is elsewhere as well. */
static void repeat(const event *e)
{
    request r = e->request;
    flight *is = &sim.flights[r.flight];
    qr_load_dropped(&sim.fronts[r.front].loads[e->replica], r.tokens);
    is->at[e->is_hedge] = SIZE_MAX;
    if (is->at[!e->is_hedge] != SIZE_MAX) return;
    r.avoid = e->replica;
    r.is_retry = 1;
    keep_waiting(&r);
}

/* Brings the replica's time in use up to date. */
static void count_time(front *f, size_t i)
{
    if (f->loads[i].is_up) sim.replicas[i].up_s += (sim.now - f->up_since[i]) / FRONTS;
    f->up_since[i] = sim.now;
}

static void take_out(size_t front_index, size_t i)
{
    front *f = &sim.fronts[front_index];
    if (!f->loads[i].is_up) return;
    count_time(f, i);
    f->loads[i].is_up = 0;
    push(&sim.queue,
         (event){sim.now + check_s + (f->n_failures[i] > 0 ? pause_after(f->n_failures[i]) : 0), CHECK, i, 0, 0, {.front = front_index}});
    f->n_failures[i]++;
}

static void on_check(const event *e)
{
    front *f = &sim.fronts[e->request.front];
    replica *r = &sim.replicas[e->replica];
    if (r->alive_at > sim.now || chance() < r->spoils) {
        push(&sim.queue, (event){sim.now + pause_after(f->n_failures[e->replica]++), CHECK, e->replica, 0, 0, e->request});
        return;
    }
    count_time(f, e->replica);
    f->loads[e->replica].is_up = 1;
    qr_load_reset(&f->loads[e->replica]);
    if (e->request.front == 0) r->returned_at = sim.now;
}

/* All that it had is lost, and every front end knows at once: connections are closed, new ones refused. */
static void on_death(size_t i)
{
    replica *r = &sim.replicas[i];
    sim.n_deaths++;
    r->alive_at = sim.now + sim.dead_s;
    r->life++;
    r->busy_until = 0;
    for (size_t k = 0; k < sim.queue.n; k++) {
        const event *e = &sim.queue.events[k];
        if (e->kind == ANSWER && e->replica == i && e->life + 1 == r->life && is_there(e)) repeat(e);
    }
    for (size_t f = 0; f < FRONTS; f++) take_out(f, i);
}

static void on_answer(const event *e)
{
    front *f = &sim.fronts[e->request.front];
    replica *r = &sim.replicas[e->replica];
    flight *is = &sim.flights[e->request.flight];
    if (e->life != r->life || !is_there(e)) return;
    if (chance() < r->spoils) {
        sim.n_spoilt++;
        repeat(e);
        take_out(e->request.front, e->replica);
        return;
    }
    qr_load_answered(&f->loads[e->replica], e->request.tokens, sim.now - e->request.sent);
    f->n_failures[e->replica] = 0;
    qr_hedge_answered(&f->hedging, e->request.tokens, sim.now - is->sent);
    size_t other = is->at[!e->is_hedge];
    if (other != SIZE_MAX && e->is_hedge) qr_load_answered(&f->loads[other], e->request.tokens, sim.now - is->sent);
    else if (other != SIZE_MAX) qr_load_dropped(&f->loads[other], e->request.tokens);
    is->at[0] = is->at[1] = SIZE_MAX;
    sim.n_answered++;
    if (sim.n_times < TIMES) sim.times[sim.n_times++] = sim.now - e->request.arrived;
}

static uint64_t queued(size_t i)
{
    uint64_t tokens = 0;
    for (size_t f = 0; f < FRONTS; f++) tokens += sim.fronts[f].loads[i].tokens;
    return tokens;
}

static void advance(double until)
{
    while (sim.queue.n > 0 && sim.queue.events[0].at <= until) {
        event e = pop(&sim.queue);
        sim.now = e.at;
        if (e.kind == ANSWER) on_answer(&e);
        else if (e.kind == CHECK) on_check(&e);
        else if (e.kind == HEDGE) on_hedge(&e);
        else on_death(e.replica);
        for (size_t f = 0; f < FRONTS; f++)
            if (sim.fronts[f].n_waiting > 0 && (f == e.request.front || e.kind == DEATH)) send_waiting(&sim.fronts[f]);
        replica *r = &sim.replicas[e.replica];
        if (r->returned_at > 0 && sim.now - r->returned_at < 1 && queued(e.replica) > r->most_queued) r->most_queued = queued(e.replica);
    }
    sim.now = until;
}

static void run(double seconds)
{
    double end = sim.now + seconds, next_death = sim.now + sim.death_every_s;
    while (sim.now < end) {
        advance(sim.now - log(1 - chance()) / REQUESTS_PER_S);
        if (sim.death_every_s > 0 && sim.now >= next_death) {
            size_t i = SLOW + (size_t) (chance() * (REPLICAS - SLOW));
            if (sim.replicas[i].alive_at <= sim.now) push(&sim.queue, (event){.at = sim.now, .kind = DEATH, .replica = i});
            next_death += sim.death_every_s;
        }
        request r = {
            .query = (uint64_t) (chance() * 1e6), .tokens = 100 + (uint64_t) (chance() * 1900), .arrived = sim.now, .avoid = SIZE_MAX};
        r.front = (size_t) (chance() * FRONTS);
        r.flight = sim.n_flights++ % MAX_FLIGHTS; /* what had it before was answered seconds ago */
        sim.flights[r.flight] = (flight){{SIZE_MAX, SIZE_MAX}, 0};
        sim.n_requests++;
        if (!send(r)) keep_waiting(&r);
    }
}

static void forget_counts(void)
{
    sim.n_requests = sim.n_sent = sim.n_answered = sim.n_deaths = sim.n_spoilt = sim.n_hedges = sim.n_times = 0;
    for (size_t i = 0; i < REPLICAS; i++) {
        for (size_t f = 0; f < FRONTS; f++) count_time(&sim.fronts[f], i);
        sim.replicas[i].n_tokens = 0;
        sim.replicas[i].up_s = sim.replicas[i].returned_at = 0;
        sim.replicas[i].most_queued = 0;
    }
}

static void start(void)
{
    memset(&sim, 0, sizeof sim);
    sim.state = 1;
    for (size_t i = 0; i < REPLICAS; i++) sim.replicas[i].speed = speed;
    for (size_t f = 0; f < FRONTS; f++)
        for (size_t i = 0; i < REPLICAS; i++) {
            qr_load *l = &sim.fronts[f].loads[i];
            *l = (qr_load){.seed = qr_load_hash(i + 1), .is_up = 1};
            qr_load_reset(l);
            sim.fronts[f].views[i] = l;
            sim.fronts[f].retries = most_retries;
        }
}

static int by_value(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

typedef struct figures {
    double least, most; /* tokens per second in use of replicas of full speed, of their mean */
    double slow;        /* of the others */
    double extra;       /* requests sent beyond those that came, of these */
    double median_s, p99_s;
    size_t n_waiting;
} figures;

static figures measure(const char *name)
{
    figures out = {.least = 1e9, .extra = (double) sim.n_sent / (double) sim.n_requests - 1};
    double mean = 0, slow = 0;
    for (size_t i = 0; i < REPLICAS; i++) {
        for (size_t f = 0; f < FRONTS; f++) count_time(&sim.fronts[f], i);
        double rate = (double) sim.replicas[i].n_tokens / sim.replicas[i].up_s;
        *(i < SLOW ? &slow : &mean) += rate / (i < SLOW ? SLOW : REPLICAS - SLOW);
    }
    for (size_t i = SLOW; i < REPLICAS; i++) {
        double rate = (double) sim.replicas[i].n_tokens / sim.replicas[i].up_s / mean;
        out.least = fmin(out.least, rate);
        out.most = fmax(out.most, rate);
    }
    out.slow = slow / mean;
    for (size_t f = 0; f < FRONTS; f++) out.n_waiting += sim.fronts[f].n_waiting;
    qsort(sim.times, sim.n_times, sizeof sim.times[0], by_value);
    out.median_s = sim.times[sim.n_times / 2];
    out.p99_s = sim.times[sim.n_times * 99 / 100];
    printf("%s: %llu requests, work of a replica %.2f to %.2f of the mean, first ten %.2f; %llu deaths, %llu spoilt answers, %llu hedges, "
           "%.2f %% extra "
           "requests; median %.0f ms, p99 %.0f ms; %zu wait at the end\n",
           name, (unsigned long long) sim.n_requests, out.least, out.most, out.slow, (unsigned long long) sim.n_deaths,
           (unsigned long long) sim.n_spoilt, (unsigned long long) sim.n_hedges, 100 * out.extra, 1000 * out.median_s, 1000 * out.p99_s,
           out.n_waiting);
    return out;
}

static void test_all_well(void **state)
{
    (void) state;
    start();
    run(5);
    forget_counts();
    run(20);
    figures f = measure("all well");
    assert_true(f.least > 0.85 && f.most < 1.15 && f.extra <= 0 && f.n_waiting < 100);
}

/* Ten replicas of half the speed; every second one of the others dies for 5 s; two answers of a thousand are spoilt. */
static void start_failing(void)
{
    start();
    for (size_t i = 0; i < REPLICAS; i++) {
        if (i < SLOW) sim.replicas[i].speed = speed / 2;
        sim.replicas[i].spoils = 0.002;
    }
    sim.death_every_s = 1;
    sim.dead_s = 5;
}

static void test_failures_and_slow_nodes(void **state)
{
    (void) state;
    start_failing();
    run(10);
    forget_counts();
    run(30);
    figures f = measure("failures and slow nodes");
    assert_true(sim.n_deaths >= 25);
    assert_true(f.least > 0.85 && f.most < 1.15 && f.extra <= 0.1 && f.n_waiting < 1000);
    assert_true(f.slow > 0.3 && f.slow < 0.8);
}

/* Half of them are gone for 5 s, too many for the rest; they come back empty, to front ends with thousands of waiting requests. */
static void test_no_herd_on_recovery(void **state)
{
    (void) state;
    start();
    sim.dead_s = 5;
    run(5);
    for (size_t i = 0; i < REPLICAS / 2; i++) push(&sim.queue, (event){.at = sim.now, .kind = DEATH, .replica = i});
    run(4.9);
    size_t n_waiting = 0;
    for (size_t f = 0; f < FRONTS; f++) n_waiting += sim.fronts[f].n_waiting;
    forget_counts();
    run(15);
    uint64_t most = 0;
    for (size_t i = 0; i < REPLICAS / 2; i++) most = sim.replicas[i].most_queued > most ? sim.replicas[i].most_queued : most;
    printf("recovery: %zu requests waited; at most %.0f ms of work queued by a replica in its first second\n", n_waiting,
           1000 * (double) most / speed);
    assert_true(n_waiting > 1000);
    assert_true((double) most / speed < herd_s);
    forget_counts();
    run(10);
    figures f = measure("after the recovery");
    assert_true(f.least > 0.85 && f.most < 1.15 && f.n_waiting < 100);
}

/* Ten replicas spoil every answer, ten more every second one. */
static void test_no_storm_of_repetitions(void **state)
{
    (void) state;
    start();
    run(5);
    for (size_t i = SLOW; i < SLOW + 20; i++) sim.replicas[i].spoils = i % 2 == 0 ? 1 : 0.5;
    forget_counts();
    run(20);
    figures f = measure("spoilt answers");
    assert_true(f.extra <= 0.1);
}

/* Two answers of a hundred come two seconds late. */
static figures measure_stragglers(const char *name, int hedges)
{
    start();
    sim.straggles = 0.02;
    sim.straggle_s = 2;
    sim.hedges = hedges;
    run(5);
    forget_counts();
    run(10);
    return measure(name);
}

static void test_hedging_of_stragglers(void **state)
{
    (void) state;
    figures without = measure_stragglers("stragglers", 0), with = measure_stragglers("stragglers, hedged", 1);
    assert_true(without.p99_s > 2 && with.p99_s < without.p99_s / 4);
    assert_true(with.extra > 0 && with.extra <= 0.1 && with.n_waiting < 100);
    assert_true(with.least > 0.85 && with.most < 1.15);
}

/* Failures repeat requests and slow replicas hedge them: together not too often either. */
static void test_hedging_among_failures(void **state)
{
    (void) state;
    start_failing();
    sim.hedges = 1;
    run(10);
    forget_counts();
    run(15);
    figures f = measure("failures and slow nodes, hedged");
    assert_true(sim.n_deaths >= 12 && sim.n_hedges > 0);
    assert_true(f.least > 0.85 && f.most < 1.15 && f.extra <= 0.1 && f.n_waiting < 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_well),
        cmocka_unit_test(test_failures_and_slow_nodes),
        cmocka_unit_test(test_no_herd_on_recovery),
        cmocka_unit_test(test_no_storm_of_repetitions),
        cmocka_unit_test(test_hedging_of_stragglers),
        cmocka_unit_test(test_hedging_among_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
