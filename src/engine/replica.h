/* Servers behind a backend, as JSON. */
#ifndef QR_ENGINE_REPLICA_H
#define QR_ENGINE_REPLICA_H

#include "base/json_out.h"
#include "engine/backend.h"

/* What it is and how it is asked, as members of the object that is open; what is not known is left out. */
void qr_replica_write(qr_json_out *json, const qr_replica *replica);

#endif
