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
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from aurora_rl import __version__
from aurora_rl.data.containers import MediaError
from aurora_rl.data.media import read_masks
from aurora_rl.data.ref_avs import METADATA_FILE, MetadataRow, load_ref_avs_truth, read_metadata
from aurora_rl.data.run_lengths import MaskRle, decode_masks
from aurora_rl.data.sample import AVSample
from aurora_rl.evaluation.mask_files import PredictedMasks, PredictionError, list_predictions
from aurora_rl.evaluation.presets import find_preset
from aurora_rl.evaluation.records import MaskScore, RowResult, read_results, write_evaluation
from aurora_rl.evaluation.scoring import annotated_part, score_masks
from aurora_rl.evaluation.tables import mark_novelty, score_tables
from aurora_rl.files.fingerprint import fingerprint_content, fingerprint_files, fingerprint_values
from aurora_rl.files.journal import ResumeFile
from aurora_rl.files.output_lock import hold_output
from aurora_rl.metrics import MASK_THRESHOLD
from aurora_rl.tasks.reference_segmentation import chain_file

logger = logging.getLogger(__name__)

NUM_SHOWN = 5  # largest number of rows or files in a message

BINARY_MASKS_NOTE = (
    "scored from masks saved at p > 0.5, which have one threshold only: F of a preset with 255 thresholds is that of "
    "one, and masks of another size are resized as 0 and 1"
)


class Prediction(Protocol):
    """One row's saved masks: a `PredictionFile`, or run lengths from a model's results."""

    @property
    def fingerprint(self) -> str:
        """Hash that changes if the masks change."""

    def read(self) -> PredictedMasks:
        """Read the masks; a ValueError that names their file if they cannot be read."""


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The predictions of a folder or a results file.

    Attributes:
        rows: predictions by row.
        source: name of the source in scores.json.
        uids: uid of each row, if the source has it.
        ignored: files among them that are not predictions.
        note: note for readers of the scores; empty if there is none.
        damaged: problems of predictions whose row is unknown.
    """

    rows: Mapping[int, Prediction]
    source: str
    uids: Mapping[int, str] = dataclasses.field(default_factory=dict)
    ignored: Sequence[str] = ()
    note: str = ""
    damaged: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class SavedMasks:
    """Masks of one row of a results.jsonl."""

    rles: tuple[MaskRle, ...]
    origin: str

    @property
    def fingerprint(self) -> str:
        """Hash of the masks."""
        return fingerprint_values(self.rles)[:16]

    def read(self) -> PredictedMasks:
        """Return the masks as probabilities 0 and 1."""
        try:
            return PredictedMasks(torch.from_numpy(decode_masks(self.rles)).float())
        except ValueError as error:
            raise PredictionError(f"{self.origin}: {error}") from error


def saved_predictions(folder: Path) -> Predictions:
    """List the predictions in a folder of npz or PNG files; raises as `list_predictions`."""
    found = list_predictions(folder)
    return Predictions(found.rows, source=str(folder), ignored=found.ignored)


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
    rows = {}
    for result in results:
        if result.greedy is None or (result.masks is None and not result.greedy.pred_masks):
            damaged.append(
                f"{path}, row {result.row}: its scores are there, but no masks; give the results of a model that "
                "segments"
            )
        else:
            rows[result.row] = SavedMasks(result.greedy.pred_masks, f"{path}, row {result.row}")
    uids = {result.row: result.uid for result in results}
    return Predictions(rows, source=str(path), uids=uids, note=BINARY_MASKS_NOTE, damaged=damaged)


def rescore(
    dataset: Path,
    predictions: Predictions,
    output_dir: Path,
    *,
    splits: Sequence[str],
    preset: str = "refavs",
    num_workers: int = 1,
    chains: Path | None = None,
) -> dict[str, Any]:
    """Score predictions and write results.jsonl and scores.json.

    Args:
        dataset: folder with metadata.csv and gt_mask/, in Ref-AVSBench's layout.
        predictions: result of `saved_predictions` or `saved_results`.
        output_dir: folder of the two files.
        splits: splits to score.
        preset: name of a preset, a key of `presets.PRESETS`.
        num_workers: number of processes that share the rows.
        chains: file of chains of thought that may hold reference types.

    Returns:
        Content of scores.json.

    Raises:
        ValueError: if data or predictions are invalid; all bad rows are found before it is raised, and the scores of
            the others are kept for a retry.
        OutputInUseError: if another run writes to the output.
    """
    find_preset(preset)
    with hold_output(output_dir, is_folder=True):
        return _rescore_alone(
            dataset, predictions, output_dir, splits=splits, preset=preset, num_workers=num_workers, chains=chains
        )


def _rescore_alone(
    dataset: Path,
    predictions: Predictions,
    output_dir: Path,
    *,
    splits: Sequence[str],
    preset: str,
    num_workers: int,
    chains: Path | None,
) -> dict[str, Any]:
    """Do the work of `rescore` while no other run writes to the output."""
    table = read_metadata(dataset / METADATA_FILE)
    samples = load_ref_avs_truth(
        dataset, list(dict.fromkeys(splits)), chains=None if chains is None else chain_file(chains)
    )
    _check_rows(predictions, table)
    _log_skipped_rows(predictions, samples)
    identity = {
        "preset": preset,
        "version": __version__,
        "dataset": fingerprint_content(dataset / METADATA_FILE),
    }
    with ResumeFile(output_dir / "results.partial.jsonl", identity) as resume_file:
        scores = _score_all(samples, predictions, resume_file, preset=preset, num_workers=num_workers)
        rows = [RowResult.of_sample(sample, scores[sample.row], preset=preset) for sample in samples]
        rows = mark_novelty(rows, {row.category for row in table if row.split == "train" and not row.is_null})
        tables = score_tables(rows) | {"source": predictions.source}
        if predictions.note:
            tables["note"] = predictions.note
        write_evaluation(output_dir, rows, tables)
        resume_file.remove()
    return tables


def _check_rows(predictions: Predictions, table: Sequence[MetadataRow]) -> None:
    """Check that the table has the rows of the predictions, with the same uids."""
    outside = sorted(row for row in predictions.rows if row >= len(table))
    if outside:
        raise PredictionError(
            f"{predictions.source} has a prediction of row {outside[0]}, but {METADATA_FILE} has the rows 0 to "
            f"{len(table) - 1}: rows are counted from 0 over the whole file"
        )
    for row, uid in predictions.uids.items():
        if table[row].uid != uid:
            raise PredictionError(
                f"{predictions.source} has row {row} as {uid!r}, {METADATA_FILE} as {table[row].uid!r}: give the "
                "dataset that was evaluated"
            )


def _log_skipped_rows(predictions: Predictions, samples: Sequence[AVSample]) -> None:
    """Log predictions of other splits, files that are not predictions, and rows without a prediction."""
    asked = {sample.row for sample in samples}
    others = predictions.rows.keys() - asked
    if others:
        logger.info("left out: predictions of %d row(s) of other splits", len(others))
    if predictions.ignored:
        logger.warning("ignored, no predictions: %s", _some(predictions.ignored))
    missing = sorted(asked - predictions.rows.keys())
    if missing:
        logger.warning("no prediction, scored as empty masks: %s", _some([f"row {row}" for row in missing]))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return f"{', '.join(names[:NUM_SHOWN])}{more}"


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
        masks = None if job.prediction is None else job.prediction.read()
        gt_masks = _read_truth(sample, masks)
        if masks is None:
            return score_masks(None, gt_masks, preset=job.preset)
        num_frames = len(sample.mask_paths) or len(gt_masks)
        if len(masks.mask_probs) != num_frames:
            raise PredictionError(
                f"the prediction has {len(masks.mask_probs)} frames, the clip {num_frames}: predict each"
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
    samples: Sequence[AVSample], predictions: Predictions, resume_file: ResumeFile, *, preset: str, num_workers: int
) -> dict[int, MaskScore]:
    """Score the rows and return them, together with those in the resume file."""
    truth: dict[tuple[str, ...], str] = {}  # rows of a clip share their masks
    jobs = []
    for sample in samples:
        if sample.mask_paths not in truth:
            truth[sample.mask_paths] = fingerprint_files((path, os.stat(path)) for path in sample.mask_paths if path)
        prediction = predictions.rows.get(sample.row)
        marks = f"{truth[sample.mask_paths]}-{prediction.fingerprint if prediction else 'missing'}"
        jobs.append(Job(sample, prediction, preset, marks))
    fingerprints = {job.sample.row: job.fingerprint for job in jobs}
    scores = {
        record["row"]: MaskScore(**{**record["score"], "f_curve": tuple(record["score"]["f_curve"])})
        for record in resume_file.records
        if fingerprints.get(record["row"]) == record["fingerprint"]
    }
    if scores:
        logger.info("%s: resuming after %d finished row(s)", resume_file.path, len(scores))
    problems: dict[int, str] = dict(enumerate(predictions.damaged, start=-len(predictions.damaged)))
    left = [job for job in jobs if job.sample.row not in scores]
    for job, outcome in tqdm(_outcomes(left, num_workers), total=len(left), desc=preset, unit="row", disable=None):
        row = job.sample.row
        if isinstance(outcome, ValueError):
            problems[row] = str(outcome)
        else:
            scores[row] = outcome
            resume_file.append({"row": row, "fingerprint": job.fingerprint, "score": dataclasses.asdict(outcome)})
    if problems:
        shown = [problems[row] for row in sorted(problems)[:NUM_SHOWN]]
        more = [f"... and {len(problems) - NUM_SHOWN} more"] if len(problems) > NUM_SHOWN else []
        raise PredictionError("; ".join([f"{len(problems)} row(s) cannot be scored: {shown[0]}", *shown[1:], *more]))
    return scores


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
