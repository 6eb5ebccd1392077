/* The forward pass of a Qwen3 model on the CPU, for prefill only: every prompt is seen once and only its last position is asked for. */
#ifndef QR_CPU_FORWARD_H
#define QR_CPU_FORWARD_H

#include "cpu/int8.h"
#include "cpu/packed_model.h"
#include "cpu/prefix_cache.h"
#include "engine/backend.h"

typedef struct qr_forward qr_forward;

/* One sequence of a pass. A prefix that is computed in the same pass comes before the sequences that attend to it. */
typedef struct qr_fwd_seq {
    const uint32_t *ids; /* [n_ids] */
    size_t n_ids;
    const qr_prefix_kv *prefix; /* keys that every token sees; NULL: none. Positions go on where the prefix ends */
    qr_prefix_kv *fill;         /* not NULL: this is a prefix from key fill->n_ready on; K and V go there and it has no logits */
    qr_logits *out;             /* else: its logits */
} qr_fwd_seq;

/* All memory of the passes, for at most max_tokens tokens each. */
qr_status qr_forward_open(qr_forward **out, const qr_packed_model *model, int n_threads, size_t max_tokens, qr_error *err);
void qr_forward_close(qr_forward *fw);
size_t qr_forward_bytes(const qr_forward *fw); /* planned; what is never touched takes no memory */

/* 1 if a sequence of n_ids tokens can join a pass of n_seqs sequences with n_tokens tokens and n_slots key slots. */
int qr_forward_fits(const qr_forward *fw, size_t n_seqs, size_t n_tokens, size_t n_slots, size_t n_ids);

/* Runs the sequences through the model. E_CANCELLED leaves outputs and fills undefined. */
qr_status qr_forward_run(qr_forward *fw, const qr_fwd_seq *seqs, size_t n_seqs, const volatile int *cancel, qr_error *err);

/* Seconds of all passes by stage, the mean over the threads: they sum to the time of the passes. */
void qr_forward_stages(const qr_forward *fw, double seconds[QR_N_STAGES]);
void qr_forward_clear_stages(qr_forward *fw);

/* From now on passes show the plan what their products read. NULL: no more. */
void qr_forward_observe(qr_forward *fw, qr_int8_plan *plan);

#endif
