"""A running server for the tests of this folder."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "cli"))
from support import HANG_S, PROGRAM, environment  # noqa: E402

READY = re.compile(rb'"message": "ready on [^"]*:(\d+)"')


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)


class Server:
    def __init__(self, *options, wrapper=(), **variables):
        command = [*wrapper, PROGRAM, "serve", "--port", "0", "--threads", "1", "--log-format", "json"]
        command += ["--no-self-test", *options]  # it would count among the requests
        # Into a file: a pipe that nobody empties would hold the server up.
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, stderr=self.log, env=environment(**variables))
        self.wait_for(lambda: READY.search(self.read_log()) or self.process.poll() is not None, "the server's start")
        assert self.process.poll() is None, self.read_log()
        self.port = int(READY.search(self.read_log())[1])

    def read_log(self):
        return os.pread(self.log.fileno(), 1 << 24, 0)

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_S)
        with contextlib.closing(connection):
            if body is not None and not isinstance(body, (bytes, str)):
                body = json.dumps(body)
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())

    def get(self, path, **kwargs):
        return self.request("GET", path, **kwargs)

    def post(self, path, body, **kwargs):
        return self.request("POST", path, body, **kwargs)

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=HANG_S)

    def metric(self, name):
        for line in self.get("/metrics").body.decode().splitlines():
            if line.startswith(f"qwen_rerank_{name} "):
                return float(line.split()[-1])
        raise KeyError(name)

    def wait_for(self, condition, what):
        end = time.monotonic() + HANG_S
        while not condition():
            assert time.monotonic() < end, f"waited in vain for: {what}"
            time.sleep(0.02)

    def stop(self, number=signal.SIGTERM):
        """Stops it and returns the exit code and the log's lines as objects."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout=HANG_S)
        return code, [json.loads(line) for line in self.read_log().splitlines() if line.startswith(b"{")]


@pytest.fixture(scope="session")
def server():
    server = Server()
    yield server
    code, _ = server.stop()
    assert code == 0


@pytest.fixture
def start():
    """Starts servers with options of their own."""
    servers = []

    def start(*options, **kwargs):
        servers.append(Server(*options, **kwargs))
        return servers[-1]

    yield start
    for s in servers:
        s.stop(signal.SIGKILL)
