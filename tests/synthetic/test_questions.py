import itertools
import json
from collections import Counter, defaultdict

import numpy as np
import pytest

from aurora_rl.data.media import read_media
from aurora_rl.data.questions import load_questions
from aurora_rl.synthetic import SyntheticConfig, write_synthetic_benchmark
from aurora_rl.synthetic.clips import make_clip
from aurora_rl.synthetic.questions import QUESTIONS, accuracy_of_sight, questions_of
from aurora_rl.tasks.multiple_choice import MultipleChoice


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions") / "benchmark"
    write_synthetic_benchmark(folder, SyntheticConfig(train=8, val=2, test_s=4, test_u=3, test_n=2))
    return folder


def test_questions_survive_the_file(root):
    records = [json.loads(line) for line in (root / "questions.jsonl").read_text().splitlines()]
    samples = [s for split in ("train", "val", "test_s") for s in load_questions(root, split, fps=2.0, num_frames=4)]
    by_uid = {record["uid"]: record for record in records}
    assert len(by_uid) == len(records)
    for sample in samples:
        record = by_uid[sample.uid]
        assert (sample.reference, sample.reference_type, sample.chain) == (
            record["question"],
            record["kind"],
            record["chain"],
        )
        assert (list(sample.choices), sample.answer, sample.media_id) == (
            record["choices"],
            record["answer"],
            record["clip"],
        )
        assert sample.mask_paths == ()
        assert MultipleChoice().is_right(MultipleChoice().parse(MultipleChoice().target(sample).learned), sample)
    assert read_media(samples[0])[0].shape == (4, 64, 64, 3)


def test_no_question_is_asked_where_the_picture_tells_the_sound(root):
    splits = {json.loads(line)["split"] for line in (root / "questions.jsonl").read_text().splitlines()}
    assert "test_u" not in splits


def test_questions_do_not_change_a_benchmarks_other_files():
    """The same clips as before there were questions: they have a random generator of their own."""
    clip = make_clip(SyntheticConfig(), "train", 0)
    assert clip.references[0].sentence == "The object making a sound."
    assert (clip.seen, clip.heard) == (("bell", "piano"), ("bell",))


@pytest.mark.parametrize(
    ("heard", "answers"),
    [
        ((), {}),
        (("drum",), {"sounding": "drum", "silent": "bell"}),
        (("bell", "drum"), {"first": "bell", "last": "drum"}),
        (("dog",), {"unseen": "dog"}),
        (("dog", "drum"), {"silent": "bell", "unseen": "dog"}),
        (("dog", "bird"), {}),
    ],
)
def test_a_clip_is_asked_what_has_exactly_one_answer(heard, answers):
    questions = questions_of(("drum", "bell"), heard, np.random.default_rng(0))
    assert {question.kind: question.answer for question in questions} == answers
    for question in questions:
        assert len(set(question.choices)) == 4
        assert question.answer in question.choices
        assert len({*("drum", "bell"), *heard} & set(question.choices)) >= 2
        assert question.text == QUESTIONS[question.kind]


def test_sight_alone_is_as_good_as_computed():
    """Of all scenes that look alike, the best guess for each picture and question is right as often as it says."""
    seen, counts, computed = ("drum", "bell", "dog"), defaultdict(Counter), {}
    sounds = [*((one,) for one in seen), *itertools.permutations(seen, 2), *((one,) for one in ("bird", "flute"))]
    for seed, heard in itertools.product(range(300), sounds):
        for question in questions_of(seen, heard, np.random.default_rng(seed)):
            group = (question.kind, frozenset(question.choices) if question.kind == "unseen" else None)
            counts[group][question.answer] += 1
            computed[question.kind] = accuracy_of_sight(question.kind, question.choices, seen)
    assert computed == {kind: 1 / 3 for kind in QUESTIONS}
    for (kind, _), answers in counts.items():
        if kind != "unseen":  # the sounds are listed once each, so the shares are exact
            assert max(answers.values()) / answers.total() == pytest.approx(computed[kind])


@pytest.mark.parametrize(
    ("kind", "choices", "best"),
    [
        ("first", "drum bell cat dog", 1 / 2),
        ("silent", "drum bell flute dog", 1 / 3),
        ("unseen", "drum cat dog bird", 1 / 3),
    ],
)
def test_sight_guesses_among_what_the_picture_allows(kind, choices, best):
    assert accuracy_of_sight(kind, choices.split(), ("drum", "bell", "flute")) == best


def test_no_letter_is_likelier_than_another():
    letters = Counter(
        question.choices.index(question.answer)
        for seed in range(2000)
        for question in questions_of(("drum", "bell"), ("bell",), np.random.default_rng(seed))
    )
    assert all(count == pytest.approx(1000, abs=150) for count in letters.values())
