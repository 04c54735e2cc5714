"""Mask decoding at SAM's real shape, 64 x 64 x 256, random weights: one frame for all completions, or one by one.

The loop runs transformers' own `SamMaskDecoder` once for each completion. Both record gradients and may save memory in
the same way: at most eight masks a chunk, whose activations are computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from aurora_rl.models.segmenters.sam import SamSegmenter
from benchmarks.memory import peak_memory
from benchmarks.timing import Seconds, now

#: Of a SAM, at 1024 pixels; a tenth of it for tests.
REAL_SIZE, TOY_SIZE = 1024, 128

Decode = Callable[[SamSegmenter, Tensor, Tensor], Tensor]


def decode_together(segmenter: SamSegmenter, frames: Tensor, prompts: Tensor) -> Tensor:
    """All completions in one call, which is how the trainers do it: (F, ...), (F, G, C) -> (F, G, h, w)."""
    return segmenter(frames, prompts)


def decode_in_loop(segmenter: SamSegmenter, frames: Tensor, prompts: Tensor) -> Tensor:
    """Our decoder, one completion after the other."""
    return torch.cat([segmenter(frames, prompt) for prompt in prompts.split(1, dim=1)], dim=1)


def decode_in_stock_loop(segmenter: SamSegmenter, frames: Tensor, prompts: Tensor) -> Tensor:
    """transformers' decoder, one completion after the other."""

    def decode(frame_chunk: Tensor, prompt_chunk: Tensor) -> Tensor:
        mask_logits, _ = segmenter.mask_decoder(
            image_embeddings=frame_chunk,
            image_positional_embeddings=segmenter.image_positional_embeddings.expand(len(frame_chunk), -1, -1, -1),
            sparse_prompt_embeddings=prompt_chunk[:, :, None],
            dense_prompt_embeddings=segmenter.no_mask_embed,
            multimask_output=False,
        )
        return mask_logits[:, :, 0]

    size = segmenter.max_masks_per_chunk
    masks = [
        torch.cat([checkpoint(decode, f, p, use_reentrant=False) for f, p in zip(frames.split(size), prompt.split(size))])
        for prompt in prompts.split(1, dim=1)
    ]
    return torch.cat(masks, dim=1)


WAYS: dict[str, Decode] = {
    "together": decode_together,
    "loop over completions, transformers' decoder": decode_in_stock_loop,
    "loop over completions, our decoder": decode_in_loop,
}


def measure_decoding(
    *, num_generations: int = 8, num_frames: int = 10, image_size: int = REAL_SIZE, repeats: int = 5
) -> dict[str, tuple[list[Seconds], float]]:
    """Seconds of each repeat, forward and backward, and the peak in GB, of each way; they take turns."""
    torch.manual_seed(0)
    segmenter = SamSegmenter({"type": "sam", "image_size": image_size})
    frames = torch.randn(num_frames, *segmenter.frame_shape)
    prompts = torch.randn(num_frames, num_generations, segmenter.prompt_dim)
    seconds: dict[str, list[Seconds]] = {name: [] for name in WAYS}
    peaks = dict.fromkeys(WAYS, 0.0)
    for _ in range(repeats):
        for name, decode in WAYS.items():
            with peak_memory() as peak:
                seconds[name].append(_forward_and_backward(segmenter, decode, frames, prompts))
            peaks[name] = max(peaks[name], peak.gigabytes)
    return {name: (seconds[name], peaks[name]) for name in WAYS}


def _forward_and_backward(segmenter: SamSegmenter, decode: Decode, frames: Tensor, prompts: Tensor) -> Seconds:
    segmenter.zero_grad()
    leaf = prompts.clone().requires_grad_()
    start = now()
    decode(segmenter, frames, leaf).sigmoid().mean().backward()
    return now() - start
