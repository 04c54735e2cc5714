"""Masks from boxes: a frozen SAM is prompted with the box that a box head predicts on each frame."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from aurora_rl.box_metrics import PRESENCE_THRESHOLD
from aurora_rl.models.heads.boxes import FrameBoxes
from aurora_rl.models.heads.segmenters.sam import SamFrameEncoder, resized_frame_size, unpadded_masks


class BoxPrompts:
    """A published SAM, all of it frozen, that turns boxes into masks.

    Args:
        checkpoint: folder or hub name of the SAM, such as `facebook/sam-vit-huge`.
        device: device that it runs on.

    Raises:
        ValueError: if the checkpoint is not whole.
    """

    def __init__(self, checkpoint: str, *, device: torch.device | str = "cpu") -> None:
        self.sam = SamFrameEncoder.load_sam(checkpoint, None).eval().requires_grad_(False).to(device)
        self.image_size = SamFrameEncoder.native_image_size(self.sam.config)
        self._preprocess = SamFrameEncoder({"type": "sam", "image_size": self.image_size}).preprocess

    @torch.inference_mode()
    def embed(self, frames: np.ndarray) -> Tensor:
        """Return the image embeddings (F, C, h, w) of frames (F, H, W, 3) uint8, frame by frame."""
        pixel_values = self._preprocess(frames).to(self.sam.device)
        return torch.cat([self.sam.get_image_embeddings(frame[None]) for frame in pixel_values])

    @torch.inference_mode()
    def masks(self, embeddings: Tensor, prediction: FrameBoxes, size: tuple[int, int]) -> Tensor:
        """Return mask probabilities (F, H, W) float32 on the CPU: zeros where the object is said not to be there.

        Args:
            embeddings: result of `embed`.
            prediction: boxes and presence of the same F frames.
            size: (H, W) of the frames in pixels.
        """
        height, width = resized_frame_size(size, self.image_size)
        scale = torch.tensor([width, height, width, height], dtype=torch.float32)
        boxes = prediction.boxes.detach().float().clamp(0, 1).cpu() * scale  # pixels of the resized frame
        decode = functools.partial(self.sam, multimask_output=False)
        logits = torch.cat(
            [
                decode(image_embeddings=image[None], input_boxes=box[None, None].to(image.device)).pred_masks[:, 0, 0]
                for image, box in zip(embeddings, boxes, strict=True)
            ]
        )  # (F, h, w)
        is_there = prediction.presence_logits.sigmoid() > PRESENCE_THRESHOLD
        probs = unpadded_masks(logits, size, self.image_size).sigmoid() * is_there.to(logits.device)[:, None, None]
        return probs.cpu()
