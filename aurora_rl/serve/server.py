"""The server: it admits requests for the page's own routes, of a limited size, from the page itself."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import fastapi
import gradio as gr
import uvicorn
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aurora_rl.inference.pipeline import AuroraPipeline
from aurora_rl.serve.connections import BodyDeadline, ImpatientProtocol
from aurora_rl.serve.examples import SyntheticExamples
from aurora_rl.serve.listening import is_loopback, listening
from aurora_rl.serve.page import build_page, page_looks
from aurora_rl.serve.request import MEGABYTE, Limits, RequestAnswerer
from aurora_rl.serve.uploads import leaving_no_half_files, stored_bytes, tell_begun_files

#: Requests of a browser that shows the page. Gradio answers many others: it fetches addresses, keeps histories,
#: and calls functions past the queue.
ROUTES = re.compile(
    r"""(GET|HEAD)\ (
        / | /config | /theme\.css | /favicon\.ico | /manifest\.json | /(assets|static|svelte)/.*
        | /gradio_api/( info | app_id | startup-events | queue/data | upload_progress | heartbeat/[^/]+ | file=/.* )
    )
    | POST\ /gradio_api/( upload | queue/join | cancel | reset )""",
    re.VERBOSE,
)
UPLOAD = "/gradio_api/upload"
MAX_BODY = 1_000_000  # bytes of a request other than an upload, and of an upload's fields around the file
#: Policy that the browser enforces: the page loads nothing from other servers and sends them nothing.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' blob: 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
#: Number of clips of the largest size that uploads and answers may fill together.
STORED_CLIPS = 20
SHUTDOWN_SECONDS = 2  # seconds that a shutdown waits for open connections


class Doorkeeper:
    """Middleware (ASGI) that admits the requests which the page needs, and no others.

    Args:
        app: application behind it.
        max_upload: upper limit of an upload, in bytes.
        hosts: allowed host names, so that no foreign page whose name is made to point here gets answers; None for any.
        folder: folder of uploads and answers.
        max_stored: upper limit of their bytes together; an upload that does not fit is refused.
    """

    def __init__(
        self, app: ASGIApp, *, max_upload: int, hosts: frozenset[str] | None, folder: Path, max_stored: int
    ) -> None:
        self.app = app
        self.max_upload = max_upload
        self.hosts = hosts
        self.folder = folder
        self.max_stored = max_stored
        self._coming = 0  # bytes of the uploads that are being received

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the application, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            send = _with_headers(send)
            if refused := self._refusal(scope):
                await refused(scope, receive, send)
            elif scope["method"] != "POST":
                await self.app(scope, receive, send)
            elif scope["path"] == UPLOAD:
                await self._take_upload(scope, receive, send)
            else:
                await self._take_body(scope, receive, send)

    async def _take_upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Accept an upload if there is room for it, and remove it if it stays incomplete."""
        length = _length(scope)
        self._coming += length
        try:
            if await run_in_threadpool(stored_bytes, self.folder) + self._coming > self.max_stored:
                await _closing("The page has no room for further clips now: try again in an hour.", 507)(
                    scope, receive, send
                )
                return
            with leaving_no_half_files():
                await self._take_body(scope, receive, send)
        finally:
            self._coming -= length

    async def _take_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request with a body, and end it if the body stops coming."""
        body = BodyDeadline(receive, _length(scope))

        async def send_in_time(message: Message) -> None:
            if not body.is_over:
                await send(message)

        try:
            await self.app(scope, body, send_in_time)
        except Exception:
            if not body.is_over:  # otherwise the application reports that the visitor is gone
                raise
        if body.is_over:
            await _closing("The request stopped before its end.", 408)(scope, receive, send)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts is not None and urlsplit(f"//{host}").hostname not in self.hosts:
            return PlainTextResponse("This page does not answer under that host name.", 403)
        if origin is not None and urlsplit(origin).netloc != host:
            return PlainTextResponse("Requests from other pages are refused.", 403)
        if not ROUTES.fullmatch(f"{scope['method']} {scope['path']}"):
            return PlainTextResponse("There is nothing here.", 404)
        if scope["method"] == "POST":
            return self._size_refusal(headers, scope["path"])
        return None

    def _size_refusal(self, headers: Headers, path: str) -> PlainTextResponse | None:
        length = headers.get("content-length", "")  # the server itself accepts no more bytes than this
        if not length.isdecimal():
            return PlainTextResponse("The request states no size.", 411)
        if int(length) > MAX_BODY + (self.max_upload if path == UPLOAD else 0):
            return PlainTextResponse(f"The file is too large: the limit is {self.max_upload / MEGABYTE:g} MB.", 413)
        return None


def _length(scope: Scope) -> int:
    return int(Headers(scope=scope)["content-length"])  # `_size_refusal` has checked it


def _closing(text: str, status: int) -> PlainTextResponse:
    """Make a refusal that ends the connection, since nobody reads the rest of the body."""
    return PlainTextResponse(text, status, headers={"Connection": "close"})


def build_app(
    pipeline: AuroraPipeline, folder: Path, *, limits: Limits, hosts: frozenset[str] | None, about: str = ""
) -> fastapi.FastAPI:
    """Build the whole application.

    Args:
        pipeline: pipeline with the model.
        folder: folder from `own_folder`; only its files are served.
        limits: upper limits of clips.
        hosts: allowed host names, see `Doorkeeper`.
        about: which model answers and what it can know, in plain text.
    """
    tell_begun_files()
    examples = SyntheticExamples(folder, pipeline.options)
    page = build_page(RequestAnswerer(pipeline, limits, folder), examples, about=about)
    door = Middleware(
        Doorkeeper,
        max_upload=limits.max_bytes,
        hosts=hosts,
        folder=folder,
        max_stored=STORED_CLIPS * limits.max_bytes,
    )
    return gr.mount_gradio_app(
        fastapi.FastAPI(middleware=[door], docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        allowed_paths=[],
        show_error=False,
        max_file_size=limits.max_bytes,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        run_history=False,
        footer_links=[],
        **page_looks(),
    )


def serve(
    pipeline: AuroraPipeline,
    folder: Path,
    *,
    host: str,
    port: int,
    limits: Limits,
    ready: Callable[[str], None],
    about: str = "",
) -> None:
    """Serve the page until SIGINT or SIGTERM.

    Args:
        pipeline: pipeline with the model.
        folder: folder from `own_folder`.
        host: address to listen on.
        port: port to listen on.
        limits: upper limits of clips.
        ready: function that is called with the page's address as soon as it can be visited.
        about: which model answers and what it can know, in plain text.

    Raises:
        OSError: if it is not possible to listen there.
    """
    with listening(host, port) as connection, contextlib.suppress(KeyboardInterrupt):
        hosts = frozenset({"127.0.0.1", "localhost", "::1", host}) if is_loopback(host) else None
        app = build_app(pipeline, folder, limits=limits, hosts=hosts, about=about)
        config = server_config(app)
        ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        uvicorn.Server(config).run(sockets=[connection])


def server_config(app: ASGIApp) -> uvicorn.Config:
    """Return the settings of uvicorn, with time limits for slow visitors."""
    return uvicorn.Config(app, http=ImpatientProtocol, log_level="warning", timeout_graceful_shutdown=SHUTDOWN_SECONDS)


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return send_with_headers
