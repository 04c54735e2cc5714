"""Segmenters that find what a noun phrase names in the frames of a clip, by their names in a config.

    sam3             SAM 3 by text: on each frame the instance that fits the phrase best
    grounded_sam2    Grounding DINO finds the box, SAM 2 its mask, on each frame
    aurora           a model of this package, asked for "The <phrase>." with the clip's sound
    oracle           the true masks, whatever the phrase: what the agents would reach with a perfect segmenter

All answer on the frames' own size. Frames on which nothing is found have empty masks.
"""

from __future__ import annotations

import abc
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from aurora_rl.agents.investigation import Segmentation
from aurora_rl.data.media import load_clip, read_media
from aurora_rl.data.sample import AVClip, AVSample

if TYPE_CHECKING:
    import torch

#: Confidence of a found instance from which its mask is taken, as published for SAM 3 and for Grounding DINO.
SAM3_THRESHOLD, GROUNDING_THRESHOLD = 0.5, 0.25


class TextSegmenter(abc.ABC):
    """Finds what a phrase names; one at a time, since rows share its device.

    Args:
        model: folder or hub name of the segmenter's checkpoint.
        device: device that it runs on.
    """

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

    @abc.abstractmethod
    def find(self, sample: AVSample, clip: AVClip, phrase: str) -> Segmentation:
        """Do the work of `__call__`."""


class Sam3Segmenter(TextSegmenter):
    """SAM 3 (Carion et al., 2025) by text: of each frame's instances the most confident one."""

    def __init__(self, model: str | None, *, device: str = "cpu") -> None:
        super().__init__(model, device=device)
        from transformers import Sam3Model, Sam3Processor

        name = _named(model, "sam3", "facebook/sam3")
        self.processor = Sam3Processor.from_pretrained(name)
        self.sam = _whole(Sam3Model, name).to(device)

    def find(self, sample: AVSample, clip: AVClip, phrase: str) -> Segmentation:
        import torch

        found = []
        for frame in clip.frames:
            inputs = self.processor(images=frame, text=phrase, return_tensors="pt").to(self.device)
            with torch.inference_mode():
                outputs = self.sam(**inputs)
            (of_frame,) = self.processor.post_process_instance_segmentation(
                outputs, threshold=SAM3_THRESHOLD, target_sizes=[frame.shape[:2]]
            )
            found.append(_best(of_frame["masks"], of_frame["scores"], frame.shape[:2]))
        return _joined(found)


class GroundedSam2Segmenter(TextSegmenter):
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

    def find(self, sample: AVSample, clip: AVClip, phrase: str) -> Segmentation:
        import torch

        found = []
        for frame in clip.frames:
            size = frame.shape[:2]
            asked = self.finder_processor(images=frame, text=f"{phrase.lower().rstrip('.')}.", return_tensors="pt")
            asked = asked.to(self.device)
            with torch.inference_mode():
                boxes = self.finder_processor.post_process_grounded_object_detection(
                    self.finder(**asked), asked["input_ids"], threshold=GROUNDING_THRESHOLD, target_sizes=[size]
                )[0]
            if len(boxes["scores"]) == 0:
                found.append((np.zeros(size, bool), 0.0))
                continue
            best = int(boxes["scores"].argmax())
            box = [[boxes["boxes"][best].tolist()]]
            inputs = self.processor(images=frame, input_boxes=box, return_tensors="pt").to(self.device)
            with torch.inference_mode():
                outputs = self.sam(**inputs, multimask_output=False)
            (masks,) = self.processor.post_process_masks(outputs.pred_masks.cpu(), inputs["original_sizes"].cpu())
            found.append((masks[0, 0].numpy().astype(bool), float(boxes["scores"][best])))
        return _joined(found)


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
    """The true masks of the row, for measuring what the agents lose or gain beside the segmenter."""

    def find(self, sample: AVSample, clip: AVClip, phrase: str) -> Segmentation:
        if clip.gt_masks is None or clip.annotated_frames is not None:
            raise ValueError(f"sample {sample.key} has no true masks of all frames, which the oracle gives")
        return Segmentation(clip.gt_masks, 1.0)


SEGMENTERS: Mapping[str, Callable[..., TextSegmenter]] = {
    "sam3": Sam3Segmenter,
    "grounded_sam2": GroundedSam2Segmenter,
    "aurora": AuroraSegmenter,
    "oracle": OracleSegmenter,
}


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


def _best(masks: torch.Tensor, scores: torch.Tensor, size: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Return the mask (H, W) with the best score, and the score; an empty one where there is none."""
    if len(scores) == 0:
        return np.zeros(size, bool), 0.0
    best = int(scores.argmax())
    return masks[best].cpu().numpy().astype(bool), float(scores[best])


def _joined(found: list[tuple[np.ndarray, float]]) -> Segmentation:
    return Segmentation(np.stack([mask for mask, _ in found]), max(score for _, score in found))
