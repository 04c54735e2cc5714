"""A shard is one file of the embedding cache: frame inputs of some clips, named by the hash of its bytes.

A shard gets its name when it is complete, and two processes that write at once use the same name only for the same
bytes. The name alone shows later whether a byte has changed. The header alone shows which clips are in the shard and
from which frames they were made, so an index of shards can always be rebuilt.

    <SHA-256>.safetensors
        __metadata__   {"embeddings": '{"fingerprint": "5e1f...", "frames": {"--KCIeTv6PM_14000_24000": "9ab4..."}}'}
        --KCIeTv6PM_14000_24000   F16 (10, 256, 64, 64)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from aurora_rl.files.atomic import give_names, nameless_file
from aurora_rl.files.fingerprint import fingerprint_content
from aurora_rl.files.plain import NotPlainFileError, check_plain_file, parse_json

SUFFIX = ".safetensors"
SHARD_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")
DTYPE_NAMES = {torch.float16: "F16", torch.float32: "F32"}  # safetensors' names
METADATA = "__metadata__"  # safetensors' name for the free text of a header
METADATA_KEY = "embeddings"
HEADER_ALIGNMENT = 8  # bytes, as safetensors writes it


class EmbeddingCacheError(ValueError):
    """Cached embeddings cannot be used, or something cannot be cached."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A clip in a shard, without its frame inputs.

    Attributes:
        num_frames: number of frames, F.
        frames: hash of the frames' file names and sizes.
    """

    num_frames: int
    frames: str


@dataclasses.dataclass(frozen=True)
class ShardHeader:
    """The contents of a shard, without the frame inputs.

    Attributes:
        fingerprint: fingerprint of the encoder that made it.
        dtype: safetensors' name for the dtype of the frame inputs.
        frame_shape: shape of one frame's input.
        clips: its clips by media id.
    """

    fingerprint: str
    dtype: str
    frame_shape: tuple[int, ...]
    clips: Mapping[str, Entry]


def write_shard(folder: Path, header: ShardHeader, frame_inputs: Iterable[Tensor]) -> Path:
    """Write a shard clip by clip, so that memory holds one clip only.

    Args:
        folder: folder of the new file.
        header: contents of the new file.
        frame_inputs: (F, *frame_shape) of each clip of the header, in its order and dtype, on the CPU.

    Returns:
        The file.

    Raises:
        EmbeddingCacheError: if a clip is named like safetensors' own metadata.
    """
    if METADATA in header.clips:
        raise EmbeddingCacheError(f"a clip is named {METADATA!r}, which safetensors keeps for itself: rename the clip")
    digest = hashlib.sha256()
    with nameless_file(folder) as file:
        for block in _blocks(header, frame_inputs):
            digest.update(block)
            file.write(block)
        path = folder / f"{digest.hexdigest()}{SUFFIX}"
        give_names({path: file})
    return path


def read_header(path: Path) -> ShardHeader:
    """Read the contents of a shard without its frame inputs.

    Raises:
        EmbeddingCacheError: if the file is no shard, or cut off.
    """
    try:
        check_plain_file(path)
        with safe_open(path, framework="pt") as file:
            metadata = parse_json((file.metadata() or {})[METADATA_KEY])
            slices = {media_id: file.get_slice(media_id) for media_id in file.keys()}  # noqa: SIM118 - no mapping
            shapes = {media_id: tuple(part.get_shape()) for media_id, part in slices.items()}
            dtypes = {part.get_dtype() for part in slices.values()}
        [frame_shape], [dtype] = {shape[1:] for shape in shapes.values()}, dtypes
        clips = {media_id: Entry(shape[0], str(metadata["frames"][media_id])) for media_id, shape in shapes.items()}
        return ShardHeader(str(metadata["fingerprint"]), dtype, frame_shape, clips)
    except FileNotFoundError as error:
        raise _gone(path) from error
    except (SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def read_frame_inputs(path: Path, media_id: str) -> Tensor:
    """Read a clip's frame inputs (F, *frame_shape), memory-mapped: writing to them does not change the file.

    The file is opened at each call and closed with its last tensor, so that a process with many shards keeps no file
    open, and a forked worker shares nothing with its parent.

    Raises:
        EmbeddingCacheError: if the file is gone, is no shard, or does not hold the clip.
    """
    try:
        check_plain_file(path)
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(media_id)
    except FileNotFoundError as error:
        raise _gone(path) from error
    except (SafetensorError, NotPlainFileError) as error:
        raise _damaged(path, error) from error


def is_whole(path: Path) -> bool:
    """Read all bytes of a shard and tell whether their hash is its name."""
    return path.is_file() and fingerprint_content(path) == path.stem


def shard_sizes(folder: Path) -> dict[str, int]:
    """List the size in bytes of each shard of a folder, by file name in order; empty where there is no folder."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return dict(sorted((entry.name, entry.stat().st_size) for entry in entries if SHARD_NAME.fullmatch(entry.name)))


def _blocks(header: ShardHeader, frame_inputs: Iterable[Tensor]) -> Iterator[bytes | memoryview]:
    """Yield the file's bytes: length of the header, header, then each clip."""
    frames = {media_id: entry.frames for media_id, entry in header.clips.items()}
    metadata = json.dumps({"fingerprint": header.fingerprint, "frames": frames})
    content: dict[str, dict] = {METADATA: {METADATA_KEY: metadata}}
    itemsize = next(dtype.itemsize for dtype, name in DTYPE_NAMES.items() if name == header.dtype)
    start = 0
    for media_id, entry in header.clips.items():
        shape = (entry.num_frames, *header.frame_shape)
        end = start + torch.Size(shape).numel() * itemsize
        content[media_id] = {"dtype": header.dtype, "shape": shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    yield len(text).to_bytes(8, "little") + text
    for tensor in frame_inputs:
        yield tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _gone(path: Path) -> EmbeddingCacheError:
    return EmbeddingCacheError(f"{path} no longer exists: run data_prep/cache_features.py to encode its clips again")


def _damaged(path: Path, error: Exception) -> EmbeddingCacheError:
    return EmbeddingCacheError(
        f"{path} is damaged ({error}): run data_prep/cache_features.py with --drop_damaged to encode its clips again"
    )
