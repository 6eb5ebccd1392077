"""A vLLM server as far as its clients can tell: the routes, bodies and errors of vLLM 0.32, with faults on demand.

Scores are a formula of the prompt's token ids, or golden ones where the prompt is known, so that an answer that belongs to another prompt,
or to a prompt that was cut, shows.
"""

import argparse
import hashlib
import http.server
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time

# Of each process that runs tests on Linux an address of its own: nobody else takes the port of a server that is away for a while.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
HOST = f"127.0.1.{1 + int(WORKER[2:])}" if WORKER and sys.platform == "linux" else "127.0.0.1"


def formula(ids_sha256):
    """The margin of a prompt, from -10 to 10, by the hash that `score` prints of every prompt."""
    return int(ids_sha256[:12], 16) % 200001 / 10000 - 10


def margin_of(ids, golden):
    ids_sha256 = hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()
    return golden.get(ids_sha256, formula(ids_sha256))


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    @property
    def fake(self):
        return self.server.fake

    def answer(self, status, body, kind="application/json", **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def error(self, status, message, kind="BadRequestError", **headers):
        self.answer(status, {"error": {"message": message, "type": kind, "param": None, "code": status}}, **headers)

    def is_allowed(self):
        if self.fake.key is None or not self.path.startswith("/v1") or self.headers["Authorization"] == f"Bearer {self.fake.key}":
            return True
        self.answer(401, {"error": "Unauthorized"})
        return False

    def parse_request(self):
        """Of a stopped server, idle connections do not answer either."""
        if self.fake.is_stopped:
            self.close_connection = True
            return False
        return super().parse_request()

    def do_GET(self):
        self.fake.wait_while_frozen()
        if not self.is_allowed():
            return
        if self.path == "/health":
            self.answer(self.fake.health, b"")
        elif self.path == "/version" and self.fake.version is not None:
            self.answer(200, {"version": self.fake.version})
        elif self.path == "/v1/models":
            model = {"id": self.fake.model, "object": "model", "owned_by": "vllm", "root": "/m", "max_model_len": self.fake.max_model_len}
            self.answer(200, {"object": "list", "data": [model]})
        else:
            self.answer(404, {"detail": "Not Found"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.fake.wait_while_frozen()
        if not self.is_allowed():
            return
        route = {"/v1/completions": self.completions, "/generative_scoring": self.generative, "/classify": self.classify, "/tokenize": self.tokenize}
        if self.path not in route or (self.path != "/tokenize" and self.path not in self.fake.routes):
            self.answer(404, {"detail": "Not Found"})
            return
        request = json.loads(body)
        if request["model"] != self.fake.model:
            self.error(404, f"The model `{request['model']}` does not exist.", "NotFoundError")
            return
        if self.path == "/tokenize":
            self.tokenize(request)
            return
        with self.fake.lock:
            self.fake.running += 1
            self.fake.most_running = max(self.fake.most_running, self.fake.running)
        try:
            self.score(route[self.path], request)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with self.fake.lock:
                self.fake.running -= 1

    def tokenize(self, request):
        ids = self.fake.ids_of(request["prompt"])
        self.answer(200, {"count": len(ids), "max_model_len": self.fake.max_model_len, "tokens": ids, "token_strs": None})

    def score(self, route, request):
        fault = self.fake.take_fault()
        prompts = self.prompts_of(request)
        with self.fake.lock:
            self.fake.requests.append([len(p) for p in prompts])
        if self.gone_while(self.fake.delay + self.fake.token_delay * sum(map(len, prompts))):
            return
        if fault == "500":
            self.error(500, "EngineCore encountered an issue. See stack trace (above) for the root cause.", "InternalServerError")
        elif fault == "503":
            self.error(503, "Server is overloaded", "ServiceUnavailableError")
        elif fault == "429":
            self.error(429, "too many requests", "RateLimitError", Retry_After="1")
        elif fault == "html":
            self.answer(200, b"<!DOCTYPE html><html><body>Bad gateway</body></html>", kind="text/html")
        elif fault == "hang":
            self.gone_while(3600)
        elif fault == "huge":
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(b"[" * 65536)
        elif fault == "half":
            data = json.dumps(route(request, prompts)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif fault == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif any(len(p) + (self.path != "/classify") > self.fake.max_model_len for p in prompts) and self.path != "/generative_scoring":
            self.error(400, f"This model's maximum context length is {self.fake.max_model_len} tokens.")
        elif self.fake.max_queued is not None and len(prompts) > self.fake.max_queued:
            self.error(503, "Too many queued requests", "ServiceUnavailableError")
        elif any(i >= 151669 for p in prompts for i in p):
            self.error(400, "Token id is out of vocabulary")
        else:
            answer = route(request, prompts)
            results = answer["data" if "data" in answer else "choices"]
            if fault == "fewer":
                results.pop()
            elif fault == "twice":
                results[0]["index"] = results[-1]["index"]
            elif fault == "cut":
                answer["usage"]["prompt_tokens"] -= 1
            elif fault == "nan":
                self.spoil(results[0], math.nan)
            elif fault == "labels":
                self.spoil(results[0], None)
            results.reverse()  # vLLM promises no order
            with self.fake.lock:
                self.fake.n_answered += len(prompts)
            self.answer(200, answer)

    @staticmethod
    def spoil(result, value):
        if "logprobs" in result:
            top = result["logprobs"]["top_logprobs"][0]
            key = list(top)[-1]
            if value is None:
                del top[key]
                top["token_id:5"] = -1.0
            else:
                top[key] = value
        elif "probs" in result:
            result["probs"] = [value] if value is not None else [0.5, 0.5]
        else:
            result["score"] = value

    def gone_while(self, seconds):
        """Waits; True if the client closes its connection meanwhile, as uvicorn notices it."""
        end = time.monotonic() + seconds
        while True:
            left = end - time.monotonic()
            if self.fake.is_stopped:
                while self.fake.is_hanging:
                    time.sleep(0.05)
                self.close_connection = True
                return True
            if left <= 0:
                return False
            self.connection.settimeout(min(left, 0.05))
            try:
                if self.connection.recv(1, socket.MSG_PEEK) == b"":
                    with self.fake.lock:
                        self.fake.n_abandoned += 1
                    self.close_connection = True
                    return True
                time.sleep(min(left, 0.05))
            except TimeoutError:
                pass
            except OSError:
                return True
            finally:
                self.connection.settimeout(None)

    def prompts_of(self, request):
        if self.path == "/generative_scoring":
            return [request["query"] + item for item in request["items"]]
        return request["prompt" if self.path == "/v1/completions" else "input"]

    def usage(self, prompts):
        return {"prompt_tokens": sum(map(len, prompts)), "total_tokens": sum(map(len, prompts)), "completion_tokens": 0}

    def completions(self, request, prompts):
        assert len(prompts) <= 1024 and request["max_tokens"] == 1 and request["logprobs"] == 0 and request["return_tokens_as_token_ids"]
        yes, no = request["logprob_token_ids"]
        choices = []
        for i, p in enumerate(prompts):
            margin = self.fake.margin(p)
            top = {f"token_id:{yes}": -20 + margin / 2, f"token_id:{no}": -20 - margin / 2}
            if not self.fake.knows_label_ids:
                top = {f"token_id:{yes if margin > 0 else no}": -20 + abs(margin) / 2}
            logprobs = {"text_offset": [0], "token_logprobs": [max(top.values())], "tokens": [max(top, key=top.get)], "top_logprobs": [top]}
            choices.append({"index": i, "text": "yes", "logprobs": logprobs, "finish_reason": "length"})
        return {"id": "cmpl-1", "object": "text_completion", "model": self.fake.model, "choices": choices, "usage": self.usage(prompts)}

    def generative(self, request, prompts):
        assert request["apply_softmax"] and not request["item_first"] and not request["add_special_tokens"]
        limit = self.fake.max_model_len - 1
        prompts = [p[:limit] for p in prompts]  # silently, as the real one does
        data = [{"index": i, "object": "score", "score": sigmoid(self.fake.margin(p))} for i, p in enumerate(prompts)]
        return {"id": "generative-scoring-1", "object": "list", "model": self.fake.model, "data": data, "usage": self.usage(prompts)}

    def classify(self, request, prompts):
        raw = self.fake.knows_use_activation and request["use_activation"] is False
        data = [
            {"index": i, "label": "LABEL_0", "probs": [self.fake.margin(p) if raw else sigmoid(self.fake.margin(p))], "num_classes": 1}
            for i, p in enumerate(prompts)
        ]
        return {"id": "classify-1", "object": "list", "model": self.fake.model, "data": data, "usage": self.usage(prompts)}


CAUSAL = ("/v1/completions", "/generative_scoring")
CLASSIFIER = ("/classify",)


class HttpServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512
    allow_reuse_address = True

    def handle_error(self, request, client_address):
        pass


class FakeVllm:
    def __init__(self, tokenize, port=0, host=HOST, routes=CAUSAL, model="reranker", golden=None, **settings):
        self.tokenize_text, self.routes, self.model, self.golden, self.host = tokenize, routes, model, golden or {}, host
        self.key, self.max_model_len, self.health, self.version = None, 8193, 200, "0.32.0"
        self.delay, self.token_delay, self.max_queued, self.shift = 0, 0, None, 0
        self.knows_label_ids = self.knows_use_activation = True
        self.lock = threading.Lock()
        self.faults = []  # of the next requests for scores, or one word for all of them
        self.requests, self.running, self.most_running, self.n_answered, self.n_abandoned = [], 0, 0, 0, 0
        self.thawed = threading.Event()
        self.thawed.set()
        self.__dict__.update(settings)
        self.server = None
        self.start(port)

    def start(self, port=None):
        self.is_stopped = self.is_hanging = False
        self.server = HttpServer((self.host, self.port if port is None else port), Handler)
        self.server.fake = self
        self.port = self.server.server_address[1]
        self.url = f"http://{self.host}:{self.port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self, hang=False):
        """As kill -9: refuses connections, and those that are open are closed; or, as vLLM on SIGTERM, stay open without an answer."""
        self.is_hanging = hang
        self.is_stopped = True
        self.thawed.set()
        self.server.shutdown()
        self.server.server_close()

    def drain(self):
        """As SIGTERM with --shutdown-timeout: refuses connections, answers what it has, closes those that are idle."""
        self.server.shutdown()
        self.server.server_close()
        while self.running > 0:
            time.sleep(0.01)
        self.is_stopped = True

    def freeze(self):
        """As SIGSTOP: connections are taken, nothing is answered."""
        self.thawed.clear()

    def thaw(self):
        self.thawed.set()

    def wait_while_frozen(self):
        self.thawed.wait()

    def take_fault(self):
        with self.lock:
            if isinstance(self.faults, str):
                return self.faults
            return self.faults.pop(0) if self.faults else None

    def ids_of(self, text):
        return self.tokenize_text(text)

    def margin(self, ids):
        return margin_of(ids, self.golden) + self.shift


def main():
    """As the child of --spawn: takes the command line of vLLM's server. A file named by FAKE_VLLM_CRASH makes it end at the start,
    FAKE_VLLM_DEAF ignore SIGTERM."""
    parser = argparse.ArgumentParser()
    for flag in ("--host", "--served-model-name", "--dtype", "--model"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-model-len", type=int, required=True)
    parser.add_argument("--enable-prefix-caching", action="store_true")
    a = parser.parse_args()
    print("INFO: loading", a.model, a.dtype, flush=True)
    if os.path.exists(os.environ.get("FAKE_VLLM_CRASH", "")):
        sys.exit("ERROR: crashed on purpose")
    if "FAKE_VLLM_DEAF" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "1000"])  # as vLLM's engine: outlives whoever started it
    tokens = {}

    def tokenize(text):
        if text not in tokens:
            command = [os.environ["QR_TEST_PROGRAM"], "tokenize", "--special", "--json", "--model", a.model, "-"]
            tokens[text] = [t["id"] for t in json.loads(subprocess.run(command, input=text.encode(), capture_output=True, check=True).stdout)["tokens"]]
        return tokens[text]

    FakeVllm(tokenize, port=a.port, host=a.host, model=a.served_model_name, max_model_len=a.max_model_len)
    print(f"INFO: Application startup complete. pids {os.getpid()} {child.pid}", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
