"""The arguments that say which model answers clips and how, alike in every command that does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from aurora_rl.cli.arguments import positive

if TYPE_CHECKING:
    from aurora_rl.inference.pipeline import AuroraPipeline


def add_pipeline_arguments(parser: argparse.ArgumentParser) -> None:
    """Add them to a sub-command."""
    parser.add_argument("--model", required=True, help="folder or hub name of a trained model or adapter")
    parser.add_argument(
        "--max_side",
        type=positive,
        default=1280,
        help="longest side of a frame, to which larger ones are scaled down, in pixels",
    )
    parser.add_argument(
        "--max_completion_length", type=positive, default=512, help="largest number of tokens of a chain of thought"
    )
    parser.add_argument(
        "--batch_size",
        type=positive,
        default=8,
        help="number of questions (references x windows) that are answered at once",
    )
    parser.add_argument(
        "--config", type=Path, help="recipe's YAML file, for fps, num_frames and instruction as in training"
    )
    parser.add_argument(
        "--box_prompts",
        metavar="SAM",
        help="folder or hub name of a SAM that turns the boxes of a model with a box head into masks",
    )
    parser.add_argument("--device", help="device of the model, such as cpu or cuda:1 (default: a GPU if there is one)")


def load_pipeline(args: argparse.Namespace) -> AuroraPipeline:
    """The pipeline that the arguments describe.

    Raises:
        OSError: if a file is not there.
        ValueError: if the model or the config cannot be used, or gives no masks.
    """
    # Here, because these import torch and transformers, which take seconds.
    from aurora_rl.assembly.encoder import read_clip_options, read_task
    from aurora_rl.inference.pipeline import AuroraPipeline

    pipeline = AuroraPipeline(
        args.model,
        task=None if args.config is None else read_task(args.config),
        clip_options=None if args.config is None else read_clip_options(args.config),
        max_completion_length=args.max_completion_length,
        batch_size=args.batch_size,
        max_side=args.max_side,
        device=args.device,
        box_prompts=args.box_prompts,
    )
    pipeline.check_masks()
    return pipeline
