/* Events by time, for simulations. To be included once the type `event` is there, which has a member `at`. */
#ifndef TESTS_EVENT_QUEUE_H
#define TESTS_EVENT_QUEUE_H

enum { MAX_EVENTS = 1 << 16 };

typedef struct event_queue {
    event events[MAX_EVENTS]; /* [n] a heap: the first is the next */
    size_t n;
} event_queue;

static void push(event_queue *q, event e)
{
    size_t i = q->n++;
    assert_true(q->n < MAX_EVENTS);
    for (; i > 0 && q->events[(i - 1) / 2].at > e.at; i = (i - 1) / 2) q->events[i] = q->events[(i - 1) / 2];
    q->events[i] = e;
}

static event pop(event_queue *q)
{
    event first = q->events[0], last = q->events[--q->n];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < q->n; i = child) {
        if (child + 1 < q->n && q->events[child + 1].at < q->events[child].at) child++;
        if (q->events[child].at >= last.at) break;
        q->events[i] = q->events[child];
    }
    q->events[i] = last;
    return first;
}

#endif
