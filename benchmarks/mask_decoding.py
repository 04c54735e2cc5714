"""Mask decoding at SAM's real shape, 64 x 64 x 256, random weights: one frame for all completions, or one by one.

The loop runs transformers' own `SamMaskDecoder` once for each completion. Both record gradients and save memory in the
same way: at most four masks a chunk, whose activations are recomputed in the backward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from aurora_rl.models.heads.segmenters.sam import SamSegmenter
from benchmarks.memory import peak_memory
from benchmarks.timing import Seconds, now

#: Number of masks in a chunk, the same on every machine, so that results can be compared.
MASKS_PER_CHUNK = 4

Decode = Callable[[SamSegmenter, Tensor, Tensor], Tensor]


def decode_together(segmenter: SamSegmenter, frames: Tensor, prompts: Tensor) -> Tensor:
    """Decode all completions in one call, as the trainers do: (F, ...), (F, G, C) -> (F, G, h, w)."""
    return segmenter(frames, prompts)


def decode_in_loop(segmenter: SamSegmenter, frames: Tensor, prompts: Tensor) -> Tensor:
    """Decode one completion after the other by our decoder."""
    return torch.cat([segmenter(frames, prompt) for prompt in prompts.split(1, dim=1)], dim=1)


def decode_in_stock_loop(segmenter: SamSegmenter, frames: Tensor, prompts: Tensor) -> Tensor:
    """Decode one completion after the other by transformers' decoder."""

    def decode(frame_chunk: Tensor, prompt_chunk: Tensor) -> Tensor:
        mask_logits, _ = segmenter.mask_decoder(
            image_embeddings=frame_chunk,
            image_positional_embeddings=segmenter.image_positional_embeddings.expand(len(frame_chunk), -1, -1, -1),
            sparse_prompt_embeddings=prompt_chunk[:, :, None],
            dense_prompt_embeddings=segmenter.no_mask_embed,
            multimask_output=False,
        )
        return mask_logits[:, :, 0]

    size = MASKS_PER_CHUNK
    masks = [
        checkpoint(decode, frame_chunk, prompt_chunk, use_reentrant=False)
        for prompt in prompts.split(1, dim=1)
        for frame_chunk, prompt_chunk in zip(frames.split(size), prompt.split(size), strict=True)
    ]
    return torch.cat(masks).view(prompts.size(1), len(frames), *masks[0].shape[-2:]).transpose(0, 1)


TOGETHER, LOOP = "all together", "one by one, transformers' decoder"
WAYS: dict[str, Decode] = {
    TOGETHER: decode_together,
    LOOP: decode_in_stock_loop,
    "one by one, our decoder": decode_in_loop,
}


@dataclasses.dataclass
class Decoding:
    """Time and memory of one way of decoding.

    Attributes:
        seconds: seconds of each repeat, forward and backward.
        peak_gb: highest memory of all repeats in GB, without weights and inputs.
    """

    seconds: list[Seconds] = dataclasses.field(default_factory=list)
    peak_gb: float = 0.0

    def median(self, clock: str) -> float:
        """Return the median seconds."""
        return median(span.on(clock) for span in self.seconds)


def measure_decoding(
    *, num_generations: int = 8, num_frames: int = 10, image_size: int = 1024, repeats: int = 5
) -> dict[str, Decoding]:
    """Decode G completions on F frames in each of `WAYS` in turn."""
    torch.manual_seed(0)
    segmenter = SamSegmenter({"type": "sam", "image_size": image_size})
    segmenter.max_masks_per_chunk = MASKS_PER_CHUNK
    frames = torch.randn(num_frames, *segmenter.frame_shape)
    prompts = torch.randn(num_frames, num_generations, segmenter.prompt_dim)
    decoding = {name: Decoding() for name in WAYS}
    for _ in range(repeats):
        for name, decode in WAYS.items():
            with peak_memory() as peak:
                segmenter.zero_grad()
                leaf = prompts.clone().requires_grad_()
                start = now()
                decode(segmenter, frames, leaf).sigmoid().mean().backward()
                decoding[name].seconds.append(now() - start)
            decoding[name].peak_gb = max(decoding[name].peak_gb, peak.gigabytes)
    return decoding
