/* The README's example: scores two documents. */
#include <qwen_rerank.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    qr_options options = {.model = argc > 1 ? argv[1] : "Qwen3-Reranker-0.6B"};
    qr_engine *engine;
    qr_error err;
    if (qr_engine_open(&engine, &options, &err)) return fprintf(stderr, "%s\n", err.msg), 1;

    const char *texts[] = {"The capital of China is Beijing.", "Gravity attracts two bodies towards each other."};
    qr_text documents[] = {{texts[0], strlen(texts[0])}, {texts[1], strlen(texts[1])}};
    qr_query query = {.query = {"What is the capital of China?", 29}, .documents = documents, .n_documents = 2};
    qr_result results[2];
    qr_status status = qr_score(engine, &query, 1, results, NULL, &err);
    if (status) fprintf(stderr, "%s\n", err.msg);
    else
        for (int i = 0; i < 2; i++) printf("%.6f  %s\n", results[i].score, texts[i]);
    qr_engine_close(engine);
    return status != QR_OK;
}
