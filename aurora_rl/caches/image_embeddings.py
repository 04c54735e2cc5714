"""The disk cache of a frozen image encoder's output: shards of a few clips each, and an index of the shards.

SAM's image encoder costs far more than its mask decoder and never changes, so each clip is encoded once
(`EmbeddingCache.ensure`) and then read, memory-mapped, by as many processes as there are (`EmbeddingCache.get`).
SAM at 1024 pixels takes 2.1 MB a frame in float16.

    <folder>/<encoder>-<image size>-<fingerprint>-<dtype>/
        <SHA-256>.safetensors    see `embedding_shard`
        index.json               {"shards": {"<SHA-256>.safetensors": {"bytes": 335545000, "clips": {...}}}, ...}

No process waits for another or touches its files: each writes its own shards. The index saves reading the headers and
holds nothing else, so it may be lost or out of date: the headers of shards that it does not list are read.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from aurora_rl.caches.embedding_shard import (
    DTYPE_NAMES,
    EmbeddingCacheError,
    Entry,
    ShardHeader,
    is_whole,
    read_frame_inputs,
    read_header,
    shard_sizes,
    write_shard,
)
from aurora_rl.data.sample import AVSample
from aurora_rl.files.atomic import SUFFIX, write_whole
from aurora_rl.files.fingerprint import fingerprint_names, fingerprint_values
from aurora_rl.files.plain import parse_json, read_text_file
from aurora_rl.models.heads.segmenters.base import FrameEncoder

logger = logging.getLogger(__name__)

DTYPES = {"float16": torch.float16, "float32": torch.float32}
INDEX_FILE = "index.json"
#: Clips of one shard, which a killed run loses; with SAM at 1024 pixels and ten frames they take 0.3 GB.
CLIPS_PER_SHARD = 16
#: Seconds after which an unfinished file counts as left by a killed process.
ABANDONED_AFTER = 24 * 3600
#: Number of log lines while encoding, where there is no terminal for a progress bar.
LOG_LINES = 20
FILL = "run data_prep/cache_features.py"

AnyItem = TypeVar("AnyItem")


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A shard as the index lists it."""

    num_bytes: int
    clips: Mapping[str, Entry]


class EmbeddingCache:
    """Frame inputs of clips on disk, under one subfolder for each encoder, image size and dtype.

    Args:
        folder: root of the cache.
        encoder: the encoder of the frames; its weights are loaded only if a clip is missing.
        dtype: dtype of the stored frame inputs: `"float16"`, or `"float32"` for the encoder's exact output.

    Raises:
        EmbeddingCacheError: if the encoder's output is not worth caching, or the dtype is unknown.
    """

    def __init__(self, folder: str | Path, encoder: FrameEncoder, *, dtype: str = "float16") -> None:
        if not encoder.cacheable:
            raise EmbeddingCacheError(f"the {encoder.kind!r} encoder is cheaper than a disk read: call it directly")
        if dtype not in DTYPES:
            raise EmbeddingCacheError(f"unknown cache dtype {dtype!r}: choose one of {sorted(DTYPES)}")
        self.encoder = encoder
        self.dtype = DTYPES[dtype]
        self.folder = Path(folder) / f"{encoder.kind}-{encoder.image_size}-{encoder.fingerprint[:16]}-{dtype}"
        self._shards: dict[str, _Shard] = {}
        self._shard_of: dict[str, str] = {}  # media id -> file name

    @property
    def media_ids(self) -> frozenset[str]:
        """The cached clips that `refresh`, `ensure` or `get` have found."""
        return frozenset(self._shard_of)

    def get(self, media_id: str, *, frame_paths: Sequence[str] = ()) -> Tensor:
        """Read the frame inputs of a cached clip.

        Args:
            media_id: the clip's id.
            frame_paths: the F files of the frames; if given, embeddings of other files (by number, name and size) are
                refused.

        Returns:
            (F, *encoder.frame_shape) on the CPU in the cache's dtype; writing to it does not change the file.

        Raises:
            EmbeddingCacheError: if the clip is not cached, its shard is damaged, or it was made from other frames.
        """
        if media_id not in self._shard_of:
            self.refresh()  # another process may have written it
        if media_id not in self._shard_of:
            raise EmbeddingCacheError(f"clip {media_id!r} is not in {self.folder}: {FILL} on its split first")
        if frame_paths:
            self._check_frames(media_id, Entry(len(frame_paths), fingerprint_names(frame_paths)))
        return self._read(media_id)

    def ensure(
        self,
        samples: Iterable[AVSample],
        load_frames: Callable[[AVSample], np.ndarray],
        *,
        process_index: int = 0,
        num_processes: int = 1,
        clips_per_shard: int = CLIPS_PER_SHARD,
        ignore_free_space: bool = False,
    ) -> int:
        """Encode the clips that are not cached yet, and check that cached ones were made from the same frames.

        Args:
            samples: rows of a benchmark; rows on the same clip count once.
            load_frames: function that reads a sample's frames (F, H, W, 3) uint8.
            process_index: index of this process's share of the clips.
            num_processes: number of shares; wait for all processes before reading.
            clips_per_shard: clips per file, which a killed process loses at most.
            ignore_free_space: whether to start even if the missing clips take more space than the disk has free.

        Returns:
            The number of clips that this process encoded.

        Raises:
            EmbeddingCacheError: if the missing clips do not fit on the disk, if a shard is damaged or another
                encoder's, or if a cached clip was made from other frames.
        """
        if clips_per_shard < 1:
            raise ValueError(f"clips_per_shard is {clips_per_shard}: expected a positive number")
        clips = _distinct_clips(samples)
        self.refresh()
        share = clips[process_index::num_processes]
        for sample in share:
            if sample.media_id in self._shard_of:
                self._check_frames(sample.media_id, _entry_of(sample))
        self._announce(clips, ignore_free_space=ignore_free_space)
        num_encoded = self._encode(self._missing(share), load_frames, clips_per_shard)
        self._write_index()
        return num_encoded

    def refresh(self) -> None:
        """Look again for shards in the folder.

        Raises:
            EmbeddingCacheError: if one is damaged, or another encoder's.
        """
        known = self._shards or self._read_index()
        self._shards = {
            name: known[name]
            if name in known and known[name].num_bytes == num_bytes
            else _Shard(num_bytes, self._read_clips(self.folder / name))
            for name, num_bytes in shard_sizes(self.folder).items()
        }
        self._shard_of = {media_id: name for name, shard in self._shards.items() for media_id in shard.clips}

    def find_damaged(self, *, process_index: int = 0, num_processes: int = 1) -> list[Path]:
        """Read every byte of this process's share of the shards and return the damaged ones."""
        paths = [self.folder / name for name in shard_sizes(self.folder)]
        share = paths[process_index::num_processes]
        return [path for path in _with_progress(share, "checking", "shards") if not is_whole(path)]

    def _missing(self, clips: Iterable[AVSample]) -> list[AVSample]:
        return [sample for sample in clips if sample.media_id not in self._shard_of]

    def _announce(self, clips: Sequence[AVSample], *, ignore_free_space: bool) -> None:
        """Log what all processes together will encode, and refuse clips that do not fit on the disk."""
        missing = self._missing(clips)
        logger.info("%d of %d clips are cached in %s", len(clips) - len(missing), len(clips), self.folder)
        if not missing:
            return
        frame = torch.Size(self.encoder.frame_shape).numel() * self.dtype.itemsize
        needed = frame * sum(sample.num_frames for sample in missing)
        existing = next(folder for folder in (self.folder, *self.folder.absolute().parents) if folder.is_dir())
        free = shutil.disk_usage(existing).free
        logger.info("%d clips to encode take %s on disk, %s are free", len(missing), _gb(needed), _gb(free))
        if needed > free and not ignore_free_space:
            raise EmbeddingCacheError(
                f"the embeddings of {len(missing)} clips take {_gb(needed)}, but {self.folder} has {_gb(free)} free: "
                f"free some or name another folder; if you know better, {FILL} with --ignore_free_space"
            )

    def _encode(
        self, missing: Sequence[AVSample], load_frames: Callable[[AVSample], np.ndarray], clips_per_shard: int
    ) -> int:
        if not missing:
            return 0
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(f"*{SUFFIX}"):  # unfinished files of killed processes are removed
            try:
                if time.time() - path.stat().st_mtime > ABANDONED_AFTER:
                    path.unlink()
            except FileNotFoundError:  # finished, or removed by another process
                continue
        num_encoded = 0
        shards = [missing[start : start + clips_per_shard] for start in range(0, len(missing), clips_per_shard)]
        for clips in _with_progress(shards, "encoding", f"shards of {clips_per_shard} clips"):
            self.refresh()
            still_missing = self._missing(clips)  # another run may have encoded some by now
            if still_missing:
                self._write(still_missing, load_frames)
                num_encoded += len(still_missing)
        self.refresh()
        return num_encoded

    def _write(self, clips: Sequence[AVSample], load_frames: Callable[[AVSample], np.ndarray]) -> None:
        entries = {sample.media_id: _entry_of(sample) for sample in clips}
        frame_inputs = (self._frame_inputs(sample, load_frames(sample)) for sample in clips)
        write_shard(self.folder, self._header(entries), frame_inputs)

    def _frame_inputs(self, sample: AVSample, frames: np.ndarray) -> Tensor:
        frame_inputs = self.encoder.encode(frames).to("cpu", self.dtype)  # (F, *frame_shape)
        expected = (sample.num_frames, *self.encoder.frame_shape)
        if tuple(frame_inputs.shape) != expected:
            raise EmbeddingCacheError(
                f"sample {sample.key} is encoded as {tuple(frame_inputs.shape)}, expected {expected}: load its frames "
                "unchanged from disk"
            )
        if not torch.isfinite(frame_inputs).all():
            raise EmbeddingCacheError(f"clip {sample.media_id!r} overflows {self.dtype}: use dtype='float32'")
        return frame_inputs

    def _header(self, clips: Mapping[str, Entry]) -> ShardHeader:
        return ShardHeader(
            self.encoder.fingerprint, DTYPE_NAMES[self.dtype], tuple(self.encoder.frame_shape), dict(clips)
        )

    def _read_clips(self, path: Path) -> Mapping[str, Entry]:
        """Read a shard's clips from its header."""
        found = read_header(path)
        expected = self._header(found.clips)
        for name in ("fingerprint", "dtype", "frame_shape"):
            if getattr(found, name) != getattr(expected, name):
                raise EmbeddingCacheError(
                    f"{path} has the {name} {getattr(found, name)!r}, expected {getattr(expected, name)!r}: it does "
                    "not belong here, move it away"
                )
        return found.clips

    def _read(self, media_id: str) -> Tensor:
        """Read and check a clip's frame inputs; the header of a shard from the index has not been checked before."""
        path = self.folder / self._shard_of[media_id]
        frame_inputs = read_frame_inputs(path, media_id)
        expected = (self._shards[path.name].clips[media_id].num_frames, *self.encoder.frame_shape)
        if tuple(frame_inputs.shape) != expected or frame_inputs.dtype != self.dtype:
            raise EmbeddingCacheError(
                f"{path} holds clip {media_id!r} as {frame_inputs.dtype} of shape {tuple(frame_inputs.shape)}, "
                f"expected {self.dtype} of shape {expected}: {FILL} with --drop_damaged to encode its clips again"
            )
        return frame_inputs

    def _check_frames(self, media_id: str, frames: Entry) -> None:
        name = self._shard_of[media_id]
        shard = self._shards[name]
        entry = shard.clips[media_id]
        if entry != frames:
            raise EmbeddingCacheError(
                f"the frames of clip {media_id!r} are not those that its embeddings were made from ({entry.num_frames} "
                f"files, now {frames.num_frames}, or their names or sizes differ): restore them, name another folder, "
                f"or delete {self.folder / name} to encode its {len(shard.clips)} clips again"
            )

    def _read_index(self) -> dict[str, _Shard]:
        """Read the shards that the index lists; none where there is no readable index of this encoder."""
        path = self.folder / INDEX_FILE
        try:
            index = parse_json(read_text_file(path))
            if index["fingerprint"] != self.encoder.fingerprint:
                raise ValueError(f"it belongs to the encoder {index['fingerprint']!r}")
            return {
                name: _Shard(int(shard["bytes"]), {key: Entry(**entry) for key, entry in shard["clips"].items()})
                for name, shard in index["shards"].items()
            }
        except FileNotFoundError:
            return {}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            logger.warning("%s cannot be used (%s): it is rebuilt from the shards", path, error)
            return {}

    def _write_index(self) -> None:
        if self._shards == self._read_index():
            return
        shards = {
            name: {"bytes": shard.num_bytes, "clips": {key: vars(entry) for key, entry in shard.clips.items()}}
            for name, shard in self._shards.items()
        }
        content = json.dumps({"fingerprint": self.encoder.fingerprint, "shards": shards}, indent=1)
        try:
            write_whole(self.folder / INDEX_FILE, content)
        except OSError as error:  # a read-only folder is good enough
            logger.warning("%s; readers will take the index from the shards", error)


def _distinct_clips(samples: Iterable[AVSample]) -> list[AVSample]:
    """Return the first row of each clip, and check that the clip's other rows have the same frames."""
    clips: dict[str, AVSample] = {}
    for sample in samples:
        first = clips.setdefault(sample.media_id, sample)
        if (sample.media_files, sample.frame_times) != (first.media_files, first.frame_times):
            raise EmbeddingCacheError(
                f"samples {first.key} and {sample.key} share the media id {sample.media_id!r} but not their frames "
                f"({first.media_files[0]}, {sample.media_files[0]}): give each clip an id of its own"
            )
    return list(clips.values())


def _entry_of(sample: AVSample) -> Entry:
    """Describe a clip's frames by the names and sizes of their files, or of their video and by their times in it."""
    names = fingerprint_names(sample.media_files)
    if sample.video_path is not None:
        names = fingerprint_values([names, list(sample.frame_times)])
    return Entry(sample.num_frames, names)


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.3g} GB"


def _with_progress(items: Sequence[AnyItem], verb: str, noun: str) -> Iterator[AnyItem]:
    """Yield the items under a progress bar on a terminal, with a few log lines elsewhere."""
    on_terminal = sys.stderr.isatty()
    every = math.ceil(len(items) / LOG_LINES)
    for done, item in enumerate(tqdm(items, desc=f"{verb} {noun}", disable=not on_terminal), start=1):
        yield item
        if not on_terminal and (done % every == 0 or done == len(items)):
            logger.info("%s: %d of %d %s", verb, done, len(items), noun)
