"""Samples of a training: at each evaluation, the model's answers to a few rows go to the trackers and to a folder.

    <output_dir>/samples/step-000200.jsonl   the answers at step 200, masks included, in the format of results.jsonl
    <output_dir>/samples/index.html          frames, truth, masks, sound and chains of these rows over the steps

The recipes add the callback. The main process alone writes; all processes take part in finding the answers
(`trainers/eval_answers.py`). A training does not end because its samples cannot be written: that is a warning.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from aurora_rl.data.containers import MediaError
from aurora_rl.data.media import load_clip
from aurora_rl.data.sample import AVSample
from aurora_rl.evaluation.records import RowResult, read_results, write_results
from aurora_rl.evaluation.scoring import score_answer
from aurora_rl.models.encoding import SampleEncoder
from aurora_rl.report.clips import GalleryClip, contact_sheet, render_clip
from aurora_rl.report.pages import write_page
from aurora_rl.report.trackers import Sheet, send_sheets
from aurora_rl.tasks.base import Task
from aurora_rl.trainers.eval_answers import AnswerSource, EvalAnswer, GeneratedAnswers, RolloutAnswers
from aurora_rl.trainers.grpo import AuroraGRPOTrainer

logger = logging.getLogger(__name__)

FOLDER, PAGE = "samples", "index.html"
_FILE = re.compile(r"step-(\d+)\.jsonl")
#: Largest number of steps that the page shows: the first, the last, and some between them.
MAX_STEPS = 6
_SOURCES = {
    True: "Each answer is the first completion that the evaluation sampled for its row.",
    False: "Each answer is the model's own chain, decoded greedily; the scores of the evaluation force the true one.",
}


def add_samples(trainer: Trainer, encode: SampleEncoder, samples: Sequence[AVSample]) -> None:
    """Let a trainer show its answers to `sample_rows` rows at each evaluation.

    Args:
        trainer: trainer of SFT or GRPO.
        encode: encoder that turns a sample into tensors.
        samples: rows of the evaluation; without any there is nothing to show.
    """
    if chosen := choose_rows(samples, trainer.args.sample_rows):
        is_sampled = isinstance(trainer, AuroraGRPOTrainer)
        source: AnswerSource = (
            RolloutAnswers(trainer, chosen) if is_sampled else GeneratedAnswers(trainer, encode, chosen)
        )
        trainer.add_callback(RunSamples(trainer, source, chosen, encode.task_of, about=_SOURCES[is_sampled]))


def choose_rows(samples: Sequence[AVSample], num_rows: int) -> list[AVSample]:
    """Choose rows of different clips and kinds, always the same ones: the kinds take turns, each with its next clip."""
    kinds: dict[str, list[AVSample]] = {}
    seen: set[tuple[str, str]] = set()
    for sample in samples:
        if sample.clip_key not in seen:
            seen.add(sample.clip_key)
            kind = f"{sample.dataset} {'null' if sample.is_null else sample.reference_type or ''}"
            kinds.setdefault(kind, []).append(sample)
    turns = [rows[turn] for turn in range(num_rows) for rows in kinds.values() if turn < len(rows)]
    return turns[:num_rows]


class RunSamples(TrainerCallback):
    """Writes the answers of a source after each evaluation, and sends them to the trackers.

    Args:
        trainer: the trainer, whose callbacks hold the trackers.
        source: what knows the answers.
        samples: the rows, in the order of the page.
        task_of: function that returns the task that a row is asked.
        about: sentence of the page that says where an answer comes from.
    """

    def __init__(
        self,
        trainer: Trainer,
        source: AnswerSource,
        samples: Sequence[AVSample],
        task_of: Callable[[AVSample], Task],
        *,
        about: str,
    ) -> None:
        self.trainer = trainer
        self.source = source
        self.samples = list(samples)
        self.task_of = task_of
        self.about = about

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the samples of steps that this run does again, or of an earlier run in the folder."""
        if state.is_world_process_zero:
            for step, path in step_files(Path(args.output_dir)):
                if step > state.global_step or state.global_step == 0:
                    path.unlink(missing_ok=True)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Find the answers, in all processes, and write them, in the main one."""
        found = gather_object([self._result(answer) for answer in self.source.take()])
        if not state.is_world_process_zero:
            return
        by_key = {result.key: result for result in reversed(found)}
        results = [by_key[sample.key] for sample in self.samples if sample.key in by_key]
        try:
            write_samples(Path(args.output_dir), self.samples, results, step=state.global_step, about=self.about)
            sheets = list(self._sheets(results))
        except (OSError, MediaError, ValueError) as error:  # the last one: data that have changed since an earlier step
            logger.warning("the samples of step %d are not shown: %s", state.global_step, error)
        else:
            send_sheets(self.trainer.callback_handler.callbacks, sheets, step=state.global_step)

    def _result(self, answer: EvalAnswer) -> RowResult:
        sample = answer.encoded.sample
        return score_answer(
            sample,
            answer.text,
            answer.mask_probs,
            answer.encoded.gt_masks,
            task=self.task_of(sample),
            head_scores=answer.head_scores,
        )

    def _sheets(self, results: Sequence[RowResult]) -> Iterable[Sheet]:
        samples = {sample.key: sample for sample in self.samples}
        for number, result in enumerate(results, start=1):
            clip = load_clip(samples[result.key])
            if (picture := contact_sheet(samples[result.key], clip, result)) is not None:
                sound = None if clip.waveform is None else np.round(clip.waveform.clip(-1, 1) * 32767).astype(np.int16)
                yield Sheet(f"samples/{number}", picture, sound, caption_of(result))


def caption_of(result: RowResult) -> str:
    """Write reference, scores and completion of a row as plain text."""
    completion = result.completion
    scores = [] if completion.iou is None else [f"IoU {completion.iou:.2f}"]
    scores.append("right" if completion.is_right else "wrong")
    return f"{result.reference}\n[{', '.join(scores)}]\n{completion.text}"


def step_files(output_dir: Path) -> list[tuple[int, Path]]:
    """List the files of samples with their steps, the earliest first."""
    folder = output_dir / FOLDER
    files = [(match, path) for path in folder.glob("step-*.jsonl") if (match := _FILE.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in files)


def write_samples(
    output_dir: Path, samples: Sequence[AVSample], results: Sequence[RowResult], *, step: int, about: str
) -> None:
    """Write the answers of a step, and the page of all steps.

    Args:
        output_dir: folder of the run.
        samples: the rows, in the order of the page.
        results: their answers.
        step: optimiser step that the answers belong to.
        about: sentence of the page that says where an answer comes from.

    Raises:
        OSError: if a file cannot be written.
        MediaError: if a row's media cannot be read.
    """
    write_results(output_dir / FOLDER / f"step-{step:06d}.jsonl", results)
    files = step_files(output_dir)
    steps = {step: _rows_of(path) for step, path in _spread(files)}
    write_page(
        output_dir / FOLDER / PAGE,
        "samples.html.j2",
        run=output_dir.resolve().name,
        steps=list(steps),
        num_steps=len(files),
        clips=list(_clips(samples, steps)),
        about=about,
    )


def _rows_of(path: Path) -> dict[str, RowResult]:
    """Read the answers of a step by row; damaged lines are skipped, since the page is no result."""
    return {result.key: result for result in read_results(path, malformed=[])}


def _spread(files: Sequence[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """Choose at most `MAX_STEPS` files, evenly spaced, the first and the last among them."""
    places = np.linspace(0, len(files) - 1, min(len(files), MAX_STEPS)).round().astype(int)
    return [files[place] for place in places]


def _clips(samples: Sequence[AVSample], steps: dict[int, dict[str, RowResult]]) -> Iterable[GalleryClip]:
    for sample in samples:
        answers = {f"step {step}": rows[sample.key] for step, rows in steps.items() if sample.key in rows}
        if answers:
            yield render_clip(sample, answers, reason=sample.split)
