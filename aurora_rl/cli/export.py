"""`aurora-rl export`: a model in the layout that another program loads."""

from __future__ import annotations

import argparse
from pathlib import Path

from aurora_rl.cli.arguments import Commands, HelpFormatter
from aurora_rl.cli.console import CLEAN, refuse

DESCRIPTION = """Write a model as vLLM loads it: the full layout, LoRA merged, [SEG] in the tokenizer, no mask decoder.

`vllm serve` starts from this folder for GRPO in server mode; see docs/vllm.md."""


def register(commands: Commands) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "export", help="write a model for vLLM", description=DESCRIPTION, formatter_class=HelpFormatter
    )
    parser.add_argument("model", help="hub name or folder: a plain MLLM, a trained model or a LoRA adapter")
    parser.add_argument("--output_dir", "-o", type=Path, required=True, help="folder that is written")
    parser.add_argument("--to", choices=("vllm",), default="vllm", help="who reads it")
    parser.add_argument("--dtype", default="auto", help="of the weights, such as bfloat16")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the directory that vLLM loads and return the exit code."""
    # Here, because it imports torch and transformers, which take seconds.
    from aurora_rl.rollout.export import export_checkpoint

    try:
        folder = export_checkpoint(args.model, args.output_dir, dtype=args.dtype)
    except (OSError, ValueError) as error:
        return refuse("export", error)
    print(folder)
    return CLEAN
