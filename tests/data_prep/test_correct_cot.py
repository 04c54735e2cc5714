import json
import re
from pathlib import Path

import pytest

from aurora_rl.scripts.correct_cot import main

WRONG = "Look: I see a bell.\nListen: I hear a bell.\nRead: asked for.\nAnswer: the target is the bell."


def mistake(row: int, category: str, clip: str, **changes: object) -> dict:
    return {
        "uid": f"{clip}_0_1000_{category}_{row}",
        "row": row,
        "split": "train",
        "category": category,
        "exp": f"The thing of row {row}.",
        "completion": f"{WRONG} It is [SEG].",
        "answered": "bell",
        "iou": 0.1,
        "reasons": ["category"],
        "model": "stage-1",
        **changes,
    }


MISTAKES = [
    mistake(1, "hair-dryer", "clip-b"),
    mistake(0, "drum", "clip-a"),
    mistake(5, "null", "null_m-clip-a", completion="It is [SEG]."),
    mistake(2, "null", "null_m-clip-a", completion=f"{WRONG} It is [SEG]. Or [SEG]?", answered=None),
]


def write_lines(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_mistakes_are_corrected_by_the_endpoint_which_sees_them(make_rows, endpoint, run_options, tmp_path):
    endpoint.plan = lambda row, attempt: "wrong category" if (row, attempt) == (0, 1) else "good"
    mistakes = write_lines(tmp_path / "mistakes.jsonl", MISTAKES)
    out = tmp_path / "reflective.jsonl"
    assert main([*run_options(make_rows(9), endpoint.url, output=out), "--mistakes", str(mistakes)]) == 0
    records = read_lines(out)
    assert [(record["row"], record["category"], record["wrong"]) for record in records] == [
        (0, "drum", WRONG),
        (1, "hair-dryer", WRONG),
        (2, "null", f"{WRONG} Or?"),
    ]
    assert records[0]["steps"]["look"] == "I see a drum in row 0."
    assert records[0]["answer"] == "the target is the drum. It is [SEG]."
    assert (records[0]["generator"], records[0]["verified"]) == ("strong", False)
    (failure,) = read_lines(tmp_path / "reflective.failures.jsonl")
    assert (failure["row"], failure["reason"], failure["attempts"]) == (5, "empty_wrong", 0)
    assert sorted(request.row for request in endpoint.log) == [0, 0, 1, 2]
    asked = json.dumps(endpoint.log[0].body)
    assert "I see a bell." in asked and "first attempt" in asked and "[SEG]" not in asked
    assert {part["type"] for part in endpoint.log[0].body["messages"][1]["content"]} == {
        "text",
        "image_url",
        "input_audio",
    }


def gold(row: int, uid: str, category: str, **changes: object) -> dict:
    steps = {"look": f"I see a {category}.", "listen": "I hear it.", "read": "It asks for it."}
    return {"uid": uid, "row": row, "category": category, "steps": steps, "answer": "x", "verified": True, **changes}


GOLD = [
    gold(0, "clip-a_0_1000_drum_0", "drum"),
    gold(1, "clip-b_0_1000_hair-dryer_1", "hair-dryer", verified=False),
    gold(5, "null_m-clip-a_0_1000_null_5", "null"),
    gold(8, "null_m-clip-a_0_1000_null_8", "null"),
]


def correct_by_gold(root: Path, tmp_path: Path, mistakes: list[dict], chains: list[dict]) -> int:
    files = {
        "mistakes": write_lines(tmp_path / "mistakes.jsonl", mistakes),
        "gold": write_lines(tmp_path / "gold.jsonl", chains),
        "output": tmp_path / "reflective.jsonl",
    }
    options = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    return main(["--data_root", str(root), "--num_frames", "1", *options])


def test_gold_chains_correct_without_an_endpoint_and_are_never_made_wrong(make_rows, tmp_path, capsys):
    assert correct_by_gold(make_rows(9), tmp_path, MISTAKES, GOLD) == 0
    records = read_lines(tmp_path / "reflective.jsonl")
    assert [(r["row"], r["steps"], r["wrong"], r["generator"], r["verified"]) for r in records] == [
        (0, GOLD[0]["steps"], WRONG, "gold", True),
        (1, GOLD[1]["steps"], WRONG, "gold", False),
    ]
    assert records[1]["answer"] == "the target is the hair-dryer. It is [SEG]."
    failures = [(f["row"], f["reason"]) for f in read_lines(tmp_path / "reflective.failures.jsonl")]
    assert failures == [(2, "no_gold"), (5, "empty_wrong")]
    assert "failed rows: empty_wrong 1, no_gold 1" in capsys.readouterr().out
    assert correct_by_gold(make_rows(9), tmp_path, MISTAKES[:2], GOLD) == 0


def test_a_right_chain_with_a_wrong_mask_is_no_reasoning_to_correct(make_rows, tmp_path):
    steps = GOLD[0]["steps"]
    said = f"Look: {steps['look']}\nListen: {steps['listen']}\nRead: {steps['read']}\nAnswer: the target is the drum."
    right = mistake(0, "drum", "clip-a", completion=f"{said} It is [SEG].", reasons=["iou"])
    assert correct_by_gold(make_rows(9), tmp_path, [right], GOLD) == 1
    (failure,) = read_lines(tmp_path / "reflective.failures.jsonl")
    assert failure["reason"] == "same_text"


@pytest.mark.parametrize(
    ("mistakes", "chains", "message"),
    [
        ([MISTAKES[0] | {"model": None}], GOLD, r"lacks \['model'\]: mistakes are what a model said"),
        ([MISTAKES[0], MISTAKES[0]], GOLD, "row 1 twice"),
        ([MISTAKES[0] | {"row": 4}], GOLD, "row 4 is no row of split 'train'"),
        ([MISTAKES[0] | {"category": "drum"}], GOLD, "has the category 'drum', the benchmark 'hair-dryer'"),
        ([MISTAKES[0] | {"exp": "Another."}], GOLD, "has the exp 'Another.'"),
        (MISTAKES[:1], [GOLD[1] | {"category": "drum"}], "is no chain of 'hair-dryer'"),
        (MISTAKES[:1], [GOLD[1], GOLD[1]], "row 1 twice"),
        (MISTAKES[:1], [GOLD[1] | {"steps": {"look": "I see it."}}], r"lacks the step\(s\)"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(mistakes, chains, message, make_rows, tmp_path, capsys):
    with pytest.raises(SystemExit):
        correct_by_gold(make_rows(9), tmp_path, mistakes, chains)
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "reflective.jsonl").exists()


@pytest.mark.parametrize(
    "now",
    [[{**MISTAKES[0], "completion": "Look: another thing went wrong."}, MISTAKES[1]], [MISTAKES[1]]],
    ids=["another mistake", "no mistake any more"],
)
def test_corrections_of_other_mistakes_are_neither_kept_nor_mixed_in(
    now, make_rows, endpoint, run_options, tmp_path, capsys
):
    out = tmp_path / "reflective.jsonl"
    options = [*run_options(make_rows(9), endpoint.url, output=out), "--mistakes", str(tmp_path / "mistakes.jsonl")]
    write_lines(tmp_path / "mistakes.jsonl", MISTAKES[:2])
    assert main(options) == 0
    assert main([*options, "--max_rows", "1"]) == 0  # fewer of the same mistakes are no others
    before = out.read_bytes()
    write_lines(tmp_path / "mistakes.jsonl", now)
    with pytest.raises(SystemExit):
        main(options)
    assert "corrects another mistake of uid" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_corrections_that_were_paid_for_are_not_overwritten_by_gold(make_rows, endpoint, run_options, tmp_path, capsys):
    mistakes = write_lines(tmp_path / "mistakes.jsonl", MISTAKES[:2])
    out = tmp_path / "reflective.jsonl"
    assert main([*run_options(make_rows(9), endpoint.url, output=out), "--mistakes", str(mistakes)]) == 0
    before = out.read_bytes()
    with pytest.raises(SystemExit):
        correct_by_gold(make_rows(9), tmp_path, MISTAKES[:2], GOLD)
    assert "which would be lost" in capsys.readouterr().err
    assert out.read_bytes() == before
