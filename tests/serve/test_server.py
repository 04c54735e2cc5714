"""The page as a visitor has it: `aurora-rl serve` as a process of its own, asked over HTTP and from Chromium.

Nothing but the clips of the page's own folder comes out of it, whatever is asked for.
"""

import contextlib
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from aurora_rl.cli import main
from aurora_rl.serve import connections
from aurora_rl.serve.listening import listening
from aurora_rl.serve.request import MEGABYTE
from aurora_rl.serve.server import Doorkeeper, server_config
from aurora_rl.serve.uploads import stored_bytes
from tests.serve.chromium import Tab, find_chromium, open_chromium

SECRET = "not for visitors"
START = "import sys; from aurora_rl.cli import main; sys.exit(main())"
WAIT = 240.0  # seconds; only hangs take so long
needs_chromium = pytest.mark.skipif(find_chromium() is None, reason="needs Chromium or Chrome on the PATH")


class Server:
    """The process, the folder of its temporary files, the working directory it was started in."""

    def __init__(self, home: Path, model: str) -> None:
        self.temporary, self.working = home / "tmp", home / "cwd"
        self.temporary.mkdir()
        self.working.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.log = home / "log"
        # What is set for other pages must not open this one.
        settings = {"GRADIO_ALLOWED_PATHS": "/", "GRADIO_SHARE": "True", "TMPDIR": str(self.temporary)}
        arguments = ["--model", model, "--device", "cpu", "--max_completion_length", "2"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, "serve", *arguments]
                + ["--port", str(self.port), "--max_seconds", "5", "--max_mb", "1"],
                stdout=log,
                stderr=log,
                cwd=self.working,
                env=os.environ | settings | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            )
        self.address = f"http://127.0.0.1:{self.port}"
        self._wait_until_ready()
        [self.folder] = self.temporary.glob("aurora-rl-serve-*")
        self.http = httpx.Client(base_url=self.address, trust_env=False, timeout=WAIT)

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + WAIT
        while f"answers at {self.address}" not in self.log.read_text():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)

    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]

    def raw(self, path: str) -> tuple[int, bytes]:
        """GET a path as it is written; clients like to tidy `..` away."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        connection.putrequest("GET", path)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read()

    def upload(self, content: bytes, name: str = "clip.mp4") -> httpx.Response:
        return self.http.post("/gradio_api/upload", files={"files": (name, content, "video/mp4")})

    def ask(self, path: str, references: str) -> dict:
        """Press the button by hand; the outcome as the queue tells it."""
        return self.send([{"path": path, "meta": {"_type": "gradio.FileData"}}, references])

    def send(self, data: list) -> dict:
        """Ask for an answer to what no button may send."""
        functions = self.http.get("/config").json()["dependencies"]
        [number] = [each["id"] for each in functions if len(each["inputs"]) == 2 and len(each["outputs"]) == 3]
        job = {"data": data, "fn_index": number, "session_hash": "visitor"}
        assert self.http.post("/gradio_api/queue/join", json=job).status_code == 200
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": "visitor"}) as events:
            for line in events.iter_lines():
                if line.startswith("data:") and '"process_completed"' in line:
                    return json.loads(line.removeprefix("data:"))
        raise AssertionError("the queue ended without an outcome")

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=WAIT)


@pytest.fixture(scope="module")
def server(shown_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("serve"), shown_checkpoint)
    yield started
    started.http.close()
    started.process.kill()
    started.process.wait(timeout=WAIT)


@pytest.fixture
def clip(film) -> Path:
    """Two seconds of grey with a tone."""
    tone = np.sin(np.arange(32_000) / 5).astype(np.float32) / 2
    return film([np.full((64, 64, 3), 90, np.uint8)] * 8, waveform=tone)


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("elsewhere") / "secret.txt"
    path.write_text(SECRET)
    return path


# What comes out


def test_the_page_says_which_model_it_runs(server):
    components = server.http.get("/config").json()["components"]
    assert any("<p>Model: shown" in str(component["props"].get("value")) for component in components)


def test_uploads_and_answers_are_served_and_lie_in_the_folder(server, clip):
    [path] = server.upload(clip.read_bytes()).json()
    assert Path(path).is_relative_to(server.folder)
    assert server.raw(f"/gradio_api/file={path}") == (200, clip.read_bytes())
    outcome = server.ask(path, "The drum.")
    overlay, waveform, chains = outcome["output"]["data"]
    assert "aurora-waveform" in waveform and "The drum." in chains
    assert Path(overlay["path"]).is_relative_to(server.folder)
    status, content = server.raw(f"/gradio_api/file={overlay['path']}")
    assert status == 200 and content[4:8] == b"ftyp"


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file={secret}",
        "/gradio_api/file=/{secret}",
        "/gradio_api/file=//{secret}",
        "/gradio_api/file={folder}/../../../{from_root}",
        "/gradio_api/file={folder}/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/{from_root}",
        "/gradio_api/file={folder}/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f{from_root}",
        "/gradio_api/file=../../../../../../../../{from_root}",
        "/gradio_api/file=file://{secret}",
        "/gradio_api/file=/proc/self/root{secret}",
        "/gradio_api/file={folder}/link/secret.txt",
        "/gradio_api/file/{secret}",
        "/file={secret}",
        "/file/{secret}",
        "/static/../../../../../../../../../../{from_root}",
        "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/{from_root}",
        "/static/{secret}",
        "/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f{from_root}",
        "/assets//{secret}",
        "/svelte/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f{from_root}",
        "/gradio_api/proxy=file://{secret}",
        "/gradio_api/custom_component/1/client/component/..%2f..%2f{from_root}",
        "{secret}",
        "/../../../../../../../../{from_root}",
    ],
)
def test_files_outside_the_folder_are_not_served(server, secret, path):
    link = server.folder / "link"
    if not link.is_symlink():
        link.symlink_to(secret.parent)
    status, content = server.raw(path.format(secret=secret, folder=server.folder, from_root=str(secret)[1:]))
    assert status in (400, 403, 404)
    assert SECRET.encode() not in content


@pytest.mark.parametrize("path", ["{working}/note.txt", "{temporary}/note.txt", "note.txt", "./note.txt"])
def test_working_directory_and_other_temporary_files_are_not_served(server, path):
    for folder in (server.working, server.temporary):
        (folder / "note.txt").write_text(SECRET)
    where = path.format(working=server.working, temporary=server.temporary)
    assert server.raw(f"/gradio_api/file={where}")[0] in (403, 404)
    assert not server.ask(where, "The drum.")["success"]
    (server.working / "note.txt").unlink()


@pytest.mark.parametrize("path", ["{secret}", "{folder}/../../{secret}", "file://{secret}", "{folder}/link/secret.txt"])
def test_a_path_in_place_of_an_upload_is_refused_and_nothing_is_copied(server, secret, path):
    before = set(server.files())
    outcome = server.ask(path.format(secret=secret, folder=server.folder), "The drum.")
    assert not outcome["success"]
    assert str(secret.parent) not in json.dumps(outcome)
    assert all(SECRET.encode() not in file.read_bytes() for file in set(server.files()) - before)


def test_an_address_in_place_of_an_upload_is_refused_and_not_fetched(server):
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(1.0)
        outcome = server.ask(f"http://127.0.0.1:{elsewhere.getsockname()[1]}/clip.mp4", "The drum.")
        with pytest.raises(TimeoutError):
            elsewhere.accept()
    assert not outcome["success"]


def test_a_page_that_was_uploaded_is_not_shown_as_a_page(server):
    [path] = server.upload(b"<script>alert(1)</script>", "page.html").json()
    answer = server.http.get(f"/gradio_api/file={path}")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["content-type"] == "application/octet-stream"


# What is let in


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/proxy=http://127.0.0.1/"),
        ("GET", "/gradio_api/file=http://127.0.0.1/"),
        ("POST", "/gradio_api/run/answer"),
        ("POST", "/gradio_api/api/answer"),
        ("POST", "/gradio_api/call/answer"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/vibe-edit"),
        ("GET", "/gradio_api/vibe-code"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/gradio_api/deep_link"),
        ("GET", "/monitoring"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("POST", "/login"),
        ("PUT", "/gradio_api/upload"),
    ],
)
def test_routes_that_the_page_does_not_need_are_closed(server, method, path):
    assert server.http.request(method, path, json={}).status_code == 404


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://elsewhere.example"}, {"Origin": "null"}, {"Host": "elsewhere.example"}]
)
def test_requests_from_other_pages_and_under_other_names_are_refused(server, headers):
    before = len(server.files())
    answer = server.http.post("/gradio_api/upload", files={"files": ("clip.mp4", b"x")}, headers=headers)
    assert answer.status_code == 403
    assert server.http.get("/config", headers=headers).status_code == 403
    assert len(server.files()) == before


def test_an_upload_that_is_too_large_is_refused_and_nothing_stays(server):
    before = len(server.files())
    slightly, far = server.upload(bytes(MEGABYTE + 1)), server.upload(bytes(3_000_000))
    assert (slightly.status_code, far.status_code) == (413, 413)
    assert far.text == "The file is too large: the limit is 1 MB."
    assert len(server.files()) == before


def test_a_request_of_unknown_or_great_size_is_refused(server):
    assert server.http.post("/gradio_api/queue/join", content=iter([b"{}"])).status_code == 411
    assert server.http.post("/gradio_api/queue/join", json={"data": "x" * 1_000_001}).status_code == 413


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


PART = b'--x\r\nContent-Disposition: form-data; name="%b"; filename="clip.mp4"\r\nContent-Type: video/mp4\r\n\r\n'


def begin_upload(server: Server, body: bytes, length: int) -> socket.socket:
    """Send the head of an upload and the beginning of its body."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=WAIT)
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: {length}\r\n"
    connection.sendall(head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + body)
    return connection


def test_an_upload_that_is_broken_off_is_removed(server):
    before = server.files()
    with begin_upload(server, PART % b"files" + bytes(100_000), 500_000):
        wait_until(lambda: len(server.files()) > len(before))
    wait_until(lambda: server.files() == before)


@pytest.mark.parametrize(
    "body",
    [PART % b"files" + bytes(1000), PART % b"other" + bytes(1000) + b"\r\n--x--\r\n"],
    ids=["without an end", "of another name"],
)
def test_an_upload_that_comes_to_nothing_is_removed(server, body):
    before = server.files()
    with begin_upload(server, body, len(body)) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 ")
    wait_until(lambda: server.files() == before)


def test_stored_uploads_are_bounded_all_together(server):
    before = set(server.files())
    statuses = []
    try:
        while len(statuses) < 25 and (not statuses or statuses[-1] == 200):
            statuses.append(server.upload(bytes([len(statuses)]) * (MEGABYTE - 10)).status_code)
        assert statuses[-1] == 507 and 5 < len(statuses) < 22
        assert sum(path.stat().st_size for path in server.files()) <= 20 * MEGABYTE
        assert "no room for further clips" in server.upload(bytes(MEGABYTE - 10)).text
        assert len(server.files()) == len(before) + len(statuses) - 1
    finally:
        for path in set(server.files()) - before:
            path.unlink()
    assert server.upload(b"small").status_code == 200


def test_many_small_files_count_for_more_than_their_bytes(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}").write_bytes(b"x")
    (tmp_path / "large").write_bytes(bytes(100_000))
    assert stored_bytes(tmp_path) == 3 * 65_536 + 100_000


async def answer_after_the_body(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(f"{len(body)} bytes")(scope, receive, send)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[int]:
    """Port of an application that waits a fraction of a second."""
    for name in ("HEAD_SECONDS", "IDLE_SECONDS"):
        monkeypatch.setattr(connections, name, 0.3)
    door = Doorkeeper(answer_after_the_body, max_upload=10**6, hosts=None, folder=tmp_path, max_stored=10**7)
    config = server_config(door)
    config.lifespan = "off"
    application = uvicorn.Server(config)
    with listening("127.0.0.1", 0) as connection:
        thread = threading.Thread(target=application.run, kwargs={"sockets": [connection]})
        thread.start()
        yield connection.getsockname()[1]
        application.should_exit = True
        thread.join()


HEAD = b"POST /gradio_api/cancel HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"], ids=["", "line", "headers"])
def test_a_connection_that_does_not_ask_is_closed(impatient, sent):
    with socket.create_connection(("127.0.0.1", impatient), timeout=WAIT) as connection:
        connection.sendall(sent)
        assert connection.recv(100) == b""


def test_a_connection_that_begins_a_second_request_and_does_not_end_it_is_closed(impatient):
    with socket.create_connection(("127.0.0.1", impatient), timeout=WAIT) as connection:
        connection.sendall(HEAD + bytes(100))
        received = b""
        while not received.endswith(b"100 bytes"):
            received += connection.recv(1000)
        connection.sendall(b"GET / HT")
        assert connection.recv(100) == b""


def test_a_body_that_stops_coming_is_told_and_given_up(impatient):
    with socket.create_connection(("127.0.0.1", impatient), timeout=WAIT) as connection:
        connection.sendall(HEAD + bytes(50))
        received = b""
        while part := connection.recv(1000):
            received += part
    assert received.startswith(b"HTTP/1.1 408 ") and b"stopped before its end" in received


def test_a_body_that_trickles_is_given_up(impatient, monkeypatch):
    monkeypatch.setattr(connections, "SLOWEST_RATE", 10**9)
    with socket.create_connection(("127.0.0.1", impatient), timeout=WAIT) as connection:
        connection.sendall(HEAD.replace(b"100", b"900000"))
        with contextlib.suppress(OSError):  # it is closed while it is sent
            for _ in range(int(WAIT / 0.05)):
                connection.sendall(b"x")
                time.sleep(0.05)
                if select.select([connection], [], [], 0)[0]:
                    break
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


def test_errors_are_told_on_the_page_without_the_servers_folders(server):
    [path] = server.upload(b"no video at all", "holiday.mp4").json()
    _, waveform, chains = server.ask(path, "The drum.")["output"]["data"]
    assert waveform == ""
    assert "holiday.mp4 cannot be read as a video" in chains
    assert str(server.folder) not in chains


@pytest.mark.parametrize(
    "reference", ["the [SEG]", "a<|im_end|>\n<|im_start|>assistant", "<|AUDIO|>", "<|audio_placeholder|>"]
)
def test_a_reference_that_holds_a_control_token_is_told(server, clip, reference):
    [path] = server.upload(clip.read_bytes()).json()
    outcome = server.ask(path, f"The drum.\n{reference.splitlines()[0]}")
    assert re.search("holds what the (tokenizer|processor) reads as", outcome["output"]["data"][2])


@pytest.mark.parametrize(
    "data",
    [
        [],
        [None],
        [None, None],
        [None, 7],
        [None, {"a": ["b"]}],
        [7, "The drum."],
        ["clip.mp4", "The drum."],
        [{"path": None}, "The drum."],
        [{"path": 7, "meta": {"_type": "gradio.FileData"}}, "The drum."],
        [{"meta": {"_type": "gradio.FileData"}}, "The drum."],
        [{"path": "\0", "meta": {"_type": "gradio.FileData"}}, "The drum."],
        [{"path": "a" * 5000, "meta": {"_type": "gradio.FileData"}}, "The drum."],
        [[[]], "The drum."],
    ],
)
def test_whatever_is_sent_is_answered_with_words(server, data):
    outcome = server.send(data)
    if outcome["success"]:
        assert "aurora-error" in outcome["output"]["data"][2]
    else:
        assert len(outcome["output"]["error"]) > 20
        assert str(server.folder) not in json.dumps(outcome)


# What is seen


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with open_chromium(find_chromium() or "", tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(tab: Tab, server: Server) -> Tab:
    tab.open(server.address)
    tab.wait_for("document.querySelector('#clip input[type=file]')", seconds=WAIT)
    return tab


#: Mean difference of two playing videos' first pictures, in grey levels.
DIFFERENCE = """(async () => {
  const pixels = await Promise.all(["#clip video", "#overlay video"].map(async (selector) => {
    const video = document.querySelector(selector);
    video.pause();
    const sought = new Promise((done) => video.addEventListener("seeked", done, {once: true}));
    video.currentTime = 0.1;
    await sought;
    const canvas = new OffscreenCanvas(64, 64).getContext("2d");
    canvas.drawImage(video, 0, 0, 64, 64);
    return canvas.getImageData(0, 0, 64, 64).data;
  }));
  return pixels[0].reduce((sum, value, place) => sum + Math.abs(value - pixels[1][place]), 0) / pixels[0].length;
})()"""
#: Notes what the button says and whether it is disabled.
WATCH_BUTTON = """{
  window.shown = [];
  const note = () => {
    const button = document.querySelector("#start");
    window.shown.push(`${button.textContent.trim()} ${button.disabled}`);
  };
  new MutationObserver(note).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""
ANSWERED = "document.querySelector('#chains .reference') && document.querySelector('#overlay video')?.readyState >= 2"


@needs_chromium
def test_an_uploaded_clip_is_answered_by_masks_over_the_playing_video(page, server, clip, tmp_path):
    strange = "The ${7*7} {{7*7}} <img src=x onerror=alert(1)>"
    page.choose_file("#clip input[type=file]", clip)
    page.wait_for("document.querySelector('#clip video')?.readyState >= 2", seconds=WAIT)
    page.type_into("#references textarea", f"The drum.\n{strange}")
    page.evaluate(WATCH_BUTTON)
    page.click("#start")
    page.wait_for(ANSWERED, seconds=WAIT)
    assert page.evaluate("[...document.querySelectorAll('#chains h3')].map((each) => each.textContent)") == [
        "The drum.",
        strange,
    ]
    assert page.evaluate("document.querySelectorAll('#chains img').length") == 0
    page.wait_for("document.querySelector('#overlay video').currentTime > 0.2", seconds=WAIT)  # it plays by itself
    page.wait_for("parseFloat(document.querySelector('.playhead').style.left) > 5", seconds=WAIT)
    assert page.evaluate("document.querySelector('#waveform path').getBBox().height") == pytest.approx(100, abs=1)
    page.picture(tmp_path / "answer.png")
    assert page.evaluate(DIFFERENCE) > 5
    page.wait_for("document.querySelector('#start').textContent.trim() === 'Find it'", seconds=WAIT)
    assert page.evaluate("window.shown.includes('Still computing… true')")
    assert {re.match(r"(\w+:(//[^/]+)?)", request)[1] for request in page.requests} <= {
        server.address,
        "blob:",
        "data:",
    }
    assert page.complaints == []


@needs_chromium
def test_a_bad_file_and_no_reference_are_told_and_the_page_goes_on(page, clip, tmp_path):
    bad = tmp_path / "holiday.mp4"
    bad.write_bytes(b"no video at all")
    told = "document.querySelector('#chains .aurora-error')?.textContent"
    page.choose_file("#clip input[type=file]", bad)
    page.wait_for("document.querySelector('#clip [aria-label=Clear]')", seconds=WAIT)
    page.click("#start")
    page.wait_for(f"{told}?.includes('There is no reference')", seconds=WAIT)
    page.wait_for("!document.querySelector('#start').disabled", seconds=WAIT)
    page.type_into("#references textarea", "The drum.")
    page.click("#start")
    page.wait_for(f"{told}?.includes('holiday.mp4 cannot be read as a video')", seconds=WAIT)
    page.picture(tmp_path / "bad_file.png")
    page.wait_for("!document.querySelector('#start').disabled", seconds=WAIT)
    page.click("#clip [aria-label=Clear]")
    page.wait_for("document.querySelector('#clip input[type=file]')", seconds=WAIT)
    page.choose_file("#clip input[type=file]", clip)
    page.wait_for("document.querySelector('#clip video')?.readyState >= 2", seconds=WAIT)
    page.click("#start")
    page.wait_for(ANSWERED, seconds=WAIT)
    assert page.evaluate("document.querySelector('.aurora-error')") is None


@needs_chromium
def test_a_file_that_is_too_large_is_told_before_it_is_sent(page, server, tmp_path):
    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(1_100_000))
    before = len(server.files())
    page.choose_file("#clip input[type=file]", large)
    page.wait_for("document.body.innerText.includes('exceed the maximum allowed size of 1')", seconds=WAIT)
    assert len(server.files()) == before


def record(page: Tab) -> None:
    """Press the buttons that record what the camera sees."""
    button = "[...document.querySelectorAll('#clip button')].find((each) => each.innerText.trim() === '{}')"
    page.wait_for("document.querySelector('#clip [aria-label=\"Capture from camera\"]')", seconds=WAIT)
    page.click("#clip [aria-label='Capture from camera']")
    page.wait_for(button.format("Click to Access Webcam"), seconds=WAIT)
    page.evaluate(f"{button.format('Click to Access Webcam')}.click()")
    page.wait_for(button.format("Record"), seconds=WAIT)
    page.wait_for("document.querySelector('#clip video')?.currentTime > 0.5", seconds=WAIT)  # the camera runs
    page.evaluate(f"{button.format('Record')}.click()")
    page.wait_for(button.format("Stop"), seconds=WAIT)
    time.sleep(3)  # of recording, of which a busy machine may catch a part
    page.evaluate(f"{button.format('Stop')}.click()")
    page.wait_for("document.querySelector('#clip video')?.currentSrc.includes('/file=')", seconds=WAIT)


@needs_chromium
def test_a_recording_is_answered_and_has_its_sound(page, server):
    for _attempt in range(4):  # where the machine is too busy, the browser's recorder may leave a broken file
        record(page)
        page.type_into("#references textarea", "The wheel.")
        page.click("#start")
        outcome = f"(({ANSWERED}) ? 'answered' : document.querySelector('.aurora-error') && 'told')"
        if page.wait_for(outcome, seconds=WAIT) == "answered":
            break
        page.open(server.address)
    assert page.evaluate("document.querySelector('#chains h3').textContent") == "The wheel."
    recording = max(server.folder.rglob("sample.webm"), key=lambda path: path.stat().st_mtime)
    with av.open(str(recording)) as container:
        assert container.streams.video and container.streams.audio


@needs_chromium
def test_an_example_is_loaded_and_answered(page, server):
    page.click("#example")
    page.wait_for("document.querySelector('#clip video')?.readyState >= 2", seconds=WAIT)
    references = page.wait_for("document.querySelector('#references textarea').value", seconds=WAIT).splitlines()
    page.click("#start")
    page.wait_for(ANSWERED, seconds=WAIT)
    assert page.evaluate("[...document.querySelectorAll('#chains h3')].map((each) => each.textContent)") == references
    assert any(path.name == "example.mp4" for path in server.files())


def test_sigterm_ends_the_server_and_nothing_is_left(server):  # the last one that asks it
    assert server.end() == 0
    assert not server.folder.exists()
    assert list(server.working.iterdir()) == []
    assert SECRET not in server.log.read_text()


# The command


def serve(*arguments: object) -> int:
    return main(["serve", "--model", "nowhere/at-all", "--device", "cpu", *map(str, arguments)])


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve("--port", port) == 2
    assert f"cannot listen on 127.0.0.1, port {port}" in capsys.readouterr().err
    assert serve("--port", 70_000) == 2
    assert "--port is 70000: expected the number of a port, 1 to 65535" in capsys.readouterr().err


def test_an_address_that_lets_others_in_is_warned_of(capsys):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert serve("--port", port) == 2
    assert "without a password" not in capsys.readouterr().err
    assert serve("--port", port, "--host", "0.0.0.0") == 2
    assert "0.0.0.0 is no loopback address: whoever reaches this machine" in capsys.readouterr().err


def test_the_environment_is_as_before_afterwards(monkeypatch):
    monkeypatch.setenv("GRADIO_ALLOWED_PATHS", "/srv")
    before = dict(os.environ)
    assert serve("--port", 70_000) == 2
    assert dict(os.environ) == before


def test_missing_gradio_is_told(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert serve() == 2
    assert "pip install 'aurora-rl[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--max_seconds", "0"], ["--max_seconds", "inf"], ["--max_mb", "0"]])
def test_limits_are_positive(arguments):
    with pytest.raises(SystemExit) as left:
        serve(*arguments)
    assert left.value.code == 2
