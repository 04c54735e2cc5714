"""Frame embeddings for a mask decoder: computed by SAM's image encoder in every step, or read from the disk cache."""

from __future__ import annotations

import tempfile

import numpy as np
import torch
from PIL import Image
from transformers import SamConfig, SamModel

from aurora_rl.caches.image_embeddings import EmbeddingCache
from aurora_rl.data.sample import AVSample
from aurora_rl.models.heads.segmenters.sam import SamFrameEncoder, SamSegmenter
from benchmarks.timing import Seconds, now


def measure_embeddings(vision_config: dict, *, num_frames: int, repeats: int) -> tuple[list[Seconds], list[Seconds]]:
    """Measure how long the frames of one clip take, encoded by random weights and read from the cache.

    Args:
        vision_config: values that differ from `SamVisionConfig`'s defaults, which are those of ViT-B, the smallest SAM.
        num_frames: F, number of frames.
        repeats: number of repeats.

    Returns:
        Seconds of encoding and of reading, one value a repeat.
    """
    torch.manual_seed(0)
    size = vision_config.get("image_size", 1024)
    frames = np.random.default_rng(0).integers(0, 256, (num_frames, size, size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        SamModel(SamConfig(vision_config=vision_config)).save_pretrained(f"{folder}/sam")
        segmenter = SamSegmenter.from_checkpoint(f"{folder}/sam")
        encoder = SamFrameEncoder(segmenter.config)
        cache = EmbeddingCache(f"{folder}/cache", encoder)
        cache.ensure([_sample(frames, folder)], lambda _: frames)  # loads the encoder, fills the cache
        encoded, read = [], []
        for _ in range(repeats):
            start = now()
            encoder.encode(frames)
            middle = now()
            cache.get("clip").sum()  # memory-mapped: the sum reads it
            encoded.append(middle - start)
            read.append(now() - middle)
    return encoded, read


def _sample(frames: np.ndarray, folder: str) -> AVSample:
    """Write frames (F, H, W, 3) as files, which the cache needs, and return their sample."""
    paths = tuple(f"{folder}/{index}.png" for index in range(len(frames)))
    for frame, path in zip(frames, paths, strict=True):
        Image.fromarray(frame).save(path)
    return AVSample(
        uid="clip_noise_1",
        row=0,
        split="",
        media_id="clip",
        category="noise",
        reference="",
        fps=1.0,
        frame_paths=paths,
        audio_path=None,
        mask_paths=(),
    )
