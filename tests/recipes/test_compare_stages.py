"""Numbers of the stages' table, worked out by hand."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from aurora_rl.evaluation.intervals import Interval, bootstrap_over_seeds
from aurora_rl.evaluation.records import RowResult, write_results
from aurora_rl.scripts.compare_stages import gain, main, markdown, of_shared_seeds, read_runs, scores
from aurora_rl.scripts.stage_plan import read_plan
from recipes.gather_seeds import read_result
from tests.row_results import answered

ROOT = Path(__file__).resolve().parents[2]

RIGHT = "Look: a.\nListen: b.\nRead: c.\nAnswer: the target is the dog. It is [SEG]."
TAKEN_BACK = f"Look: x.\nAnswer: the target is the cat.\nWait, let me reconsider.\n{RIGHT}"


def result(number: int, iou: float, text: str = RIGHT) -> RowResult:
    return answered(number, text=text, iou=iou, category="dog", see=None, hear=None)


def test_a_stage_is_the_mean_of_its_seeds_with_the_lowest_and_the_highest() -> None:
    runs = {0: [result(0, 0.2), result(1, 0.4)], 1: [result(0, 0.6), result(1, 0.8, TAKEN_BACK)]}
    row = scores(runs)
    assert dataclasses.astuple(row["greedy_iou"]) == pytest.approx((0.5, 0.3, 0.7))
    assert dataclasses.astuple(row["taken_back"]) == pytest.approx((0.25, 0.0, 0.5))
    assert row["chain_see"] is None  # not known in any row


def test_answers_taken_back_are_counted_before_and_after() -> None:
    """The first claim (a cat) is wrong and the last (the dog) right; a seed that takes nothing back does not count."""
    worse = TAKEN_BACK.replace("the cat", "the dog").replace("the dog. It", "the cat. It")
    runs = {0: [result(0, 0.2, TAKEN_BACK), result(1, 0.4)], 1: [result(0, 0.6, worse)] * 2, 2: [result(0, 0.6)]}
    row = scores(runs)
    assert dataclasses.astuple(row["right_at_first"]) == (0.5, 0.0, 1.0)
    assert dataclasses.astuple(row["right_at_last"]) == (0.5, 0.0, 1.0)
    assert scores({0: [result(0, 0.2)]})["right_at_last"] is None


def test_a_gain_pairs_the_rows_of_the_same_seed() -> None:
    before = {0: [result(0, 0.1), result(1, 0.2)], 1: [result(0, 0.5), result(1, 0.5)]}
    after = {1: [result(1, 0.7), result(0, 0.6)], 0: [result(0, 0.3), result(1, 0.4)], 2: [result(0, 0.0)]}
    assert gain(after, before, "greedy_iou").mean == pytest.approx((0.2 + 0.2 + 0.1 + 0.2) / 4)


def test_a_stage_that_was_trained_once_stands_before_every_seed() -> None:
    once, after = {0: [result(0, 0.1)]}, {1: [result(0, 0.2)], 2: [result(0, 0.4)]}
    assert gain(after, once, "greedy_iou").mean == pytest.approx(0.2)
    assert len(of_shared_seeds(after, once)) == 2
    assert of_shared_seeds(after, {0: once[0], 3: once[0]}) == []  # its seeds are others


def test_the_interval_knows_of_both_seeds_and_rows() -> None:
    """Seeds that disagree widen it, and so do rows; equal differences leave it a point."""
    same = {f"r{i}": 0.1 for i in range(50)}
    assert bootstrap_over_seeds([same, same]) == Interval(pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1))
    seeds = bootstrap_over_seeds([{key: 0.0 for key in same}, {key: 0.2 for key in same}])
    assert (seeds.mean, seeds.low, seeds.high) == pytest.approx((0.1, 0.0, 0.2))
    rows = bootstrap_over_seeds([{key: float(i % 2) for i, key in enumerate(same)}] * 2)
    assert rows.mean == pytest.approx(0.5)
    assert 0.3 < rows.low < 0.45 < 0.55 < rows.high < 0.7


@pytest.mark.parametrize("differences", [[], [{}], [{"a": 1.0}, {"b": 1.0}]])
def test_seeds_without_the_same_rows_are_refused(differences: list) -> None:
    with pytest.raises(ValueError, match="give all the same rows"):
        bootstrap_over_seeds(differences)


def test_runs_are_read_by_stage_and_seed(tmp_path: Path) -> None:
    for folder in ("evaluate_teacher", "evaluate_sft-0", "evaluate_sft-1", "evaluate_unknown-0"):
        write_results(tmp_path / folder / "results.jsonl", [result(0, 0.5)])
    runs = read_runs(tmp_path)
    assert {stage: sorted(seeds) for stage, seeds in runs.items()} == {"teacher": [0], "sft": [0, 1]}


def test_a_folder_without_evaluations_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the stages first"):
        read_runs(tmp_path)


def test_the_table_marks_what_is_beyond_chance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        write_results(tmp_path / f"evaluate_sft_plain-{seed}/results.jsonl", [result(i, 0.2) for i in range(20)])
        write_results(tmp_path / f"evaluate_sft-{seed}/results.jsonl", [result(i, 0.5) for i in range(20)])
    main(["--stages", str(tmp_path), "--output_dir", str(tmp_path / "table")])
    text = (tmp_path / "table" / "table.md").read_text()
    assert "| figure |" not in text
    assert "| distillation | 2 | **+0.300 [+0.300, +0.300]** | +0.000 [+0.000, +0.000] | – |" in text
    assert text.strip() == capsys.readouterr().out.strip()


def test_a_measure_that_no_row_has_is_a_dash() -> None:
    table = {"sft": scores({0: [result(0, 0.5)]})}
    assert "| SFT with distillation | 0.500 | 0.500 | 1.000 | 1.000 | – |" in markdown(table, [])


LAYERS = ROOT / "recipes/synthetic/state_layers"


def test_the_layers_are_compared_with_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan = read_plan(LAYERS / "stages.yaml", output_dir=tmp_path)
    evaluated = [name for name in plan.stages if name.startswith("evaluate_")]
    assert len(evaluated) == 9 and set(plan.stages["table"].needs) == set(evaluated)
    for name in evaluated:
        layer = int(name.split("-")[1])
        write_results(tmp_path / name / "results.jsonl", [result(i, layer / 10) for i in range(20)])
    _, script, *arguments = plan.stages["table"].command
    assert script == "recipes/compare_stages.py"
    main(arguments)
    text = (tmp_path / "table" / "table.md").read_text()
    assert "| layer 3 instead of the last | 3 | **−0.100 [−0.100, −0.100]**" in text
    assert "| layer 2 instead of the last | 3 | **−0.200 [−0.200, −0.200]**" in text


def test_the_three_models_differ_by_the_layer_alone() -> None:
    models = {layer: yaml.safe_load((LAYERS / f"init_{layer}.yaml").read_text()) for layer in (2, 3, 4)}
    for layer, model in models.items():
        assert model["segmenter"].pop("state_layer") == layer
        assert model.pop("output_dir").endswith(f"init-{layer}")
    assert models[2] == models[3] == models[4], "init_2.yaml, init_3.yaml and init_4.yaml differ by more"


TENTH = ROOT / "recipes/synthetic/tenth"


def test_grpo_from_few_chains_is_compared_with_both_trainings_that_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    stages = tmp_path / "tenth"
    plan = read_plan(TENTH / "stages.yaml", output_dir=stages)
    evaluated = [name for name in plan.stages if name.startswith("evaluate_")]
    assert len(evaluated) == 11 and set(plan.stages["table"].needs) == set(evaluated)
    overlaps = {"tenth_early": 0.3, "tenth": 0.4, "tenth_longer": 0.5, "tenth_answers": 0.7, "tenth_grpo": 0.6}
    for name in evaluated:
        stage, _, _ = name.removeprefix("evaluate_").partition("-")
        write_results(stages / name / "results.jsonl", [result(i, overlaps[stage]) for i in range(20)])
        record = stages / "stages" / f"{name.removeprefix('evaluate_')}.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text('{"cpu_seconds": 99.6}')
    _, _, *arguments = plan.stages["table"].command
    main(arguments)
    text = (stages / "table" / "table.md").read_text()
    assert "| GRPO on all clips | 3 | **+0.200 [+0.200, +0.200]**" in text
    assert "| GRPO on all clips, beside further steps on the tenth | 3 | **+0.100 [+0.100, +0.100]**" in text
    assert "| GRPO on all clips, beside plain answers of them | 3 | **−0.100 [−0.100, −0.100]**" in text
    assert "| – | 100 |" in text
    found = read_result(tmp_path, "tenth")  # as `make seeds-full` reads it
    assert found is not None and found["size"] == "3 seeds, 20 held-out rows"
    assert found["numbers"]["gains"][0]["greedy_iou"]["mean"] == pytest.approx(0.1)
    bars = {figure["name"].rpartition(": ")[2]: (figure["met"], figure["low"]) for figure in found["figures"]}
    assert bars == {"Category": (False, 0.0), "Mask IoU": (True, pytest.approx(0.1))}
    assert "beside further steps on the tenth: Category | 0.000 [0.000, 0.000] | interval above 0 | not met |" in text


def test_grpo_has_all_clips_and_sft_a_tenth_of_them() -> None:
    """GRPO has no reward that reads what is truly seen and heard, which only clips with chains would have."""
    stages = yaml.safe_load((TENTH / "stages.yaml").read_text())["stages"]
    assert stages["gold"]["options"]["train"] * 10 == stages["data"]["options"]["train"]
    recipe = yaml.safe_load((TENTH / "grpo.yaml").read_text())
    assert stages["tenth_grpo"]["options"]["data_root"] == "{data}" and "chains" not in recipe
    assert not any("perception" in name for name in recipe["reward_funcs"])


def test_stages_without_a_common_seed_have_no_gain() -> None:
    assert gain({1: [result(0, 0.5)]}, {2: [result(0, 0.2)]}, "greedy_iou") is None
    with pytest.raises(ValueError, match="1 of 2 rows were evaluated"):
        gain({1: [result(0, 0.5), result(1, 0.5)]}, {1: [result(0, 0.2)]}, "greedy_iou")


def test_a_folder_of_other_stages_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(tmp_path / "evaluate_mine-1" / "results.jsonl", [result(0, 0.5)])
    with pytest.raises(SystemExit):
        main(["--stages", str(tmp_path), "--output_dir", str(tmp_path / "table")])
    assert "of a stage of this table, but of mine: run the stages first" in capsys.readouterr().err
