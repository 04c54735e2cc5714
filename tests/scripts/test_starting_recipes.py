"""Recipes that `aurora-rl init` writes: what they say of the data, and that they fit the machine."""

import json
from pathlib import Path

import pytest
import yaml

from aurora_rl.assembly.known_options import read_asked
from aurora_rl.data.files import DatasetError
from aurora_rl.scripts.own_clips import OwnClips, guess_columns, read_own_clips
from aurora_rl.scripts.starting_recipes import Machine, Model, write_recipe
from tests.data.own_clips import ROW, coco, column, write_clips, write_manifest

ROOT = Path(__file__).resolve().parents[2]
SEVEN_B = str(ROOT / "docs" / "configs" / "qwen2_5_omni_7b")
LABELLED = {**ROW, "masks": "masks.json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with films and the masks of one."""
    folder = write_clips(tmp_path_factory.mktemp("clips"))
    (folder / "masks.json").write_text(json.dumps(coco({number / 10: column(number) for number in range(20)})))
    return folder


def read(folder: Path, *rows: dict) -> OwnClips:
    return read_own_clips(str(write_manifest(folder / "rows.jsonl", rows)))


@pytest.fixture(scope="module")
def seven_b() -> Model:
    return Model.read(SEVEN_B)


@pytest.mark.parametrize(
    ("there", "columns"),
    [
        (["video", "reference", "masks"], {}),
        (["file", "caption", "mask", "weather"], {"video": "file", "reference": "caption", "masks": "mask"}),
        (["frames", "path", "text"], {"reference": "text"}),
        (["video", "caption", "reference"], {}),
    ],
)
def test_columns_of_other_names_are_guessed(there, columns) -> None:
    assert guess_columns(there, {}) == columns


def test_a_column_that_nobody_can_guess_is_told(folder) -> None:
    with pytest.raises(DatasetError, match="reference"):
        read(folder, {"video": "clips/a.mp4", "words": "the thing"})
    path = str(folder / "rows.jsonl")
    with pytest.raises(DatasetError, match="no row of the split 'train' has masks"):
        read_own_clips(path, {"reference": "words"})


@pytest.mark.parametrize(
    ("splits", "chosen"),
    [
        (["train", "val", "test"], ("train", "val", ["test"])),
        (["train", "test_a", "test_b"], ("train", None, ["test_a", "test_b"])),
        (["train", "test"], ("train", None, ["test"])),  # the best checkpoint is never chosen on a test split
        (["mine", "dev"], ("mine", "dev", ["dev"])),
        (["test"], ("test", None, ["test"])),
    ],
)
def test_splits_are_chosen_by_their_names(folder, splits, chosen) -> None:
    clips = read(folder, *({**LABELLED, "split": split} for split in splits))
    assert (clips.train_split, clips.eval_split, list(clips.test_splits)) == chosen


def test_short_clips_are_sampled_more_densely_and_rows_without_masks_are_skipped(folder) -> None:
    assert read(folder, LABELLED).keys == {"benchmark": "clips", "fps": 2.0, "num_frames": 10}
    unlabelled = {"video": "clips/silent.mp4", "reference": "it"}
    clips = read(folder, LABELLED, unlabelled)
    assert clips.keys["skip_unlabelled"] is True and len(clips.train) == 1 and len(clips.samples) == 2


def test_a_manifest_without_masks_is_none_to_train_on(folder) -> None:
    with pytest.raises(DatasetError, match="no row of the split 'train' has masks"):
        read(folder, ROW, {**LABELLED, "split": "val"})


@pytest.mark.parametrize(
    ("kind", "machine", "launch", "four_bits"),
    [
        ("grpo", Machine(8, 80, 1000), "zero2 --num_processes 8", False),
        ("grpo", Machine(3, 40, 500), "zero2 --num_processes 3", False),
        ("sft", Machine(1, 80, 200), "zero2 --num_processes 1", False),
        ("sft", Machine(1, 24, 100), "single_gpu", True),
    ],
)
def test_a_7b_is_trained_by_lora_as_it_fits(folder, seven_b, kind, machine, launch, four_bits) -> None:
    clips = read(folder, *([{**LABELLED, "category": "thing"}] * 3))
    written = write_recipe(kind, "my clips.jsonl", clips, seven_b, machine, f"{kind}.yaml")
    keys = yaml.safe_load(written.text)
    assert written.problem is None and written.command == f"aurora-rl {kind} --config {kind}.yaml --launch {launch}"
    assert keys.get("load_in_4bit", False) is four_bits and keys["bf16"] is True
    assert keys["output_dir"] == f"outputs/my_clips/{kind}"
    if kind == "grpo":
        together = keys["per_device_train_batch_size"] * keys["gradient_accumulation_steps"] * machine.num_gpus
        assert together % keys["num_generations"] == 0 and together >= keys["num_generations"]
        assert "reward_fns.category:category_reward" in keys["reward_funcs"]
        assert (keys["model"], keys["mask_loss_on"]) == ("outputs/my_clips/sft", "correct_only")


def test_what_fits_nowhere_is_told_with_advice(folder, seven_b) -> None:
    written = write_recipe("sft", "clips.jsonl", read(folder, LABELLED), seven_b, Machine(0, 80, 6), "sft.yaml")
    assert "Its largest parts" in str(written.problem)


def test_a_model_that_cannot_be_asked_gets_a_recipe_without_an_estimate(folder) -> None:
    model = Model.read("nobody/has-this-model")
    assert "hf download nobody/has-this-model" in model.unread
    written = write_recipe("sft", "clips.jsonl", read(folder, LABELLED), model, Machine(2, 80, 500), "sft.yaml")
    keys = yaml.safe_load(written.text)
    assert "Memory: not estimated" in written.text and keys["use_peft"] and keys["segmenter"]["type"] == "sam"


@pytest.mark.parametrize("kind", ["sft", "grpo", "evaluate"])
def test_every_recipe_is_read_by_its_script(folder, tiny_checkpoint, tmp_path, kind) -> None:
    clips = read(folder, {**LABELLED, "category": "ding # 1: [x]"}, {**LABELLED, "split": "val", "chain": "It is."})
    written = write_recipe(kind, "a: #1/clips.csv", clips, Model.read(tiny_checkpoint), Machine(0, 80, 20), kind)
    (tmp_path / "c.yaml").write_text(written.text)
    asked = read_asked(f"recipes/{kind}.py", ["--config", str(tmp_path / "c.yaml")])
    assert asked.get("data_root") == "a: #1/clips.csv" and asked.get("use_cpu") is True
    launch = "" if kind == "evaluate" else " --launch cpu"
    assert written.text.splitlines()[0] == f"# aurora-rl {kind} --config {kind}{launch}"
