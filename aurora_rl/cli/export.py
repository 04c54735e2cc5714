"""`aurora-rl export`: a model in the layout that another program loads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from aurora_rl.assembly.early import check_dtype, check_family, check_model
from aurora_rl.cli.arguments import Commands, add_family_argument
from aurora_rl.cli.console import CLEAN, refuse
from aurora_rl.export.hub_checks import check_is_new, check_token
from aurora_rl.files.existing import check_file, check_writable_folder

DESCRIPTION = """Write a model for another program, or for the hub.

  aurora-rl export --model outputs/demo/grpo --to vllm -o outputs/engine
  aurora-rl export --model outputs/demo/grpo --to hf -o outputs/model --scores outputs/demo/eval/grpo/scores.json

vllm: the full layout, LoRA merged, [SEG] in the tokenizer, no mask decoder; `vllm serve` starts from it for GRPO in
server mode, see docs/vllm.md. hf: the trained model with its mask decoder, processor and a model card, in safetensors,
for anyone to load; see docs/export.md. Exit code 0: written, 2: unusable arguments or model."""

#: Options that --to vllm has no use for, with their defaults.
HUB_OPTIONS: dict[str, Any] = {
    "merge": True,
    "base_model": None,
    "image_encoder": None,
    "scores": None,
    "license": None,
    "datasets": [],
    "push": None,
    "private": False,
}


def register(commands: Commands) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("export", help="write a model for vLLM or the hub", description=DESCRIPTION)
    parser.add_argument(
        "--model", required=True, help="folder or hub name of a trained model or a LoRA adapter; for vLLM, of any MLLM"
    )
    add_family_argument(parser)
    parser.add_argument("--to", choices=("vllm", "hf"), required=True, help="which program reads the written folder")
    parser.add_argument("--output_dir", "-o", type=Path, required=True, help="folder that is written")
    parser.add_argument("--dtype", default="auto", help="number format of the written weights, such as bfloat16")
    hub = parser.add_argument_group("with --to hf")
    hub.add_argument("--merge", action="store_true", help="merge LoRA into the weights, as is usual")
    hub.add_argument("--no_merge", action="store_false", dest="merge", help="keep LoRA as an adapter of its own")
    hub.add_argument(
        "--base_model",
        metavar="NAME",
        help="hub name of the model that it was trained from (default: the adapter's own)",
    )
    hub.add_argument(
        "--image_encoder", metavar="NAME", help="hub name of the mask decoder's SAM (default: the model's own)"
    )
    hub.add_argument("--scores", type=Path, metavar="FILE", help="scores for the card: scores.json of evaluate")
    hub.add_argument("--license", help="licence of the weights for the card, such as apache-2.0")
    hub.add_argument("--datasets", nargs="+", metavar="NAME", help="data sets that it was trained on, for the card")
    hub.add_argument("--push", metavar="NAME", help="repository to upload to as well, with the token in HF_TOKEN")
    hub.add_argument("--private", action="store_true", help="make the repository private, where it is new")
    parser.set_defaults(run=run, **HUB_OPTIONS)


def run(args: argparse.Namespace) -> int:
    """Write the folder, push it where that is asked for, and return the exit code."""
    try:
        _check(args)
        if args.to == "vllm":
            # Here, because it imports torch and transformers, which take seconds.
            from aurora_rl.rollout.export import export_checkpoint

            print(export_checkpoint(args.model, args.output_dir, dtype=args.dtype, family=args.family))
        else:
            print(_export_for_hub(args))
    except (OSError, ValueError) as error:
        return refuse("export", error)
    return CLEAN


def _check(args: argparse.Namespace) -> None:
    unused = [name for name, default in HUB_OPTIONS.items() if getattr(args, name) != default]
    if args.to == "vllm" and unused:
        raise ValueError(f"--{unused[0]} is an option of --to hf: leave it out, or export to hf")
    if args.private and args.push is None:
        raise ValueError("--private says how to push: give --push NAME, too")
    if args.push is not None:
        check_token()
    check_dtype(args.dtype, name="--dtype")
    check_model(args.model, name="--model")
    check_family(args.family, name="--family")
    check_writable_folder(args.output_dir, name="--output_dir")
    if args.to == "hf":
        check_is_new(args.output_dir)
    if args.scores is not None:
        check_file(args.scores, name="--scores")


def _export_for_hub(args: argparse.Namespace) -> Path | str:
    # Here, because these import torch and transformers, which take seconds.
    from aurora_rl.export.hub_folder import HubExport, export_for_hub, push_folder
    from aurora_rl.export.model_card import CardDetails, score_table

    details = CardDetails(
        name=args.push or args.output_dir.resolve().name,
        license=args.license,
        datasets=tuple(args.datasets),
        scores=None if args.scores is None else score_table(args.scores),
    )
    options = HubExport(
        merge=args.merge,
        base_model=args.base_model,
        image_encoder=args.image_encoder,
        dtype=args.dtype,
        family=args.family,
    )
    folder = export_for_hub(args.model, args.output_dir, options, details)
    return folder if args.push is None else push_folder(folder, args.push, private=args.private)
