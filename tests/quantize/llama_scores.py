"""llama_scores.py FOLDER MODEL < [[query, document], ...]: [[P(yes), tokens], ...] by llama.cpp, whose libraries are in FOLDER.

A program of its own, as the libraries stay loaded and may abort. Parameters pass as blocks of bytes: only their first fields are needed,
and the rest keeps the defaults that the library gives.
"""

import ctypes as c
import json
import pathlib
import sys

folder, model = pathlib.Path(sys.argv[1]), sys.argv[2]


class Opaque(c.Structure):
    _fields_ = [("bytes", c.c_uint8 * 1024)]


class Context(c.Structure):
    _fields_ = [("n_ctx", c.c_uint32), ("n_batch", c.c_uint32), ("n_ubatch", c.c_uint32), ("rest", c.c_uint8 * 1012)]


class Batch(c.Structure):
    _fields_ = [("n", c.c_int32)] + [(name, c.c_void_p) for name in ("token", "embd", "pos", "n_seq_id", "seq_id", "logits")]


base = c.CDLL(str(folder / "libggml-base.so"), mode=c.RTLD_GLOBAL)
ggml = c.CDLL(str(next(folder.glob("libggml.v*.so"))), mode=c.RTLD_GLOBAL)
llama = c.CDLL(str(next(folder.glob("libllama.v*.so"))), mode=c.RTLD_GLOBAL)
silent = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)(lambda level, text, arg: None)


def use(name, result, *arguments):
    f = getattr(llama, name)
    f.restype, f.argtypes = result, arguments
    return f


use("llama_log_set", None, c.c_void_p, c.c_void_p)(c.cast(silent, c.c_void_p), None)
ggml.ggml_backend_load_all_from_path(str(folder).encode())
m = use("llama_model_load_from_file", c.c_void_p, c.c_char_p, Opaque)(model.encode(), use("llama_model_default_params", Opaque)())
assert m, "llama.cpp does not load it"
parameters = use("llama_context_default_params", Context)()
assert (parameters.n_ctx, parameters.n_batch, parameters.n_ubatch) == (512, 2048, 512), "another layout of parameters"
parameters.n_ctx = parameters.n_ubatch = 2048
context = use("llama_init_from_model", c.c_void_p, c.c_void_p, Context)(m, parameters)
assert context
assert use("llama_pooling_type", c.c_int, c.c_void_p)(context) == 4, "expected pooling for ranks"
use("llama_set_embeddings", None, c.c_void_p, c.c_bool)(context, True)
vocab = use("llama_model_get_vocab", c.c_void_p, c.c_void_p)(m)
template = use("llama_model_chat_template", c.c_char_p, c.c_void_p, c.c_char_p)(m, b"rerank").decode()
label = use("llama_model_cls_label", c.c_char_p, c.c_void_p, c.c_uint32)
assert [label(m, 0), label(m, 1)] == [b"yes", b"no"]
tokenize = use("llama_tokenize", c.c_int32, c.c_void_p, c.c_char_p, c.c_int32, c.c_void_p, c.c_int32, c.c_bool, c.c_bool)
one = use("llama_batch_get_one", Batch, c.c_void_p, c.c_int32)
decode = use("llama_decode", c.c_int32, c.c_void_p, Batch)
memory = use("llama_get_memory", c.c_void_p, c.c_void_p)(context)
clear = use("llama_memory_clear", None, c.c_void_p, c.c_bool)
embeddings = use("llama_get_embeddings_seq", c.POINTER(c.c_float), c.c_void_p, c.c_int32)
out = []
for query, document in json.load(sys.stdin):
    text = template.replace("{query}", query).replace("{document}", document).encode()
    ids = (c.c_int32 * 2048)()
    n = tokenize(vocab, text, len(text), ids, 2048, True, True)
    clear(memory, True)
    assert n > 0 and decode(context, one(ids, n)) == 0
    out.append([embeddings(context, 0)[0], n])
print(json.dumps(out))
