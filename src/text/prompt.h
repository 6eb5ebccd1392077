/* The prompt of a reranker: which token ids stand for (instruction, query, document).
 *
 * A prompt is  prefix | head | document tail | suffix.  Prefix and head are the same for all documents of a query, so the ids of
 * prefix + head form the shared part that backends compute once. Splitting there is exact: the tokenizer never merges across the
 * boundary (for the canonical template by the argument in prompt.c; for others the split is found by comparing whole encodings).
 */
#ifndef QR_TEXT_PROMPT_H
#define QR_TEXT_PROMPT_H

#include "text/tokenizer.h"

/* What the models were trained with (Qwen3-Reranker's model card). */
#define QR_PROMPT_PREFIX                                                                                                                   \
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "                           \
    "provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n"
#define QR_PROMPT_INSTRUCTION "Given a web search query, retrieve relevant passages that answer the query"
#define QR_PROMPT_QUERY "<Instruct>: {instruction}\n<Query>: {query}\n"
#define QR_PROMPT_DOCUMENT "<Document>: {document}"
#define QR_PROMPT_SUFFIX "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

typedef struct qr_prompt qr_prompt;

/* Uses the prompt fields of `options` (NULL fields: canonical). The tokenizer is borrowed for the prompt's life. Checks that the yes and
 * no labels are single tokens and, for the canonical strings, that prefix and suffix give the ids that the model was trained with (when
 * the vocabulary is the full Qwen3 one). */
qr_status qr_prompt_open(qr_prompt **out, const qr_tokenizer *tok, const qr_options *options, qr_error *err);
void qr_prompt_close(qr_prompt *prompt);

uint32_t qr_prompt_yes_id(const qr_prompt *prompt);
uint32_t qr_prompt_no_id(const qr_prompt *prompt);
int qr_prompt_is_canonical(const qr_prompt *prompt);

/* The token ids of one query with all its documents. Filled by qr_prompt_build, freed by qr_prompt_ids_deinit; may be reused. */
typedef struct qr_prompt_ids {
    qr_ids ids;      /* shared ids first, then every document's own ids (tail and suffix), back to back */
    size_t n_shared; /* ids[0 .. n_shared) belong to every prompt */
    size_t *start;   /* [n_documents + 1]: document d owns ids[start[d] .. start[d + 1]); start[0] == n_shared */
    uint32_t *flags; /* [n_documents]: QR_RESULT_TRUNCATED, QR_RESULT_REPLACED */
    size_t n_documents, capacity;
} qr_prompt_ids;

/* Builds all prompts of `query`. max_length, or query->max_length if that is lower and not 0, limits the whole prompt in tokens: the
 * document is cut, as query->truncation and query->max_document_tokens say, nothing else ever is. A prefix, head and suffix that alone
 * exceed it: E_TOO_LONG naming both lengths. */
qr_status qr_prompt_build(const qr_prompt *prompt, const qr_query *query, size_t max_length, qr_prompt_ids *out, qr_error *err);
void qr_prompt_ids_deinit(qr_prompt_ids *ids);

#endif
