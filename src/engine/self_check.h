/* A check that a backend computes the right thing here: a tiny model with known scores, which runs in milliseconds. Foreign libraries
 * change from version to version, and a GPU may have a kernel that is wrong for one shape; a score that is not right is worse than none.
 */
#ifndef QR_ENGINE_SELF_CHECK_H
#define QR_ENGINE_SELF_CHECK_H

#include "engine/backend.h"

/* Opens the backend with that model, scores sequences of many lengths with and without shared prefixes, and compares. *worst: the largest
 * |margin - reference|, if it came to scores. E_BACKEND if that is more than rounding in that type explains; else what the backend says. */
qr_status qr_self_check(const qr_backend_ops *ops, const qr_backend_place *place, qr_dtype dtype, qr_switch flash_attention, double *worst,
                        qr_error *err);

#endif
