"""Ask a stage-1 model about every training row and keep its mistakes, the source of reflective training.

accelerate launch --config_file accelerate_configs/cpu.yaml data_prep/collect_mistakes.py \
    --config recipes/synthetic/mistakes.yaml

A row is a mistake if the answer is wrong, no `[SEG]` is written, or the masks' IoU is below `min_iou`. A killed run is
resumed by the same command (`asked_rows`). At the end the mistakes are written to <output>, sorted by row, for
`correct_cot.py`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from pathlib import Path
from typing import Any

from accelerate import PartialState

from aurora_rl.assembly.arguments import DataArguments, ModelArguments
from aurora_rl.assembly.parser import RecipeParser
from aurora_rl.evaluation.scoring import score_rollout
from aurora_rl.files.atomic import write_whole
from aurora_rl.files.journal import to_lines
from aurora_rl.inference.predictor import Completion
from aurora_rl.models.encoding import EncodedSample
from aurora_rl.scripts.asked_rows import AskArguments, Asking, ask_rows
from aurora_rl.tasks.base import Task

logger = logging.getLogger(__name__)

REASONS = ("category", "no_seg", "iou")


@dataclasses.dataclass
class MistakeArguments(AskArguments):
    """The rows that are asked about, and the rule for mistakes; of several completions the first wrong one is kept.

    Attributes:
        min_iou: IoU below which a right answer is a mistake; 0 keeps wrong answers only.
    """

    min_iou: float = dataclasses.field(default=0.5, metadata={"help": "IoU below which an answer is a mistake."})


def judge(
    task: Task, encoded: EncodedSample, completion: Completion, *, min_iou: float
) -> tuple[list[str], float | None]:
    """Return why an answer is wrong (some of `REASONS`, none if it is right), and its IoU, if there is one."""
    score = score_rollout(completion.text, completion.mask_probs, encoded.gt_masks, encoded.sample, task=task)
    wrong = {"category": not score.is_right}
    if score.iou is not None:
        wrong |= {"no_seg": completion.mask_probs is None, "iou": score.iou < min_iou}
    return [reason for reason in REASONS if wrong.get(reason)], score.iou


def answer_record(
    task: Task, encoded: EncodedSample, completions: list[Completion], *, min_iou: float, model: str
) -> dict[str, Any]:
    """Make a row's record: of its first wrong completion, or of the first one, without reasons, if all are right."""
    judged = [(completion, *judge(task, encoded, completion, min_iou=min_iou)) for completion in completions]
    completion, reasons, iou = next((entry for entry in judged if entry[1]), judged[0])
    sample = encoded.sample
    return {
        "uid": sample.uid,
        "row": sample.row,
        "split": sample.split,
        "category": sample.category,
        "exp": sample.reference,
        "completion": completion.text,
        "answered": task.parse(completion.text).value,
        "iou": None if iou is None else round(iou, 6),
        "reasons": reasons,
        "model": model,
    }


def finish(out: Path, asked: list[dict[str, Any]]) -> None:
    """Write the mistakes, and log their number by kind."""
    mistakes = [record for record in asked if record["reasons"]]
    write_whole(out, to_lines(mistakes))
    counts = Counter(reason for record in mistakes for reason in record["reasons"])
    reasons = ", ".join(f"{counts[reason]} {reason}" for reason in REASONS)
    logger.info("%s: %d mistakes in %d rows (%s)", out, len(mistakes), len(asked), reasons)


def main(model_args: ModelArguments, data_args: DataArguments, args: MistakeArguments) -> None:
    """Collect mistakes; the launched processes share the rows."""

    def record(task: Task, encoded: EncodedSample, completions: list[Completion], model: str) -> dict[str, Any]:
        return answer_record(task, encoded, completions, min_iou=args.min_iou, model=model)

    settings = {"min_iou": args.min_iou}
    ask_rows(model_args, data_args, args, Asking(record, finish, settings, name="collect_mistakes"))


def run() -> None:
    """Read the command line and run the script."""
    main(*RecipeParser((ModelArguments, DataArguments, MistakeArguments), description=__doc__).parse_args_and_config())
    PartialState().destroy_process_group()  # one that is left at exit may abort a run that went well
