"""`data`: entries that inherit the recipe's options, and what is refused before anything is loaded."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from aurora_rl.assembly.arguments import DataArguments, TargetArguments
from aurora_rl.assembly.benchmarks import load_split, load_training_splits
from aurora_rl.assembly.data_sets import data_sets, main_set, mixed_sets, reward_sets
from aurora_rl.assembly.early import check_asked
from aurora_rl.assembly.known_options import read_asked
from aurora_rl.assembly.teacher import assemble_targets

CHOICE = "aurora_rl.tasks.multiple_choice:MultipleChoice"
BOXES = "aurora_rl.tasks.reference_boxes:ReferenceBoxes"


def with_data(data_args: DataArguments, *entries: dict[str, Any]) -> DataArguments:
    return dataclasses.replace(data_args, data=list(entries))


def test_an_entry_inherits_what_it_leaves_out_but_no_words_of_another_task(data_args: DataArguments) -> None:
    questions = {"benchmark": "questions", "task": CHOICE}
    first, second = data_sets(with_data(data_args, {"name": "named", "fps": 1.0}, questions))
    assert (first.name, first.args.fps, first.args.chains) == ("named", 1.0, "chains.jsonl")
    assert first.args.instruction == "{reference}" and first.args.data is None
    assert (second.name, second.args.data_root, second.args.max_pixels) == ("questions", data_args.data_root, 65536)
    assert second.args.instruction is None and second.args.chains is None
    assert main_set([second, first]) is first  # the one that has the head


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "expected a list of data sets"),
        (["ref_avs"], "expected a list of data sets"),
        ([{"bench": "ref_avs"}], r"data\[0\] has the unknown key 'bench', did you mean 'benchmark'"),
        ([{"share": 0}], r"data\[0\]: share is 0: expected a positive number"),
        ([{"share": True}], "share is True"),
        ([{"share": float("nan")}], "share is nan"),
        ([{"share": 1}, {"name": "b"}], r"data\[1\] has no share, others have one"),
        ([{"name": "../b"}], "name is '../b': expected letters"),
        ([{}, {}], "two data sets are called 'ref_avs'"),
    ],
)
def test_an_invalid_entry_is_told_by_its_number(data_args: DataArguments, entries: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data_sets(dataclasses.replace(data_args, data=entries))


def test_one_run_has_one_head(data_args: DataArguments) -> None:
    args = with_data(data_args, {"name": "a"}, {"name": "b", "task": BOXES})
    with pytest.raises(ValueError, match="'a' needs the head 'masks', that of 'b' 'boxes': a run trains one head"):
        load_training_splits(args)


def test_rows_know_their_set_and_have_keys_of_their_own(data_args: DataArguments) -> None:
    args = with_data(data_args, {"name": "a", "share": 0.7}, {"name": "b", "share": 0.3, "eval_split": "val"})
    train, evaluated = load_training_splits(args)
    plain = load_split(data_args, "train")
    assert train[: len(plain)] == [dataclasses.replace(row, dataset="a") for row in plain]
    assert len({row.key for row in train}) == len(train) == 2 * len(plain)
    assert {row.dataset for row in evaluated} == {"b"}
    mixed = mixed_sets(data_sets(args), train)
    assert [(each.name, each.size, each.share) for each in mixed] == [("a", len(plain), 0.7), ("b", len(plain), 0.3)]
    with pytest.raises(ValueError, match="one data set is read here: .* 'a' or 'b'"):
        load_split(args, "train")


def test_each_set_has_its_tasks_target(data_args: DataArguments) -> None:
    questions = {"name": "qa", "benchmark": "questions", "task": CHOICE, "num_frames": 4}
    args = with_data(data_args, {"name": "avs"}, questions)
    train, _ = load_training_splits(args)
    target = assemble_targets(TargetArguments(target="answer"), data_sets(args))
    by_set = {row.dataset: target(row).learned for row in train}
    assert by_set["avs"].endswith("[SEG].") and "Look" not in by_set["avs"]
    assert "Answer:" in by_set["qa"] and "[SEG]" not in by_set["qa"]
    with pytest.raises(ValueError, match="a teacher is asked one task in one way"):
        assemble_targets(TargetArguments(teacher="model"), data_sets(args))


def test_rewards_of_a_set_are_among_those_of_the_run(data_args: DataArguments) -> None:
    specs = ["reward_fns.format:format_reward", "mine.py:my_reward"]
    sets = data_sets(with_data(data_args, {"name": "a", "rewards": ["my_reward"]}, {"name": "b"}))
    assert reward_sets(sets, specs) == [{"a": False}, {"a": True}]
    sets = data_sets(with_data(data_args, {"name": "a", "rewards": ["my_rewrad"]}))
    with pytest.raises(ValueError, match="which reward_funcs does not: .*did you mean 'my_reward'"):
        reward_sets(sets, specs)


@pytest.mark.parametrize(
    ("recipe", "entry", "message"),
    [
        ("sft", {"data_root": "gone"}, r"data\[0\]: data_root gone does not exist"),
        ("sft", {"fps": "fast"}, r"data\[0\]: fps is 'fast': expected a number"),
        ("grpo", {"train_split": "trian"}, r"data\[0\]: train_split: .* has no split 'trian'.*did you mean 'train'"),
        ("evaluate", {"split": ["tst_s"]}, "has no split 'tst_s'"),
        ("grpo", {"task": "gone.py:Task"}, r"data\[0\]: task: the task file gone.py does not exist"),
        ("sft", {"num_frames": 0}, r"data\[0\]: num_frames is 0: it must be above 0"),
        ("init_tiny", {}, "recipes/init_tiny.py reads one data set"),
    ],
)
def test_entries_are_checked_before_torch_is_imported(
    tiny_benchmark: Path, tiny_checkpoint: str, tmp_path: Path, recipe: str, entry: dict, message: str
) -> None:
    config = {"data": [{"data_root": str(tiny_benchmark), **entry}], "output_dir": str(tmp_path / "out")}
    if recipe != "init_tiny":
        config["model"] = tiny_checkpoint
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        check_asked(read_asked(f"recipes/{recipe}.py", ["--config", str(tmp_path / "run.yaml")]))
