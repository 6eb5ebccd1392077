/* config.json of a Qwen3 model: read, checked for consistency, refused where it asks for something that this program does not run. */
#ifndef QR_MODEL_CONFIG_H
#define QR_MODEL_CONFIG_H

#include "base/error.h"

#include <stddef.h>

typedef enum qr_quantization {
    QR_QUANT_NONE,
    QR_QUANT_INT8, /* compressed-tensors "int-quantized": 8-bit integers, a scale per row */
    QR_QUANT_MLX,  /* MLX "affine": 2 to 8 bits, a scale and a bias per group of columns */
    QR_QUANT_FP8,  /* 8-bit floats, a scale per block, row or matrix */
    QR_QUANT_GPTQ, /* 4 or 8 bits, packed along the inputs */
    QR_QUANT_AWQ,  /* 4 bits, packed along the outputs */
    QR_QUANT_GGUF, /* GGUF's block types (blocks.h) */
} qr_quantization;

typedef struct qr_config {
    size_t n_layers, hidden, inter, vocab;
    size_t n_heads, n_kv_heads, head_dim; /* n_heads is a multiple of n_kv_heads; head_dim is even and need not be hidden / n_heads */
    size_t max_positions;
    double rope_theta;
    float rms_eps;
    int tied;                     /* the head is the embedding table */
    qr_quantization quantization; /* how matrices may be stored (weights.h) */
    size_t fp8_block[2];          /* rows and columns that share a scale; 0: there is one per row or matrix */
    int gptq_v2;                  /* zeros are stored as they are, not one less */
    char torch_dtype[16];         /* as written, "" if absent; informative only, every tensor has its own type */
} qr_config;

/* The sizes, what each format calls them, and their bounds: far above any model that exists and low enough that no product overflows. */
enum { QR_CONFIG_N_SIZES = 8 };
extern const struct qr_config_size {
    const char *json, *gguf; /* a GGUF key follows "qwen3." */
    size_t min, max, offset; /* offset: of the size_t in qr_config */
} qr_config_sizes[QR_CONFIG_N_SIZES];
/* Of a config of any format, once its sizes are within their bounds. */
qr_status qr_config_check(const qr_config *config, const char *path, qr_error *err);

/* path: a config.json. Accepts what re-savers write (see config.c). */
qr_status qr_config_read(qr_config *config, const char *path, qr_error *err);
/* The same for a file in memory; `path` is only for messages. */
qr_status qr_config_parse(qr_config *config, const char *text, size_t len, const char *path, qr_error *err);

#endif
