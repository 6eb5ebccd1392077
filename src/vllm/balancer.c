/* See balancer.h. */
#include "vllm/balancer.h"

#include <math.h>

/* What a request costs beside its tokens, in tokens: without it, short requests would seem slow. */
static const double fixed_tokens = 512;
/* A replica may be slower than usual by this factor before its limit falls, and then falls by half at most (Netflix' values). */
static const double tolerance = 1.5, steepest = 0.5;
/* Weights of the newest value in the long-term time and in the limit. */
static const double usual_weight = 0.02, limit_weight = 0.2;
/* How much more than the mean a query's favourite replica may have outstanding. */
static const double favour = 1.25;
/* Share of requests that are answered before the hedge, the newest one's weight in the (logarithm of the) time for that, how many requests
 * it takes to know it, and most hedges in a row. */
static const double hedge_quantile = 0.95, hedge_weight = 0.1, most_hedges = 10;
static const unsigned hedge_known = 50;
static const double first_pause_s = 0.1, longest_pause_s = 5, longest_asked_pause_s = 60;

uint64_t qr_load_hash(uint64_t x) /* SplitMix64's finaliser */
{
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

void qr_load_reset(qr_load *l)
{
    l->limit = QR_LOAD_MIN_LIMIT;
    l->usual = l->paused_until = 0;
    l->n_overloads = 0;
}

int qr_load_has_room(const qr_load *l, double now) { return l->is_up && (double) l->in_flight + 1 <= l->limit && l->paused_until <= now; }

size_t qr_balance(const qr_load *const *loads, size_t n, uint64_t prefix_hash, uint64_t tokens, size_t avoid, double now)
{
    size_t least = SIZE_MAX, favourite = SIZE_MAX, n_up = 0;
    uint64_t best = 0, best_least = 0, outstanding = tokens;
    for (size_t i = 0; i < n; i++) {
        if (!loads[i]->is_up) continue;
        n_up++;
        outstanding += loads[i]->tokens;
    }
    for (size_t i = 0; i < n; i++) {
        if (!loads[i]->is_up || (i == avoid && n_up > 1)) continue;
        uint64_t h = qr_load_hash(prefix_hash ^ loads[i]->seed);
        if (favourite == SIZE_MAX || h > best) {
            favourite = i;
            best = h;
        }
        if (!qr_load_has_room(loads[i], now)) continue;
        /* Of equals the hash decides: of many front ends, each has nothing in work with most replicas, and all would take the first. */
        if (least == SIZE_MAX || loads[i]->tokens < loads[least]->tokens || (loads[i]->tokens == loads[least]->tokens && h > best_least)) {
            least = i;
            best_least = h;
        }
    }
    if (favourite == SIZE_MAX || !qr_load_has_room(loads[favourite], now)) return least;
    /* Less than one request above the mean is no overload: with few requests in work, the mean says little. */
    double bound = favour * (double) outstanding / (double) n_up + (double) tokens;
    return (double) (loads[favourite]->tokens + tokens) <= bound ? favourite : least;
}

void qr_load_begin(qr_load *l, uint64_t tokens)
{
    l->in_flight++;
    l->tokens += tokens;
}

void qr_load_dropped(qr_load *l, uint64_t tokens)
{
    l->in_flight--;
    l->tokens -= tokens;
}

static void set_limit(qr_load *l, double limit) { l->limit = fmax(QR_LOAD_MIN_LIMIT, fmin(limit, QR_LOAD_MAX_LIMIT)); }

void qr_load_answered(qr_load *l, uint64_t tokens, double seconds)
{
    double now = seconds / ((double) tokens + fixed_tokens);
    int was_full = 2 * (double) l->in_flight >= l->limit; /* else the time says nothing about the limit */
    qr_load_dropped(l, tokens);
    l->n_overloads = 0;
    l->usual = l->usual > 0 ? l->usual + usual_weight * (now - l->usual) : now;
    if (l->usual > 2 * now) l->usual *= 0.95; /* forget a bad time sooner than it was learnt */
    if (!was_full) return;
    double gradient = now > 0 ? fmax(steepest, fmin(tolerance * l->usual / now, 1)) : 1;
    /* The square root is the queue that the server may have, which lets the limit grow while nothing slows down. */
    set_limit(l, l->limit + limit_weight * (gradient * l->limit + sqrt(l->limit) - l->limit));
}

void qr_load_overloaded(qr_load *l, uint64_t tokens, double retry_after_s, double now)
{
    qr_load_dropped(l, tokens);
    double pause = fmin(retry_after_s, longest_asked_pause_s);
    if (!(pause > 0) && now < l->paused_until) pause = 0;
    else if (!(pause > 0)) pause = fmin(ldexp(first_pause_s, l->n_overloads < 8 ? (int) l->n_overloads : 8), longest_pause_s);
    int is_same = now < l->paused_until; /* a request that was under way when the pause began: no news */
    l->paused_until = fmax(l->paused_until, now + pause);
    if (is_same) return;
    l->n_overloads++;
    set_limit(l, l->limit / 2);
}

/* Stochastic approximation of a quantile: at rest when 5 of 100 raise it 19 times as much as the others lower it. */
void qr_hedge_answered(qr_hedge *h, uint64_t tokens, double seconds)
{
    double x = seconds / ((double) tokens + fixed_tokens);
    if (h->n == 0) h->slow = x;
    else h->slow *= exp(hedge_weight * (x > h->slow ? hedge_quantile : hedge_quantile - 1));
    if (h->n < hedge_known) h->n++;
    h->allowance = fmin(h->allowance + 1 - hedge_quantile, most_hedges);
}

double qr_hedge_after(const qr_hedge *h, uint64_t tokens)
{
    return h->n < hedge_known ? INFINITY : h->slow * ((double) tokens + fixed_tokens);
}

int qr_hedge_take(qr_hedge *h)
{
    if (h->allowance < 1) return 0;
    h->allowance--;
    return 1;
}
