"""The teacher's features are kept in one safetensors file, keyed by uid and row, that belongs to one teacher.

14,113 training rows of Ref-AVSBench take 14 MB. With the file, no second model is in memory while the student trains.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from aurora_rl.data.sample import AVSample
from aurora_rl.files.atomic import write_whole
from aurora_rl.files.fingerprint import fingerprint_values
from aurora_rl.files.plain import check_plain_file, parse_json
from aurora_rl.models.collate import SFTCollator
from aurora_rl.models.teacher import Teacher

logger = logging.getLogger(__name__)

TENSOR_NAME = "features"
#: Rows that all processes together compute before the file is written again; a killed run loses at most these.
ROWS_PER_SAVE = 1024


class TeacherFeaturesError(ValueError):
    """A file of features belongs to another teacher or other rows, or cannot be read."""


class TeacherFeatures:
    """Features of rows, read from a file.

    Args:
        path: the file; it need not exist yet.
        fingerprint: the teacher's fingerprint, from `models.teacher.fingerprint_teacher`.

    Raises:
        TeacherFeaturesError: if the file is damaged or another teacher's.
    """

    def __init__(self, path: str | os.PathLike[str], fingerprint: str) -> None:
        self.path = Path(path)
        self.fingerprint = fingerprint
        self._features: dict[str, torch.Tensor] = {}
        self._digests: dict[str, str] = {}
        if self.path.exists():
            self._read()

    def of(self, samples: Sequence[AVSample]) -> torch.Tensor:
        """Return the features of the samples, (B, C) float32.

        Raises:
            TeacherFeaturesError: if a row is missing, or has changed since its features were stored.
        """
        for sample in samples:
            if sample.key not in self._features:
                raise TeacherFeaturesError(f"{self.path} has no features of row {sample.key}: run `ensure` on it first")
            self._check_row(sample)
        return torch.stack([self._features[sample.key] for sample in samples])

    def missing(self, samples: Sequence[AVSample]) -> list[AVSample]:
        """List the samples that have no features yet.

        Raises:
            TeacherFeaturesError: if a sample has changed since its features were stored.
        """
        known = [sample for sample in samples if sample.key in self._features]
        for sample in known:
            self._check_row(sample)
        return [sample for sample in samples if sample.key not in self._features]

    def ensure(
        self, samples: Sequence[AVSample], make_teacher: Callable[[], Teacher], *, batch_size: int = 8
    ) -> TeacherFeatures:
        """Compute and store the missing features; all launched processes must call this, since they share the work.

        Args:
            samples: all rows that will be asked for.
            make_teacher: function that loads the teacher; called only if a row is missing.
            batch_size: rows per forward pass.
        """
        missing = self.missing(samples)
        if not missing:
            return self
        teacher = make_teacher()
        state = PartialState()
        for start in range(0, len(missing), ROWS_PER_SAVE):
            share = missing[start : start + ROWS_PER_SAVE][state.process_index :: state.num_processes]
            entries = []
            for first in range(0, len(share), batch_size):
                batch = share[first : first + batch_size]
                for sample, features in zip(batch, teacher.features_of(batch), strict=True):
                    entries.append((sample.key, _row_digest(sample), features))
            self._add(gather_object(entries))
            if state.is_main_process:
                self._write()
            logger.info("teacher features: %d of %d rows", len(samples) - len(self.missing(samples)), len(samples))
        state.wait_for_everyone()
        return self

    def _add(self, entries: Sequence[tuple[str, str, torch.Tensor]]) -> None:
        for key, digest, features in entries:
            self._features[key], self._digests[key] = features, digest

    def _check_row(self, sample: AVSample) -> None:
        if self._digests[sample.key] != _row_digest(sample):
            raise TeacherFeaturesError(
                f"row {sample.key} has changed since its features were stored in {self.path}: delete the file"
            )

    def _read(self) -> None:
        try:
            check_plain_file(self.path)
            with safe_open(self.path, framework="pt") as file:
                metadata, features = file.metadata() or {}, file.get_tensor(TENSOR_NAME)
                rows = parse_json(metadata["rows"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise TeacherFeaturesError(f"{self.path} is no file of teacher features ({error}): delete it") from error
        if metadata.get("fingerprint") != self.fingerprint:
            raise TeacherFeaturesError(
                f"{self.path} holds the features of another teacher, {_short(metadata.get('fingerprint'))} and not "
                f"{_short(self.fingerprint)}: delete it, or name another file for this teacher"
            )
        self._check_form(features, rows)
        self._add([(key, digest, row) for (key, digest), row in zip(rows, features, strict=True)])

    def _check_form(self, features: torch.Tensor, rows: Any) -> None:
        if not isinstance(rows, list) or not all(
            isinstance(row, list) and len(row) == 2 and all(isinstance(part, str) for part in row) for row in rows
        ):
            raise TeacherFeaturesError(f"{self.path} does not say to which rows its features belong: delete it")
        if features.ndim != 2 or len(features) != len(rows) or features.dtype != torch.float32:
            raise TeacherFeaturesError(
                f"{self.path} holds features of shape {tuple(features.shape)}, {features.dtype}, for {len(rows)} "
                "rows, expected (rows, width) torch.float32: delete it"
            )
        if not torch.isfinite(features).all():
            raise TeacherFeaturesError(f"{self.path} holds features that are not finite: delete it")

    def _write(self) -> None:
        metadata = {"fingerprint": self.fingerprint, "rows": json.dumps(list(self._digests.items()))}
        tensors = {TENSOR_NAME: torch.stack(list(self._features.values()))}
        write_whole(self.path, save(tensors, metadata))


class FeatureCollator:
    """Adds the stored features of a batch's rows to the batch, as `teacher_features`."""

    def __init__(self, collate: SFTCollator, features: TeacherFeatures) -> None:
        self.collate, self.head = collate, collate.head
        self.features = features

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {**self.collate(rows), "teacher_features": self.features.of([AVSample.from_row(row) for row in rows])}


class LiveTeacherCollator:
    """Adds the inputs of a live teacher to the batch, as `teacher_inputs`."""

    def __init__(self, collate: SFTCollator, teacher: Teacher) -> None:
        self.collate, self.head = collate, collate.head
        self.collate_for_teacher = teacher.collate

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {**self.collate(rows), "teacher_inputs": self.collate_for_teacher(rows)}


def _row_digest(sample: AVSample) -> str:
    """Hash a row's content: its texts, and the names and sizes of its media files."""
    paths = [*sample.media_files, *([sample.audio_path] if sample.audio_path else [])]
    files = [[os.path.basename(path), os.path.getsize(path)] for path in paths]
    parts = [sample.media_id, sample.category, sample.reference, sample.fps, sample.use_audio_in_video, files]
    times = [] if sample.video_path is None else [list(sample.frame_times)]
    return fingerprint_values(parts + times)[:16]


def _short(fingerprint: str | None) -> str:
    return (fingerprint or "unknown")[:12]
