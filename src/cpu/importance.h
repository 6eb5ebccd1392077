/* What the products of a model read on some prompts: how much each column of their inputs weighs. A weight's error matters as much as what
 * it is multiplied by, so quantising wants to know. */
#ifndef QR_CPU_IMPORTANCE_H
#define QR_CPU_IMPORTANCE_H

#include "cpu/int8.h"
#include "engine/backend.h"

/* Runs cfg.calibration through the model in f32; plan->inputs[..].squares are then filled. Close the plan with qr_int8_plan_close. */
qr_status qr_find_importance(qr_int8_plan *plan, const qr_backend_cfg *cfg, qr_error *err);

#endif
