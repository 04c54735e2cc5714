"""What the copies of a prompt with frames and sound cost vLLM: its prefix, encoder and processor caches, counted.

    python benchmarks/vllm_caches.py --output out.json

A tiny model of random weights on vLLM's CPU build, an engine for each of `ENGINES`. Tokens of prompts and hits are
vLLM's own counters (`llm.get_metrics()`); media that towers read, of which it counts nothing in public, are those that
its scheduler hands to them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from aurora_rl.assembly.options import OptionParser
from aurora_rl.logs import setup_logging
from aurora_rl.models.loading import LoadedModel
from aurora_rl.models.mllm import EncodedPrompt, load_family
from aurora_rl.models.mllm.contract import SECOND
from aurora_rl.rollout.engine import AuroraVLLMGeneration, engine_input
from benchmarks.vllm_parity import started, tiny_subject

#: Ways to ask for some completions of each prompt: as many requests of it in one call; one request with `n`; one
#: request of each prompt a call, call after call; and as rollouts do, all in one call after one that reads each prompt.
WAYS = ("at once", "n", "in turn", "read first")
#: Arguments of `vllm.LLM` by what they are called in the table.
ENGINES: dict[str, dict[str, Any]] = {
    "vLLM's defaults": {},
    "8,192 tokens a step": {"max_num_batched_tokens": 8192},
    "no prefix cache": {"enable_prefix_caching": False},
    "nor a processor cache": {"enable_prefix_caching": False, "mm_processor_cache_gb": 0},
}
#: Tokens of a completion.
NUM_TOKENS = 8


@dataclasses.dataclass(frozen=True)
class Counts:
    """What vLLM did for some requests.

    Attributes:
        prompt_tokens: tokens of all prompts, copies counted.
        computed: tokens of prompts that the decoder read.
        prefix_queries: tokens that were looked up in the prefix cache.
        prefix_hits: tokens that were found there.
        media: clips' frames and clips' sounds of all prompts, copies counted.
        encoded: those that the towers read.
        processor_queries: those that were looked up in the processor's cache.
        processor_hits: those that were found there.
    """

    prompt_tokens: int
    computed: int
    prefix_queries: int
    prefix_hits: int
    media: int
    encoded: int
    processor_queries: int
    processor_hits: int


@contextlib.contextmanager
def counted(generation: AuroraVLLMGeneration, prompts: Sequence[EncodedPrompt]) -> Iterator[list[Counts]]:
    """Count while the block runs; afterwards the list holds the counts.

    Args:
        generation: an engine in this process that logs its statistics (`disable_log_stats` is false).
        prompts: prompts of all completions that the block asks for.
    """
    scheduler = generation.llm.llm_engine.engine_core.engine_core.scheduler
    encoded, schedule, counts = 0, scheduler.schedule, list[Counts]()

    def counting(*args: Any, **options: Any) -> Any:
        nonlocal encoded
        step = schedule(*args, **options)
        encoded += sum(map(len, step.scheduled_encoder_inputs.values()))
        return step

    before = _counters(generation)
    scheduler.schedule = counting
    try:
        yield counts
    finally:
        scheduler.schedule = schedule
    found = {name: value - before.get(name, 0) for name, value in _counters(generation).items()}
    counts.append(
        Counts(
            prompt_tokens=found["prompt_tokens"],
            computed=found["prompt_tokens_by_source local_compute"],
            prefix_queries=found["prefix_cache_queries"],
            prefix_hits=found["prefix_cache_hits"],
            media=sum(len(items) for prompt in prompts for items in prompt.engine.media.values()),
            encoded=encoded,
            processor_queries=found["mm_cache_queries"],
            processor_hits=found["mm_cache_hits"],
        )
    )


def _counters(generation: AuroraVLLMGeneration) -> dict[str, int]:
    """Return vLLM's counters by their names, those of prompt tokens also by source."""
    found: dict[str, int] = {}
    for metric in generation.llm.get_metrics():
        if hasattr(metric, "value"):
            name = metric.name.removeprefix("vllm:")
            found[f"{name} {metric.labels['source']}" if "source" in metric.labels else name] = int(metric.value)
    return found


def ask(generation: AuroraVLLMGeneration, prompts: Sequence[EncodedPrompt], copies: int, way: str) -> None:
    """Sample some completions of each prompt, in one of `WAYS`."""
    rows = [prompt for prompt in prompts for _ in range(copies)]
    if way == "read first":
        generation.generate_rows(rows, seeds=[0] * len(rows), num_generations=1, profiler=nullcontext())
        return
    params = generation._sampling_params(0)
    params.n = copies if way == "n" else 1
    for _ in range(copies if way == "in turn" else 1):
        asked = rows if way == "at once" else prompts
        generation.llm.generate([engine_input(prompt.engine) for prompt in asked], params, use_tqdm=False)


def measure(generation: AuroraVLLMGeneration, prompts: Sequence[EncodedPrompt], copies: int) -> dict[str, Counts]:
    """Return the counts of each way, whose requests find all caches empty."""
    found = {}
    for way in WAYS:
        generation.sync_weights()
        generation.llm.llm_engine.reset_mm_cache()
        with counted(generation, [prompt for prompt in prompts for _ in range(copies)]) as counts:
            ask(generation, prompts, copies, way)
        found[way] = counts[0]
    return found


def table(found: dict[str, dict[str, Counts]]) -> str:
    """Return the counts as a Markdown table."""
    lines = ["| engine | copies | prompt tokens read | media read by towers | found in the processor's cache |"]
    lines.append("|" + " --- |" * 5)
    for engine, ways in found.items():
        for way, each in ways.items():
            read = f"{each.computed:,} of {each.prompt_tokens:,} | {each.encoded} of {each.media}"
            looked_up = f"{each.processor_hits} of {each.processor_queries}" if each.processor_queries else "none"
            lines.append(f"| {engine} | {way} | {read} | {looked_up} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table, and write the numbers as JSON."""
    parser = OptionParser(description=__doc__)
    parser.add_argument("--family", default="qwen2_5_omni", help="model_type of the family")
    parser.add_argument("--prompts", type=int, default=4, help="number of prompts, each of a clip of its own")
    parser.add_argument("--copies", type=int, default=8, help="number of completions of a prompt")
    parser.add_argument("--frames", type=int, default=10, help="number of frames of a clip")
    parser.add_argument("--size", type=int, default=224, help="height and width of a frame, in pixels")
    parser.add_argument("--seconds", type=int, default=10, help="length of a clip's sound, in seconds")
    parser.add_argument("--block_size", type=int, default=32, help="tokens of a block of keys (on a CPU 32, 64, ...)")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    args = parser.parse_args(argv)
    setup_logging(is_main_process=True)
    subject = tiny_subject(load_family(args.family))
    loaded = LoadedModel(subject.model, subject.processor, subject.family)
    clip = {"frames": args.frames, "size": (args.size, args.size), "sound": args.seconds * SECOND, "fps": 1.0}
    prompts = [subject.encode(seed=seed, **clip) for seed in range(args.prompts)]
    options = {"max_model_length": 4096, "max_num_seqs": 64, "max_completion_length": NUM_TOKENS, "temperature": 1.0}
    found = {}
    for name, own in ENGINES.items():
        engine_kwargs = {"disable_log_stats": False, "block_size": args.block_size, **own}
        with started(loaded, engine_kwargs=engine_kwargs, **options) as generation:
            found[name] = measure(generation, prompts, args.copies)
    length = len(prompts[0].prompt_ids)
    numbers: dict[str, Any] = {"prompts": args.prompts, "copies": args.copies, "prompt_length": length}
    print(f"{numbers}\n\n{table(found)}")
    if args.output:
        counts = {name: {way: dataclasses.asdict(each) for way, each in ways.items()} for name, ways in found.items()}
        args.output.write_text(json.dumps(numbers | {"block_size": args.block_size, "counts": counts}, indent=2) + "\n")


if __name__ == "__main__":
    main()
