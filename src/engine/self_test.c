/* See self_test.h. */
#include "engine/self_test.h"

#include "engine/calibration.h"

qr_status qr_self_test(qr_engine *engine, const volatile int *cancel, qr_self_test_result *result, qr_error *err)
{
    enum { N = 4 }; /* a coin would pass once in sixteen times */
    qr_text documents[N][2];
    qr_query queries[N];
    qr_result results[N * 2];
    qr_call call = {.cancel = cancel};
    for (size_t i = 0; i < N; i++) {
        queries[i] = (qr_query){.documents = documents[i], .n_documents = 2};
        qr_calibration_pair(i, &queries[i].query, &documents[i][0], &documents[i][1]);
    }
    *result = (qr_self_test_result){.n = N};
    qr_status status = qr_score(engine, queries, N, results, &call, err);
    for (size_t i = 0; i < N && status == QR_OK; i++) result->n_right += results[2 * i].margin > results[2 * i + 1].margin;
    return status;
}
