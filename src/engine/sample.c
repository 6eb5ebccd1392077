/* See sample.h. */
#include "engine/sample.h"

#include <string.h>

/* The template's special tokens and labels, and after them what tokenizers differ in: digits, contractions, blanks, other scripts, text
 * that is not in NFC, emoji. */
static const char text[] =
    QR_PROMPT_PREFIX QR_PROMPT_SUFFIX "It's 12345 o'clock,  don't you\tthink?\n\n\n北京是中国的首都。 日本語のテキスト, "
                                      "한국어; Straße, e\xCC\x81t\xC3\xA9 \xF0\x9F\x91\x8D\xF0\x9F\x8F\xBD naïve_snake_case(x);";

/* Of various lengths, relevant and not: models that differ in anything give them other scores. */
static const char query[] = "What is the capital of China?";
static const char *const documents[QR_SAMPLE_DOCUMENTS] = {
    "The capital of China is Beijing.",
    ("Gravity is a force that attracts two bodies towards each other. It gives weight to physical objects and is responsible for the "
     "movement of planets around the sun."),
    "Beijing",
    "Paris is the capital and largest city of France, and Shanghai the largest city of China.",
};

qr_status qr_sample_make(qr_sample_store *s, const qr_tokenizer *tok, const qr_prompt *prompt, size_t max_length, qr_error *err)
{
    qr_text texts[QR_SAMPLE_DOCUMENTS];
    for (size_t i = 0; i < QR_SAMPLE_DOCUMENTS; i++) texts[i] = (qr_text){documents[i], strlen(documents[i])};
    qr_query q = {.query = {query, sizeof query - 1}, .documents = texts, .n_documents = QR_SAMPLE_DOCUMENTS};
    qr_status status = qr_tok_encode(tok, text, sizeof text - 1, QR_TOK_SPECIAL, 0, &s->text_ids, NULL, NULL, err);
    if (status == QR_OK) status = qr_prompt_build(prompt, &q, max_length, &s->ids, err);
    if (status != QR_OK) return status;
    s->prefix = (qr_prefix){s->ids.ids.id, s->ids.n_shared};
    for (size_t i = 0; i < QR_SAMPLE_DOCUMENTS; i++)
        s->seqs[i] = (qr_seq){s->ids.ids.id + s->ids.start[i], s->ids.start[i + 1] - s->ids.start[i], 0};
    s->sample = (qr_sample){.text = text,
                            .text_ids = s->text_ids.id,
                            .n_text_ids = s->text_ids.n,
                            .prompts = {&s->prefix, 1, s->seqs, QR_SAMPLE_DOCUMENTS, NULL}};
    return QR_OK;
}

void qr_sample_deinit(qr_sample_store *s)
{
    qr_ids_deinit(&s->text_ids);
    qr_prompt_ids_deinit(&s->ids);
}
