"""A small Hugging Face Hub for tests: an API host and, on another port, the host that large files come from. Faults are put into queues."""

import collections
import hashlib
import http.server
import json
import threading
import time
import urllib.parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git_hash(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class File:
    def __init__(self, data, large):
        self.data, self.large = data, large
        self.hash = hashlib.sha256(data).hexdigest() if large else git_hash(data)
        self.size = len(data)  # what the list says


class Hub:
    """files: {path: bytes}; those of more than a kilobyte are large. faults[path]: a queue, one is taken by each request for the content."""

    def __init__(self, files, repo="test/model"):
        self.repo = repo
        self.files = {path: File(data, len(data) > 1000) for path, data in files.items()}
        self.faults = collections.defaultdict(collections.deque)
        self.api_faults = collections.deque()
        self.requests = []  # (host, method, path, headers)
        self.bytes_served = 0
        self.rate = None  # bytes a second of each connection
        self.page_size = 3
        self.raw_list = None  # bytes to send in the place of the list
        self.lock = threading.Lock()
        self.servers = [self.start("api"), self.start("cdn")]
        self.api, self.cdn = (f"http://127.0.0.1:{s.server_address[1]}" for s in self.servers)

    def start(self, host):
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                with hub.lock:
                    hub.requests.append((host, self.command, self.path, dict(self.headers)))
                try:
                    getattr(hub, host + "_answer")(self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            do_HEAD = do_GET

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.02}).start()
        return server

    def close(self):
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def host_requests(self, host):
        return [r for r in self.requests if r[0] == host]

    # ---- answers ---------------------------------------------------------------------------------------------------------------------

    def send(self, request, status, body=b"", headers=()):
        request.send_response(status)
        for name, value in headers:
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    def fail(self, request, fault):
        """A fault that is a status, with headers."""
        status, headers = fault if isinstance(fault, tuple) else (fault, [])
        self.send(request, status, b"an error page", headers)

    def api_answer(self, request):
        url = urllib.parse.urlsplit(request.path)
        if self.api_faults:
            fault = self.api_faults.popleft()
            if fault is not None:
                return self.fail(request, fault)
        path = urllib.parse.unquote(url.path)
        if path.startswith(f"/api/models/{self.repo}/revision/"):
            revision = path.rsplit("/", 1)[1]
            if revision not in ("main", "v1", COMMIT):
                return self.send(request, 404, b"{}", [("X-Error-Code", "RevisionNotFound")])
            siblings = [{"rfilename": name} for name in self.files]
            return self.send(request, 200, json.dumps({"id": self.repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}).encode())
        if path == f"/api/models/{self.repo}":
            return self.send(request, 200, json.dumps({"id": self.repo, "sha": COMMIT, "siblings": [{"rfilename": n} for n in self.files]}).encode())
        if path.startswith(f"/api/models/{self.repo}/tree/"):
            return self.list_files(request, url)
        prefix = f"/{self.repo}/resolve/"
        if path.startswith(prefix):
            revision, _, name = path[len(prefix) :].partition("/")
            if name in self.files and revision in (COMMIT, "main", "v1"):
                return self.resolve(request, name)
            return self.send(request, 404, b"", [("X-Error-Code", "EntryNotFound"), ("X-Repo-Commit", COMMIT)])
        return self.send(request, 401, b"", [("X-Error-Code", "RepoNotFound"), ("X-Error-Message", "Repository not found")])

    def list_files(self, request, url):
        if self.raw_list is not None:
            return self.send(request, 200, self.raw_list)
        first = int(urllib.parse.parse_qs(url.query).get("cursor", ["0"])[0])
        names = list(self.files)[first : first + self.page_size]
        entries = [{"type": "directory", "path": "1_LogitScore", "size": 0, "oid": "0" * 40}] if first == 0 else []
        for name in names:
            file = self.files[name]
            entry = {"type": "file", "path": name, "size": file.size, "oid": git_hash(file.data)}
            if file.large:
                entry["lfs"] = {"oid": file.hash, "size": file.size, "pointerSize": 134}
            entries.append(entry)
        more = first + self.page_size < len(self.files)
        link = f'<{self.api}{url.path}?recursive=true&cursor={first + self.page_size}>; rel="next"'
        return self.send(request, 200, json.dumps(entries).encode(), [("Link", link)] if more else [])

    def resolve(self, request, name):
        file = self.files[name]
        headers = [("X-Repo-Commit", COMMIT), ("Accept-Ranges", "bytes")]
        if not file.large:
            return self.content(request, name, [*headers, ("ETag", f'"{file.hash}"')])
        location = f"{self.cdn}/{urllib.parse.quote(name)}?Signature=1"
        headers += [("X-Linked-Etag", f'"{file.hash}"'), ("X-Linked-Size", str(file.size)), ("ETag", '"pointer"'), ("Location", location)]
        return self.send(request, 302, b"", headers)

    def cdn_answer(self, request):
        return self.content(request, urllib.parse.unquote(urllib.parse.urlsplit(request.path).path[1:]), [("ETag", '"of the cdn"')])

    def content(self, request, name, headers):
        data = self.files[name].data
        fault = self.faults[name].popleft() if self.faults[name] and request.command == "GET" else None
        if isinstance(fault, (int, tuple)):
            return self.fail(request, fault)
        if fault == "elsewhere":
            return self.send(request, 302, b"", [("Location", request.path)])
        if fault == "wrong":
            data = data.translate(bytes(i ^ 1 for i in range(256)))
        if fault == "short":
            data = data[: len(data) // 2]
        if fault == "long":
            data = data + b"more"
        first, last, status = 0, len(data) - 1, 200
        asked = request.headers.get("Range")
        if asked and fault != "no ranges":
            a, b = asked.removeprefix("bytes=").split("-")
            first, last, status = int(a), min(int(b or last), last), 206
            if first > last:
                return self.send(request, 416, b"", [("Content-Range", f"bytes */{len(data)}")])
            headers = [*headers, ("Content-Range", f"bytes {first}-{last}/{len(data)}")]
        body = data[first : last + 1]
        request.send_response(status)
        for key, value in headers:
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "HEAD":
            return None
        stop = len(body) // 2 if fault in ("drop", "stall") else len(body)
        for at in range(0, stop, 1 << 16):
            piece = body[at : min(at + (1 << 16), stop)]
            request.wfile.write(piece)
            with self.lock:
                self.bytes_served += len(piece)
            if self.rate:
                time.sleep(len(piece) / self.rate)
        if fault == "stall":
            time.sleep(30)
        if fault in ("drop", "stall"):
            request.close_connection = True
            request.connection.close()
        return None
