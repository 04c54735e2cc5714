"""Propagation of masks from a clip's sampled frames to all its pictures.

SAM 2 was made for this: it stores masks of some frames in its memory, and segments the pictures between them from that
memory; SAM 3's tracker and EdgeTAM do the same. The pictures between two sampled frames wait until the memory holds the
given masks of both. Then the first half of them is tracked forward from the earlier one and the second half backward
from the later one: no picture is further from a given mask than half of the way, and each is tracked once. Or all are
tracked forward, so that a picture is decoded, segmented and dropped. Other mask heads have no memory: there a picture
gets the masks of the nearest sampled frame.
"""

from __future__ import annotations

import abc
import bisect
import copy
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    EdgeTamVideoConfig,
    EdgeTamVideoModel,
    PretrainedConfig,
    PreTrainedModel,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam3TrackerVideoConfig,
    Sam3TrackerVideoModel,
)
from transformers.models.edgetam_video.modeling_edgetam_video import EdgeTamVideoInferenceSession
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import Sam3TrackerVideoInferenceSession

from aurora_rl.data.containers import TIME_TOLERANCE
from aurora_rl.data.footage import Picture
from aurora_rl.models.heads.segmenters import build_frame_encoder
from aurora_rl.models.heads.segmenters.base import resize_masks
from aurora_rl.models.heads.segmenters.sam2 import Sam2FrameEncoder

#: Pictures that wait for the next sampled frame; further ones are tracked without it. They are in memory as they were
#: decoded: 0.33 GB of 1280 x 720 pixels.
MOST_WAITING = 120


@dataclasses.dataclass(frozen=True)
class VideoClasses:
    """transformers' classes of a model that tracks."""

    config: type[PretrainedConfig]
    model: type[PreTrainedModel]
    session: type[Any]


#: The segmenter types whose checkpoints can track.
VIDEO_CLASSES = {
    "edgetam": VideoClasses(EdgeTamVideoConfig, EdgeTamVideoModel, EdgeTamVideoInferenceSession),
    "sam2": VideoClasses(Sam2VideoConfig, Sam2VideoModel, Sam2VideoInferenceSession),
    "sam3_tracker": VideoClasses(Sam3TrackerVideoConfig, Sam3TrackerVideoModel, Sam3TrackerVideoInferenceSession),
}


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


class MemoryMasks(MaskTracker):
    """Propagates masks by the memory of SAM 2, SAM 3 or EdgeTAM, with the published weights of the head's checkpoint.

    Args:
        segmenter: config of the mask head.
        device: device that the tracker runs on.

    Raises:
        ValueError: if the checkpoint holds only the image model, or its memory cannot have the head's image size.
    """

    def __init__(self, segmenter: dict[str, Any], *, device: torch.device | str = "cpu") -> None:
        encoder = build_frame_encoder(segmenter)
        assert isinstance(encoder, Sam2FrameEncoder)
        self.encoder = encoder
        self.device = torch.device(device)
        self.model = load_video_model(segmenter).eval().requires_grad_(False).to(self.device)

    def track(
        self, pictures: Iterator[Picture], sampled: SampledMasks, *, both_ways: bool = True
    ) -> Iterator[FrameMasks]:
        """Yield each picture with its masks, in order of time.

        Args:
            pictures: all pictures of the clip, of the sampled masks' size.
            sampled: masks of the sampled frames.
            both_ways: whether the memory of the next sampled frame is used too; if not, no picture waits for it.
        """
        # References without any mask are not tracked.
        tracked = np.flatnonzero(sampled.masks.any(axis=(1, 2, 3)))
        run = _Run(self, sampled.masks, tracked)
        waiting: list[tuple[int, Picture]] = []
        before = -float("inf")  # time of the latest sampled picture
        for index, (picture, known) in enumerate(_with_sampled(pictures, sampled.times)):
            if known is None:
                waiting.append((index, picture))
                if len(waiting) > (MOST_WAITING if both_ways else 0):
                    yield run.track(*waiting.pop(0))
                continue
            given = run.remember(index, picture, known)
            middle = (before + picture.time) / 2
            yield from run.between(waiting, middle)
            yield given
            waiting, before = [], picture.time
        yield from itertools.starmap(run.track, waiting)


class _Run:
    """Tracking of one clip.

    Args:
        tracker: holds the model.
        masks: (R, F, H, W) bool masks of the sampled frames.
        tracked: numbers of the references that are tracked.
    """

    def __init__(self, tracker: MemoryMasks, masks: np.ndarray, tracked: np.ndarray) -> None:
        self.preprocess = tracker.encoder.preprocess
        self.sampled, self.tracked = masks, tracked
        self.memory = _Memory(tracker.model, len(tracked), tracker.device) if len(tracked) else None
        self.knows_any = False

    def remember(self, index: int, picture: Picture, known: int) -> FrameMasks:
        """Store the given masks of a picture in the memory."""
        masks = self.sampled[:, known]
        if self.memory is not None:
            self.memory.see(index, self.preprocess(picture.pixels[None]), torch.from_numpy(masks[self.tracked]))
        self.knows_any = True
        return FrameMasks(index, picture, masks)

    def track(self, index: int, picture: Picture, *, backward: bool = False) -> FrameMasks:
        """Compute a picture's masks from the pictures before it, or after it."""
        if not self.knows_any:  # nothing to track from yet: the masks of the first sampled frame are the nearest
            return FrameMasks(index, picture, self.sampled[:, 0])
        size = picture.pixels.shape[:2]
        masks = np.zeros((len(self.sampled), *size), dtype=bool)
        if self.memory is not None:
            logits = self.memory.see(index, self.preprocess(picture.pixels[None]), backward=backward)  # (R, h, w)
            masks[self.tracked] = resize_masks(logits, size).cpu().numpy() > 0
        return FrameMasks(index, picture, masks)

    def between(self, waiting: Sequence[tuple[int, Picture]], middle: float) -> Iterator[FrameMasks]:
        """Track the pictures between two remembered ones, those up to the middle in time from the earlier one."""
        first = [each for each in waiting if each[1].time <= middle]
        second = [each for each in waiting if each[1].time > middle]
        yield from itertools.starmap(self.track, first)
        yield from reversed([self.track(index, picture, backward=True) for index, picture in reversed(second)])


class _Memory:
    """Session of a video model for one clip; old pictures are dropped, which the session itself would keep."""

    def __init__(self, model: PreTrainedModel, num_references: int, device: torch.device) -> None:
        self.model = model
        self.size = model.config.image_size
        self.latest_given = 0
        session_class = next(each.session for each in VIDEO_CLASSES.values() if isinstance(model, each.model))
        self.session = session_class(
            video_height=self.size,
            video_width=self.size,
            inference_device=device,
            inference_state_device=device,
            video_storage_device=device,
            dtype=torch.float32,
        )
        for reference in range(num_references):
            self.session.obj_id_to_idx(reference)

    def see(self, index: int, pixel_values: Tensor, given: Tensor | None = None, *, backward: bool = False) -> Tensor:
        """Compute the mask logits (R, h, w) of a picture, and store them in the memory.

        Args:
            index: number of the picture.
            pixel_values: (1, 3, S, S) float32 picture.
            given: (R, H, W) bool masks of the picture; None if they are unknown.
            backward: whether the pictures after this one have been seen, and not those before it.
        """
        if given is not None:
            masks = resize_masks(given.float(), (self.size, self.size))
            for reference, mask in enumerate(masks):
                self.session.add_mask_inputs(reference, index, mask[None, None] > 0.5)
            self.session.obj_with_new_inputs = list(self.session.obj_ids)
            self.latest_given = index
        output = self.model(self.session, frame=pixel_values, frame_idx=index, reverse=backward)
        self._forget(index, backward=backward)
        return output.pred_masks[:, 0].float()

    def _forget(self, index: int, *, backward: bool) -> None:
        """Drop the entries that no later picture reads.

        A picture reads those on the side that it is tracked from. After the backward half follows the next forward
        half, which reads those before the latest given picture. At a given picture it is open what follows.
        """
        self.session.processed_frames.clear()
        config = self.model.config
        reach = max(config.num_maskmem, config.max_object_pointers_in_encoder)
        for reference, outputs in self.session.output_dict_per_obj.items():
            self.session.mask_inputs_per_obj[reference].clear()
            self.session.frames_tracked_per_obj[reference].clear()
            given, tracked = outputs["cond_frame_outputs"], outputs["non_cond_frame_outputs"]
            for old in sorted(given)[: -config.num_maskmem]:
                del given[old]
            for number in [*tracked] if index != self.latest_given else ():
                is_behind = reach <= index - number
                if (reach <= number - index and reach <= self.latest_given - number) if backward else is_behind:
                    del tracked[number]
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


def load_video_model(segmenter: dict[str, Any]) -> PreTrainedModel:
    """Load the checkpoint with its memory, for images of the segmenter's size.

    Raises:
        ValueError: if the checkpoint holds only the image model, or its memory cannot have this image size.
    """
    classes, encoder = VIDEO_CLASSES[segmenter["type"]], build_frame_encoder(segmenter)
    assert isinstance(encoder, Sam2FrameEncoder)
    checkpoint, revision = segmenter["checkpoint"], segmenter.get("revision")
    config = encoder.load_config(checkpoint, revision, config_class=classes.config)
    config = _at_image_size(config, segmenter["image_size"], encoder.stride)
    return encoder.load_sam(checkpoint, revision, sam_class=classes.model, config=config)


def _at_image_size(config: PretrainedConfig, image_size: int, stride: int) -> PretrainedConfig:
    """Change the config's image size, which no weight depends on, only the sizes of maps."""
    config = copy.deepcopy(config)
    grid = image_size // stride
    # EdgeTAM sums a memory up by a square of windows, each of the same whole number of cells.
    windows = math.isqrt(getattr(config, "perceiver_resampler_num_latents_2d", 1))
    if grid % windows:
        raise ValueError(
            f"image_size {image_size}: EdgeTAM's memory needs a multiple of {windows * stride}; choose one for the "
            "mask head, or do without tracking"
        )
    config.image_size = config.prompt_encoder_config.image_size = image_size
    config.vision_config.backbone_feature_sizes = [[side, side] for side in (4 * grid, 2 * grid, grid)]
    config.memory_attention_rope_feat_sizes = [grid, grid]
    return config
