"""A benchmark's way to the end: a step of training on it, and a score of the model that leaves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aurora_rl.assembly.arguments import DataArguments, ModelArguments, TargetArguments
from aurora_rl.evaluation.of_model import EvaluationArguments, evaluate_model
from aurora_rl.evaluation.records import RowResult, read_results
from aurora_rl.scripts import sft
from aurora_rl.trainers.sft_config import AuroraSFTConfig


@pytest.fixture
def train_and_score(tiny_checkpoint: str, tmp_path: Path) -> Callable[..., list[RowResult]]:
    """Train one step of SFT on a benchmark's answers and score its split `split` under the preset of AVSBench."""

    def run(split: str, **data: Any) -> list[RowResult]:
        data_args = DataArguments(min_pixels=256, max_pixels=65536, instruction="{reference}", **data)
        out, scores = tmp_path / "trained", tmp_path / "scored"
        args = AuroraSFTConfig(
            str(out),
            max_steps=1,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        )
        sft.main(ModelArguments(model=tiny_checkpoint), data_args, TargetArguments(target="answer"), args)
        evaluate_model(
            ModelArguments(model=str(out)),
            data_args,
            EvaluationArguments(
                str(scores), split=[split], preset="avsbench", max_completion_length=4, append_seg=True, use_cpu=True
            ),
        )
        return read_results(scores / "results.jsonl")

    return run
