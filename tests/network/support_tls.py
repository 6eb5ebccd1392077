"""HTTPS in front of a fake vLLM: hypercorn, HTTP/2 or 1.1 as clients and the server agree by ALPN, certificates of a CA of one's own."""

import asyncio
import contextlib
import http.client
import ssl
import threading

import trustme
from hypercorn.asyncio import serve
from hypercorn.config import Config


class Https:
    def __init__(self, fake, folder, name="127.0.0.1", alpn=("h2", "http/1.1")):
        self.fake, self.versions, self.connections = fake, [], set()
        ca = trustme.CA()
        self.ca_file = str(folder / f"ca-{id(self)}.pem")
        ca.cert_pem.write_to_path(self.ca_file)
        certificate = ca.issue_cert(name)
        config = Config()
        config.bind, config.alpn_protocols, config.accesslog, config.errorlog = ["127.0.0.1:0"], list(alpn), None, None
        config.certfile, config.keyfile = str(folder / f"cert-{id(self)}.pem"), str(folder / f"key-{id(self)}.pem")
        for i, blob in enumerate(certificate.cert_chain_pems):
            blob.write_to_path(config.certfile, append=i > 0)
        certificate.private_key_pem.write_to_path(config.keyfile)
        sockets = config.create_sockets()
        config.create_sockets = lambda: sockets
        self.url = "https://127.0.0.1:%d" % sockets.secure_sockets[0].getsockname()[1]
        self.loop = asyncio.new_event_loop()
        self.stopping = asyncio.Event()
        self.thread = threading.Thread(target=self.run, args=[config], daemon=True)
        self.thread.start()

    def run(self, config):
        with contextlib.suppress(ssl.SSLError):  # hypercorn, of connections that end while it does
            self.loop.run_until_complete(serve(self.app, config, shutdown_trigger=self.stopping.wait))

    async def app(self, scope, receive, send):
        if scope["type"] != "http":
            return
        self.versions.append(scope["http_version"])
        self.connections.add(tuple(scope["client"]))
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {k.decode(): v.decode() for k, v in scope["headers"] if not k.startswith(b":") and k not in (b"host", b"content-length")}
        status, kind, answer = await asyncio.get_running_loop().run_in_executor(None, self.forward, scope["method"], scope["path"], body, headers)
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind.encode())]})
        await send({"type": "http.response.body", "body": answer})

    def forward(self, method, path, body, headers):
        connection = http.client.HTTPConnection(self.fake.host, self.fake.port)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers["Content-Type"], answer.read()
        finally:
            connection.close()

    def close(self):
        self.loop.call_soon_threadsafe(self.stopping.set)
        self.thread.join(20)
