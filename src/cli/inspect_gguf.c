/* See inspect_gguf.h. */
#define _GNU_SOURCE
#include "cli/inspect_gguf.h"

#include "cli/output.h"
#include "text/prompt.h"

#include <stdio.h>
#include <string.h>

/* The template that llama.cpp's converter puts into a reranker. The prompt used here is the engine's own, whatever the file says. */
static const char canonical[] = QR_PROMPT_PREFIX
    "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n<Query>: {query}\n<Document>: "
    "{document}" QR_PROMPT_SUFFIX;

static const struct {
    const char *label, *key;
} texts[] = {{"name", "general.name"},       {"quantized_by", "general.quantized_by"},    {"source", "general.source.url"},
             {"license", "general.license"}, {"tokenizer_model", "tokenizer.ggml.model"}, {"tokenizer_pre", "tokenizer.ggml.pre"}};
static const struct {
    const char *label, *key;
} numbers[] = {
    {"file_type", "general.file_type"}, {"quantization_version", "general.quantization_version"}, {"pooling_type", "qwen3.pooling_type"}};
enum { N_TEXTS = sizeof texts / sizeof texts[0], N_NUMBERS = sizeof numbers / sizeof numbers[0] };

const char *cli_head_text(const qr_model *model)
{
    if (model->head_is_pair)
        return model->pair_swapped ? "cls.output, rows swapped: they contradict their labels and are used as what they are" : "cls.output";
    return model->head == model->embed ? "tied to the embedding" : "its own";
}

static const char *template_text(const qr_model *model)
{
    const qr_gguf_key *key = qr_gguf_find(&model->gguf, "tokenizer.chat_template.rerank");
    return key == NULL ? "none" : qr_gguf_is(key, canonical) ? "canonical" : "another";
}

void cli_gguf_print(const qr_model *model)
{
    char text[256];
    uint64_t number;
    printf("format       GGUF version %u", model->gguf.version);
    for (size_t i = 0; i < N_NUMBERS; i++)
        if (qr_gguf_uint(qr_gguf_find(&model->gguf, numbers[i].key), &number))
            printf(", %s %llu", numbers[i].label, (unsigned long long) number);
    printf("\n");
    for (size_t i = 0; i < N_TEXTS; i++) {
        qr_text value = qr_gguf_string(qr_gguf_find(&model->gguf, texts[i].key));
        if (value.len == 0) continue;
        cli_text_safe(text, sizeof text, value.data, value.len, CLI_SAFE_ALL);
        printf("  %-20s %s\n", texts[i].label, text);
    }
    printf("template     %s in the file; the prompt used is this program's own\n", template_text(model));
}

void cli_gguf_json(qr_json_out *json, const qr_model *model)
{
    char text[1024];
    uint64_t number;
    qr_out_open(json, "gguf", '{');
    qr_out_int(json, "version", model->gguf.version);
    for (size_t i = 0; i < N_NUMBERS; i++)
        if (qr_gguf_uint(qr_gguf_find(&model->gguf, numbers[i].key), &number)) qr_out_int(json, numbers[i].label, number);
    for (size_t i = 0; i < N_TEXTS; i++) {
        qr_text value = qr_gguf_string(qr_gguf_find(&model->gguf, texts[i].key));
        if (value.len == 0) continue;
        cli_text_safe(text, sizeof text, value.data, value.len, CLI_SAFE_ALL);
        qr_out_string(json, texts[i].label, text);
    }
    qr_out_string(json, "head", model->head_is_pair ? "cls.output" : model->head == model->embed ? "token_embd" : "output");
    qr_out_bool(json, "head_rows_swapped", model->pair_swapped);
    qr_out_string(json, "rerank_template", template_text(model));
    qr_out_close(json, '}');
}
