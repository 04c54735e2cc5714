"""Questions of which half need a tool: the tool tells what is asked, and the rows show calls by lot."""

import json
from pathlib import Path

import numpy as np
import pytest

from aurora_rl.data.sample import AVClip
from aurora_rl.rollout.clip_tools import Ears
from aurora_rl.scripts import make_window_questions
from aurora_rl.synthetic.window_questions import LEVELS, NUM_WINDOWS, sound, write_window_questions

#: Word of the tool's answer for each level.
WORDS = {"silent": "Silence", "quiet": "below", "loud": "above"}


@pytest.mark.parametrize("levels", [("loud", "quiet", "silent", "loud"), ("silent", "quiet", "quiet", "loud")])
def test_the_tool_tells_each_windows_level_and_no_other(levels: tuple[str, ...]) -> None:
    waveform = sound(levels, np.random.default_rng(0))
    ears = Ears()
    ears.reset(read_clip=lambda: AVClip(np.zeros((0, 1, 1, 3), np.uint8), waveform, None))
    for start, level in enumerate(levels):
        told = ears.loudness(start, start + 1)
        assert [word for word in WORDS.values() if word in told] == [WORDS[level]]


def test_rows_hold_true_answers_and_calls_of_the_asked_window(tmp_path: Path) -> None:
    write_window_questions(tmp_path, sft=40, train=2, test=2)
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [sum(row["split"] == split for row in rows) for split in ("sft", "train", "test")] == [40, 2, 2]
    calls = [row for row in rows if row.get("calls")]
    assert 0 < len(calls) < 20 and {row["split"] for row in calls} == {"sft"}
    for row in calls:
        start = row["calls"][0]["arguments"]["start_s"]
        assert f"from {start} to {start + 1} s" in row["reference"] and row["answer"] in row["choices"]
        assert start < NUM_WINDOWS
        if row["reference_type"] == "loudness":
            assert Path(row["audio"]).stem.split("-")[start] == row["answer"] and sorted(row["choices"]) == sorted(
                LEVELS
            )


def test_odd_numbers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_window_questions.main(["--output_dir", str(tmp_path), "--sft", "3"])
    assert "need even numbers" in capsys.readouterr().err
