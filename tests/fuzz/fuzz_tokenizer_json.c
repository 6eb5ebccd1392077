/* Any bytes as a tokenizer.json: an error with a message, or a tokenizer that encodes. Seed the corpus with a real, reduced one. */
#include "text/tokenizer_internal.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    qr_tokenizer *tok;
    qr_error err = {0};
    qr_status status = qr_tok_open_memory(&tok, data, size, "fuzz", &err);
    if (status != QR_OK) {
        if (tok != NULL || err.code != status || err.msg[0] == 0) abort();
        return 0;
    }
    qr_ids ids = {0};
    size_t len;
    static const char text[] = "some text<|x|> aaaab e\xCC\x81\n\n 12";
    if (qr_tok_encode(tok, text, sizeof text - 1, QR_TOK_SPECIAL, 0, &ids, NULL, NULL, &err) != QR_OK) abort();
    for (size_t i = 0; i < ids.n; i++) {
        if (ids.id[i] >= qr_tok_vocab_size(tok) || qr_tok_bytes(tok, ids.id[i], &len) == NULL || len == 0) abort();
    }
    qr_ids_deinit(&ids);
    qr_tok_close(tok);
    return 0;
}
