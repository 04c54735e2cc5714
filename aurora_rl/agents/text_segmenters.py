"""Segmenters that find what a noun phrase names in the frames of a clip, by their names in a config.

    sam3             SAM 3 by text: on each frame the instance that fits the phrase best
    grounded_sam2    Grounding DINO finds the box, SAM 2 its mask, on each frame
    aurora           a model of this package, asked for "The <phrase>." with the clip's sound
    oracle           the true masks, whatever the phrase: what the agents would reach with a perfect segmenter

All answer on the frames' own size. Frames on which nothing is found have empty masks. Those that find several things,
which all but `aurora` do, also follow them through the clip (`TextSegmenter.tracks`).
"""

from __future__ import annotations

import abc
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aurora_rl.agents.investigation import Segmentation
from aurora_rl.agents.track_pictures import MAX_TRACKS
from aurora_rl.agents.tracks import Instances, link_instances
from aurora_rl.data.media import load_clip, read_media
from aurora_rl.data.sample import AVClip, AVSample

#: Confidence of a found instance from which its mask is taken, as published for SAM 3 and for Grounding DINO.
SAM3_THRESHOLD, GROUNDING_THRESHOLD = 0.5, 0.25


class TextSegmenter(abc.ABC):
    """Finds what a phrase names; one at a time, since rows share its device.

    Args:
        model: folder or hub name of the segmenter's checkpoint.
        device: device that it runs on.
    """

    #: Whether it tells several things of one phrase apart.
    finds_tracks = False

    def __init__(self, model: str | None, *, device: str = "cpu") -> None:
        self.model, self.device = model, device
        self._lock = threading.Lock()

    def __call__(self, sample: AVSample, clip: AVClip, phrase: str) -> Segmentation:
        """Return the masks (F, H, W) bool of what a phrase names.

        Args:
            sample: the row.
            clip: its media.
            phrase: noun phrase.
        """
        with self._lock:
            return self.find(sample, clip, phrase)

    def tracks(self, sample: AVSample, clip: AVClip, phrase: str) -> list[Segmentation]:
        """Return the tracks of all things that a phrase names, `MAX_TRACKS` at most and possibly none.

        The arguments are those of `__call__`.
        """
        with self._lock:
            return self.find_all(sample, clip, phrase)

    @abc.abstractmethod
    def find(self, sample: AVSample, clip: AVClip, phrase: str) -> Segmentation:
        """Do the work of `__call__`."""

    def find_all(self, sample: AVSample, clip: AVClip, phrase: str) -> list[Segmentation]:
        """Do the work of `tracks`; for those whose `finds_tracks` is true."""
        raise NotImplementedError(f"{type(self).__name__} finds one thing for a phrase")


class PictureSegmenter(TextSegmenter):
    """Finds what a phrase names on each frame for itself."""

    finds_tracks = True

    @abc.abstractmethod
    def instances(self, frame: np.ndarray, phrase: str, most: int) -> Instances:
        """Find the most certain things on a frame.

        Args:
            frame: (H, W, 3) uint8.
            phrase: noun phrase.
            most: largest number of things.
        """

    def find(self, sample: AVSample, clip: AVClip, phrase: str) -> Segmentation:
        found = [self.instances(frame, phrase, 1) for frame in clip.frames]
        masks = [of.masks[0] if len(of.scores) else np.zeros(clip.frames.shape[1:3], bool) for of in found]
        return Segmentation(np.stack(masks), max(float(of.scores[0]) if len(of.scores) else 0.0 for of in found))

    def find_all(self, sample: AVSample, clip: AVClip, phrase: str) -> list[Segmentation]:
        return link_instances([self.instances(frame, phrase, MAX_TRACKS) for frame in clip.frames], most=MAX_TRACKS)


class Sam3Segmenter(PictureSegmenter):
    """SAM 3 (Carion et al., 2025) by text: of each frame's instances the most confident one."""

    def __init__(self, model: str | None, *, device: str = "cpu") -> None:
        super().__init__(model, device=device)
        from transformers import Sam3Model, Sam3Processor

        name = _named(model, "sam3", "facebook/sam3")
        self.processor = Sam3Processor.from_pretrained(name)
        self.sam = _whole(Sam3Model, name).to(device)

    def instances(self, frame: np.ndarray, phrase: str, most: int) -> Instances:
        import torch

        inputs = self.processor(images=frame, text=phrase, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            outputs = self.sam(**inputs)
        (found,) = self.processor.post_process_instance_segmentation(
            outputs, threshold=SAM3_THRESHOLD, target_sizes=[frame.shape[:2]]
        )
        best = found["scores"].argsort(descending=True)[:most]
        if len(best) == 0:
            return _no_instances(frame)
        return Instances(found["masks"][best].cpu().numpy().astype(bool), found["scores"][best].cpu().numpy())


class GroundedSam2Segmenter(PictureSegmenter):
    """Grounding DINO (Liu et al., 2023) finds a box on each frame, SAM 2 its mask.

    Args:
        model: two checkpoints, "GROUNDING_DINO,SAM2".
        device: device that they run on.
    """

    def __init__(self, model: str | None, *, device: str = "cpu") -> None:
        super().__init__(model, device=device)
        from transformers import AutoProcessor, GroundingDinoForObjectDetection, Sam2Model, Sam2Processor

        names = _named(model, "grounded_sam2", "IDEA-Research/grounding-dino-base,facebook/sam2.1-hiera-large").split(
            ","
        )
        if len(names) != 2:
            raise ValueError(f"text_segmenter_model is {model!r}: grounded_sam2 needs two, 'GROUNDING_DINO,SAM2'")
        self.finder_processor = AutoProcessor.from_pretrained(names[0])
        self.finder = _whole(GroundingDinoForObjectDetection, names[0]).to(device)
        self.processor = Sam2Processor.from_pretrained(names[1])
        self.sam = _whole(Sam2Model, names[1]).to(device)

    def instances(self, frame: np.ndarray, phrase: str, most: int) -> Instances:
        import torch

        size = frame.shape[:2]
        asked = self.finder_processor(images=frame, text=f"{phrase.lower().rstrip('.')}.", return_tensors="pt")
        asked = asked.to(self.device)
        with torch.inference_mode():
            found = self.finder_processor.post_process_grounded_object_detection(
                self.finder(**asked), asked["input_ids"], threshold=GROUNDING_THRESHOLD, target_sizes=[size]
            )[0]
        best = found["scores"].argsort(descending=True)[:most]
        if len(best) == 0:
            return _no_instances(frame)
        boxes = [found["boxes"][best].tolist()]
        inputs = self.processor(images=frame, input_boxes=boxes, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            outputs = self.sam(**inputs, multimask_output=False)
        (masks,) = self.processor.post_process_masks(outputs.pred_masks.cpu(), inputs["original_sizes"].cpu())
        return Instances(masks[:, 0].numpy().astype(bool), found["scores"][best].cpu().numpy())


class AuroraSegmenter(TextSegmenter):
    """A trained model of this package, which hears the clip too; it is asked for the phrase as a reference."""

    def __init__(self, model: str | None, *, device: str = "cpu") -> None:
        super().__init__(model, device=device)
        if model is None:
            raise ValueError("the segmenter aurora needs `text_segmenter_model`: the folder of a trained model")
        from aurora_rl.inference.pipeline import AuroraPipeline

        self.pipeline = AuroraPipeline(model, device=device)

    def find(self, sample: AVSample, clip: AVClip, phrase: str) -> Segmentation:
        (answer,) = self.pipeline(
            video=list(clip.frames), audio=clip.waveform, fps=sample.fps, text=f"The {phrase.removeprefix('the ')}."
        ).references
        masks = answer.masks
        if masks is None:
            raise ValueError(f"the model {self.model} answers without masks: name one with a mask head")
        return Segmentation(masks)


class OracleSegmenter(TextSegmenter):
    """The true masks of the row, for measuring what the agents lose or gain beside the segmenter.

    Its tracks are the true masks of all things in the clip that any row refers to, whatever the phrase.

    Args:
        model: not used.
        device: not used.
        rows: rows of the benchmark, which hold the other things of a clip.
    """

    finds_tracks = True

    def __init__(self, model: str | None, *, device: str = "cpu", rows: Sequence[AVSample] = ()) -> None:
        super().__init__(model, device=device)
        self._rows: dict[tuple[str, str], list[AVSample]] = defaultdict(list)
        for row in rows:
            self._rows[row.dataset, row.media_id].append(row)

    def find(self, sample: AVSample, clip: AVClip, phrase: str) -> Segmentation:
        if clip.gt_masks is None or clip.annotated_frames is not None:
            raise ValueError(f"sample {sample.key} has no true masks of all frames, which the oracle gives")
        return Segmentation(clip.gt_masks, 1.0)

    def find_all(self, sample: AVSample, clip: AVClip, phrase: str) -> list[Segmentation]:
        found: list[Segmentation] = []
        for row in self._rows[sample.dataset, sample.media_id] or [sample]:
            track = self.find(row, clip if row.key == sample.key else load_clip(row), phrase)
            if track.masks.any() and not any(np.array_equal(track.masks, other.masks) for other in found):
                found.append(track)
        return found[:MAX_TRACKS]


SEGMENTERS: Mapping[str, type[TextSegmenter]] = {
    "sam3": Sam3Segmenter,
    "grounded_sam2": GroundedSam2Segmenter,
    "aurora": AuroraSegmenter,
    "oracle": OracleSegmenter,
}


def load_segmenter(
    name: str, model: str | None, *, device: str, rows: Sequence[AVSample], needs_tracks: bool
) -> TextSegmenter:
    """Load a segmenter.

    Args:
        name: key of `SEGMENTERS`.
        model: folder or hub name of its checkpoint.
        device: device that it runs on.
        rows: rows of the benchmark, for the oracle.
        needs_tracks: whether the agents choose among tracks.

    Raises:
        ValueError: if it has no tracks and they are needed, or without a checkpoint that it needs.
    """
    kind = SEGMENTERS[name]
    if needs_tracks and not kind.finds_tracks:
        able = ", ".join(other for other, of in SEGMENTERS.items() if of.finds_tracks)
        raise ValueError(
            f"{name} finds one thing for a phrase, no tracks to choose among: use {able}, or evidence clip"
        )
    return kind(model, device=device, rows=rows) if issubclass(kind, OracleSegmenter) else kind(model, device=device)


def read_clip(sample: AVSample, segmenter: TextSegmenter) -> AVClip:
    """Read a row's media; the true masks for the oracle alone, so that no other segmenter could look."""
    if isinstance(segmenter, OracleSegmenter):
        return load_clip(sample)
    return AVClip(*read_media(sample), gt_masks=None)


def _named(model: str | None, segmenter: str, usual: str) -> str:
    if model is None:
        raise ValueError(f"the segmenter {segmenter} needs `text_segmenter_model`, such as {usual}")
    return model


def _whole(model_class: Any, name: str) -> Any:
    """Load a checkpoint's safetensors in eval mode; a ValueError names weights that it lacks."""
    model, told = model_class.from_pretrained(name, use_safetensors=True, output_loading_info=True)
    if missing := sorted(told["missing_keys"]):
        raise ValueError(f"{name} lacks {len(missing)} weights, such as {missing[0]}: is it a {model_class.__name__}?")
    return model.eval().requires_grad_(False)


def _no_instances(frame: np.ndarray) -> Instances:
    return Instances(np.zeros((0, *frame.shape[:2]), bool), np.zeros(0, np.float32))
