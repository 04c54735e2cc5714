"""TRL's vLLM backend for prompts with frames and sound: colocated in each process, or on a server.

It departs from TRL's backend: prompts are sent with their placeholders unexpanded, and the ids that vLLM has read are
compared with those that are trained on; every request carries its own seed; multimodal tokens are never sampled; and
only the language model's weights are sent, one layer at a time, if the towers are not trained.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from trl.generation.vllm_generation import VLLMGeneration, empty_cache, extract_logprobs
from trl.trainer.utils import ensure_master_addr_port

from aurora_rl.models.end_of_turn import end_token_ids
from aurora_rl.models.loading import LoadedModel
from aurora_rl.models.mllm import EncodedPrompt, EnginePrompt, MLLMFamily
from aurora_rl.rollout.base import Rollouts
from aurora_rl.rollout.export import export_for_vllm
from aurora_rl.rollout.plugin import register_with
from aurora_rl.rollout.weights import changes_towers, check_adapters, engine_weights

#: The lowest bias that vLLM accepts; it multiplies a probability by exp(-100).
SUPPRESSED_BIAS = -100.0


class AuroraVLLMGeneration(VLLMGeneration):
    """TRL's `VLLMGeneration` for audio-visual prompts.

    Args:
        loaded: the policy with its processor and family; with PEFT the wrapped model.
        engine_kwargs: further arguments of `vllm.LLM` (colocate mode), which replace those chosen here.
        request_timeout_s: seconds that the server may take for one request.
        **kwargs: arguments of TRL's `VLLMGeneration`.

    Raises:
        ValueError: if an adapter cannot be merged for vLLM, or vLLM does not compute what the family's model computes.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        engine_kwargs: dict[str, Any] | None = None,
        request_timeout_s: float = 600.0,
        **kwargs: Any,
    ) -> None:
        self.loaded = loaded
        self.family = loaded.family
        self.engine_kwargs = engine_kwargs or {}
        self.request_timeout_s = request_timeout_s
        self._towers_are_stale = True
        self._metadata: dict[bool, list[tuple[str, str, list[int]]]] = {}
        check_adapters(loaded.model)
        check_family(loaded.family)
        super().__init__(model=loaded.model, **kwargs)

    @property
    def logit_bias(self) -> dict[int, float]:
        """The bias that keeps multimodal tokens from being sampled, as the policy's own head does."""
        policy = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        token_ids = self.family.suppressed_token_ids(self.loaded.processor, policy.config)
        return dict.fromkeys(token_ids, SUPPRESSED_BIAS)

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end a completion."""
        return end_token_ids(self.loaded.processor.tokenizer, self.loaded.model.generation_config)

    # ---- the engine ---------------------------------------------------------------------------------------------

    def _init_vllm(self) -> None:
        if self.mode == "colocate":
            self._init_colocated()
        elif self.mode == "server":
            self._on_main_process(self._connect)
        else:
            raise ValueError(f"vllm_mode={self.mode!r}: choose 'colocate' or 'server'")
        self.accelerator.wait_for_everyone()

    def _connect(self) -> None:
        from aurora_rl.rollout.client import AuroraVLLMClient

        self.vllm_client = AuroraVLLMClient(
            base_url=self.server_base_url or f"http://{self.server_host}:{self.server_port}",
            group_port=self.group_port,
            connection_timeout=self.server_timeout,
            request_timeout_s=self.request_timeout_s,
        )
        self.vllm_client.init_communicator(device=self.accelerator.device)

    def _on_main_process(self, talk: Callable[[], Any]) -> Any:
        """Talk to the server on the main process; every process gets the result or raises the error."""
        from aurora_rl.rollout.client import VLLMServerError

        outcome: list[Any] = [None]
        if self.accelerator.is_main_process:
            try:
                outcome = [talk()]
            except VLLMServerError as error:
                outcome = [error]
        broadcast_object_list(outcome, from_process=0)
        if isinstance(outcome[0], VLLMServerError):
            raise outcome[0]
        return outcome[0]

    def _init_colocated(self) -> None:
        from vllm import LLM

        register_with(self.family)
        if self.accelerator.num_processes % self.tensor_parallel_size:
            raise ValueError(
                f"vllm_tensor_parallel_size={self.tensor_parallel_size} must divide the "
                f"{self.accelerator.num_processes} processes"
            )
        if self.tensor_parallel_size > 1:
            first_ranks = range(0, self.accelerator.num_processes, self.tensor_parallel_size)
            groups = [list(range(rank, rank + self.tensor_parallel_size)) for rank in first_ranks]
            self.tp_group, _ = torch.distributed.new_subgroups_by_enumeration(groups)
        # vLLM reads these to join the launched processes.
        os.environ["RANK"] = str(self.accelerator.process_index)
        os.environ["LOCAL_RANK"] = str(self.accelerator.local_process_index)
        os.environ["WORLD_SIZE"] = str(self.accelerator.num_processes)
        if "MASTER_PORT" not in os.environ:  # not launched: runs that start together would take the same of TRL's four
            os.environ["MASTER_PORT"] = str(_free_port())
        ensure_master_addr_port()
        if self.accelerator.device.type == "cpu":
            # By default vLLM pins all threads of the process to cores, also those that train.
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        # The first sync sends the weights, so they are not written to disk.
        self._folder = tempfile.TemporaryDirectory(prefix="aurora-rl-vllm-")
        export_for_vllm(self.loaded, self._folder.name, weights=False)
        self.llm = LLM(**{**self._colocated_kwargs(), **self.engine_kwargs})
        if self.enable_sleep_mode:
            self.llm.sleep(level=2)
        self._llm_weights_sleeping = self.enable_sleep_mode

    def _colocated_kwargs(self) -> dict[str, Any]:
        return {
            "model": self._folder.name,
            "load_format": "dummy",
            # Left to the device, it would be done by buffers that the dummy format fills with noise.
            "mm_device_do_normalize": False,
            "dtype": str(self.loaded.model.dtype).removeprefix("torch."),
            "hf_overrides": {"architectures": [self.family.engine_architecture]},
            "limit_mm_per_prompt": dict(self.family.media_limits),
            "tensor_parallel_size": self.tensor_parallel_size,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "max_model_len": self.max_model_length,
            "max_num_seqs": self.max_num_seqs,
            # TRL's value: with vLLM's default its profiler assumes too much memory.
            "max_num_batched_tokens": max(4096, self.max_model_length or 0),
            "enable_sleep_mode": self.enable_sleep_mode,
            "model_impl": self.model_impl,
            "trust_remote_code": False,
            "distributed_executor_backend": "external_launcher",
            "seed": self.accelerator.process_index // self.tensor_parallel_size,
            # Importance sampling compares log-probabilities after temperature and suppression.
            "logprobs_mode": "processed_logprobs",
            "enforce_eager": self.accelerator.device.type == "cpu",  # compiling for a CPU takes minutes
            "disable_log_stats": True,
        }

    # ---- weights ------------------------------------------------------------------------------------------------

    def _iter_named_params(self) -> Iterator[tuple[str, torch.Tensor]]:
        return engine_weights(self.model, self.family, towers=self._towers_are_stale, gather=self._dist.gather_params)

    def sync_weights(self) -> None:
        """Send all weights the first time, and then the language model's, or all if the towers are trained."""
        self._towers_are_stale |= changes_towers(self.model, self.family)
        if self.mode == "server":
            self._push_weights()
        else:
            self._load_weights()
        self._towers_are_stale = False

    def _push_weights(self) -> None:
        # The server must know every shape before the first tensor comes, and only gathered tensors tell their shapes.
        towers = self._towers_are_stale
        if towers not in self._metadata:
            self._metadata[towers] = [
                (name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape))
                for name, tensor in self._iter_named_params()
            ]
        tensors = self._iter_named_params()

        def update() -> None:
            try:
                self.vllm_client.update_named_params(self._metadata[towers], tensors)
                self.vllm_client.reset_prefix_cache()
            finally:
                _exhaust(tensors)  # the other processes gather on, even if the server has failed

        if not self.accelerator.is_main_process:
            _exhaust(tensors)
        self._on_main_process(update)

    def _load_weights(self) -> None:
        if self.enable_sleep_mode:
            empty_cache()
            self.llm.wake_up(tags=["weights"])
        # Sleeping has dropped all weights, also those of the towers.
        self._towers_are_stale |= self._llm_weights_sleeping
        self._llm_weights_sleeping = False
        model = self._worker.model_runner.model
        parts = [model] if self._towers_are_stale else parts_beside_towers(model, self.family)
        with _reloading(self._worker, parts):
            loaded = model.load_weights(self._iter_named_params())
        if self._towers_are_stale:
            missing = sorted({name for name, _ in model.named_parameters()} - _as_parameters(loaded))
            if missing:
                raise RuntimeError(f"no weights came for {len(missing)} of vLLM's parameters: {', '.join(missing[:5])}")
        self._drop_caches()

    def _drop_caches(self) -> None:
        """Drop keys, values and clips' embeddings of the old weights; what the processor made of clips stays.

        A family may have a projector beside its towers, which is sent at each sync: the embeddings go, too. By its
        default vLLM keeps all keys and values where a request still holds some, and only logs it.
        """
        self.llm.reset_prefix_cache(reset_running_requests=True)
        self.llm.llm_engine.reset_encoder_cache()

    @property
    def _worker(self) -> Any:
        wrapper = self.llm.llm_engine.model_executor.driver_worker
        return getattr(wrapper, "worker", wrapper)

    # ---- rollouts -----------------------------------------------------------------------------------------------

    def generate_rows(
        self,
        rows: Sequence[EncodedPrompt],
        *,
        seeds: Sequence[int],
        num_generations: int,
        profiler: contextlib.AbstractContextManager[Any],
    ) -> Rollouts:
        """Sample one completion for each row.

        Args:
            rows: this process's prompts, each repeated for every completion that it gets here.
            seeds: seed of each row's request; a server takes the seed of a prompt's first row for all its completions.
            num_generations: number of completions of a prompt, over all processes.
            profiler: context manager that is entered while vLLM samples.

        Raises:
            ValueError: if vLLM has read another prompt than the policy is trained on.
        """
        generate = self._generate_on_server if self.mode == "server" else self._generate_colocated
        prompts = [row.engine for row in rows]
        return self._checked(rows, *generate(prompts, list(seeds), num_generations, profiler))

    def begin_rows(
        self, rows: Sequence[EncodedPrompt], *, seeds: Sequence[int], num_generations: int
    ) -> Callable[[], Rollouts]:
        """Ask the server in a thread for what `generate_rows` returns; no weights may be sent before it is there.

        Returns:
            A function that waits for it; like this method, every process calls it.
        """
        ask = self._request([row.engine for row in rows], list(seeds), num_generations)
        if self.accelerator.is_main_process:
            thread = ThreadPoolExecutor(1, "sample ahead")
            ask = thread.submit(ask).result
            thread.shutdown(wait=False)
        return lambda: self._checked(rows, *self._own_part(len(rows), ask))

    def _checked(
        self, rows: Sequence[EncodedPrompt], prompt_ids: list, completion_ids: list, logprobs: list
    ) -> Rollouts:
        for row, ids in zip(rows, prompt_ids, strict=True):
            check_prompt_ids(row.prompt_ids, ids, self.loaded.processor.tokenizer)
        return Rollouts(completion_ids, [[token[0] for token in completion] for completion in logprobs])

    def _generate_on_server(
        self, prompts: list[EnginePrompt], seeds: list[int], num_generations: int, profiler: Any
    ) -> tuple[list, list, list]:
        ask = self._request(prompts, seeds, num_generations)

        def timed() -> tuple[list, list, list]:
            with profiler:
                return ask()

        return self._own_part(len(prompts), timed)

    def _request(
        self, prompts: list[EnginePrompt], seeds: list[int], num_generations: int
    ) -> Callable[[], tuple[list, list, list]]:
        """Gather the prompts of all processes; the main process calls what is returned."""
        all_prompts, all_seeds = gather_object(prompts), gather_object(seeds)

        def ask() -> tuple[list, list, Any]:
            completions = self.vllm_client.generate_prompts(
                all_prompts[::num_generations],
                n=num_generations,
                sampling=self._sampling_options(),
                seeds=all_seeds[::num_generations],
            )
            prompt_ids = [ids for ids in completions.prompt_ids for _ in range(num_generations)]
            return prompt_ids, completions.completion_ids, completions.logprobs

        return ask

    def _own_part(self, num_rows: int, ask: Callable[[], tuple[list, list, list]]) -> tuple[list, list, list]:
        """Return this process's part of what the server answers to all."""
        counts = gather_object([num_rows])  # in a further turn, processes may ask about unlike numbers of rows
        start = sum(counts[: self.accelerator.process_index])
        first, second, third = (values[start : start + num_rows] for values in self._on_main_process(ask))
        return first, second, third

    def _generate_colocated(
        self, prompts: list[EnginePrompt], seeds: list[int], num_generations: int, profiler: Any
    ) -> tuple[list, list, list]:
        if self.enable_sleep_mode:
            if self._llm_weights_sleeping:
                self.sync_weights()
            self.llm.wake_up(tags=["kv_cache"])
        count, first = len(prompts), 0
        if self.tensor_parallel_size > 1:  # the processes of a group sample all of its rows together
            counts = self._gather_in_group([count])
            prompts, seeds = self._gather_in_group(prompts), self._gather_in_group(seeds)
            first = sum(counts[: torch.distributed.get_rank(group=self.tp_group)])
        with profiler:
            self._read_first(prompts)
            outputs = self.llm.generate(
                [engine_input(prompt) for prompt in prompts],
                [self._sampling_params(seed, prompt.said) for seed, prompt in zip(seeds, prompts, strict=True)],
                use_tqdm=False,
            )[first : first + count]
        logprobs, _ = extract_logprobs(outputs)
        if self.enable_sleep_mode:
            self.llm.sleep(level=2)
            self._llm_weights_sleeping = True
        prompt_ids = [list(output.prompt_token_ids) for output in outputs]
        return prompt_ids, [list(output.outputs[0].token_ids) for output in outputs], logprobs

    def _read_first(self, prompts: Sequence[EnginePrompt]) -> None:
        """Let vLLM read each of several prompts with media before its copies come.

        A step of vLLM encodes as many embeddings of media as it takes tokens. Requests that come after these begin with
        the text before their media, and look up no keys again: all copies of such a prompt would be read whole.
        """
        with_media = [prompt for prompt in prompts if prompt.media]
        distinct = {id(prompt): prompt for prompt in with_media}
        caches = self.llm.llm_engine.vllm_config.cache_config.enable_prefix_caching
        if caches and 1 < len(distinct) < len(with_media):
            params = self._sampling_params(0)
            params.min_tokens, params.max_tokens = 0, 1
            self.llm.generate([engine_input(prompt) for prompt in distinct.values()], params, use_tqdm=False)

    def _gather_in_group(self, values: list) -> list:
        gathered: list[Any] = [None] * self.tensor_parallel_size
        torch.distributed.all_gather_object(gathered, values, group=self.tp_group)
        return [value for of_rank in gathered for value in of_rank]

    def _sampling_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p or 0.0,
            "repetition_penalty": self.repetition_penalty,
            "max_tokens": self.max_completion_length,
        }
        if self.structured_outputs_regex is not None:
            options["structured_outputs"] = {"regex": self.structured_outputs_regex}
        given = self.generation_kwargs
        wanted_bias = {int(token_id): bias for token_id, bias in (given.get("logit_bias") or {}).items()}
        # The user's options win, except over what training relies on: media tokens are never sampled, the first
        # log-probability is that of the sampled token (rivals could take its place), and a completion ends where the
        # trainer expects it, whatever generation config vLLM has read.
        ends = {"ignore_eos": True, "stop_token_ids": self.end_ids}
        return {**options, **given, **ends, "logprobs": 0, "logit_bias": {**wanted_bias, **self.logit_bias}}

    def _sampling_params(self, seed: int, said: Sequence[int] = ()) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        options = {**self._sampling_options(), "seed": seed}
        # Turns share the completion's length. Where it is used up, vLLM needs a token, which TRL cuts off.
        options["max_tokens"] = max(1, options["max_tokens"] - len(said))
        if isinstance(options.get("structured_outputs"), dict):
            options["structured_outputs"] = StructuredOutputsParams(**options["structured_outputs"])
        return SamplingParams(**options)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def _as_parameters(loaded: Iterable[str]) -> set[str]:
    """Return the names of loaded parameters; vLLM 0.31 leaves a part of those of experts out."""
    return {re.sub(r"\.experts\.(?=w\d+_)", ".experts.routed_experts.", name) for name in loaded}


def _exhaust(iterator: Iterator[Any]) -> None:
    for _ in iterator:
        pass


def check_family(family: MLLMFamily) -> None:
    """Refuse a family for which vLLM computes other log-probabilities, before an engine is started.

    Raises:
        ValueError: telling what is known.
    """
    if family.engine_refusal is not None:
        raise ValueError(f"{family.engine_refusal}: set use_vllm to false, the policy then samples by itself")


def check_prompt_ids(expected: Sequence[int], seen: Sequence[int], tokenizer: Any) -> None:
    """Raise a ValueError that shows the first difference, unless vLLM has read the prompt that the policy trains on."""
    if list(expected) == list(seen):
        return
    pairs = zip(expected, seen, strict=False)
    at = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), min(len(expected), len(seen)))

    def around(ids: Sequence[int]) -> str:
        return repr(tokenizer.decode(list(ids[max(0, at - 8) : at + 8])))

    raise ValueError(
        f"vLLM expanded the prompt to {len(seen)} tokens, the policy is trained on {len(expected)}; they differ from "
        f"token {at} on: vLLM has {around(seen)}, the policy {around(expected)}. The processor or its options are not "
        "the same on both sides: load the directory that was exported from this checkpoint"
    )


def engine_input(prompt: EnginePrompt) -> dict[str, Any]:
    """Return a prompt as `vllm.LLM.generate` takes it."""
    text = {"prompt_token_ids": prompt.prompt_ids}
    if not prompt.media:
        return text
    return {**text, "multi_modal_data": prompt.media, "mm_processor_kwargs": prompt.processor_options}


def parts_beside_towers(model: nn.Module, family: MLLMFamily) -> list[nn.Module]:
    """Return the children of vLLM's model that hold what is sent while towers are frozen, projectors among them."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    names = [family.engine_name(f"{name}.") for name in family.tower_names]
    inside = [name if mapper is None else mapper.map_name(name) for name in names]
    towers = {name.split(".")[0] for name in inside if name}
    return [child for name, child in model.named_children() if name not in towers]


@contextlib.contextmanager
def _reloading(worker: Any, parts: Sequence[nn.Module]) -> Iterator[None]:
    """Let vLLM restore the layout of loaded weights before a change: a CPU's matrix kernels have repacked them."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    with set_current_vllm_config(worker.vllm_config), torch.device(worker.device):
        for part in parts:
            initialize_layerwise_reload(part)
        yield
        for part in parts:
            finalize_layerwise_reload(part, worker.model_config)
