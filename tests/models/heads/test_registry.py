"""A head is one file and one line: here the file is this one, and the line is a patch of `HEADS`."""

from typing import Any

import pytest
import torch
from peft import get_peft_model
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.assembly.model import lora_config
from aurora_rl.footprint.parameters import _part_of
from aurora_rl.models.heads import HEADS, BoxHead, FrameBatch, Head, HeadLoss, MaskHead
from aurora_rl.models.heads.base import run_head
from aurora_rl.models.heads.segmenters import build_frame_encoder
from aurora_rl.models.loading import load_model
from aurora_rl.rollout.weights import engine_weights


class BrightnessHead(Head):
    """Predicts one number a frame, from the frame's mean alone."""

    name = "brightness"
    token = "[LUX]"
    outputs = ("scale", "brightness")
    no_columns = {"brightness": None}

    def __init__(self, hidden_size: int, config: dict[str, Any]) -> None:
        super().__init__(hidden_size, config)
        self.scale = nn.Linear(hidden_size, 1)

    @classmethod
    def frame_encoder(cls, config: dict[str, Any], *, dtype: torch.dtype = torch.float32) -> Any:
        return build_frame_encoder({"type": "dot", "image_size": 32}, dtype=dtype)

    def predict(self, states: Tensor, frames: Any = None) -> dict[str, Tensor]:
        scale = self.scale(states)
        if frames is None:
            return {"scale": scale}
        brightness = frames.frames.mean((1, 2, 3))[:, None] * frames.by_frame(scale)[..., 0]
        return {"scale": scale, "brightness": frames.by_row(brightness)}

    def rows(self, raw: Any, frame_counts: Tensor, sizes: Any, annotated_frames: Any = None) -> list[Tensor]:
        return list(raw["brightness"].split(frame_counts.tolist()))

    def loss(self, rows: Any, gt_masks: Any, **_: Any) -> HeadLoss:
        total = torch.stack([row.square().mean() for row in rows]).sum()
        return HeadLoss(total, {"brightness": total})

    def columns(self, row: Tensor, gt_masks: Any, truth: Any) -> dict[str, Any]:
        return {"brightness": row.detach().cpu()}

    def row_score(self, row: Tensor, truth: Tensor) -> float:
        return 1.0


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: str) -> Any:
    monkeypatch.setitem(HEADS, "brightness", BrightnessHead)
    return load_model(tiny_checkpoint, heads={"brightness": {}})


def test_a_head_from_outside_predicts_at_its_own_token(loaded):
    ids = torch.arange(5, 19).view(2, 7)
    frames = {
        "seg_frames": torch.ones(3, 3, 32, 32),
        "seg_frame_counts": torch.tensor([1, 2]),
        "seg_clip_index": torch.tensor([1, 0]),
    }
    outputs = loaded.model(input_ids=ids, seg_index=torch.tensor([6, 6]), head_name="brightness", **frames)
    assert outputs.head_outputs["brightness"].shape == (3,)
    assert loaded.head_token_ids["brightness"] == len(loaded.processor.tokenizer) - 1


def test_a_head_from_outside_is_saved_and_restored(loaded, tmp_path):
    loaded.model.save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    again = load_model(str(tmp_path))
    assert again.heads["brightness"] == {}
    assert torch.equal(again.model.brightness_head.scale.weight, loaded.model.brightness_head.scale.weight)


def test_a_head_from_outside_is_trained_beside_lora_counted_and_kept_from_the_engine(loaded):
    config = lora_config(ModelArguments(model="any", use_peft=True), loaded.family, loaded.heads)
    model = get_peft_model(loaded.model, config)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("brightness_head" in name for name in trained)
    assert _part_of("base_model.model.brightness_head.scale.weight", loaded.family) == _part_of(
        "base_model.model.seg_head.projector.0.weight", loaded.family
    )
    assert not any("head" in name and "lm_head" not in name for name, _ in engine_weights(
        model, loaded.family, towers=True
    ))  # fmt: skip


@pytest.mark.parametrize("kind", [MaskHead, BoxHead])
def test_backward_hooks_of_a_wrapped_head_are_called(kind: type[Head]) -> None:
    """ZeRO-3 reduces the gradients in one, of whatever wraps the head."""
    wrapper = ModulesToSaveWrapper(kind(16, {"type": "dot", "image_size": 32, "width": 8}), "default")
    called = []
    wrapper.register_full_backward_hook(lambda module, into, out: called.append(len(out)))
    clips = FrameBatch(torch.zeros(2, 3, 32, 32), torch.tensor([2]), torch.tensor([0]))
    raw = run_head(wrapper, torch.ones(1, 16, requires_grad=True), clips)
    sum(tensor.sum() for tensor in raw.values()).backward()
    assert list(raw) == list(kind.outputs) and called == [len(kind.outputs)]
