"""`masks.json` is read by pycocotools' own evaluation, which has rules that no document tells."""

import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from aurora_rl.inference.answer_files import _MaskFiles

SIZE = (40, 60)


def write(folder: Path, masks: np.ndarray) -> Path:
    """The file of some masks (F, R, H, W) bool."""
    references = [SimpleNamespace(reference=f"reference {number}") for number in range(masks.shape[1])]
    answer: Any = SimpleNamespace(footage=SimpleNamespace(own_size=SIZE), references=references)
    files = _MaskFiles(folder, answer)
    for index, frame in enumerate(masks):
        files.write(index, float(index), frame)
    files.finish()
    return folder / "masks.json"


def average_precision(path: Path) -> float:
    """AP of a file's masks held against themselves."""
    annotations = json.loads(path.read_text())["annotations"]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        found = truth.loadRes([{**annotation, "score": 1.0} for annotation in annotations])
        evaluation = COCOeval(truth, found, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def squares(num_frames: int, num_references: int) -> np.ndarray:
    masks = np.zeros((num_frames, num_references, *SIZE), dtype=bool)
    for frame, reference in np.ndindex(masks.shape[:2]):
        masks[frame, reference, 5 + reference : 25, 5 + frame : 30 + frame] = True
    return masks


@pytest.mark.parametrize(("num_frames", "num_references"), [(1, 1), (4, 1), (3, 2)])
def test_masks_are_all_found_in_themselves(tmp_path, num_frames, num_references):
    assert average_precision(write(tmp_path, squares(num_frames, num_references))) == pytest.approx(1.0)


def test_frames_without_the_object_do_not_count_as_missed(tmp_path):
    masks = squares(4, 2)
    masks[1, 0] = masks[3] = False
    path = write(tmp_path, masks)
    assert average_precision(path) == pytest.approx(1.0)
    content = json.loads(path.read_text())
    assert [image["id"] for image in content["images"]] == [0, 1, 2, 3]
    assert [(each["id"], each["image_id"], each["category_id"]) for each in content["annotations"]] == [
        (1, 0, 0), (2, 0, 1), (3, 1, 1), (4, 2, 0), (5, 2, 1),
    ]  # fmt: skip
    assert sorted(file.name for file in (tmp_path / "masks" / "0").iterdir()) == [f"00000{i}.png" for i in range(4)]
