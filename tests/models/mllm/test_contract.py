"""The contract of a family, for all families; and for each check a family that breaks it."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers import Qwen3VLForConditionalGeneration as StockQwen3VL

from aurora_rl.models.mllm import FAMILIES, MLLMFamily
from aurora_rl.models.mllm.contract import CHECKS, ContractError, Subject, main
from aurora_rl.models.mllm.mixin import MLLMMixin
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from aurora_rl.models.mllm.qwen2_5_omni.model import AuroraQwen2_5Omni
from aurora_rl.models.mllm.qwen2_5_vl import Qwen2_5VLFamily
from aurora_rl.models.mllm.qwen3_vl import Qwen3VLFamily
from aurora_rl.models.state_layer import StateLayer

RecordProperty = Callable[[str, object], None]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.model_types[0])
def subject(request: pytest.FixtureRequest) -> Subject:
    return Subject.of(request.param())


@pytest.mark.parametrize("name", CHECKS)
def test_the_family_passes(subject: Subject, name: str, record_property: RecordProperty) -> None:
    measured = CHECKS[name](subject)
    assert measured is not None or (name == "silence" and not subject.family.hears)
    assert name != "generate" or "prompts are read once" in str(measured)
    record_property("cell", f"{subject.family.model_types[0]}|contract|1 of {len(CHECKS)} checks")


# ---- what each check catches


class OfTowers(Qwen3VLFamily):
    """Adapts layers of a frozen tower."""

    lora_target_modules = r"model\.visual\.blocks\.\d+\.attn\.qkv"


class SecondTable(Qwen3VLFamily):
    """Has a table of the vocabulary without room for `[SEG]`."""

    def build_tiny(self, texts: Any, **options: Any) -> Any:
        model, processor = super().build_tiny(texts, **options)
        model.get_decoder().per_layer = nn.Embedding(20, 4)
        return model, processor


class Delimiters(Qwen3VLFamily):
    """Forgets the tokens around a video."""

    def suppressed_token_ids(self, processor: Any, config: Any) -> list[int]:
        return [config.video_token_id]


class Credulous(Qwen3VLFamily):
    """Drops what it does not understand in a text."""

    def encode(self, processor: Any, messages: Any, **options: Any) -> Any:
        try:
            return super().encode(processor, messages, **options)
        except ValueError:
            parts = [part for part in messages[0]["content"] if part["type"] != "text"]
            return super().encode(processor, [{**messages[0], "content": parts}], **options)


class WithoutTypes(MLLMMixin, Qwen2_5_VLForConditionalGeneration):
    def _with_token_types(self, kwargs: dict[str, Any], *args: Any) -> dict[str, Any]:
        return kwargs


class Misplaced(Qwen2_5VLFamily):
    """Leaves out `mm_token_type_ids`, of which nothing complains."""

    model_class = WithoutTypes


class Blind(Qwen3VLFamily):
    """Loses the pixels."""

    def collate_features(self, features: Any, media_index: Any = None) -> dict[str, torch.Tensor]:
        batch = super().collate_features(features)
        return {**batch, "pixel_values_videos": torch.zeros_like(batch["pixel_values_videos"])}


class WithoutMask(MLLMMixin, StockQwen3VL):
    def read(self, inner_forward: Any, *args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        return super().read(inner_forward, *args, **kwargs)


class Padding(Qwen3VLFamily):
    """Reads padding."""

    model_class = WithoutMask


class InOtherOrder(MLLMMixin, StockQwen3VL):
    def _of_rows(self, outputs: Any, modality: str, parts: Any, index: Any) -> Any:
        return super()._of_rows(outputs, modality, parts, sorted(index, reverse=True))


class Mixed(Qwen3VLFamily):
    """Gives clips to other rows."""

    model_class = InOtherOrder


class SkipsTheTower(AuroraQwen2_5Omni):
    def _features_of_rows(self, modality: str, stock: Any, *args: Any, **kwargs: Any) -> Any:
        if modality == "audio" and not (self._ids == self.config.audio_token_id).any():
            return SimpleNamespace(last_hidden_state=torch.zeros(0, 64))
        return super()._features_of_rows(modality, stock, *args, **kwargs)


class Silent(Qwen2_5OmniFamily):
    """Runs no audio tower in a silent batch."""

    model_class = SkipsTheTower

    def build_tiny(self, texts: Any, **options: Any) -> Any:
        model, processor = super().build_tiny(texts, **options)
        again = SkipsTheTower(model.config)
        again.lm_head = model.lm_head
        return again, processor


class ForgetsDepth(MLLMMixin, StockQwen3VL):
    def _of_rows(self, outputs: Any, *args: Any) -> Any:
        outputs = super()._of_rows(outputs, *args)
        if self.tower_outputs is not None:
            outputs.deepstack_features = [torch.zeros_like(level) for level in outputs.deepstack_features]
        return outputs


class Shallow(Qwen3VLFamily):
    """Keeps only some of what its tower has computed."""

    model_class = ForgetsDepth


class GeneratesWithoutTypes(MLLMMixin, StockQwen3VL):
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return StockQwen3VL.generate(self, *args, **kwargs)


class MisplacedLater(Qwen3VLFamily):
    """Leaves out `mm_token_type_ids` in generation alone, of which nothing complains."""

    model_class = GeneratesWithoutTypes


class ScalesLogits(MLLMMixin, StockQwen3VL):
    def read(self, inner_forward: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = super().read(inner_forward, *args, **kwargs)
        if "logits" in outputs:
            outputs.logits = outputs.logits * 1.1
        return outputs


class Scaled(Qwen3VLFamily):
    """Has logits that are not `lm_head` of the state."""

    model_class = ScalesLogits


class ReadsAnotherLayer(MLLMMixin, StockQwen3VL):
    def state_layer(self, name: str | None = None) -> StateLayer:
        return StateLayer(self.get_decoder())


class LastLayerAlone(Qwen3VLFamily):
    """Gives every head the last layer."""

    model_class = ReadsAnotherLayer


class DetachesTowers(MLLMMixin, StockQwen3VL):
    def _features_of_rows(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return super()._features_of_rows(*args, **kwargs)


class Detached(Qwen3VLFamily):
    """Keeps gradients from its tower."""

    model_class = DetachesTowers


BREAKS: dict[str, tuple[type[MLLMFamily], str]] = {
    "parts": (OfTowers, "lies in a tower"),
    "seg": (SecondTable, "has 20 rows"),
    "suppressed": (Delimiters, r"vision_(start|end)\|> goes with media"),
    "forgery": (Credulous, "was not refused"),
    "as_transformers": (Misplaced, "differs from transformers' own class"),
    "media_reach": (Blind, "change the answer by 0"),
    "padded": (Padding, "rows differ from the rows alone"),
    "shared": (Mixed, "rows that share clips differ"),
    "silence": (Silent, "no tower ran"),
    "kept": (Shallow, "kept outputs of the towers differ"),
    "generate": (MisplacedLater, "one forward pass a token"),
    "state": (Scaled, "is not the logits"),
    "state_layers": (LastLayerAlone, "is not transformers' hidden state of that layer"),
    "fused": (Scaled, "fused log-probabilities"),
    "towers_learn": (Detached, "no gradient reaches"),
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_family_that_breaks_it_is_caught(name: str) -> None:
    family, message = BREAKS[name]
    broken = Subject.of(family())
    with pytest.raises(ContractError, match=message):
        CHECKS[name](broken)


def test_the_command_tells_of_each_check_and_fails_with_one(capsys: pytest.CaptureFixture) -> None:
    assert main([f"{__file__}:OfTowers"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == list(CHECKS)
    assert "FAILED: lora_target_modules matches" in lines[0]
    assert f"{len(CHECKS) - 1} of {len(CHECKS)} checks pass" in lines[-1]
