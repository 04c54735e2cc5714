"""Disk cache of what a frozen image encoder makes of a clip's frames: one safetensors file a clip.

SAM's image encoder costs far more than its mask decoder and never changes, so each clip is encoded once
(`EmbeddingCache.ensure`) and then read, memory-mapped, by as many processes as there are (`EmbeddingCache.get`).
SAM at 1024 pixels takes 2.1 MB a frame in float16.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from aurora_rl.data.sample import AVSample
from aurora_rl.models.segmenters.base import FrameEncoder

logger = logging.getLogger(__name__)

DTYPES = {"float16": torch.float16, "float32": torch.float32}
SAFETENSORS_DTYPES = {torch.float16: "F16", torch.float32: "F32"}
TENSOR_NAME = "frame_inputs"
SUFFIX = ".safetensors"
#: Common file systems take 255 bytes; the endings, a temporary file's included, need 48 of them.
MAX_NAME_BYTES = 255 - 48
#: Log lines while encoding where there is no terminal to draw a progress bar on.
LOG_LINES = 20


class EmbeddingCacheError(ValueError):
    """A cached file cannot be used, or something cannot be cached."""


class EmbeddingCache:
    """Frame inputs of clips on disk, under one subfolder for each encoder, image size and dtype.

    Args:
        folder: root of the cache.
        encoder: what makes the frame inputs; its weights are loaded only if a clip is missing.
        dtype: in which they are stored and returned: `"float16"`, or `"float32"` for the encoder's very bits.

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

    def path_of(self, media_id: str) -> Path:
        """File of a clip; separators in the id are escaped, so that no id leaves the folder.

        Raises:
            EmbeddingCacheError: if the id is empty or too long for a file name.
        """
        name = urllib.parse.quote(media_id, safe="")
        if not 0 < len(name) <= MAX_NAME_BYTES:
            raise EmbeddingCacheError(
                f"media id {media_id!r} makes no file name of 1 to {MAX_NAME_BYTES} bytes: rename the clip"
            )
        return self.folder / f"{name}{SUFFIX}"

    def get(self, media_id: str, frames_fn: Callable[[], np.ndarray], *, frame_paths: Sequence[str] = ()) -> Tensor:
        """Frame inputs of a clip, read from disk or else encoded and stored.

        Args:
            media_id: the clip's id.
            frames_fn: gives the clip's frames (F, H, W, 3) uint8; called only if they are not cached yet.
            frame_paths: the F files that the frames come from; if given, a cached file made of other files (by
                number, name and size) is refused.

        Returns:
            (F, *encoder.frame_shape) on the CPU in the cache's dtype; writing to it does not reach the disk.

        Raises:
            EmbeddingCacheError: if the cached file belongs to another clip, encoder or set of frames.
        """
        path = self.path_of(media_id)
        if not path.exists():
            return self._store(path, media_id, frames_fn(), frame_paths)
        return self._read(path, media_id, frame_paths)

    def ensure(
        self,
        samples: Iterable[AVSample],
        load_frames: Callable[[AVSample], np.ndarray],
        *,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> int:
        """Encode the clips that are not cached yet, and check the files of those that are.

        Args:
            samples: rows of a benchmark; rows on the same clip count once.
            load_frames: gives a sample's frames (F, H, W, 3) uint8.
            process_index: which share of the clips this process takes.
            num_processes: number of shares; wait for all processes before reading.

        Returns:
            How many clips were encoded by this process.

        Raises:
            EmbeddingCacheError: if a cached file belongs to another clip, encoder or set of frames.
        """
        clips = {sample.media_id: sample for sample in samples}
        share = list(clips.values())[process_index::num_processes]
        missing = []
        for sample in share:
            path = self.path_of(sample.media_id)
            if path.exists():
                self._check(path, sample.media_id, sample.frame_paths)
            else:
                missing.append(sample)
        logger.info("%d of %d clips are cached in %s", len(share) - len(missing), len(share), self.folder)
        for sample in _with_progress(missing):
            self._store(self.path_of(sample.media_id), sample.media_id, load_frames(sample), sample.frame_paths)
        return len(missing)

    def _store(self, path: Path, media_id: str, frames: np.ndarray, frame_paths: Sequence[str]) -> Tensor:
        frame_inputs = self.encoder.encode(frames).to("cpu", self.dtype).contiguous()
        if not torch.isfinite(frame_inputs).all():
            raise EmbeddingCacheError(f"clip {media_id!r} overflows {self.dtype}: cache it with dtype='float32'")
        metadata = {
            "media_id": media_id,
            "fingerprint": self.encoder.fingerprint,
            "frames": _describe_files(frame_paths),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: a reader in another process, or a run after a crash, never sees half a file.
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            save_file({TENSOR_NAME: frame_inputs}, temporary, metadata=metadata)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return frame_inputs

    def _read(self, path: Path, media_id: str, frame_paths: Sequence[str]) -> Tensor:
        self._check(path, media_id, frame_paths)
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(TENSOR_NAME)

    def _check(self, path: Path, media_id: str, frame_paths: Sequence[str]) -> None:
        """Compare a file's header with what is asked for; the embeddings themselves are not read."""
        found = _read_header(path)
        num_frames = len(frame_paths) or found["shape"][0]
        expected = {
            "media_id": media_id,
            "fingerprint": self.encoder.fingerprint,
            "dtype": SAFETENSORS_DTYPES[self.dtype],
            "shape": (num_frames, *self.encoder.frame_shape),
        }
        if frame_paths and found.get("frames"):
            expected["frames"] = _describe_files(frame_paths)
        for name, value in expected.items():
            if found.get(name) != value:
                raise EmbeddingCacheError(
                    f"{path} has {name} {found.get(name)!r}, expected {value!r}: delete it to encode the clip anew"
                )


def _read_header(path: Path) -> dict[str, Any]:
    """What a cached file says of itself: its metadata, and dtype and shape of its tensor."""
    try:
        with safe_open(path, framework="pt") as file:
            tensor = file.get_slice(TENSOR_NAME)
            return {**(file.metadata() or {}), "dtype": tensor.get_dtype(), "shape": tuple(tensor.get_shape())}
    except SafetensorError as error:
        raise EmbeddingCacheError(f"{path} is damaged ({error}): delete it to encode the clip anew") from error


def _describe_files(frame_paths: Sequence[str]) -> str:
    """Hash of the files' names and sizes: tells other or changed frames apart without reading them."""
    if not frame_paths:
        return ""
    lines = [f"{os.path.basename(path)} {os.path.getsize(path)}" for path in frame_paths]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _with_progress(samples: Sequence[AVSample]) -> Iterator[AVSample]:
    """A progress bar on a terminal, a few log lines elsewhere."""
    on_terminal = sys.stderr.isatty()
    every = max(1, len(samples) // LOG_LINES)
    for done, sample in enumerate(tqdm(samples, desc="encoding clips", disable=not on_terminal), start=1):
        yield sample
        if not on_terminal and (done % every == 0 or done == len(samples)):
            logger.info("encoded %d of %d clips", done, len(samples))
