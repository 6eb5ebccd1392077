/* Which replica a request goes to, and how many each may have at once. Pure arithmetic: time is given by the caller, so that a test can
 * simulate a hundred replicas for an hour in a second.
 *
 * Balance: the least outstanding tokens, but the documents of one query go where its prefix is cached already: every query has a favourite
 * replica (rendezvous hashing, so that one replica more or less moves only its own share of the queries), which gets the request unless it
 * has a quarter more outstanding than the mean (consistent hashing with bounded loads, arXiv:1608.01350). Among replicas with equally many
 * the same hash decides, which is another one for every query.
 *
 * Limit: a replica begins with one request and gets more while that does not cost time: the limit follows the ratio of the long-term to
 * the latest time per token ("gradient", as in Netflix' concurrency-limits), halves when the server says that it is overloaded, and thus
 * needs no setting. A replica that comes back therefore is not run over by all that waits.
 */
#ifndef QR_VLLM_BALANCER_H
#define QR_VLLM_BALANCER_H

#include <stddef.h>
#include <stdint.h>

/* Requests of one replica in work, at most; the limit stays in between. */
#define QR_LOAD_MIN_LIMIT 1.0
#define QR_LOAD_MAX_LIMIT 64.0

typedef struct qr_load {
    uint64_t seed;        /* names the replica to the hash; the same for the same address in every front end */
    int is_up;            /* may be given work */
    double limit;         /* requests that may be in flight; at least 1 */
    size_t in_flight;     /* requests */
    uint64_t tokens;      /* in these */
    double usual;         /* long-term seconds per token, as qr_load_end counts it; 0: nothing known */
    double paused_until;  /* asked to wait, on the caller's clock */
    unsigned n_overloads; /* in a row */
} qr_load;

/* A replica that has just come (back) up. */
void qr_load_reset(qr_load *load);
int qr_load_has_room(const qr_load *load, double now);

/* Index of the replica for a request of so many tokens with this hash of its prefix; SIZE_MAX: none has room. `avoid` is taken only if no
 * other is up; SIZE_MAX: none. */
size_t qr_balance(const qr_load *const *loads, size_t n, uint64_t prefix_hash, uint64_t tokens, size_t avoid, double now);

void qr_load_begin(qr_load *load, uint64_t tokens);
/* It was answered, after so many seconds. */
void qr_load_answered(qr_load *load, uint64_t tokens, double seconds);
/* It was refused for too much load; retry_after_s 0: the server does not say for how long. */
void qr_load_overloaded(qr_load *load, uint64_t tokens, double retry_after_s, double now);
/* It ended otherwise. */
void qr_load_dropped(qr_load *load, uint64_t tokens);

/* Hedging ("The Tail at Scale", CACM 56:2): what has not been answered after the time in which 95 of 100 requests are, for their number of
 * tokens, is asked for elsewhere as well. At most one request in twenty is. */
typedef struct qr_hedge {
    double slow;      /* seconds per token, as qr_load.usual, that 95 % stay below; learnt */
    unsigned n;       /* requests that this rests on */
    double allowance; /* hedges that may be begun */
} qr_hedge;

/* A request was answered, or another one was first, after so many seconds. */
void qr_hedge_answered(qr_hedge *hedge, uint64_t tokens, double seconds);
/* Seconds after its begin from which a request is to be hedged; infinite while nothing is known. */
double qr_hedge_after(const qr_hedge *hedge, uint64_t tokens);
/* Takes one from the allowance, if there is one. */
int qr_hedge_take(qr_hedge *hedge);

/* A well mixed 64-bit value. */
uint64_t qr_load_hash(uint64_t value);

#endif
