"""Numbers of the comparison of listening, worked out by hand."""

import json
import shutil
from pathlib import Path

import pytest

from aurora_rl.evaluation.records import write_results
from aurora_rl.scripts.compare_listening import HEARING, MUTED, accuracies_of_sight, compare, main
from aurora_rl.scripts.stage_plan import read_plan
from tests.row_results import answered

ROOT = Path(__file__).resolve().parents[2]


def record(number: int, split: str, category: str, *, seen: list[str], kind: str = "audio") -> dict:
    row = {"uid": f"uid{number}", "row": number, "split": split, "category": category, "reference_type": kind}
    return {**row, "exp": "The sounding object.", "seen": seen}


#: The left one of two is the more frequent answer in train.
RECORDS = [
    *(record(number, "train", "bell", seen=["bell", "drum"]) for number in (10, 11)),
    record(12, "train", "drum", seen=["bell", "drum"]),
    record(13, "train", "null", seen=["bell", "drum"], kind="null"),
    record(0, "test_s", "dog", seen=["dog", "cat"]),
    record(1, "test_s", "cat", seen=["dog", "cat"]),
    record(2, "test_s", "dog", seen=["dog", "cat"], kind="name"),
    record(3, "test_s", "dog", seen=["dog", "cat", "bell"]),
]


@pytest.fixture
def stages(tmp_path: Path) -> Path:
    """Seed 2 of GRPO with the reward is right once more with sound, and once less without."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "chains.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    right = {
        **{"sft": ("000", "000"), "sft_longer-1": ("100", "100"), "sft_longer-2": ("100", "100")},
        **{f"{kind}-{seed}": ("100", "100") for kind in ("grpo", "grpo_perception") for seed in (1, 2)},
        **{"grpo_listening-1": ("100", "100"), "grpo_listening-2": ("110", "000")},
    }
    for name, files in right.items():
        for file, answers in zip((HEARING, MUTED), files, strict=True):
            rows = [
                answered(number, category_correct=float(answer), hear=float(answer), reference_type="audio order")
                for number, answer in zip((0, 1, 3), answers, strict=True)
            ]
            named = answered(2, reference_type="name", hear=1.0)
            write_results(tmp_path / f"evaluate_{name}" / file, [*rows, named])
        (tmp_path / "stages").mkdir(exist_ok=True)
        (tmp_path / "stages" / f"{name}.json").write_text(json.dumps({"cpu_seconds": 80.0}))
    return tmp_path


def test_seeds_are_pooled_paired_and_read_of_references_to_a_sound_alone(stages: Path) -> None:
    table = compare(stages)
    assert table["references_to_a_sound"] == 3
    of_reward = table["stages"]["grpo_listening"]
    assert of_reward["accuracy"].mean == pytest.approx(3 / 6)
    assert of_reward["chain_hear"].mean == pytest.approx((3 + 2) / 8)
    assert of_reward["processor_seconds"] == {"grpo_listening-1": 80.0, "grpo_listening-2": 80.0}
    [gain] = [
        entry for entry in table["differences"] if (entry["after"], entry["before"]) == ("grpo_listening", "grpo")
    ]
    assert gain["seeds"] == 2
    assert gain["accuracy"].mean == pytest.approx(1 / 6)
    assert gain["muted"].mean == pytest.approx(-1 / 6)


def test_muted_answers_stand_beside_the_best_that_sight_has_learned(stages: Path) -> None:
    """It says the left one of two; of three things it has learned nothing."""
    assert accuracies_of_sight(RECORDS)["uid0#0"] == 1.0
    table = compare(stages)
    assert table["best_by_sight"] == pytest.approx(1 / 3)
    assert table["stages"]["grpo_listening"]["muted_above_sight"].mean == pytest.approx(1 / 6 - 1 / 3)


def test_the_last_stage_of_the_recipe_finds_what_its_stages_leave(
    stages: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    plan = read_plan(ROOT / "recipes" / "synthetic" / "listening" / "stages.yaml", output_dir=stages)
    evaluated = {path.name for path in stages.glob("evaluate_*")}
    kinds = ("sft_longer", "grpo", "grpo_listening", "grpo_perception")
    assert evaluated | {f"evaluate_{kind}-3" for kind in kinds} == set(plan.stages["table"].needs)
    _, script, *arguments = plan.stages["table"].command
    assert script == "recipes/compare_listening.py"
    main(arguments)
    assert all((plan.stages["table"].folder / output).is_file() for output in plan.stages["table"].outputs)
    assert "| GRPO with listening_reward − GRPO | 2 | +0.167 [" in capsys.readouterr().out


def test_stages_that_were_not_evaluated_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the stages first"):
        compare(tmp_path)


def test_one_stage_alone_has_a_table(stages: Path, tmp_path: Path) -> None:
    for folder in tmp_path.glob("evaluate_*"):
        if folder.name != "evaluate_sft":
            shutil.rmtree(folder)
    main(["--stages", str(tmp_path), "--output_dir", str(tmp_path / "table")])
    result = json.loads((tmp_path / "table" / "result.json").read_text())
    assert result["size"] == "1 seeds, 3 references to a sound" and result["figures"] == []


def test_stages_of_other_seeds_or_other_data_are_refused(stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        (stages / f"evaluate_grpo-{number}").rename(stages / f"evaluate_grpo-{number + 2}")
    (stages / "data" / "chains.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS[:-1]))
    words = ["--stages", str(stages), "--output_dir", str(stages / "table")]
    with pytest.raises(SystemExit):
        main(words)
    assert "1 of 3 rows were evaluated and are not in" in capsys.readouterr().err
    (stages / "data" / "chains.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    with pytest.raises(SystemExit):
        main(words)
    assert "with the seeds ['1', '2'] and ['3', '4']" in capsys.readouterr().err
