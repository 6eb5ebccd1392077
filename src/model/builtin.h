/* The model that is part of the program: a small one, trained for this project (docs/BUILTIN.md), so that the program does its job offline
 * from the first moment. Its files are those of any model folder, put into the read-only data by the assembler (builtin.c); everything that
 * reads a model by folder name reads it by the name "builtin".
 */
#ifndef QR_MODEL_BUILTIN_H
#define QR_MODEL_BUILTIN_H

#include "base/file.h"
#include "text/tokenizer.h"

/* The name. A folder of that name is ./builtin. */
#define QR_BUILTIN "builtin"
#define QR_BUILTIN_TITLE "built-in demo model"

/* One sentence for people who find themselves using it. */
#define QR_BUILTIN_NOTE                                                                                                                    \
    "using the " QR_BUILTIN_TITLE                                                                                                          \
    ", which is small and far weaker than Qwen3-Reranker; `qwen-rerank pull 0.6b` gets the real one, which is "                            \
    "then the default"

/* 1 if `model` is that name, whether or not this build has the model. */
int qr_is_builtin(const char *model);
/* 1 if this build has it. */
int qr_builtin_present(void);
/* Bytes of all its files, 0 if this build has it not. */
size_t qr_builtin_bytes(void);
/* *file = "config.json", "tokenizer.json" or "model.safetensors", borrowed for ever. E_NOT_FOUND where the build has no such model. */
qr_status qr_builtin_file(qr_file *file, const char *name, qr_error *err);

/* The tokenizer of a model, of a folder, a GGUF file or built in; close with qr_tok_close. */
qr_status qr_model_tokenizer_open(qr_tokenizer **out, const char *model, qr_error *err);

#endif
