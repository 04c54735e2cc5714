"""Several data sets in one run: shares in every batch, a task a row, metrics by the set's name, exact resuming."""

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aurora_rl.assembly.arguments import DataArguments, TargetArguments
from aurora_rl.assembly.benchmarks import load_training_splits
from aurora_rl.assembly.data_sets import data_sets, mixed_sets
from aurora_rl.assembly.encoder import assemble_encoder
from aurora_rl.assembly.teacher import assemble_targets
from aurora_rl.data.dataset import to_dataset
from aurora_rl.data.mixing import MixedSet
from aurora_rl.data.sample import AVSample
from aurora_rl.models.collate import SFTCollator
from aurora_rl.models.heads.segmenters.sam import SamSegmenter
from aurora_rl.models.loading import LoadedModel, load_model
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from aurora_rl.trainers.sft import AuroraSFTTrainer
from aurora_rl.trainers.sft_config import AuroraSFTConfig
from tests.trainers.conftest import COMMON, GRPO, ScriptedTrainer
from tests.trainers.test_resume import Kill, assert_same

QUESTIONS = {
    "name": "qa",
    "benchmark": "questions",
    "task": "aurora_rl.tasks.multiple_choice:ChoiceInWords",
    "instruction": "{reference}",
    "num_frames": 4,
    "share": 0.25,
}


@pytest.fixture
def two(data_args: DataArguments) -> DataArguments:
    """References with three quarters of the rows, questions with a quarter."""
    return dataclasses.replace(data_args, data=[{"name": "avs", "share": 0.75}, QUESTIONS])


@pytest.fixture
def make(two: DataArguments, loaded: LoadedModel, tmp_path: Path) -> Callable[..., Any]:
    """An SFT or GRPO trainer on both sets."""
    rows, _ = load_training_splits(two)
    train = [row for name in ("avs", "qa") for row in [row for row in rows if row.dataset == name][:6]]
    encode, sets = assemble_encoder(two, loaded, train), data_sets(two)
    common = {
        "train_dataset": to_dataset(train, encode.text_prompt),
        "eval_dataset": to_dataset([train[0], train[-1]], encode.text_prompt),
        "processing_class": loaded.processor,
        "sets": mixed_sets(sets, train),
    }
    collate = SFTCollator(encode, encode.answer_token_id, assemble_targets(TargetArguments(), sets))
    collate.check(train)

    def sft(**options: Any) -> AuroraSFTTrainer:
        callbacks = options.pop("callbacks", None)
        batches = {"output_dir": str(tmp_path / "sft"), "per_device_train_batch_size": 4}
        args = AuroraSFTConfig(**{**batches, **COMMON, **options})
        model = copy.deepcopy(loaded.model)
        return AuroraSFTTrainer(model=model, args=args, data_collator=collate, callbacks=callbacks, **common)

    def grpo(rewards: list, reward_sets: Any = None, **options: Any) -> ScriptedTrainer:
        args = AuroraGRPOConfig(**{"output_dir": str(tmp_path / "grpo"), **COMMON, **GRPO, **options})
        model = copy.deepcopy(loaded.model)
        trainer = ScriptedTrainer(
            model=model, reward_funcs=rewards, args=args, encode=encode, reward_sets=reward_sets, **common
        )
        trainer.script = answer
        return trainer

    return lambda kind, *args, **options: {"sft": sft, "grpo": grpo}[kind](*args, **options)


def answer(sample: AVSample, index: int) -> str:
    """The truth, and for every other completion something else."""
    if sample.answer is not None:
        return f"Answer: {sample.answer if index % 2 else 'nothing'}."
    return sample.chain if index % 2 else sample.chain.replace("Look", "Look up")


def test_sft_batches_hold_the_shares_and_mask_what_has_masks(make: Callable[..., Any]) -> None:
    trainer = make("sft", max_steps=2)
    batches = list(trainer.get_train_dataloader())
    assert all(Counter(batch["datasets"]) == {"avs": 3, "qa": 1} for batch in batches)
    for batch in batches:
        is_avs = [name == "avs" for name in batch["datasets"]]
        assert [truth is not None for truth in batch["gt_masks"]] == is_avs
        assert batch["seg_weights"].tolist() == [float(value) for value in is_avs]
    trainer.train()
    trainer.evaluate()
    logged = [log for log in trainer.state.log_history if "loss" in log]
    assert all(log["dataset/avs/teacher_forced_iou"] == log["teacher_forced_iou"] for log in logged)
    assert not any("dataset/qa" in name for log in logged for name in log)
    assert "eval_dataset/avs/teacher_forced_iou" in trainer.state.log_history[-1]


def test_a_row_without_the_head_changes_no_mask_loss(make: Callable[..., Any]) -> None:
    trainer = make("sft", ce_weight=0.0)
    rows = [trainer.train_dataset[0], trainer.train_dataset[len(trainer.train_dataset) - 1]]
    trainer.model.eval()
    batches = [trainer.data_collator(of) for of in (rows[:1], rows, rows[1:])]
    losses = [trainer.compute_loss(trainer.model, batch).item() for batch in batches]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6) and losses[2] == 0.0


def test_sft_resumes_with_the_order_of_an_unbroken_run(make: Callable[..., Any], tmp_path: Path) -> None:
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4}
    unbroken = make("sft", **options, output_dir=str(tmp_path / "unbroken"))
    assert len(unbroken.get_train_dataloader()) == 3  # the checkpoint is of the second epoch
    unbroken.train()
    with pytest.raises(KeyboardInterrupt):
        make("sft", **options, callbacks=[Kill(5)]).train()
    resumed = make("sft", **options)
    resumed.train(resume_from_checkpoint=True)
    assert_same(unbroken, resumed)


def test_grpo_reads_and_rewards_each_row_by_its_own_task(make: Callable[..., Any]) -> None:
    asked: list[set[str]] = []

    def mine(completions: list, dataset: list[str], log_extra: Any, **columns: Any) -> list[float]:
        asked.append(set(dataset))
        log_extra("mine", [1] * len(dataset))
        return [1.0] * len(completions)

    rewards = [
        *("reward_fns.format:format_reward", "reward_fns.mask_iou:mask_iou_reward"),
        *("reward_fns.choice:choice_accuracy_reward", mine),
    ]
    of_sets = [{}, {}, {}, {"avs": False, "qa": True}]
    trainer = make("grpo", rewards, of_sets, per_device_train_batch_size=8, max_steps=2, num_generations=2)
    trainer.train()
    logs = trainer._logs
    is_avs = torch.tensor([value is not None for value in logs["extra"]["mask_iou"]])
    assert is_avs.sum() == 6 and len(is_avs) == 8  # of the last step
    found = {name: ~torch.tensor(list(values)).isnan() for name, values in logs["rewards"].items()}
    assert (found["format_reward"] == is_avs).all() and (found["mask_iou_reward"] == is_avs).all()
    assert (found["choice_accuracy_reward"] == ~is_avs).all() and (found["mine"] == ~is_avs).all()
    assert asked == [{"qa"}] * 2
    assert [value is not None for value in logs["extra"]["mine"]] == (~is_avs).tolist()
    log = next(log for log in trainer.state.log_history if "loss" in log)
    assert log["dataset/qa/accuracy"] == 0.5 and log["dataset/qa/reward"] == pytest.approx(1.5)
    assert {"dataset/avs/iou", "dataset/avs/category", "dataset/avs/reward"} <= log.keys()
    assert "dataset/qa/iou" not in log


def test_groups_stay_together_and_the_next_epochs_rows_are_known(make: Callable[..., Any]) -> None:
    trainer = make("grpo", ["reward_fns.format:format_reward"], per_device_train_batch_size=8, num_generations=2)
    order = list(trainer._get_train_sampler())
    assert order[0::2] == order[1::2] and len(order) == len(trainer._get_train_sampler())
    assert list(trainer._order.of(0)) == order != list(trainer._order.of(1))
    assert trainer._order.rows(0) == order[::2] != trainer._order.rows(-1)
    sets = [trainer.train_dataset[index]["dataset"] for index in order[::2]]
    assert all(Counter(sets[start : start + 4]) == {"avs": 3, "qa": 1} for start in range(0, len(sets), 4))


def test_an_order_of_its_own_and_shares_do_not_go_together(make: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="train_sampling_strategy is 'group_by_length', but the shares"):
        make("sft", train_sampling_strategy="group_by_length")


def test_sets_by_kind_of_media_are_told(two: DataArguments, train_samples: list[AVSample]) -> None:
    heard = [dataclasses.replace(row, frame_paths=(), mask_paths=(), dataset="qa") for row in train_samples[:3]]
    seen = [dataclasses.replace(row, dataset="avs") for row in train_samples[:2]]
    assert mixed_sets(data_sets(two), [*seen, *heard]) == [
        MixedSet("avs", 2, 0.75),
        MixedSet("qa", 3, 0.25, has_frames=False),
    ]


def test_a_sam_decoder_reads_cached_frames_beside_rows_without_masks(
    two: DataArguments, omni_checkpoint: str, sam_checkpoint: str, tmp_path: Path
) -> None:
    loaded = load_model(omni_checkpoint, segmenter=SamSegmenter.from_checkpoint(sam_checkpoint).config)
    two.embedding_cache = str(tmp_path / "cache")
    rows, _ = load_training_splits(two)
    chosen = [next(row for row in rows if row.dataset == "avs" and row.chain), rows[-1]]
    encode = assemble_encoder(two, loaded, chosen)
    collate = SFTCollator(encode, encode.answer_token_id, assemble_targets(TargetArguments(), data_sets(two)))
    trainer = AuroraSFTTrainer(
        model=loaded.model,
        args=AuroraSFTConfig(output_dir=str(tmp_path), ce_weight=0.0, **COMMON),
        data_collator=collate,
        train_dataset=to_dataset(chosen, encode.text_prompt),
        processing_class=loaded.processor,
        sets=mixed_sets(data_sets(two), chosen),
    )
    trainer.model.eval()
    row = list(trainer.train_dataset)
    losses = [trainer.compute_loss(trainer.model, collate(of)).item() for of in (row[:1], row, row[1:])]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5) and losses[0] > 0 == losses[2]
