from pathlib import Path

import pytest

from aurora_rl.footprint.launch import Launch
from aurora_rl.trainers.sft_config import AuroraSFTConfig

CONFIGS = Path(__file__).resolve().parents[2] / "accelerate_configs"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cpu", Launch(1, is_gpu=False)),
        ("single_gpu", Launch(1)),
        ("multi_gpu", Launch(8)),
        ("zero2", Launch(8, 2, True)),
        ("zero3", Launch(8, 3, True)),
        ("fsdp2", Launch(8, 3)),
        ("multi_node", Launch(16, 2, True, num_machines=2)),
    ],
)
def test_shipped_configs_are_read(name: str, expected: Launch) -> None:
    assert Launch.read(CONFIGS / f"{name}.yaml") == expected


def test_offload_is_read(tmp_path: Path) -> None:
    text = (CONFIGS / "zero3.yaml").read_text()
    path = tmp_path / "offload.yaml"
    path.write_text(text.replace("offload_optimizer_device: none", "offload_optimizer_device: cpu"))
    launch = Launch.read(path)
    assert launch.offloads_optimizer and not launch.offloads_parameters
    assert str(launch) == "8 processes, ZeRO-3, optimizer in host memory"


def test_machines_are_told_by_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = AuroraSFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    monkeypatch.setattr(args.distributed_state, "num_processes", 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    launch = Launch.of(args)
    assert (launch.num_machines, launch.local_processes) == (2, 3)
    assert Launch(3, num_machines=2).local_processes == 2  # of the machine that has more


def test_this_process_is_one_on_a_cpu(tmp_path: Path) -> None:
    args = AuroraSFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert Launch.of(args) == Launch(1, is_gpu=False)
    assert str(Launch.of(args)) == "1 process, whole"
