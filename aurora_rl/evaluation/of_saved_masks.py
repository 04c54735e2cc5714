"""Scoring of saved predictions, without a model: `aurora-rl evaluate --predictions` and `--results`.

A row's scores depend only on its own files, so the number of processes and their order change no digit. Each finished
row is written to a resume file at once; a killed run is resumed if preset, data and predictions are the same.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from aurora_rl import __version__
from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.data.containers import MediaError
from aurora_rl.data.media import read_masks
from aurora_rl.data.run_lengths import MaskRle, decode_masks
from aurora_rl.data.sample import AVSample
from aurora_rl.evaluation.coco_masks import CocoClip, CocoFile, Key, read_benchmark
from aurora_rl.evaluation.mask_files import list_predictions
from aurora_rl.evaluation.mask_names import KeyedBy, RowNames, read_objects, some
from aurora_rl.evaluation.predictions import PredictedMasks, Prediction, PredictionError, num_frames_of
from aurora_rl.evaluation.presets import find_preset
from aurora_rl.evaluation.records import MaskScore, RowResult, read_results, write_evaluation
from aurora_rl.evaluation.scoring import annotated_part, score_masks
from aurora_rl.evaluation.tables import mark_novelty, score_tables
from aurora_rl.evaluation.truth import Truth, load_truth
from aurora_rl.files.fingerprint import fingerprint_files, fingerprint_values
from aurora_rl.files.journal import ResumeFile
from aurora_rl.files.output_lock import hold_output
from aurora_rl.metrics import MASK_THRESHOLD

logger = logging.getLogger(__name__)

NUM_SHOWN = 5  # largest number of bad rows in a message

BINARY_MASKS_NOTE = (
    "scored from masks saved at p > 0.5, which have one threshold only: F of a preset with 255 thresholds is that of "
    "one, and masks of another size are resized as 0 and 1"
)
COCO_NOTE = (
    "scored from masks without probabilities, which have one threshold only: F of a preset with 255 thresholds is that "
    "of one, and masks of another size are resized as 0 and 1"
)


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The predictions of a folder, a COCO file or a results file.

    Attributes:
        named: predictions by name: a row's number, a row's id, or a clip.
        source: name of the source in scores.json.
        uids: uid of each row, if the source has it.
        ignored: files among them that are not predictions.
        note: note for readers of the scores; empty if there is none.
        damaged: problems of predictions whose row is unknown.
        objects: rows of the object ids of palettes, by clip.
    """

    named: tuple[tuple[Key, Prediction], ...]
    source: str
    uids: Mapping[int, str] = dataclasses.field(default_factory=dict)
    ignored: Sequence[str] = ()
    note: str = ""
    damaged: Sequence[str] = ()
    objects: Mapping[str, Mapping[int, Sequence[Key]]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SavedMasks:
    """Masks of one row of a results.jsonl."""

    rles: tuple[MaskRle, ...]
    path: str

    @property
    def fingerprint(self) -> str:
        """Hash of the masks."""
        return fingerprint_values(self.rles)[:16]

    def read(self, sample: AVSample) -> PredictedMasks:
        """Return the masks as probabilities 0 and 1."""
        try:
            return PredictedMasks(torch.from_numpy(decode_masks(self.rles)).float())
        except ValueError as error:
            raise PredictionError(f"{self.path}: {error}") from error


def saved_predictions(path: Path) -> Predictions:
    """List the predictions in a folder, or those of a COCO file; raises as `list_predictions` and `read_benchmark`."""
    if path.is_file():
        damaged: list[str] = []
        named = read_benchmark(str(path), damaged)
        return Predictions(tuple(named), source=str(path), note=COCO_NOTE, damaged=damaged)
    found = list_predictions(path)
    has_coco = any(isinstance(prediction, CocoFile | CocoClip) for _, prediction in found.named)
    return Predictions(
        found.named,
        source=str(path),
        ignored=found.ignored,
        note=COCO_NOTE if has_coco else "",
        objects=read_objects(path),
    )


def saved_results(path: Path, *, preset: str) -> Predictions:
    """List the masks in a model's results.jsonl, to score them under another preset.

    Raises:
        ValueError: if the preset's threshold of J is not the one at which they were saved.
    """
    threshold = find_preset(preset).j_threshold
    if threshold != MASK_THRESHOLD:
        raise ValueError(
            f"{path} holds masks of p > {MASK_THRESHOLD}, but preset {preset} takes J at p > {threshold}: masks have "
            "one threshold only; score saved probabilities, or evaluate the model again"
        )
    damaged: list[str] = []
    results = [result for result in read_results(path, malformed=damaged) if not result.is_missing]
    named: list[tuple[Key, Prediction]] = []
    for result in results:
        if result.greedy is None or (result.masks is None and not result.greedy.pred_masks):
            damaged.append(
                f"{path}, row {result.row}: its scores are there, but no masks; give the results of a model that "
                "segments"
            )
        else:
            named.append((result.row, SavedMasks(result.greedy.pred_masks, f"{path}, row {result.row}")))
    uids = {result.row: result.uid for result in results}
    return Predictions(tuple(named), source=str(path), uids=uids, note=BINARY_MASKS_NOTE, damaged=damaged)


def rescore(
    data: DataArguments,
    predictions: Predictions,
    output_dir: Path,
    *,
    splits: Sequence[str] = (),
    preset: str = "refavs",
    num_workers: int = 1,
    keyed_by: KeyedBy = "auto",
) -> dict[str, Any]:
    """Score predictions and write results.jsonl and scores.json.

    Args:
        data: benchmark of the rows; of Ref-AVSBench's layout only metadata.csv and gt_mask/ are read.
        predictions: result of `saved_predictions` or `saved_results`.
        output_dir: folder of the two files.
        splits: splits to score; all whose name begins with "test" if there are none.
        preset: name of a preset, a key of `presets.PRESETS`.
        num_workers: number of processes that share the rows.
        keyed_by: what the predictions' names are, see `mask_names.RowNames`.

    Returns:
        Content of scores.json.

    Raises:
        ValueError: if data or predictions are invalid; all bad rows are found before it is raised, and the scores of
            the others are kept for a retry.
        OutputInUseError: if another run writes to the output.
    """
    find_preset(preset)
    with hold_output(output_dir, is_folder=True):
        truth = load_truth(data, splits)
        return _rescore_alone(truth, predictions, output_dir, preset=preset, num_workers=num_workers, keyed_by=keyed_by)


def _rescore_alone(
    truth: Truth,
    predictions: Predictions,
    output_dir: Path,
    *,
    preset: str,
    num_workers: int,
    keyed_by: KeyedBy,
) -> dict[str, Any]:
    """Do the work of `rescore` while no other run writes to the output."""
    names = RowNames(truth.known, keyed_by=keyed_by, objects=predictions.objects)
    rows = names.rows_of(predictions.named)
    _check_rows(rows, predictions, names, truth)
    _log_skipped_rows(rows, predictions, names, truth)
    identity = {"preset": preset, "version": __version__, "dataset": truth.fingerprint}
    with ResumeFile(output_dir / "results.partial.jsonl", identity) as resume_file:
        scores = _score_all(
            truth.samples, rows, resume_file, damaged=predictions.damaged, preset=preset, num_workers=num_workers
        )
        results = [RowResult.of_sample(sample, scores[sample.key], preset=preset) for sample in truth.samples]
        results = mark_novelty(results, truth.train_categories)
        tables = score_tables(results) | {"source": predictions.source}
        if predictions.note:
            tables["note"] = predictions.note
        write_evaluation(output_dir, results, tables)
        resume_file.remove()
    return tables


def _check_rows(rows: Mapping[int, Prediction], predictions: Predictions, names: RowNames, truth: Truth) -> None:
    """Check that the table has the rows of the predictions, with the same uids."""
    known = {row.row: row.uid for row in truth.known}
    outside = sorted(row for row in rows if row not in known)
    if outside and truth.is_whole:
        raise PredictionError(
            f"{predictions.source} has a prediction of row {outside[0]}, but {truth.table} has the rows 0 to "
            f"{len(known) - 1}: rows are counted from 0 over the whole file"
        )
    if predictions.named and not known.keys() & rows.keys():
        one = truth.known[0]
        raise PredictionError(
            f"{predictions.source} has {len(predictions.named)} prediction(s), but none is of a row of {truth.table}: "
            f"found {some([repr(str(name)) for name, _ in predictions.named])}; expected a row's number, its id or its "
            f"clip, such as {one.row}, {one.uid!r} or {one.clip!r}"
        )
    for row, uid in predictions.uids.items():
        if row in known and known[row] != uid:
            raise PredictionError(
                f"{predictions.source} has row {row} as {uid!r}, {truth.table} as {known[row]!r}: give the "
                "dataset that was evaluated"
            )


def _log_skipped_rows(rows: Mapping[int, Prediction], predictions: Predictions, names: RowNames, truth: Truth) -> None:
    """Log predictions of other splits, files that are not predictions, and rows without a prediction."""
    asked = {sample.row for sample in truth.samples}
    others = rows.keys() - asked
    if others:
        logger.info("left out: predictions of %d row(s) of other splits", len(others))
    if names.unknown:
        logger.warning("left out, as no row or clip of %s has these names: %s", truth.table, some(names.unknown))
    if names.counted:
        logger.warning(
            "palettes of clips with several objects: object 1 is the first that the table asks about, and so on "
            "(%s); objects.json can say otherwise",
            some(sorted(names.counted)),
        )
    if predictions.ignored:
        logger.warning("ignored, no predictions: %s", some(predictions.ignored))
    missing = sorted(asked - rows.keys())
    if missing:
        logger.warning("no prediction, scored as empty masks: %s", some([f"row {row}" for row in missing]))


# ------------------------------------------------------------------------------------------------ one row


@dataclasses.dataclass(frozen=True)
class Job:
    """A row to score.

    Attributes:
        sample: the row with its true masks.
        prediction: predicted masks; None if there are none.
        preset: name of the preset.
        fingerprint: hash that changes if the truth or the prediction changes.
    """

    sample: AVSample
    prediction: Prediction | None
    preset: str
    fingerprint: str


def score_row(job: Job) -> MaskScore:
    """Read and score one row.

    Raises:
        ValueError: if truth or prediction cannot be read, the row has no truth, or their sizes differ; the error names
            the row and the file.
    """
    sample = job.sample
    try:
        masks = None if job.prediction is None else job.prediction.read(sample)
        gt_masks = _read_truth(sample, masks)
        if masks is None:
            return score_masks(None, gt_masks, preset=job.preset)
        num_frames = num_frames_of(sample) or len(gt_masks)
        if len(masks.mask_probs) != num_frames:
            raise PredictionError(
                f"the prediction has {len(masks.mask_probs)} frames, the clip {num_frames}: predict each; for videos, "
                "--fps and --num_frames say which frames those are"
            )
        probs, logits = (annotated_part(part, sample) for part in (masks.mask_probs, masks.mask_logits))
        return score_masks(probs, gt_masks, preset=job.preset, mask_logits=logits)
    except (MediaError, PredictionError) as error:
        raise PredictionError(f"row {sample.row} ({sample.uid}): {error}") from error
    except (MemoryError, RuntimeError, OSError) as error:  # torch's, if memory is short, is a RuntimeError
        reason = str(error) or type(error).__name__
        raise PredictionError(f"row {sample.row} ({sample.uid}) cannot be scored: {reason}") from error


def _read_truth(sample: AVSample, masks: PredictedMasks | None) -> np.ndarray:
    """Read the true masks of the annotated frames, (A, H, W) bool.

    A null reference without masks has empty ones of the prediction's size.
    """
    paths = [path for path in sample.mask_paths if path]
    if paths:
        gt_masks = read_masks(paths)
        if sample.is_null and gt_masks.any():
            raise MediaError(
                f"a null reference, but its masks in {Path(paths[0]).parent} are not empty: empty them, or give the "
                "row the category of the object"
            )
        return gt_masks
    if not sample.is_null:
        raise MediaError("it has no true masks to score against: add them, or leave its split out")
    shape = (1, 1, 1) if masks is None else masks.mask_probs.shape
    return np.zeros((sample.num_frames or shape[0], *shape[1:]), dtype=bool)


# ------------------------------------------------------------------------------------------------ all rows


def _score_all(
    samples: Sequence[AVSample],
    predictions: Mapping[int, Prediction],
    resume_file: ResumeFile,
    *,
    damaged: Sequence[str],
    preset: str,
    num_workers: int,
) -> dict[str, MaskScore]:
    """Score the rows and return their scores by key, together with those in the resume file."""
    jobs = _jobs_of(samples, predictions, preset=preset)
    fingerprints = {job.sample.key: job.fingerprint for job in jobs}
    scores = {
        record["key"]: MaskScore(**{**record["score"], "f_curve": tuple(record["score"]["f_curve"])})
        for record in resume_file.records
        if "key" in record and fingerprints.get(record["key"]) == record["fingerprint"]
    }
    if scores:
        logger.info("%s: resuming after %d finished row(s)", resume_file.path, len(scores))
    problems = [(-1, problem) for problem in damaged]
    left = [job for job in jobs if job.sample.key not in scores]
    for job, outcome in tqdm(_outcomes(left, num_workers), total=len(left), desc=preset, unit="row", disable=None):
        row, key = job.sample.row, job.sample.key
        if isinstance(outcome, ValueError):
            problems.append((row, str(outcome)))
        else:
            scores[key] = outcome
            record = {"key": key, "row": row, "fingerprint": job.fingerprint, "score": dataclasses.asdict(outcome)}
            resume_file.append(record)
    if problems:
        more = [f"... and {len(problems) - NUM_SHOWN} more"] if len(problems) > NUM_SHOWN else []
        shown = [*(problem for _, problem in sorted(problems)[:NUM_SHOWN]), *more]
        raise PredictionError(f"{len(problems)} row(s) cannot be scored: {'; '.join(shown)}")
    return scores


def _jobs_of(samples: Sequence[AVSample], predictions: Mapping[int, Prediction], *, preset: str) -> list[Job]:
    truth: dict[tuple[str, ...], str] = {}  # rows of a clip share their masks
    jobs = []
    for sample in samples:
        if sample.mask_paths not in truth:
            truth[sample.mask_paths] = fingerprint_files((path, os.stat(path)) for path in sample.mask_paths if path)
        prediction = predictions.get(sample.row)
        marks = f"{truth[sample.mask_paths]}-{prediction.fingerprint if prediction else 'missing'}"
        jobs.append(Job(sample, prediction, preset, marks))
    return jobs


Outcome = MaskScore | ValueError


def _outcomes(jobs: Sequence[Job], num_workers: int) -> Iterator[tuple[Job, Outcome]]:
    """Score jobs, in this process or in several, and yield each as soon as it is done."""
    if num_workers == 1 or len(jobs) <= 1:
        for job in jobs:
            yield job, _outcome(job)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads break in a forked process
    pool = concurrent.futures.ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker)
    yield from _drain(pool, iter(jobs), window=8 * num_workers)


def _drain(
    pool: concurrent.futures.ProcessPoolExecutor, jobs: Iterator[Job], *, window: int
) -> Iterator[tuple[Job, Outcome]]:
    """Submit a few jobs at a time to the pool, so that memory does not grow with the number of rows."""
    try:
        running = {pool.submit(_outcome, job): job for job in itertools.islice(jobs, window)}
        while running:
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()
            running |= {pool.submit(_outcome, job): job for job in itertools.islice(jobs, len(done))}
    finally:
        pool.shutdown(cancel_futures=True)


def _outcome(job: Job) -> Outcome:
    try:
        return score_row(job)
    except ValueError as error:
        return error


def _start_worker() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End a worker whose parent was killed; it would wait for jobs for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
