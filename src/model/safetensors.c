/* safetensors: u64 little-endian header length, a JSON object {name: {dtype, shape, data_offsets: [begin, end]}}, the data.
 *
 * The rules are those of the format's own library (the safetensors crate): at most 100,000,000 bytes of header that starts with '{', no
 * duplicate name, end - begin is exactly what dtype and shape need, and the ranges, in order of begin, follow each other without gap or
 * overlap up to the last byte of the file. A gap could hide data from whoever inspects a file, and a tail means a broken download, so
 * files that the reference refuses are refused here too.
 *
 * The header is parsed with jansson (see json.c): a hand-written parser would save some memory during loading, nothing else, and would be
 * one more parser to get wrong. What comes out of it is checked here before anything is computed from it. */
#define _POSIX_C_SOURCE 200809L /* stpcpy */
#include "model/safetensors.h"

#include "base/json_in.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are used as stored, which is little-endian");
_Static_assert(sizeof(size_t) == 8, "a checkpoint is larger than a 32-bit address space");

#define INDEX_NAME "model.safetensors.index.json"
enum {
    MAX_HEADER = 100000000, /* the format's own limit */
    MAX_INDEX = 100000000,  /* about as long as the headers of its shards */
    MAX_TENSORS = 1 << 20,  /* the largest published models have some 100,000 */
    MAX_SHARDS = 1 << 12,   /* each takes a mapping of the process's 65,530 */
    LENGTH_BYTES = 8,
    N_TYPES = QR_T_F8_E8M0 + 1, /* those after it are other formats' */
};

/* A non-negative integer; JSON reals are refused, even 1.0, as the reference does. */
static int to_size(const json_t *value, size_t *out)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0) return 0;
    *out = (size_t) json_integer_value(value);
    return 1;
}

/* Fills *t from one entry of the header. Messages name neither file nor tensor: the caller puts both in front. */
static qr_status read_tensor(qr_tensor *t, const json_t *entry, const unsigned char *data, size_t data_bytes, qr_error *err)
{
    if (!json_is_object(entry)) return qr_fail(err, QR_E_FORMAT, "expected an object, found %s", qr_json_label(entry).text);
    const json_t *dtype = json_object_get(entry, "dtype"), *shape = json_object_get(entry, "shape");
    const json_t *offsets = json_object_get(entry, "data_offsets");

    if (!json_is_string(dtype)) return qr_fail(err, QR_E_FORMAT, "dtype: expected a string, found %s", qr_json_label(dtype).text);
    int type = 0;
    while (type < N_TYPES && strcmp(qr_tensor_type_name((qr_tensor_type) type), json_string_value(dtype)) != 0) type++;
    if (type == N_TYPES) return qr_fail(err, QR_E_UNSUPPORTED, "dtype: expected one such as BF16, found %s", qr_json_label(dtype).text);
    t->type = (qr_tensor_type) type;

    if (!json_is_array(shape)) return qr_fail(err, QR_E_FORMAT, "shape: expected a list, found %s", qr_json_label(shape).text);
    if (json_array_size(shape) > QR_TENSOR_MAX_DIMS)
        return qr_fail(err, QR_E_UNSUPPORTED, "shape: expected at most %d dimensions, found %zu", QR_TENSOR_MAX_DIMS,
                       json_array_size(shape));
    t->n_dims = (int) json_array_size(shape);
    t->n_elements = 1;
    for (int i = 0; i < t->n_dims; i++) {
        const json_t *dim = json_array_get(shape, (size_t) i);
        if (!to_size(dim, &t->dims[i]))
            return qr_fail(err, QR_E_FORMAT, "shape[%d]: expected a non-negative integer, found %s", i, qr_json_label(dim).text);
        if (__builtin_mul_overflow(t->n_elements, t->dims[i], &t->n_elements))
            return qr_fail(err, QR_E_FORMAT, "shape[%d]: the number of elements overflows 64 bits at %zu", i, t->dims[i]);
    }
    if (__builtin_mul_overflow(t->n_elements, qr_tensor_type_size(t->type), &t->n_bytes))
        return qr_fail(err, QR_E_FORMAT, "shape: %zu elements of %s overflow 64 bits", t->n_elements, qr_tensor_type_name(t->type));

    size_t begin, end;
    if (json_array_size(offsets) != 2 || !to_size(json_array_get(offsets, 0), &begin) || !to_size(json_array_get(offsets, 1), &end))
        return qr_fail(err, QR_E_FORMAT, "data_offsets: expected a list of two non-negative integers, found %s",
                       json_is_array(offsets) ? "another list" : qr_json_label(offsets).text);
    if (begin > end || end > data_bytes)
        return qr_fail(err, QR_E_FORMAT, "data_offsets: expected a range within the %zu data bytes of the file, found [%zu, %zu]",
                       data_bytes, begin, end);
    if (end - begin != t->n_bytes)
        return qr_fail(err, QR_E_FORMAT, "data_offsets: expected %zu bytes for %zu elements of %s, found %zu in [%zu, %zu]", t->n_bytes,
                       t->n_elements, qr_tensor_type_name(t->type), end - begin, begin, end);
    t->data = data + begin;
    return QR_OK;
}

static int by_data(const void *a, const void *b)
{
    const qr_tensor *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return (x->n_bytes > y->n_bytes) - (x->n_bytes < y->n_bytes); /* empty tensors before the one that starts where they lie */
}

/* t [n], sorted by data: each begins where the one before it ends, and the last one ends with the file. */
static qr_status check_layout(const qr_tensor *t, size_t n, const unsigned char *data, size_t data_bytes, const char *path, qr_error *err)
{
    size_t expected = 0;
    for (size_t i = 0; i < n; i++) {
        size_t begin = (size_t) (t[i].data - data);
        if (begin != expected)
            return qr_fail(err, QR_E_FORMAT,
                           "%s: tensor \"%s\": expected to begin at data byte %zu, where the one before it ends, found %zu (%s)", path,
                           qr_label_of(t[i].name).text, expected, begin, begin < expected ? "an overlap" : "a gap");
        expected += t[i].n_bytes;
    }
    if (expected != data_bytes)
        return qr_fail(err, QR_E_FORMAT, "%s: expected %zu data bytes, which its tensors cover, found %zu", path, expected, data_bytes);
    return QR_OK;
}

/* __metadata__ maps strings to strings; nothing in it is needed, but a file in which it is something else was not made by a writer of
 * this format. */
static qr_status check_metadata(const json_t *metadata, const char *path, qr_error *err)
{
    const char *key;
    json_t *value;
    if (!json_is_object(metadata))
        return qr_fail(err, QR_E_FORMAT, "%s: __metadata__: expected an object, found %s", path, qr_json_label(metadata).text);
    json_object_foreach((json_t *) (uintptr_t) metadata, key, value)
    {
        if (!json_is_string(value))
            return qr_fail(err, QR_E_FORMAT, "%s: __metadata__: \"%s\": expected a string, found %s", path, qr_label_of(key).text,
                           qr_json_label(value).text);
    }
    return QR_OK;
}

/* Length and start of the header, before any of it is parsed. */
static qr_status check_header(const qr_file *file, const char *path, size_t *header_bytes, qr_error *err)
{
    static const char lfs[] = "version https://git-lfs";
    if (file->size >= sizeof lfs - 1 && memcmp(file->data, lfs, sizeof lfs - 1) == 0)
        return qr_fail(err, QR_E_FORMAT, "%s: expected tensors, found a Git LFS pointer to them: run `git lfs pull` in its folder", path);
    if (file->size < LENGTH_BYTES)
        return qr_fail(err, QR_E_FORMAT, "%s: expected a header length of %d bytes at byte 0, found a file of %zu", path, LENGTH_BYTES,
                       file->size);
    uint64_t n;
    memcpy(&n, file->data, sizeof n);
    if (n > file->size - LENGTH_BYTES || n > MAX_HEADER)
        return qr_fail(err, QR_E_FORMAT, "%s: byte 0: expected a header length of at most %zu, found %llu", path,
                       file->size - LENGTH_BYTES < MAX_HEADER ? file->size - LENGTH_BYTES : (size_t) MAX_HEADER, (unsigned long long) n);
    if (n == 0 || file->data[LENGTH_BYTES] != '{')
        return qr_fail(err, QR_E_FORMAT, "%s: byte %d: expected a header that starts with '{', found %s", path, LENGTH_BYTES,
                       n == 0 ? "none" : "something else");
    *header_bytes = (size_t) n;
    return QR_OK;
}

/* Appends the tensors of shard `index`, whose file is open, in order of their data. */
static qr_status read_shard(qr_checkpoint *ckpt, size_t index, size_t *capacity, qr_error *err)
{
    struct qr_shard *shard = &ckpt->shards[index];
    size_t header_bytes = 0, names_bytes = 0, first = ckpt->n_tensors;
    json_t *root = NULL, *entry;
    const char *name;
    qr_status status = check_header(&shard->file, shard->path, &header_bytes, err);
    if (status == QR_OK) status = qr_json_parse(&root, (const char *) shard->file.data + LENGTH_BYTES, header_bytes, shard->path, err);
    if (status != QR_OK) return status;

    const unsigned char *data = shard->file.data + LENGTH_BYTES + header_bytes;
    size_t data_bytes = shard->file.size - LENGTH_BYTES - header_bytes, room = first + json_object_size(root);
    if (room > MAX_TENSORS) {
        status = qr_fail(err, QR_E_FORMAT, "%s: expected at most %d tensors, found %zu", shard->path, MAX_TENSORS, room);
        goto done;
    }
    json_object_foreach(root, name, entry) { names_bytes += strlen(name) + 1; }
    qr_tensor *tensors = qr_grow(ckpt->tensors, capacity, room, sizeof *tensors);
    if (tensors != NULL) ckpt->tensors = tensors;
    shard->names = qr_calloc(names_bytes, 1);
    if (tensors == NULL || shard->names == NULL) {
        status = qr_fail(err, QR_E_MEMORY, "%s: no memory for a list of %zu tensors", shard->path, room);
        goto done;
    }
    char *next = shard->names;
    json_object_foreach(root, name, entry)
    {
        if (strcmp(name, "__metadata__") == 0) {
            status = check_metadata(entry, shard->path, err);
            if (status != QR_OK) goto done;
            continue;
        }
        qr_tensor *t = &tensors[ckpt->n_tensors];
        *t = (qr_tensor){.name = next, .shard = (int) index};
        status = read_tensor(t, entry, data, data_bytes, err);
        if (status != QR_OK) {
            qr_fail_prefix(err, status, "%s: tensor \"%s\"", shard->path, qr_label_of(name).text);
            goto done;
        }
        next = stpcpy(next, name) + 1;
        ckpt->n_tensors++;
    }
    qsort(tensors + first, ckpt->n_tensors - first, sizeof *tensors, by_data);
    status = check_layout(tensors + first, ckpt->n_tensors - first, data, data_bytes, shard->path, err);
done:
    json_decref(root);
    return status;
}

/* Opens shards[0..n_shards) of the given file names and sorts all tensors by name. */
static qr_status read_shards(qr_checkpoint *ckpt, const char *dir, const char *const *names, size_t n_names, qr_error *err)
{
    size_t capacity = 0;
    ckpt->shards = qr_calloc(n_names, sizeof *ckpt->shards);
    if (ckpt->shards == NULL) return qr_fail(err, QR_E_MEMORY, "%s: no memory for a list of %zu shards", dir, n_names);
    for (size_t i = 0; i < n_names; i++) {
        ckpt->n_shards = i + 1; /* what qr_checkpoint_close has to look at */
        ckpt->shards[i].path = qr_path_join(dir, names[i]);
        if (ckpt->shards[i].path == NULL) return qr_fail(err, QR_E_MEMORY, "%s: no memory for the path of %s", dir, names[i]);
        qr_status status = qr_file_open(&ckpt->shards[i].file, ckpt->shards[i].path, err);
        if (status == QR_OK) status = read_shard(ckpt, i, &capacity, err);
        if (status != QR_OK) return status;
    }
    return qr_checkpoint_sort(ckpt, err);
}

static int by_text(const void *a, const void *b) { return strcmp(*(const char *const *) a, *(const char *const *) b); }

/* A shard is a file next to its index: its name must not lead anywhere else. */
static int is_plain_name(const char *name)
{
    for (const char *p = name; *p; p++)
        if (*p == '/' || *p == '\\' || (unsigned char) *p < 0x20 || *p == 0x7F) return 0;
    return name[0] != 0 && name[0] != '.' && strlen(name) <= 255;
}

/* weight_map says where each tensor should be; total_size beside it is not looked at, as nothing may depend on it. Tensors of a shard
 * that the map does not list are kept: the reference loads them too. */
static qr_status read_index(qr_checkpoint *ckpt, const char *dir, const char *path, qr_error *err)
{
    json_t *root, *file;
    const char *name, **names = NULL;
    size_t n = 0, n_names = 0;
    qr_status status = qr_json_read(&root, path, MAX_INDEX, err);
    if (status != QR_OK) return status;
    json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0 || json_object_size(map) > MAX_TENSORS) {
        status = qr_fail(err, QR_E_FORMAT, "%s: weight_map: expected an object of 1 to %d names, found %s of %zu", path, MAX_TENSORS,
                         qr_json_label(map).text, json_object_size(map));
        goto done;
    }
    if ((names = qr_calloc(json_object_size(map), sizeof *names)) == NULL) {
        status = qr_fail(err, QR_E_MEMORY, "%s: no memory for %zu names", path, json_object_size(map));
        goto done;
    }
    json_object_foreach(map, name, file)
    {
        if (!json_is_string(file) || !is_plain_name(json_string_value(file))) {
            status = qr_fail(err, QR_E_FORMAT, "%s: tensor \"%s\": expected the plain name of a shard beside the index, found %s", path,
                             qr_label_of(name).text, qr_json_label(file).text);
            goto done;
        }
        names[n++] = json_string_value(file);
    }
    qsort(names, n, sizeof *names, by_text);
    for (size_t i = 0; i < n; i++)
        if (n_names == 0 || strcmp(names[n_names - 1], names[i]) != 0) names[n_names++] = names[i];
    if (n_names > MAX_SHARDS) {
        status = qr_fail(err, QR_E_FORMAT, "%s: expected at most %d shards, found %zu", path, MAX_SHARDS, n_names);
        goto done;
    }
    status = read_shards(ckpt, dir, names, n_names, err);
    if (status != QR_OK) {
        if (status == QR_E_NOT_FOUND) qr_fail_prefix(err, status, "%s names a shard that is missing", path);
        goto done;
    }
    json_object_foreach(map, name, file)
    {
        const qr_tensor *t = qr_checkpoint_find(ckpt, name);
        if (t == NULL || strcmp(names[t->shard], json_string_value(file)) != 0) {
            status = qr_fail(err, QR_E_FORMAT, "%s: tensor \"%s\": expected in %s, found %s%s", path, qr_label_of(name).text,
                             qr_json_label(file).text, t == NULL ? "nowhere" : "in ", t == NULL ? "" : qr_label_of(names[t->shard]).text);
            goto done;
        }
    }
done:
    qr_free(names);
    json_decref(root);
    return status;
}

qr_status qr_checkpoint_open(qr_checkpoint *ckpt, const char *dir, qr_error *err)
{
    static const char *const single = "model.safetensors";
    *ckpt = (qr_checkpoint){0};
    char *index = qr_path_join(dir, INDEX_NAME);
    if (index == NULL) return qr_fail(err, QR_E_MEMORY, "%s: no memory for a path", dir);
    qr_status status = qr_file_exists(index) ? read_index(ckpt, dir, index, err) : read_shards(ckpt, dir, &single, 1, err);
    qr_free(index);
    if (status != QR_OK) qr_checkpoint_close(ckpt);
    return status;
}

qr_status qr_checkpoint_open_memory(qr_checkpoint *ckpt, const void *data, size_t size, const char *name, qr_error *err)
{
    size_t capacity = 0;
    *ckpt = (qr_checkpoint){0};
    qr_status status = QR_E_MEMORY;
    ckpt->shards = qr_calloc(1, sizeof *ckpt->shards);
    if (ckpt->shards != NULL) {
        ckpt->n_shards = 1;
        ckpt->shards[0].file = (qr_file){.data = data, .size = size, .borrowed = 1};
        ckpt->shards[0].path = qr_strndup(name, strlen(name));
    }
    if (ckpt->shards == NULL || ckpt->shards[0].path == NULL) qr_fail(err, status, "%s: no memory for a checkpoint", name);
    else status = read_shard(ckpt, 0, &capacity, err);
    if (status == QR_OK) status = qr_checkpoint_sort(ckpt, err);
    if (status != QR_OK) qr_checkpoint_close(ckpt);
    return status;
}
