"""Files that an evaluation leaves behind."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from aurora_rl.data.run_lengths import decode_masks, encode_masks
from aurora_rl.evaluation.records import (
    ClipScore,
    CompletionScore,
    RolloutScore,
    SampleResult,
    read_results,
    write_results,
)

MASKS = np.array([[[1, 0, 1], [0, 0, 1]], [[0, 0, 0], [0, 0, 0]]], dtype=bool)  # (2, 2, 3)
RESULT = SampleResult(
    uid="clip_0_1000_hair-dryer_1",
    row=3,
    split="test_u",
    media_id="clip_0_1000",
    category="hair-dryer",
    reference="The “loud” object – on the left.",
    reference_type=None,
    preset="refavs",
    greedy=CompletionScore(
        text="Look: I see nothing.\nAnswer: [SEG]",
        category=None,
        format=0.0,
        category_correct=0.0,
        see=None,
        hear=1.0,
        clip=ClipScore(J=1 / 3, F=0.1, f_curve=(0.1, 0.05), S=0.2, S_frames=0.25, iou=0.3, is_missing=False),
        pred_masks=encode_masks(MASKS),
        preset_masks=encode_masks(~MASKS),
    ),
    sampled=(RolloutScore(format=1.0, category=0.0, iou=0.7), RolloutScore(format=1.0, category=1.0, iou=0.9)),
)


def test_masks_survive_run_length_encoding():
    assert np.array_equal(decode_masks(encode_masks(MASKS)), MASKS)


def test_run_lengths_hold_height_and_width_in_this_order():
    assert encode_masks(MASKS)[0]["size"] == [2, 3]


def test_masks_that_are_not_bool_are_an_error():
    with pytest.raises(ValueError, match="uint8"):
        encode_masks(MASKS.astype(np.uint8))


def test_results_are_read_back_as_written(tmp_path: Path):
    second = dataclasses.replace(RESULT, row=4, sampled=())
    write_results(tmp_path / "made" / "results.jsonl", [RESULT, second])
    assert read_results(tmp_path / "made" / "results.jsonl") == [RESULT, second]


def test_row_that_is_there_twice_is_an_error(tmp_path: Path):
    write_results(tmp_path / "results.jsonl", [RESULT, RESULT])
    with pytest.raises(ValueError, match=r"results.jsonl:2 .*hair-dryer_1#3"):
        read_results(tmp_path / "results.jsonl")


@pytest.mark.parametrize("line", ['{"uid": "x"', '{"uid": "x"}', "[]"], ids=["cut off", "other record", "no record"])
def test_line_that_is_no_result_is_an_error_that_names_the_line(tmp_path: Path, line: str):
    path = tmp_path / "results.jsonl"
    write_results(path, [RESULT])
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="results.jsonl:2"):
        read_results(path)
