"""A vLLM engine in the test's own process: started once a file, since it takes half a minute on a CPU.

generation   AuroraVLLMGeneration around the tiny model, whose weights it gets by `sync_weights`
point_at     hands the engine another policy, weights synced
make_prompts prompts with sound after the frames, between the frames, of frames alone, and of text alone
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from aurora_rl.models.loading import LoadedModel, load_model
from aurora_rl.models.mllm import EncodedPrompt
from tests.conversations import build_messages

#: Small blocks of keys, as on a GPU, and counters to read.
ENGINE = {"block_size": 32, "disable_log_stats": False}


@pytest.fixture(scope="module")
def generation(tiny_checkpoint: str) -> Iterator["AuroraVLLMGeneration"]:  # noqa: F821
    """Greedy, with at most 24 tokens; tests that change an option put it back by `monkeypatch`."""
    from benchmarks.vllm_parity import started

    with started(load_model(tiny_checkpoint), engine_kwargs=ENGINE) as generation:
        generation.sync_weights()
        yield generation


@pytest.fixture
def point_at(generation) -> Iterator[Callable[[torch.nn.Module], None]]:
    """Sync the engine with another policy; afterwards it has the one it was started with again."""
    first = generation.model

    def point(model: torch.nn.Module) -> None:
        generation.model = model
        generation.sync_weights()

    yield point
    point(first)


def make_prompt(loaded: LoadedModel, *, kind: str, seed: int = 0, seconds: int = 2) -> EncodedPrompt:
    """A prompt of noise at two frames a second.

    Args:
        kind: "separate" sound after the frames, "interleaved" between them, "silent" frames without any, or "text".
    """
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (2 * seconds, 64, 64, 3), dtype=np.uint8)
    waveform = rng.normal(0, 0.1, seconds * 16_000).astype(np.float32)
    messages = build_messages(
        f"the {['drum', 'bell', 'dog'][seed % 3]} that sounds first",
        frames=None if kind == "text" else [Image.fromarray(frame) for frame in pixels],
        has_audio=kind == "separate",
        instruction="{reference}",
        video_options={"sample_fps": 2.0, "min_pixels": 256, "max_pixels": 65536},
    )
    return loaded.family.encode(
        loaded.processor,
        messages,
        waveform=waveform if kind in ("separate", "interleaved") else None,
        fps=2.0,
        use_audio_in_video=kind == "interleaved",
    )


@pytest.fixture(scope="session")
def make_prompts() -> Callable[..., EncodedPrompt]:
    return make_prompt


@pytest.fixture
def generate(generation) -> Callable:
    """Rows -> Rollouts, one completion each."""

    def run(rows: list[EncodedPrompt], *, seeds: list[int] | None = None):
        seeds = list(range(len(rows))) if seeds is None else seeds
        return generation.generate_rows(rows, seeds=seeds, num_generations=1, profiler=nullcontext())

    return run


@torch.no_grad()
def policy_logprobs(model: torch.nn.Module, loaded: LoadedModel, row: EncodedPrompt, ids: list[int]) -> torch.Tensor:
    """(len(ids), V) log-probabilities that the policy gives at each token of a completion."""
    input_ids = torch.tensor([row.prompt_ids + ids])
    media = loaded.family.collate_features([row.features], [0]) if row.features else {}
    logits = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **media).logits
    return logits[0, len(row.prompt_ids) - 1 : -1].float().log_softmax(-1)


@pytest.fixture(scope="session")
def difference() -> Callable[..., float]:
    """Largest difference between the log-probabilities of vLLM and of the policy, on the tokens vLLM sampled."""

    def measure(model: torch.nn.Module, loaded: LoadedModel, rows: list[EncodedPrompt], rollouts) -> float:
        differences = []
        for row, ids, logprobs in zip(rows, rollouts.completion_ids, rollouts.logprobs, strict=True):
            expected = policy_logprobs(model, loaded, row, ids).gather(1, torch.tensor(ids)[:, None])[:, 0]
            differences.append((expected - torch.tensor(logprobs)).abs().max().item())
        return max(differences)

    return measure
