"""A name server with one name, and a way to have a program ask it."""

import os
import pathlib
import shutil
import socket
import socketserver
import struct
import subprocess
import threading

import pytest

PORT = 53  # libc knows no other
MAX_UDP = 512  # without EDNS, which libc does not ask for by itself


class NameServer:
    """Answers with `addresses`, by UDP as far as that goes and by TCP. `is_dead`: not at all."""

    def __init__(self, host, name):
        self.host, self.name, self.addresses, self.is_dead = host, name, [], False
        self.n_asked, self.n_tcp = 0, 0
        outer = self

        class Udp(socketserver.BaseRequestHandler):
            def handle(self):
                question, to = self.request
                answer = outer.answer(question)
                if answer is not None:
                    to.sendto(answer if len(answer) <= MAX_UDP else outer.answer(question, truncated=True), self.client_address)

        class Tcp(socketserver.StreamRequestHandler):
            def handle(self):
                while len(size := self.rfile.read(2)) == 2:  # libc asks for both families of addresses on one connection
                    outer.n_tcp += 1
                    answer = outer.answer(self.rfile.read(struct.unpack(">H", size)[0]))
                    self.wfile.write(struct.pack(">H", len(answer)) + answer)

        class TcpServer(socketserver.ThreadingTCPServer):
            allow_reuse_address = True

        self.servers = [socketserver.ThreadingUDPServer((host, PORT), Udp), TcpServer((host, PORT), Tcp)]
        for server in self.servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def answer(self, question, truncated=False):
        if self.is_dead:
            return None
        labels, at = [], 12
        while question[at]:
            labels.append(question[at + 1 : at + 1 + question[at]].decode())
            at += 1 + question[at]
        kind = struct.unpack(">H", question[at + 1 : at + 3])[0]
        is_ours = ".".join(labels).lower() == self.name
        found = [socket.inet_aton(a) for a in self.addresses] if is_ours and kind == 1 else []
        self.n_asked += is_ours and kind == 1
        if truncated:
            found = []
        flags = 0x8580 | (0x0200 if truncated else 0) | (0 if is_ours else 3)
        records = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 5, 4) + a for a in found)
        return question[:2] + struct.pack(">HHHHH", flags, 1, len(found), 0, 0) + question[12 : at + 5] + records

    def close(self):
        for server in self.servers:
            server.shutdown()
            server.server_close()


def asking(host, folder):
    """The words before a command by which it asks the name server at `host`; skips the test where that is not permitted."""
    unshare, real = shutil.which("unshare"), pathlib.Path("/etc/resolv.conf").resolve()
    if unshare is None or os.geteuid() != 0 or not real.exists():
        pytest.skip("a resolv.conf of one's own needs unshare, the right to mount, and /etc/resolv.conf")
    conf = folder / "resolv.conf"
    conf.write_text(f"nameserver {host}\noptions timeout:1 attempts:1\n")
    words = [unshare, "--mount", "sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"', conf, real]
    tried = subprocess.run([*words, "true"], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"unshare --mount is not permitted: {tried.stderr.strip()}")
    return words
