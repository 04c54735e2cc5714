"""Files that an evaluation leaves behind, and those that version 0.1 left."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aurora_rl.data.run_lengths import decode_masks, encode_masks
from aurora_rl.evaluation.records import (
    CompletionScore,
    RolloutScore,
    RowResult,
    read_meanings,
    read_results,
    record_of,
    result_from_record,
    write_evaluation,
    write_results,
)
from tests.row_results import ROW, null, replied, rollout, row

MASKS = np.array([[[1, 0, 1], [0, 0, 1]], [[0, 0, 0], [0, 0, 0]]], dtype=bool)  # (2, 2, 3)
RESULT = RowResult(
    uid="clip_0_1000_hair-dryer_1",
    row=3,
    split="test_u",
    media_id="clip_0_1000",
    category="hair-dryer",
    reference="The “loud” object – on the left.",
    reference_type="audio + space",
    type_is_derived=True,
    preset="refavs",
    J=1 / 3,
    F=0.1,
    f_curve=(0.1, 0.05),
    S=0.2,
    S_per_frame=0.25,
    is_missing=False,
    greedy=CompletionScore(
        text="Look: I see nothing.\nAnswer: [SEG]",
        value=None,
        is_right=False,
        scores={"format": 0.0, "category": 0.0, "see": None, "hear": 1.0},
        iou=0.3,
        pred_masks=encode_masks(MASKS),
        preset_masks=encode_masks(~MASKS),
    ),
    sampled=(rollout(1.0, 0.0, 0.7), rollout(1.0, 1.0, 0.9)),
)


def test_masks_survive_run_length_encoding():
    assert np.array_equal(decode_masks(encode_masks(MASKS)), MASKS)


def test_run_lengths_hold_height_and_width_in_this_order():
    assert encode_masks(MASKS)[0]["size"] == [2, 3]


def test_masks_that_are_not_bool_are_an_error():
    with pytest.raises(ValueError, match="uint8"):
        encode_masks(MASKS.astype(np.uint8))


def test_results_are_read_back_as_written(tmp_path: Path):
    results = [RESULT, dataclasses.replace(RESULT, row=4, sampled=()), row(5)]
    write_results(tmp_path / "made" / "results.jsonl", results)
    assert read_results(tmp_path / "made" / "results.jsonl") == results


def test_evaluation_is_two_files_with_the_rows_in_the_order_of_the_table(tmp_path: Path):
    rows = [row(2, reference="„Ähre“"), row(0), null(1, 0.5)]
    write_evaluation(tmp_path / "made", rows, {"preset": "refavs"})
    write_evaluation(tmp_path / "made", rows[:1], {"preset": "davis"}, ablation="muted")
    for name in ("", "scores.json", "results.jsonl"):
        assert read_results(tmp_path / "made" / name) == [rows[1], rows[2], rows[0]]
    assert read_results(tmp_path / "made" / "scores.muted.json") == rows[:1]
    assert json.loads((tmp_path / "made" / "scores.json").read_text()) == {"preset": "refavs"}
    assert len(list((tmp_path / "made").iterdir())) == 4


def test_row_that_is_there_twice_or_no_file_is_an_error(tmp_path: Path):
    write_results(tmp_path / "results.jsonl", [RESULT, RESULT])
    with pytest.raises(ValueError, match=r"results.jsonl:2 .*hair-dryer_1#3' a second time"):
        read_results(tmp_path / "results.jsonl")
    with pytest.raises(ValueError, match=r"there is no .*other\.jsonl"):
        read_results(tmp_path / "other.json")


@pytest.mark.parametrize(
    "line",
    ['{"uid": "x"', '{"uid": "x"}', "[]", "{}", json.dumps({**dataclasses.asdict(ROW), "J": "0.5"})],
    ids=["cut off", "other record", "no record", "nothing", "no number"],
)
def test_line_that_is_no_result_is_an_error_that_names_the_line(tmp_path: Path, line: str):
    path = tmp_path / "results.jsonl"
    write_results(path, [RESULT])
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"results\.jsonl:2 is no evaluation result"):
        read_results(path)


def test_results_of_a_model_by_version_0_1_are_read():
    now: dict[str, Any] = record_of(RESULT)
    names = {"J": "J", "F": "F", "f_curve": "f_curve", "S": "S", "S_per_frame": "S_frames", "is_missing": "is_missing"}
    greedy = now["greedy"]
    clip = {then: now.pop(name) for name, then in names.items()} | {"iou": greedy.pop("iou")}
    del now["type_is_derived"], now["novelty"]
    record = {**now, "reference_type": None, "greedy": {**greedy, "clip": clip}}
    assert result_from_record(json.loads(json.dumps(record))) == RESULT


def test_rows_of_saved_masks_by_version_0_1_are_read(tmp_path: Path):
    result = row(1, novelty="new")
    record = record_of(result)
    for name in ("f_curve", "greedy", "sampled"):
        del record[name]
    record = record | {"text": record.pop("reference"), "missing": record.pop("is_missing"), "completion": None}
    (tmp_path / "out.jsonl").write_text(json.dumps(record) + "\n")
    assert read_results(tmp_path / "out.json") == [result]


# ---- rows without masks -----------------------------------------------------------------------------------------


def test_answers_in_words_are_read_back_as_written(tmp_path: Path):
    sampled = (RolloutScore(True, {"format": 0.0, "brief": None}), RolloutScore(False, {"format": 1.0, "brief": 0.5}))
    results = [replied(0, scores={"format": 1.0, "brief": None}), replied(1, None, is_right=False, sampled=sampled)]
    write_results(tmp_path / "results.jsonl", results)
    assert read_results(tmp_path / "results.jsonl") == results
    first, second = (json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines())
    assert (first["J"], first["S"], first["is_missing"], first["answer"]) == (None, None, False, "the drum")
    assert first["greedy"]["scores"] == {"format": 1.0, "brief": None} and first["greedy"]["value"] == "b"
    assert second["sampled"][1] == {"is_right": False, "scores": {"format": 1.0, "brief": 0.5}, "iou": None}


def test_reference_segmentation_keeps_its_keys():
    record = record_of(RESULT)
    assert list(record["greedy"]) == [
        *("text", "category", "format", "category_correct", "see", "hear", "iou", "pred_masks", "preset_masks")
    ]
    assert record["sampled"] == [
        {"format": 1.0, "category": 0.0, "iou": 0.7},
        {"format": 1.0, "category": 1.0, "iou": 0.9},
    ]
    assert "answer" not in record


@pytest.mark.parametrize(
    "changes", [{"J": 0.5}, {"greedy": {**record_of(replied(0))["greedy"], "scores": {"format": "1"}}}]
)
def test_mask_scores_in_part_and_scores_that_are_no_numbers_are_refused(changes: dict[str, Any]):
    with pytest.raises(ValueError, match=r"or all null|format is '1'"):
        result_from_record({**record_of(replied(0)), **changes})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, "1", []])
@pytest.mark.parametrize("path", [("S",), ("f_curve", 1), ("greedy", "iou"), ("greedy", "see"), ("sampled", 0, "iou")])
def test_what_is_no_finite_number_is_no_score(path: tuple[Any, ...], value: object, tmp_path: Path):
    record = json.loads(json.dumps({**record_of(RESULT), "f_curve": [0.5, 0.25]}))
    place = record
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    (tmp_path / "results.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(ValueError, match=r"results.jsonl:1 is no evaluation result \(.*expected a number"):
        read_results(tmp_path / "results.jsonl")


@pytest.mark.parametrize(
    "changes",
    [
        *({"reference_type": []}, {"type_is_derived": None}, {"preset": ["refavs"]}, {"is_missing": "no"}),
        *({"novelty": {}}, {"f_curve": "0.5"}, {"dataset": 3}, {"greedy": {"text": None}}, {"greedy": {"is_right": 1}}),
    ],
)
def test_fields_of_another_kind_are_refused(changes: dict[str, Any]):
    record = record_of(replied(0))
    if "greedy" in changes:
        changes = {"greedy": {**record["greedy"], **changes["greedy"]}}
    with pytest.raises(ValueError, match=r"is .*: expected (bool|list|str)"):
        result_from_record({**record, **changes})


def test_meanings_of_a_tasks_scores_are_read_from_its_scores(tmp_path: Path):
    meanings = {"brief": "short answers"}
    write_evaluation(tmp_path / "of", [replied(0)], {"preset": "refavs", "meanings": meanings})
    assert read_meanings(tmp_path / "of") == read_meanings(tmp_path / "of" / "results.jsonl") == meanings
    write_results(tmp_path / "alone" / "results.jsonl", [replied(0)])
    assert read_meanings(tmp_path / "alone") == {}
