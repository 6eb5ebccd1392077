/* A tokenizer.json of a few kilobytes for tests and fuzz targets: the byte symbols, with ids that are not in byte order, and some merges.
 */
#ifndef QR_TESTS_SMALL_TOKENIZER_H
#define QR_TESTS_SMALL_TOKENIZER_H

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define SMALL_PATTERN                                                                                                                      \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|"              \
    "\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
#define SMALL_SPECIAL 900 /* id of <|x|>; byte b has id 300 - b */

enum { SMALL_CAPACITY = 16384 };

/* merges_first: merges before vocab; merge_strings: "a b" instead of ["a","b"]. Returns the length. */
static inline size_t small_tokenizer(char out[SMALL_CAPACITY], int merges_first, int merge_strings)
{
    static const char *const merges[][2] = {{"a", "a"},    {"aa", "aa"},      {"a", "b"}, {"ab", "c"},
                                            {"b", "c"},    {"\xC4\xA0", "a"}, {"!", "!"}, {"\xC3\x8C", "\xC4\xA3"},
                                            {"aaaa", "b"}, {"c", "c"}};
    enum { N = sizeof merges / sizeof merges[0] };
    char vocab[8192], list[1024];
    size_t v = 0, m = 0, n = 0;
    int next = 0x100;
    for (int b = 0; b < 256; b++) {
        int cp = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174 ? b : next++;
        char symbol[3] = {(char) cp, 0, 0};
        if (cp >= 0x80) {
            symbol[0] = (char) (0xC0 | cp >> 6);
            symbol[1] = (char) (0x80 | (cp & 0x3F));
        }
        v += (size_t) sprintf(vocab + v, "%s\"%s%s\":%d", b ? "," : "", cp == '"' || cp == '\\' ? "\\" : "", symbol, 300 - b);
    }
    for (int i = 0; i < N; i++) {
        v += (size_t) sprintf(vocab + v, ",\"%s%s\":%d", merges[i][0], merges[i][1], 400 + 7 * i);
        m += (size_t) sprintf(list + m, merge_strings ? "%s\"%s %s\"" : "%s[\"%s\",\"%s\"]", i ? "," : "", merges[i][0], merges[i][1]);
    }
    n = (size_t) sprintf(
        out,
        "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[{\"id\":%d,\"content\":\"<|x|>\","
        "\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true}],"
        "\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
        "\"pattern\":{\"Regex\":\"%s\"},\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\","
        "\"add_prefix_space\":false,\"trim_offsets\":false,\"use_regex\":false}]},\"post_processor\":{\"type\":\"ByteLevel\","
        "\"add_prefix_space\":false},\"decoder\":{\"type\":\"ByteLevel\",\"n\":[-1.5e+3,true,{\"k\":\"\\ud83d\\ude00\"}]},",
        SMALL_SPECIAL, SMALL_PATTERN);
    n += (size_t) sprintf(out + n, "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":\"\","
                                   "\"end_of_word_suffix\":\"\",\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\":false,");
    if (merges_first) n += (size_t) sprintf(out + n, "\"merges\":[%s],\"vocab\":{%s}}}", list, vocab);
    else n += (size_t) sprintf(out + n, "\"vocab\":{%s},\"merges\":[%s]}}", vocab, list);
    return n;
}

#endif
