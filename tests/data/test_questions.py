import json
from pathlib import Path

import pytest

from aurora_rl.data.files import DatasetError
from aurora_rl.data.questions import load_questions

QUESTION = {
    "uid": "a_1",
    "split": "train",
    "clip": "a",
    "question": "Which one sounds?",
    "choices": ["drum", "bell"],
    "answer": "bell",
}


def write(root: Path, **changes) -> Path:
    frames = root / "media" / "a" / "frames"
    frames.mkdir(parents=True, exist_ok=True)
    for path in (frames / "0.jpg", frames / "1.jpg", frames.parent / "audio.wav"):
        path.touch()
    record = {name: value for name, value in {**QUESTION, **changes}.items() if value is not Ellipsis}
    (root / "questions.jsonl").write_text(json.dumps(record) + "\n")
    return root


def test_what_may_be_left_out_is_none(tmp_path):
    (sample,) = load_questions(write(tmp_path), "train", num_frames=2)
    assert (sample.choices, sample.answer, sample.category) == (("drum", "bell"), "bell", "bell")
    assert (sample.mask_paths, sample.chain, sample.seen, sample.heard, sample.reference_type) == ((), *[None] * 4)
    assert not sample.has_gt_masks


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"question": ...}, "question is None"),
        ({"question": " "}, "question is ' '"),
        ({"uid": 7}, "uid is 7"),
        ({"chain": 7}, "chain is 7"),
        ({"question": "\ud800"}, "surrogates"),
        ({"choices": ...}, "2 to 26 different texts"),
        ({"choices": "bell"}, "a list of texts"),
        ({"choices": ["bell"]}, "2 to 26 different texts"),
        ({"choices": ["bell", "Bell "]}, "2 to 26 different texts"),
        ({"choices": [str(number) for number in range(27)]}, "2 to 26 different texts"),
        ({"answer": "dog"}, "none of the choices"),
        ({"seen": "drum"}, "a list of texts"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, changes, problem):
    with pytest.raises(DatasetError, match=problem) as error:
        load_questions(write(tmp_path, **changes), "train", num_frames=2)
    assert "questions.jsonl:1" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [({"clip": "../a"}, "no plain name"), ({"clip": "b"}, "add them or drop the row"), ({"split": "val"}, "no split")],
)
def test_a_clip_that_is_not_there_is_named(tmp_path, changes, problem):
    with pytest.raises(DatasetError, match=problem):
        load_questions(write(tmp_path, **changes), "train", num_frames=2)
