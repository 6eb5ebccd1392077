"""include/qwen_rerank.h for ctypes, by hand: the layouts that a foreign-function user writes down and that must therefore never change."""

import ctypes as c


class Error(c.Structure):
    _fields_ = [("code", c.c_int), ("msg", c.c_char * 508)]


class Options(c.Structure):
    _fields_ = [
        ("model", c.c_char_p), ("backend", c.c_char_p), ("dtype", c.c_int), ("threads", c.c_int), ("max_length", c.c_size_t),
        ("max_batch_tokens", c.c_size_t), ("prefix_cache_bytes", c.c_size_t), ("instruction", c.c_char_p), ("prefix", c.c_char_p),
        ("suffix", c.c_char_p), ("query_template", c.c_char_p), ("document_template", c.c_char_p), ("yes_token", c.c_char_p),
        ("no_token", c.c_char_p), ("log", c.c_void_p), ("log_arg", c.c_void_p),
        ("result_cache_bytes", c.c_size_t), ("memory_limit", c.c_size_t), ("max_batch_documents", c.c_size_t),
        ("max_concurrent", c.c_size_t), ("device", c.c_char_p), ("flash_attention", c.c_int), ("compile", c.c_int),
        ("vllm_hedge", c.c_int), ("warm_up", c.c_int),
        ("torch_dir", c.c_char_p), ("plugin_dir", c.c_char_p), ("vllm_urls", c.POINTER(c.c_char_p)), ("n_vllm_urls", c.c_size_t),
        ("vllm_model", c.c_char_p), ("vllm_api_key", c.c_char_p), ("vllm_protocol", c.c_char_p), ("vllm_ca_file", c.c_char_p),
        ("vllm_timeout_seconds", c.c_double), ("vllm_wait_seconds", c.c_double), ("memory", c.c_int), ("cache_dir", c.c_char_p),
    ]  # fmt: skip


class Text(c.Structure):
    _fields_ = [("data", c.c_char_p), ("len", c.c_size_t)]


class Query(c.Structure):
    _fields_ = [
        ("query", Text), ("instruction", c.POINTER(Text)), ("documents", c.POINTER(Text)), ("n_documents", c.c_size_t),
        ("max_length", c.c_size_t), ("max_document_tokens", c.c_size_t), ("truncation", c.c_int),
    ]  # fmt: skip


class Result(c.Structure):
    _fields_ = [
        ("score", c.c_double), ("margin", c.c_float), ("yes", c.c_float), ("no", c.c_float), ("n_tokens", c.c_uint32),
        ("n_shared", c.c_uint32), ("flags", c.c_uint32), ("ids_sha256", c.c_ubyte * 32),
    ]  # fmt: skip


class Call(c.Structure):
    _fields_ = [("progress", c.c_void_p), ("progress_arg", c.c_void_p), ("cancel", c.c_void_p), ("want_ids_sha256", c.c_int), ("timeout_seconds", c.c_double), ("timing", c.c_void_p), ("failed", c.c_void_p), ("failed_arg", c.c_void_p)]  # fmt: skip


DTYPE_F32 = 1
DONE = 1


def text(value):
    data = value.encode()
    return Text(data, len(data))


def load(path):
    lib = c.CDLL(str(path))
    lib.qr_version.restype = c.c_char_p
    lib.qr_status_text.restype = c.c_char_p
    lib.qr_engine_open.argtypes = [c.POINTER(c.c_void_p), c.POINTER(Options), c.POINTER(Error)]
    lib.qr_engine_close.argtypes = [c.c_void_p]
    lib.qr_score.argtypes = [c.c_void_p, c.POINTER(Query), c.c_size_t, c.POINTER(Result), c.POINTER(Call), c.POINTER(Error)]
    return lib


class Engine:
    def __init__(self, lib, model, **options):
        self.lib, self.handle, err = lib, c.c_void_p(), Error()
        opts = Options(model=str(model).encode(), **options)
        if lib.qr_engine_open(c.byref(self.handle), c.byref(opts), c.byref(err)):
            raise RuntimeError(err.msg.decode())

    def close(self):
        self.lib.qr_engine_close(self.handle)
        self.handle = None

    def score(self, query, documents, instruction=None, max_length=0):
        docs = (Text * len(documents))(*[text(d) for d in documents])
        instr = None if instruction is None else c.pointer(text(instruction))
        q = Query(text(query), instr, docs, len(documents), max_length)
        results, err = (Result * len(documents))(), Error()
        if self.lib.qr_score(self.handle, c.byref(q), 1, results, c.byref(Call(want_ids_sha256=1)), c.byref(err)):
            raise RuntimeError(err.msg.decode())
        return list(results)
