"""Folder to GGUF and back, and GGUF files of others."""

import filecmp
import json
import resource
import shutil
import signal
import subprocess
import time

import pytest
from conftest import load_safetensors, np
from support import DATA, PROGRAM, cli, environment, ok

gguf = pytest.importorskip("gguf", reason="gguf: not installed (make test-quantize)")


@pytest.mark.parametrize("model", ["micro-1", "small-1", "odd-7", "untied-1"])
def test_the_way_back_gives_the_same_bytes(model, tmp_path):
    ok("convert", DATA / model, tmp_path / "a.gguf")
    ok("convert", tmp_path / "a.gguf", tmp_path / "b")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "b" / name).read_bytes() == (DATA / model / name).read_bytes(), name


@pytest.mark.slow
def test_the_layout_of_the_published_model(tmp_path):
    """0.6b-1 has the header of Qwen3-Reranker-0.6B: 35,248 bytes, sorted by name."""
    source = DATA / "0.6b-1" / "model.safetensors"
    if not source.exists():
        pytest.skip("0.6b-1 is not there: make data makes it where there is room")
    with source.open("rb") as f:
        assert int.from_bytes(f.read(8), "little") == 35248
    ok("convert", DATA / "0.6b-1", tmp_path / "a.gguf")
    ok("convert", tmp_path / "a.gguf", tmp_path / "b")
    done = filecmp.cmp(source, tmp_path / "b" / "model.safetensors", shallow=False)
    shutil.rmtree(tmp_path / "b")
    (tmp_path / "a.gguf").unlink()
    assert done


def tensors_of(folder):
    return load_safetensors(folder / "model.safetensors")[0]


@pytest.mark.slow
def test_a_folder_from_a_quantised_file_has_what_gguf_reads(quantised, tmp_path):
    """Also without kept files: config.json and tokenizer.json are made from the keys, and give the same ids."""
    for kind in ("q4_k", "q8_0"):
        path, _ = quantised(kind)
        ok("convert", path, tmp_path / kind, "--dequantize", "f32")
        wide = tensors_of(tmp_path / kind)
        for tensor in gguf.GGUFReader(path).tensors:
            if tensor.name in ("blk.0.attn_q.weight", "blk.5.ffn_down.weight"):
                name = f"model.layers.{tensor.name[4]}." + ("self_attn.q_proj" if "attn" in tensor.name else "mlp.down_proj") + ".weight"
                assert np.array_equal(wide[name][1], gguf.quants.dequantize(np.asarray(tensor.data), tensor.tensor_type)), (kind, name)
    for text in ("It's 12345 o'clock,  don't you\tthink? naïve é <|im_end|> 北京 <think>",):
        made, original = (ok("tokenize", "--tokenizer", folder / "tokenizer.json", text) for folder in (tmp_path / "q8_0", DATA / "small-1"))
        assert made == original
    config, first = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "q8_0", DATA / "small-1"))
    assert {k: config[k] for k in config if k != "torch_dtype"} == {k: first[k] for k in config if k != "torch_dtype"}


def test_quantised_is_refused_without_being_asked(quantised, tmp_path):
    path, _ = quantised("q8_0")
    done = cli("convert", path, tmp_path / "x")
    assert done.returncode != 0 and b"quantised" in done.stderr and not (tmp_path / "x").exists()


def test_two_rows_of_a_head_are_no_head(tmp_path):
    ok("quantize", DATA / "untied-1", tmp_path / "a.gguf", "--type", "q8_0", "--no-check")
    assert not any(t.name == "output.weight" for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors)
    done = cli("convert", tmp_path / "a.gguf", tmp_path / "x", "--dequantize", "bf16")
    assert done.returncode != 0 and b"only its two rows" in done.stderr and list(tmp_path.iterdir()) == [tmp_path / "a.gguf"]


def test_kept_texts_are_not_trusted(tmp_path):
    """A header that was kept and changed since is refused, and nothing remains."""
    ok("convert", DATA / "micro-1", tmp_path / "a.gguf")
    raw = (tmp_path / "a.gguf").read_bytes()
    for old, new in ((b'"shape":[151669,64]', b'"shape":[151669,46]'), (b'"data_offsets":[0,', b'"data_offsets":[9,'), (b'"dtype":"BF16"', b'"dtype":"BF61"')):
        assert old in raw
        (tmp_path / "b.gguf").write_bytes(raw.replace(old, new))
        assert cli("convert", tmp_path / "b.gguf", tmp_path / "x").returncode != 0
    (tmp_path / "b.gguf").write_bytes(raw.replace(b"model.safetensors", b"../el.safetensors"))
    assert cli("convert", tmp_path / "b.gguf", tmp_path / "x").returncode == 0  # written anew, by its own name
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "b.gguf", "x"]


@pytest.mark.parametrize("out", ["a.gguf", "a"])
def test_a_full_disk_leaves_nothing(out, tmp_path):
    """A limit on the size of files stands for it: writing fails in the middle of the tensors."""
    limit = 8 << 20
    done = cli(
        "convert",
        DATA / "small-1",
        tmp_path / out,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        restore_signals=False,  # Python ignores SIGXFSZ, so that the write fails instead
    )
    assert done.returncode == 1 and b"cannot write" in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["a.gguf", "a"])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ended_in_the_middle_there_is_no_output(how, out, tmp_path):
    """What a kill leaves has another name; an interruption leaves nothing."""
    kind = "q2_k" if out.endswith("gguf") else "mlx2-g32"  # the slowest
    program = subprocess.Popen(
        [PROGRAM, "quantize", DATA / "small-1", tmp_path / out, "--type", kind, "--no-check"],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and time.monotonic() < until:
        time.sleep(0.01)
    program.send_signal(how)
    code = program.wait(60)
    left = [p.name for p in tmp_path.iterdir()]
    assert out not in left
    if how == signal.SIGKILL:
        assert code == -signal.SIGKILL and all(name.startswith(f"{out}.part-") for name in left)
    else:
        assert code == 130 and left == []
