"""Gradient checkpointing in both trainers: what it costs must not grow, and no frozen tower is propagated through."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import TrainerCallback

from aurora_rl.models.grounding import segmentation_model
from aurora_rl.models.loading import LoadedModel, freeze
from aurora_rl.trainers.sft import AuroraSFTTrainer

TOWERS = ("visual", "audio_tower")
#: Of torch.utils.checkpoint; TRL takes the reentrant one for LoRA under ZeRO-3.
KINDS = {"reentrant": {"use_reentrant": True}, "not reentrant": {"use_reentrant": False}}
parametrize_kinds = pytest.mark.parametrize("kwargs", KINDS.values(), ids=list(KINDS))
parametrize_peft = pytest.mark.parametrize("peft", [False, True], ids=["full", "LoRA"])


class HookCounter(TrainerCallback):
    """Counts the hooks of all modules after each optimiser step."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        self.counts.append(sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds))


class TowerWatch:
    """Notes of each training pass through a tower whether its output needs a gradient."""

    def __init__(self, model: nn.Module) -> None:
        self.need_gradients: list[bool] = []
        inner = segmentation_model(model)
        for tower in (inner.visual, inner.audio_tower):
            tower.register_forward_hook(self._note)

    def _note(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            self.need_gradients += [value.requires_grad for value in output.values() if torch.is_tensor(value)]


@pytest.fixture(params=["sft", "grpo"])
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.getfixturevalue(f"make_{request.param}")


@parametrize_kinds
@parametrize_peft
def test_hooks_do_not_pile_up(make, peft, kwargs):
    counter = HookCounter()
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": dict(kwargs), "max_steps": 3}
    make(peft=peft, callbacks=[counter], **options).train()
    assert len(counter.counts) == 3
    assert len(set(counter.counts)) == 1


@pytest.mark.parametrize(
    ("peft", "kwargs"),
    [(False, None), (False, KINDS["not reentrant"]), (True, KINDS["not reentrant"]), (True, KINDS["reentrant"])],
    ids=["full, no checkpointing", "full", "LoRA", "LoRA, reentrant"],
)
def test_no_gradient_reaches_frozen_towers(make, loaded, peft, kwargs):
    freeze(loaded.model, list(TOWERS))
    checkpointing = {"gradient_checkpointing": kwargs is not None, "gradient_checkpointing_kwargs": dict(kwargs or {})}
    trainer = make(peft=peft, **checkpointing)
    watch = TowerWatch(trainer.model)
    trainer.train()
    # Two towers, two steps; in GRPO their outputs are those of an earlier pass.
    assert len(watch.need_gradients) >= (4 if isinstance(trainer, AuroraSFTTrainer) else 0)
    assert not any(watch.need_gradients)


@parametrize_kinds
@pytest.mark.parametrize(("peft", "frozen"), [(False, ()), (True, TOWERS)], ids=["all trained", "LoRA, frozen towers"])
def test_checkpointing_of_either_kind_changes_no_step(make, loaded, peft, frozen, kwargs):
    freeze(loaded.model, list(frozen))
    histories = []
    for flag in (False, True):
        trainer = make(peft=peft, gradient_checkpointing=flag, gradient_checkpointing_kwargs=dict(kwargs), dropout=0.0)
        trainer.train()
        histories.append([log for log in trainer.state.log_history if "grad_norm" in log])
    assert len(histories[0]) == 2
    for plain, checkpointed in zip(*histories, strict=True):
        assert checkpointed["loss"] == pytest.approx(plain["loss"], rel=1e-4, abs=1e-6)
        assert checkpointed["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-3)


@parametrize_kinds
def test_adapters_behind_frozen_weights_get_their_gradient(loaded: LoadedModel, kwargs):
    """Without trained embeddings, only the hook makes a checkpointed layer's input require a gradient."""
    model = get_peft_model(loaded.model, LoraConfig(r=2, target_modules=loaded.family.lora_target_modules))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    model.train()
    ids = torch.full((1, 6), 5)
    model(input_ids=ids, labels=ids).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert all(p.grad is not None for p in trained.values())
    assert any(p.grad.abs().sum() > 0 for p in trained.values())


def test_adapters_in_a_tower_get_their_gradient_too(loaded: LoadedModel):
    """The reentrant checkpoint drops the gradients of a layer whose input needs none."""
    vision = loaded.model.visual
    model = get_peft_model(loaded.model, LoraConfig(r=2, target_modules=r"visual\.blocks\.\d+\.attn\.proj"))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.train()
    patch = vision.config.patch_size
    patches = torch.randn(16, 3 * vision.config.temporal_patch_size * patch * patch)
    vision(patches, grid_thw=torch.tensor([[1, 4, 4]])).pooler_output.square().sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None for p in trained)


def test_switching_off_and_on_keeps_the_hooks_of_trained_parts_alone(loaded: LoadedModel):
    model = loaded.model
    freeze(model, ["visual"])
    layers = {
        "language model": (model.get_input_embeddings(), 1),
        "audio tower": (model.audio_tower.get_input_embeddings(), 1),
        "vision tower": (model.visual.get_input_embeddings(), 0),
    }
    for _ in range(3):
        model.gradient_checkpointing_disable()
        model.gradient_checkpointing_enable()
        assert {name: len(layer._forward_hooks) for name, (layer, _) in layers.items()} == {
            name: expected for name, (_, expected) in layers.items()
        }
    model.disable_input_require_grads()
    assert not any(layer._forward_hooks for layer, _ in layers.values())
