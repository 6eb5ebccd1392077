"""The libraries export what the header declares: nothing less, nothing more."""

import ctypes
import re
import subprocess

import capi


def declared(source):
    header = (source / "include" / "qwen_rerank.h").read_text()
    return set(re.findall(r"^QR_API[^;(]*?\b(qr_\w+)\(", header, re.M))


def test_shared_library_exports_exactly_the_header(source, build, run, sanitized):
    nm = run("nm", "-D", "--defined-only", build / "libqwen-rerank.so").stdout
    exported = {line.split()[-1].split("@")[0] for line in nm.splitlines()}
    if sanitized:  # the instrumentation adds symbols of its own
        exported = {name for name in exported if name.startswith("qr_")}
    assert exported == declared(source)
    assert len(exported) >= 10


def test_every_function_of_the_header_is_marked(source):
    """A function without QR_API would be missing from the shared library."""
    header = (source / "include" / "qwen_rerank.h").read_text()
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.S)
    prototypes = set(re.findall(r"^[a-z][\w *]*?\b(qr_\w+)\([^;{]*\);", text, re.M)) - set(re.findall(r"\(\*(qr_\w+)\)", text))
    assert prototypes == set()


def test_static_library_defines_all_of_them(source, build, run):
    nm = run("nm", "--defined-only", build / "libqwen-rerank.a").stdout
    assert declared(source) <= {line.split()[-1] for line in nm.splitlines() if line.strip() and " T " in line}


def test_soname_is_the_major_version(build, run):
    dynamic = run("readelf", "-d", build / "libqwen-rerank.so").stdout
    assert "[libqwen-rerank.so.0]" in dynamic


def test_objects_are_in_the_archive_once(build, run):
    members = run("ar", "t", build / "libqwen-rerank.a").stdout.split()
    assert len(members) == len(set(members))


def test_header_compiles_on_its_own(source, tmp_path):
    """As C17 and as C++17, each with every warning an error."""
    for compiler, std, suffix in (("cc", "c17", "c"), ("c++", "c++17", "cpp")):
        file = tmp_path / f"only.{suffix}"
        file.write_text('#include "qwen_rerank.h"\nint main() { return qr_status_text(QR_OK) == nullptr; }\n'.replace(
            "nullptr", "0" if suffix == "c" else "nullptr").replace("main()", "main(void)"))
        subprocess.run(
            [compiler, f"-std={std}", "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", f"-I{source / 'include'}", file],
            check=True, timeout=60)  # fmt: skip


def test_layouts_of_the_hand_written_structs(source, tmp_path):
    """capi.py is what a user of another language writes down; the compiler says whether the header still is that."""
    structs = {"qr_error": capi.Error, "qr_options": capi.Options, "qr_text": capi.Text, "qr_query": capi.Query, "qr_result": capi.Result,
               "qr_call": capi.Call}  # fmt: skip
    expected = {}
    lines = []
    for name, struct in structs.items():
        expected[name] = ctypes.sizeof(struct)
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        for field, _ in struct._fields_:
            expected[f"{name}.{field}"] = getattr(struct, field).offset
            lines.append(f'printf("{name}.{field} %zu\\n", offsetof({name}, {field}));')
    file = tmp_path / "layout.c"
    file.write_text('#include "qwen_rerank.h"\n#include <stdio.h>\nint main(void) {' + "\n".join(lines) + "}\n")
    subprocess.run(["cc", "-std=c17", f"-I{source / 'include'}", "-o", tmp_path / "layout", file], check=True, timeout=60)
    found = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True, timeout=60).stdout
    assert {line.split()[0]: int(line.split()[1]) for line in found.splitlines()} == expected
