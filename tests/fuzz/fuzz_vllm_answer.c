/* Answers of a vLLM server: whatever they hold, they are refused with a message or give finite margins for all documents. */
#include "vllm/protocol.h"

#include <math.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint32_t ids[] = {1, 2, 3};
    static const qr_prefix prefix = {ids, 2};
    static const qr_seq seqs[] = {{ids, 1, 0}, {ids + 1, 2, 0}};
    static const qr_batch batch = {&prefix, 1, seqs, 2, NULL};
    const char *text = (const char *) data;
    char name[32];
    size_t most;
    qr_error err = {0};
    for (int p = 0; p < QR_VLLM_N_PROTOCOLS; p++) {
        qr_vllm_call call = {(qr_vllm_protocol) p, "m", 9693, 2152, &batch, 0, 2};
        qr_logits out[2];
        err.msg[0] = 0;
        if (qr_vllm_read_answer(&call, text, size, out, &err) != QR_OK) {
            if (err.msg[0] == 0) abort();
        } else if (!isfinite(out[0].yes - out[0].no) || !isfinite(out[1].yes - out[1].no)) abort();
    }
    qr_vllm_read_models(text, size, NULL, name, sizeof name, &most, &err);
    qr_vllm_read_version(text, size, name, sizeof name);
    qr_vllm_read_tokenize(text, size, ids, 3, &err);
    qr_vllm_error_text(text, size, name, sizeof name);
    return 0;
}
