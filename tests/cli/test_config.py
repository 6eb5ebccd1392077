"""Profiles, variables and flags: which one counts, and what is said about mistakes."""

import json
import re
import textwrap

import pytest
from support import MODEL, SOURCE, cli, environment, fails, ok, score

PLAN = """
profiles:
  mine:
    description: "A user's own"
    backend: cpu
    model_id: MODEL
    hf_tokenizer_id: Qwen/Qwen3-Reranker-4B
    performance: {throughput: fast, notes: [one, two]}
    scoring: {method: yes_no_next_token_prob, yes_token: "yes", no_token: "no"}
    prompts:
      prefix: |
        <|im_start|>system
        Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>
        <|im_start|>user
      suffix: |
        <|im_end|>
        <|im_start|>assistant
        <think>

        </think>

      query_template: |-
        <Instruct>: {instruction}
        <Query>: {query}
      document_template: "<Document>: {document}"
    limits: {max_length: 1024, max_docs_per_request: 7, max_query_chars: 100, max_doc_chars: 1000}
    batching: {batch_size: 8, max_concurrent_forwards: 1}
    mlx_options: {compile: true}
    pytorch_options: {device: cpu, dtype: float32, use_flash_attn: false}
    vllm_options: {tensor_parallel_size: 2, gpu_memory_utilization: 0.8, enable_prefix_caching: true, max_model_len: 2048}
    defaults: {instruction: "find it"}
""".replace("MODEL", MODEL)


def settings(*args, **variables):
    """name: (value, origin)"""
    env = environment(HOME="/nonexistent", **variables)
    if "QWEN_RERANK_MODEL_ID" not in variables:
        del env["QWEN_RERANK_MODEL_ID"]
    shown = json.loads(ok("config", "show", "--json", *args, env=env))
    return {item["name"]: (item["value"], item["origin"]) for item in shown["settings"]}


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "profiles.yaml"
        path.write_text(textwrap.dedent(text))
        return path

    return write


def test_the_plans_schema(write):
    path = write(PLAN)
    got = settings("--config", path, "--profile", "mine")
    values = {name: value for name, (value, _) in got.items()}
    assert values | {
        "model": MODEL, "backend": "cpu", "max-length": "1024", "max-documents": "7", "max-query-chars": "100", "max-document-chars": "1000",
        "batch-size": "8", "max-concurrent": "1", "mlx-compile": "true", "device": "cpu", "dtype": "f32", "flash-attn": "false",
        "tensor-parallel": "2", "gpu-memory": "0.8", "prefix-caching": "true", "max-model-len": "2048", "instruction": "find it",
    } == values  # fmt: skip
    line = 1 + next(i for i, text in enumerate(PLAN.splitlines()) if "max_length" in text)
    assert got["max-length"][1] == f"profile mine ({path}:{line})" and got["port"] == ("9003", "default")


def test_prompts_that_lost_line_ends_are_canonical(write):
    pair = [{"query": "a", "document": "b"}]
    path = write(PLAN)
    assert score(pair, "--config", path, "--profile", "mine", "--dtype", "f32") == score(pair, "-i", "find it", "--dtype", "f32")
    log = cli("score", "-v", "--config", path, "--profile", "mine", stdin=json.dumps(pair[0])).stderr.decode()
    assert "prompts.suffix: taken for the canonical one" in log and "differs from the one" not in log
    other = write(PLAN.replace("<think>", "<thought>"))
    log = cli("score", "-v", "--config", other, "--profile", "mine", stdin=json.dumps(pair[0])).stderr.decode()
    assert "the prompt differs from the one that Qwen3-Reranker was trained with" in log


def test_flags_beat_variables_beat_profiles(write):
    path = write(PLAN)
    args = ("--config", path, "--profile", "mine")
    assert settings(*args)["max-length"][0] == "1024"
    assert settings(*args, QWEN_RERANK_MAX_LENGTH="900")["max-length"] == ("900", "QWEN_RERANK_MAX_LENGTH")
    assert settings(*args, "--max-length", "800", QWEN_RERANK_MAX_LENGTH="900")["max-length"] == ("800", "--max-length")
    assert settings("--config", path, QWEN_RERANK_PROFILE="mine")["profile"] == ("mine", "QWEN_RERANK_PROFILE")


def test_a_users_profile_changes_a_built_in_one(write):
    path = write("""
        default_profile: qwen3_4b_cuda
        profiles:
          qwen3_4b_cuda:
            limits: {max_length: 77}
        """)
    got = settings("--config", path)
    assert got["max-length"][0] == "77" and got["max-documents"] == ("500", "profile qwen3_4b_cuda (built in)")
    assert got["backend"][0] == "pytorch"


def test_built_in_profiles():
    names = [line.split()[0] for line in ok("config", "list", env=environment(HOME="/nonexistent")).splitlines()]
    for size in ("06b", "4b", "8b"):
        for kind in ("mlx_fp16", "mlx_8bit", "cuda", "mps", "vllm", "cpu_bf16", "cpu_int8"):
            assert f"qwen3_{size}_{kind}" in names
    limits = {kind: settings("--profile", f"qwen3_4b_{kind}") for kind in ("mlx_fp16", "cuda", "vllm")}
    assert [limits["mlx_fp16"][n][0] for n in ("max-length", "max-documents", "max-query-chars", "max-document-chars")] == [
        "4096", "200", "8000", "20000"]  # fmt: skip
    assert (limits["cuda"]["max-length"][0], limits["cuda"]["max-documents"][0], limits["vllm"]["max-documents"][0]) == ("8192", "500", "1000")
    assert settings("--profile", "builtin")["model"][0] == "builtin"


def test_merge_keys_and_empty_values(write):
    path = write("""
        profiles:
          base: &base
            limits: {max_length: 10}
            batching:
          more:
            <<: *base
            backend: ~
            limits: {max_docs_per_request: 3}
        """)
    got = settings("--config", path, "--profile", "more")
    assert (got["max-length"][0], got["max-documents"][0], got["backend"]) == ("10", "3", ("auto", "default"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("profiles: {a: {limits: {max_lenght: 3}}}", r"yaml:1: unknown key 'limits.max_lenght'; did you mean 'limits.max_length'\?"),
        ("profiles:\n  a:\n    limit: {}", r"yaml:3: unknown key 'limit'"),
        ("profiles: {a: {limits: {max_length: -3}}}", r"yaml:1: limits.max_length: expected a whole number of at least 1, found '-3'"),
        ("profiles: {a: {limits: {max_length: [3]}}}", r"yaml:1: limits.max_length: expected a value, found a list"),
        ("profiles: {a: {limits: 3}}", r"yaml:1: limits: expected a mapping"),
        ("profiles: {a: {dtype: f33}}", r"yaml:1: dtype: expected one of auto\|f32\|bf16\|f16\|int8, found 'f33'"),
        ("profiles: {a: {mlx_options: {compile: perhaps}}}", r"compile: expected true or false, found 'perhaps'"),
        ("profiles: {a: {vllm_options: {gpu_memory_utilization: 1.5}}}", r"expected a number above 0 and up to 1, found '1.5'"),
        ("profiles: {a: {scoring: {method: mean}}}", r"scoring.method: expected yes_no_next_token_prob, found 'mean'"),
        ("profile: {}", r"yaml:1: expected 'profiles'.*did you mean 'profiles'"),
        ("- a", r"yaml:1: expected a mapping"),
        ("profiles: {a: [}", r"yaml:1: not valid YAML"),
        ("profiles:\n\ta: b", r"yaml:2: not valid YAML"),
        ("profiles: {a: &x {<<: *x}}", r"yaml"),
        ("profiles: {a: " + "{a: " * 10 + "}" * 10 + "}", r"unknown key 'a'"),
    ],
)
def test_mistakes_name_file_and_line(write, text, message):
    assert re.search(message, fails(2, "config", "show", "--config", write(text))), cli("config", "--config", write(text)).stderr


def test_mistakes_elsewhere(write):
    assert "unknown profile 'qwen3_4b_cud'; did you mean 'qwen3_4b_cuda'?" in fails(2, "config", "--profile", "qwen3_4b_cud")
    assert "no/such.yaml" in fails(2, "rank", "--config", "no/such.yaml", "q")
    assert "QWEN_RERANK_WARM_UP: expected true or false" in fails(2, "serve", env=environment(QWEN_RERANK_WARM_UP="2"))
    warned = cli("config", env=environment(QWEN_RERANK_PROT="1")).stderr.decode()
    assert "unknown variable QWEN_RERANK_PROT; did you mean QWEN_RERANK_PORT?" in warned
    assert 'backend "pytorch" cannot be used here' in fails(1, "serve", "--profile", "qwen3_06b_cuda")
    assert "not in f16" in fails(4, "score", "--dtype", "f16", stdin='{"query":"a","document":"b"}')


def test_several_backends_in_order(tmp_path):
    assert score([{"query": "a", "document": "b"}], "--backend", "mlx,cpu", "--plugin-dir", tmp_path)
    assert 'no backend of "mlx,vllm" can be used' in fails(1, "score", "--backend", "mlx,vllm", "--plugin-dir", tmp_path)


def test_memory_limit():
    assert "are allowed" in fails(1, "score", "--model", "builtin", "--memory-limit", "1", "--dtype", "f32")


def test_the_documentation_is_up_to_date():
    assert ok("config", "docs") in (SOURCE / "docs" / "CONFIG.md").read_text()
