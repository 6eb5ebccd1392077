/* The container: header, metadata, list of tensors, padding, data. Every count is believed only as far as the bytes that it would take are
 * there, so memory is bounded by the size of the file. */
#include "model/gguf.h"

#include "base/json_in.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_KEYS = 1 << 16,
    MAX_TENSORS = 1 << 20,
    MAX_SPLITS = 1 << 12,
    MAX_NAME = 1024,
    MAX_NESTING = 4,
    MAX_DIMS = 4,
    MAX_ALIGNMENT = 1 << 20,
    DEFAULT_ALIGNMENT = 32,
    KEY_BYTES = 8 + 4 + 1,            /* the least that a key takes */
    TENSOR_BYTES = 8 + 4 + 8 + 4 + 8, /* and a tensor */
};

static const size_t value_bytes[QR_GGUF_N_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

/* The format's numbers of the types that are read. */
static const struct {
    uint32_t id;
    qr_tensor_type type;
} types[] = {{0, QR_T_F32},   {1, QR_T_F16},   {2, QR_T_Q4_0},    {3, QR_T_Q4_1},    {6, QR_T_Q5_0},
             {7, QR_T_Q5_1},  {8, QR_T_Q8_0},  {10, QR_T_Q2_K},   {11, QR_T_Q3_K},   {12, QR_T_Q4_K},
             {13, QR_T_Q5_K}, {14, QR_T_Q6_K}, {20, QR_T_IQ4_NL}, {23, QR_T_IQ4_XS}, {30, QR_T_BF16}};
#define TYPES_READ "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K, IQ4_NL and IQ4_XS"

typedef struct reader {
    const unsigned char *p, *start, *end;
    const char *path;
    qr_error *err;
} reader;

static size_t left(const reader *r) { return (size_t) (r->end - r->p); }

static qr_label label(qr_text text)
{
    char copy[128];
    snprintf(copy, sizeof copy, "%.*s", (int) (text.len < 120 ? text.len : 120), text.len ? text.data : "");
    return qr_label_of(copy);
}

static qr_status cut(const reader *r, const char *what)
{
    return qr_fail(r->err, QR_E_FORMAT, "%s: byte %zu: expected %s, found the end of the file; the file is incomplete or damaged", r->path,
                   (size_t) (r->p - r->start), what);
}

static qr_status take_u32(reader *r, uint32_t *out, const char *what)
{
    *out = 0;
    if (left(r) < sizeof *out) return cut(r, what);
    memcpy(out, r->p, sizeof *out);
    r->p += sizeof *out;
    return QR_OK;
}

static qr_status take_u64(reader *r, uint64_t *out, const char *what)
{
    *out = 0;
    if (left(r) < sizeof *out) return cut(r, what);
    memcpy(out, r->p, sizeof *out);
    r->p += sizeof *out;
    return QR_OK;
}

static qr_status take_string(reader *r, qr_text *out, const char *what)
{
    uint64_t n;
    qr_status status = take_u64(r, &n, what);
    if (status != QR_OK) return status;
    if (n > left(r))
        return qr_fail(r->err, QR_E_FORMAT, "%s: byte %zu: expected %s within the file, found a length of %llu bytes where %zu are left",
                       r->path, (size_t) (r->p - r->start) - 8, what, (unsigned long long) n, left(r));
    *out = (qr_text){(const char *) r->p, (size_t) n};
    r->p += n;
    return QR_OK;
}

/* The name of a key or a tensor. */
static qr_status take_name(reader *r, qr_text *out, const char *what)
{
    qr_status status = take_string(r, out, what);
    if (status != QR_OK) return status;
    int good = out->len > 0 && out->len <= MAX_NAME;
    for (size_t i = 0; good && i < out->len; i++) good = (unsigned char) out->data[i] > 0x20 && (unsigned char) out->data[i] < 0x7F;
    return good ? QR_OK
                : qr_fail(r->err, QR_E_FORMAT, "%s: expected %s of 1 to %d printable characters, found \"%s\" of %zu bytes", r->path, what,
                          MAX_NAME, label(*out).text, out->len);
}

/* Passes over n values of a type. */
static qr_status pass_values(reader *r, uint32_t type, uint64_t n, int depth)
{
    if (type >= QR_GGUF_N_TYPES)
        return qr_fail(r->err, QR_E_FORMAT, "%s: byte %zu: expected a value type up to %d, found %u", r->path, (size_t) (r->p - r->start),
                       QR_GGUF_N_TYPES - 1, type);
    size_t least = type == QR_GGUF_STRING ? 8 : type == QR_GGUF_ARRAY ? 12 : value_bytes[type];
    if (n > left(r) / least)
        return qr_fail(r->err, QR_E_FORMAT, "%s: byte %zu: expected values within the file, found a count of %llu where %zu bytes are left",
                       r->path, (size_t) (r->p - r->start), (unsigned long long) n, left(r));
    if (value_bytes[type] > 0) {
        r->p += (size_t) n * value_bytes[type];
        return QR_OK;
    }
    qr_status status = QR_OK;
    for (uint64_t i = 0; status == QR_OK && i < n; i++) {
        qr_text text;
        uint32_t element;
        uint64_t inner;
        if (type == QR_GGUF_STRING) {
            status = take_string(r, &text, "a string");
            continue;
        }
        if (depth == MAX_NESTING) return qr_fail(r->err, QR_E_FORMAT, "%s: expected at most %d nested arrays", r->path, MAX_NESTING);
        status = take_u32(r, &element, "the type of an array");
        if (status == QR_OK) status = take_u64(r, &inner, "the length of an array");
        if (status == QR_OK) status = pass_values(r, element, inner, depth + 1);
    }
    return status;
}

static qr_status read_key(reader *r, qr_gguf_key *key)
{
    uint32_t type, element;
    qr_status status = take_name(r, &key->name, "a key");
    if (status == QR_OK) status = take_u32(r, &type, "the type of a value");
    if (status != QR_OK) return status;
    *key = (qr_gguf_key){.name = key->name, .type = (qr_gguf_type) type, .n = 1, .data = r->p};
    status = pass_values(r, type, 1, 0);
    key->end = r->p;
    if (status == QR_OK && type == QR_GGUF_STRING) {
        key->data += 8;
        key->n = (size_t) (key->end - key->data);
    } else if (status == QR_OK && type == QR_GGUF_ARRAY) {
        uint64_t n;
        memcpy(&element, key->data, 4);
        memcpy(&n, key->data + 4, 8);
        key->element = (qr_gguf_type) element;
        key->n = (size_t) n;
        key->data += 12;
    }
    return status == QR_OK ? status : qr_fail_prefix(r->err, status, "key \"%s\"", label(key->name).text);
}

static int compare(qr_text a, qr_text b)
{
    int order = memcmp(a.data, b.data, a.len < b.len ? a.len : b.len);
    return order != 0 ? order : (a.len > b.len) - (a.len < b.len);
}

static int by_name(const void *a, const void *b) { return compare(((const qr_gguf_key *) a)->name, ((const qr_gguf_key *) b)->name); }

static qr_status read_keys(reader *r, qr_gguf *gguf, uint64_t n)
{
    if (n > MAX_KEYS || n > left(r) / KEY_BYTES)
        return qr_fail(r->err, QR_E_FORMAT, "%s: expected at most %d keys, and bytes for each, found a count of %llu", r->path, MAX_KEYS,
                       (unsigned long long) n);
    gguf->keys = qr_calloc((size_t) n, sizeof *gguf->keys);
    if (gguf->keys == NULL) return qr_fail(r->err, QR_E_MEMORY, "%s: no memory for %llu keys", r->path, (unsigned long long) n);
    for (; gguf->n_keys < n; gguf->n_keys++) {
        qr_status status = read_key(r, &gguf->keys[gguf->n_keys]);
        if (status != QR_OK) return status;
    }
    if (n > 1) qsort(gguf->keys, gguf->n_keys, sizeof *gguf->keys, by_name);
    for (size_t i = 1; i < gguf->n_keys; i++)
        if (by_name(&gguf->keys[i - 1], &gguf->keys[i]) == 0)
            return qr_fail(r->err, QR_E_FORMAT, "%s: key \"%s\": expected once, found twice", r->path, label(gguf->keys[i].name).text);
    return QR_OK;
}

/* Magic, version and counts. */
static qr_status read_header(reader *r, unsigned *version, uint64_t *n_tensors, uint64_t *n_keys)
{
    static const char lfs[] = "version https://git-lfs";
    uint32_t found;
    if (left(r) >= sizeof lfs - 1 && memcmp(r->p, lfs, sizeof lfs - 1) == 0)
        return qr_fail(r->err, QR_E_FORMAT, "%s: expected GGUF, found a Git LFS pointer to it: run `git lfs pull` in its folder", r->path);
    if (left(r) < 4 || memcmp(r->p, "GGUF", 4) != 0)
        return qr_fail(r->err, QR_E_FORMAT, "%s: expected a GGUF file, which starts with \"GGUF\", found something else", r->path);
    r->p += 4;
    qr_status status = take_u32(r, &found, "a version");
    if (status != QR_OK) return status;
    if (found != 0 && (found & 0xFFFF) == 0)
        return qr_fail(r->err, QR_E_UNSUPPORTED, "%s: expected a little-endian GGUF file, found a big-endian one", r->path);
    if (found != 2 && found != 3) return qr_fail(r->err, QR_E_UNSUPPORTED, "%s: expected GGUF version 2 or 3, found %u", r->path, found);
    *version = found;
    status = take_u64(r, n_tensors, "a count of tensors");
    return status == QR_OK ? take_u64(r, n_keys, "a count of keys") : status;
}

/* The name that weights.c asks for; 0 where there is none, or no room. */
static int hf_name(qr_text name, char *out, size_t room)
{
    static const char *const pairs[][2] = {
        {"token_embd.weight", "model.embed_tokens.weight"},
        {"output_norm.weight", "model.norm.weight"},
        {"output.weight", "lm_head.weight"},
        {"cls.output.weight", "cls.output.weight"},
    };
    static const char *const in_layer[][2] = {
        {"attn_norm.weight", "input_layernorm.weight"},    {"attn_q.weight", "self_attn.q_proj.weight"},
        {"attn_k.weight", "self_attn.k_proj.weight"},      {"attn_v.weight", "self_attn.v_proj.weight"},
        {"attn_output.weight", "self_attn.o_proj.weight"}, {"attn_q_norm.weight", "self_attn.q_norm.weight"},
        {"attn_k_norm.weight", "self_attn.k_norm.weight"}, {"ffn_norm.weight", "post_attention_layernorm.weight"},
        {"ffn_gate.weight", "mlp.gate_proj.weight"},       {"ffn_up.weight", "mlp.up_proj.weight"},
        {"ffn_down.weight", "mlp.down_proj.weight"},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++)
        if (name.len == strlen(pairs[i][0]) && memcmp(name.data, pairs[i][0], name.len) == 0)
            return (size_t) snprintf(out, room, "%s", pairs[i][1]) < room;
    if (name.len < 4 || memcmp(name.data, "blk.", 4) != 0) return 0;
    size_t digits = 4;
    while (digits < name.len && digits < 12 && name.data[digits] >= '0' && name.data[digits] <= '9') digits++;
    if (digits == 4 || digits == name.len || name.data[digits] != '.') return 0;
    const char *rest = name.data + digits + 1;
    size_t n = name.len - digits - 1;
    for (size_t i = 0; i < sizeof in_layer / sizeof in_layer[0]; i++)
        if (n == strlen(in_layer[i][0]) && memcmp(rest, in_layer[i][0], n) == 0)
            return (size_t) snprintf(out, room, "model.layers.%.*s.%s", (int) digits - 4, name.data + 4, in_layer[i][1]) < room;
    return 0;
}

/* Shape and type. *offset is into the data, whose size is not known yet. */
static qr_status read_shape(reader *r, qr_tensor *t, uint64_t *offset)
{
    uint32_t n_dims, id;
    size_t k = 0;
    qr_status status = take_u32(r, &n_dims, "a number of dimensions");
    if (status != QR_OK) return status;
    if (n_dims < 1 || n_dims > MAX_DIMS) return qr_fail(r->err, QR_E_FORMAT, "expected 1 to %d dimensions, found %u", MAX_DIMS, n_dims);
    t->n_dims = (int) n_dims;
    t->n_elements = 1;
    for (uint32_t i = 0; i < n_dims; i++) {
        uint64_t dim;
        if ((status = take_u64(r, &dim, "a dimension")) != QR_OK) return status;
        t->dims[n_dims - 1 - i] = (size_t) dim; /* the file begins with the fastest */
        if (dim == 0 || __builtin_mul_overflow(t->n_elements, (size_t) dim, &t->n_elements))
            return qr_fail(r->err, QR_E_FORMAT, "expected dimensions above 0 whose product fits 64 bits, found %llu as number %u",
                           (unsigned long long) dim, i);
    }
    if ((status = take_u32(r, &id, "a type")) != QR_OK) return status;
    while (k < sizeof types / sizeof types[0] && types[k].id != id) k++;
    if (k == sizeof types / sizeof types[0])
        return qr_fail(r->err, QR_E_UNSUPPORTED, "this program reads " TYPES_READ ", found type number %u", id);
    t->type = types[k].type;
    size_t block = qr_tensor_type_block(t->type), cols = t->dims[n_dims - 1];
    if (cols % block != 0)
        return qr_fail(r->err, QR_E_FORMAT, "expected rows of whole blocks of %zu, as %s has, found %zu columns", block,
                       qr_tensor_type_name(t->type), cols);
    if (__builtin_mul_overflow(t->n_elements / block, qr_tensor_type_size(t->type), &t->n_bytes))
        return qr_fail(r->err, QR_E_FORMAT, "%zu elements of %s overflow 64 bits", t->n_elements, qr_tensor_type_name(t->type));
    return take_u64(r, offset, "an offset");
}

static int by_data(const void *a, const void *b)
{
    const unsigned char *x = ((const qr_tensor *) a)->data, *y = ((const qr_tensor *) b)->data;
    return (x > y) - (x < y);
}

/* Appends the n tensors of shard `index`. Their names, longer than in the file, go into a block of the shard. */
static qr_status read_tensors(reader *r, qr_checkpoint *ckpt, size_t index, size_t *capacity, uint64_t n, size_t alignment)
{
    enum { ROOM = 96 }; /* the longest name has 53 characters, and a layer's number at most 8 digits */
    struct qr_shard *shard = &ckpt->shards[index];
    size_t first = ckpt->n_tensors;
    if (n > MAX_TENSORS - first || n > left(r) / TENSOR_BYTES)
        return qr_fail(r->err, QR_E_FORMAT, "%s: expected at most %d tensors, and bytes for each, found a count of %llu", r->path,
                       MAX_TENSORS, (unsigned long long) n);
    qr_tensor *grown = qr_grow(ckpt->tensors, capacity, first + (size_t) n, sizeof *grown);
    if (grown != NULL) ckpt->tensors = grown;
    shard->names = qr_calloc((size_t) n, ROOM);
    if (grown == NULL || shard->names == NULL)
        return qr_fail(r->err, QR_E_MEMORY, "%s: no memory for %llu tensors", r->path, (unsigned long long) n);
    for (size_t i = 0; i < n; i++) {
        qr_text name;
        uint64_t offset = 0;
        char *own = shard->names + i * ROOM;
        qr_tensor *t = &grown[first + i];
        *t = (qr_tensor){.name = own, .shard = (int) index};
        qr_status status = take_name(r, &name, "the name of a tensor");
        if (status != QR_OK) return status;
        if (!hf_name(name, own, ROOM))
            return qr_fail(r->err, QR_E_UNSUPPORTED, "%s: tensor \"%s\": expected the names that Qwen3 has in GGUF, found another", r->path,
                           label(name).text);
        status = read_shape(r, t, &offset);
        if (status == QR_OK && (offset % alignment != 0 || offset > shard->file.size))
            status = qr_fail(r->err, QR_E_FORMAT, "expected an offset within the file, a multiple of %zu, found %llu", alignment,
                             (unsigned long long) offset);
        if (status != QR_OK) return qr_fail_prefix(r->err, status, "%s: tensor \"%s\"", r->path, label(name).text);
        t->data = shard->file.data + offset; /* moved when it is known where the data begin */
    }
    ckpt->n_tensors += (size_t) n;

    size_t header = (size_t) (r->p - r->start), base = (header + alignment - 1) / alignment * alignment, expected = 0;
    size_t data_bytes = base <= shard->file.size ? shard->file.size - base : 0;
    if (n > 1) qsort(grown + first, (size_t) n, sizeof *grown, by_data);
    for (size_t i = first; i < ckpt->n_tensors; i++) {
        qr_tensor *t = &grown[i];
        size_t offset = (size_t) (t->data - shard->file.data);
        if (offset != expected)
            return qr_fail(r->err, QR_E_FORMAT, "%s: tensor \"%s\": expected at data byte %zu, after the one before it, found at %zu (%s)",
                           r->path, t->name, expected, offset, offset < expected ? "an overlap" : "a gap");
        if (offset > data_bytes || t->n_bytes > data_bytes - offset)
            return qr_fail(r->err, QR_E_FORMAT,
                           "%s: tensor \"%s\": expected %zu bytes from data byte %zu, found a file with %zu data bytes; it is incomplete "
                           "or damaged",
                           r->path, t->name, t->n_bytes, offset, data_bytes);
        t->data += base;
        expected = (offset + t->n_bytes + alignment - 1) / alignment * alignment;
    }
    return QR_OK;
}

static qr_status read_uint_key(const reader *r, const qr_gguf *gguf, const char *name, uint64_t absent, uint64_t *out)
{
    const qr_gguf_key *key = qr_gguf_find(gguf, name);
    *out = absent;
    if (key == NULL || qr_gguf_uint(key, out)) return QR_OK;
    return qr_fail(r->err, QR_E_FORMAT, "%s: %s: expected an integer of at least 0, found another value", r->path, name);
}

/* Reads shard `index` of `count`, whose file is open; 0 where the first is to say how many there are. */
static qr_status read_shard(qr_gguf *gguf, qr_checkpoint *ckpt, size_t index, size_t *capacity, uint64_t *count, qr_error *err)
{
    const struct qr_shard *shard = &ckpt->shards[index];
    reader r = {shard->file.data, shard->file.data, NULL, shard->path, err};
    uint64_t n_tensors = 0, n_keys = 0, alignment = 0, no = 0, of = 0;
    r.end = shard->file.size > 0 ? r.p + shard->file.size : r.p;
    qr_status status = read_header(&r, &gguf->version, &n_tensors, &n_keys);
    if (status == QR_OK) status = read_keys(&r, gguf, n_keys);
    if (status == QR_OK) status = read_uint_key(&r, gguf, "general.alignment", DEFAULT_ALIGNMENT, &alignment);
    if (status == QR_OK) status = read_uint_key(&r, gguf, "split.no", 0, &no);
    if (status == QR_OK) status = read_uint_key(&r, gguf, "split.count", 1, &of);
    if (status != QR_OK) return status;
    if (alignment == 0 || alignment > MAX_ALIGNMENT || (alignment & (alignment - 1)) != 0)
        return qr_fail(err, QR_E_FORMAT, "%s: general.alignment: expected a power of two up to %d, found %llu", shard->path, MAX_ALIGNMENT,
                       (unsigned long long) alignment);
    if (of == 0 && *count == 0) of = 1; /* what some writers say of a file that is not split */
    if (no != index || of > MAX_SPLITS || (*count != 0 && of != *count))
        return qr_fail(err, QR_E_FORMAT, "%s: expected part %zu%s%.0llu of a split model, found split.no %llu of split.count %llu",
                       shard->path, index, *count ? " of " : "", (unsigned long long) *count, (unsigned long long) no,
                       (unsigned long long) of);
    *count = of;
    return read_tensors(&r, ckpt, index, capacity, n_tensors, (size_t) alignment);
}

/* "-00001-of-00003.gguf" at the end of a path: where it begins, else NULL. */
static const char *split_suffix(const char *path, unsigned *no, unsigned *count)
{
    enum { LENGTH = sizeof "-00001-of-00003.gguf" - 1 };
    size_t n = strlen(path);
    int used = 0;
    if (n < LENGTH) return NULL;
    path += n - LENGTH;
    return sscanf(path, "-%5u-of-%5u.gguf%n", no, count, &used) == 2 && used == LENGTH ? path : NULL;
}

static qr_status open_shard(qr_checkpoint *ckpt, const char *path, qr_error *err)
{
    struct qr_shard *shard = &ckpt->shards[ckpt->n_shards++];
    shard->path = qr_strndup(path, strlen(path));
    if (shard->path == NULL) return qr_fail(err, QR_E_MEMORY, "%s: no memory for a path", path);
    return qr_file_open(&shard->file, path, err);
}

/* Parts 2 to `count`, beside the first. */
static qr_status read_rest(qr_gguf *first, qr_checkpoint *ckpt, size_t *capacity, uint64_t count, qr_error *err)
{
    unsigned no, of;
    const char *path = ckpt->shards[0].path, *suffix = split_suffix(path, &no, &of);
    uint64_t n_tensors;
    reader r = {.path = path, .err = err};
    if (suffix == NULL || no != 1 || of != count)
        return qr_fail(err, QR_E_FORMAT, "%s: expected a name that ends in -00001-of-%05llu.gguf, as its split.count is %llu", path,
                       (unsigned long long) count, (unsigned long long) count);
    struct qr_shard *grown = qr_realloc(ckpt->shards, (size_t) count, sizeof *grown);
    char *name = qr_calloc(strlen(path) + 1, 1);
    if (grown != NULL) ckpt->shards = grown;
    qr_status status = grown != NULL && name != NULL ? QR_OK : qr_fail(err, QR_E_MEMORY, "%s: no memory for its other parts", path);
    for (size_t i = 1; status == QR_OK && i < count; i++) {
        qr_gguf other = {0};
        ckpt->shards[i] = (struct qr_shard){0};
        snprintf(name, strlen(path) + 1, "%.*s-%05zu-of-%05u.gguf", (int) (suffix - path), path, i + 1, of);
        status = open_shard(ckpt, name, err);
        if (status == QR_OK) status = read_shard(&other, ckpt, i, capacity, &count, err);
        qr_gguf_close(&other);
    }
    qr_free(name);
    if (status != QR_OK) return status;
    status = read_uint_key(&r, first, "split.tensors.count", ckpt->n_tensors, &n_tensors);
    if (status == QR_OK && n_tensors != ckpt->n_tensors)
        status = qr_fail(err, QR_E_FORMAT, "%s: split.tensors.count: expected the %zu of all parts, found %llu", path, ckpt->n_tensors,
                         (unsigned long long) n_tensors);
    return status;
}

qr_status qr_gguf_open(qr_gguf *gguf, qr_checkpoint *ckpt, const char *path, qr_error *err)
{
    size_t capacity = 0;
    uint64_t count = 0;
    *gguf = (qr_gguf){0};
    *ckpt = (qr_checkpoint){.shards = qr_calloc(1, sizeof *ckpt->shards)};
    if (ckpt->shards == NULL) return qr_fail(err, QR_E_MEMORY, "%s: no memory for a checkpoint", path);
    qr_status status = open_shard(ckpt, path, err);
    if (status == QR_OK) status = read_shard(gguf, ckpt, 0, &capacity, &count, err);
    if (status == QR_OK && count > 1) status = read_rest(gguf, ckpt, &capacity, count, err);
    if (status == QR_OK) status = qr_checkpoint_sort(ckpt, err);
    if (status == QR_OK) return QR_OK;
    qr_gguf_close(gguf);
    qr_checkpoint_close(ckpt);
    return status;
}

void qr_gguf_close(qr_gguf *gguf)
{
    qr_free(gguf->keys);
    *gguf = (qr_gguf){0};
}

const qr_gguf_key *qr_gguf_find(const qr_gguf *gguf, const char *name)
{
    qr_gguf_key key = {.name = {name, strlen(name)}};
    return gguf->n_keys > 0 ? bsearch(&key, gguf->keys, gguf->n_keys, sizeof key, by_name) : NULL;
}

int qr_gguf_uint(const qr_gguf_key *key, uint64_t *out)
{
    uint64_t value = 0;
    size_t size = key != NULL && key->type < QR_GGUF_N_TYPES ? value_bytes[key->type] : 0;
    if (size == 0 || key->type == QR_GGUF_F32 || key->type == QR_GGUF_F64 || key->type == QR_GGUF_BOOL) return 0;
    memcpy(&value, key->data, size);
    int is_signed = key->type == QR_GGUF_I8 || key->type == QR_GGUF_I16 || key->type == QR_GGUF_I32 || key->type == QR_GGUF_I64;
    if (is_signed && value >> (8 * size - 1) != 0) return 0;
    *out = value;
    return 1;
}

int qr_gguf_real(const qr_gguf_key *key, double *out)
{
    float narrow;
    if (key == NULL || (key->type != QR_GGUF_F32 && key->type != QR_GGUF_F64)) return 0;
    if (key->type == QR_GGUF_F64) {
        memcpy(out, key->data, sizeof *out);
        return 1;
    }
    memcpy(&narrow, key->data, sizeof narrow);
    *out = (double) narrow;
    return 1;
}

qr_text qr_gguf_string(const qr_gguf_key *key)
{
    return key != NULL && key->type == QR_GGUF_STRING ? (qr_text){(const char *) key->data, key->n} : (qr_text){"", 0};
}

int qr_gguf_is(const qr_gguf_key *key, const char *text)
{
    qr_text found = qr_gguf_string(key);
    return found.len == strlen(text) && memcmp(found.data, text, found.len) == 0;
}

qr_text qr_gguf_next_string(const unsigned char **at)
{
    uint64_t n;
    memcpy(&n, *at, sizeof n);
    qr_text text = {(const char *) *at + sizeof n, (size_t) n};
    *at += sizeof n + n;
    return text;
}
