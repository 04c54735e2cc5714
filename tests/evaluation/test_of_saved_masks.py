"""Saved predictions scored without a model, on a benchmark of ten rows."""

import dataclasses
import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.data.files import DatasetError
from aurora_rl.data.ref_avs import find_test_splits, load_ref_avs_truth
from aurora_rl.evaluation import of_saved_masks as rescoring
from aurora_rl.evaluation.mask_files import list_predictions
from aurora_rl.evaluation.of_saved_masks import rescore, saved_predictions, saved_results
from aurora_rl.evaluation.predictions import PredictionError
from aurora_rl.evaluation.presets import PRESETS
from aurora_rl.evaluation.records import read_results, write_results
from aurora_rl.evaluation.scoring import score_answer
from tests.direct_evaluation import direct_scores
from tests.row_results import replied
from tests.saved_predictions import ROWS, WITHOUT_MASKS, levels, rows_of, write_npzs, write_pngs, write_truth

ROOT = Path(__file__).parents[2]
TEST_SPLITS = ["test_s", "test_u", "test_n"]


@pytest.fixture
def truth(tmp_path: Path) -> dict[int, np.ndarray]:
    return write_truth(tmp_path / "data")


@pytest.fixture
def folder(tmp_path: Path, truth) -> Path:
    """PNG predictions of every test row."""
    return write_pngs(tmp_path / "masks", {row: levels(row) for row in rows_of(*TEST_SPLITS)})


def data_of(tmp_path: Path) -> DataArguments:
    return DataArguments(str(tmp_path / "data"))


def score(tmp_path: Path, folder: Path, *, name: str = "out", splits=TEST_SPLITS, **options) -> dict:
    tables = rescore(data_of(tmp_path), saved_predictions(folder), tmp_path / name, splits=splits, **options)
    assert json.loads((tmp_path / name / "scores.json").read_text()) == tables
    return tables


def lines(tmp_path: Path, name: str = "out") -> list[dict]:
    return [json.loads(line) for line in (tmp_path / name / "results.jsonl").read_text().splitlines()]


# ---- numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_scores_are_those_of_the_definition(tmp_path, truth, folder, preset):
    tables = score(tmp_path, folder, preset=preset)
    expected = {row: direct_scores(levels(row) / np.float32(255), truth[row], preset) for row in rows_of(*TEST_SPLITS)}
    for line in lines(tmp_path):
        assert {name: line[name] for name in ("J", "F", "S")} == pytest.approx(expected[line["row"]], abs=1e-6)
        assert (line["uid"], line["split"], line["reference"]) == tuple(ROWS[line["row"]][i] for i in (1, 2, 4))
    for split in ("test_s", "test_u"):
        for name in ("J", "F"):
            mean = np.mean([expected[row][name] for row in rows_of(split)])
            assert tables["splits"][split][name] == pytest.approx(mean, abs=1e-6)
    assert tables["splits"]["test_n"]["S"] == pytest.approx(np.mean([expected[r]["S"] for r in rows_of("test_n")]))
    assert tables["preset"] == preset


def test_scores_have_the_promised_form(tmp_path, folder):
    tables = score(tmp_path, folder)
    assert list(tables)[:4] == ["preset", "overall", "splits", "mix"]
    assert set(tables["splits"]["test_s"]) == {"J", "F", "J&F", "F_pooled", "n", "missing"}
    null_names = {"S", "S_per_frame", "null_accuracy", "false_alarm_rate", "n", "missing"}
    assert set(tables["splits"]["test_n"]) == null_names
    assert {split: table["n"] for split, table in tables["splits"].items()} == {"test_n": 2, "test_s": 3, "test_u": 3}
    assert set(tables["mix"]) == {"mean_of_splits", "row_weighted"}
    assert tables["tables"]["by_novelty"].keys() == {"test_u, new categories", "test_u, seen categories"}
    assert (tables["duplicates"], tables["derived_types"]) == (1, 6)
    assert {line["row"]: (line["novelty"], line["reference_type"]) for line in lines(tmp_path)} == {
        1: ("seen", "look"),
        2: ("new", "look"),
        3: ("seen", "audio"),
        4: ("seen", "look"),
        5: ("new", "look"),
        6: ("new", "look"),
        8: (None, "null"),
        9: (None, "null"),
    }
    assert [line["row"] for line in lines(tmp_path) if line["type_is_derived"]] == [1, 2, 3, 4, 5, 6]


def test_probabilities_as_npz_and_as_png_score_alike(tmp_path, folder):
    rows = {row: levels(row) / np.float32(255) for row in rows_of(*TEST_SPLITS)}
    as_png = score(tmp_path, folder)
    assert score(tmp_path, write_npzs(tmp_path / "npz", rows), name="npz") == as_png | {"source": str(tmp_path / "npz")}


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_logits_score_as_their_probabilities(tmp_path, truth, preset):
    logits = {row: np.random.default_rng(row).normal(0, 2, truth[row].shape) for row in rows_of("test_s")}
    logits = {row: values.astype(np.float32) for row, values in logits.items()}
    probs = {row: torch.from_numpy(values).sigmoid().numpy() for row, values in logits.items()}
    scores = [
        score(tmp_path, write_npzs(tmp_path / name, values, name=name), name=name, splits=["test_s"], preset=preset)
        for name, values in (("logits", logits), ("probs", probs))
    ]
    assert scores[0]["splits"]["test_s"] == pytest.approx(scores[1]["splits"]["test_s"], abs=1e-6)


@pytest.mark.parametrize(("level", "j"), [(102, 0.0), (103, 1.0)])
def test_grey_level_102_is_not_above_a_threshold_of_0_4(tmp_path, truth, level, j):
    # 102 / 255 is 0.4, in float32 as well; compared in another precision it would be above.
    mask = np.zeros((256, 256), dtype=np.uint8)
    mask[:100] = 255
    for index in range(3):
        Image.fromarray(mask).save(tmp_path / f"data/gt_mask/s0/fid_0/{index:05d}.png")
    folder = write_pngs(tmp_path / "masks", {1: np.stack([mask // 255 * np.uint8(level)] * 3)})
    score(tmp_path, folder, splits=["test_s"])
    assert lines(tmp_path)[0]["J"] == pytest.approx(j, abs=1e-6)


# ---- nothing changes them ---------------------------------------------------------------------------------------


def test_two_processes_write_the_same_bytes_as_one(tmp_path, folder):
    score(tmp_path, folder, name="one")
    score(tmp_path, folder, name="two", num_workers=2)
    for file in ("results.jsonl", "scores.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_order_of_splits_changes_no_number_and_a_split_named_twice_counts_once(tmp_path, folder):
    forward = score(tmp_path, folder, name="a")
    backward = score(tmp_path, folder, name="b", splits=["test_n", "test_u", "test_s", "test_u"])
    assert forward == backward
    assert lines(tmp_path, "a") == lines(tmp_path, "b")


def test_a_row_scores_the_same_alone(tmp_path, folder):
    together = {line["row"]: line for line in (score(tmp_path, folder), lines(tmp_path))[1]}
    score(tmp_path, folder, name="alone", splits=["test_u"])
    assert lines(tmp_path, "alone") == [together[row] for row in rows_of("test_u")]


# ---- missing and surplus predictions ----------------------------------------------------------------------------


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_missing_prediction_counts_as_an_empty_mask_and_is_reported(tmp_path, truth, folder, preset, caplog):
    for index in range(3):
        (folder / "1" / f"{index}.png").unlink()
    (folder / "1").rmdir()
    tables = score(tmp_path, folder, preset=preset)
    assert (tables["splits"]["test_s"]["n"], tables["splits"]["test_s"]["missing"]) == (3, 1)
    row = lines(tmp_path)[0]
    assert (row["row"], row["J"], row["F"], row["S"], row["is_missing"]) == (1, 0.0, 0.0, 0.0, True)
    assert "no prediction, scored as empty masks: row 1" in caplog.text


def test_no_prediction_at_all_is_scored(tmp_path, truth):
    (tmp_path / "masks").mkdir()
    splits = score(tmp_path, tmp_path / "masks")["splits"]
    assert splits["test_s"] == {
        "J": pytest.approx(1 / 9),
        "F": 0.0,
        "J&F": pytest.approx(1 / 18),
        "F_pooled": 0.0,
        "n": 3,
        "missing": 3,
    }
    assert (splits["test_n"]["S"], splits["test_n"]["null_accuracy"], splits["test_n"]["missing"]) == (0.0, 1.0, 2)


def test_null_reference_without_masks_is_scored_at_the_predictions_size(tmp_path, truth):
    marked = np.zeros((3, 8, 8), dtype=np.float32)
    marked[:, :4] = 1  # half of each frame, at 256 x 256 as well
    tables = score(tmp_path, write_npzs(tmp_path / "masks", {WITHOUT_MASKS: marked}), splits=["test_n"])
    assert tables["splits"]["test_n"]["S"] == pytest.approx(0.5**0.5 / 2)
    assert tables["splits"]["test_n"]["false_alarm_rate"] == 0.5


def test_predictions_of_other_splits_and_other_files_are_left_out(tmp_path, folder, caplog):
    caplog.set_level("INFO")
    (folder / "README.md").write_text("")
    assert list(score(tmp_path, folder, splits=["test_s"])["splits"]) == ["test_s"]
    assert "left out: predictions of 5 row(s) of other splits" in caplog.text
    assert f"ignored, no predictions: {folder / 'README.md'}" in caplog.text


def test_row_that_the_table_does_not_have_is_an_error(tmp_path, folder):
    write_pngs(folder, {10: levels(1)})
    with pytest.raises(PredictionError, match="a prediction of row 10, but metadata.csv has the rows 0 to 9"):
        score(tmp_path, folder)


# ---- bad predictions and bad truth ------------------------------------------------------------------------------


def test_all_bad_rows_are_named_and_the_good_ones_kept_for_the_next_try(tmp_path, folder, monkeypatch):
    (folder / "2" / "2.png").unlink()
    Image.new("RGB", (24, 20)).save(folder / "5" / "1.png")
    with pytest.raises(PredictionError) as error:
        score(tmp_path, folder)
    assert str(error.value).startswith("2 row(s) cannot be scored: row 2 (s0_cat_2): the prediction has 2 frames, the")
    assert "row 5 (u0_tabla_2): the image" in str(error.value) and "5/1.png has mode RGB" in str(error.value)
    assert not (tmp_path / "out" / "scores.json").exists()
    write_pngs(folder, {2: levels(2), 5: levels(5)})
    scored = spy(monkeypatch)
    score(tmp_path, folder)
    assert sorted(scored) == [2, 5]
    assert not list(tmp_path.glob("*.partial.jsonl"))


def broken_npz(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        write_npzs(folder, {2: levels(2) / np.float32(255)})
        (folder / "2.npz").write_bytes(change((folder / "2.npz").read_bytes()))

    return write


def bomb(folder: Path) -> None:
    """A PNG of a few bytes that claims 100,000 x 100,000 pixels."""
    (folder / "2").mkdir()
    Image.new("L", (1, 1)).save(folder / "2/0.png")
    data = (folder / "2/0.png").read_bytes()
    header = b"IHDR" + struct.pack(">II", 100_000, 100_000) + data[24:29]
    (folder / "2/0.png").write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])


#: What may be in the place of row 2's prediction.
BAD_PREDICTIONS: dict[str, Callable[[Path], object]] = {
    "npz, cut off": broken_npz(lambda data: data[:-40]),
    "npz, empty": broken_npz(lambda data: b""),
    "npz, a pickle": broken_npz(lambda data: pickle.dumps([1, 2])),
    "npz, objects": lambda folder: np.savez(folder / "2.npz", probs=np.array([None])),
    "npz, NaN": lambda folder: write_npzs(folder, {2: np.full((3, 20, 24), np.nan)}),
    "npz, shape": lambda folder: write_npzs(folder, {2: np.zeros((20, 24))}),
    "npz, number of frames": lambda folder: write_npzs(folder, {2: np.zeros((4, 20, 24))}),
    "npz, integers": lambda folder: write_npzs(folder, {2: np.zeros((3, 20, 24), dtype=np.uint8)}),
    "npz, a link to nowhere": lambda folder: (folder / "2.npz").symlink_to(folder / "nowhere"),
    "npz, a pipe": lambda folder: os.mkfifo(folder / "2.npz"),
    "png, a link to nowhere": lambda folder: (folder / "2").mkdir() or (folder / "2/0.png").symlink_to("nowhere"),
    "png, a pipe": lambda folder: (folder / "2").mkdir() or os.mkfifo(folder / "2/0.png"),
    "png, a folder": lambda folder: (folder / "2/0.png").mkdir(parents=True),
    "png, none": lambda folder: (folder / "2").mkdir(),
    "png, a bomb": bomb,
    "two": lambda folder: write_npzs(write_pngs(folder, {2: levels(2)}), {2: levels(2) / np.float32(255)}),
}


@pytest.mark.parametrize("kind", BAD_PREDICTIONS)
def test_bad_prediction_of_any_kind_is_one_bad_row(tmp_path, folder, monkeypatch, kind):
    shutil.rmtree(folder / "2")
    BAD_PREDICTIONS[kind](folder)
    scored = spy(monkeypatch)
    with pytest.raises(PredictionError, match=r"^1 row\(s\) cannot be scored: (row 2 \(s0_cat_2\)|row 2 has two)"):
        score(tmp_path, folder)
    assert sorted(scored) == rows_of(*TEST_SPLITS)
    assert not (tmp_path / "out" / "scores.json").exists()
    shutil.rmtree(folder / "2", ignore_errors=True)
    (folder / "2.npz").unlink(missing_ok=True)
    write_pngs(folder, {2: levels(2)})
    scored.clear()
    score(tmp_path, folder)
    assert scored == [2]


def test_row_that_the_memory_has_no_room_for_is_one_bad_row(tmp_path, folder, monkeypatch):
    score_masks = rescoring.score_masks

    def score_unless_large(mask_probs, *args, **options):
        if mask_probs[0, 0, 0] == levels(2)[0, 0, 0] / np.float32(255):
            raise RuntimeError("not enough memory: you tried to allocate 9 bytes")
        return score_masks(mask_probs, *args, **options)

    monkeypatch.setattr(rescoring, "score_masks", score_unless_large)
    with pytest.raises(PredictionError, match=r"^1 row.*row 2 \(s0_cat_2\) cannot be scored: not enough memory"):
        score(tmp_path, folder)


def spy(monkeypatch) -> list[int]:
    """Notes the rows that are scored."""
    scored: list[int] = []
    score_row = rescoring.score_row

    def noting(task):
        scored.append(task.sample.row)
        return score_row(task)

    monkeypatch.setattr(rescoring, "score_row", noting)
    return scored


def test_null_reference_with_a_mask_that_is_not_empty_is_an_error(tmp_path, folder):
    Image.new("L", (24, 20), 255).save(tmp_path / "data/gt_mask/null_m-n0/fid_0/00001.png")
    with pytest.raises(PredictionError, match=r"row 8 \(null_m-n0_null_1\): a null reference, but its masks in"):
        score(tmp_path, folder)


def test_missing_truth_is_an_error(tmp_path, folder):
    for path in (tmp_path / "data/gt_mask/s1/fid_0").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match="s1_drum_1"):
        score(tmp_path, folder)


def test_unknown_split_or_preset_is_an_error_before_anything_is_read(tmp_path, folder):
    with pytest.raises(DatasetError, match="no split 'dev'"):
        score(tmp_path, folder, splits=["dev"])
    with pytest.raises(ValueError, match="refavs, avsbench, aurora, davis"):
        score(tmp_path, folder, preset="sam")
    assert not list(tmp_path.glob("out/*"))


def test_splits_that_begin_with_test_are_found(tmp_path, truth):
    assert find_test_splits(tmp_path / "data") == ["test_n", "test_s", "test_u"]


# ---- going on after a kill --------------------------------------------------------------------------------------


def interrupt_after(monkeypatch, num_rows: int) -> None:
    score_row, calls = rescoring.score_row, iter(range(num_rows))

    def failing(task):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return score_row(task)

    monkeypatch.setattr(rescoring, "score_row", failing)


@pytest.fixture
def interrupted(tmp_path, folder, monkeypatch) -> Path:
    """The folder of predictions after a run that ended after five rows."""
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            score(tmp_path, folder)
    return folder


def test_resumed_run_scores_what_is_left_and_writes_the_same_files(tmp_path, interrupted, monkeypatch):
    scored = spy(monkeypatch)
    resumed = score(tmp_path, interrupted)
    assert len(scored) == 3
    content = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert score(tmp_path, interrupted, name="out") == resumed
    assert len(scored) == 3 + 8  # a finished run leaves nothing to go on from
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == content


def test_line_that_a_kill_cut_off_is_scored_again(tmp_path, interrupted, monkeypatch):
    resume_file = tmp_path / "out" / "results.partial.jsonl"
    resume_file.write_bytes(resume_file.read_bytes()[:-10])
    scored = spy(monkeypatch)
    score(tmp_path, interrupted)
    assert len(scored) == 4


def test_changed_prediction_is_scored_again(tmp_path, interrupted, monkeypatch):
    write_pngs(interrupted, {1: 255 - levels(1)})
    scored = spy(monkeypatch)
    score(tmp_path, interrupted)
    assert len(scored) == 4 and 1 in scored


def test_changed_truth_is_scored_again(tmp_path, interrupted, monkeypatch):
    os.utime(tmp_path / "data/gt_mask/s0/fid_0/00000.png")
    scored = spy(monkeypatch)
    score(tmp_path, interrupted)
    assert len(scored) == 4 and 1 in scored


def test_other_preset_or_other_table_starts_anew(tmp_path, interrupted, monkeypatch, caplog):
    scored = spy(monkeypatch)
    score(tmp_path, interrupted, preset="davis")
    assert len(scored) == 8
    assert "results.partial.jsonl belongs to another run" in caplog.text


def test_table_that_changed_starts_anew(tmp_path, interrupted, monkeypatch):
    with (tmp_path / "data" / "metadata.csv").open("a") as file:
        file.write("x,x_cat_2,train,0,The cat.\n")
    scored = spy(monkeypatch)
    score(tmp_path, interrupted)
    assert len(scored) == 8


SLOW = """
import sys, time
from pathlib import Path
from aurora_rl.evaluation import of_saved_masks as rescoring
wait = rescoring.ResumeFile.append
def append(self, record):
    wait(self, record)
    print(record["row"], flush=True)
    time.sleep(0.2)
rescoring.ResumeFile.append = append
if __name__ == "__main__":
    data, masks, out = map(Path, sys.argv[1:])
    splits = ["test_s", "test_u", "test_n"]
    data = rescoring.DataArguments(str(data))
    rescoring.rescore(data, rescoring.saved_predictions(masks), out, splits=splits, num_workers=2)
"""


def test_run_that_is_killed_loses_no_finished_clip_and_leaves_no_process(tmp_path, folder, monkeypatch):
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    command = [sys.executable, str(script), str(tmp_path / "data"), str(folder), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as process:
        finished = [int(process.stdout.readline()) for _ in range(3)]
        children = children_of(process.pid)
        process.send_signal(signal.SIGKILL)
    assert len(children) >= 2
    wait_until(lambda: not any(is_running(child) for child in children))
    scored = spy(monkeypatch)
    score(tmp_path, folder)
    assert not set(finished) & set(scored)
    assert len(scored) <= 8 - 3


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end, "workers outlived their run"
        time.sleep(0.1)


# ---- a model's own results --------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path, truth) -> Path:
    """results.jsonl of a model that answered all rows but row 4."""
    path = tmp_path / "results.jsonl"
    samples = load_ref_avs_truth(tmp_path / "data", TEST_SPLITS)
    probs = {s.row: None if s.row == 4 else torch.from_numpy(levels(s.row) / np.float32(255)) for s in samples}
    write_results(path, [score_answer(s, "It is [SEG].", probs[s.row], truth[s.row], preset="davis") for s in samples])
    return path


def test_results_are_rescored_under_davis_as_they_were_scored(tmp_path, results, truth):
    rescore(
        data_of(tmp_path),
        saved_results(results, preset="davis"),
        tmp_path / "out",
        splits=TEST_SPLITS,
        preset="davis",
    )
    expected = {row: direct_scores(levels(row) / np.float32(255), truth[row], "davis") for row in rows_of(*TEST_SPLITS)}
    for row in read_results(tmp_path / "out"):
        if row.row == 4:
            assert row.is_missing and row.J == 0
        else:
            assert pytest.approx((expected[row.row]["J"], expected[row.row]["F"]), abs=1e-9) == (row.J, row.F)


def test_results_under_a_preset_of_many_thresholds_say_that_they_have_one(tmp_path, results):
    predictions = saved_results(results, preset="aurora")
    tables = rescore(data_of(tmp_path), predictions, tmp_path / "out", splits=["test_s"], preset="aurora")
    assert "one threshold only" in tables["note"]


def test_results_are_refused_under_a_preset_of_another_threshold(results):
    with pytest.raises(ValueError, match=r"masks of p > 0.5, but preset refavs takes J at p > 0.4"):
        saved_results(results, preset="refavs")


BAD_MASKS = {
    "none": [],
    "a number": [7],
    "no size": [{"counts": "0"}],
    "gigabytes": [{"size": [1_000_000, 1_000_000], "counts": "0"}],
    "negative size": [{"size": [-1, 5], "counts": "0"}],
    "another alphabet": [{"size": [20, 24], "counts": "\u2603" * 50}],
    "an endless number": [{"size": [20, 24], "counts": "o" * 100_000}],
    "too few pixels": [{"size": [20, 24], "counts": [5]}],
    "a text": "masks",
    "an object": {"size": [20, 24]},
}
#: What may be in the place of row 2's line.
BAD_LINES: dict[str, Callable[[dict], object]] = {
    "cut off": lambda record: json.dumps(record)[:-30],
    "nested": lambda record: "[" * 5000 + "]" * 5000,
    "a list": lambda record: "[1, 2]",
    "row as text": lambda record: json.dumps({**record, "row": "2"}),
    "row below 0": lambda record: json.dumps({**record, "row": -2}),
    "uid as a list": lambda record: json.dumps({**record, "uid": ["a"]}),
    "no answer": lambda record: json.dumps({**record, "greedy": 3}),
    "masks as a number": lambda record: json.dumps({**record, "greedy": {**record["greedy"], "pred_masks": 7}}),
}


def with_another_line_2(results: Path, change: Callable[[dict], object]) -> None:
    lines = results.read_text().splitlines()
    index = next(index for index, line in enumerate(lines) if json.loads(line)["row"] == 2)
    lines[index] = str(change(json.loads(lines[index])))
    results.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("masks", BAD_MASKS.values(), ids=BAD_MASKS)
def test_bad_masks_of_a_result_are_one_bad_row(tmp_path, results, monkeypatch, masks):
    with_another_line_2(results, lambda r: json.dumps({**r, "greedy": {**r["greedy"], "pred_masks": masks}}))
    scored = spy(monkeypatch)
    with pytest.raises(
        PredictionError, match=r"^1 row\(s\) cannot be scored: row 2 \(s0_cat_2\): .*results\.jsonl, row 2"
    ):
        rescore_results(tmp_path, results)
    assert sorted(scored) == rows_of(*TEST_SPLITS)


def test_row_that_has_scores_and_no_masks_is_named_and_the_others_are_scored(tmp_path, results, monkeypatch):
    with_another_line_2(results, lambda record: json.dumps({**record, "greedy": None}))
    scored = spy(monkeypatch)
    with pytest.raises(PredictionError, match=r"^1 row\(s\) cannot .*results\.jsonl, row 2: .* but no masks"):
        rescore_results(tmp_path, results)
    assert sorted(scored) == rows_of(*TEST_SPLITS)


@pytest.mark.parametrize("kind", BAD_LINES)
def test_bad_line_of_results_is_named_and_the_others_are_scored(tmp_path, results, monkeypatch, kind):
    with_another_line_2(results, BAD_LINES[kind])
    scored = spy(monkeypatch)
    with pytest.raises(
        PredictionError, match=r"^1 row\(s\) cannot be scored: .*results\.jsonl:2 is no evaluation result"
    ):
        rescore_results(tmp_path, results)
    assert sorted(scored) == rows_of(*TEST_SPLITS)
    assert not (tmp_path / "out" / "scores.json").exists()


def rescore_results(tmp_path: Path, results: Path) -> None:
    predictions = saved_results(results, preset="davis")
    rescore(data_of(tmp_path), predictions, tmp_path / "out", splits=TEST_SPLITS, preset="davis")


def test_results_of_another_dataset_are_refused(tmp_path, results):
    results.write_text(results.read_text().replace("s0_drum_1", "s9_drum_1"))
    predictions = saved_results(results, preset="davis")
    with pytest.raises(PredictionError, match="has row 1 as 's9_drum_1', metadata.csv as 's0_drum_1'"):
        rescore(data_of(tmp_path), predictions, tmp_path / "out", splits=["test_s"], preset="davis")


def test_a_row_that_results_hold_twice_is_named_and_the_others_are_scored(tmp_path, results, monkeypatch):
    lines = results.read_text().splitlines()
    results.write_text("\n".join([*lines, lines[1]]) + "\n")
    scored = spy(monkeypatch)
    with pytest.raises(
        PredictionError, match=rf"^1 row\(s\) cannot be scored: .*:{len(lines) + 1} holds row .* a second time"
    ):
        rescore_results(tmp_path, results)
    assert sorted(scored) == rows_of(*TEST_SPLITS)


# ---- rows that are annotated in part, or not at all ---------------------------------------------------------------


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_frames_without_annotation_are_predicted_but_not_scored(tmp_path, truth, folder, preset):
    [sample] = [row for row in load_ref_avs_truth(tmp_path / "data", ["test_s"]) if row.row == 1]
    in_part = dataclasses.replace(sample, mask_paths=(sample.mask_paths[0], "", sample.mask_paths[2]))
    prediction = list_predictions(folder).rows[1]
    scored = rescoring.score_row(rescoring.Job(in_part, prediction, preset, ""))
    probs = levels(1)[[0, 2]].astype(np.float32) / 255
    expected = direct_scores(probs, truth[1][[0, 2]], preset)
    assert {name: getattr(scored, name) for name in ("J", "F", "S")} == pytest.approx(expected, abs=1e-5)
    two_frames = write_pngs(tmp_path / "two", {1: levels(1)[[0, 2]]})
    with pytest.raises(PredictionError, match="the prediction has 2 frames, the clip 3"):
        rescoring.score_row(rescoring.Job(in_part, list_predictions(two_frames).rows[1], preset, ""))


def test_row_without_truth_is_named(tmp_path, truth):
    [sample] = [row for row in load_ref_avs_truth(tmp_path / "data", ["test_s"]) if row.row == 1]
    with pytest.raises(PredictionError, match=r"row 1 \(s0_drum_1\): it has no true masks to score against"):
        rescoring.score_row(rescoring.Job(dataclasses.replace(sample, mask_paths=()), None, "refavs", ""))


def test_answers_without_masks_have_nothing_to_score_again(tmp_path):
    write_results(tmp_path / "results.jsonl", [replied(1)])
    predictions = saved_results(tmp_path / "results.jsonl", preset="davis")
    assert not predictions.named and "row 1: its scores are there, but no masks" in predictions.damaged[0]


def test_the_number_of_a_frame_alone_asks_for_no_memory(tmp_path):
    write_truth(tmp_path / "data")
    (tmp_path / "masks.json").write_text(json.dumps([{"row": WITHOUT_MASKS, "frame": 10**9, "segmentation": None}]))
    data, predictions = DataArguments(data_root=str(tmp_path / "data")), saved_predictions(tmp_path / "masks.json")
    with pytest.raises(PredictionError, match="mask of frame 1000000000, but no clip has more than 100000 frames"):
        rescore(data, predictions, tmp_path / "out", splits=["test_n"])
