"""What a manifest or a data set of own clips holds, as far as it decides how one trains on it."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.data.clip_sources import is_table
from aurora_rl.data.files import DatasetError
from aurora_rl.data.manifest import find_manifest, read_columns
from aurora_rl.data.media import read_clip_size
from aurora_rl.data.sample import AVSample
from aurora_rl.data.splits import list_splits

#: Names that others give to a manifest's columns, by the name here.
OTHER_NAMES: Mapping[str, Sequence[str]] = {
    "reference": ("caption", "expression", "exp", "sentence", "query", "phrase", "text", "prompt", "description"),
    "video": ("video_path", "clip", "file", "file_name", "filename", "path"),
    "frames": ("frame_paths", "frames_dir", "images"),
    "audio": ("audio_path", "sound", "wav"),
    "masks": ("mask", "mask_path", "masks_path", "mask_paths", "annotation"),
    "category": ("class", "label", "object"),
    "split": ("subset", "partition"),
}
#: Splits that are evaluated on while training, by preference; the best checkpoint is chosen there, so never on a test.
EVAL_SPLITS = ("val", "valid", "validation", "dev", "eval")
#: Frames that a clip of usual length should have; a shorter clip is sampled more densely.
FEWEST_FRAMES, MOST_FRAMES = 4, 10
RATES = (1.0, 2.0, 4.0)  # frames a second


@dataclasses.dataclass(frozen=True)
class OwnClips:
    """The samples of a manifest, and the keys of a recipe that read them.

    Attributes:
        keys: keys of a recipe's YAML file about the data, without `data_root` and the splits.
        splits: samples of each split.
        train_split: split to train on.
        eval_split: split to evaluate on during training; None where there is no other.
        test_splits: splits to score a model on.
    """

    keys: Mapping[str, Any]
    splits: Mapping[str, Sequence[AVSample]]
    train_split: str
    eval_split: str | None
    test_splits: Sequence[str]

    @property
    def samples(self) -> list[AVSample]:
        """All samples, of all splits."""
        return [sample for samples in self.splits.values() for sample in samples]

    @property
    def train(self) -> Sequence[AVSample]:
        """Samples that are trained on: those whose true masks are known."""
        return [sample for sample in self.splits[self.train_split] if sample.has_gt_masks]

    def describe(self) -> list[str]:
        """Describe the data in a few lines."""
        samples = self.samples
        frames = [sample.num_frames for sample in samples]
        sizes = [read_clip_size(sample) for sample in samples]
        counts = {
            "references to nothing": sum(sample.is_null for sample in samples),
            "without sound": sum(sample.audio_path is None for sample in samples),
            "without masks": sum(not sample.has_gt_masks for sample in samples),
            "with a category": sum(bool(sample.category) and not sample.is_null for sample in samples),
            "with a chain of thought": sum(sample.chain is not None for sample in samples),
        }
        width, height = max(sizes, key=lambda size: size[0] * size[1])
        of_splits = ", ".join(f"{split} {len(rows)}" for split, rows in self.splits.items())
        return [
            f"{len(samples)} rows on {len({sample.media_id for sample in samples})} clips ({of_splits}): "
            f"{min(frames)} to {max(frames)} frames, the largest {width} x {height}",
            ", ".join(f"{what}: {number}" for what, number in counts.items()),
        ]


def read_own_clips(data: str, columns: Mapping[str, str] | None = None) -> OwnClips:
    """Read own clips with all files that their rows name.

    Args:
        data: path of the manifest or of its folder, or a data set of `datasets` as `data_root` names it.
        columns: the manifest's own name of a column by the name here; those left out are guessed.

    Raises:
        DatasetError: naming the row, if the manifest or a file cannot be used; or if no row can be trained on.
    """
    columns = {**guess_columns(_columns_of(data), columns or {}), **(columns or {})}
    names = list_splits("clips", data, columns)
    keys: dict[str, Any] = {"benchmark": "clips", **({"columns": columns} if columns else {})}
    rate = RATES[0]
    splits = _load(data, keys, names, fps=rate)
    frames = statistics.median(sample.num_frames for samples in splits.values() for sample in samples)
    if frames < FEWEST_FRAMES:
        denser = next((rate for rate in RATES if frames * rate >= FEWEST_FRAMES), RATES[-1])
        with contextlib.suppress(DatasetError):  # a list of masks may be of the frames of the first rate
            rate, splits = denser, _load(data, keys, names, fps=denser)
    keys |= {"fps": rate, "num_frames": MOST_FRAMES}
    if not all(sample.has_gt_masks for samples in splits.values() for sample in samples):
        keys["skip_unlabelled"] = True
    train = (
        "train"
        if "train" in names
        else next((n for n in names if n not in EVAL_SPLITS and not n.startswith("test")), names[0])
    )
    others = [name for name in names if name != train]
    eval_split = next((name for name in EVAL_SPLITS if name in others), None)
    tests = [name for name in others if name.startswith("test")] or [eval_split or train]
    clips = OwnClips(keys, splits, train, eval_split, tests)
    if not clips.train:
        raise DatasetError(
            f"no row of the split {train!r} has masks, so there is nothing to train on: add the column `masks`, or "
            "predict masks by `aurora-rl segment`"
        )
    return clips


def can_be_read(data: str, clips: OwnClips, *, fps: float, num_frames: int) -> bool:
    """Tell whether the clips can be read with another sampling; a list of masks may be of the frames of one alone."""
    keys = {name: value for name, value in clips.keys.items() if name not in ("fps", "num_frames")}
    args = DataArguments(data, fps=fps, num_frames=num_frames, **keys)
    try:
        return all(load_split(args, name) for name in clips.splits)
    except DatasetError:
        return False


def guess_columns(there: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """Guess which of a manifest's columns are meant by the names here that it lacks.

    >>> guess_columns(["video", "caption", "mask"], {})
    {'reference': 'caption', 'masks': 'mask'}
    """
    free = [name for name in there if name not in given.values()]
    missing = [name for name in OTHER_NAMES if name not in there and name not in given]
    found = {name: next((other for other in OTHER_NAMES[name] if other in free), None) for name in missing}
    if "frames" in there or found.get("frames"):
        found.pop("video", None)
    return {name: other for name, other in found.items() if other is not None}


def _columns_of(data: str) -> list[str]:
    if not is_table(data):
        return read_columns(find_manifest(data))
    from aurora_rl.data.clip_tables import read_table_columns  # takes seconds, and manifests do not need it

    return read_table_columns(data)


def _load(data: str, keys: Mapping[str, Any], names: Sequence[str], *, fps: float) -> dict[str, list[AVSample]]:
    args = DataArguments(data, fps=fps, num_frames=MOST_FRAMES, **keys)
    return {name: load_split(args, name) for name in names}
