/* Which folder a model name means. Reads the Hugging Face cache that Python tools share; never downloads and never writes. */
#ifndef QR_MODEL_LOCATE_H
#define QR_MODEL_LOCATE_H

#include "base/error.h"

/* name: QR_BUILTIN, whatever folders there are; an existing folder or .gguf file, taken as it is; ORG/NAME or ORG/NAME@REVISION, looked up
 * in the cache; 0.6b, 4b or 8b, short for Qwen/Qwen3-Reranker-0.6B and so on; or NULL: the environment's QWEN_RERANK_MODEL_ID if set, else
 * the smallest of these three that is in the cache, else QR_BUILTIN if this build has it. A name never leads to another model than the one
 * it names. The caller frees *dir with qr_free. QR_E_NOT_FOUND says how to get the model. */
qr_status qr_model_locate(const char *name, char **dir, qr_error *err);

#endif
