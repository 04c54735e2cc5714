"""Masks that a frozen SAM makes of a box head's boxes."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import SamImageProcessor, SamModel, SamProcessor

from aurora_rl.cli import main
from aurora_rl.inference.box_prompts import BoxPrompts
from aurora_rl.inference.pipeline import AuroraPipeline
from aurora_rl.models.clip_options import ClipOptions
from aurora_rl.models.encoding import PromptOptions
from aurora_rl.models.heads.boxes import FrameBoxes
from aurora_rl.models.loading import load_model
from aurora_rl.tasks.reference_boxes import ReferenceBoxes
from aurora_rl.tasks.reference_segmentation import ReferenceSegmentation

SIZE = (48, 96)


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), dtype=np.uint8)


@pytest.fixture
def prediction() -> FrameBoxes:
    """The object is in the first frame alone."""
    boxes = torch.tensor([[0.1, 0.2, 0.6, 0.9], [0.0, 0.0, 1.0, 1.0]])
    return FrameBoxes(boxes, torch.tensor([2.0, -2.0]), torch.zeros(2, 2), torch.zeros(2, 1, 1), (0.5, 1.0))


@pytest.fixture
def model(tiny_checkpoint: str, tmp_path: Any) -> str:
    """Folder of a model with a box head beside its mask head, which knows how clips are put to it."""
    loaded = load_model(tiny_checkpoint, heads={"boxes": {"type": "dot", "image_size": 64, "width": 8}})
    with torch.no_grad():
        loaded.model.boxes_head.presence[-1].bias.fill_(3.0)
    loaded.remember_clips(
        ClipOptions(PromptOptions("{reference}", None, 256, 65536), fps=2.0, num_frames=4, task=ReferenceBoxes().name)
    )
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.processor.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_masks_are_those_of_transformers_own_processor_and_model(sam_checkpoint, frames, prediction):
    sam = BoxPrompts(sam_checkpoint)
    found = sam.masks(sam.embed(frames), prediction, SIZE)
    square = {"height": 128, "width": 128}
    processor = SamProcessor(SamImageProcessor(size={"longest_edge": 128}, pad_size=square))
    pixels = prediction.boxes[0] * torch.tensor([96.0, 48.0, 96.0, 48.0])
    inputs = processor(frames[0], input_boxes=[[pixels.tolist()]], return_tensors="pt")
    sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
    inputs["input_boxes"] = inputs["input_boxes"].float()
    inputs = {name: inputs[name] for name in ("pixel_values", "input_boxes")}
    with torch.inference_mode():
        outputs = SamModel.from_pretrained(sam_checkpoint)(**inputs, multimask_output=False)
    expected = processor.image_processor.post_process_masks(outputs.pred_masks, *sizes, binarize=False)[0][0, 0]
    assert found.shape == (2, *SIZE)
    torch.testing.assert_close(found[0], expected.sigmoid(), rtol=1e-3, atol=1e-4)
    assert found[0].std() > 1e-4  # control: the mask is no constant


def test_a_frame_without_the_object_has_no_mask(sam_checkpoint, frames, prediction):
    sam = BoxPrompts(sam_checkpoint)
    found = sam.masks(sam.embed(frames), prediction, SIZE)
    assert found[1].eq(0).all() and found[0].gt(0).any()


def test_the_pipeline_hands_the_boxes_of_the_model_to_the_sam(model, sam_checkpoint, frames, monkeypatch):
    pipeline = AuroraPipeline(model, box_prompts=sam_checkpoint, max_completion_length=2, device="cpu")
    embedded, prompts = [], []
    sam, embed = pipeline.box_prompts, pipeline.box_prompts.embed

    def masks(embeddings: torch.Tensor, prediction: FrameBoxes, size: tuple[int, int]) -> torch.Tensor:
        prompts.append(prediction)
        return BoxPrompts.masks(sam, embeddings, prediction, size)

    monkeypatch.setattr(sam, "embed", lambda clip: embedded.append(clip) or embed(clip))
    monkeypatch.setattr(sam, "masks", masks)
    answer = pipeline(video=list(np.concatenate([frames, frames])), text=["the drum", "the dog"], fps=2.0)
    assert len(embedded) == 1 and [len(each.boxes) for each in prompts] == [4, 4]  # a clip for both references
    for each, prediction in zip(answer.references, prompts, strict=True):
        expected = BoxPrompts.masks(sam, embed(embedded[0]), prediction, SIZE)
        np.testing.assert_allclose(each.mask_probs, expected, rtol=1e-4, atol=1e-6)
        assert each.mask_probs.std() > 0
    assert len(list(pipeline.every_frame(answer))) == 4


def test_segment_writes_masks_of_boxes(model, sam_checkpoint, film, frames, tmp_path):
    clip = film([frame for frame in np.concatenate([frames, frames]) for _ in range(2)])
    options = ["--model", model, "--box_prompts", sam_checkpoint, "--device", "cpu", "--max_completion_length", "2"]
    assert main(["segment", str(clip), "the drum", *options, "-o", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out" / "masks").rglob("*.png"))) == 4


def test_a_model_without_boxes_is_refused(tiny_checkpoint, sam_checkpoint):
    options = ClipOptions(PromptOptions("{reference}"), fps=2.0, num_frames=4, task=ReferenceBoxes().name)
    with pytest.raises(ValueError, match="has no head 'boxes'"):
        AuroraPipeline(tiny_checkpoint, clip_options=options, box_prompts=sam_checkpoint, device="cpu")


def test_a_task_without_boxes_is_refused(model, sam_checkpoint):
    with pytest.raises(ValueError, match="gives no boxes for box_prompts"):
        AuroraPipeline(model, task=ReferenceSegmentation(), box_prompts=sam_checkpoint, device="cpu")
