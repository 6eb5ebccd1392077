"""Libraries that are not what they should be: the reason is told alike by `doctor`, `rank`, `serve` and /v1/config, and nothing dies of it. Half a
minute, so `make test-backends` alone runs it."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from conftest import more, require, torch_options
from support import BUILD, SOURCE, cli, environment, fails, ok
from test_vllm import serve  # noqa: F401

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names of files and messages are those of Linux")
TORCH = ("libtorch_cpu.so", "pytorch", "--torch-dir")
MLX = ("qwen-rerank-mlx.so", "mlx", "--plugin-dir")
AT_LOAD = "#include <signal.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n__attribute__((constructor)) static void load(void)"
CODE = {
    "nothing in it": "int nothing;",
    "crash": AT_LOAD + "{ raise(SIGSEGV); }",
    "abort": AT_LOAD + "{ abort(); }",
    "exit": AT_LOAD + "{ _exit(0); }",
    "last words": AT_LOAD + '{ fputs("no driver for this card\\n", stderr); exit(3); }',
    "hang": AT_LOAD + "{ for (;;) pause(); }",
    "endless talk": AT_LOAD + '{ for (;;) fputs("still compiling\\n", stderr); }',
}


@pytest.fixture
def library(tmp_path, sanitized):
    """Makes a library of C code in a folder of its own and returns the folder."""
    if sanitized:
        pytest.skip("compares messages of crashes, which sanitizers change")

    def library(name, code):
        (tmp_path / "code.c").write_text(code)
        folder = tmp_path / "libraries"
        folder.mkdir()
        subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / name, tmp_path / "code.c"], check=True)
        return folder

    return library


@pytest.fixture
def refused(tmp_path, serve):  # noqa: F811
    """Checks that the backend is refused with `reason` in whatever way it is asked for, and that another one can take its place."""

    def refused(name, reason, *options, **variables):
        env = environment(**variables)
        lines = tmp_path / "lines.txt"
        lines.write_text("Beijing is the capital of China.\n")
        report = json.loads(ok("doctor", "--json", *options, env=env))
        (found,) = (b for b in report["backends"] if b["name"] == name)
        assert found["probe"] == 0 and re.search(reason, found["why"]), found
        for command in (["rank", "q", lines], ["serve", "--port", "0"]):
            message = fails(1, command[0], "--backend", name, *options, *command[1:], env=env)
            assert f'backend "{name}" cannot be used here: ' in message and re.search(reason, message), message
        ranked = json.loads(ok("rank", "--backend", f"{name},cpu", *options, "--format", "json", "q", lines, env=env))
        assert ranked["backend"] == "cpu"
        server = serve("--backend", f"{name},cpu", *options, **variables)
        assert server.get("/ready").status == 200
        (shown,) = (b for b in server.get("/v1/config").json()["backends"] if b["name"] == name)
        assert shown == {"name": name, "usable": False, "chosen": False, "why": found["why"]}
        assert server.post("/rerank", {"query": "q", "documents": ["a", "b"]}).status == 200
        return found["why"]

    return refused


@pytest.mark.parametrize("kind", [TORCH, MLX], ids=["torch", "mlx"])
@pytest.mark.parametrize(
    "code, reason",
    [
        ("crash", "ended by signal 11 .*: .*libraries"),
        ("abort", "ended by signal 6 .*: .*libraries"),
        ("exit", "ended with exit code 0: .*libraries"),
        ("last words", "ended with exit code 3, saying: no driver for this card: .*libraries"),
        ("hang", r"took longer than 1 s \(QR_PROBE_SECONDS\): .*libraries"),
        ("endless talk", r"took longer than 1 s \(QR_PROBE_SECONDS\): .*libraries"),
    ],
)
def test_code_that_runs_when_it_is_loaded(library, refused, kind, code, reason):
    file, backend, option = kind
    refused(backend, reason, option, library(file, CODE[code]), QR_PROBE_SECONDS="1" if "1 s" in reason else "120")


@pytest.mark.parametrize("content", ["not a library\n", "", "\x7fELF and then nothing that makes sense\n" * 100], ids=["text", "empty", "header"])
@pytest.mark.parametrize("kind", [TORCH, MLX], ids=["torch", "mlx"])
def test_files_that_are_no_libraries(tmp_path, refused, kind, content):
    file, backend, option = kind
    (tmp_path / file).write_text(content)
    why = refused(backend, "cannot be loaded: .*(file too short|invalid ELF header|ELF)", option, tmp_path)
    assert str(tmp_path / file) in why


def test_folders_without_it(tmp_path, refused):
    (tmp_path / "torch").mkdir()
    for folder in (tmp_path / "torch", tmp_path / "nowhere"):
        refused("pytorch", f"{folder}: expected libtorch_cpu.so there or in lib/, found none", "--torch-dir", folder)


def test_a_long_path_does_not_hide_the_reason(tmp_path, refused):
    folder = tmp_path / ("environments-of-a-user-who-likes-long-names-" * 5) / "lib"
    folder.mkdir(parents=True)
    (folder / "libtorch_cpu.so").write_text("")
    refused("pytorch", "file too short", "--torch-dir", folder)


def test_a_library_without_the_symbols(library, refused):
    folder = library("libtorch_cpu.so", CODE["nothing in it"])
    refused("pytorch", "expected PyTorch 2.10 or newer, found a libtorch without the symbol aoti_torch_abi_version in " + str(folder), "--torch-dir", folder)


def test_an_older_package(library, refused, tmp_path):
    """As pip installs it: torch/version.py and torch/lib/."""
    library("libtorch_cpu.so", CODE["nothing in it"]).rename(tmp_path / "lib")
    (tmp_path / "version.py").write_text("from typing import Optional\n\n__version__ = '2.4.1+cu121'\ndebug = False\n")
    refused("pytorch", r"expected PyTorch 2.10 or newer, found 2.4.1\+cu121 without the symbol ", "--torch-dir", tmp_path)


def symbols():
    return re.findall(r"^    X\((\w+),", (SOURCE / "src" / "pytorch" / "torch_lib.c").read_text(), re.MULTILINE)


def test_an_older_interface(library, refused):
    """All symbols are there, and it says that it is 2.9."""
    version = "unsigned long long aoti_torch_abi_version(void) { return 2ULL << 56 | 9ULL << 48; }\n"
    others = "".join(f"void {name}(void) {{}}\n" for name in symbols() if name != "aoti_torch_abi_version")
    refused("pytorch", "expected PyTorch 2.10 or newer, found 2.9 in ", "--torch-dir", library("libtorch_cpu.so", version + others))


def test_a_libtorch_that_answers_nonsense(library, refused):
    """Of the right version, but no call does anything: the self-check or the crash shows it, in the child."""
    version = "unsigned long long aoti_torch_abi_version(void) { return 2ULL << 56 | 10ULL << 48; }\n"
    names = {*symbols(), "torch_new_stable_ivalue", "aoti_torch_cpu_add_Tensor"} - {"aoti_torch_abi_version"}
    others = "".join(f"int {name}(void) {{ return 1; }}\n" for name in sorted(names))
    refused("pytorch", "pytorch: .* failed", "--torch-dir", library("libtorch_cpu.so", version + others))


def test_another_interface_of_plugins(tmp_path, refused):
    """The number is compared before anything else of the plug-in is looked at."""
    version = json.loads(ok("doctor", "--json"))["version"]
    header = (SOURCE / "src" / "engine" / "backend.h").read_text()
    expected = int(re.search(r"QR_BACKEND_ABI = (\d+)", header).group(1))
    (tmp_path / "code.c").write_text(
        f'const struct {{ unsigned abi; const char *version; void *ops; }} plugin = {{99, "{version}", 0}};\n'
        "const void *qr_backend_plugin(void) { return &plugin; }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "qwen-rerank-mlx.so", tmp_path / "code.c"], check=True)
    reason = re.escape(f"is of version {version} (interface 99), this is version {version} (interface {expected})")
    refused("mlx", reason, "--plugin-dir", tmp_path)


def test_mlx_without_its_blas(tmp_path, refused):
    """libmlx.so finds its BLAS relative to where it lies itself."""
    require("mlx")
    linked = subprocess.run(["ldd", BUILD / "qwen-rerank-mlx.so"], capture_output=True, text=True, check=True).stdout
    libmlx = pathlib.Path(re.search(r"libmlx.so => (\S+)", linked).group(1))
    if "mlx_cpu.libs" not in linked:
        pytest.skip("this MLX is not the wheel for Linux processors")
    (tmp_path / "mlx" / "lib").mkdir(parents=True)
    shutil.copy(libmlx, tmp_path / "mlx" / "lib")
    why = refused("mlx", r"cannot be loaded: lib\w+-\S+: cannot open shared object file", LD_LIBRARY_PATH=str(tmp_path / "mlx" / "lib"))
    assert str(BUILD / "qwen-rerank-mlx.so") in why


def test_nonsense_as_the_time_limit(library):
    folder = library("libtorch_cpu.so", CODE["nothing in it"])
    message = fails(1, "rank", "--backend", "pytorch", "--torch-dir", folder, "q", SOURCE / "README.md", env=environment(QR_PROBE_SECONDS="soon"))
    assert 'QR_PROBE_SECONDS: expected 1 to 86400 seconds, found "soon"' in message


def test_a_part_for_cuda_that_cannot_be_loaded(tmp_path):
    """As where pip did not install what it needs: the processor can be used, and who asks for a GPU is told why there is none."""
    require("pytorch")
    for path in (pathlib.Path(torch_options()[1]) / "lib").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "libtorch_cuda.so").write_text("not a library\n")
    reason = f"{tmp_path}/libtorch_cuda.so: file too short"
    options = ["--backend", "pytorch", "--torch-dir", tmp_path]
    message = fails(1, "rank", *options, "--device", "cuda:0", "q", SOURCE / "README.md")
    assert re.search('no device "cuda:0" for torch .*: ' + reason, message)
    report = json.loads(ok("doctor", "--json", *options))
    (found,) = (b for b in report["backends"] if b["name"] == "pytorch")
    assert found["probe"] == 5 and found["why"].endswith(f", without CUDA: {reason}")


@pytest.mark.skipif(pathlib.Path("/dev/nvidiactl").exists(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", "gpu", "toaster", "cpu,cuda", "cpu:3", "cuda:", ","])
@pytest.mark.parametrize("backend", ["pytorch", "mlx"])
def test_devices_that_are_not_there(tmp_path, backend, device):
    require(backend)
    (tmp_path / "lines.txt").write_text("one\n")
    env = environment(QWEN_RERANK_DEVICE=device)
    for command in (["rank", "q", tmp_path / "lines.txt"], ["serve", "--port", "0"]):
        message = fails(1, command[0], "--backend", backend, *more(backend), *command[1:], env=env)
        assert f'backend "{backend}" cannot be used here' in message
        assert f'"{device}"' in message or f'"{device.split(",")[-1]}"' in message, message
    report = json.loads(cli("doctor", "--json", *more(backend), env=env).stdout)
    (found,) = (b for b in report["backends"] if b["name"] == backend)
    assert found["probe"] == 0 and found["why"] in message
