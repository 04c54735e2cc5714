"""Time of a weight sync to vLLM, in this process or on a server, and how much of it is reading the policy's weights.

    python benchmarks/weight_sync.py --model outputs/demo/grpo/checkpoint-300
    python benchmarks/weight_sync.py --model outputs/demo/grpo/checkpoint-300 --server http://127.0.0.1:8000

`docs/vllm.md` has the server's command. A run sends all weights once, and those of the language model after each step.
Reading is naming, unpacking and, with `--lora`, merging them with an adapter of random numbers; what is left is
sending, loading, and dropping what vLLM has cached. In a run, `profile_steps` shows the sync as a part of the step.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from aurora_rl.assembly.options import OptionParser
from aurora_rl.logs import setup_logging
from aurora_rl.models.loading import LoadedModel, load_model
from aurora_rl.rollout.engine import AuroraVLLMGeneration
from aurora_rl.rollout.weights import engine_weights
from benchmarks.vllm_parity import SYNCS, with_random_lora


def engine_of(loaded: LoadedModel, server: str | None) -> AuroraVLLMGeneration:
    """Start an engine in this process, or connect with a server at an address."""
    on_cpu = not torch.cuda.is_available()
    accelerator = Accelerator(cpu=on_cpu)
    loaded.model.to(accelerator.device)
    place: dict[str, Any] = {"mode": "colocate", "max_model_length": 1024, "max_num_seqs": 16}
    if server is not None:
        place = {"mode": "server", "server_base_url": server, "group_port": 0}
    elif on_cpu:
        place["engine_kwargs"] = {"kv_cache_memory_bytes": 64_000_000}
    return AuroraVLLMGeneration(loaded, accelerator=accelerator, processing_class=loaded.processor, **place)


def measure(generation: AuroraVLLMGeneration, *, syncs: int = SYNCS) -> dict[str, dict[str, float]]:
    """Return megabytes, seconds of a sync and seconds of reading, of the first sync and the median of later ones."""
    found = {}
    for name, towers, repeats in (("first", True, 1), ("later", False, syncs)):

        def read(towers: bool = towers) -> int:
            weights = engine_weights(generation.model, generation.family, towers=towers)
            return sum(tensor.nbytes for _, tensor in weights)

        reading = [seconds(read) for _ in range(syncs)]
        found[name] = {
            "MB": read() / 1e6,
            "sync_s": statistics.median(seconds(generation.sync_weights) for _ in range(repeats)),
            "read_s": statistics.median(reading),
        }
    return found


def seconds(run: Callable[[], Any]) -> float:
    """Return the wall-clock seconds of a call, a GPU's work included."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write the numbers as JSON."""
    parser = OptionParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder or hub name of the model")
    parser.add_argument("--server", help="address of a vLLM server that was started with this model's export")
    parser.add_argument("--lora", action="store_true", help="wrap the model by an adapter, which each sync merges")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    args = parser.parse_args(argv)
    setup_logging(is_main_process=True)
    loaded = load_model(args.model, is_trainable=False)
    generation = engine_of(loaded, args.server)
    if args.lora:
        generation.model = with_random_lora(loaded.model, loaded.family)
    numbers = measure(generation)
    print("| sync | MB | seconds | of these reading |\n| --- | --- | --- | --- |")
    for name, row in numbers.items():
        print(f"| {name} | {row['MB']:.2f} | {row['sync_s']:.3f} | {row['read_s']:.3f} |")
    if args.output:
        args.output.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
