"""The whole path on two CPU cores: benchmark -> tiny model -> SFT -> GRPO -> evaluation -> results.json and a page.

python recipes/demo.py            (`make demo`)
python recipes/demo.py --smoke    (`make smoke`: the same path at toy size; its numbers mean nothing)

Every stage is the command that a user would type; this file only runs them in order and collects what they leave.
"""

import dataclasses
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.assembly.options import OptionParser
from aurora_rl.evaluation.records import SampleResult, read_results
from aurora_rl.evaluation.summary import compare, summarise
from aurora_rl.files.atomic import write_whole
from aurora_rl.report.training_page import ReportResults, write_report

CONFIGS = Path("recipes/synthetic")
#: What results.json says of each model, on the seen and the null test clips.
KEYS = (
    "format_rate",
    "category_accuracy",
    "greedy_iou",
    "non_null_iou",
    "sampled_reward",
    "sampled_iou",
    "chain_see",
    "chain_hear",
)
SCORED_SPLITS = ("test_s", "test_n")
AUDIO_TYPES = ("audio", "audio + space", "audio order")
ABLATIONS = ("audio_muted", "frames_blanked", "text_shuffled")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes:
        clips: options of data_prep/make_synthetic.py.
        sft: further options of recipes/sft.py.
        sft_early: step of the SFT checkpoint that GRPO starts from.
        grpo: further options of recipes/grpo.py.
        evaluate: further options of recipes/evaluate.py.
    """

    clips: Sequence[str]
    sft_early: int
    sft: Sequence[str] = ()
    grpo: Sequence[str] = ()
    evaluate: Sequence[str] = ()


DEMO = Sizes(
    clips=shlex.split("--train 12000 --rows_per_clip 1 --val 60 --test_s 150 --test_u 60 --test_n 30"),
    sft_early=500,
)
SMOKE = Sizes(
    clips=shlex.split("--train 40 --rows_per_clip 2 --val 6 --test_s 5 --test_u 5 --test_n 1"),
    sft_early=2,
    sft=shlex.split("--max_steps 4 --save_steps 2 --eval_steps 2 --warmup_steps 1 --logging_steps 1"),
    grpo=shlex.split("--max_steps 2 --eval_steps 2 --per_device_train_batch_size 16 --per_device_eval_batch_size 16"),
    evaluate=shlex.split("--num_samples 2"),
)


class Demo:
    """Runs the stages under one output folder and times them."""

    def __init__(self, output_dir: Path, sizes: Sizes) -> None:
        self.output_dir = output_dir
        self.sizes = sizes
        self.data_root = output_dir / "data"
        self.seconds: dict[str, float] = {}

    def run(self, stage: str, command: Sequence[str | Path]) -> None:
        """Run a stage's command, its output on the terminal, and note its wall-clock seconds.

        Raises:
            SystemExit: with the command's exit code if it fails.
        """
        print(f"\n=== {stage}: {' '.join(map(str, command))}", flush=True)
        start = time.perf_counter()
        code = subprocess.run([sys.executable, *map(str, command)]).returncode
        self.seconds[stage] = round(time.perf_counter() - start, 1)
        if code:
            raise SystemExit(f"the stage {stage!r} failed with exit code {code}; its output is above")

    def launch(self, stage: str, recipe: str, config: str, *options: str | Path) -> None:
        """Run a recipe as `accelerate launch` does."""
        launcher = shlex.split("-m accelerate.commands.launch --config_file accelerate_configs/cpu.yaml")
        arguments: list[str | Path] = ["--config", CONFIGS / config, "--data_root", self.data_root, *options]
        self.run(stage, [*launcher, f"recipes/{recipe}.py", *arguments])

    def evaluate(self, name: str, model: Path, *options: str) -> None:
        where = self.output_dir / "eval" / name
        options = (*self.sizes.evaluate, *options)
        self.launch(f"evaluate_{name}", "evaluate", "evaluate.yaml", "--model", model, "--output_dir", where, *options)

    def results(self, name: str, suffix: str = "") -> list[SampleResult]:
        """An evaluation's rows of the splits that results.json speaks of."""
        rows = read_results(self.results_file(name, suffix))
        return [row for row in rows if row.split in SCORED_SPLITS]

    def results_file(self, name: str, suffix: str = "") -> Path:
        return self.output_dir / "eval" / name / f"results{suffix}.jsonl"


def train_and_evaluate(demo: Demo, *, without_chain_guards: bool) -> None:
    """All stages, from an empty folder to the evaluations."""
    out, sizes = demo.output_dir, demo.sizes
    early, sft, grpo = out / "sft" / f"checkpoint-{sizes.sft_early}", out / "sft", out / "grpo"
    clips: list[str | Path] = [*sizes.clips, "--num_workers", "2", "--overwrite", "--output_dir", demo.data_root]
    demo.run("data", ["data_prep/make_synthetic.py", *clips])
    init: list[str | Path] = ["--config", CONFIGS / "init.yaml", "--data_root", demo.data_root]
    demo.run("init", ["recipes/init_tiny.py", *init, "--output_dir", out / "init"])
    demo.launch("sft", "sft", "sft.yaml", "--model", out / "init", "--output_dir", sft, *sizes.sft)
    demo.evaluate("sft", sft, "--ablations", *ABLATIONS)
    demo.evaluate("sft_early", early)
    demo.launch("grpo", "grpo", "grpo.yaml", "--model", early, "--output_dir", grpo, *sizes.grpo)
    demo.evaluate("grpo", grpo)
    if without_chain_guards:
        bare = out / "grpo_without_guards"
        config = "grpo_without_guards.yaml"
        demo.launch("grpo_without_guards", "grpo", config, "--model", early, "--output_dir", bare, *sizes.grpo)
        demo.evaluate("grpo_without_guards", bare)


def measures(results: list[SampleResult]) -> dict[str, float | None]:
    """The numbers of results.json for one evaluation."""
    overall = summarise(results).overall
    return {key: overall[key] for key in KEYS}


def ablation_measures(results: list[SampleResult]) -> dict[str, float | None]:
    """As `measures`, with the category accuracy on the references that ask for a sound."""
    audio = [row for row in results if row.reference_type in AUDIO_TYPES]
    audio_accuracy = summarise(audio).overall["category_accuracy"] if audio else None
    return measures(results) | {"audio_category_accuracy": audio_accuracy}


def collect(demo: Demo, *, without_chain_guards: bool) -> dict[str, Any]:
    """The content of results.json, from the evaluations' files."""
    gains = compare(demo.results("sft_early"), demo.results("grpo"))
    content: dict[str, Any] = {name: measures(demo.results(name)) for name in ("sft", "sft_early", "grpo")}
    content["gain"] = {key: dataclasses.asdict(gains[key]) for key in KEYS if key in gains}
    content["ablation"] = {"none": ablation_measures(demo.results("sft"))}
    content["ablation"] |= {name: ablation_measures(demo.results("sft", f".{name}")) for name in ABLATIONS}
    if without_chain_guards:
        name = "grpo_without_guards"
        bare = compare(demo.results("sft_early"), demo.results(name))
        content[name] = measures(demo.results(name))
        content[f"gain_{name}"] = {key: dataclasses.asdict(bare[key]) for key in KEYS if key in bare}
    content["seconds"] = demo.seconds | {"total": round(sum(demo.seconds.values()), 1)}
    return content


def report(demo: Demo, *, without_chain_guards: bool) -> Path:
    """Write the page from the files that the stages left."""
    data_args = DataArguments(str(demo.data_root), chains="chains.jsonl", fps=2.0, num_frames=4)
    gallery = [sample for split in ("test_s", "test_u", "test_n") for sample in load_split(data_args, split)]
    bare = demo.results_file("grpo_without_guards") if without_chain_guards else None
    results = ReportResults(
        before=demo.results_file("sft_early"),
        after=demo.results_file("grpo"),
        before_name="early SFT",
        after_name="GRPO",
        ablated=demo.results_file("sft"),
        ablated_name="full SFT",
        ablations={name.replace("_", " "): demo.results_file("sft", f".{name}") for name in ABLATIONS},
        without_chain_guards=bare,
    )
    runs = {"SFT": demo.output_dir / "sft", "GRPO": demo.output_dir / "grpo"}
    if without_chain_guards:
        runs["GRPO without guards"] = demo.output_dir / "grpo_without_guards"
    page = demo.output_dir / "report.html"
    return write_report(page, title="Aurora-RL demo", runs=runs, results=results, gallery=gallery)


def main(argv: Sequence[str] | None = None) -> None:
    parser = OptionParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="train at toy size, in under three minutes")
    parser.add_argument(
        "--without_chain_guards",
        action="store_true",
        help="run GRPO a second time, without the rewards on the chain and without KL, to show what they prevent",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        help="folder for all that is made (default: outputs/demo, or outputs/smoke with --smoke)",
    )
    args = parser.parse_args(argv)
    folder, sizes = ("outputs/smoke", SMOKE) if args.smoke else ("outputs/demo", DEMO)
    demo = Demo(args.output_dir or Path(folder), sizes)

    train_and_evaluate(demo, without_chain_guards=args.without_chain_guards)
    start = time.perf_counter()
    page = report(demo, without_chain_guards=args.without_chain_guards)
    demo.seconds["report"] = round(time.perf_counter() - start, 1)
    content = json.dumps(collect(demo, without_chain_guards=args.without_chain_guards), indent=2)
    results_file = demo.output_dir / "results.json"
    write_whole(results_file, content + "\n")
    print(f"{content}\n\nnumbers: {results_file}\npage:    {page}")


if __name__ == "__main__":
    main()
