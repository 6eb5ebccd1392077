"""`make install`, then programs built against the result the way a user does: pkg-config, C and C++, shared and static."""

import json
import os
import subprocess

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(source, build, tmp_path_factory, sanitized, run):
    if sanitized:
        pytest.skip("a sanitizer build is not for installing")
    root = tmp_path_factory.mktemp("install")
    # Without `make`, which would build: `make install` is this call.
    run("cmake", "--install", build, "--prefix", "/opt/qr", env=os.environ | {"DESTDIR": str(root)})
    return root


@pytest.fixture(scope="module")
def pkg_config(installed, run):
    (pc,) = installed.glob("opt/qr/**/qwen-rerank.pc")
    # The .pc file names the final place; the sysroot says where that is for now.
    env = os.environ | {"PKG_CONFIG_PATH": str(pc.parent), "PKG_CONFIG_SYSROOT_DIR": str(installed)}
    return lambda *options: run("pkg-config", *options, "qwen-rerank", env=env).stdout.split()


@pytest.fixture(scope="module")
def libdir(installed):
    (so,) = installed.glob("opt/qr/**/libqwen-rerank.so")
    return so.parent


@pytest.fixture(scope="module")
def expected(source):
    """Score of the example's first pair, which is the first golden case."""
    return json.loads((source / "tests/golden/scores-micro-1.json").read_text())["cases"][0]["score"]


def check(done, expected):
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    score, text = lines[0].split("  ", 1)
    assert text == "The capital of China is Beijing."
    # bf16 where the processor has it (dtype auto), else f32: the tolerance is that of bf16
    assert float(score) == pytest.approx(expected, abs=0.06)


def compilers(build):
    """The compiler of this build: a static archive made by clang needs clang's OpenMP library."""
    for line in (build / "CMakeCache.txt").read_text().splitlines():
        if line.startswith("CMAKE_C_COMPILER:"):
            cc = line.split("=", 1)[1]
            return cc, "clang++" if "clang" in cc else "c++"
    raise AssertionError("no compiler in CMakeCache.txt")


def test_files(installed, libdir, source):
    prefix = installed / "opt/qr"
    for name in ["bin/qwen-rerank", "include/qwen_rerank.h"]:
        assert (prefix / name).is_file(), name
    assert sorted(p.name for p in libdir.glob("libqwen-rerank*")) == [
        "libqwen-rerank.a", "libqwen-rerank.so", "libqwen-rerank.so.0", "libqwen-rerank.so.0.1.0",
    ]  # fmt: skip
    for page in (source / "docs").glob("*.1"):
        assert (prefix / "share/man/man1" / page.name).is_file()


def test_pkg_config(pkg_config, run, installed):
    assert pkg_config("--modversion") == ["0.1.0"]
    assert run(installed / "opt/qr/bin/qwen-rerank", "--version").stdout.split()[1].startswith("0.1.0")
    assert not any("dnnl" in flag for flag in pkg_config("--libs")), "the shared library brings its own libraries"
    assert "/opt/qr/include" in pkg_config("--cflags")[0]


@pytest.mark.parametrize("source_name", ["example.c", "example.cpp"])
@pytest.mark.parametrize("static", [False, True], ids=["shared", "static"])
def test_user_program(source, build, testdata, libdir, pkg_config, tmp_path, run, expected, source_name, static):
    cc, cxx = compilers(build)
    compiler = [cc, "-std=c17"] if source_name.endswith(".c") else [cxx, "-std=c++17"]
    libs = pkg_config("--libs", *(["--static"] if static else []))
    if static:
        libs = ["-l:libqwen-rerank.a" if flag == "-lqwen-rerank" else flag for flag in libs]
    program = tmp_path / "example"
    run(*compiler, "-Wall", "-Wextra", "-Werror", *pkg_config("--cflags"), "-o", program, source / "tests/abi" / source_name, *libs)
    needed = run("readelf", "-d", program).stdout
    assert ("libqwen-rerank.so" in needed) == (not static)
    env = os.environ | ({} if static else {"LD_LIBRARY_PATH": str(libdir)})
    check(run(program, testdata / "micro-1", env=env), expected)


def test_example_reports_a_missing_model(source, build, libdir, pkg_config, tmp_path, run):
    cc, _ = compilers(build)
    program = tmp_path / "example"
    run(cc, "-std=c17", *pkg_config("--cflags"), "-o", program, source / "tests/abi/example.c", *pkg_config("--libs"))
    done = subprocess.run([program, tmp_path / "nothing-here"], capture_output=True, text=True, timeout=60,
                          env=os.environ | {"LD_LIBRARY_PATH": str(libdir)})  # fmt: skip
    assert done.returncode == 1
    assert "nothing-here" in done.stderr


def test_readme_shows_this_example(source):
    """The C example in README.md is tests/abi/example.c, which is compiled and run above."""
    example = (source / "tests/abi/example.c").read_text().split("*/\n", 1)[1]
    assert example in (source / "README.md").read_text()
