"""An OpenAI-compatible endpoint that goes wrong by plan; it shares no code with the package.

endpoint         fixture: one server in a thread
start_endpoint   fixture: makes several
"""

import asyncio
import dataclasses
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

#: Row `n` is of category `n % 3`; a third of the rows refers to nothing.
CATEGORIES = ("drum", "hair-dryer", "null")
PROMPT_TOKENS, COMPLETION_TOKENS = 100, 20
Plan = Callable[[int, int], str]


@dataclasses.dataclass(frozen=True)
class Request:
    """One request as the endpoint saw it: which row, for the how manyth time, and what the plan made of it."""

    row: int
    attempt: int
    action: str
    arrived: float
    headers: dict[str, str]
    body: dict


class FakeEndpoint:
    """HTTP/1.1 by hand, so that it can break in the middle of a reply.

    plan      (row, attempt from 1) -> what happens; "good" is the right answer
    bodies    status and body of further actions, by name
    judge     (the request's body, action) -> what happens instead
    log       every request, in the order of arrival
    delay_s   how long each reply takes
    most      the largest number of requests that were under way at once
    """

    def __init__(self) -> None:
        self.plan: Plan = lambda row, attempt: "good"
        self.bodies: dict[str, tuple[int, str]] = {}
        self.judge: Callable[[dict, str], str] = lambda body, action: action
        self.log: list[Request] = []
        self.delay_s = 0.0
        self.most = self._under_way = 0
        self._attempts: Counter[int] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        starting = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop)
        self._server = starting.result(timeout=60)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(timeout=60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=60)

    async def _end(self) -> None:
        self._server.close()
        serving = asyncio.all_tasks() - {asyncio.current_task()}
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                await self._answer(head[0], headers, body, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _answer(self, line: str, headers: dict, body: dict, writer: asyncio.StreamWriter) -> None:
        assert line.startswith("POST /v1/chat/completions ")
        row = int(re.search(r"thing of row (\d+)", json.dumps(body))[1])
        self._attempts[row] += 1
        action = self.judge(body, self.plan(row, self._attempts[row]))
        self.log.append(Request(row, self._attempts[row], action, time.monotonic(), headers, body))
        self._under_way += 1
        self.most = max(self.most, self._under_way)
        await asyncio.sleep(0.3 if action == "slow" else self.delay_s)
        self._under_way -= 1
        if action == "drop":
            writer.transport.abort()
            return
        if action == "hang":
            await asyncio.sleep(60)
        raw = http(*self.bodies[action]) if action in self.bodies else response(action, row, headers)
        writer.write(raw[: len(raw) // 2] if action == "half" else raw)
        await writer.drain()
        if action == "half":
            writer.close()


def response(action: str, row: int, headers: dict[str, str]) -> bytes:
    """The bytes of a reply; an action that is a number is that status, with what follows ":" as its Retry-After."""
    status, _, retry_after = action.partition(":")
    if status.isdecimal():
        extra = f"Retry-After: {retry_after}\r\n" if retry_after else ""
        # Some endpoints quote what they were sent.
        error = {"message": f"status {status} for {headers.get('authorization')}", "code": "insufficient_quota"}
        return http(
            int(status), json.dumps({"error": error if action == "429:quota" else error | {"code": None}}), extra
        )
    if action == "broken json":
        return http(200, '{"id": "1", "choices": [')
    if action == "html":
        return http(200, "<html>gateway</html>", kind="text/html")
    return http(200, completion(action, row))


def http(status: int, body: str, extra: str = "", *, kind: str = "application/json") -> bytes:
    data = body.encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n{extra}\r\n"
    return head.encode() + data


def completion(action: str, row: int) -> str:
    category = CATEGORIES[row % 3]
    named = "nothing that fits" if category == "null" else f"a {category}"
    steps = {
        "look": f"I see {named} in row {row}.",
        "listen": "I hear a low hum from the left.",
        "read": "It asks for what hums.",
        "answer_category": category,
    }
    steps |= {
        "wrong category": {"answer_category": CATEGORIES[(row + 1) % 3]},
        "leak": {"read": "The ground truth is what hums."},
        "no step": {"listen": ""},
        "label": {"look": f"**Look:** I see {named} in row {row}."},
    }.get(action, {})
    content = "Sorry, I had rather not." if action == "no json" else json.dumps(steps)
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "length" if action == "cut off" else "stop"}
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS, "total_tokens": 120}
    reply = {"id": str(row), "object": "chat.completion", "created": 0, "model": "strong", "choices": [choice]}
    return json.dumps(reply | ({} if action == "no usage" else {"usage": usage}))


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    server = FakeEndpoint()
    yield server
    server.close()


@pytest.fixture
def start_endpoint() -> Iterator[Callable[[], FakeEndpoint]]:
    """For a test that needs several."""
    servers: list[FakeEndpoint] = []

    def start() -> FakeEndpoint:
        servers.append(FakeEndpoint())
        return servers[-1]

    yield start
    for server in servers:
        server.close()
