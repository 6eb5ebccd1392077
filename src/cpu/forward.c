/* Forward pass over a packed batch, layer by layer and, within a layer, chunk by chunk of rows.
 *
 * All tokens of the batch stand side by side without padding: x [n_tokens, hidden] f32 is the residual stream. A layer works on chunks
 * of CHUNK_ROWS rows so that the activations of a chunk stay in the cache while the layer's weights pass over them; since attention is
 * causal, a chunk needs no keys beyond its own end, and a sequence may be longer than a chunk. K and V live for one layer only, except
 * those of shared prefixes (prefix_cache.h). In the last layer only the last token of each sequence goes past K and V.
 *
 * Every step treats rows alone or reads keys of the row's own sequence in a fixed order, so a score does not depend on the batch, on
 * its order or on the number of threads. One OpenMP team runs the whole pass; nothing is allocated in it.
 *
 * K and V of a sequence with `slots` key slots, one layer: kt [n_kv_heads][slots / 16 blocks], v [n_kv_heads][slots]; in a head as
 * kernels.h has it, in bf16 where products are, else in f32.
 */
#include "cpu/forward.h"

#include "base/mem.h"
#include "base/system.h"
#include "cpu/features.h"
#include "cpu/kernels.h"

#include <math.h>
#include <omp.h>
#include <string.h>

enum {
    /* At 0.6B shapes 2 to 8 MB of activations of each kind; a layer's 31 MB of weights come from memory once per chunk, which 512 rows hide
     * less well where the units are fast (2 % on a Zen 5, SPEED.md), and 2,048 no better. */
    CHUNK_ROWS = 1024,
    ITEM_ROWS = 32,      /* query rows of one attention task: enough to reuse K and V, few enough to balance threads */
    MAX_BLOCKS = 24,     /* of memory */
    MAX_HEAD_DIM = 1024, /* the largest that config.c lets through */
};
_Static_assert(CHUNK_ROWS % QR_TILE_ROWS == 0, "chunk buffers hold whole tiles");

typedef struct seq_state {
    size_t start, n; /* tokens [start, start + n) of the pass */
    size_t held;     /* of a prefix: keys that are there already, before the first token */
    size_t slots;    /* held + n rounded up to QR_KEY_BLOCK */
    size_t slot0;    /* first slot in the per-layer buffers */
    size_t position; /* of the first token */
    const qr_prefix_kv *prefix;
    qr_prefix_kv *fill;
    qr_logits *out;
} seq_state;

typedef struct item {          /* an attention task: some rows of one sequence; every KV head is a task of its own */
    uint32_t seq, row, n_rows; /* row: within the chunk */
    uint32_t first;            /* index of the first row's token in its sequence */
} item;

/* What a thread has spent, by stage; a cache line or more to itself. */
typedef struct stage_clock {
    _Alignas(64) double seconds[QR_N_STAGES];
    double last; /* when it was last brought up to date */
} stage_clock;

struct qr_forward {
    const qr_packed_model *model;
    const qr_kernels *kernels;
    qr_attend_fn attend;
    int n_threads;
    int bf16;
    size_t es; /* bytes of an activation that feeds a product, and of an element of K or V */
    size_t v_stride;
    size_t max_tokens, max_slots, max_seqs, max_items;
    float *x;              /* [max_tokens, hidden] */
    float *tail_x;         /* [max_seqs, hidden]: rows of last tokens in the last layer */
    unsigned char *kt, *v; /* one layer's keys and values, max_slots slots */
    unsigned char *q;      /* [n_kv_heads][CHUNK_ROWS][heads of a group][head_dim], in f32 or bf16 as K and V, and room for reading on */
    qr_rows a;             /* [CHUNK_ROWS, hidden] normed rows */
    qr_rows o;             /* [CHUNK_ROWS, n_heads * head_dim] attention output */
    qr_rows h;             /* [CHUNK_ROWS, inter] */
    qr_rows eight;         /* [CHUNK_ROWS, widest] in int8: what the products read then, made of one of the three before each */
    float *wide;           /* [n_threads][widest]: a row on its way there */
    int int8;
    size_t widest;         /* row that a product reads */
    size_t half_l2;        /* bytes: what rows may take of the second-level cache, beside weights */
    qr_int8_plan *seen_by; /* passes are observed, or NULL */
    int8_t *spare;         /* [widest] */
    float *tiles;          /* [n_threads][QR_TILE_ROWS][widest block] */
    float *attend_scratch; /* [n_threads][...] */
    size_t tile_floats, attend_floats;
    seq_state *seqs;      /* [max_seqs] */
    uint32_t *token_seq;  /* [max_tokens] */
    uint32_t *tail_token; /* [max_seqs]: the token of each tail row */
    uint32_t *ids;        /* [max_tokens] */
    item *items;          /* [max_items] of all chunks, then one per tail */
    size_t *chunk_items;  /* [n_chunks + 1] */
    stage_clock *clocks;  /* [n_threads] */
    double begin;         /* of the pass */
    size_t n_seqs, n_tokens, n_tails, n_chunks, n_tail_items;
    size_t bytes;
    struct block {
        void **at;
        size_t bytes;
    } blocks[MAX_BLOCKS]; /* what to free */
    size_t n_blocks;
    int stop;
};

static size_t round_up(size_t x, size_t to) { return (x + to - 1) / to * to; }

/* ---- memory ------------------------------------------------------------------------------------------------------------------- */

static int reserve(qr_forward *fw, void *pointer_to_array, size_t n, size_t size)
{
    size_t bytes;
    void **at = pointer_to_array;
    if (fw->n_blocks == MAX_BLOCKS || __builtin_mul_overflow(n, size, &bytes) || (*at = qr_pages_alloc(bytes)) == NULL) return 0;
    fw->blocks[fw->n_blocks++] = (struct block){at, bytes};
    fw->bytes += bytes;
    return 1;
}

/* CHUNK_ROWS rows of n elements; what lies past n stays zero. */
static int reserve_rows(qr_forward *fw, qr_rows *rows, size_t n)
{
    *rows = qr_gemm_lib_rows(fw->model->lib, n);
    return reserve(fw, &rows->data, CHUNK_ROWS * rows->width, fw->es);
}

qr_status qr_forward_open(qr_forward **out, const qr_packed_model *model, int n_threads, size_t max_tokens, qr_error *err)
{
    const qr_config *c = model->config;
    *out = NULL;
    qr_forward *fw = qr_calloc(1, sizeof *fw);
    if (fw == NULL) return qr_fail(err, QR_E_MEMORY, "no memory for the forward pass");
    fw->model = model;
    fw->kernels = qr_kernels_get();
    fw->n_threads = n_threads;
    fw->bf16 = qr_gemm_lib_is_bf16(model->lib);
    fw->int8 = qr_gemm_lib_type(model->lib) == QR_GEMM_INT8;
    fw->es = fw->bf16 ? 2 : 4;
    fw->attend = fw->bf16 ? qr_gemm_lib_attend(model->lib, c->head_dim) : fw->kernels->attend;
    fw->v_stride = round_up(c->head_dim, QR_KEY_BLOCK);
    fw->half_l2 = qr_cpu_get()->l2_bytes / 2;
    fw->max_tokens = max_tokens;
    fw->max_slots = 2 * round_up(max_tokens, QR_KEY_BLOCK); /* one long sequence, or many of 16 tokens on average */
    fw->max_seqs = max_tokens;
    size_t n_chunks = (max_tokens + CHUNK_ROWS - 1) / CHUNK_ROWS;
    /* a sequence begins an item, so does every ITEM_ROWS-th row, and so does every chunk; tails add one each */
    fw->max_items = 2 * fw->max_seqs + max_tokens / ITEM_ROWS + n_chunks + 1;
    const qr_packed_layer *l = &model->layers[0];
    size_t widest = l->q.nb;
    const qr_gemm *others[] = {&l->kv, &l->o, &l->gate_up, &l->down};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        if (others[i]->nb > widest) widest = others[i]->nb;
    fw->tile_floats = QR_TILE_ROWS * widest;
    fw->attend_floats = round_up(qr_attend_scratch(fw->v_stride), 16);
    size_t q_width = c->n_heads * c->head_dim, threads = (size_t) n_threads;
    fw->widest = q_width > c->inter ? q_width : c->inter;
    if (c->hidden > fw->widest) fw->widest = c->hidden;
    size_t eight_rows = fw->int8 ? CHUNK_ROWS : 1;
    fw->eight = qr_gemm_lib_operand(model->lib, fw->widest);
    int ok = reserve(fw, &fw->x, max_tokens * c->hidden, sizeof(float)) &&
             reserve(fw, &fw->tail_x, fw->max_seqs * c->hidden, sizeof(float)) &&
             reserve(fw, &fw->kt, fw->max_slots * c->n_kv_heads * c->head_dim, fw->es) &&
             reserve(fw, &fw->v, fw->max_slots * c->n_kv_heads * fw->v_stride, fw->es) && reserve_rows(fw, &fw->a, c->hidden) &&
             reserve(fw, &fw->q, CHUNK_ROWS * q_width + QR_ATTEND_ROWS * c->head_dim, fw->es) && reserve_rows(fw, &fw->o, q_width) &&
             reserve_rows(fw, &fw->h, c->inter) && reserve(fw, &fw->tiles, threads * fw->tile_floats, sizeof(float)) &&
             reserve(fw, &fw->attend_scratch, threads * fw->attend_floats, sizeof(float)) &&
             reserve(fw, &fw->seqs, fw->max_seqs, sizeof *fw->seqs) && reserve(fw, &fw->token_seq, max_tokens, sizeof(uint32_t)) &&
             reserve(fw, &fw->tail_token, fw->max_seqs, sizeof(uint32_t)) && reserve(fw, &fw->ids, max_tokens, sizeof(uint32_t)) &&
             reserve(fw, &fw->items, fw->max_items, sizeof *fw->items) && reserve(fw, &fw->chunk_items, n_chunks + 1, sizeof(size_t)) &&
             reserve(fw, &fw->clocks, threads, sizeof *fw->clocks) && reserve(fw, &fw->wide, threads, fw->widest * sizeof(float)) &&
             reserve(fw, &fw->spare, fw->widest, 1) && reserve(fw, &fw->eight.data, eight_rows, fw->eight.width) &&
             reserve(fw, &fw->eight.scales, eight_rows, sizeof(float));
    if (!ok) {
        qr_forward_close(fw);
        return qr_fail(err, QR_E_MEMORY, "no memory for the activations of %zu tokens", max_tokens);
    }
    *out = fw;
    return QR_OK;
}

void qr_forward_close(qr_forward *fw)
{
    if (fw == NULL) return;
    for (size_t i = 0; i < fw->n_blocks; i++) qr_pages_free(*fw->blocks[i].at, fw->blocks[i].bytes);
    qr_free(fw);
}

size_t qr_forward_bytes(const qr_forward *fw) { return fw->bytes; }

int qr_forward_fits(const qr_forward *fw, size_t n_seqs, size_t n_tokens, size_t n_slots, size_t n_ids)
{
    return n_seqs < fw->max_seqs && n_tokens <= fw->max_tokens && n_ids <= fw->max_tokens - n_tokens &&
           round_up(n_ids, QR_KEY_BLOCK) <= fw->max_slots - n_slots;
}

/* ---- where the time goes ------------------------------------------------------------------------------------------------------ */

/* The thread's time since the last call was spent on `stage`. */
static void spent(qr_forward *fw, int thread, qr_stage stage)
{
    stage_clock *clock = &fw->clocks[thread];
    double now = qr_now();
    clock->seconds[stage] += now - clock->last;
    clock->last = now;
}

/* Ends a stage: waits for the other threads. */
static void meet(qr_forward *fw, int thread, qr_stage stage)
{
    spent(fw, thread, stage);
#pragma omp barrier
    spent(fw, thread, QR_STAGE_IDLE);
}

void qr_forward_stages(const qr_forward *fw, double seconds[QR_N_STAGES])
{
    for (size_t i = 0; i < QR_N_STAGES; i++) {
        seconds[i] = 0;
        for (int t = 0; t < fw->n_threads; t++) seconds[i] += fw->clocks[t].seconds[i] / fw->n_threads;
    }
}

void qr_forward_clear_stages(qr_forward *fw) { memset(fw->clocks, 0, (size_t) fw->n_threads * sizeof *fw->clocks); }

/* ---- products ----------------------------------------------------------------------------------------------------------------- */

/* One matrix over the rows of a chunk. `store` takes each finished tile while it is hot. */
typedef struct job {
    qr_forward *fw;
    const qr_packed_layer *layer;
    size_t layer_index;
    const qr_gemm *gemm;
    qr_rows a; /* [n_rows, gemm->k] */
    size_t n_rows;
    float *x;           /* residual rows of the chunk, [n_rows, hidden] */
    size_t first_token; /* token of row 0, unless row_token is set */
    const uint32_t *row_token;
    void (*store)(const struct job *job, size_t block, size_t row0, size_t n_rows, const float *c /* [n_rows][nb] */);
} job;

static size_t token_of(const job *j, size_t row) { return j->row_token ? j->row_token[row] : j->first_token + row; }

/* How a product is cut. On AMX, tiles of A that fit the second-level cache together are a group, over which all blocks of weights pass
 * before the next group comes: a block is then fetched once per group instead of every tile of A once per block. At 2 Tflop/s a core, 64
 * rows of 1,024 inputs, 128 KiB, last 8 us: 16 GB/s, about all that a core gets from the third level. Units that are slower do not notice,
 * and lose 2 % by it (Zen 5, 2026-11-27). */
typedef struct cut {
    size_t n_tiles, n_blocks;
    size_t group_tiles; /* but in the last group */
    size_t unit_tiles;  /* in a row under one block; 1, or a whole group where each thread that meets a block must unpack it */
} cut;

static cut cut_product(const job *j)
{
    const qr_gemm *g = j->gemm;
    cut c = {.n_tiles = (j->n_rows + QR_TILE_ROWS - 1) / QR_TILE_ROWS, .n_blocks = g->n_blocks, .unit_tiles = 1};
    size_t fit = j->fw->half_l2 / (QR_TILE_ROWS * j->a.width * qr_gemm_type_size(qr_gemm_lib_type(j->fw->model->lib)));
    /* A block is nb / 64 times as large as a tile of A: fewer tiles than that are better fetched again. */
    c.group_tiles = j->a.tiled && fit * QR_TILE_ROWS > g->nb && fit < c.n_tiles ? fit : c.n_tiles;
    if (g->data == NULL) { /* about two units for each thread */
        size_t groups = (2 * (size_t) j->fw->n_threads + c.n_blocks - 1) / c.n_blocks;
        c.unit_tiles = c.group_tiles = groups < c.n_tiles ? (c.n_tiles + groups - 1) / groups : 1;
    }
    return c;
}

static size_t n_units(const cut *c)
{
    size_t whole = c->n_tiles / c->group_tiles, rest = c->n_tiles % c->group_tiles;
    return c->n_blocks * (whole * (c->group_tiles / c->unit_tiles) + (rest + c->unit_tiles - 1) / c->unit_tiles);
}

/* Unit u is tiles [*tile, return value) under *block. */
static size_t find_unit(const cut *c, size_t u, size_t *block, size_t *tile)
{
    size_t per_group = c->n_blocks * (c->group_tiles / c->unit_tiles), first = u / per_group * c->group_tiles;
    size_t in_group = c->n_tiles - first < c->group_tiles ? c->n_tiles - first : c->group_tiles;
    size_t per_block = (in_group + c->unit_tiles - 1) / c->unit_tiles;
    u %= per_group;
    *block = u / per_block;
    *tile = first + u % per_block * c->unit_tiles;
    return first + in_group - *tile < c->unit_tiles ? first + in_group : *tile + c->unit_tiles;
}

/* Units of the next task where `left` remain: less and less, so that at the end nobody waits long for a core that is slower or shared. */
static size_t task_size(size_t left, int n_threads)
{
    size_t n = left / (4 * (size_t) n_threads);
    return n > 0 ? n : 1;
}

/* Shares out the units over the team; returns without a barrier. */
static void multiply(const job *j, int thread)
{
    qr_forward *fw = j->fw;
    const qr_gemm *g = j->gemm;
    qr_gemm_lib *lib = fw->model->lib;
    float *c = fw->tiles + (size_t) thread * fw->tile_floats;
    const cut whole = cut_product(j);
    size_t units = n_units(&whole), n_tasks = 0, seen = 0, begin = 0;
    for (size_t left = units; left > 0; n_tasks++) left -= task_size(left, fw->n_threads);
#pragma omp for schedule(monotonic : dynamic) nowait /* a thread finds its next task from the one before */
    for (size_t task = 0; task < n_tasks; task++) {
        for (; seen < task; seen++) begin += task_size(units - begin, fw->n_threads);
        size_t end = begin + task_size(units - begin, fw->n_threads), at_hand = SIZE_MAX;
        const void *w = NULL;
        for (size_t u = begin; u < end; u++) {
            size_t block, tile, last = find_unit(&whole, u, &block, &tile) * QR_TILE_ROWS;
            if (block != at_hand) w = qr_gemm_block(g, lib, thread, at_hand = block);
            if (last > j->n_rows) last = j->n_rows;
            for (size_t row = tile * QR_TILE_ROWS; row < last;) {
                size_t rows = qr_gemm_tile_rows(g, last - row), valid = rows < last - row ? rows : last - row;
                qr_gemm_tile(g, lib, thread, c, &j->a, row, w, rows);
                j->store(j, block, row, valid, c);
                row += valid;
            }
        }
    }
}

/* x += tile, for o_proj and down_proj */
static void store_residual(const job *j, size_t block, size_t row0, size_t n_rows, const float *c)
{
    size_t hidden = j->fw->model->config->hidden, nb = j->gemm->nb, column = block * nb;
    size_t n = hidden - column < nb ? hidden - column : nb;
    for (size_t r = 0; r < n_rows; r++) j->fw->kernels->add(j->x + (row0 + r) * hidden + column, c + r * nb, n);
}

/* h = silu(gate) * up: a block holds the gates of some columns and the ups of the same */
static void store_swiglu(const job *j, size_t block, size_t row0, size_t n_rows, const float *c)
{
    qr_forward *fw = j->fw;
    size_t inter = fw->model->config->inter, half = fw->model->gate_up_half, column = block * half, nb = j->gemm->nb;
    size_t n = inter - column < half ? inter - column : half;
    fw->kernels->swiglu(&fw->h, row0, n_rows, column, c, nb, half, n);
}

static size_t position_of(const qr_forward *fw, size_t token)
{
    const seq_state *s = &fw->seqs[fw->token_seq[token]];
    return s->position + token - s->start;
}

/* The query vectors of a row that read one KV head. */
static unsigned char *q_at(const qr_forward *fw, size_t kv_head, size_t row)
{
    const qr_config *c = fw->model->config;
    return fw->q + (kv_head * CHUNK_ROWS + row) * (c->n_heads / c->n_kv_heads * c->head_dim * fw->es);
}

/* q heads: RMSNorm and RoPE, into q */
static void store_q(const job *j, size_t block, size_t row0, size_t n_rows, const float *c)
{
    qr_forward *fw = j->fw;
    const qr_packed_model *m = fw->model;
    size_t hd = m->config->head_dim, n_heads = m->config->n_heads, group = n_heads / m->config->n_kv_heads, half = hd / 2;
    for (size_t r = 0; r < n_rows; r++) {
        size_t position = position_of(fw, token_of(j, row0 + r));
        for (size_t i = 0, head = block * m->heads_per_block; i < m->heads_per_block && head < n_heads; i++, head++)
            fw->kernels->norm_rope((qr_row){q_at(fw, head / group, row0 + r) + head % group * hd * fw->es, fw->bf16, QR_LINE},
                                   c + r * j->gemm->nb + i * hd, j->layer->q_norm, m->cosines + position * half, m->sines + position * half,
                                   hd, m->config->rms_eps);
    }
}

/* Where the current layer's K and V of a sequence are. */
static void kv_of(const qr_forward *fw, const seq_state *s, size_t layer, unsigned char **kt, unsigned char **v)
{
    const qr_config *c = fw->model->config;
    size_t k_slot = c->n_kv_heads * c->head_dim * fw->es, v_slot = c->n_kv_heads * fw->v_stride * fw->es;
    if (s->fill != NULL) {
        *kt = s->fill->kt + layer * s->fill->n_slots * k_slot;
        *v = s->fill->v + layer * s->fill->n_slots * v_slot;
    } else {
        *kt = fw->kt + s->slot0 * k_slot;
        *v = fw->v + s->slot0 * v_slot;
    }
}

/* An element of K or V of a slot goes to [element][slot in its block] or [slot][element]; in bf16, pairs stand together (kernels.h). Either
 * way a key is moved in pieces of four bytes. */
static void put_key(const qr_forward *fw, unsigned char *head, size_t slot, const uint32_t *key)
{
    size_t n = fw->model->config->head_dim * fw->es / sizeof *key, in_block = slot % QR_KEY_BLOCK;
    uint32_t *to = (uint32_t *) (void *) head + (slot - in_block) * n + in_block;
    for (size_t d = 0; d < n; d++) to[d * QR_KEY_BLOCK] = key[d];
}

static void put_value(const qr_forward *fw, unsigned char *head, size_t slot, const float *value)
{
    size_t hd = fw->model->config->head_dim;
    if (fw->bf16) {
        fw->kernels->spread_bf16((uint16_t *) (void *) head + slot / 2 * 2 * fw->v_stride + slot % 2, value, hd);
    } else {
        memcpy((float *) (void *) head + slot * fw->v_stride, value, hd * sizeof *value);
    }
}

/* k heads: RMSNorm and RoPE; v heads: as they are */
static void store_kv(const job *j, size_t block, size_t row0, size_t n_rows, const float *c)
{
    qr_forward *fw = j->fw;
    const qr_packed_model *m = fw->model;
    size_t hd = m->config->head_dim, n_kv = m->config->n_kv_heads, half = hd / 2;
    uint32_t key[MAX_HEAD_DIM]; /* of f32, or of pairs of bf16 */
    for (size_t r = 0; r < n_rows; r++) {
        size_t token = token_of(j, row0 + r), position = position_of(fw, token);
        const seq_state *s = &fw->seqs[fw->token_seq[token]];
        size_t slot = s->held + token - s->start;
        unsigned char *kt, *v;
        kv_of(fw, s, j->layer_index, &kt, &v);
        for (size_t i = 0, head = block * m->heads_per_block; i < m->heads_per_block && head < 2 * n_kv; i++, head++) {
            const float *from = c + r * j->gemm->nb + i * hd;
            if (head >= n_kv) {
                put_value(fw, v + (head - n_kv) * s->slots * fw->v_stride * fw->es, slot, from);
                continue;
            }
            fw->kernels->norm_rope((qr_row){key, fw->bf16, QR_LINE}, from, j->layer->k_norm, m->cosines + position * half,
                                   m->sines + position * half, hd, m->config->rms_eps);
            put_key(fw, kt + head * s->slots * hd * fw->es, slot, key);
        }
    }
}

/* ---- 8 bits ------------------------------------------------------------------------------------------------------------------- */

/* What `gemm` reads: the one buffer, in rows as long as these. */
static qr_rows rows_of_eight(const qr_forward *fw, const qr_gemm *gemm)
{
    qr_rows rows = qr_gemm_lib_operand(fw->model->lib, gemm->k);
    rows.data = fw->eight.data;
    rows.scales = fw->eight.scales;
    return rows;
}

/* Row r of it, from `wide`, which is lost. */
static void quantize_row(qr_forward *fw, size_t r, float *wide, const qr_gemm *gemm)
{
    qr_rows rows = rows_of_eight(fw, gemm);
    rows.scales[r] = fw->kernels->quantize(qr_row_at(&rows, r), wide, gemm->k, gemm->factors, gemm->rotation);
}

static void widen_row(const qr_forward *fw, const qr_rows *rows, size_t r, float *to, size_t n)
{
    qr_row row = qr_row_at(rows, r);
    if (!row.bf16) memcpy(to, row.at, n * sizeof *to);
    else
        for (size_t i = 0; i < n; i += QR_LINE)
            fw->kernels->widen_bf16(to + i, (const uint16_t *) row.at + i / QR_LINE * row.line, n - i < QR_LINE ? n - i : QR_LINE);
}

void qr_forward_observe(qr_forward *fw, qr_int8_plan *plan) { fw->seen_by = plan; }

/* On one thread, so that the sums, and what is chosen by them, are always the same. */
static void observe(const job *j, const qr_rows *rows, qr_layer_input input)
{
    qr_forward *fw = j->fw;
#pragma omp single
    for (size_t r = 0; r < j->n_rows; r++) {
        widen_row(fw, rows, r, fw->wide, j->gemm->k);
        qr_int8_see(fw->seen_by, qr_int8_plan_at(fw->seen_by, j->layer_index, input), fw->wide, fw->spare);
    }
}

/* Brings the rows that j.gemm is to read into the form that it reads. */
static void ready_rows(job *j, const qr_rows *rows, qr_layer_input input, int thread, qr_stage stage)
{
    qr_forward *fw = j->fw;
    if (fw->seen_by != NULL) observe(j, rows, input);
    j->a = *rows;
    if (!fw->int8) return;
    j->a = rows_of_eight(fw, j->gemm);
    if (rows == &fw->a) return; /* norm_rows did it */
    float *wide = fw->wide + (size_t) thread * fw->widest;
#pragma omp for schedule(static) nowait
    for (size_t r = 0; r < j->n_rows; r++) {
        widen_row(fw, rows, r, wide, j->gemm->k);
        quantize_row(fw, r, wide, j->gemm);
    }
    meet(fw, thread, stage);
}

/* ---- attention ---------------------------------------------------------------------------------------------------------------- */

static void attend(qr_forward *fw, size_t layer, const item *items, size_t n_items, int thread)
{
    const qr_config *c = fw->model->config;
    size_t hd = c->head_dim, group = c->n_heads / c->n_kv_heads, n_kv = c->n_kv_heads;
#pragma omp for schedule(dynamic) nowait
    for (size_t task = 0; task < n_items * n_kv; task++) {
        const item *it = &items[task % n_items];
        const seq_state *s = &fw->seqs[it->seq];
        size_t head = task / n_items;
        unsigned char *kt, *v;
        kv_of(fw, s, layer, &kt, &v);
        qr_attend call = {
            .q = q_at(fw, head, it->row),
            .n_rows = it->n_rows,
            .n_group = group,
            .head_dim = hd,
            .v_stride = fw->v_stride,
            .scale = 1.0f / sqrtf((float) hd),
            .own = {kt + head * s->slots * hd * fw->es, v + head * s->slots * fw->v_stride * fw->es, s->held + s->n},
            .first_pos = it->first,
            .out = fw->o,
            .out_row = it->row,
            .out_column = head * group * hd,
            .scratch = fw->attend_scratch + (size_t) thread * fw->attend_floats,
        };
        if (s->prefix != NULL) {
            const qr_prefix_kv *p = s->prefix;
            size_t slot = (layer * n_kv + head) * p->n_slots;
            call.prefix = (qr_kv){p->kt + slot * hd * fw->es, p->v + slot * fw->v_stride * fw->es, p->n_keys};
        }
        fw->attend(&call);
    }
    meet(fw, thread, QR_STAGE_ATTENTION);
}

/* ---- layers ------------------------------------------------------------------------------------------------------------------- */

/* Rows that `gemm` is to read, of x. */
static void norm_rows(qr_forward *fw, const float *x, const float *w, size_t n_rows, const qr_gemm *gemm, int thread)
{
    const qr_config *c = fw->model->config;
    float *wide = fw->wide + (size_t) thread * fw->widest;
#pragma omp for schedule(static) nowait
    for (size_t r = 0; r < n_rows; r++) {
        qr_row to = fw->int8 ? (qr_row){wide, 0, QR_LINE} : qr_row_at(&fw->a, r);
        fw->kernels->rmsnorm(to, x + r * c->hidden, w, c->hidden, c->rms_eps);
        if (fw->int8) quantize_row(fw, r, wide, gemm);
    }
    meet(fw, thread, QR_STAGE_NORM);
}

/* From the attention output to the end of the layer, for the rows of `j`. */
static void finish_rows(job j, int thread)
{
    qr_forward *fw = j.fw;
    j.gemm = &j.layer->o;
    ready_rows(&j, &fw->o, QR_IN_O, thread, QR_STAGE_O);
    j.store = store_residual;
    multiply(&j, thread);
    meet(fw, thread, QR_STAGE_O);
    j.gemm = &j.layer->gate_up;
    norm_rows(fw, j.x, j.layer->post_norm, j.n_rows, j.gemm, thread);
    ready_rows(&j, &fw->a, QR_IN_GATE_UP, thread, QR_STAGE_MLP);
    j.store = store_swiglu;
    multiply(&j, thread);
    meet(fw, thread, QR_STAGE_MLP);
    j.gemm = &j.layer->down;
    ready_rows(&j, &fw->h, QR_IN_DOWN, thread, QR_STAGE_MLP);
    j.store = store_residual;
    multiply(&j, thread);
    meet(fw, thread, QR_STAGE_MLP);
}

static void query_rows(job j, int thread)
{
    j.gemm = &j.layer->q;
    j.store = store_q;
    multiply(&j, thread);
}

/* K and V of a chunk, and the rest of the layer unless it is the last one. */
static void run_chunk(qr_forward *fw, size_t layer, size_t chunk, int thread)
{
    size_t hidden = fw->model->config->hidden, first = chunk * CHUNK_ROWS;
    size_t n_rows = fw->n_tokens - first < CHUNK_ROWS ? fw->n_tokens - first : CHUNK_ROWS;
    int last = layer + 1 == fw->model->config->n_layers;
    const qr_packed_layer *l = &fw->model->layers[layer];
    job j = {fw, l, layer, &l->kv, {0}, n_rows, fw->x + first * hidden, first, NULL, store_kv};
    norm_rows(fw, j.x, l->input_norm, n_rows, j.gemm, thread);
    ready_rows(&j, &fw->a, QR_IN_QKV, thread, QR_STAGE_QKV);
    if (!last) query_rows(j, thread);
    multiply(&j, thread);
    meet(fw, thread, QR_STAGE_QKV);
    if (last) return;
    attend(fw, layer, fw->items + fw->chunk_items[chunk], fw->chunk_items[chunk + 1] - fw->chunk_items[chunk], thread);
    finish_rows(j, thread);
}

/* The last layer past K and V, for the last tokens only; then the final norm and the two rows of the head. */
static void run_tails(qr_forward *fw, int thread)
{
    const qr_packed_model *m = fw->model;
    size_t hidden = m->config->hidden, layer = m->config->n_layers - 1;
    const qr_packed_layer *l = &m->layers[layer];
    for (size_t first = 0; first < fw->n_tails; first += CHUNK_ROWS) {
        size_t n_rows = fw->n_tails - first < CHUNK_ROWS ? fw->n_tails - first : CHUNK_ROWS;
        float *x = fw->tail_x + first * hidden;
#pragma omp for schedule(static) nowait
        for (size_t r = 0; r < n_rows; r++) memcpy(x + r * hidden, fw->x + fw->tail_token[first + r] * hidden, hidden * sizeof *x);
        meet(fw, thread, QR_STAGE_HEAD);
        job j = {fw, l, layer, &l->q, {0}, n_rows, x, 0, fw->tail_token + first, NULL};
        norm_rows(fw, x, l->input_norm, n_rows, j.gemm, thread);
        ready_rows(&j, &fw->a, QR_IN_QKV, thread, QR_STAGE_QKV);
        query_rows(j, thread);
        meet(fw, thread, QR_STAGE_QKV);
        attend(fw, layer, fw->items + fw->chunk_items[fw->n_chunks] + first, n_rows, thread);
        finish_rows(j, thread);
#pragma omp for schedule(static) nowait
        for (size_t r = 0; r < n_rows; r++) {
            float *row = x + r * hidden;
            fw->kernels->rmsnorm((qr_row){row, 0, QR_LINE}, row, m->norm, hidden, m->config->rms_eps);
            double yes = 0, no = 0; /* f64: two short sums in one order, exact enough to be nobody's source of error */
            for (size_t i = 0; i < hidden; i++) {
                yes += (double) row[i] * (double) m->head[i];
                no += (double) row[i] * (double) m->head[hidden + i];
            }
            *fw->seqs[fw->token_seq[fw->tail_token[first + r]]].out = (qr_logits){(float) yes, (float) no};
        }
        meet(fw, thread, QR_STAGE_HEAD);
    }
}

/* Lays the sequences out: tokens, slots, attention tasks. */
static void plan(qr_forward *fw, const qr_fwd_seq *seqs, size_t n_seqs)
{
    size_t token = 0, slot = 0, n_items = 0;
    fw->n_tails = 0;
    for (size_t i = 0; i < n_seqs; i++) {
        const qr_fwd_seq *from = &seqs[i];
        seq_state *s = &fw->seqs[i];
        size_t held = from->fill ? from->fill->n_ready : 0;
        *s = (seq_state){.start = token,
                         .n = from->n_ids,
                         .held = held,
                         .slots = round_up(held + from->n_ids, QR_KEY_BLOCK),
                         .slot0 = slot,
                         .position = from->prefix ? from->prefix->n_keys : held,
                         .prefix = from->prefix,
                         .fill = from->fill,
                         .out = from->out};
        memcpy(fw->ids + token, from->ids, from->n_ids * sizeof *from->ids);
        for (size_t t = 0; t < from->n_ids; t++) fw->token_seq[token + t] = (uint32_t) i;
        token += s->n;
        if (s->fill != NULL) continue; /* its K and V go elsewhere, and nobody asks for its last token */
        slot += s->slots;
        fw->tail_token[fw->n_tails++] = (uint32_t) (token - 1);
    }
    fw->n_seqs = n_seqs;
    fw->n_tokens = token;
    fw->n_chunks = (token + CHUNK_ROWS - 1) / CHUNK_ROWS;
    for (size_t chunk = 0, t = 0; chunk < fw->n_chunks; chunk++) {
        size_t end = (chunk + 1) * CHUNK_ROWS < token ? (chunk + 1) * CHUNK_ROWS : token;
        fw->chunk_items[chunk] = n_items;
        while (t < end) {
            const seq_state *s = &fw->seqs[fw->token_seq[t]];
            size_t stop = s->start + s->n < end ? s->start + s->n : end;
            if (stop - t > ITEM_ROWS) stop = t + ITEM_ROWS;
            fw->items[n_items++] =
                (item){fw->token_seq[t], (uint32_t) (t - chunk * CHUNK_ROWS), (uint32_t) (stop - t), (uint32_t) (s->held + t - s->start)};
            t = stop;
        }
    }
    fw->chunk_items[fw->n_chunks] = n_items;
    for (size_t i = 0; i < fw->n_tails; i++) {
        const seq_state *s = &fw->seqs[fw->token_seq[fw->tail_token[i]]];
        fw->items[n_items++] = (item){fw->token_seq[fw->tail_token[i]], (uint32_t) (i % CHUNK_ROWS), 1, (uint32_t) (s->n - 1)};
    }
}

qr_status qr_forward_run(qr_forward *fw, const qr_fwd_seq *seqs, size_t n_seqs, const volatile int *cancel, qr_error *err)
{
    size_t hidden = fw->model->config->hidden, n_layers = fw->model->config->n_layers;
    plan(fw, seqs, n_seqs);
    fw->stop = 0;
    fw->begin = qr_now();
#pragma omp parallel num_threads(fw->n_threads)
    {
        int thread = omp_get_thread_num();
        qr_mem_forbid(1);
        fw->clocks[thread].last = fw->begin;
        spent(fw, thread, QR_STAGE_IDLE);
#pragma omp for schedule(static) nowait
        for (size_t t = 0; t < fw->n_tokens; t++) qr_packed_model_embed(fw->model, fw->x + t * hidden, fw->ids[t]);
        meet(fw, thread, QR_STAGE_EMBED);
        for (size_t step = 0; step < n_layers * fw->n_chunks; step++) {
#pragma omp single
            fw->stop = qr_is_set(cancel);
            spent(fw, thread, QR_STAGE_IDLE);
            if (fw->stop) break; /* the barrier of `single` shows all threads the same value; the next one comes after others */
            run_chunk(fw, step / fw->n_chunks, step % fw->n_chunks, thread);
        }
        if (!fw->stop) run_tails(fw, thread);
        qr_mem_forbid(-1);
    }
    if (fw->stop) return qr_fail(err, QR_E_CANCELLED, "cancelled");
    if (qr_gemm_failed(fw->model->lib)) return qr_fail(err, QR_E_BACKEND, "a matrix product failed in the compute library");
    return QR_OK;
}
