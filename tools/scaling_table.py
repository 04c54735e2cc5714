"""Print the tables of docs/scaling.md: the parts of a recipe's memory and time, from one GPU to sixteen.

python tools/scaling_table.py

Every row is an estimate of `aurora-rl footprint` with the options in `ROWS`.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Callable, Iterator, Sequence

from aurora_rl.assembly.options import OptionParser
from aurora_rl.cli import parse_arguments
from aurora_rl.footprint import Footprint
from aurora_rl.footprint.by_hand import estimate
from aurora_rl.footprint.flops import PEAK_TFLOPS, least_seconds
from aurora_rl.footprint.parts import fullest

SFT = "sft --config recipes/ref_avs/sft_7b.yaml --model docs/configs/qwen2_5_omni_7b --launch accelerate_configs/"
GRPO = "grpo --config recipes/ref_avs/grpo_7b.yaml --model docs/configs/sft_7b --launch accelerate_configs/"
FULL_SFT, FULL_GRPO = (f"--model docs/configs/{name} --use_peft false" for name in ("qwen2_5_omni_7b", "sft_full_7b"))
#: Of the families whose sizes are in docs/configs.
FAMILIES = {"qwen3_omni_30b": "Qwen3-Omni-30B", "gemma4_12b": "Gemma 4 12B", "qwen3_vl_8b": "Qwen3-VL-8B"}
CLIPS = "--clips 4002"  # all clips of Ref-AVSBench
VLLM = "--use_vllm true --vllm_mode colocate --vllm_gpu_memory_utilization 0.35 --gpu_memory_gb 80"

ROWS = {
    "SFT, LoRA, 1 GPU": f"{SFT}single_gpu.yaml",
    "SFT, LoRA on 4 bits, 1 GPU": f"{SFT}single_gpu.yaml --load_in_4bit true",
    "SFT, LoRA, 8 GPUs, ZeRO-2": f"{SFT}zero2.yaml",
    "the same, its teacher beside it": f"{SFT}zero2.yaml --teacher docs/configs/sft_7b",
    "SFT, full, 8 GPUs, ZeRO-2": f"{SFT}zero2.yaml {FULL_SFT}",
    "SFT, full, 8 GPUs, ZeRO-3": f"{SFT}zero3.yaml {FULL_SFT}",
    "SFT, full, 16 GPUs, ZeRO-3": f"{SFT}zero3.yaml --processes 16 {FULL_SFT}",
    "GRPO, LoRA, 1 GPU": f"{GRPO}single_gpu.yaml",
    "GRPO, LoRA, 8 GPUs, ZeRO-2": f"{GRPO}zero2.yaml",
    "the same, no checkpointing": f"{GRPO}zero2.yaml --gradient_checkpointing false",
    "the same, vLLM beside it (35 % of 80 GB)": f"{GRPO}zero2.yaml {VLLM}",
    "the same, a vLLM server elsewhere": f"{GRPO}zero2.yaml --use_vllm true --vllm_mode server",
    "GRPO, LoRA, 8 GPUs, ZeRO-3": f"{GRPO}zero3.yaml",
    "GRPO, full, 8 GPUs, ZeRO-2": f"{GRPO}zero2.yaml {FULL_GRPO}",
    "GRPO, full, 8 GPUs, ZeRO-3": f"{GRPO}zero3.yaml {FULL_GRPO}",
    "the same, offloaded to the host": f"{GRPO}zero3_offload.yaml {FULL_GRPO}",
    "GRPO, full, 16 GPUs, ZeRO-3": f"{GRPO}zero3.yaml --processes 16 {FULL_GRPO}",
}

#: The recipes of each other family, and Qwen3-Omni's under the other ZeRO stage.
FAMILY_ROWS = {
    f"{name}, {kind}, 8 GPUs, ZeRO-{stage}": f"{kind.lower()} --config recipes/ref_avs/{stem}_{kind.lower()}.yaml "
    f"--model docs/configs/{'sft_' * (kind == 'GRPO')}{stem} --launch accelerate_configs/zero{stage}.yaml"
    for stem, name in FAMILIES.items()
    for kind in ("SFT", "GRPO")
    for stage in ((2, 3) if stem == "qwen3_omni_30b" else (2,))
}
BY_LAYER = "Qwen3-Omni-30B, GRPO, 8 GPUs, ZeRO-3"
FAMILY_ROWS[f"{BY_LAYER}, gathered by layer"] = f"{FAMILY_ROWS[BY_LAYER]} --ds3_gather_for_generation false"

#: Column -> starts of the names of its parts.
COLUMNS = {
    "weights": ("weights: ", "weights gathered for one layer", "half-precision"),
    "reference, teacher": ("reference", "teacher"),
    "optimiser": ("optimiser",),
    "gradients, buckets": ("gradients", "DeepSpeed", "one gradient", "DDP"),
    "activations": ("activations: decoder", "activations: towers", "activations: LM head", "activations: one layer"),
    "mask decoder": ("activations: mask decoder", "masks of"),
    "KV cache": ("key-value", "vLLM: its key-value"),
    "other sampling": ("weights gathered for sampling", "prefill", "vLLM: its own"),
}
#: Columns of the whole run, or of a machine.
PLACES = ("**peak**", "host memory", "feature cache, disk", "a checkpoint, disk")
TIMES = ("sampling", "scoring", "training", "recomputing", "**step**", "TFLOP of a step")
#: Peak of the GPU in TFLOP/s.
TFLOPS = PEAK_TFLOPS["H100"]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables, for each process: GB of 10^9 bytes, and seconds."""
    OptionParser(description=__doc__).parse_args(argv)
    footprints = {name: footprint_of(name) for name in ROWS}
    print("\n".join([*table((*COLUMNS, *PLACES), footprints, memory_cells), ""]))
    print("\n".join([*table(TIMES, footprints, time_cells), ""]))
    families = {name: footprint_of(name) for name in FAMILY_ROWS}
    print("\n".join(table((*COLUMNS, *PLACES, TIMES[-1]), families, all_cells)))


def footprint_of(name: str) -> Footprint:
    """Estimate one of the `ROWS` or `FAMILY_ROWS`."""
    with _without_warnings():
        command = (ROWS | FAMILY_ROWS)[name]
        footprint, _ = estimate(parse_arguments(shlex.split(f"footprint {command} {CLIPS}")))
    return footprint


def table(
    columns: Sequence[str], footprints: dict[str, Footprint], cells: Callable[[Footprint], Iterator[str]]
) -> Iterator[str]:
    """Yield the lines of a table."""
    yield f"| | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, footprint in footprints.items():
        yield f"| {name} | {' | '.join(cells(footprint))} |"


def memory_cells(footprint: Footprint) -> Iterator[str]:
    """Yield each column at its fullest moment, which may differ from the moment of the peak."""
    for starts in COLUMNS.values():
        parts = [part for part in footprint.device if part.name.startswith(starts)]
        yield _number(sum(part.num_bytes for part in fullest(parts)) / 1e9)
    yield f"**{footprint.peak / 1e9:.1f}**"
    yield _number(footprint.host_peak / 1e9)
    for start in ("image embeddings", "a checkpoint"):
        yield _number(sum(part.num_bytes for part in footprint.disk if part.name.startswith(start)) / 1e9)


def time_cells(footprint: Footprint) -> Iterator[str]:
    """Yield the least seconds of each part and of the step, and the step's operations."""
    flops = footprint.flops
    for share in (flops.sampling, flops.scoring, flops.training, flops.recomputing):
        yield _number(least_seconds(share, TFLOPS))
    yield f"**{least_seconds(flops.total, TFLOPS):.1f}**"
    yield f"{flops.total / 1e12:,.0f}"


def all_cells(footprint: Footprint) -> Iterator[str]:
    """Yield the cells of a family's row: memory, and the step's operations."""
    yield from memory_cells(footprint)
    yield f"{footprint.flops.total / 1e12:,.0f}"


def _number(value: float) -> str:
    return f"{value:.1f}" if value else "–"


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Switch warnings off while the block runs: libraries warn about a GPU config on a machine without a GPU."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


if __name__ == "__main__":
    main()
