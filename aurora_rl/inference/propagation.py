"""Propagation of masks from a clip's sampled frames to all its pictures, one picture at a time.

SAM 2 was made for this: it stores masks of some frames in its memory, and segments the pictures between them from that
memory. It runs forward, so that a picture is decoded, segmented and dropped; the given masks of each sampled frame
correct the memory. Other mask heads have no memory: there a picture gets the masks of the nearest sampled frame.
"""

from __future__ import annotations

import abc
import bisect
import copy
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Sam2VideoConfig, Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from aurora_rl.data.containers import TIME_TOLERANCE
from aurora_rl.data.footage import Picture
from aurora_rl.models.checkpoint_files import check_checkpoint_files
from aurora_rl.models.heads.segmenters import build_frame_encoder
from aurora_rl.models.heads.segmenters.base import resize_masks
from aurora_rl.models.heads.segmenters.sam2 import STRIDE, Sam2FrameEncoder
from aurora_rl.models.heads.segmenters.sam_family import load_whole


@dataclasses.dataclass(frozen=True)
class SampledMasks:
    """Masks of the sampled frames, which are known before.

    Attributes:
        times: times of the F sampled frames, in seconds, ascending.
        masks: (R, F, H, W) bool masks of R references.
    """

    times: Sequence[float]
    masks: np.ndarray


@dataclasses.dataclass(frozen=True)
class FrameMasks:
    """A picture and its masks.

    Attributes:
        index: number of the picture in the clip.
        picture: the picture.
        masks: (R, H, W) bool masks of R references.
    """

    index: int
    picture: Picture
    masks: np.ndarray


class MaskTracker(abc.ABC):
    """Gives every picture of a clip its masks."""

    @abc.abstractmethod
    def track(self, pictures: Iterator[Picture], sampled: SampledMasks) -> Iterator[FrameMasks]:
        """Yield each picture with its masks, in order of time.

        Args:
            pictures: all pictures of the clip, of the sampled masks' size.
            sampled: masks of the sampled frames.
        """


class NearestMasks(MaskTracker):
    """Gives each picture the masks of the nearest sampled frame."""

    def track(self, pictures: Iterator[Picture], sampled: SampledMasks) -> Iterator[FrameMasks]:
        for index, picture in enumerate(pictures):
            yield FrameMasks(index, picture, sampled.masks[:, nearest(sampled.times, picture.time)])


class Sam2Masks(MaskTracker):
    """Propagates masks by SAM 2's memory, with the published weights of the mask head's checkpoint.

    Args:
        segmenter: config of the mask head.
        device: device that SAM 2 runs on.
    """

    def __init__(self, segmenter: dict[str, Any], *, device: torch.device | str = "cpu") -> None:
        encoder = build_frame_encoder(segmenter)
        assert isinstance(encoder, Sam2FrameEncoder)
        self.encoder = encoder
        self.device = torch.device(device)
        self.model = load_video_model(segmenter).eval().requires_grad_(False).to(self.device)

    def track(self, pictures: Iterator[Picture], sampled: SampledMasks) -> Iterator[FrameMasks]:
        # References without any mask are not tracked.
        tracked = np.flatnonzero(sampled.masks.any(axis=(1, 2, 3)))
        memory = _Memory(self.model, len(tracked), self.device)
        for index, (picture, known) in enumerate(_with_sampled(pictures, sampled.times)):
            masks = np.zeros((len(sampled.masks), *picture.pixels.shape[:2]), dtype=bool)
            if known is not None:
                masks = sampled.masks[:, known]
            if len(tracked):
                given = None if known is None else torch.from_numpy(masks[tracked])
                logits = memory.see(index, self.encoder.preprocess(picture.pixels[None]), given)  # (R, h, w)
                if known is None:
                    masks[tracked] = resize_masks(logits, picture.pixels.shape[:2]).cpu().numpy() > 0
            yield FrameMasks(index, picture, masks)


class _Memory:
    """Session of `Sam2VideoModel` for one clip; old pictures are dropped, which the session itself would keep."""

    def __init__(self, model: Sam2VideoModel, num_references: int, device: torch.device) -> None:
        self.model = model
        self.size = model.config.image_size
        self.session = Sam2VideoInferenceSession(
            video_height=self.size,
            video_width=self.size,
            inference_device=device,
            inference_state_device=device,
            video_storage_device=device,
            dtype=torch.float32,
        )
        for reference in range(num_references):
            self.session.obj_id_to_idx(reference)

    def see(self, index: int, pixel_values: Tensor, given: Tensor | None) -> Tensor:
        """Compute the mask logits (R, h, w) of the next picture, and store them in the memory.

        Args:
            index: number of the picture.
            pixel_values: (1, 3, S, S) float32 picture.
            given: (R, H, W) bool masks of the picture; None if they are unknown.
        """
        if given is not None:
            masks = resize_masks(given.float(), (self.size, self.size))
            for reference, mask in enumerate(masks):
                self.session.add_mask_inputs(reference, index, mask[None, None] > 0.5)
            self.session.obj_with_new_inputs = list(self.session.obj_ids)
        output = self.model(self.session, frame=pixel_values, frame_idx=index)
        self._forget(index)
        return output.pred_masks[:, 0].float()

    def _forget(self, index: int) -> None:
        """Drop the entries that no later picture reads."""
        self.session.processed_frames.clear()
        config = self.model.config
        num_tracked = max(config.num_maskmem, config.max_object_pointers_in_encoder)
        for reference, outputs in self.session.output_dict_per_obj.items():
            self.session.mask_inputs_per_obj[reference].clear()
            self.session.frames_tracked_per_obj[reference].clear()
            given, tracked = outputs["cond_frame_outputs"], outputs["non_cond_frame_outputs"]
            for old in sorted(given)[: -config.num_maskmem]:
                del given[old]
            for old in [number for number in tracked if number <= index - num_tracked]:
                del tracked[old]
            for latest in (given.get(index), tracked.get(index)):
                if latest is not None:  # at image size, and read only while the picture's memory is made
                    latest.pop("high_res_masks", None)


def _with_sampled(pictures: Iterator[Picture], times: Sequence[float]) -> Iterator[tuple[Picture, int | None]]:
    """Yield each picture, with the number of the sampled frame whose time lies in its time on screen."""
    pending = 0  # number of the next sampled frame
    for picture, following in itertools.pairwise(itertools.chain(pictures, [None])):
        assert picture is not None
        leaves = float("inf") if following is None else following.time - TIME_TOLERANCE
        known = pending if pending < len(times) and times[pending] < leaves else None
        while pending < len(times) and times[pending] < leaves:
            pending += 1
        yield picture, known


def nearest(times: Sequence[float], time: float) -> int:
    """Return the index of the nearest time; of two equally near ones, the earlier."""
    after = bisect.bisect_left(times, time)
    candidates = [index for index in (after - 1, after) if 0 <= index < len(times)]
    return min(candidates, key=lambda index: abs(times[index] - time))


def load_video_model(segmenter: dict[str, Any]) -> Sam2VideoModel:
    """Load SAM 2 with its memory, for images of the segmenter's size.

    Raises:
        ValueError: if the checkpoint holds only the image model.
    """
    check_checkpoint_files(segmenter["checkpoint"])
    revision = segmenter.get("revision") or "main"
    config = Sam2VideoConfig.from_pretrained(segmenter["checkpoint"], revision=revision)
    return load_whole(
        Sam2VideoModel,
        segmenter["checkpoint"],
        revision=revision,
        config=_at_image_size(config, segmenter["image_size"]),
    )


def _at_image_size(config: Sam2VideoConfig, image_size: int) -> Sam2VideoConfig:
    """Change the config's image size, which no weight depends on, only the sizes of maps."""
    config = copy.deepcopy(config)
    grid = image_size // STRIDE
    config.image_size = config.prompt_encoder_config.image_size = image_size
    config.vision_config.backbone_feature_sizes = [[side, side] for side in (4 * grid, 2 * grid, grid)]
    config.memory_attention_rope_feat_sizes = [grid, grid]
    return config
