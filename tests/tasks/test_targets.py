"""What each stage makes a row say, worked out by hand."""

import dataclasses
import json
from pathlib import Path

import pytest

from aurora_rl.assembly.arguments import DataArguments, TargetArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.assembly.teacher import assemble_target
from aurora_rl.data.files import DatasetError
from aurora_rl.data.sample import AVSample
from aurora_rl.tasks.prompts import without_seg
from aurora_rl.tasks.reference_segmentation import ReferenceSegmentation
from aurora_rl.tasks.targets import Target, forced_answer, gold_chain, mistakes_and_replay, reflection

SAMPLE = AVSample(
    uid="abc_drum_1",
    row=0,
    split="train",
    media_id="abc",
    category="drum",
    reference="the drum",
    fps=1.0,
    frame_paths=(),
    audio_path=None,
    mask_paths=(),
    chain="Look: right.\nAnswer: the target is the drum. It is [SEG].",
    wrong="Look: wrong.\nAnswer: the target is the dog.",
)
RIGHT = dataclasses.replace(SAMPLE, wrong=None)


def test_the_teacher_answers_without_reasoning():
    assert forced_answer(SAMPLE) == Target("It is drum [SEG].")
    assert forced_answer(dataclasses.replace(SAMPLE, category="null")) == Target("It is null [SEG].")


def test_a_mistake_is_given_and_its_correction_learned():
    target = reflection(SAMPLE)
    assert target.given == "Look: wrong.\nAnswer: the target is the dog."
    assert target.learned == ("\nWait, let me reconsider.\nLook: right.\nAnswer: the target is the drum. It is [SEG].")


def test_the_mistake_is_learned_too_where_that_is_asked_for():
    hidden, learned = reflection(SAMPLE), reflection(SAMPLE, learn_wrong=True)
    assert learned == Target(hidden.given + hidden.learned)


def test_a_row_without_a_mistake_keeps_its_chain():
    assert reflection(RIGHT) == gold_chain(RIGHT) == Target(RIGHT.chain)


def test_a_row_without_a_chain_is_refused():
    with pytest.raises(ValueError, match=r"abc_drum_1#0 has no chain.*`target: answer`"):
        gold_chain(dataclasses.replace(SAMPLE, chain=None))


def test_an_unknown_target_is_refused():
    told = "unknown target 'chains' of the task ReferenceSegmentation: choose from teacher, chain, answer, reflection"
    with pytest.raises(ValueError, match=told):
        assemble_target(TargetArguments(target="chains"), ReferenceSegmentation())


def test_the_usual_target_of_reference_segmentation_is_a_chain():
    assert assemble_target(TargetArguments(), ReferenceSegmentation())(RIGHT) == Target(RIGHT.chain)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Answer: the target is the drum. It is [SEG].", "Answer: the target is the drum."),
        ("It is [SEG]. It is [SEG].", ""),
        ("the drum [SEG] is cut", "the drum is cut"),
    ],
)
def test_no_seg_is_left_in_a_mistake(text, expected):
    assert without_seg(text) == expected


# Which rows reflective training sees


def rows(num_mistakes: int, num_others: int) -> list[AVSample]:
    samples = [dataclasses.replace(SAMPLE, row=row) for row in range(num_mistakes)]
    return samples + [dataclasses.replace(RIGHT, row=num_mistakes + row) for row in range(num_others)]


def test_the_replayed_rows_are_a_share_of_all():
    chosen = mistakes_and_replay(rows(6, 40), replay_share=0.4, seed=0)
    assert (sum(s.wrong is not None for s in chosen), len(chosen)) == (6, 10)
    assert [s.row for s in chosen] == sorted({s.row for s in chosen})
    assert mistakes_and_replay(rows(6, 40), replay_share=0.4, seed=0) == chosen
    assert mistakes_and_replay(rows(6, 40), replay_share=0.4, seed=1) != chosen


def test_no_more_rows_are_replayed_than_there_are():
    assert len(mistakes_and_replay(rows(6, 2), replay_share=0.5, seed=0)) == 8
    assert len(mistakes_and_replay(rows(6, 2), replay_share=0.0, seed=0)) == 6


def test_reflective_training_without_mistakes_is_refused():
    with pytest.raises(
        ValueError, match="none of 3 rows has a mistake: name a file that holds them with `reflections`"
    ):
        mistakes_and_replay(rows(0, 3), replay_share=0.5, seed=0)
    with pytest.raises(ValueError, match="replay_share is 1.0"):
        mistakes_and_replay(rows(1, 3), replay_share=1.0, seed=0)


# The file of mistakes and their corrections


@pytest.fixture
def reflections(data_args: DataArguments, train_samples: list[AVSample], tmp_path: Path) -> Path:
    """Records of the rows 3 and 1, in that order, and one of another split."""
    samples = {sample.row: sample for sample in train_samples}
    other = load_split(data_args, "val")[0]
    path = tmp_path / "reflections.jsonl"
    path.write_text("".join(json.dumps(record_of(sample)) + "\n" for sample in (samples[3], samples[1], other)))
    return path


def record_of(sample: AVSample) -> dict:
    return {
        "uid": sample.uid,
        "row": sample.row,
        "split": sample.split,
        "category": sample.category,
        "exp": sample.reference,
        "wrong": f"Look: row {sample.row} gone wrong.",
        "steps": {"look": "I see it.", "listen": "I hear it.", "read": f"row {sample.row}."},
        "answer": "the target is it. It is [SEG].",
    }


def test_mistakes_are_joined_by_uid_and_row_never_by_position(data_args, train_samples, reflections):
    data_args.reflections = str(reflections)
    loaded = load_split(data_args, "train")
    assert [sample.row for sample in loaded if sample.wrong is not None] == [1, 3]
    for before, after in zip(train_samples, loaded, strict=True):
        if after.wrong is None:
            assert after == before
        else:
            assert after.wrong == f"Look: row {after.row} gone wrong."
            assert f"Read: row {after.row}." in after.chain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uid": "other"}, "no sample is 'other' at row 3"),
        ({"category": "zebra"}, "has the category"),
        ({"wrong": ""}, "expected a record with the strings 'wrong' and 'split'"),
        ({"wrong": "It is [SEG]."}, r"holds \[SEG\]"),
        ({"steps": {"look": "x"}}, r"lacks the step\(s\)"),
    ],
)
def test_a_record_that_fits_no_row_is_refused_by_its_line(data_args, train_samples, tmp_path, change, message):
    record = record_of(next(sample for sample in train_samples if sample.row == 3)) | change
    path = tmp_path / "reflections.jsonl"
    path.write_text(json.dumps(record) + "\n")
    data_args.reflections = str(path)
    with pytest.raises(DatasetError, match=f"reflections.jsonl:1: .*{message}"):
        load_split(data_args, "train")


def test_two_mistakes_of_one_row_are_refused(data_args, train_samples, tmp_path):
    line = json.dumps(record_of(train_samples[0])) + "\n"
    path = tmp_path / "reflections.jsonl"
    path.write_text(line + line)
    data_args.reflections = str(path)
    with pytest.raises(DatasetError, match=":2: .*already has a mistake"):
        load_split(data_args, "train")
