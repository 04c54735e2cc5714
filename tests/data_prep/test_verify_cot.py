import json
from pathlib import Path

import pytest

from aurora_rl.scripts.verify_cot import main

STEPS = {"look": "I see a drum.", "listen": "I hear a drum.", "read": "It asks for what sounds."}


def chain(row: int, **changes: object) -> dict:
    return {
        "uid": f"clip_drum_{row}",
        "row": row,
        "split": "train",
        "category": "drum",
        "exp": "The sounding object.",
        "steps": STEPS,
        "answer": "the target is the drum. It is [SEG].",
        "generator": "strong",
        "verified": False,
        **changes,
    }


def write_lines(path: Path, lines: list[object]) -> Path:
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(raw))
    return path


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


LINES = [
    chain(0),
    chain(1, steps={**STEPS, "look": "Look: I see a **drum**."}),
    chain(2, steps={**STEPS, "read": "The ground truth is the drum, so the target is the drum."}),
    chain(3, answer="the target is the bell. It is [SEG]."),
    chain(4, steps={"look": "I see a drum.", "listen": "I hear a drum."}),
    chain(0),
    chain(5, steps="Look: I see a drum."),
    b'{"uid": "clip_drum_6", "row": 6, "text": "\xff"}',
    b"",
    b'{"uid": "clip_drum_7", "ro',
    chain(8, answer='The target is a "Drum". It is [SEG].'),
    chain(3),
]


def test_good_chains_are_kept_mended_ones_too_and_the_rest_is_dropped_with_its_reasons(tmp_path, capsys):
    source = write_lines(tmp_path / "chains.jsonl", LINES)
    before = source.read_bytes()
    main([str(source), "--output", str(tmp_path / "new" / "ok.jsonl"), "--json"])
    assert json.loads(capsys.readouterr().out) == {
        "records": 11,
        "kept": 4,
        "dropped": 7,
        "dropped_by_first_reason": {"unreadable": 3, "duplicate": 1, "wrong_category": 1, "missing_step": 1, "leak": 1},
        "reasons": {
            "unreadable": 3,
            "duplicate": 1,
            "wrong_category": 1,
            "missing_step": 1,
            "leak": 1,
            "second_answer": 1,
        },
        "repairs": {"answer": 1, "label": 1, "markdown": 1},
    }
    kept = read_lines(tmp_path / "new" / "ok.jsonl")
    mended = chain(1, steps={**STEPS, "look": "I see a drum."})
    expected = [chain(0), mended, chain(8), chain(3)]  # row 3 has a good record beside a bad one
    assert kept == [record | {"verified": True} for record in expected]
    dropped = read_lines(tmp_path / "new" / "ok.dropped.jsonl")
    assert [(record["line"], [problem["reason"] for problem in record["problems"]]) for record in dropped] == [
        (3, ["leak", "second_answer"]),
        (4, ["wrong_category"]),
        (5, ["missing_step"]),
        (6, ["duplicate"]),
        (7, ["unreadable"]),
        (8, ["unreadable"]),
        (10, ["unreadable"]),
    ]
    assert dropped[5]["text"] == '{"uid": "clip_drum_6", "row": 6, "text": "\\xff"}'
    assert source.read_bytes() == before


def test_the_counts_are_also_told_as_text(tmp_path, capsys):
    main([str(write_lines(tmp_path / "chains.jsonl", LINES)), "--output", str(tmp_path / "ok.jsonl")])
    said = capsys.readouterr().out
    assert "11 records: 4 kept, 7 dropped" in said
    assert "       1  leak: the chain says that it was told the answer" in said
    assert "       1  repaired: markdown" in said


def test_the_sample_shows_some_of_each_reason_chosen_by_the_seed(tmp_path):
    bad = [chain(row, steps={**STEPS, "read": "As told, it sounds."}) for row in range(10, 30)]
    source = write_lines(tmp_path / "chains.jsonl", [*LINES, *bad])

    def sample(seed: int) -> str:
        main([str(source), "--output", str(tmp_path / "ok.jsonl"), "--sample_size", "3", "--seed", str(seed)])
        return (tmp_path / "ok.sample.md").read_text()

    page = sample(0)
    assert page == sample(0) != sample(1)
    assert [line for line in page.splitlines() if line.startswith("# ")] == [
        "# kept (3 of 4)",
        "# unreadable: no JSON record with uid, row, category, steps and answer (3 of 3)",
        "# duplicate: the row has a record already (1 of 1)",
        "# wrong_category: the answer is not the row's category (1 of 1)",
        "# missing_step: a step is missing, empty or without a word (1 of 1)",
        "# leak: the chain says that it was told the answer (3 of 21)",
        "# second_answer: a step answers, or the answer does so twice (1 of 1)",
    ]
    assert page.count("## line") == 3 + 3 + 1 + 1 + 1 + 3 + 1
    assert "> leak: read says 'As told'" in page


def test_length_and_naming_are_options(tmp_path, capsys):
    lines = [chain(0, steps={"look": "I see it.", "listen": "I hear it.", "read": "It asks for what sounds loudest."})]
    source = write_lines(tmp_path / "chains.jsonl", lines)

    def reasons(*options: str) -> dict:
        main([str(source), "--output", str(tmp_path / "ok.jsonl"), "--json", *options])
        return json.loads(capsys.readouterr().out)["reasons"]

    assert reasons() == {"unnamed_category": 1}
    assert reasons("--allow_unnamed") == {}
    assert reasons("--allow_unnamed", "--max_step_chars", "20") == {"too_long": 1}


@pytest.mark.parametrize(
    ("wrong", "reasons"),
    [
        ("Look: I see a bell.\nAnswer: the target is the bell.", {}),
        ("", {"bad_wrong_text": 1}),
        (None, {"bad_wrong_text": 1}),
        ("the target is the bell. It is [SEG].", {"bad_wrong_text": 1}),
    ],
)
def test_records_of_reflective_training_are_checked_with_their_mistake(wrong, reasons, tmp_path, capsys):
    source = write_lines(tmp_path / "reflective.jsonl", [chain(0, wrong=wrong)])
    main([str(source), "--output", str(tmp_path / "ok.jsonl"), "--json"])
    assert json.loads(capsys.readouterr().out)["reasons"] == reasons
    assert [record["wrong"] for record in read_lines(tmp_path / "ok.jsonl")] == ([] if reasons else [wrong])


def test_the_input_is_never_the_output_and_must_be_there(tmp_path, capsys):
    source = write_lines(tmp_path / "chains.jsonl", [chain(0)])
    for arguments, message in [
        ([str(source), "--output", str(source)], "is the input"),
        ([str(tmp_path / "none.jsonl"), "--output", str(source)], "does not exist"),
        ([str(source), "--output", str(tmp_path / "ok.jsonl"), "--max_step_chars", "0"], "max_step_chars is 0"),
    ]:
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err
