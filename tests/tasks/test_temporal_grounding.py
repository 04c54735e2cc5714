import dataclasses
import json

import pytest

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import check_scorable, check_truth, load_split
from aurora_rl.data.sample import AVSample
from aurora_rl.interval_metrics import join_spans, temporal_iou
from aurora_rl.tasks.base import Answer
from aurora_rl.tasks.temporal_grounding import TemporalGrounding, as_times, read_times, times_text, true_times
from reward_fns.temporal_iou import temporal_iou_reward, times_format_reward

TASK = TemporalGrounding()
FORM = "Look: I see a drum.\nListen: I hear a drum, then a bell.\nAnswer: "


def sample(times: object = "0.5-1.5", **fields) -> AVSample:
    values = {"uid": "a", "row": 3, "split": "train", "media_id": "a", "category": "bell", "reference": "the bell"}
    media = {"fps": 1.0, "frame_paths": ("0.jpg",), "audio_path": "a.wav", "origin": "clips.csv:5"}
    return AVSample(**{**values, **media, "extra": json.dumps({"times": times}), **fields})


@pytest.mark.parametrize(
    ("predicted", "true", "iou"),
    [
        ([(0, 2)], [(0, 2)], 1),
        ([(0, 2)], [(1, 3)], 1 / 3),
        ([(0, 1)], [(1, 2)], 0),
        ([(0, 1), (0, 1)], [(0, 1)], 1),  # said twice, counted once
        ([(0, 10)], [(1, 2), (3, 4)], 0.2),
        ([(3, 4), (1, 2)], [(1, 2), (3, 4)], 1),
        ([(0, 1), (1, 2)], [(0, 2)], 1),
        ([], [], 1),
        ([], [(0, 1)], 0),
        ([(0, 1)], [], 0),
        ([(1, 1)], [], 1),
    ],
)
def test_overlap_is_that_of_the_moments_covered(predicted, true, iou):
    assert temporal_iou(predicted, true) == pytest.approx(iou)
    assert temporal_iou(true, predicted) == pytest.approx(iou)


def test_spans_that_touch_are_one():
    assert join_spans([(1, 2), (0, 1), (5, 6), (5.5, 5.7)]) == [(0, 2), (5, 6)]


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("0.5-1.5", ((0.5, 1.5),)),
        ("0.5 - 1.5 s.", ((0.5, 1.5),)),
        ("From 0.5 to 1.5", None),
        ("0.5 to 1.5 seconds, and 3 to 4 seconds", ((0.5, 1.5), (3.0, 4.0))),
        ("0.5–1.5; 1-2", ((0.5, 2.0),)),
        (" NEVER.\n", ()),
        ("never, 1-2", None),
        ("1.5-0.5", None),
        ("1-1", None),
        ("-1-2", None),
        ("1-2-3", None),
        ("1e9-2e9", None),
        ("1.5", None),
        ("", None),
        (", ,", None),
        ("1-2 " * 50_000, None),
        (" ," * 50_000, None),
        ("1" * 100_000, None),
    ],
)
def test_times_are_read_strictly_and_in_little_time(text, spans):
    assert read_times(text) == spans


def test_times_are_read_back_as_they_are_written():
    assert read_times(times_text([(0.5, 1.5), (3.04, 4.0)])) == ((0.5, 1.5), (3.0, 4.0))
    assert read_times(times_text([])) == ()


@pytest.mark.parametrize("times", ["0.5-1.5, 3-4", [[3, 4], [0.5, 1.5]]])
def test_truth_is_text_or_pairs(times):
    assert true_times(sample(times)) == ((0.5, 1.5), (3.0, 4.0))
    assert true_times(sample("never")) == true_times(sample([])) == ()


@pytest.mark.parametrize(
    "times",
    [None, "", "soon", "2-1", 3, [1, 2], [[2, 1]], [[1, 1]], [[-1, 1]], [[1, "2"]], [[True, 2]], [[1, 2, 3]], {"a": 1}],
)
def test_a_row_without_readable_times_is_refused_before_a_model_is_loaded(times):
    with pytest.raises(ValueError, match=r"a#3 \(clips.csv:5\) has the times"):
        check_truth(TASK, [sample(), sample(times)])
    with pytest.raises(ValueError, match="expected a column `times`"):
        task = "aurora_rl.tasks.temporal_grounding:TemporalGrounding"
        check_scorable(DataArguments(benchmark="clips", task=task), [sample(times)])


def test_a_row_without_the_column_is_refused():
    with pytest.raises(ValueError, match="has the times None"):
        TASK.target(sample(extra=None))


def test_target_is_reasoning_and_times_and_is_right():
    row = sample(
        chain="Look: I see a drum.\nListen: I hear a drum, then a bell.", heard=("drum", "bell"), seen=("drum",)
    )
    target = TASK.target(row)
    assert target.learned == FORM + "0.5-1.5"
    assert set(TASK.text_scores(TASK.parse(target.learned), row).values()) == {1.0}
    assert TASK.target(sample("never")).learned == "Answer: never"


@pytest.mark.parametrize(
    ("answer", "iou", "readable", "recalls"),
    [
        ("0.5-1.5", 1, 1, (1, 1, 1)),
        ("0.5-2.5", 0.5, 1, (1, 1, 0)),
        ("1.0-2.0", 1 / 3, 1, (1, 0, 0)),
        ("never", 0, 1, (0, 0, 0)),
        ("soon", 0, 0, (0, 0, 0)),
        ("0.5-1.5\nAnswer: 0.5-1.5", 0, 0, (0, 0, 0)),
    ],
)
def test_an_answer_is_scored_by_its_overlap(answer, iou, readable, recalls):
    scores = TASK.text_scores(TASK.parse(FORM + answer), sample())
    assert scores["iou"] == pytest.approx(iou) and scores["readable"] == readable
    assert tuple(scores[f"recall_{least}"] for least in (0.3, 0.5, 0.7)) == recalls
    assert TASK.is_right(TASK.parse(FORM + answer), sample()) == recalls[1]
    assert temporal_iou_reward([None], [FORM + answer], sample=[sample()]) == [scores["iou"]]


def test_form_needs_all_parts_and_readable_times():
    texts = [FORM + "0.5-1.5", FORM + "soon", "Answer: 0.5-1.5", "So. " + FORM + "0.5-1.5", FORM]
    assert times_format_reward([None] * 5, texts) == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert TASK.parse(FORM + "0.5-1.5").value == "0.5-1.5" and TASK.parse(FORM).value is None


def test_another_tasks_answer_is_refused():
    with pytest.raises(TypeError, match="not Answer"):
        as_times(Answer("1-2"))


def test_the_synthetic_clips_ask_when_things_sound(tiny_benchmark):
    """The rows of moments.jsonl are those of the clips' sounds: spans lie in the clip, and one thing never sounds."""
    args = DataArguments(data_root=str(tiny_benchmark / "moments.jsonl"), benchmark="clips", fps=2.0, num_frames=4)
    rows = load_split(args, "train")
    check_truth(TASK, rows)
    for row in rows:
        spans = true_times(row)
        assert all(0 <= start < end <= 2 for start, end in spans)
        assert bool(spans) == (row.category in row.heard) == (row.extra_columns["kind"] != "never")
    asked = {clip: [row.category for row in rows if row.media_id == clip] for clip in {row.media_id for row in rows}}
    heard = {row.media_id: row.heard for row in rows}
    assert all(tuple(asked[clip][:-1]) == heard[clip] for clip in asked)
    assert dataclasses.asdict(rows[0])["reference"].startswith("the ")
