/* See replica.h. */
#include "engine/replica.h"

void qr_replica_write(qr_json_out *json, const qr_replica *r)
{
    const char *const texts[][2] = {
        {"name", r->name},       {"state", r->state}, {"reason", r->reason},     {"address", r->address},
        {"version", r->version}, {"model", r->model}, {"protocol", r->protocol}, {"protocol_reason", r->why_protocol}};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (texts[i][1][0] != 0) qr_out_string(json, texts[i][0], texts[i][1]);
    if (r->max_model_len > 0) qr_out_int(json, "max_model_len", r->max_model_len);
    if (r->sample_seconds > 0) qr_out_real(json, "known_prompts_seconds", r->sample_seconds, 4);
}
