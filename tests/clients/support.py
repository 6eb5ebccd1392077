"""What the tests of this folder share: the program, what it should answer, and the list of clients."""

import contextlib
import functools
import json
import os
import pathlib
import socket
import subprocess
import time
import urllib.request

SOURCE = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = pathlib.Path(os.environ.get("QR_BUILD") or SOURCE / "build") / "qwen-rerank"
HANG_S = 120  # a guard against hanging, not a promise about speed

QUERY = "What is the capital of the United States?"
DOCUMENTS = (
    "Carson City is the capital city of the American state of Nevada.",
    "Washington, D.C. is the capital of the United States.",
    "Bread is baked from flour, water and salt. ¼ päckchen 🍞",
    "The United States has fifty states.",
    "Capital punishment has existed in the United States since before it was a country.",
)
MOST_DOCUMENTS = 20  # that the strict server takes in one request
KEY = "secret"


@functools.cache
def ranked(query=QUERY, documents=DOCUMENTS, instruction=None, score="score"):
    """[(index, score)] from best to worst, as the command line finds them."""
    command = [PROGRAM, "rank", "--model", "builtin", "--quiet", "--json", query]
    command += [f"--doc={document}" for document in documents] + ([f"--instruction={instruction}"] if instruction else [])
    done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL, timeout=HANG_S)
    return [(result["index"], result[score]) for result in json.loads(done.stdout)["results"]]


def close(found, expected):
    """The same order, and the same scores as far as a float of 32 bits can tell: some clients keep them so."""
    return [i for i, _ in found] == [i for i, _ in expected] and all(abs(a - b) <= 1e-6 * max(1, abs(b)) for (_, a), (_, b) in zip(found, expected))


@contextlib.contextmanager
def running(*options):
    """The URL of a server that listens; its models may still be loading."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    process = subprocess.Popen([PROGRAM, "serve", "--port", str(port), "--threads", "1", "--log-level", "error", *options])
    try:
        end = time.monotonic() + HANG_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None and time.monotonic() < end, "the server does not start"
                time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        code = process.wait(HANG_S)
    assert code == 0


def wait_until_ready(url):
    end = time.monotonic() + HANG_S
    while True:
        try:
            return urllib.request.urlopen(f"{url}/ready").close()
        except OSError:  # also 503
            assert time.monotonic() < end, "the server does not get ready"
            time.sleep(0.02)


def post(url, body, **headers):
    """For clients that are not installed: the answer's object. Raises urllib.error.HTTPError."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=HANG_S) as answer:
        return json.load(answer)


def get(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=HANG_S) as answer:
        return json.load(answer)


class Client:
    """One way to ask: ask(url, key, query, documents) gives [(index, score)] or raises.

    Traits say what this client cannot do:
      keyless   it sends no key
      silent    its errors do not show what the server said
      frugal    without documents it does not ask
      rooted    whatever path its URL has, it asks below /
      logits    it gets logit(yes) - logit(no) instead of probabilities
      no /v1    its URL may not end in /v1
    """

    def __init__(self, name, traits, ask):
        self.name, self.traits, self.ask = name, traits, ask

    def __call__(self, url, key="any", query=QUERY, documents=DOCUMENTS):
        return list(self.ask(url, key, query, list(documents)))


def client(clients, name, *traits):
    assert set(traits) <= {"keyless", "silent", "frugal", "rooted", "logits", "no /v1"}

    def register(ask):
        clients.append(Client(name, traits, ask))
        return ask

    return register
