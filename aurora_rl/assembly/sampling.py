"""The options of a script that asks a model: how completions are generated, and by whom."""

from __future__ import annotations

import dataclasses
import json
from typing import Any


@dataclasses.dataclass(kw_only=True)
class SamplingArguments:
    """How completions are generated, and by whom.

    Attributes:
        temperature: temperature at which completions are drawn.
        max_completion_length: largest number of tokens of a completion.
        batch_size: number of sequences generated at once.
        seed: seed of the drawn completions.
        use_cpu: whether the CPU is used even where there is a GPU.
        use_vllm: whether vLLM samples the completions, an engine in each process.
        vllm_gpu_memory_utilization: share of the GPU's memory that vLLM takes beside the model, its own weights
            included.
        vllm_max_model_length: number of tokens of the longest prompt, media included, and completion together; None for
            the longest that the model knows, for which vLLM then keeps room.
        vllm_engine_kwargs: further arguments of `vllm.LLM`, such as `{"kv_cache_memory_bytes": 2e9}` on a CPU.

    Raises:
        ValueError: if a number is too small.
    """

    temperature: float = dataclasses.field(
        default=1.0, metadata={"help": "Temperature at which completions are sampled."}
    )
    max_completion_length: int = dataclasses.field(
        default=512, metadata={"help": "Largest number of tokens of a completion."}
    )
    batch_size: int = dataclasses.field(default=8, metadata={"help": "Number of sequences generated at once."})
    seed: int = dataclasses.field(default=0, metadata={"help": "Seed of the sampled completions."})
    use_cpu: bool = dataclasses.field(default=False, metadata={"help": "Use the CPU, even where there is a GPU."})
    use_vllm: bool = dataclasses.field(default=False, metadata={"help": "Sample by vLLM, an engine in each process."})
    vllm_gpu_memory_utilization: float = dataclasses.field(
        default=0.6, metadata={"help": "Share of the GPU's memory that vLLM takes beside the model."}
    )
    vllm_max_model_length: int | None = dataclasses.field(
        default=None,
        metadata={"help": "Tokens of the longest prompt and completion, for which vLLM has room."},
    )
    vllm_engine_kwargs: dict[str, Any] | str | None = dataclasses.field(
        default=None, metadata={"help": "Further arguments of vllm.LLM, as JSON."}
    )

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"temperature is {self.temperature}: it must be above 0; greedy answers need none, and no num_samples"
            )
        for name, least in {"max_completion_length": 1, "batch_size": 1, **self.least()}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}: expected {least} or more")

    def least(self) -> dict[str, int]:
        """Return the smallest values of the numbers that a script adds."""
        return {}

    @property
    def engine_kwargs(self) -> dict[str, Any]:
        """The dictionary of `vllm_engine_kwargs`."""
        return read_engine_kwargs(self.vllm_engine_kwargs)

    @property
    def of_vllm(self) -> dict[str, Any]:
        """What the record of a run holds of vLLM, which draws other completions from the same distribution.

        Empty where the model samples; its share of memory and its longest sequence change no answer.
        """
        if not self.use_vllm:
            return {}
        return {"use_vllm": True} | ({"vllm_engine_kwargs": self.engine_kwargs} if self.engine_kwargs else {})


def read_engine_kwargs(given: dict[str, Any] | str | None) -> dict[str, Any]:
    """Return the dictionary of `vllm_engine_kwargs`, which the command line gives as JSON.

    Raises:
        ValueError: if it is none.
    """
    try:
        read = json.loads(given) if isinstance(given, str) else given or {}
    except ValueError as error:
        raise ValueError(f"vllm_engine_kwargs is {given!r}, which is no JSON: {error}") from None
    if not isinstance(read, dict):
        raise ValueError(f"vllm_engine_kwargs is {given!r}: expected arguments of vllm.LLM by name, as a JSON object")
    return read
