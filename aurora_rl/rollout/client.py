"""The trainer's client of `vllm serve`: it sends prompts with frames and sound, and weights, and gets completions.

TRL's client knows images only, waits without a limit and sends weights by NCCL alone. Here every wait has a limit, and
every failure is a `VLLMServerError` that says what to do.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import requests
import torch
from requests.adapters import HTTPAdapter
from trl.generation.vllm_client import VLLMClient, parse_logprobs
from vllm.utils.network_utils import get_ip

from aurora_rl.endpoint.addresses import check_address
from aurora_rl.models.mllm.base import EnginePrompt
from aurora_rl.rollout.chat_request import chat_request
from aurora_rl.rollout.cpu.gloo_transfer import GlooGroup

logger = logging.getLogger(__name__)

#: Seconds that a server may take to accept a connection.
CONNECT_TIMEOUT_S = 10.0
#: Prompts that are sent at the same time.
CONCURRENT_REQUESTS = 64
LOOPBACK = ("localhost", "127.0.0.1", "0.0.0.0", "::1")
#: Errors of a broken connection or server; a refusal is a status.
BROKEN = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)

HOW_TO_RESUME = (
    "Start the server again (docs/vllm.md has the command) and resume from the last checkpoint by "
    "`--resume_from_checkpoint true`."
)


class VLLMServerError(RuntimeError):
    """The vLLM server is down, too slow, started with wrong options, or has died."""


@dataclasses.dataclass(frozen=True)
class ServerCompletions:
    """Completions from the server: n of each of P prompts, ordered by prompt.

    Attributes:
        prompt_ids: (P, L) ids of the prompts that the server has read, placeholders expanded.
        completion_ids: (P * n, L) ids of the completions.
        logprobs: (P * n, L, k) log-probabilities of the sampled token and its rivals, highest first.
        logprob_token_ids: (P * n, L, k) ids of these tokens.
    """

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    logprobs: list[list[list[float | None]]] | None
    logprob_token_ids: list[list[list[int]]] | None


class AuroraVLLMClient(VLLMClient):
    """TRL's client for prompts with frames and sound.

    Args:
        request_timeout_s: seconds that the server may take to answer one request, or to receive one tensor.
        max_retries: number of retries of a request that may be repeated, if the server cannot be reached or fails.
        backoff_s: seconds before the first retry; they double with each.
        **kwargs: arguments of TRL's client: `base_url`, or `host` and `server_port`; `group_port` (0: any free port);
            `connection_timeout`, seconds to wait for a server that is starting.

    Raises:
        ValueError: if `base_url` is not an address, or holds a secret.
        VLLMServerError: if no server answers within `connection_timeout`.
    """

    communicator: Any  # TRL's, or a GlooGroup

    def __init__(
        self, *, request_timeout_s: float = 600.0, max_retries: int = 5, backoff_s: float = 1.0, **kwargs: Any
    ) -> None:
        check_address(kwargs.get("base_url"), name="vllm_server_base_url")
        self.request_timeout_s, self.max_retries, self.backoff_s = request_timeout_s, max_retries, backoff_s
        super().__init__(**kwargs)
        # `_call` retries. TRL's session would also repeat requests that must not be, such as an update of weights.
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(max_retries=0, pool_maxsize=CONCURRENT_REQUESTS))

    # ---- requests -----------------------------------------------------------------------------------------------

    def _call(self, method: str, url: str, *, retries: int = 0, **kwargs: Any) -> requests.Response:
        """Send a request and return the response, unless its status is 500 or above.

        Raises:
            VLLMServerError: if there is no response in time, or every attempt fails.
        """
        what = f"{method} {url}"
        # The server may have closed a kept connection, so a request that is not repeated opens its own.
        send = self.session.request if retries else requests.request
        started = time.monotonic()
        cause: Exception | None = None
        for attempt in range(retries + 1):
            if attempt:
                time.sleep(self.backoff_s * 2 ** (attempt - 1))
            try:
                response = send(method, url, timeout=(CONNECT_TIMEOUT_S, self.request_timeout_s), **kwargs)
            except requests.ReadTimeout as error:
                # No retry: it would take as long again.
                raise VLLMServerError(
                    f"{what}: no answer within {self.request_timeout_s:g} s; the server is stuck, or slower than that: "
                    f"look at its log, and raise the timeout if it is at work. {HOW_TO_RESUME}"
                ) from error
            except BROKEN as error:
                reason, cause = f"no connection ({_innermost(error)})", error
            else:
                if response.status_code < 500:
                    return response
                reason, cause = f"status {response.status_code}: {_shortened(response.text)}", None
            logger.warning("vLLM server, attempt %d of %d: %s: %s", attempt + 1, retries + 1, what, reason)
        attempts = f"{retries + 1} attempts" if retries else "1 attempt"
        waited = time.monotonic() - started
        raise VLLMServerError(f"{what}: {reason}; {attempts} in {waited:.0f} s. {HOW_TO_RESUME}") from cause

    def _answer(self, method: str, url: str, **kwargs: Any) -> dict[str, Any]:
        """Send a request and return the JSON of the response."""
        response = self._call(method, url, **kwargs)
        if response.status_code != 200:
            raise VLLMServerError(
                f"{method} {url}: refused with status {response.status_code}: {_shortened(response.text)}. "
                "Compare the server's command with the one in docs/vllm.md."
            )
        return response.json()

    def _get(self, url: str, **kwargs: Any) -> dict[str, Any]:
        return self._answer("GET", url, retries=self.max_retries, **kwargs)

    def _post(self, url: str, **kwargs: Any) -> dict[str, Any]:
        return self._answer("POST", url, **kwargs)

    def check_server(self, total_timeout: float = 0.0, retry_interval: float = 2.0) -> None:
        """Wait for the server; TRL waits without a limit if the server accepts connections and never answers."""
        give_up = time.monotonic() + total_timeout
        while True:
            try:
                status = requests.get(f"{self.base_url}/health", timeout=CONNECT_TIMEOUT_S).status_code
                if status == 200:
                    return
                reason = f"status {status}"
            except requests.RequestException as error:
                reason = _innermost(error)
            if time.monotonic() >= give_up:
                raise VLLMServerError(
                    f"no vLLM server at {self.base_url} within {total_timeout:g} s: {reason}. {HOW_TO_RESUME}"
                )
            time.sleep(min(retry_interval, max(0.0, give_up - time.monotonic())))

    def get_server_info(self) -> dict[str, Any]:
        """Return the server's `VllmConfig` as JSON."""
        url = f"{self.base_url}/server_info"
        if self._call("GET", f"{self.base_url}/is_paused", retries=self.max_retries).status_code == 404:
            raise VLLMServerError(
                f"the vLLM server at {self.base_url} takes no weights: start it with VLLM_SERVER_DEV_MODE=1 in its "
                "environment, as in docs/vllm.md"
            )
        return self._get(url, params={"config_format": "json"})["vllm_config"]

    # ---- completions --------------------------------------------------------------------------------------------

    def generate_prompts(
        self, prompts: Sequence[EnginePrompt], *, n: int, sampling: dict[str, Any], seeds: Sequence[int]
    ) -> ServerCompletions:
        """Sample n completions of each prompt, one request a prompt; a retry samples the same completions.

        Args:
            prompts: distinct prompts.
            n: number of completions of each prompt.
            sampling: arguments of vLLM's `SamplingParams`.
            seeds: seed of each prompt; the i-th completion uses `seed + i`, so seeds should be n apart or more.

        Raises:
            VLLMServerError: if the server cannot be reached, is too slow or refuses.
        """
        options = {**_chat_options(sampling), "model": self.model, "n": n}
        url = f"{self.base_url}/v1/chat/completions"

        def send(prompt: EnginePrompt, seed: int) -> dict[str, Any]:
            body = {**chat_request(prompt), **options, "seed": seed}
            return self._answer("POST", url, json=body, retries=self.max_retries)

        with ThreadPoolExecutor(max(1, min(CONCURRENT_REQUESTS, len(prompts)))) as executor:
            answers = list(executor.map(send, prompts, seeds))
        choices = [choice for answer in answers for choice in sorted(answer["choices"], key=lambda c: c["index"])]
        logprobs, logprob_token_ids = parse_logprobs([choice["logprobs"] for choice in choices])
        return ServerCompletions(
            prompt_ids=[answer["prompt_token_ids"] for answer in answers],
            completion_ids=[choice["token_ids"] for choice in choices],
            logprobs=logprobs,
            logprob_token_ids=logprob_token_ids,
        )

    # ---- weights ------------------------------------------------------------------------------------------------

    def init_communicator(self, device: torch.device | str | int = 0) -> None:
        """Connect the trainer with the server's workers by the weight transfer that the server was started with.

        Args:
            device: the trainer's device.

        Raises:
            VLLMServerError: if the server was started with no weight transfer, or with one that the device cannot use.
        """
        device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        config = self.get_server_info()["weight_transfer_config"]
        backend = None if config is None else config["backend"]
        if backend == "gloo":
            self._join_workers()
        elif backend == "nccl" and device.type == "cuda":
            super().init_communicator(device)
        else:
            wanted = "nccl" if device.type == "cuda" else "gloo"
            raise VLLMServerError(
                f"the vLLM server at {self.base_url} has the weight transfer {backend!r}, the trainer is on {device}: "
                f"""start it with --weight-transfer-config '{{"backend": "{wanted}"}}', as in docs/vllm.md"""
            )

    def _join_workers(self) -> None:
        host = "127.0.0.1" if self.host in LOOPBACK else get_ip()
        world_size = self.get_world_size() + 1  # the trainer is rank 0, the workers follow
        try:
            group = GlooGroup(host, self.group_port, rank=0, world_size=world_size, timeout_s=self.request_timeout_s)
        except RuntimeError as error:  # also torch's DistNetworkError
            raise VLLMServerError(
                f"port {self.group_port} cannot be opened for the weights: choose another by vllm_group_port"
            ) from error
        init_info = {
            "master_address": host,
            "master_port": group.port,
            "rank_offset": 1,
            "world_size": world_size,
            "timeout_s": self.request_timeout_s,
        }
        self.communicator = group
        with self._server_at_work("/init_weight_transfer_engine", {"init_info": init_info}) as server:
            group.join(lambda: _raise_if_failed(server))
        atexit.register(self.close_communicator)

    def update_named_params(
        self, metadata: list[tuple[str, str, list[int]]], named_params: Iterator[tuple[str, torch.Tensor]]
    ) -> None:
        """Send weights and let the server load them.

        Args:
            metadata: name, dtype without `torch.` and shape of each tensor.
            named_params: names and tensors in the same order; a tensor may be freed when the next is drawn.

        Raises:
            VLLMServerError: if the server fails or dies meanwhile.
        """
        if not isinstance(self.communicator, GlooGroup):
            super().update_named_params(metadata, named_params)
            return
        group = self.communicator
        names, dtype_names, shapes = (list(field) for field in zip(*metadata, strict=True))
        update_info = {"names": names, "dtype_names": dtype_names, "shapes": shapes}
        if not self._updating_weights:
            self._start_weight_update()
        with self._server_at_work("/update_weights", {"update_info": update_info}) as server:
            group.meet(lambda: _raise_if_failed(server))
            for _, tensor in named_params:
                group.broadcast(tensor.detach().cpu().contiguous())
        if not self._updating_weights:
            self._finish_weight_update()

    @contextlib.contextmanager
    def _server_at_work(self, path: str, body: dict[str, Any]) -> Iterator[Future[Any]]:
        """Send a request in a thread while the block runs, which is the trainer's part of the work.

        When either side fails, the group is closed, so that neither waits for the other.
        """
        with ThreadPoolExecutor(1) as executor:
            server = executor.submit(self._post, f"{self.base_url}{path}", json=body)
            try:
                yield server
                server.result()
            except (ConnectionError, TimeoutError) as error:
                self.close_communicator()
                reason = server.exception() or error
                raise VLLMServerError(f"weights could not be sent: {reason}. {HOW_TO_RESUME}") from error
            except BaseException:
                self.close_communicator()
                raise

    def _start_weight_update(self) -> None:
        try:
            super()._start_weight_update()
        except VLLMServerError as error:
            if "already active" not in str(error):
                raise
            # An earlier trainer died between an update's start and its end.
            self._finish_weight_update()
            super()._start_weight_update()

    def reset_prefix_cache(self) -> None:
        """Drop what the old weights have computed, including the towers' outputs, which vLLM caches by clip."""
        # Requests that an earlier trainer has left there are read anew; by default they keep vLLM from dropping any.
        self._post(f"{self.base_url}/reset_prefix_cache", params={"reset_running_requests": True})
        self._call("POST", f"{self.base_url}/reset_encoder_cache")

    def close_communicator(self) -> None:
        """Close the connection for the weights."""
        if isinstance(self.communicator, GlooGroup):
            self.communicator.close()
            self.communicator = None
        else:
            super().close_communicator()


def _raise_if_failed(server: Future[Any]) -> None:
    """Raise the error of the request, if it has failed already."""
    if server.done():
        server.result()


def _chat_options(sampling: dict[str, Any]) -> dict[str, Any]:
    """Translate arguments of `SamplingParams` into those of the chat endpoint."""
    options = dict(sampling)
    logprobs = options.pop("logprobs", None)
    if options.get("logit_bias"):
        options["logit_bias"] = {str(token_id): bias for token_id, bias in options["logit_bias"].items()}
    return options | {
        "logprobs": logprobs is not None,
        "top_logprobs": logprobs,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


def _innermost(error: BaseException) -> str:
    """Return the reason at the bottom of requests' nested errors."""
    reason = getattr(error.args[0], "reason", error.args[0]) if error.args else error
    return str(reason)


def _shortened(text: str, length: int = 2000) -> str:
    return text if len(text) <= length else f"{text[:length]} ..."
