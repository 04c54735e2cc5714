"""A resumed run runs no code that lies in DeepSpeed's part of a checkpoint."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.trainer
from deepspeed.runtime.engine import DeepSpeedEngine
from peft import LoraConfig, PeftModel, get_peft_model

from aurora_rl.models.checkpoint_files import CheckpointError
from aurora_rl.models.loading import LoadedModel
from aurora_rl.trainers.safe_loading import (
    UnsafeCheckpointError,
    deepspeed_loads_weights_alone,
    refuse_pickled_index,
    weights_alone,
)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_what_deepspeed_writes_is_read_as_it_was(tmp_path: Path) -> None:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    scaler = DynamicLossScaler(8.0, 1000, 1.0, 1, False)
    state = {
        "stage": ZeroStageEnum.gradients,
        "scalers": [LossScaler(2.0), scaler],
        "slice": fragment_address(numel=3, start=1),
        "weights": torch.arange(3.0),
    }
    torch.save(state, tmp_path / "state.pt")
    with weights_alone():
        found = torch.load(tmp_path / "state.pt", weights_only=False)
    assert found["stage"] is ZeroStageEnum.gradients and found["slice"] == state["slice"]
    assert [vars(scaler) for scaler in found["scalers"]] == [vars(scaler) for scaler in state["scalers"]]
    assert found["weights"].equal(state["weights"])


def test_planted_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(1), "planted": Bomb(tmp_path / "ran")}, tmp_path / "state.pt")
    with (
        weights_alone(),
        pytest.raises(UnsafeCheckpointError, match=r"state\.pt is damaged, or holds more than weights"),
    ):
        torch.load(tmp_path / "state.pt", weights_only=False)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "state.pt", weights_only=False)
    assert (tmp_path / "ran").exists(), "outside of the block, and so above, it would have run"


def test_transformers_loads_weights_alone_while_a_run_trains(tmp_path: Path) -> None:
    torch.save(Bomb(tmp_path / "ran"), tmp_path / "state.pt")

    class Engine:
        """As DeepSpeed's."""

        module = torch.nn.Linear(1, 1)

        def load_checkpoint(self, folder: str, **options: Any) -> tuple[str, dict]:
            return folder, torch.load(Path(folder, "state.pt"), weights_only=False)

    (tmp_path / "global_step1").mkdir()
    before = transformers.trainer.deepspeed_load_checkpoint, torch.load
    with pytest.raises(UnsafeCheckpointError), deepspeed_loads_weights_alone():
        transformers.trainer.deepspeed_load_checkpoint(Engine(), str(tmp_path))
    assert not (tmp_path / "ran").exists()
    assert (transformers.trainer.deepspeed_load_checkpoint, torch.load) == before, "an error restores them as well"


@pytest.fixture
def adapted(loaded: LoadedModel) -> PeftModel:
    saved = ["seg_head", "embed_tokens", "lm_head"]
    return get_peft_model(loaded.model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=saved))


class LoadingEngine:
    """DeepSpeed's engine as far as it saves a model's weights and loads them."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def random_ltd_enabled(self) -> bool:
        return False

    def save(self, folder: Path, **changed: torch.Tensor | None) -> None:
        """Save what is trained, as accelerate asks for it, one weight's shape changed or without it."""
        state = DeepSpeedEngine.module_state_dict(self, exclude_frozen_parameters=True) | changed
        folder.mkdir()
        torch.save({"module": {name: weight for name, weight in state.items() if weight is not None}}, folder / "x.pt")

    def load_checkpoint(self, folder: str, *, load_module_strict: bool, **options: Any) -> tuple[str, dict]:
        checkpoint = torch.load(Path(folder, "global_step1", "x.pt"))
        DeepSpeedEngine.load_module_state_dict(self, checkpoint, strict=load_module_strict)
        return folder, {}


@pytest.mark.parametrize("part", ["lora_A", "seg_head", "embed_tokens"])
def test_a_trained_weight_that_deepspeeds_file_lacks_is_named(adapted: PeftModel, tmp_path: Path, part: str) -> None:
    engine = LoadingEngine(adapted)
    name = next(name for name, weight in adapted.named_parameters() if part in name and weight.requires_grad)
    engine.save(tmp_path / "global_step1", **{name: None})
    with deepspeed_loads_weights_alone(), pytest.raises(CheckpointError, match=rf"lacks the weight .*{part}"):
        transformers.trainer.deepspeed_load_checkpoint(engine, str(tmp_path), load_module_strict=False)


def test_a_weight_of_another_shape_in_deepspeeds_file_is_named(adapted: PeftModel, tmp_path: Path) -> None:
    engine = LoadingEngine(adapted)
    name = next(name for name, weight in adapted.named_parameters() if "lora_A" in name)
    engine.save(tmp_path / "global_step1", **{name: torch.zeros(1, 1)})
    with deepspeed_loads_weights_alone(), pytest.raises(CheckpointError, match=r"lora_A.* in another shape"):
        transformers.trainer.deepspeed_load_checkpoint(engine, str(tmp_path), load_module_strict=False)


def test_what_deepspeed_saves_of_an_adapter_is_loaded(adapted: PeftModel, tmp_path: Path) -> None:
    engine = LoadingEngine(adapted)
    engine.save(tmp_path / "global_step1")
    trained = [weight for weight in adapted.parameters() if weight.requires_grad]
    before = [weight.detach().clone() for weight in trained]
    with torch.no_grad():
        for weight in trained:
            weight.zero_()
    with deepspeed_loads_weights_alone():
        transformers.trainer.deepspeed_load_checkpoint(engine, str(tmp_path), load_module_strict=False)
    assert all(torch.equal(weight, expected) for weight, expected in zip(trained, before, strict=True))
    adapted.load_state_dict({}, strict=False)  # nothing of the loading stays behind


def test_the_pickled_index_of_a_sharded_checkpoint_is_refused(tmp_path: Path) -> None:
    refuse_pickled_index(tmp_path)
    (tmp_path / "pytorch_model_fsdp_0").mkdir()
    (tmp_path / "pytorch_model_fsdp_0" / ".metadata").touch()
    with pytest.raises(UnsafeCheckpointError, match="FULL_STATE_DICT"):
        refuse_pickled_index(tmp_path)
