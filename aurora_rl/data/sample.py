"""The two forms a benchmark row takes before it reaches the model: paths (`AVSample`), then arrays (`AVClip`)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

#: The category of a reference that points at nothing.
NULL_CATEGORY = "null"


@dataclasses.dataclass(frozen=True)
class AVSample:
    """One row of a benchmark: the paths of its media and its question; it never holds pixels.

    For example the first row of Ref-AVSBench's metadata.csv:
    `AVSample(uid="--KCIeTv6PM_14000_24000_cat_1", row=0, split="val", media_id="--KCIeTv6PM_14000_24000",
    category="cat", reference="The object having white and gray fur.", fps=1.0, ...)`

    Attributes:
        uid: the benchmark's id of the row; not unique across the file, so results are keyed by `uid` and `row`.
        row: 0-based index of the row in the benchmark's table, header not counted.
        split: name of the benchmark's split.
        media_id: folder of the clip's media and key of the embedding caches.
        category: category of the object, `"null"` where the reference points at nothing, "" where it is not known.
        reference: the referring sentence.
        fps: frames a second.
        frame_paths: F image files in time order; one for a still picture, none for a clip that is sound alone, and none
            for a video file.
        audio_path: one audio file; the video file itself where its own track is heard; None for a clip without sound.
        mask_paths: F mask files, "" for a frame that is not annotated; empty for a row without masks, and for a null
            reference that ships none, whose true masks are empty by definition.
        reference_type: kind of reference, where known ("space", "audio order", ...).
        chain: gold completion text (`tasks.prompts.render_chain`), where there is one.
        wrong: wrong chain of thought that a model gave to this row, without `[SEG]`, where there is one; reflective
            training puts it before `chain`.
        seen: true categories in view, where known.
        heard: true categories that sound, in order of onset, where known.
        origin: file and line of the row ("metadata.csv:17"), for errors; empty where it comes from no file.
        use_audio_in_video: whether the sound, if there is one, is interleaved with the frames, chunk by chunk, as in
            pretraining on videos with a soundtrack; otherwise it is an audio part of its own after them.
        choices: options of a multiple-choice question, without their letters; None for other rows.
        answer: true answer of a question that is answered in words, where known; one of `choices`, if there are any.
        video_path: video file whose frames are decoded when the clip is read; None where `frame_paths` hold them.
        frame_times: F times of the video's frames, in seconds after its first picture; empty for other clips.
        reference_media: files that belong to the reference, a recorded sentence, a sound or a picture; empty for words.
        dataset: name of the row's data set in a run on several of them; empty in a run on one.
        sampled_fps: rate in frames a second at which a clip's frames were taken, before evenly spaced ones of them were
            kept, whose rate is `fps`; None where all were kept.
        frame_cache: folder that keeps the video's decoded frames; None to decode them whenever the clip is read.
        extra: further columns of the row as a JSON object, for reward functions; None where there are none.
    """

    uid: str
    row: int
    split: str
    media_id: str
    category: str
    reference: str
    fps: float
    frame_paths: tuple[str, ...]
    audio_path: str | None
    mask_paths: tuple[str, ...] = ()
    reference_type: str | None = None
    chain: str | None = None
    wrong: str | None = None
    seen: tuple[str, ...] | None = None
    heard: tuple[str, ...] | None = None
    origin: str = ""
    use_audio_in_video: bool = False
    choices: tuple[str, ...] | None = None
    answer: str | None = None
    # Resume files of earlier versions hold the repr, and `media_id` and `fps` tell videos apart in it.
    video_path: str | None = dataclasses.field(default=None, repr=False)
    frame_times: tuple[float, ...] = dataclasses.field(default=(), repr=False)
    sampled_fps: float | None = dataclasses.field(default=None, repr=False)
    frame_cache: str | None = dataclasses.field(default=None, repr=False)
    extra: str | None = dataclasses.field(default=None, repr=False)
    reference_media: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    dataset: str = dataclasses.field(default="", repr=False)

    @property
    def num_frames(self) -> int:
        """F, the number of frames; 0 for a clip that is sound alone."""
        return len(self.frame_paths) if self.video_path is None else len(self.frame_times)

    @property
    def media_files(self) -> tuple[str, ...]:
        """The files that hold the pictures: the frames in time order, or the video; empty for a sound alone."""
        return self.frame_paths if self.video_path is None else (self.video_path,)

    @property
    def extra_columns(self) -> dict[str, Any]:
        """Further columns of the row by name, for reward functions."""
        return {} if self.extra is None else json.loads(self.extra)

    @property
    def is_null(self) -> bool:
        """Whether the reference points at nothing, so that the true masks are empty."""
        return self.category == NULL_CATEGORY

    @property
    def has_gt_masks(self) -> bool:
        """Whether the true masks are known: by mask files, or because the reference points at nothing."""
        return any(self.mask_paths) or (self.is_null and self.num_frames > 0)

    @property
    def annotated_frames(self) -> tuple[int, ...] | None:
        """Indices of the frames that have a mask file; None where the truth covers all frames, or is not known."""
        if all(self.mask_paths) or not any(self.mask_paths):
            return None
        return tuple(index for index, path in enumerate(self.mask_paths) if path)

    @property
    def key(self) -> str:
        """The `uid` and `row`, unique across the file; beneath the data set's name in a run on several of them."""
        return f"{self.dataset}/{self.uid}#{self.row}" if self.dataset else f"{self.uid}#{self.row}"

    @property
    def clip_key(self) -> tuple[str, str]:
        """The data set and the `media_id`: rows with the same ones share a clip."""
        return self.dataset, self.media_id

    def to_row(self) -> dict[str, Any]:
        """Return this sample as a flat row of a `datasets.Dataset`."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> AVSample:
        """Make the sample of a dataset row; a field that the row lacks has its default, further columns are ignored."""
        row_values = {field.name: row[field.name] for field in dataclasses.fields(cls) if field.name in row}
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in row_values.items()}
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class AVClip:
    """A sample's media in memory.

    Attributes:
        frames: (F, H, W, 3) uint8, RGB; F is 0 for a clip that is sound alone.
        waveform: (N,) float32 in [-1, 1], mono, 16 kHz; None for a clip without sound.
        gt_masks: (A, H, W) bool, true masks of the annotated frames; None for a row without truth.
        annotated_frames: A indices in [0, F) of the frames that `gt_masks` holds, in order; None for all F.
    """

    frames: np.ndarray
    waveform: np.ndarray | None
    gt_masks: np.ndarray | None
    annotated_frames: tuple[int, ...] | None = None
