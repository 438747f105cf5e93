"""A chat endpoint for tests: a real HTTP server in this process that answers well, badly, slowly or not at all."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-a-very-secret-key-0123456789"
GOOD = {"synonyms": ["automobile", "motorcar"], "no_relation": ["cheese"], "far": ["lamp"], "mid": ["train"]}


class Endpoint(ThreadingHTTPServer):
    """What `answer(handler)` sends goes to the client; `requests` holds (path, headers, body)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.content: str = json.dumps(GOOD)
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body: bytes | None = None  # instead of a chat answer
        self.delay = 0.0  # seconds before every byte of the body
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers), json.loads(data)))
        chat = {"choices": [{"message": {"role": "assistant", "content": self.server.content}}]}
        body = json.dumps(chat).encode() if self.server.body is None else self.server.body
        self.send_response(self.server.status)
        for name, value in {"Content-Length": str(len(body)), **self.server.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for byte in [body] if not self.server.delay else [body[i : i + 1] for i in range(len(body))]:
                time.sleep(self.server.delay)
                self.wfile.write(byte)
        except OSError:
            pass  # the client has gone: what a test of slowness expects

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def chat_server() -> Iterator[Endpoint]:
    """A server that answers until the with block ends."""
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
