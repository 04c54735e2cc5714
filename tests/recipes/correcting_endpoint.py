"""An OpenAI-compatible endpoint that corrects every mistake: it answers with the truth that a question tells it."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Correcting(BaseHTTPRequestHandler):
    """Answers chat completions in the form that `data_prep/correct_cot.py` asks for."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = self.rfile.read(int(self.headers["content-length"])).decode()
        named = re.search(r"for your eyes only: it refers to the (.+?)\.\\n", request)
        body = json.dumps(completion(named[1] if named else "null")).encode()
        self.server.answered.append(json.loads(request)["model"])  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def completion(category: str) -> dict[str, Any]:
    """A reply with a chain of thought that ends in a category."""
    seen = "nothing that fits" if category == "null" else f"the {category}"
    steps = {"look": f"I see {seen}.", "listen": "I hear a low hum.", "read": "It asks for what hums."}
    content = json.dumps(steps | {"answer_category": category})
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "strong", "choices": [choice]}


@contextlib.contextmanager
def correcting_endpoint() -> Iterator[tuple[str, list[str]]]:
    """The endpoint's address, and the names of the models that it was asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Correcting)
    server.answered = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", server.answered  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
