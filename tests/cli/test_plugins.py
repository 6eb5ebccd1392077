"""Backends in files of their own: found, tried in a child process, and refused with the reason when anything is wrong."""

import json
import shutil
import subprocess

import pytest
from support import PROGRAM, SOURCE, environment, fails, ok

pytestmark = pytest.mark.slow  # compiles


@pytest.fixture(scope="module")
def version():
    return json.loads(ok("doctor", "--json"))["version"]


@pytest.fixture
def compiled(tmp_path, version, sanitized):
    """A folder with a plug-in that is wrong in some way."""
    if sanitized:
        pytest.skip("compares messages of crashes, which sanitizers change")

    def compiled(mode, *flags):
        folder = tmp_path / "plugins"
        folder.mkdir()
        out = folder / "qwen-rerank-mlx.so"
        include = [f"-I{SOURCE / name}" for name in ("src", "include")]
        command = ["cc", "-shared", "-fPIC", "-o", out, f"-DMODE_{mode}", f'-DQR_VERSION="{version}"', *flags, *include]
        subprocess.run([*command, SOURCE / "tests" / "cli" / "fake_plugin.c"], check=True)
        return folder

    return compiled


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("a long document of many words that say little\nshort\n")
    return path


def finding(folder):
    report = json.loads(ok("doctor", "--json", "--plugin-dir", folder))
    assert report["chosen"] == "cpu"
    return next(backend for backend in report["backends"] if backend["name"] == "mlx")


@pytest.mark.parametrize(
    "mode, flags, why",
    [
        ("CRASH", [], "ended by signal 11"),
        ("CRASH_IN_PROBE", [], "ended by signal 11"),
        ("EXIT", [], "exit code 3, saying: fake: no such device"),
        ("MISSING", [], "nobody_has_this"),
        ("NO_SYMBOL", [], "is no plug-in of this program"),
        ("OTHER", ['-DVERSION="9.9.9"'], "is of version 9.9.9"),
        ("WRONG", [], "wrong results in f16"),
    ],
)
def test_a_bad_plugin_is_refused_with_the_reason(compiled, mode, flags, why):
    found = finding(compiled(mode, *flags))
    assert found["probe"] == 0 and why in found["why"]


def test_what_is_no_plugin(tmp_path):
    assert "no plug-in qwen-rerank-mlx.so" in finding(tmp_path)["why"]
    (tmp_path / "qwen-rerank-mlx.so").write_text("not a library\n")
    assert "cannot be loaded" in finding(tmp_path)["why"]


def test_a_good_plugin_is_used_where_it_is_asked_for(compiled, lines):
    folder = compiled("GOOD")
    assert finding(folder) == {"name": "mlx", "probe": 2, "why": "a fake"}
    ranked = json.loads(ok("rank", "--backend", "mlx", "--plugin-dir", folder, "--format", "json", "--input", "lines", "q", lines))
    assert [item["index"] for item in ranked["results"]] == [1, 0]
    assert ranked["backend"] == "mlx"
    assert json.loads(ok("rank", "--plugin-dir", folder, "--format", "json", "--input", "lines", "q", lines))["backend"] == "cpu"
    variables = environment(QWEN_RERANK_PLUGIN_DIR=str(folder), QWEN_RERANK_BACKEND="mlx")
    by_variable = ok("rank", "--format", "json", "--input", "lines", "q", lines, env=variables)
    assert json.loads(by_variable)["backend"] == "mlx"


def test_a_bad_plugin_that_was_asked_for_is_an_error(compiled, lines):
    folder = compiled("CRASH")
    message = fails(1, "rank", "--backend", "mlx", "--plugin-dir", folder, "q", lines)
    assert 'backend "mlx" cannot be used here' in message and "signal 11" in message
    ok("rank", "--backend", "mlx,cpu", "--plugin-dir", folder, "q", lines)


def test_a_gpu_that_was_asked_for_is_not_replaced_by_the_cpu(lines):
    assert "on the device cuda" in fails(1, "rank", "--device", "cuda", "q", lines)


def test_plugins_of_an_installed_program(compiled, tmp_path):
    """bin/qwen-rerank finds lib/qwen-rerank/, also through a link to it."""
    folder = compiled("GOOD")
    (tmp_path / "bin").mkdir()
    (tmp_path / "lib").mkdir()
    shutil.copy(PROGRAM, tmp_path / "bin" / "qwen-rerank")
    folder.rename(tmp_path / "lib" / "qwen-rerank")
    (tmp_path / "link").symlink_to(tmp_path / "bin" / "qwen-rerank")
    report = subprocess.run([tmp_path / "link", "doctor", "--json", "--backend", "mlx"], capture_output=True, text=True, env=environment())
    assert json.loads(report.stdout)["chosen"] == "mlx"
