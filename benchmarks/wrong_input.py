"""Processor time until wrong input is told, beside the imports that the command would do without it.

    python benchmarks/wrong_input.py --repeats 5 --output out.json

Each command runs in a process of its own, in a folder with a file of each kind that is right: the table of a benchmark
has as many rows as Ref-AVSBench's. Seconds are user and system time of that process, which others on the machine change
little.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from aurora_rl.assembly.options import OptionParser

ROOT = Path(__file__).resolve().parents[1]
GOAL_S = 2.0
NUM_ROWS = 20_459  # of Ref-AVSBench
REFUSED = 2  # exit code

#: What a program imports when nothing is wrong.
IMPORTS = {
    "segment": "aurora_rl.inference.answer_files",
    "serve": "aurora_rl.serve.server",
    "evaluate": "aurora_rl.evaluation.of_model",
    "export": "aurora_rl.export.hub_folder",
    "footprint": "aurora_rl.footprint.by_hand",
    "recipes/sft.py": "recipes.sft",
    "recipes/grpo.py": "recipes.grpo",
    "data_prep/cache_features.py": "data_prep.cache_features",
    "data_prep/correct_cot.py": "data_prep.correct_cot",
}
#: A kind of wrong input, the program, and its arguments.
COMMANDS = {
    "unknown option": ("segment", "clip.mp4 drum --model m --output_dir out --fsp 2"),
    "missing model": ("segment", "clip.mp4 drum --model models/gone --output_dir out"),
    "missing clip": ("segment", "clip.mp4 drum --model model --output_dir out"),
    "address as a host": ("serve", "--model model --host http://localhost"),
    "missing config": ("evaluate", "--model model --data_root data --output_dir out --config gone.yaml"),
    "unknown key": ("evaluate", "--model model --data_root data --output_dir out --config typo.yaml"),
    "unknown split": ("evaluate", "--model model --data_root data --output_dir out --split test_z"),
    "missing data root": ("evaluate", "--model model --data_root gone --output_dir out"),
    "taken output": ("export", "--model model --to hf --output_dir data"),
    "number in words": ("footprint", "grpo --config grpo.yaml --beta much"),
    "unknown key of a recipe": ("recipes/sft.py", "--config typo.yaml"),
    "missing chains": ("recipes/sft.py", "--config grpo.yaml --chains gone.jsonl"),
    "missing reward": ("recipes/grpo.py", "--config grpo.yaml --reward_funcs reward_fns.format:gone"),
    "unknown split to cache": ("data_prep/cache_features.py", "--model model --data_root data --split x"),
    "missing mistakes": ("data_prep/correct_cot.py", "--data_root data --model m --output o.jsonl --mistakes gone"),
}


@dataclasses.dataclass(frozen=True)
class Told:
    """How long one kind of wrong input takes.

    Attributes:
        program: sub-command of `aurora-rl`, or script.
        seconds: processor time of the process, the median.
        imports: processor time of the program's imports alone; None where they are not measured.
    """

    program: str
    seconds: float
    imports: float | None


def measure(
    commands: Mapping[str, tuple[str, str]] = COMMANDS, *, repeats: int = 5, with_imports: bool = True
) -> dict[str, Told]:
    """Run each command `repeats` times, and each program's imports in between.

    Raises:
        RuntimeError: if a command is not refused.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        imports: dict[str, float] = {}
        told = {}
        for kind, (program, words) in commands.items():
            command = [str(ROOT / program)] if program.endswith(".py") else ["-m", "aurora_rl.cli", program]
            seconds = [_cpu_seconds([*command, *shlex.split(words)], folder, code=REFUSED) for _ in range(repeats)]
            if with_imports and program not in imports:
                statement = ["-c", f"import {IMPORTS[program]}"]
                imports[program] = median(_cpu_seconds(statement, folder, code=0) for _ in range(repeats))
            told[kind] = Told(program, median(seconds), imports.get(program))
        return told


def write_files(folder: Path) -> None:
    """Write what is right in the commands."""
    for name in ("model", "data"):
        (folder / name).mkdir()
    (folder / "model" / "config.json").write_text("{}")
    splits = ("train", "val", "test_s", "test_u", "test_n")
    rows = (f"{n},{n}_cat_1,{splits[n % 5]},0,The object that barks." for n in range(NUM_ROWS))
    (folder / "data" / "metadata.csv").write_text("\n".join(("vid,uid,split,fid,exp", *rows)) + "\n")
    (folder / "grpo.yaml").write_text("model: model\ndata_root: data\noutput_dir: out\n")
    (folder / "typo.yaml").write_text("model: model\ndata_root: data\nnum_frmes: 4\n")


def _cpu_seconds(words: Sequence[str], folder: str, *, code: int) -> float:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, *words], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != code:
        raise RuntimeError(f"{shlex.join(words)} ended with {process.returncode}, expected {code}")
    return usage.ru_utime + usage.ru_stime


def main(argv: Sequence[str] | None = None) -> None:
    """Print, and write as JSON, what is measured."""
    parser = OptionParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each command, whose median is shown")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    args = parser.parse_args(argv)
    told = measure(repeats=args.repeats)
    print("| wrong input | program | processor seconds | its imports alone |\n| --- | --- | --- | --- |")
    for kind, each in told.items():
        print(f"| {kind} | `{each.program}` | {each.seconds:.2f} | {each.imports:.1f} |")
    print(f"\nslowest: {max(each.seconds for each in told.values()):.2f} s, goal: {GOAL_S:g} s")
    if args.output:
        args.output.write_text(json.dumps({kind: dataclasses.asdict(each) for kind, each in told.items()}, indent=2))


if __name__ == "__main__":
    main()
