"""An adapter that is trained on: its reference is the adapter as it was, before and after a resume."""

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import Trainer

from aurora_rl.data.sample import AVSample
from aurora_rl.models.loading import LoadedModel
from tests.trainers.conftest import lora
from tests.trainers.test_resume import assert_resumes_exactly, letters


@pytest.fixture
def adapter(loaded: LoadedModel) -> PeftModel:
    """LoRA that has learnt something: `get_peft_model` alone leaves it without effect."""
    model = get_peft_model(copy.deepcopy(loaded.model), lora(loaded, dropout=0.0))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


@pytest.fixture
def make(
    make_grpo: Callable[..., Trainer], adapter: PeftModel, train_samples: list[AVSample]
) -> Callable[..., Trainer]:
    """A run that continues the adapter; every run gets its first weights, as every launch loads them."""
    common = {"samples": train_samples[:8], "script": None, "rewards": [letters], "beta": 0.5, "learning_rate": 0.01}
    return lambda **options: make_grpo(model=copy.deepcopy(adapter), **{**common, **options})


OPTIONS = {"save_strategy": "steps", "max_steps": 4, "save_steps": 2, "killed_after": 3}


def test_a_resumed_run_goes_on_from_its_checkpoint_and_keeps_to_its_first_adapter(make: Callable[..., Trainer]) -> None:
    """Of the parameters that are compared, the reference's are some."""
    assert_resumes_exactly(make, **OPTIONS)


def test_a_checkpoint_from_when_the_reference_was_saved_resumes_as_well(
    make: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "aurora_rl.trainers.reference_model.only_trained_adapters"
    monkeypatch.setattr(name, lambda model: contextlib.nullcontext())
    assert_resumes_exactly(make, **OPTIONS)
    assert list(tmp_path.glob("*_killed/checkpoint-2/ref/adapter_model.safetensors"))


def test_the_reference_is_in_no_checkpoint_and_stays_in_memory(make: Callable[..., Trainer]) -> None:
    trainer = make(save_strategy="steps", max_steps=1, save_steps=1)
    assert set(trainer.model.peft_config) == {"default", "ref"}  # TRL's doing
    trainer.train()
    assert set(trainer.model.peft_config) == {"default", "ref"}
    written = sorted(path.parent.name for path in Path(trainer.args.output_dir).rglob("adapter_model.safetensors"))
    assert written == ["checkpoint-1"]
