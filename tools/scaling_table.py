"""Print the table of docs/scaling.md: how the memory of one recipe divides, from one GPU to sixteen.

python tools/scaling_table.py

Every row is what `aurora-rl footprint` estimates with the options that `ROWS` has for it.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import shlex
from collections.abc import Iterator, Sequence

from aurora_rl.cli import parse_arguments
from aurora_rl.footprint import Footprint
from aurora_rl.footprint.by_hand import estimate

SFT = "sft --config recipes/ref_avs/sft_7b.yaml --model docs/configs/qwen2_5_omni_7b --launch accelerate_configs/"
GRPO = "grpo --config recipes/ref_avs/grpo_7b.yaml --model docs/configs/sft_7b --launch accelerate_configs/"
FULL = "--model docs/configs/qwen2_5_omni_7b --use_peft false"
VLLM = "--use_vllm true --vllm_mode colocate --vllm_gpu_memory_utilization 0.35 --gpu_memory_gb 80"

ROWS = {
    "SFT, LoRA, 1 GPU": f"{SFT}single_gpu.yaml",
    "SFT, LoRA on 4 bits, 1 GPU": f"{SFT}single_gpu.yaml --load_in_4bit true",
    "SFT, LoRA, 8 GPUs, ZeRO-2": f"{SFT}zero2.yaml",
    "SFT, full, 8 GPUs, ZeRO-2": f"{SFT}zero2.yaml {FULL}",
    "SFT, full, 8 GPUs, ZeRO-3": f"{SFT}zero3.yaml {FULL}",
    "SFT, full, 16 GPUs, ZeRO-3": f"{SFT}zero3.yaml --processes 16 {FULL}",
    "GRPO, LoRA, 1 GPU": f"{GRPO}single_gpu.yaml",
    "GRPO, LoRA, 8 GPUs, ZeRO-2": f"{GRPO}zero2.yaml",
    "the same, no checkpointing": f"{GRPO}zero2.yaml --gradient_checkpointing false",
    "the same, vLLM beside it (35 % of 80 GB)": f"{GRPO}zero2.yaml {VLLM}",
    "the same, a vLLM server elsewhere": f"{GRPO}zero2.yaml --use_vllm true --vllm_mode server",
    "GRPO, LoRA, 8 GPUs, ZeRO-3": f"{GRPO}zero3.yaml",
    "GRPO, full, 8 GPUs, ZeRO-2": f"{GRPO}zero2.yaml {FULL}",
    "GRPO, full, 8 GPUs, ZeRO-3": f"{GRPO}zero3.yaml {FULL}",
    "GRPO, full, 16 GPUs, ZeRO-3": f"{GRPO}zero3.yaml --processes 16 {FULL}",
}

#: Column -> how the names of its parts begin.
COLUMNS = {
    "weights": ("weights: ", "weights gathered for one layer", "half-precision"),
    "reference": ("reference",),
    "optimiser": ("optimiser",),
    "gradients, buckets": ("gradients", "DeepSpeed", "DDP"),
    "activations": ("activations",),
    "sampling": ("weights gathered for sampling", "key-value", "prefill", "vLLM"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, GB of 10^9 bytes for each process."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    for line in lines(ROWS):
        print(line, flush=True)


def lines(names: Sequence[str] | dict[str, str]) -> Iterator[str]:
    """The table's lines for some of the `ROWS`."""
    yield f"| | {' | '.join(COLUMNS)} | peak |"
    yield "|---" * (len(COLUMNS) + 2) + "|"
    for name in names:
        with _without_warnings():
            footprint, _ = estimate(parse_arguments(["footprint", *shlex.split(ROWS[name])]))
        yield f"| {name} | {' | '.join(cells(footprint))} | **{footprint.peak / 1e9:.1f}** |"


def cells(footprint: Footprint) -> Iterator[str]:
    """The columns of one row."""
    for starts in COLUMNS.values():
        num_bytes = sum(part.num_bytes for part in footprint.device if part.name.startswith(starts))
        yield f"{num_bytes / 1e9:.1f}" if num_bytes else "–"


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Parsing a config for GPUs on a machine without one makes libraries talk."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


if __name__ == "__main__":
    main()
