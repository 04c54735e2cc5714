"""A task of one's own trains without any change of the package: the file of docs/new_task.md, and one with masks."""

import dataclasses
import json
from pathlib import Path

import pytest

from aurora_rl.assembly.arguments import ModelArguments, RewardArguments, TargetArguments
from aurora_rl.assembly.early import check_command_line
from aurora_rl.assembly.teacher import assemble_target
from aurora_rl.models.loading import saved_clip_options
from aurora_rl.models.teacher import teacher_target
from aurora_rl.named.objects import NamedObjectError
from aurora_rl.scripts import grpo, sft
from aurora_rl.tasks.base import load_task
from aurora_rl.tasks.reference_segmentation import ReferenceSegmentation
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from aurora_rl.trainers.sft_config import AuroraSFTConfig
from tests.documented_blocks import blocks_of

#: Masks as in reference segmentation, after one word.
SHORT = """
from aurora_rl.tasks.base import Answer, Target, Task

class Word(Answer):
    @property
    def value(self):
        return self.text.partition(" [SEG]")[0] or None

class Short(Task):
    head, answer_token = "masks", "[SEG]"
    instruction = "What is it? {reference}"

    def target(self, sample):
        return Target(f"{sample.category} [SEG]")

    def parse(self, text):
        return Word(text)

    def is_right(self, answer, sample):
        return answer.value == sample.category

def right_reward(prompts, completions, *, answers, category, **columns):
    return [float(answer.value == truth) for answer, truth in zip(answers, category)]
"""
TRAINING = {
    "max_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
}


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    """Folder with the documented task in mine.py, and another one in short.py; it is where commands run."""
    [block] = [block for block in blocks_of("docs/new_task.md") if block.mark == "run by"]
    (tmp_path / "mine.py").write_text(block.code)
    (tmp_path / "short.py").write_text(SHORT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def logged(output_dir: Path) -> dict:
    state = json.loads((output_dir / "trainer_state.json").read_text())
    return {name: value for entry in state["log_history"] for name, value in entry.items()}


@pytest.mark.parametrize(("task", "benchmark"), [("mine.py:OneWord", "questions"), ("short.py:Short", "ref_avs")])
def test_a_task_in_a_file_is_trained_by_the_recipes(task, benchmark, mine, tiny_checkpoint, data_args):
    data_args.task, data_args.benchmark, data_args.chains, data_args.instruction = task, benchmark, None, None
    model = ModelArguments(model=tiny_checkpoint, ignore_memory_estimate=True)
    sft.train(model, data_args, TargetArguments(), AuroraSFTConfig(output_dir="sft", **TRAINING))
    remembered = saved_clip_options("sft")
    assert (remembered.task, remembered.prompt.instruction) == (task.partition(":")[2], load_task(task).instruction)
    rewards = RewardArguments([f"{task.partition(':')[0]}:right_reward"])
    options = {"num_generations": 2, "max_completion_length": 4, **TRAINING}
    grpo.train(dataclasses.replace(model, model="sft"), data_args, rewards, AuroraGRPOConfig("grpo", **options))
    curves = logged(mine / "grpo")
    assert "rewards/right_reward/mean" in curves
    assert any(name.startswith("accuracy/") for name in curves)


# What is told before torch is imported


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--task", "mien.py:OneWord"], "--task: the task file mien.py does not exist: this folder holds mine.py"),
        (["--task", "mine.py:OneWrod"], "--task has 'mine.py:OneWrod': mine.py defines no 'OneWrod', did you mean"),
        (["--task", "no_such_package:Task"], "--task: there is no module 'no_such_package'"),
        (["--task", "mine"], "--task has 'mine': write 'package.module:Name' or 'path/to/file.py:Name'"),
        (["--target", "chians"], "--target is 'chians': choose from teacher, chain, answer"),
    ],
)
def test_wrong_names_are_told_early(mine, tiny_benchmark, tiny_checkpoint, capsys, options, told):
    command = ["--model", tiny_checkpoint, "--data_root", str(tiny_benchmark), "--output_dir", "out", *options]
    with pytest.raises(SystemExit):
        check_command_line("recipes/sft.py", command)
    assert told in capsys.readouterr().err


def test_right_names_pass_and_no_code_of_the_file_runs(mine, tiny_benchmark, tiny_checkpoint):
    (mine / "mine.py").write_text("raise RuntimeError('it runs')\n" + (mine / "mine.py").read_text())
    common = ["--model", tiny_checkpoint, "--data_root", str(tiny_benchmark), "--output_dir", "out"]
    check_command_line("recipes/sft.py", [*common, "--task", "mine.py:OneWord", "--target", "its_own"])


def test_no_task_is_refused_where_it_is_loaded(mine):
    with pytest.raises(NamedObjectError, match="'mine.py:Word' is a type, expected a class derived from"):
        load_task("mine.py:Word")
    assert load_task(ReferenceSegmentation).name == "ReferenceSegmentation"


def test_what_only_a_task_knows_is_told_by_it(mine, train_samples):
    task = load_task("mine.py:OneWord")
    with pytest.raises(ValueError, match="unknown target 'chain' of the task OneWord: leave `target` out"):
        assemble_target(TargetArguments(target="chain"), task)
    with pytest.raises(ValueError, match="the task OneWord has no chains of thought: leave out"):
        task.chain_file("chains.jsonl")
    with pytest.raises(ValueError, match="the task OneWord has no masks"):
        teacher_target(task)
    with pytest.raises(ValueError, match=r"the instruction has no '\{reference\}' field"):
        task.messages(train_samples[0], instruction="Say something.")
