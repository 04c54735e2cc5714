"""bf16 as DeepSpeed does it: the parameters are cast, buffers stay as they are, and there is no autocast.

DeepSpeed's own cast is applied, without an engine, which would need a process group.
"""

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from trl.trainer.utils import add_fused_lm_head

from aurora_rl.models.grounding import GroundingMixin, install_head_forward
from aurora_rl.models.head_tokens import SUPPRESSED_LOGIT, suppress_tokens
from aurora_rl.models.heads import FrameBatch, MaskHead
from aurora_rl.models.heads.base import run_head
from aurora_rl.models.heads.segmenters import SEGMENTERS
from aurora_rl.models.heads.segmenters.base import Segmenter
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from aurora_rl.models.mllm.qwen2_5_omni.tiny import TinyOmniConfig, build_tiny_omni

#: One small config of each type of segmenter.
CONFIGS: dict[str, dict[str, Any]] = {
    "dot": {"type": "dot", "image_size": 32, "width": 8},
    "edgetam": {"type": "edgetam", "image_size": 64},
    "sam": {"type": "sam", "image_size": 64},
    "sam2": {"type": "sam2", "image_size": 64},
    "sam3_tracker": {"type": "sam3_tracker", "image_size": 56},
    "sam_hq": {"type": "sam_hq", "image_size": 64},
}
HIDDEN = 64


class TableSegmenter(Segmenter):
    """A decoder with a float32 buffer; it forgets to cast it, or casts it as `Segmenter.decode` asks."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.prompt_dim, self.frame_shape = 8, (8, 4, 4)
        self.table: torch.Tensor
        self.register_buffer("table", torch.randn(8, 4, 4))
        self.pixels = nn.Linear(8, 8)

    def decode(self, frame_inputs: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        table = self.table.to(frame_inputs) if self.config["casts"] else self.table
        pixels = self.pixels((frame_inputs + table).permute(0, 2, 3, 1))
        return torch.einsum("nhwc,ngc->nghw", pixels, prompts)


class Owner(nn.Module):
    """Owns a head as our models do, down to the list of what is to stay in float32."""

    _keep_in_fp32_modules_strict = GroundingMixin._keep_in_fp32_modules_strict

    def __init__(self, head: MaskHead) -> None:
        super().__init__()
        self.seg_head = head


@pytest.fixture
def deepspeed_cast(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], None]:
    """Turns a module into what DeepSpeed's engine makes of it with `bf16: enabled`."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    engine = pytest.importorskip("deepspeed.runtime.engine")
    keeping = pytest.importorskip("deepspeed.runtime.keep_in_fp32")

    def cast(module: nn.Module) -> None:
        kept = keeping.keep_in_fp32_pattern(module, keeping.KEEP_IN_FP32_AUTO, torch.bfloat16)
        stand_in = types.SimpleNamespace(module=module)
        engine.DeepSpeedEngine._cast_module_mixed_precision(stand_in, torch.bfloat16, None, False, kept)

    return cast


def decode(head: MaskHead, dtype: torch.dtype) -> torch.Tensor:
    """Masks (2 rows of 2 frames, 1 of 1) of states that came out of a language model of this dtype."""
    generator = torch.Generator().manual_seed(1)
    hidden_states = torch.randn(3, HIDDEN, generator=generator).bfloat16().to(dtype)
    frames = torch.randn(3, *head.mask_decoder.frame_shape, generator=generator).half()
    batch = FrameBatch(frames, torch.tensor([2, 1]), torch.tensor([0, 0, 1]))
    return run_head(head, hidden_states, batch)["mask_logits"]


def all_gradients_are_finite(module: nn.Module) -> bool:
    return all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())


def biased_head(config: dict[str, Any]) -> MaskHead:
    """An untrained head whose projections have biases as large as their answers, as trained ones may."""
    torch.manual_seed(0)
    head = MaskHead(HIDDEN, config)
    for name, parameter in head.named_parameters():
        if name.endswith("proj.bias"):
            nn.init.normal_(parameter)
    return head


def test_there_is_a_config_of_every_type_of_segmenter():
    assert CONFIGS.keys() == SEGMENTERS.keys()


@pytest.mark.parametrize("kind", sorted(SEGMENTERS))
def test_every_mask_decoder_runs_and_stays_near_float32_after_the_cast(kind, deepspeed_cast):
    exact = biased_head(CONFIGS[kind])
    head = copy.deepcopy(exact)
    deepspeed_cast(Owner(head))
    assert {p.dtype for p in head.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in head.buffers()} <= {torch.float32}
    with torch.no_grad():
        expected = decode(exact, torch.float32)
    mask_logits = decode(head, torch.bfloat16)
    mask_logits.square().mean().backward()
    assert all_gradients_are_finite(head)
    assert mask_logits.dtype == torch.float32
    error = (mask_logits.detach() - expected).norm() / (expected - expected.mean()).norm()
    assert error < 0.04  # 0.01 for each of them; bf16 has 8 bits


@pytest.mark.parametrize("kind", sorted(SEGMENTERS))
def test_chunks_that_are_computed_again_run_after_the_cast(kind, deepspeed_cast):
    head = MaskHead(HIDDEN, CONFIGS[kind])
    head.mask_decoder.max_masks_per_chunk = 1
    deepspeed_cast(Owner(head))
    decode(head, torch.bfloat16).square().mean().backward()
    assert all_gradients_are_finite(head)


@pytest.mark.parametrize("casts", [False, True])
def test_a_decoder_that_does_not_cast_its_buffer_fails(casts, deepspeed_cast, monkeypatch):
    monkeypatch.setitem(SEGMENTERS, "table", TableSegmenter)
    head = MaskHead(HIDDEN, {"type": "table", "casts": casts})
    deepspeed_cast(Owner(head))
    if casts:
        decode(head, torch.bfloat16).sum().backward()
    else:
        with pytest.raises(RuntimeError, match="dtype"):
            decode(head, torch.bfloat16)


@pytest.mark.parametrize("kind", ["dot", "sam"])
@pytest.mark.parametrize("loaded_in", [torch.bfloat16, torch.float32])
def test_a_whole_model_samples_and_scores_after_the_cast(kind, loaded_in, deepspeed_cast):
    torch.manual_seed(0)
    model, processor = build_tiny_omni(["the object that rings"], CONFIGS[kind], TinyOmniConfig(num_layers=1))
    model.to(loaded_in)
    model.seg_head.float()
    suppressed = Qwen2_5OmniFamily().multimodal_token_ids(model.config)
    suppress_tokens(model.lm_head, suppressed)  # its bias has the dtype that the weights were loaded in
    deepspeed_cast(model)
    add_fused_lm_head(model)
    install_head_forward(model)
    ids = torch.full((2, 6), processor.tokenizer("the").input_ids[0])
    logits = model(input_ids=ids).logits
    assert logits.dtype == torch.bfloat16
    assert (logits[..., suppressed] < 0.9 * SUPPRESSED_LOGIT).all()
    frames = torch.randn(2, *model.seg_head.mask_decoder.frame_shape).half()
    masks = {
        "seg_index": torch.tensor([5, 5]),
        "seg_frames": frames,
        "seg_frame_counts": torch.tensor([2]),
        "seg_clip_index": torch.tensor([0, 0]),
    }
    outputs = model(input_ids=ids, labels=ids, fused_lm_head=True, **masks)
    (outputs.loss + outputs.mask_logits.square().mean()).backward()
    assert all_gradients_are_finite(model.seg_head)
