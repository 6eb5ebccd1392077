/* Whether a model ranks at all: texts that answer a query against texts that have nothing to do with it. A wrong conversion, or a model
 * that is no reranker, gives plausible scores in random order, and nothing else would show it. */
#ifndef QR_ENGINE_SELF_TEST_H
#define QR_ENGINE_SELF_TEST_H

#include "qwen_rerank.h"

typedef struct qr_self_test_result {
    size_t n, n_right; /* pairs, and those whose answer has the higher score */
} qr_self_test_result;

/* Asks the engine like any caller; cancel as in qr_call. */
qr_status qr_self_test(qr_engine *engine, const volatile int *cancel, qr_self_test_result *result, qr_error *err);

#endif
