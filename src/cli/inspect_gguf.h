/* What inspect says of a GGUF file beyond what it says of any model. */
#ifndef QR_CLI_INSPECT_GGUF_H
#define QR_CLI_INSPECT_GGUF_H

#include "base/json_out.h"
#include "model/weights.h"

/* Of any model: where its rows for yes and no come from. */
const char *cli_head_text(const qr_model *model);
void cli_gguf_print(const qr_model *model);
void cli_gguf_json(qr_json_out *json, const qr_model *model);

#endif
