"""What an install can do, in a folder with six clips, their masks and a CSV file: nothing else is written by hand.

The wheel is built and unpacked once; commands run in its copy of the package, from a process that has imported the
libraries (tests/warm_interpreter.py). Only trainings start Python anew, as they do for a user.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image

from tests.data.odd_files import tone, write_film
from tests.data.own_clips import coco
from tests.warm_interpreter import write_programs

ROOT = Path(__file__).resolve().parents[2]
SIZE = (32, 48)
#: Clips with what is special about each.
CLIPS = {
    "sound": {"sounds": [[(0.0, tone(2))]]},
    "silent": {},
    "rotated": {"matrix": (0, 1, -1, 0)},
    "still": {},
    "null": {"sounds": [[(0.0, tone(2))]]},
    "held out": {"sounds": [[(0.0, tone(2))]]},
}

Run = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clips, masks as COCO files with times, and clips.csv."""
    folder = tmp_path_factory.mktemp("own") / "with space"
    folder.mkdir()
    rows = []
    for name, options in CLIPS.items():
        masks = {number / 10: box(number) for number in range(1 if name == "still" else 20)}
        write_film(folder / f"{name}.mp4", frames=[picture(mask) for mask in masks.values()], **options)
        if name == "rotated":
            masks = {at: np.rot90(mask, -1) for at, mask in masks.items()}
        if name != "null":
            (folder / f"{name}.json").write_text(json.dumps(coco(masks, categories=("box",))))
        truth = {"masks": "empty", "category": ""} if name == "null" else {"masks": f"{name}.json", "category": "box"}
        split = "val" if name == "held out" else "train"
        rows.append({"id": name, "video": f"{name}.mp4", "reference": f"the box of {name}", **truth, "split": split})
    with (folder / "clips.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def box(number: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[8:24, number : number + 12] = True
    return mask


def picture(mask: np.ndarray) -> np.ndarray:
    return np.where(mask[..., None], (240, 200, 30), (20, 30, 60)).astype(np.uint8)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, as `pip install --no-deps --target` leaves it."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=280)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def run(site: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs `aurora-rl` of the install in the folder, and returns what it said."""
    place = tmp_path_factory.mktemp("programs")
    usual = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(place / "cache")}
    environment = {**os.environ, **usual, "PYTHONPATH": str(site), "COLUMNS": "200"}
    write_programs(place, place / "socket", ["aurora-rl"])
    command = [sys.executable, str(ROOT / "tests" / "warm_interpreter.py"), str(place / "socket")]
    server = subprocess.Popen(command, env=environment, cwd=folder, start_new_session=True)
    while not (place / "socket").exists():
        assert server.poll() is None
        time.sleep(0.05)

    def aurora_rl(*words: str, code: int = 0) -> str:
        ran = subprocess.run(
            [str(place / "aurora-rl"), *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=290
        )
        assert ran.returncode == code, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    yield aurora_rl
    server.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(timeout=10)


@pytest.fixture(scope="module")
def recipes(run: Run, folder: Path, tiny_checkpoint: str) -> dict[str, dict]:
    """Content of the recipes that `init` has written."""
    run("init", "--data", "clips.csv", "--model", tiny_checkpoint, "--gpus", "0")
    return {name: yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in ("sft", "grpo", "evaluate")}


@pytest.fixture(scope="module")
def tuned(run: Run, folder: Path, recipes: dict[str, dict]) -> Path:
    """Output of two steps of SFT."""
    run("sft", "--config", "sft.yaml", "--max_steps", "2", "--eval_strategy", "no")
    return folder / "outputs" / "clips" / "sft"


@pytest.fixture(scope="module")
def trained(run: Run, folder: Path, tuned: Path) -> Path:
    """Output of two steps of GRPO."""
    run("grpo", "--config", "grpo.yaml", "--max_steps", "2", "--eval_strategy", "no", "--max_completion_length", "8")
    return folder / "outputs" / "clips" / "grpo"


def test_commands_are_those_of_the_install(run: Run, site: Path) -> None:
    listed = run("stages", "--config", "synthetic/smoke", "--list")
    for path in ("recipes/grpo.py", "recipes/synthetic/grpo.yaml", "accelerate_configs/cpu.yaml"):
        assert str(site / "aurora_rl" / path) in listed
    assert "synthetic/grpo " in run("recipes", "list")
    assert run("recipes", "show", "synthetic/grpo") == (ROOT / "recipes" / "synthetic" / "grpo.yaml").read_text()


def test_doctor_finds_the_clips_whole(run: Run) -> None:
    assert "6" in run("doctor", "clips.csv")


def test_init_reads_the_manifest_and_never_replaces_a_recipe(
    run: Run, recipes: dict[str, dict], tiny_checkpoint: str
) -> None:
    sft = recipes["sft"]
    assert (sft["benchmark"], sft["data_root"]) == ("clips", "clips.csv") and "columns" not in sft
    assert (sft["train_split"], sft["eval_split"], sft["target"], sft["use_cpu"]) == ("train", "val", "answer", True)
    assert recipes["grpo"]["model"] == sft["output_dir"] and recipes["evaluate"]["split"] == ["val"]
    said = run("init", "--data", "clips.csv", "--model", tiny_checkpoint, code=2)
    assert "the recipe sft.yaml is there already" in said


def test_a_training_leaves_a_model_and_one_that_fails_its_exit_code(run: Run, trained: Path) -> None:
    assert (trained / "model.safetensors").is_file()
    said = run("sft", "--config", "sft.yaml", "--lerning_rate", "1", code=2)
    assert said.startswith("aurora-rl sft: ") and "--learning_rate" in said


def test_evaluate_scores_the_held_out_clip(run: Run, folder: Path, trained: Path) -> None:
    assert "val" in run("evaluate", "--config", "evaluate.yaml", "--max_completion_length", "8")
    assert json.loads((folder / "outputs/clips/eval/scores.json").read_text())["splits"]["val"]["n"] == 1


def test_segment_writes_masks_of_a_clip(run: Run, folder: Path, trained: Path) -> None:
    words = ["the box", "--model", str(trained), "--max_completion_length", "8", "-o", "out"]
    run("segment", "rotated.mp4", *words)
    assert (folder / "out" / "masks.json").is_file()


@pytest.fixture(scope="module")
def tables(folder: Path) -> Path:
    """The clips with sound, without and turned as a data set of `datasets`, saved in its four usual ways."""
    pictures = datasets.List(datasets.Image(decode=False))
    features = {"id": datasets.Value("string"), "video": datasets.Video(decode=False), "masks": pictures}
    rows = [
        {
            "id": name,
            "video": {"bytes": (folder / f"{name}.mp4").read_bytes(), "path": f"{name}.mp4"},
            "masks": [{"bytes": png(box(number)), "path": None} for number in range(20)],
            "caption": f"the box of {name}",
        }
        for name in ("sound", "silent")
    ]
    features["caption"] = datasets.Value("string")
    table = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    table.save_to_disk(folder / "disk")
    datasets.DatasetDict({"train": table}).save_to_disk(folder / "splits_on_disk")
    table.to_parquet(folder / "any name.parquet")
    (folder / "repository" / "data").mkdir(parents=True)
    table.to_parquet(folder / "repository" / "data" / "train-00000-of-00001.parquet")
    (folder / "repository" / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    return folder


def png(mask: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, format="PNG")
    return file.getvalue()


@pytest.mark.parametrize("form", ["disk", "splits_on_disk", "any name.parquet", "repository"])
def test_a_data_set_of_the_library_is_examined_and_trained_on(
    form: str, run: Run, tables: Path, tiny_checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "0 kind(s) of errors" in run("doctor", form, "--columns", "reference=caption", "--num_frames", "any")
    run("init", "--data", form, "--model", tiny_checkpoint, "--gpus", "0", "--output_dir", f"of {form}")
    monkeypatch.chdir(tables)
    train("sft", f"of {form}/sft.yaml", monkeypatch)
    if form == "repository":
        train("grpo", f"of {form}/grpo.yaml", monkeypatch, "--max_completion_length", "8")
        assert "train" in run("evaluate", "--config", f"of {form}/evaluate.yaml", "--max_completion_length", "8")


def train(script: str, config: str, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Take two steps as the script does, in this process."""
    usual = ["--config", config, "--max_steps", "2", "--eval_strategy", "no", "--report_to", "none", *words]
    monkeypatch.setattr(sys, "argv", [f"recipes/{script}.py", *usual])
    importlib.import_module(f"aurora_rl.scripts.{script}").run()
    output = Path(yaml.safe_load(Path(config).read_text())["output_dir"])
    assert json.loads((output / "trainer_state.json").read_text())["global_step"] == 2
