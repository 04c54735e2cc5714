"""Write report.html and results.json of a training, from the files of its evaluations and trainings.

python recipes/report.py --evaluations "early SFT=outputs/demo/eval/sft_early" GRPO=outputs/demo/eval/grpo \\
    --trainings SFT=outputs/demo/sft GRPO=outputs/demo/grpo \\
    --data_root outputs/demo/data --fps 2.0 --num_frames 4 --output_dir outputs/demo

A run is named as NAME=FOLDER. This is the last stage of recipes/synthetic/demo.yaml.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.assembly.parser import ConfigParser
from aurora_rl.evaluation.comparison import compare_overall
from aurora_rl.evaluation.measures import MEASURES
from aurora_rl.evaluation.records import RowResult
from aurora_rl.files.atomic import write_whole
from aurora_rl.report.score_page import page_measures
from aurora_rl.report.training_page import Run, write_training_page

#: Measures of each evaluation of masks in results.json; that of another task has all measures that it knows.
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
#: Reference types that ask for a sound.
AUDIO_TYPES = ("audio", "audio + space", "audio order")


@dataclasses.dataclass
class ReportArguments:
    """The runs that the page compares, each as NAME=FOLDER.

    Attributes:
        evaluations: output folders of `recipes/evaluate.py`, of the same rows: the run before, the run after, and
            others that are compared with the first.
        output_dir: folder for report.html and results.json.
        ablated: output folder of an evaluation with ablations.
        trainings: output folders of trainings, whose learning curves are drawn.
        split: splits that results.json counts; None for all.
        title: heading of the page.
        note: sentence under the heading, such as a warning; None for none.
    """

    evaluations: list[str] = dataclasses.field(metadata={"help": "Evaluations to compare, each as NAME=FOLDER."})
    output_dir: str = dataclasses.field(metadata={"help": "Folder for report.html and results.json."})
    ablated: str | None = dataclasses.field(
        default=None, metadata={"help": "Evaluation with ablations, as NAME=FOLDER."}
    )
    trainings: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "Trainings whose curves are drawn, each as NAME=FOLDER."}
    )
    split: list[str] | None = dataclasses.field(
        default=None, metadata={"help": "Splits that results.json counts, by default all."}
    )
    title: str = dataclasses.field(default="Training report", metadata={"help": "Heading of the page."})
    note: str | None = dataclasses.field(
        default=None, metadata={"help": "Sentence under the heading, such as a warning."}
    )

    def __post_init__(self) -> None:
        if len(self.evaluations) < 2:
            raise ValueError(f"evaluations names {self.evaluations}: name the run before and the run after at least")


def read_run(text: str) -> Run:
    """Read NAME=FOLDER.

    >>> read_run("early SFT=outputs/demo/eval/sft_early").name
    'early SFT'
    """
    name, sign, folder = text.partition("=")
    if not (name and sign and folder):
        raise ValueError(f"{text!r} names no run: write NAME=FOLDER, such as 'GRPO=outputs/demo/eval/grpo'")
    return Run(name, Path(folder))


def measures(results: Sequence[RowResult]) -> dict[str, float | None]:
    """Compute the numbers of results.json for one evaluation."""
    if any(row.masks for row in results):
        return {key: MEASURES[key].over(results) for key in KEYS}
    return {name: measure.over(results) for name, measure in page_measures(results).items()}


def ablation_measures(results: Sequence[RowResult]) -> dict[str, float | None]:
    """Compute `measures` and, of masks, the category accuracy on the references that ask for a sound."""
    if not any(row.masks for row in results):
        return measures(results)
    audio = [row for row in results if row.reference_type in AUDIO_TYPES]
    return measures(results) | {"audio_category_accuracy": MEASURES["category_accuracy"].over(audio)}


def collect(evaluations: Sequence[Run], ablated: Run | None, splits: Sequence[str] | None) -> dict[str, Any]:
    """Make the content of results.json: evaluations by the folder's name, gains over the first, and ablations."""

    def counted(rows: Sequence[RowResult]) -> list[RowResult]:
        return [row for row in rows if splits is None or row.split in splits]

    named = [*evaluations, *([ablated] if ablated else [])]
    if len({run.folder.name for run in named}) < len({run.folder for run in named}):
        raise ValueError(f"two of {[str(run.folder) for run in named]} have one name, by which results.json tells them")
    rows = {run.folder.name: counted(run.results()) for run in named}
    content: dict[str, Any] = {name: measures(of) for name, of in rows.items()}
    first, second, *others = (run.folder.name for run in evaluations)
    for key, name in {"gain": second, **{f"gain_{name}": name for name in others}}.items():
        differences = compare_overall(rows[first], rows[name], names=measures(rows[first]))
        content[key] = {measure: dataclasses.asdict(of.gain) for measure, of in differences.items()}
    if ablated:
        content["ablation"] = {"none": ablation_measures(rows[ablated.folder.name])}
        content["ablation"] |= {name: ablation_measures(counted(of)) for name, of in ablated.ablations().items()}
    return content


def main(data_args: DataArguments, args: ReportArguments) -> None:
    evaluations = [read_run(text) for text in args.evaluations]
    ablated = read_run(args.ablated) if args.ablated else None
    content = json.dumps(collect(evaluations, ablated, args.split), indent=2)
    splits = dict.fromkeys(row.split for row in evaluations[1].results())
    write_training_page(
        Path(args.output_dir, "report.html"),
        title=args.title,
        note=args.note,
        evaluations=evaluations,
        ablated=ablated,
        trainings=[read_run(text) for text in args.trainings],
        gallery=[sample for split in splits for sample in load_split(data_args, split)],
    )
    write_whole(Path(args.output_dir, "results.json"), content + "\n")
    print(content)


def run() -> None:
    """Read the command line and run the script."""
    main(*ConfigParser((DataArguments, ReportArguments), description=__doc__).parse_args_and_config())
