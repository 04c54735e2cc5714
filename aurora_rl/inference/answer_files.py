"""What `aurora-rl segment` leaves in its folder.

answer.json     what was said of each reference, window by window; times, sizes, notes, seconds that each part took
chain.txt       the chains of thought to be read
masks/<r>/      one PNG a frame of reference r, 8-bit grey, 0 or 255, at the video's own size
masks.json      the same masks as a COCO file: images are frames, categories references, run lengths compressed; a
                frame without the object has no annotation, as COCO has it
overlay.mp4     the clip with its masks drawn, its sound kept
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
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
from aurora_rl.inference.pipeline import MASK_THRESHOLD, ClipAnswer, WindowAnswer
from aurora_rl.inference.propagation import FrameMasks

FILES = ("answer.json", "chain.txt", "masks", "masks.json", "overlay.mp4")


def check_folder(folder: Path, *, overwrite: bool, inputs: Iterable[Path]) -> None:
    """Make the folder for an answer, or see that an earlier one may go.

    Raises:
        FileExistsError: if it holds an answer and must not be overwritten.
        ValueError: if a file that is to be read would be replaced.
    """
    there = [name for name in FILES if (folder / name).exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"{folder} holds {', '.join(there)} of an earlier run: give another folder or --overwrite"
        )
    replaced = {(folder / name).resolve() for name in FILES}
    for path in inputs:
        if replaced & {path.resolve(), *path.resolve().parents}:
            raise ValueError(f"{path} would be read and replaced in one run: give another folder than {folder}")
    folder.mkdir(parents=True, exist_ok=True)


def write_answer(
    answer: ClipAnswer, pictures: Iterator[FrameMasks], folder: Path, *, model: str, every_frame: bool = False
) -> None:
    """Write all files beside an earlier answer's, which they replace when they are complete.

    Args:
        answer: from the pipeline.
        pictures: every picture of the clip with its masks, from `AuroraPipeline.every_frame`.
        folder: from `check_folder`.
        model: where the answers come from.
        every_frame: whether masks are written of every picture, not only of the sampled ones.

    Raises:
        OSError: if they cannot be written, naming the file or the folder; an earlier answer is unchanged.
    """
    with whole_entries(folder) as new:
        _write_files(answer, pictures, new, every_frame=every_frame)
        _write_json(new / "answer.json", {"model": model, **answer_record(answer)})


def _write_files(answer: ClipAnswer, pictures: Iterator[FrameMasks], folder: Path, *, every_frame: bool) -> None:
    masks = _MaskFiles(folder, answer)
    if not every_frame:
        for index, time in enumerate(answer.frame_times):
            masks.write(index, time, np.stack([each.mask_probs[index] for each in answer.references]))
    with OverlayVideo(folder / "overlay.mp4", answer.footage) as overlay:
        for shown in pictures:
            overlay.write(Picture(shown.picture.time, draw_masks(shown.picture.pixels, shown.masks)))
            if every_frame:
                masks.write(shown.index, shown.picture.time, shown.masks)
    masks.finish()
    (folder / "chain.txt").write_text(chain_text(answer), encoding="utf-8")


def answer_record(answer: ClipAnswer) -> dict[str, Any]:
    """An answer without its masks, plain JSON; seconds and pixels."""
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
                "share_of_pixels": float(each.masks.mean()),
                "windows": [_window_record(window) for window in each.windows],
            }
            for number, each in enumerate(answer.references)
        ],
    }


def chain_text(answer: ClipAnswer) -> str:
    """The chains of thought, to be read."""
    blocks = [f"note: {note}" for note in answer.notes]
    for number, each in enumerate(answer.references):
        blocks.append(f"{number}. {each.reference}  [{_verdict(each.category)}, drawn in {colour_of(number)}]")
        for window in each.windows:
            lines = "\n".join(f"    {line}" for line in window.text.splitlines())
            blocks.append(f"  {window.start:g} to {window.end:g} s\n{lines}")
    return "\n\n".join(blocks) + "\n"


def _verdict(category: str | None) -> str:
    return {"null": "no such target", None: "no answer"}.get(category, category or "")


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
    """Masks as PNG files, and what a COCO file says of them."""

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
            time: in seconds.
            masks: (R, h, w) bool, or float32 probabilities.
        """
        height, width = self.size
        name = f"{index:06d}.png"
        self.images.append({"id": index, "file_name": name, "time": time, "height": height, "width": width})
        full = self._at_own_size(masks)
        for reference, (mask, rle) in enumerate(zip(full, encode_masks(full), strict=True)):
            Image.fromarray(mask.astype(np.uint8) * 255).save(self.folder / "masks" / str(reference) / name)
            if not mask.any():
                continue  # COCO notes what is there: an empty mask would count as an object that nobody can find
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

    def _at_own_size(self, masks: np.ndarray) -> np.ndarray:
        """(R, H, W) bool."""
        probs = torch.from_numpy(masks.astype(np.float32))
        if probs.shape[1:] != self.size:
            probs = torch.nn.functional.interpolate(probs[None], size=self.size, mode="bilinear")[0]
        return (probs > MASK_THRESHOLD).numpy()


def _write_json(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
