"""`--dry_run` of sft, grpo and evaluate: what it tries, what it prints, and that it writes nothing."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from aurora_rl.cli import main

Run = Callable[..., str]
COMMON = {"fps": 2.0, "num_frames": 4, "use_cpu": True}
TRAINING = {**COMMON, "chains": "chains.jsonl", "eval_split": "val", "bf16": False, "max_steps": 5}


@pytest.fixture
def dry(
    tiny_checkpoint: str,
    tiny_benchmark: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Run:
    """Tries a command in this process, and returns what it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["aurora-rl"])
    caplog.set_level(logging.INFO, logger="aurora_rl")

    def run(kind: str, **keys: object) -> str:
        caplog.clear()
        usual = COMMON if kind == "evaluate" else TRAINING
        content = {"model": tiny_checkpoint, "data_root": str(tiny_benchmark), "output_dir": "new", **usual, **keys}
        Path("c.yaml").write_text(yaml.safe_dump(content))
        before = sorted(tmp_path.rglob("*"))
        assert main([kind, "--config", "c.yaml", "--dry_run"]) == 0
        assert sorted(tmp_path.rglob("*")) == before
        return "\n".join(record.getMessage() for record in caplog.records)

    return run


def test_sft_lists_samples_encodes_a_batch_and_prints_the_cost(dry: Run) -> None:
    said = dry("sft", target="chain")
    assert "train: rows: " in said and "val: rows: " in said and "0 unreadable" in said
    assert "one batch: " in said and "estimated memory of each process" in said
    assert "whole run: 5 steps, at least " in said and "assumed: A100 at 40% of 312 TFLOP/s" in said
    assert said.rstrip().endswith("dry run: nothing was trained or written")


def test_grpo_asks_every_reward_about_right_answers(dry: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "async def never(completions, **columns):\n    return [0.0] * len(completions)\n"
        "def sometimes(sample, **columns):\n    return [None if s.is_null else 0.5 for s in sample]\n"
    )
    names = ["reward_fns.format:format_reward", "reward_fns.mask_iou:mask_iou_reward", "mine.py:never"]
    said = dry("grpo", reward_funcs=[*names, "mine.py:sometimes"], num_generations=2, per_device_train_batch_size=4)
    lines = {line.split()[0]: line for line in said.splitlines() if line.startswith("  ") and line.split()}
    assert lines["format_reward"].split()[1] == lines["mask_iou_reward"].split()[1] == "1.000"
    assert "no right answer earns anything" in lines["never"]
    assert lines["sometimes"].split()[1].startswith("0.500")


def test_evaluate_counts_samples_and_ablations(dry: Run) -> None:
    once = dry("evaluate", split=["val"], batch_size=1)
    more = dry("evaluate", split=["val"], batch_size=1, num_samples=1, ablations=["audio_muted"])
    steps = [int(said.partition("whole run: ")[2].split()[0]) for said in (once, more)]
    assert steps[1] == 4 * steps[0]


def test_every_unreadable_file_is_named(dry: Run, tiny_benchmark: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_benchmark, tmp_path / "data")
    frames = sorted((tmp_path / "data" / "media").glob("train-*/frames/*"))[:2]
    for frame in frames:
        frame.write_bytes(b"no picture")
    with pytest.raises(SystemExit, match="dry run: these files cannot be read") as refused:
        dry("sft", data_root="data", eval_split=None)
    assert all(str(frame.relative_to(tmp_path)) in str(refused.value) for frame in frames)


def test_a_reward_that_fails_is_told_with_its_name(dry: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def broken(completions, **_):\n    return [float('nan')] * len(completions)\n")
    with pytest.raises(SystemExit, match="dry run: .*broken"):
        dry("grpo", reward_funcs=["mine.py:broken"], num_generations=2, per_device_train_batch_size=2)


def test_a_run_that_does_not_fit_ends_with_the_advice(dry: Run) -> None:
    with pytest.raises(SystemExit, match=r"dry run: this run is estimated at .* and there are 1\.00 MB"):
        dry("sft", memory_limit_gb=0.001)
