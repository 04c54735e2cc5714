"""The client against servers that fail: every failure ends in time, in one error that says what to do."""

import inspect
import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from trl.generation.vllm_client import VLLMClient

from aurora_rl.models.mllm.base import EnginePrompt

if "CI" not in os.environ:  # there, its absence is an error
    pytest.importorskip("vllm")
from aurora_rl.rollout.client import AuroraVLLMClient, VLLMServerError
from aurora_rl.rollout.cpu.gloo_transfer import GlooGroup

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(60)]

CHAT = "/v1/chat/completions"
PROMPT = EnginePrompt([1], [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], {}, {})
TOKEN = {"token": "token_id:7", "logprob": -0.5, "top_logprobs": []}
COMPLETION = {
    "prompt_token_ids": [1],
    "choices": [{"index": 0, "token_ids": [7], "logprobs": {"content": [TOKEN]}}],
}
WEIGHT = torch.ones(4)
#: Methods of TRL's client that are overridden or called, and what they must take, `self` left out.
SEAMS = {
    "_get": ["url", "kwargs"],
    "_post": ["url", "kwargs"],
    "check_server": ["total_timeout", "retry_interval"],
    "get_server_info": [],
    "get_world_size": [],
    "init_communicator": ["device"],
    "update_named_params": ["metadata", "named_params"],
    "_start_weight_update": [],
    "_finish_weight_update": [],
    "reset_prefix_cache": [],
    "close_communicator": [],
}
METADATA = [("thinker.a", "float32", [4]), ("thinker.b", "float32", [4])]

Answer = tuple[int, Any]


class StubServer(ThreadingHTTPServer):
    """Answers by path: a status and JSON, or a function of the request's JSON that gives them; counts the requests."""

    daemon_threads = True

    def __init__(self, answers: dict[str, Answer | Callable[[Any], Answer]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = {
            "/health": (200, {}),
            "/v1/models": (200, {"data": [{"id": "tiny"}]}),
            "/is_paused": (200, {"is_paused": False}),
            "/get_world_size": (200, {"world_size": 1}),
            "/server_info": (200, {"vllm_config": {"weight_transfer_config": {"backend": "gloo"}}}),
            "/start_weight_update": (200, {}),
            "/finish_weight_update": (200, {}),
            **answers,
        }
        self.requests: Counter[str] = Counter()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # noqa: N802
        path = self.path.split("?")[0]
        self.server.requests[path] += 1
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = self.server.answers[path]
        status, content = answer(json.loads(body or "{}")) if callable(answer) else answer
        if status == 0:  # as a process does that is killed
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., StubServer]]:
    servers: list[StubServer] = []

    def start(**answers: Any) -> StubServer:
        server = StubServer({f"/{path}" if not path.startswith("/") else path: a for path, a in answers.items()})
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def connect(url: str, **options: Any) -> AuroraVLLMClient:
    options = {"request_timeout_s": 20.0, "max_retries": 2, "backoff_s": 0.01, "group_port": 0, **options}
    return AuroraVLLMClient(base_url=url, **options)


def generate(client: AuroraVLLMClient) -> Any:
    return client.generate_prompts([PROMPT], n=1, sampling={"logprobs": 0}, seeds=[3])


def unused_url() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def assert_says_what_to_do(error: pytest.ExceptionInfo, url: str) -> None:
    assert url in str(error.value)
    assert "docs/vllm.md" in str(error.value) and "--resume_from_checkpoint true" in str(error.value)


def test_no_server_at_all():
    url = unused_url()
    with pytest.raises(VLLMServerError, match="no vLLM server at .* within 0 s.*refused") as error:
        connect(url)
    assert_says_what_to_do(error, url)


def test_a_server_that_is_starting_is_waited_for(serve):
    starting = iter([503, 503])
    server = serve(health=lambda body: (next(starting, 200), {}))
    client = connect(server.url, connection_timeout=30)
    assert client.model == "tiny" and server.requests["/health"] == 3


def test_a_server_that_goes_down_is_tried_again_and_given_up(serve):
    server = serve()
    client = connect(server.url)
    server.shutdown()
    server.server_close()
    with pytest.raises(VLLMServerError, match=f"POST .*{CHAT}: no connection .*3 attempts in") as error:
        generate(client)
    assert_says_what_to_do(error, server.url)


@pytest.mark.parametrize("failure", [(503, {}), (0, {})], ids=["status 503", "cut connection"])
def test_a_request_for_completions_is_repeated_after_a_failure_that_passes(serve, failure):
    answers = iter([failure])
    seen = []
    server = serve(**{CHAT: lambda body: seen.append(body) or next(answers, (200, COMPLETION))})
    completions = generate(connect(server.url))
    assert server.requests[CHAT] == 2
    assert seen[0] == seen[1] and seen[0]["seed"] == 3
    assert (completions.prompt_ids, completions.completion_ids) == ([[1]], [[7]])
    assert (completions.logprobs, completions.logprob_token_ids) == ([[[-0.5]]], [[[7]]])


def test_what_the_server_refuses_is_not_repeated(serve):
    server = serve(**{CHAT: (400, {"error": "Per-request mm_processor_kwargs are disabled"})})
    with pytest.raises(VLLMServerError, match="status 400: .*mm_processor_kwargs are disabled.*docs/vllm.md"):
        generate(connect(server.url))
    assert server.requests[CHAT] == 1


def test_a_slow_server_is_not_waited_for_longer_than_asked(serve):
    server = serve(**{CHAT: lambda body: time.sleep(2) or (200, COMPLETION)})
    with pytest.raises(VLLMServerError, match="no answer within 0.2 s.*raise the timeout") as error:
        generate(connect(server.url, request_timeout_s=0.2))
    assert_says_what_to_do(error, server.url)
    assert generate(connect(server.url)).completion_ids == [[7]]  # the control: it is slow, not dead


def test_options_go_out_under_the_endpoints_names(serve):
    seen = []
    server = serve(**{CHAT: lambda body: seen.append(body) or (200, COMPLETION)})
    sampling = {"logprobs": 2, "logit_bias": {5: -100.0}, "temperature": 0.7}
    connect(server.url).generate_prompts([PROMPT], n=1, sampling=sampling, seeds=[3])
    wanted = {"logprobs": True, "top_logprobs": 2, "logit_bias": {"5": -100.0}, "temperature": 0.7, "n": 1}
    assert wanted.items() <= seen[0].items()


@pytest.mark.parametrize(
    ("answers", "device", "message"),
    [
        ({"is_paused": (404, {})}, "cpu", "VLLM_SERVER_DEV_MODE=1"),
        ({"server_info": (200, {"vllm_config": {"weight_transfer_config": None}})}, "cpu", "None.*gloo"),
        ({"server_info": (200, {"vllm_config": {"weight_transfer_config": None}})}, 0, "None.*cuda:0.*nccl"),
        (
            {"server_info": (200, {"vllm_config": {"weight_transfer_config": {"backend": "nccl"}}})},
            "cpu",
            "'nccl', the trainer is on cpu.*--weight-transfer-config .*gloo",
        ),
    ],
    ids=["no development mode", "no transfer, CPU", "no transfer, GPU", "nccl for a CPU"],
)
def test_a_server_started_otherwise_than_needed_says_how_to_start_it(serve, answers, device, message):
    client = connect(serve(**answers).url)
    with pytest.raises(VLLMServerError, match=message):
        client.init_communicator(device)


def test_a_taken_port_for_the_weights_is_named(serve):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        client = connect(serve().url, group_port=taken.getsockname()[1])
        with pytest.raises(VLLMServerError, match=f"port {taken.getsockname()[1]} .*vllm_group_port"):
            client.init_communicator("cpu")


@pytest.mark.parametrize("answer", [(500, {"error": "no such backend"}), (0, {})], ids=["fails", "dies"])
def test_a_server_that_does_not_join_is_not_waited_for(serve, answer):
    client = connect(serve(init_weight_transfer_engine=answer).url, request_timeout_s=600)
    with pytest.raises(VLLMServerError, match="/init_weight_transfer_engine"):
        client.init_communicator("cpu")


def joined_worker(body: dict[str, Any], workers: list[GlooGroup]) -> Answer:
    """The answer to /init_weight_transfer_engine of a server that joins."""
    info = body["init_info"]
    worker = GlooGroup(info["master_address"], info["master_port"], rank=1, world_size=2, timeout_s=600)
    worker.join()
    workers.append(worker)
    return 200, {}


def dies(worker: GlooGroup) -> Answer:
    worker.meet()
    worker.broadcast(torch.empty(4))
    worker.close()
    return 0, {}


def fails(worker: GlooGroup) -> Answer:
    return 500, {"error": "out of memory"}


@pytest.mark.parametrize(("server_does", "message"), [(dies, "update_weights"), (fails, "out of memory")])
def test_a_server_that_fails_while_weights_are_sent_is_not_waited_for(serve, server_does, message):
    workers: list[GlooGroup] = []
    server = serve(
        init_weight_transfer_engine=lambda body: joined_worker(body, workers),
        update_weights=lambda body: server_does(workers[0]),
    )
    client = connect(server.url, request_timeout_s=600)
    client.init_communicator("cpu")
    with pytest.raises(VLLMServerError, match=message) as error:
        client.update_named_params(METADATA, iter([("thinker.a", WEIGHT), ("thinker.b", WEIGHT)]))
    assert "--resume_from_checkpoint true" in str(error.value)
    assert server.requests["/update_weights"] == 1  # an update is not repeated
    assert client.communicator is None


def test_a_trainers_own_error_lets_the_server_go(serve):
    workers: list[GlooGroup] = []

    def update(body: Any) -> Answer:
        workers[0].meet()
        workers[0].broadcast(torch.empty(4))
        with pytest.raises(ConnectionError):
            workers[0].broadcast(torch.empty(4))
        return 200, {}

    server = serve(init_weight_transfer_engine=lambda b: joined_worker(b, workers), update_weights=update)
    client = connect(server.url, request_timeout_s=600)
    client.init_communicator("cpu")

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        yield "thinker.a", WEIGHT
        raise LookupError("no second weight")

    with pytest.raises(LookupError):
        client.update_named_params(METADATA, weights())


def test_trls_client_has_the_seams_that_ours_is_built_on():
    found = {name: list(inspect.signature(getattr(VLLMClient, name)).parameters)[1:] for name in SEAMS}
    assert found == SEAMS
    ours = {name for name, value in vars(AuroraVLLMClient).items() if inspect.isfunction(value)}
    assert {name for name in ours if hasattr(VLLMClient, name)} - {"__init__"} <= SEAMS.keys()
    assert "_updating_weights" in inspect.getsource(VLLMClient.__init__)
