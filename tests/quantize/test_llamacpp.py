"""Files of ours in llama.cpp, by the libraries of the npm package @node-llama-cpp/linux-x64 (`make test-quantize` gets it)."""

import json
import subprocess
import sys

import pytest
from support import DATA, SOURCE, ok, score
from test_gguf_types import llama_folder

CASES = [
    ["What is the capital of China?", "The capital of China is Beijing."],
    ["What is the capital of China?", "Gravity is a force that attracts two bodies towards each other."],
    ["What is the capital of China?", "Beijing"],
    ["What is the capital of China?", "Paris is the capital of France, 北京是中国的首都。"],
    ["how to list open files", "lsof -p PID lists the files that a process has open;\n\n  see lsof(8)."],
]
# Both compute the same weights: activations are rounded elsewhere (llama.cpp multiplies 8-bit weights with 8-bit activations).
TOLERANCE = 0.02


@pytest.mark.slow
# Not q8_0 of untied-1: its random weights make 0.034 of the 8-bit activations.
@pytest.mark.parametrize(
    ("model", "kind"), [("builtin", "q8_0"), ("builtin", "bf16"), ("small-1", "q8_0"), ("small-1", "bf16"), ("untied-1", "bf16")]
)
def test_llama_cpp_ranks_with_it(model, kind, tmp_path):
    folder = llama_folder()
    if folder is None:
        pytest.skip("llama.cpp: not there (make test-quantize)")
    path = tmp_path / "a.gguf"
    ok("quantize", model if model == "builtin" else DATA / model, path, "--type", kind, "--no-check")
    program = SOURCE / "tests" / "quantize" / "llama_scores.py"
    done = subprocess.run([sys.executable, program, folder, path], input=json.dumps(CASES), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)
    ours = score([{"query": q, "document": d} for q, d in CASES], "--model", str(path), "--dtype", "f32", "--backend", "cpu")
    assert [o["n_tokens"] for o in ours] == [n for _, n in theirs]
    assert max(abs(o["score"] - t) for o, (t, _) in zip(ours, theirs)) <= TOLERANCE
    for i in range(4):  # documents of one query: those that are apart are in the same order
        for k in range(i):
            if abs(ours[i]["score"] - ours[k]["score"]) > 2 * TOLERANCE:
                assert (ours[i]["score"] > ours[k]["score"]) == (theirs[i][0] > theirs[k][0])
