/* A model written anew: as GGUF for this program and llama.cpp, or as a folder of safetensors for it, transformers and MLX. One tensor at a
 * time, so that memory does not grow with the model. What is written appears whole or not at all (base/output.h).
 */
#ifndef QR_MODEL_EXPORT_H
#define QR_MODEL_EXPORT_H

#include "cpu/int8.h"
#include "model/quantize.h"
#include "model/weights.h"

enum { QR_AS_STORED = QR_N_TENSOR_TYPES };

/* What becomes of the matrices. Vectors are F32 in GGUF, as llama.cpp wants them, and else as they are. */
typedef struct qr_recipe {
    const char *name;
    int type;             /* of qr_tensor_type; QR_AS_STORED: each as it is; U32: MLX's form with */
    unsigned bits, group; /* these */
    qr_tensor_type finer; /* with `mixed`: of the token table, the head and some of v_proj and down_proj */
    int mixed;
    uint32_t file_type; /* GGUF's general.file_type */
} qr_recipe;

/* NULL if there is none. "mlx4", or "mlx4-g32", fills *mlx and returns it. */
const qr_recipe *qr_recipe_find(const char *name, qr_recipe *mlx);
/* "q8_0, q6_k, ..." */
const char *qr_recipe_names(void);
/* The type of a matrix whose rows have `cols` columns: another one where they are not whole blocks. */
qr_quant_form qr_recipe_form(const qr_recipe *recipe, const qr_tensor *tensor, int finer, int *fell_back);

/* What became of a tensor. */
typedef struct qr_export_row {
    char name[96];
    qr_quant_form form;
    size_t rows, cols;
    uint64_t bytes; /* scales and biases included */
    int fell_back;  /* not the recipe's type */
    double rmse;    /* root of the mean square error over that of the mean square */
    double max_error;
} qr_export_row;

typedef struct qr_export {
    const qr_model *model;
    const qr_recipe *recipe;
    int keep_files; /* GGUF: what the folder's other files say is kept in keys of our own, so that the way back gives the same bytes; and a
                     * head of its own is written whole, not only its two rows */
    const qr_int8_plan *importance; /* of columns (squares), or NULL: all matter alike */
    const volatile int *cancel;     /* or NULL; set: QR_E_CANCELLED */
    qr_export_row *rows;            /* [n_rows] of what was written; free with qr_export_deinit */
    size_t n_rows;
} qr_export;

qr_status qr_export_gguf(qr_export *job, const char *path, qr_error *err);
/* Of a model that is a folder or QR_BUILTIN: its tokenizer and other files are copied. */
qr_status qr_export_folder(qr_export *job, const char *path, qr_error *err);
void qr_export_deinit(qr_export *job);

#endif
