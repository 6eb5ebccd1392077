"""rank: where documents come from, what is printed, interruption."""

import json
import os
import signal
import subprocess
import time

import pytest
from support import HANG_S, PROGRAM, cli, environment, fails, ok, score


def results(*args, **kwargs):
    return json.loads(ok("rank", *args, "--json", **kwargs))


def names(*args, **kwargs):
    return sorted(r["name"] for r in results(*args, **kwargs)["results"])


def test_documents_as_arguments():
    answer = results("q", "--doc", "one", "--doc", "two", "--doc", "three", "--text")
    assert answer["complete"] and answer["query"] == "q"
    assert [r["rank"] for r in answer["results"]] == [1, 2, 3]
    scores = [r["score"] for r in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert {r["index"]: r["text"] for r in answer["results"]} == {0: "one", 1: "two", 2: "three"}
    assert answer["usage"]["documents"] == 3
    expected = score([{"query": "q", "document": d} for d in ("one", "two", "three")])
    assert {r["index"]: r["margin"] for r in answer["results"]} == {r["index"]: r["margin"] for r in expected}


def test_lines_of_standard_input():
    assert names("q", stdin="one\n\ntwo\r\nthree") == ["stdin:1", "stdin:3", "stdin:4"]
    assert names("q", "-", "--input", "text", stdin="one\ntwo\n") == ["stdin"]


def test_files_lines_and_json_lines(tmp_path):
    text, data = tmp_path / "a.txt", tmp_path / "b.jsonl"
    text.write_text("one\ntwo\n")
    data.write_text('{"text": "x", "id": "first"}\n"bare"\n{"text": "y", "id": 7}\n')
    assert names("q", text) == [str(text)]
    assert names("q", text, "--lines") == [f"{text}:1", f"{text}:2"]
    assert names("q", data) == sorted(["7", "first", f"{data}:2"])
    assert names("q", data, "--input", "text") == [str(data)]
    data.write_text('{"text": 1}\n')
    assert f"{data}:1" in fails(3, "rank", "q", data)


def test_folders(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_text("b")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / ".hidden").write_text("h")
    (tmp_path / "binary").write_bytes(b"\x7fELF\0\0")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    done = cli("rank", "q", tmp_path, "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)["results"]
    assert {r["index"]: r["name"] for r in found} == {0: f"{tmp_path}/a.txt", 1: f"{tmp_path}/sub/b.txt"}
    assert b"1 hidden, 1 binary" in done.stderr
    assert cli("rank", "q", tmp_path, "--quiet").stderr == b""


def test_empty_and_binary_files(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "nul").write_bytes(b"a\0b")
    answer = results("q", tmp_path / "empty", tmp_path / "nul", "--text")
    assert sorted(r["text"] for r in answer["results"]) == ["", "a\0b"]


def test_nothing_to_rank(tmp_path):
    assert "nothing to rank" in fails(3, "rank", "q", stdin="")
    assert "nothing to rank" in fails(3, "rank", "q", stdin="\n \n")
    assert "nothing to rank" in fails(3, "rank", "q", tmp_path)


def test_unreadable_files(tmp_path):
    assert "missing" in fails(3, "rank", "q", tmp_path / "missing")
    (tmp_path / "good").write_text("good")
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    done = cli("rank", "q", tmp_path, "--json")
    assert done.returncode == 3 and len(json.loads(done.stdout)["results"]) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_files_without_permission(tmp_path):
    path = tmp_path / "secret"
    path.write_text("x")
    path.chmod(0)
    assert "secret" in fails(3, "rank", "q", path)


def test_invalid_utf8_is_replaced_and_said():
    (bad,) = results("q", stdin=b"a\xff\xe4\xb8b\n")["results"]
    (good,) = results("q", "--doc", "a\ufffd\ufffdb")["results"]
    assert bad["replaced"] and "replaced" not in good
    assert bad["margin"] == good["margin"]


def test_table():
    out = ok("rank", "q", "--doc", "\x1b[31mred\x07 \u202eevil\n\ttext", "--doc", "中文", "--explain", env=environment(COLUMNS="120"))
    lines = out.splitlines()
    assert len(lines) == 3 and lines[0].split() == "rank score tokens shared margin yes no notes name text".split()
    assert "\x1b" not in out and "\x07" not in out and "\u202e" not in out
    assert ok("rank", "q", "--doc", "a", "--raw").split()[1] == "margin"
    assert "\x1b[" in ok("rank", "q", "--doc", "a", "--color", "always")
    narrow = ok("rank", "q", "--doc", "word " * 100, env=environment(COLUMNS="40"))
    assert max(map(len, narrow.splitlines())) <= 40


def test_json_lines_and_top_n():
    lines = ok("rank", "q", "--jsonl", "--top-n", "2", "--explain", stdin="a\nb\nc\n").splitlines()
    assert [json.loads(line)["rank"] for line in lines] == [1, 2]
    assert {"yes_logit", "no_logit", "n_shared"} <= json.loads(lines[0]).keys()


@pytest.mark.slow
def test_a_large_document(tmp_path):
    path = tmp_path / "large.txt"
    path.write_bytes(b"The quick brown fox. " * 5_000_000)
    (result,) = results("q", path, "--max-length", "256")["results"]
    assert result["truncated"] and result["n_tokens"] == 256


def test_instruction_changes_the_score():
    a = results("q", "--doc", "d")["results"][0]
    b = results("q", "--doc", "d", "--instruction", "Find the opposite")["results"][0]
    assert a["margin"] != b["margin"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_prints_what_is_finished(tmp_path, number):
    path = tmp_path / "documents"
    text = "the quick brown fox jumps over the lazy dog " * 300
    path.write_text("".join(f"{i} {text}\n" for i in range(4000)))  # all different: the same would be computed once
    command = [PROGRAM, "rank", "q", str(path), "--lines", "--json", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        time.sleep(3)
        assert process.poll() is None, "the work is too small to be interrupted"
        process.send_signal(number)
        out, err = process.communicate(timeout=HANG_S)
        assert process.returncode == 130
    if out:  # nothing, if the model was still being loaded
        answer = json.loads(out)
        assert answer["complete"] is False
        assert len(answer["results"]) == answer["usage"]["documents"] < 4000
        assert b"interrupted" in err
