"""A resumed run runs no code that lies in DeepSpeed's part of a checkpoint."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.trainer

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

        def load_checkpoint(self, folder: str, **options: Any) -> tuple[str, dict]:
            return folder, torch.load(Path(folder, "state.pt"), weights_only=False)

    (tmp_path / "global_step1").mkdir()
    before = transformers.trainer.deepspeed_load_checkpoint, torch.load
    with pytest.raises(UnsafeCheckpointError), deepspeed_loads_weights_alone():
        transformers.trainer.deepspeed_load_checkpoint(Engine(), str(tmp_path))
    assert not (tmp_path / "ran").exists()
    assert (transformers.trainer.deepspeed_load_checkpoint, torch.load) == before, "an error restores them as well"


def test_the_pickled_index_of_a_sharded_checkpoint_is_refused(tmp_path: Path) -> None:
    refuse_pickled_index(tmp_path)
    (tmp_path / "pytorch_model_fsdp_0").mkdir()
    (tmp_path / "pytorch_model_fsdp_0" / ".metadata").touch()
    with pytest.raises(UnsafeCheckpointError, match="FULL_STATE_DICT"):
        refuse_pickled_index(tmp_path)
