"""The files that `aurora-rl segment` writes.

answer.json     the answer to each reference, window by window; times, sizes, notes, seconds that each part took
chain.txt       the chains of thought as text
masks/<r>/      one PNG a frame of reference r, 8-bit grey, 0 or 255, at the video's own size
masks.json      the same masks as a COCO file: images are frames, categories references, run lengths compressed; a
                frame without the object has no annotation, as usual in COCO
overlay.mp4     the clip with its masks drawn, and its sound
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from aurora_rl.data.footage import Picture
from aurora_rl.data.run_lengths import encode_masks
from aurora_rl.files.atomic import whole_entries
from aurora_rl.inference.overlay import OverlayVideo, colour_of, draw_masks
from aurora_rl.inference.pipeline import ClipAnswer, WindowAnswer
from aurora_rl.inference.propagation import FrameMasks
from aurora_rl.metrics import MASK_THRESHOLD


def write_answer(
    answer: ClipAnswer, pictures: Iterator[FrameMasks], folder: Path, *, model: str, every_frame: bool = False
) -> None:
    """Write all files beside those of an earlier answer, and replace these when the new ones are complete.

    Args:
        answer: answer of the pipeline.
        pictures: every picture of the clip with its masks, from `AuroraPipeline.every_frame`.
        folder: folder that `check_answer_folder` has checked; it is made if it is missing.
        model: hub name or folder of the model.
        every_frame: whether masks of every picture are written, not only of the sampled ones.

    Raises:
        OSError: if they cannot be written, naming the file or the folder; an earlier answer is unchanged.
    """
    mask_probs = [each.mask_probs for each in answer.references if each.mask_probs is not None]
    with whole_entries(folder) as new:
        masks = _MaskFiles(new, answer)
        if not every_frame:
            for index, time in enumerate(answer.frame_times):
                masks.write(index, time, np.stack([probs[index] for probs in mask_probs]))
        with OverlayVideo(new / "overlay.mp4", answer.footage) as overlay:
            for shown in pictures:
                overlay.write(Picture(shown.picture.time, draw_masks(shown.picture.pixels, shown.masks)))
                if every_frame:
                    masks.write(shown.index, shown.picture.time, shown.masks)
        masks.finish()
        (new / "chain.txt").write_text(chain_text(answer), encoding="utf-8")
        _write_json(new / "answer.json", {"model": model, **answer_record(answer)})


def answer_record(answer: ClipAnswer) -> dict[str, Any]:
    """Return an answer without its masks as plain JSON; times in seconds, sizes in pixels."""
    return {
        "clip": answer.footage.name,
        "size": list(answer.footage.own_size),
        "frame_size": list(answer.footage.frame_size),
        "frame_times": list(answer.frame_times),
        "has_sound": answer.footage.waveform is not None,
        "notes": list(answer.notes),
        "seconds": {part: round(seconds, 3) for part, seconds in answer.seconds.items()},
        "references": [
            {
                "reference": each.reference,
                "category": each.category,
                "is_null": each.is_null,
                "colour": colour_of(number),
                "share_of_pixels": None if each.masks is None else float(each.masks.mean()),
                "windows": [_window_record(window) for window in each.windows],
            }
            for number, each in enumerate(answer.references)
        ],
    }


def chain_text(answer: ClipAnswer) -> str:
    """Return the chains of thought as text."""
    blocks = [f"note: {note}" for note in answer.notes]
    for number, each in enumerate(answer.references):
        found = {"null": "no such target", None: "no answer"}.get(each.category, each.category or "")
        blocks.append(f"{number}. {each.reference}  [{found}, drawn in {colour_of(number)}]")
        for window in each.windows:
            lines = "\n".join(f"    {line}" for line in window.text.splitlines())
            blocks.append(f"  {window.start:g} to {window.end:g} s\n{lines}")
    return "\n\n".join(blocks) + "\n"


def _window_record(window: WindowAnswer) -> dict[str, Any]:
    return {
        "start": window.start,
        "end": window.end,
        "text": window.text,
        "steps": dict(window.steps),
        "category": window.category,
        "is_null": window.is_null,
        "has_seg": window.has_seg,
    }


class _MaskFiles:
    """Masks as PNG files and as a COCO file."""

    def __init__(self, folder: Path, answer: ClipAnswer) -> None:
        self.folder = folder
        self.size = answer.footage.own_size
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.categories = [{"id": number, "name": each.reference} for number, each in enumerate(answer.references)]
        for category in self.categories:
            (folder / "masks" / str(category["id"])).mkdir(parents=True)

    def write(self, index: int, time: float, masks: np.ndarray) -> None:
        """Write one frame's masks.

        Args:
            index: number of the frame.
            time: time of the frame, in seconds.
            masks: (R, h, w) masks of R references, bool or float32 probabilities.
        """
        height, width = self.size
        name = f"{index:06d}.png"
        self.images.append({"id": index, "file_name": name, "time": time, "height": height, "width": width})
        probs = torch.from_numpy(masks.astype(np.float32))
        if probs.shape[1:] != self.size:
            probs = torch.nn.functional.interpolate(probs[None], size=self.size, mode="bilinear")[0]
        full = (probs > MASK_THRESHOLD).numpy()  # (R, H, W) at the video's own size
        for reference, (mask, rle) in enumerate(zip(full, encode_masks(full), strict=True)):
            Image.fromarray(mask.astype(np.uint8) * 255).save(self.folder / "masks" / str(reference) / name)
            if not mask.any():
                continue  # COCO would count an empty mask as an object that nobody can find
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,  # COCOeval takes 0 for "no match"
                    "image_id": index,
                    "category_id": reference,
                    "segmentation": rle,
                    "area": int(mask.sum()),
                    "bbox": [float(side) for side in coco_mask.toBbox({**rle, "counts": rle["counts"].encode()})],
                    "iscrowd": 0,
                }
            )

    def finish(self) -> None:
        """Write the COCO file."""
        _write_json(
            self.folder / "masks.json",
            {
                "info": {"description": "masks of aurora-rl segment"},  # pycocotools does not load results without it
                "images": self.images,
                "annotations": self.annotations,
                "categories": self.categories,
            },
        )


def _write_json(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
