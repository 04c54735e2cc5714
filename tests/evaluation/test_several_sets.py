"""An evaluation on several data sets: a folder, scores and a page for each, and one table of all."""

import json
from pathlib import Path

import pytest

from aurora_rl.cli import main
from aurora_rl.evaluation.records import read_results

CONFIG = """
data:
  - {{name: avs, split: [test_s, test_n], preset: avsbench, chains: chains.jsonl}}
  - {{benchmark: questions, split: [test_s], task: aurora_rl.tasks.multiple_choice:MultipleChoice}}
data_root: {root}
fps: 2.0
num_frames: 4
instruction: "{{reference}}"
min_pixels: 256
max_pixels: 65536
max_completion_length: 4
batch_size: 8
use_cpu: true
"""


def test_each_set_is_scored_by_its_task_and_preset_in_a_folder_of_its_own(
    tiny_benchmark: Path, tiny_checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = tmp_path / "evaluate.yaml", tmp_path / "out"
    config.write_text(CONFIG.format(root=tiny_benchmark))
    command = ["evaluate", "--model", tiny_checkpoint, "--config", str(config), "--output_dir", str(out)]
    assert main([*command, "--report", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr().out
    assert "avs/test_s" in printed and "questions/test_s" in printed and "accuracy" in printed
    common = json.loads((out / "scores.json").read_text())
    assert common["preset"] == "avsbench, refavs"
    assert list(common["splits"]) == ["avs/test_s", "avs/test_n", "questions/test_s"]
    for name in ("avs", "questions"):
        own = json.loads((out / name / "scores.json").read_text())
        assert common["datasets"][name] == {key: own[key] for key in ("preset", "overall", "clips")}
        assert (tmp_path / f"page.{name}.html").exists()
    assert {row.preset for row in read_results(out / "avs")} == {"avsbench"}
    assert all(row.masks is None and row.answer for row in read_results(out / "questions"))
    assert not list(out.rglob("*.partial.*"))
    with pytest.raises(ValueError, match="folders of several data sets, give one: avs, questions"):
        read_results(out)
