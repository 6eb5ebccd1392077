/* Writes a reproducible random Qwen3 checkpoint: the real tensor names, shapes and file format, weights from a counter-based generator, so
 * that the same bytes can be made on any machine instead of being shipped or downloaded. Golden scores (tests/golden) were computed from
 * such files. Random weights test arithmetic, not ranking quality.
 *
 * Element i of tensor `name`:
 *   key = fnv1a64(name) ^ (seed * 0x9E3779B97F4A7C15)                             all modulo 2^64
 *   z = splitmix64(key, i);  u = (z >> 40) / 2^24 in [0, 1);  x = 2u - 1          in f64
 * Linear layer [out, in]: x * sqrt(3 / in). Embedding and lm_head: x * 0.5. Norms: 1 + 0.3 x. q_norm and k_norm: 1.5 * (1 + 0.3 x).
 * Rounded f64 -> f32 -> bf16 (or f16), each to nearest even.
 *
 * --quant int8: each row of a matrix, rounded to f32, becomes q = round(x / s) with s = max|x| / 127 in f32, stored as I8, followed by the
 * row scales s as NAME_scale [rows, 1]; vectors are f32. That is the compressed-tensors format "int-quantized".
 *
 * Order in the file: embed_tokens, per layer q k v o q_norm k_norm gate up down input_layernorm post_attention_layernorm, norm, [lm_head].
 * Every element depends on its row alone, so threads fill and write separate pieces of a file in any order. Files appear under their
 * name only when they are complete. */
#define _GNU_SOURCE
#include "base/file.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char usage[] =
    "usage: make_checkpoint SHAPE SEED OUT_DIR [options]\n"
    "Writes model.safetensors and config.json of a random Qwen3 model into OUT_DIR, which is made if it is missing.\n"
    "\n"
    "SHAPE  micro (20 MB), untied (59 MB), small (89 MB), 0.6b (1.2 GB), 4b (8 GB), 8b (16 GB), or custom: micro, changed by the options\n"
    "SEED   any number; other numbers give other weights\n"
    "\n"
    "  --tokenizer PATH   copy this tokenizer.json; or, from this folder, tokenizer.json and, if present, tokenizer_config.json\n"
    "  --dtype TYPE       bf16 (default), f16 or f32\n"
    "  --quant int8       matrices as 8-bit integers with a scale per row, vectors as f32\n"
    "  --shards N         N files and an index in place of one file\n"
    "  --hidden N --layers N --heads N --kv-heads N --head-dim N --inter N --vocab N --untied   for SHAPE custom\n";

typedef struct shape {
    const char *name;
    size_t hidden, layers, heads, kv_heads, head_dim, inter, tied, vocab;
} shape;

static const shape shapes[] = {
    {"micro", 64, 3, 4, 2, 32, 160, 1, 151669},
    {"untied", 96, 4, 4, 4, 32, 256, 0, 151669}, /* lm_head of its own, no grouped query */
    {"small", 256, 6, 8, 4, 64, 768, 1, 151669},
    {"0.6b", 1024, 28, 16, 8, 128, 3072, 1, 151669}, /* from here the real shapes, for work on speed and memory */
    {"4b", 2560, 36, 32, 8, 128, 9728, 1, 151669},
    {"8b", 4096, 36, 32, 8, 128, 12288, 0, 151669},
    {"custom", 64, 3, 4, 2, 32, 160, 1, 151669},
};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

typedef enum { BF16, F16, F32, I8 } dtype;
static const struct {
    const char *option, *tensor, *torch;
    size_t size;
} dtypes[] = {{"bf16", "BF16", "bfloat16", 2}, {"f16", "F16", "float16", 2}, {"f32", "F32", "float32", 4}, {"int8", "I8", "float32", 1}};

typedef struct tensor {
    char name[64];
    dtype dtype;
    int scales;        /* the row scales of the matrix of this name and shape; stored as `name`_scale, [rows, 1] */
    size_t rows, cols; /* cols 0: a vector */
    double scale;      /* norm ? scale * (1 + 0.3 x) : scale * x */
    int norm;
    size_t n_stored, n_bytes, offset; /* n_stored: elements in the file; offset: among the data of its shard */
    int shard;
} tensor;

typedef struct job {
    shape shape;
    uint64_t seed;
    dtype dtype;
    int n_shards;
    const char *out, *tokenizer;
    tensor *tensors;
    size_t n_tensors, n_bytes;
} job;

static int complain(const char *what, const char *path)
{
    fprintf(stderr, "make_checkpoint: %s: cannot %s: %s\n", path, what, strerror(errno));
    return 1;
}

static void add(job *j, const char *prefix, const char *name, size_t rows, size_t cols, double scale, int norm)
{
    for (int scales = 0; scales <= (j->dtype == I8 && cols > 0); scales++) {
        tensor *t = &j->tensors[j->n_tensors++];
        *t = (tensor){.rows = rows, .cols = cols, .scale = scale, .norm = norm, .scales = scales};
        snprintf(t->name, sizeof t->name, "%s%s.weight", prefix, name);
        t->dtype = j->dtype == I8 && (cols == 0 || scales) ? F32 : j->dtype;
        t->n_stored = cols > 0 && !scales ? rows * cols : rows;
        t->n_bytes = t->n_stored * dtypes[t->dtype].size;
        j->n_bytes += t->n_bytes;
    }
}

static void add_linear(job *j, const char *prefix, const char *name, size_t rows, size_t cols)
{
    add(j, prefix, name, rows, cols, pow(3.0 / (double) cols, 0.5), 0);
}

static int list_tensors(job *j)
{
    const shape *s = &j->shape;
    size_t q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
    j->tensors = qr_calloc(2 * (s->layers * 11 + 3), sizeof *j->tensors);
    if (j->tensors == NULL) return complain("list tensors for", j->out);
    add(j, "model.", "embed_tokens", s->vocab, s->hidden, 0.5, 0);
    for (size_t i = 0; i < s->layers; i++) {
        char p[40];
        snprintf(p, sizeof p, "model.layers.%zu.", i);
        add_linear(j, p, "self_attn.q_proj", q, s->hidden);
        add_linear(j, p, "self_attn.k_proj", kv, s->hidden);
        add_linear(j, p, "self_attn.v_proj", kv, s->hidden);
        add_linear(j, p, "self_attn.o_proj", s->hidden, q);
        add(j, p, "self_attn.q_norm", s->head_dim, 0, 1.5, 1);
        add(j, p, "self_attn.k_norm", s->head_dim, 0, 1.5, 1);
        add_linear(j, p, "mlp.gate_proj", s->inter, s->hidden);
        add_linear(j, p, "mlp.up_proj", s->inter, s->hidden);
        add_linear(j, p, "mlp.down_proj", s->hidden, s->inter);
        add(j, p, "input_layernorm", s->hidden, 0, 1.0, 1);
        add(j, p, "post_attention_layernorm", s->hidden, 0, 1.0, 1);
    }
    add(j, "model.", "norm", s->hidden, 0, 1.0, 1);
    if (!s->tied) add(j, "", "lm_head", s->vocab, s->hidden, 0.5, 0);

    size_t offset = 0, before = 0; /* a shard ends with the tensor that takes it to its part of all bytes; the last takes the rest */
    int shard = 0;
    for (size_t i = 0; i < j->n_tensors; i++) {
        tensor *t = &j->tensors[i];
        size_t tensors_left = j->n_tensors - i, shards_left = (size_t) (j->n_shards - shard);
        if (offset > 0 && shards_left > 1 &&
            (before >= j->n_bytes / (size_t) j->n_shards * (size_t) (shard + 1) || tensors_left < shards_left)) {
            shard++;
            offset = 0;
        }
        t->shard = shard;
        t->offset = offset;
        offset += t->n_bytes;
        before += t->n_bytes;
    }
    j->n_shards = shard + 1;
    return 0;
}

static uint64_t fnv1a64(const char *text)
{
    uint64_t h = 0xCBF29CE484222325;
    for (; *text; text++) h = (h ^ (unsigned char) *text) * 0x100000001B3;
    return h;
}

static uint32_t f32_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static uint16_t to_bf16(float x)
{
    uint32_t b = f32_bits(x);
    return (uint16_t) ((b + 0x7FFF + (b >> 16 & 1)) >> 16);
}

/* To nearest even, subnormals included. The weights are far below the largest f16, so neither infinity nor NaN can come up. */
static uint16_t to_f16(float x)
{
    uint32_t b = f32_bits(x), sign = b >> 16 & 0x8000, magnitude = b & 0x7FFFFFFF;
    if (magnitude < 0x38800000) return (uint16_t) (sign | (uint32_t) lrintf(fabsf(x) * 0x1p24f)); /* below 2^-14: units of 2^-24 */
    magnitude -= (127 - 15) << 23;
    return (uint16_t) (sign | (magnitude + 0xFFF + (magnitude >> 13 & 1)) >> 13);
}

/* Elements [first, first + n) of a tensor, rounded to f32. */
static void generate(const job *j, const tensor *t, size_t first, size_t n, float *out)
{
    const uint64_t step = 0x9E3779B97F4A7C15, key = fnv1a64(t->name) ^ (j->seed * step);
    for (size_t i = 0; i < n; i++) {
        uint64_t z = key + (first + i + 1) * step;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
        z = (z ^ z >> 27) * 0x94D049BB133111EB;
        z ^= z >> 31;
        double x = 2.0 * ((double) (int64_t) (z >> 40) / 0x1p24) - 1.0;
        out[i] = (float) (t->norm ? t->scale * (1.0 + 0.3 * x) : x * t->scale);
    }
}

/* Stored elements of n rows of `width` generated values, as the tensor's type. */
static void convert(const tensor *t, const float *values, size_t n, size_t width, unsigned char *out)
{
    for (size_t r = 0; r < n; r++) {
        const float *row = values + r * width;
        float largest = 0;
        for (size_t c = 0; c < width; c++) largest = fmaxf(largest, fabsf(row[c]));
        float scale = largest / 127;
        if (t->scales) memcpy(out + r * sizeof scale, &scale, sizeof scale);
        for (size_t c = 0; c < width && !t->scales; c++) {
            size_t i = r * width + c;
            uint16_t half = t->dtype == BF16 ? to_bf16(row[c]) : to_f16(row[c]);
            if (t->dtype == I8) out[i] = (unsigned char) lrintf(row[c] / scale);
            else if (t->dtype == F32) memcpy(out + 4 * i, &row[c], 4);
            else memcpy(out + 2 * i, &half, 2);
        }
    }
}

/* 0, or the errno. */
static int write_at(int fd, const void *data, size_t n, size_t offset)
{
    for (size_t done = 0; done < n;) {
        ssize_t got = pwrite(fd, (const char *) data + done, n - done, (off_t) (offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return got < 0 ? errno : EIO;
        done += (size_t) got;
    }
    return 0;
}

/* All data of one shard from `base` on, in pieces that the threads take turns at. 0, or the first errno. */
static int write_data(const job *j, int shard, int fd, size_t base)
{
    enum { PIECE = 1 << 20 }; /* elements: a few MB per thread, and a write is large */
    int failed = 0;
#pragma omp parallel
    {
        int e = 0;
        float *values = qr_calloc(PIECE, sizeof *values);
        unsigned char *piece = qr_calloc(PIECE, sizeof *values);
        for (size_t k = 0; k < j->n_tensors; k++) {
            const tensor *t = &j->tensors[k];
            if (t->shard != shard) continue;
            /* Whole rows: a scale needs all of its row. PIECE is far above the longest. */
            size_t width = t->cols > 0 ? t->cols : 1, step = PIECE / width, n_pieces = (t->rows + step - 1) / step;
            size_t row_bytes = t->n_bytes / t->rows;
#pragma omp for schedule(dynamic) nowait
            for (size_t p = 0; p < n_pieces; p++) {
                size_t first = p * step, n = t->rows - first < step ? t->rows - first : step;
                if (values == NULL || piece == NULL) e = ENOMEM;
                if (e != 0) continue;
                generate(j, t, first * width, n * width, values);
                convert(t, values, n, width, piece);
                e = write_at(fd, piece, n * row_bytes, base + t->offset + first * row_bytes);
            }
        }
        qr_free(values);
        qr_free(piece);
#pragma omp critical
        if (e != 0) failed = e;
    }
    return failed;
}

/* A file that gets its name when it is complete. Nothing is synced: these files can be made again. */
typedef struct output {
    char path[4096], temp[4128];
    int fd;
} output;

static int output_open(output *o, const char *dir, const char *name)
{
    snprintf(o->path, sizeof o->path, "%s/%s", dir, name);
    snprintf(o->temp, sizeof o->temp, "%s.tmp-%ld", o->path, (long) getpid());
    o->fd = open(o->temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    return o->fd < 0 ? complain("create", o->temp) : 0;
}

/* e: the errno of what went before, 0 if all is well. */
static int output_close(output *o, int e)
{
    if (close(o->fd) != 0 && e == 0) e = errno;
    if (e == 0 && rename(o->temp, o->path) != 0) e = errno;
    if (e == 0) return 0;
    unlink(o->temp);
    errno = e;
    return complain("write", o->path);
}

static int write_text(const char *dir, const char *name, const char *text, size_t len)
{
    output o;
    return output_open(&o, dir, name) || output_close(&o, write_at(o.fd, text, len, 0));
}

static const char *shard_name(const job *j, int shard, char name[64])
{
    if (j->n_shards == 1) return "model.safetensors";
    snprintf(name, 64, "model-%05d-of-%05d.safetensors", shard + 1, j->n_shards);
    return name;
}

static int write_shard(const job *j, int shard)
{
    char *header = NULL, name[64];
    size_t len = 0;
    FILE *f = open_memstream(&header, &len);
    if (f == NULL) return complain("build a header for", j->out);
    fprintf(f, "%8s{\"__metadata__\":{\"format\":\"pt\"}", "");
    for (size_t i = 0; i < j->n_tensors; i++) {
        const tensor *t = &j->tensors[i];
        if (t->shard != shard) continue;
        fprintf(f, ",\"%s%s\":{\"dtype\":\"%s\",\"shape\":[%zu", t->name, t->scales ? "_scale" : "", dtypes[t->dtype].tensor, t->rows);
        if (t->cols > 0) fprintf(f, ",%zu", t->scales ? 1 : t->cols);
        fprintf(f, "],\"data_offsets\":[%zu,%zu]}", t->offset, t->offset + t->n_bytes);
    }
    fprintf(f, "}");
    fflush(f);
    fprintf(f, "%*s", (int) (-len & 7), ""); /* the data begin at a multiple of 8 */
    if (fclose(f) != 0) return complain("build a header for", j->out);
    uint64_t header_bytes = len - 8;
    memcpy(header, &header_bytes, 8);

    output o;
    int rc = output_open(&o, j->out, shard_name(j, shard, name));
    if (rc == 0) {
        int e = write_at(o.fd, header, len, 0);
        rc = output_close(&o, e ? e : write_data(j, shard, o.fd, len));
    }
    free(header);
    return rc;
}

static int write_index(const job *j)
{
    char *text = NULL, name[64];
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    if (f == NULL) return complain("build the index for", j->out);
    fprintf(f, "{\n  \"metadata\": {\n    \"total_size\": %zu\n  },\n  \"weight_map\": {\n", j->n_bytes);
    for (size_t i = 0; i < j->n_tensors; i++)
        fprintf(f, "    \"%s%s\": \"%s\"%s\n", j->tensors[i].name, j->tensors[i].scales ? "_scale" : "",
                shard_name(j, j->tensors[i].shard, name), i + 1 < j->n_tensors ? "," : "");
    fprintf(f, "  }\n}\n");
    if (fclose(f) != 0) return complain("build the index for", j->out);
    int rc = write_text(j->out, "model.safetensors.index.json", text, len);
    free(text);
    return rc;
}

/* An index that an earlier run left would be believed before the single file is. */
static int remove_index(const job *j)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", j->out);
    return unlink(path) != 0 && errno != ENOENT ? complain("remove", path) : 0;
}

/* As compressed-tensors writes it for 8-bit weights alone, embeddings included. */
static const char quantization[] =
    "  \"quantization_config\": {\n    \"config_groups\": {\n      \"group_0\": {\n        \"input_activations\": null,\n"
    "        \"output_activations\": null,\n        \"targets\": [\n          \"Linear\",\n          \"Embedding\"\n        ],\n"
    "        \"weights\": {\n          \"dynamic\": false,\n          \"group_size\": null,\n          \"num_bits\": 8,\n"
    "          \"strategy\": \"channel\",\n          \"symmetric\": true,\n          \"type\": \"int\"\n        }\n      }\n    },\n"
    "    \"format\": \"int-quantized\",\n    \"ignore\": [],\n    \"kv_cache_scheme\": null,\n"
    "    \"quant_method\": \"compressed-tensors\",\n    \"quantization_status\": \"compressed\"\n  },\n";

static int write_config(const job *j)
{
    const shape *s = &j->shape;
    char text[4096];
    int len = snprintf(
        text, sizeof text,
        "{\n"
        "  \"architectures\": [\n    \"Qwen3ForCausalLM\"\n  ],\n"
        "  \"attention_bias\": false,\n  \"attention_dropout\": 0.0,\n  \"bos_token_id\": 151643,\n  \"eos_token_id\": 151645,\n"
        "  \"head_dim\": %zu,\n  \"hidden_act\": \"silu\",\n  \"hidden_size\": %zu,\n  \"initializer_range\": 0.02,\n"
        "  \"intermediate_size\": %zu,\n  \"max_position_embeddings\": 40960,\n  \"max_window_layers\": %zu,\n"
        "  \"model_type\": \"qwen3\",\n  \"num_attention_heads\": %zu,\n  \"num_hidden_layers\": %zu,\n"
        "  \"num_key_value_heads\": %zu,\n%s  \"rms_norm_eps\": 1e-06,\n  \"rope_scaling\": null,\n  \"rope_theta\": 1000000,\n"
        "  \"sliding_window\": null,\n  \"tie_word_embeddings\": %s,\n  \"torch_dtype\": \"%s\",\n"
        "  \"transformers_version\": \"4.51.3\",\n  \"use_cache\": true,\n  \"use_sliding_window\": false,\n  \"vocab_size\": %zu\n}",
        s->head_dim, s->hidden, s->inter, s->layers, s->heads, s->layers, s->kv_heads, j->dtype == I8 ? quantization : "",
        s->tied ? "true" : "false", dtypes[j->dtype].torch, s->vocab);
    return write_text(j->out, "config.json", text, (size_t) len);
}

static int copy_file(const char *from, const char *dir, const char *name)
{
    char *text;
    size_t len;
    qr_error err;
    if (qr_file_read(from, (size_t) 1 << 30, &text, &len, &err) != QR_OK) {
        fprintf(stderr, "make_checkpoint: %s\n", err.msg);
        return 1;
    }
    int rc = write_text(dir, name, text, len);
    qr_free(text);
    return rc;
}

static int copy_tokenizer(const job *j)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json"};
    struct stat st;
    if (stat(j->tokenizer, &st) != 0) return complain("find", j->tokenizer);
    if (!S_ISDIR(st.st_mode)) return copy_file(j->tokenizer, j->out, names[0]);
    for (int i = 0; i < 2; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", j->tokenizer, names[i]);
        if ((i == 0 || qr_file_exists(path)) && copy_file(path, j->out, names[i])) return 1;
    }
    return 0;
}

static int bad_usage(const char *what, const char *value)
{
    fprintf(stderr, "make_checkpoint: %s: %s\n%s", value, what, usage);
    return 2;
}

static int parse_number(const char *text, uint64_t max, uint64_t *out)
{
    char *end;
    errno = 0;
    *out = strtoull(text, &end, 10);
    return text[0] >= '0' && text[0] <= '9' && *end == 0 && errno == 0 && *out <= max;
}

/* 0, or the exit status. */
static int parse(job *j, int argc, char **argv)
{
    shape *s = &j->shape;
    const struct {
        const char *option;
        size_t *value, max;
    } sizes[] = {{"--hidden", &s->hidden, 65536},    {"--layers", &s->layers, 1024},     {"--heads", &s->heads, 1024},
                 {"--kv-heads", &s->kv_heads, 1024}, {"--head-dim", &s->head_dim, 1024}, {"--inter", &s->inter, 1 << 20},
                 {"--vocab", &s->vocab, 1 << 24}};
    int n_plain = 0, resized = 0, custom;
    uint64_t number;
    for (int i = 1; i < argc; i++) { /* SHAPE first, wherever it stands: the options change it */
        if (strncmp(argv[i], "--", 2) == 0) {
            i += strcmp(argv[i], "--untied") != 0;
            continue;
        }
        int k = 0;
        if (n_plain == 0) {
            while (k < N_SHAPES && strcmp(argv[i], shapes[k].name) != 0) k++;
            if (k == N_SHAPES) return bad_usage("no such SHAPE", argv[i]);
            *s = shapes[k];
        } else if (n_plain == 1 && !parse_number(argv[i], UINT64_MAX, &j->seed)) {
            return bad_usage("SEED is not a number", argv[i]);
        } else if (n_plain == 2) {
            j->out = argv[i];
        } else if (n_plain > 2) {
            return bad_usage("one argument too many", argv[i]);
        }
        n_plain++;
    }
    if (n_plain < 3) return bad_usage("expected SHAPE, SEED and OUT_DIR", argv[0]);
    custom = strcmp(s->name, "custom") == 0;
    for (int i = 1; i < argc; i++) {
        const char *option = argv[i], *value = argv[i + 1];
        size_t k = 0;
        if (strncmp(option, "--", 2) != 0) continue;
        if (strcmp(option, "--untied") == 0) {
            s->tied = 0;
            resized = 1;
            continue;
        }
        if (value == NULL) return bad_usage("needs a value", option);
        i++;
        if (strcmp(option, "--tokenizer") == 0) {
            j->tokenizer = value;
        } else if (strcmp(option, "--dtype") == 0) {
            while (k < 3 && strcmp(value, dtypes[k].option) != 0) k++;
            if (k == 3) return bad_usage("no such type", value);
            j->dtype = (dtype) k;
        } else if (strcmp(option, "--quant") == 0) {
            if (strcmp(value, "int8") != 0) return bad_usage("no such quantisation", value);
            j->dtype = I8;
        } else if (strcmp(option, "--shards") == 0) {
            if (!parse_number(value, 1000, &number) || number == 0) return bad_usage("expected 1 to 1000 shards", value);
            j->n_shards = (int) number;
        } else {
            while (k < sizeof sizes / sizeof sizes[0] && strcmp(option, sizes[k].option) != 0) k++;
            if (k == sizeof sizes / sizeof sizes[0]) return bad_usage("no such option", option);
            if (!parse_number(value, sizes[k].max, &number) || number == 0) return bad_usage("size out of range", value);
            *sizes[k].value = number;
            resized = 1;
        }
    }
    if (resized && !custom) return bad_usage("sizes can only be given for SHAPE custom", s->name);
    if (s->heads % s->kv_heads != 0 || s->head_dim % 2 != 0)
        return bad_usage("heads must be a multiple of kv-heads, head-dim even", s->name);
    if (strlen(j->out) > 3900 || (j->tokenizer != NULL && strlen(j->tokenizer) > 3900)) return bad_usage("path too long", s->name);
    return 0;
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fputs(usage, stdout);
            return 0;
        }
    }
    job j = {.n_shards = 1, .dtype = BF16};
    int rc = parse(&j, argc, argv);
    if (rc != 0) return rc;
    if (mkdir(j.out, 0777) != 0 && errno != EEXIST) return complain("make", j.out);
    rc = list_tensors(&j);
    for (int i = 0; rc == 0 && i < j.n_shards; i++) rc = write_shard(&j, i);
    if (rc == 0) rc = j.n_shards > 1 ? write_index(&j) : remove_index(&j);
    if (rc == 0) rc = write_config(&j);
    if (rc == 0 && j.tokenizer != NULL) rc = copy_tokenizer(&j);
    qr_free(j.tensors);
    return rc;
}
