"""Ask a model about every training row several times and count how often it is right, the source of a curriculum.

accelerate launch --config_file accelerate_configs/cpu.yaml data_prep/pass_rates.py \
    --config recipes/synthetic/choice/pass_rates.yaml

A completion is right by the run's task; where masks are asked for, their IoU must be `min_iou` at least. A killed run
is resumed by the same command (`asked_rows`). At the end <output> has a line for each row, for `data.curriculum`:

    {"uid": "train-00000_0_2000_first", "row": 0, "split": "train", "passes": 11, "tries": 16, "model": "5f0c..."}
"""

from __future__ import annotations

import dataclasses
import logging
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


@dataclasses.dataclass
class PassRateArguments(AskArguments):
    """The rows that are asked about, and what counts as a pass.

    Attributes:
        num_samples: tries a row, at least one.
        min_iou: IoU that a right answer's masks must have at least; 0 counts the words alone.
    """

    num_samples: int = dataclasses.field(default=16, metadata={"help": "Number of completions sampled for a row."})
    min_iou: float = dataclasses.field(default=0.0, metadata={"help": "Least IoU of masks of a right answer."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples < 1:
            raise ValueError(f"num_samples={self.num_samples}: a pass rate needs one try at least, such as 16")


def passes(task: Task, encoded: EncodedSample, completion: Completion, *, min_iou: float) -> bool:
    """Return whether a completion is right, in words and masks."""
    score = score_rollout(completion.text, completion.mask_probs, encoded.gt_masks, encoded.sample, task=task)
    return score.is_right and (score.iou is None or score.iou >= min_iou)


def finish(out: Path, asked: list[dict[str, Any]]) -> None:
    """Write all rows, and log how the rates spread."""
    write_whole(out, to_lines(asked))
    never, always = (sum(r["passes"] == of(r) for r in asked) for of in (lambda r: 0, lambda r: r["tries"]))
    mean = sum(r["passes"] / r["tries"] for r in asked) / max(1, len(asked))
    logger.info("%s: %d rows, pass rate %.3f, %d never pass, %d always", out, len(asked), mean, never, always)


def main(model_args: ModelArguments, data_args: DataArguments, args: PassRateArguments) -> None:
    """Count passes; the launched processes share the rows."""

    def record(task: Task, encoded: EncodedSample, completions: list[Completion], model: str) -> dict[str, Any]:
        sample = encoded.sample
        right = sum(passes(task, encoded, completion, min_iou=args.min_iou) for completion in completions)
        counted = {"passes": right, "tries": len(completions)}
        return {"uid": sample.uid, "row": sample.row, "split": sample.split, **counted, "model": model}

    ask_rows(model_args, data_args, args, Asking(record, finish, {"min_iou": args.min_iou}, name="pass_rates"))


def run() -> None:
    """Read the command line and run the script."""
    main(*RecipeParser((ModelArguments, DataArguments, PassRateArguments), description=__doc__).parse_args_and_config())
    PartialState().destroy_process_group()  # one that is left at exit may abort a run that went well
