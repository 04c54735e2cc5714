"""What several commands check of their arguments before anything slow is imported."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from aurora_rl.assembly.early import check_family, check_model
from aurora_rl.assembly.known_options import options_of, read_config
from aurora_rl.files.existing import check_writable_file
from aurora_rl.files.packaged import find_config

#: Devices as torch calls them.
DEVICE = re.compile(r"(cpu|cuda|hpu|mps|npu|xla|xpu)(:\d+)?")


def check_pipeline_arguments(args: argparse.Namespace) -> None:
    """Check the arguments of `add_pipeline_arguments`.

    Raises:
        ValueError: naming the option, its value and what was expected.
    """
    check_model(args.model, name="--model")
    if args.box_prompts is not None:
        check_model(args.box_prompts, name="--box_prompts")
    check_family(args.family, name="--family")
    if args.config is not None:
        read_config(find_config(str(args.config)), options_of())
    if args.device is not None and not DEVICE.fullmatch(args.device):
        raise ValueError(f"--device is {args.device!r}: expected a device such as cpu, cuda or cuda:1")


def check_positive(args: argparse.Namespace, *names: str) -> None:
    """Check numbers that may be None; a ValueError if one is not above 0 or no number."""
    for name in names:
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{name} is {value}: it must be a number above 0")


def check_written_files(args: argparse.Namespace, *names: str) -> None:
    """Check files that a command writes at its end; a ValueError if one cannot be written."""
    paths: dict[str, Path | None] = {name: getattr(args, name) for name in names}
    for name, path in paths.items():
        if path is not None:
            check_writable_file(path, name=f"--{name}")
