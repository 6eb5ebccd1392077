/* safetensors files that a stranger made: every way to be wrong must end in an error that says something, or in tensors that lie within
 * the file. Run under the address and undefined-behaviour sanitizers this also shows that nothing outside the map is read. */
#define _GNU_SOURCE
#include "base/mem.h"
#include "model/safetensors.h"
#include "temp_dir.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

/* length + header + n zero bytes; returns the file's size. */
static size_t build(unsigned char *out, const char *header, size_t n_data)
{
    uint64_t n = strlen(header);
    memcpy(out, &n, 8);
    memcpy(out + 8, header, n);
    memset(out + 8 + n, 0, n_data);
    return 8 + n + n_data;
}

static void write_file(const char *name, const char *header, size_t n_data)
{
    static unsigned char file[1 << 20];
    assert_true(strlen(header) + n_data + 8 <= sizeof file);
    temp_write(&dir, name, file, build(file, header, n_data));
}

/* Whatever was accepted can be used: order, names, counts and every byte. */
static void check_invariants(const qr_checkpoint *c)
{
    unsigned sum = 0;
    for (size_t i = 0; i < c->n_tensors; i++) {
        const qr_tensor *t = &c->tensors[i];
        assert_true(i == 0 || strcmp(c->tensors[i - 1].name, t->name) < 0);
        assert_ptr_equal(qr_checkpoint_find(c, t->name), t);
        assert_in_range(t->n_dims, 0, QR_TENSOR_MAX_DIMS);
        size_t n = 1;
        for (int k = 0; k < t->n_dims; k++) n *= t->dims[k];
        assert_int_equal(n, t->n_elements);
        assert_int_equal(n * qr_tensor_type_size(t->type), t->n_bytes);
        const qr_file *file = &c->shards[t->shard].file;
        assert_true(t->data >= file->data && t->data + t->n_bytes <= file->data + file->size);
        for (size_t k = 0; k < t->n_bytes; k++) sum += t->data[k];
        qr_checkpoint_release(c, t);
    }
    assert_true(sum < 1u << 31);
}

/* Opens and closes; the message is checked whenever there has to be one. */
static qr_status try_open(qr_error *err)
{
    qr_checkpoint c;
    *err = (qr_error){0};
    qr_status status = qr_checkpoint_open(&c, dir.path, err);
    if (status == QR_OK) {
        check_invariants(&c);
    } else {
        assert_int_equal(err->code, status);
        assert_true(strlen(err->msg) > 0);
        assert_null(strchr(err->msg, '\n'));
        assert_true(c.tensors == NULL && c.shards == NULL);
    }
    qr_checkpoint_close(&c);
    return status;
}

static void expect(qr_status status, const char *part)
{
    qr_error err;
    qr_status got = try_open(&err);
    if (got != status || strstr(err.msg, part) == NULL) fail_msg("expected %d \"%s\", found %d \"%s\"", status, part, got, err.msg);
}

static void expect_header(const char *header, size_t n_data, qr_status status, const char *part)
{
    write_file("model.safetensors", header, n_data);
    expect(status, part);
}

static const char good[] =
    "{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[4,16]},"
    "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"e\":{\"dtype\":\"U8\",\"shape\":[0,9],\"data_offsets\":[4,4]}}  ";
enum { GOOD_DATA = 16 };

static void reads_a_file(void **state)
{
    (void) state;
    qr_checkpoint c;
    qr_error err;
    write_file("model.safetensors", good, GOOD_DATA);
    assert_int_equal(qr_checkpoint_open(&c, dir.path, &err), QR_OK);
    check_invariants(&c);
    assert_int_equal(c.n_tensors, 3);
    assert_string_equal(c.tensors[0].name, "a");
    const qr_tensor *b = qr_checkpoint_find(&c, "b");
    assert_non_null(b);
    assert_int_equal(b->type, QR_T_BF16);
    assert_int_equal(b->n_dims, 2);
    assert_int_equal(b->dims[0] * 10 + b->dims[1], 23);
    assert_int_equal(b->data - c.tensors[0].data, 4);
    assert_null(qr_checkpoint_find(&c, "c"));
    qr_checkpoint_close(&c);
    qr_checkpoint_close(NULL);

    expect_header("{}", 0, QR_OK, "");
    expect_header("{\"scalar\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[0,8]}}", 8, QR_OK, "");
}

static void survives_truncation_at_every_byte(void **state)
{
    (void) state;
    unsigned char file[1024];
    size_t n = build(file, good, GOOD_DATA);
    for (size_t i = 0; i < n; i++) {
        temp_write(&dir, "model.safetensors", file, i);
        expect(QR_E_FORMAT, "model.safetensors: ");
    }
    temp_write(&dir, "model.safetensors", file, n + 1); /* one byte of tail: a file that is not what its header says */
    expect(QR_E_FORMAT, "expected 16 data bytes");
}

static void survives_every_changed_byte(void **state)
{
    (void) state;
    unsigned char file[1024];
    const char replacements[] = " 09-.eE\"\\{}[],:\n\x7f\x80\xff";
    size_t n = build(file, good, GOOD_DATA), accepted = 0;
    for (size_t i = 0; i < n - GOOD_DATA; i++) {
        unsigned char old = file[i];
        for (size_t k = 0; k < 8 + sizeof replacements; k++) { /* each bit, then each character, its NUL included */
            qr_error err;
            file[i] = (unsigned char) (k < 8 ? old ^ 1u << k : (unsigned char) replacements[k - 8]);
            temp_write(&dir, "model.safetensors", file, n);
            accepted += try_open(&err) == QR_OK;
        }
        file[i] = old;
    }
    assert_true(accepted > 0); /* other names, for example, are fine */
}

static void refuses_bad_headers(void **state)
{
    (void) state;
#define T(dtype, shape, offsets) "{\"x\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define U8(name, offsets) "\"" name "\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" offsets "}"
    static const struct {
        const char *header;
        size_t n_data;
        qr_status status;
        const char *part;
    } cases[] = {
        {" {}", 0, QR_E_FORMAT, "starts with '{'"},
        {"[]", 0, QR_E_FORMAT, "starts with '{'"},
        {"{", 0, QR_E_FORMAT, "expected JSON"},
        {"{} x", 0, QR_E_FORMAT, "expected JSON"},
        {"{\"x\":1}", 0, QR_E_FORMAT, "tensor \"x\": expected an object, found 1"},
        {"{\"x\\u0000y\":1}", 0, QR_E_FORMAT, "expected JSON"},
        {"{\"x\\ny\":1}", 0, QR_E_FORMAT, "tensor \"x?y\""},
        {"{\"__metadata__\":{\"a\":1}}", 0, QR_E_FORMAT, "__metadata__: \"a\": expected a string, found 1"},
        {"{\"__metadata__\":[]}", 0, QR_E_FORMAT, "__metadata__: expected an object, found a list"},
        {T("\"BF16\"", "[2]", "[0,4]"), 3, QR_E_FORMAT, "within the 3 data bytes"},
        {T("\"BF16\"", "[2]", "[0,4]"), 5, QR_E_FORMAT, "expected 4 data bytes"},
        {T("\"BF16\"", "[2]", "[4,0]"), 4, QR_E_FORMAT, "data_offsets"},
        {T("\"BF16\"", "[2]", "[0,3]"), 3, QR_E_FORMAT, "expected 4 bytes for 2 elements of BF16, found 3"},
        {T("\"BF16\"", "[2]", "[0,4,4]"), 4, QR_E_FORMAT, "two non-negative integers"},
        {T("\"BF16\"", "[2]", "[-4,0]"), 4, QR_E_FORMAT, "two non-negative integers"},
        {T("\"BF16\"", "[2]", "[0,4.0]"), 4, QR_E_FORMAT, "two non-negative integers"},
        {T("\"BF16\"", "[2]", "null"), 4, QR_E_FORMAT, "found null"},
        {T("\"BF16\"", "[2]", "[0,18446744073709551615]"), 4, QR_E_FORMAT, "expected JSON"},
        {T("\"BF16\"", "[2]", "[9223372036854775807,9223372036854775807]"), 4, QR_E_FORMAT, "within the 4 data bytes"},
        {T("\"BF16\"", "2", "[0,4]"), 4, QR_E_FORMAT, "shape: expected a list, found 2"},
        {T("\"BF16\"", "[-2]", "[0,4]"), 4, QR_E_FORMAT, "shape[0]: expected a non-negative integer, found -2"},
        {T("\"BF16\"", "[2.0]", "[0,4]"), 4, QR_E_FORMAT, "shape[0]"},
        {T("\"BF16\"", "[1e400]", "[0,4]"), 4, QR_E_FORMAT, "expected JSON"},
        {T("\"BF16\"", "[NaN]", "[0,4]"), 4, QR_E_FORMAT, "expected JSON"},
        {T("\"BF16\"", "[4294967296,4294967296]", "[0,0]"), 0, QR_E_FORMAT, "overflow"},
        {T("\"F64\"", "[9223372036854775807]", "[0,0]"), 0, QR_E_FORMAT, "overflow"},
        {T("\"U8\"", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1, QR_E_UNSUPPORTED, "at most 8 dimensions, found 9"},
        {T("\"Q9\"", "[1]", "[0,1]"), 1, QR_E_UNSUPPORTED, "found \"Q9\""},
        {T("7", "[1]", "[0,1]"), 1, QR_E_FORMAT, "dtype: expected a string, found 7"},
        {"{\"x\":{}}", 0, QR_E_FORMAT, "dtype: expected a string, found nothing"},
        {"{" U8("a", "[0,4]") "," U8("b", "[2,6]") "}", 6, QR_E_FORMAT, "an overlap"},
        {"{" U8("a", "[0,4]") "," U8("b", "[0,4]") "}", 4, QR_E_FORMAT, "an overlap"},
        {"{" U8("a", "[0,4]") "," U8("b", "[5,9]") "}", 9, QR_E_FORMAT, "a gap"},
        {"{" U8("a", "[1,5]") "}", 5, QR_E_FORMAT, "a gap"},
        {"{" U8("a", "[0,4]") "," U8("a", "[4,8]") "}", 8, QR_E_FORMAT, "expected JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        expect_header(cases[i].header, cases[i].n_data, cases[i].status, cases[i].part);
}

static void refuses_bad_lengths(void **state)
{
    (void) state;
    static const uint64_t lengths[] = {0, 3, 100000001, INT64_MAX, UINT64_MAX - 7, UINT64_MAX};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        char file[] = "........{}";
        memcpy(file, &lengths[i], 8);
        temp_write(&dir, "model.safetensors", file, sizeof file - 1);
        expect(QR_E_FORMAT, "byte ");
    }
    temp_text(&dir, "model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n");
    expect(QR_E_FORMAT, "git lfs pull");
    temp_text(&dir, "model.safetensors", "");
    expect(QR_E_FORMAT, "found a file of 0");
}

/* jansson stops at 2,048 levels, long before the stack does. */
static void refuses_deep_json(void **state)
{
    (void) state;
    static char header[300000];
    strcpy(header, "{\"x\":");
    memset(header + 5, '[', sizeof header - 6);
    expect_header(header, 0, QR_E_FORMAT, "expected JSON");
}

static void refuses_what_is_no_readable_file(void **state)
{
    (void) state;
    temp_path path = temp_name(&dir, "model.safetensors");
    unlink(path.text);
    expect(QR_E_NOT_FOUND, "model.safetensors");
    temp_mkdir(&dir, "model.safetensors");
    expect(QR_E_IO, "found a directory");
    temp_require(rmdir(path.text) == 0, path.text);
    temp_require(mkfifo(path.text, 0600) == 0, path.text);
    expect(QR_E_IO, "found a special file");
    unlink(path.text);
    write_file("model.safetensors", good, GOOD_DATA);
    temp_require(chmod(path.text, 0) == 0, path.text);
    if (geteuid() != 0) expect(QR_E_IO, "cannot open");
    unlink(path.text);
}

#define INDEX "model.safetensors.index.json"
static void expect_index(const char *index, qr_status status, const char *part)
{
    temp_text(&dir, INDEX, index);
    expect(status, part);
}

static void reads_shards(void **state)
{
    (void) state;
    write_file("1.safetensors", "{" U8("a", "[0,4]") "," U8("c", "[4,8]") "}", 8);
    write_file("2.safetensors", "{" U8("b", "[0,4]") "}", 4);
    temp_text(
        &dir, INDEX,
        "{\"metadata\":{\"total_size\":-1e9},\"weight_map\":{\"c\":\"1.safetensors\",\"b\":\"2.safetensors\",\"a\":\"1.safetensors\"}}");
    qr_checkpoint c;
    qr_error err;
    assert_int_equal(qr_checkpoint_open(&c, dir.path, &err), QR_OK);
    check_invariants(&c);
    assert_int_equal(c.n_shards, 2);
    assert_int_equal(c.n_tensors, 3);
    assert_int_equal(qr_checkpoint_find(&c, "b")->shard, 1);
    qr_checkpoint_close(&c);

    expect_index("{\"weight_map\":{\"a\":\"2.safetensors\",\"b\":\"1.safetensors\"}}", QR_E_FORMAT,
                 "tensor \"a\": expected in \"2.safetensors\", found in 1");
    expect_index("{\"weight_map\":{\"a\":\"1.safetensors\",\"z\":\"1.safetensors\"}}", QR_E_FORMAT,
                 "tensor \"z\": expected in \"1.safetensors\", found nowhere");
    expect_index("{\"weight_map\":{\"a\":\"3.safetensors\"}}", QR_E_NOT_FOUND, "names a shard that is missing");
    expect_index("{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"4.safetensors\"}}", QR_E_NOT_FOUND, "4.safetensors");
    expect_index("{\"weight_map\":{}}", QR_E_FORMAT, "weight_map");
    expect_index("{\"weight_map\":[]}", QR_E_FORMAT, "found a list");
    expect_index("{}", QR_E_FORMAT, "found nothing");
    expect_index("[]", QR_E_FORMAT, "expected a JSON object");
    expect_index("", QR_E_FORMAT, "expected JSON");
    static const char *const names[] = {"", ".", "..", "../1.safetensors", "/etc/passwd", "a/b", "a\\\\b", ".hidden", "a\\nb"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char index[128];
        snprintf(index, sizeof index, "{\"weight_map\":{\"a\":\"%s\"}}", names[i]);
        expect_index(index, QR_E_FORMAT, "expected the plain name of a shard");
    }
    expect_index("{\"weight_map\":{\"a\":7}}", QR_E_FORMAT, "found 7");
    write_file("2.safetensors", "{" U8("a", "[0,4]") "}", 4);
    expect_index("{\"weight_map\":{\"c\":\"1.safetensors\",\"a\":\"2.safetensors\"}}", QR_E_FORMAT, "expected once, found in");
}

static void survives_running_out_of_memory(void **state)
{
    (void) state;
    write_file("1.safetensors", "{" U8("a", "[0,4]") "}", 4);
    write_file("2.safetensors", "{" U8("b", "[0,4]") "}", 4);
    temp_text(&dir, INDEX, "{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\"}}");
    qr_status status = QR_E_MEMORY;
    long n = 0;
    while (status != QR_OK) {
        qr_error err;
        qr_checkpoint c;
        assert_true(++n < 100);
        qr_mem_fail_at(n);
        status = qr_checkpoint_open(&c, dir.path, &err);
        qr_mem_fail_at(0);
        assert_true(status == QR_OK || status == QR_E_MEMORY);
        qr_checkpoint_close(&c);
    }
    assert_true(n > 5);
}

int main(void)
{
#define T2(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T2(reads_a_file),
        T2(survives_truncation_at_every_byte),
        T2(survives_every_changed_byte),
        T2(refuses_bad_headers),
        T2(refuses_bad_lengths),
        T2(refuses_deep_json),
        T2(reads_shards),
        T2(refuses_what_is_no_readable_file),
        T2(survives_running_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
