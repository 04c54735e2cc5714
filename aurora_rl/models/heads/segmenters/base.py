"""A mask decoder has two halves: a trained `Segmenter` and the frozen `FrameEncoder` that feeds it.

Flow: frames -> `FrameEncoder.encode` -> frame inputs (cached or computed on the fly) -> `Segmenter.forward`, with a
prompt that the projector made of the hidden state at `[SEG]` -> low-resolution mask logits -> `Segmenter.postprocess`
-> logits at the frame's own size.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Segmenter(nn.Module, abc.ABC):
    """A trained mask decoder: G prompts on each of N frames become N x G masks.

    `config` is plain JSON: `build_segmenter(segmenter.config)` makes the same module with untrained weights, so that
    a model which holds the segmenter can be rebuilt from its `config.json` before its state dict is loaded.

    Attributes:
        config: all that is needed to rebuild the module, `"type"` included.
        prompt_dim: C, the width of a prompt.
        frame_shape: shape of one frame's input, as `FrameEncoder.encode` returns it.
        max_masks_per_chunk: largest number of masks (frames x prompts) per call; None for `masks_that_fit`. Where
            gradients are recorded each chunk is checkpointed, so that this bounds the activations in memory. Chunks
            differ between processes, as N, G and memory do: see `models.sharding.gather_at_once`.
    """

    prompt_dim: int
    frame_shape: tuple[int, ...]
    max_masks_per_chunk: int | None = None

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def complete_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Complete the config of a new segmenter by the fields of the checkpoint that it names."""
        return config

    def load_pretrained(self) -> None:
        """Load published weights into a new decoder that has some; others keep their random ones."""

    @abc.abstractmethod
    def decode(self, frame_inputs: Tensor, prompts: Tensor) -> Tensor:
        """Decode all frames and prompts in one call; shapes are those of `forward`, any floating dtype.

        The inputs have the parameters' dtype. A buffer may have another one and is cast where it is used,
        `self.table.to(frame_inputs)`: DeepSpeed and FSDP2 cast only parameters to bf16, and use no autocast.
        """

    def reset_parameters(self) -> None:
        """Initialise all weights again, each layer by PyTorch's own rule.

        Some owners materialise modules without running their `__init__`, or apply their own initialisation to every
        submodule, as transformers' `PreTrainedModel` does.
        """
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if module is not self and callable(reset):
                reset()

    def forward(self, frame_inputs: Tensor, prompts: Tensor) -> Tensor:
        """Decode G prompts on each of N frames.

        Args:
            frame_inputs: (N, ...) of any floating dtype, from the matching `FrameEncoder`.
            prompts: (N, G, C) of any floating dtype.

        Returns:
            Mask logits (N, G, h, w) float32 at the decoder's own resolution, see `postprocess`.

        Raises:
            ValueError: if the number of frames, their shape or the width of the prompts does not match.
        """
        self._check_shapes(frame_inputs, prompts)
        dtype = next(self.parameters()).dtype
        frame_inputs, prompts = frame_inputs.to(dtype), prompts.to(dtype)
        most = self.max_masks_per_chunk or self.masks_that_fit(prompts.device)
        chunk_frames, chunk_prompts = self.chunk_size(len(prompts), prompts.size(1), most)
        if len(prompts) <= chunk_frames and prompts.size(1) <= chunk_prompts:
            return self.decode(frame_inputs, prompts).float()
        chunks = zip(frame_inputs.split(chunk_frames), prompts.split(chunk_frames), strict=True)
        return torch.cat(
            [
                torch.cat([self._decode_chunk(frames, some).float() for some in theirs.split(chunk_prompts, dim=1)], 1)
                for frames, theirs in chunks
            ]
        )

    def postprocess(self, mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Bring mask logits to the frame's own size, undoing the encoder's resizing of the frame.

        Args:
            mask_logits: (..., h, w) from `forward`.
            size: (H, W) of the frame in pixels.

        Returns:
            Mask logits (..., H, W) float32.
        """
        return resize_masks(mask_logits.float(), size)

    def _check_shapes(self, frame_inputs: Tensor, prompts: Tensor) -> None:
        if prompts.ndim != 3 or prompts.shape[-1] != self.prompt_dim:
            raise ValueError(f"prompts are {tuple(prompts.shape)}, expected (N, G, {self.prompt_dim})")
        if tuple(frame_inputs.shape[1:]) != self.frame_shape:
            raise ValueError(
                f"frame inputs are {tuple(frame_inputs.shape)}, expected (N, {', '.join(map(str, self.frame_shape))}): "
                "encode the frames by the segmenter's own `build_frame_encoder(segmenter.config)`"
            )
        if len(frame_inputs) != len(prompts):
            raise ValueError(
                f"{len(frame_inputs)} frame inputs for prompts of {len(prompts)} frames: "
                "give each frame its own row of prompts (expand one prompt over the F frames of a clip)"
            )

    def masks_that_fit(self, device: torch.device) -> int | None:
        """Return how many masks fit into the device's memory in one call, at least 1; None for any number."""
        return None

    @staticmethod
    def chunk_size(num_frames: int, num_prompts: int, max_masks: int | None) -> tuple[int, int]:
        """Return the number of frames and of prompts per chunk: as many prompts of a frame as fit, then frames."""
        if max_masks is None:
            return max(1, num_frames), max(1, num_prompts)
        chunk_prompts = max(1, min(num_prompts, max_masks))
        return max(1, max_masks // chunk_prompts), chunk_prompts

    def _decode_chunk(self, frame_inputs: Tensor, prompts: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.decode(frame_inputs, prompts)
        return checkpoint(self.decode, frame_inputs, prompts, use_reentrant=False)


class FrameEncoder(abc.ABC):
    """The frozen half of a segmenter, which turns a clip's frames into the static inputs of the mask decoder.

    It is a plain object and no module, so that it is no part of the trained model, its state dict or its optimizer.

    Args:
        config: config of the segmenter that it feeds.
        dtype: dtype of the encoder and of its output.

    Attributes:
        kind: the segmenter type that it belongs to.
        cacheable: whether encoding is slow enough to be worth an `EmbeddingCache`.
        image_size: S, the side in pixels of the square that a frame is resized to.
        device: device of the encoder and of its output, see `to`.
    """

    kind: ClassVar[str]
    cacheable: ClassVar[bool]

    def __init__(self, config: dict[str, Any], *, dtype: torch.dtype = torch.float32) -> None:
        self.config = config
        self.image_size: int = config["image_size"]
        self.dtype = dtype
        self.device = torch.device("cpu")

    def to(self, device: torch.device | str) -> Self:
        """Move the encoder to a device."""
        self.device = torch.device(device)
        return self

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """The hash of all that determines the encoding except the frames: kind, size, dtype, weights."""

    @property
    @abc.abstractmethod
    def frame_shape(self) -> tuple[int, ...]:
        """The shape of one frame's input to the mask decoder."""

    @classmethod
    def frame_extent(cls, size: tuple[int, int], image_size: int) -> tuple[float, float]:
        """Return the shares of the encoder's S x S square that a frame fills, in height and width.

        Args:
            size: (H, W) of the frame in pixels.
            image_size: S in pixels.
        """
        return 1.0, 1.0

    @abc.abstractmethod
    def encode(self, frames: np.ndarray) -> Tensor:
        """Encode the frames of one clip.

        Args:
            frames: (F, H, W, 3) uint8, RGB.

        Returns:
            Frame inputs (F, *frame_shape), detached.

        Raises:
            ValueError: if the frames are not (F, H, W, 3) uint8.
        """


def check_frames(frames: np.ndarray) -> None:
    """Raise a ValueError unless the frames are (F, H, W, 3) uint8 with F > 0."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0 or frames.dtype != np.uint8:
        raise ValueError(f"frames are {frames.shape} {frames.dtype}, expected (F, H, W, 3) uint8 with F > 0")


def resize_masks(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (..., h, w) to (..., H, W), bilinear, corners not aligned."""
    leading = mask_logits.shape[:-2]
    flat = mask_logits.reshape(-1, 1, *mask_logits.shape[-2:])  # (N, 1, h, w)
    return F.interpolate(flat, size=size, mode="bilinear", align_corners=False).reshape(*leading, *size)
