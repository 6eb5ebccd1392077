"""--memory: where weights stay depends on it, scores do not."""

import forms
import pytest
from support import DATA, cli, environment, fails, ok, score

LINES = [
    {"query": "capital of China", "document": text * n}
    for text, n in [("Beijing is the capital of China.", 1), ("Paris is in France. ", 40), ("a", 1), ("Gravity attracts bodies. ", 9)]
]
FORMS = {"bf16": None, "mlx 4 bits": (forms.mlx, forms.MLX_CONFIG), "mlx 3 bits": (lambda n, w: forms.mlx(n, w, 3, 32), forms.MLX_CONFIG)}
FORMS["gguf"] = None
FORMS["int8"] = (
    forms.int8,
    {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "config_groups": {"group_0": {"weights": {"num_bits": 8, "strategy": "channel"}}},
        }
    },
)


@pytest.mark.parametrize("form", [form if form == "int8" else pytest.param(form, marks=pytest.mark.slow) for form in FORMS])
def test_scores_are_equal(tmp_path, form):
    folder = DATA / "small-1"
    if form == "gguf":
        folder = tmp_path / "a.gguf"
        ok("quantize", DATA / "small-1", folder, "--type", "q4_k_m", "--no-check")
    elif FORMS[form]:
        folder = forms.quantise(tmp_path / "q", folder, *FORMS[form])
    for level in ("scalar", "avx2", "avx512", ""):
        for dtype in ("f32", "bf16"):
            env = environment(**({"QR_CPU": level} if level else {}))
            text = "".join(f'{{"query": "{x["query"]}", "document": "{x["document"]}"}}\n' for x in LINES)
            found = {}
            for memory in ("fast", "small"):
                done = cli("score", "--model", folder, "--memory", memory, "--dtype", dtype, "--backend", "cpu", stdin=text, env=env)
                assert done.returncode == 0, done.stderr
                found[memory] = done.stdout
            assert found["fast"] == found["small"] and found["fast"].count(b"\n") == len(LINES), (level, dtype)


def test_auto_takes_what_fits(tmp_path):
    folder = forms.quantise(tmp_path / "q", DATA / "small-1", *FORMS["mlx 4 bits"])
    arguments = ("--model", folder, "--dtype", "f32", "--backend", "cpu", "--prefix-cache", "1")
    ample = score(LINES, *arguments)
    done = cli("score", *arguments, "--memory-limit", "10", "-v", stdin='{"query": "a", "document": "b"}')
    assert b"they stay as in the file" in done.stderr
    assert score(LINES, *arguments, "--memory-limit", "10") == ample
    assert "--memory small would do" in fails(1, "score", *arguments, "--memory-limit", "10", "--memory", "fast")
    assert "as stored" in fails(1, "score", *arguments, "--memory-limit", "1")


def test_a_wrong_choice():
    assert "auto" in fails(2, "score", "--memory", "tiny")
    assert "QWEN_RERANK_MEMORY" in ok("config", "docs")
