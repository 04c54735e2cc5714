"""Runs of the GRPO trainer: which weights move, what the reference is, what is logged, and how rewards end a run."""

import asyncio
import copy
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

from aurora_rl.data.sample import AVSample
from aurora_rl.inference.predictor import Predictor
from aurora_rl.models.encoding import SampleEncoder
from aurora_rl.models.loading import LoadedModel, freeze, load_model
from aurora_rl.rewards import RewardError
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.sft import AuroraSFTTrainer
from tests.trainers.conftest import bright_masks

MakeGRPO = Callable[..., AuroraGRPOTrainer]
MakeSFT = Callable[..., AuroraSFTTrainer]
Rollout = Callable[..., dict[str, Any]]


# ---- what moves -----------------------------------------------------------------------------------------------------


def test_lora_training_moves_adapters_and_saved_modules_and_nothing_frozen(make_grpo: MakeGRPO) -> None:
    trainer = make_grpo(peft=True)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    trainable = {name for name in before if "lora_" in name or "modules_to_save" in name}
    assert moved == trainable
    for part in ("lora_A", "lora_B", "projector", "mask_decoder", "lm_head", "embed_tokens"):
        assert any(part in name for name in moved), part
    assert not any("visual" in name or "audio_tower" in name for name in moved)


def test_frozen_towers_do_not_move_in_full_fine_tuning(make_grpo: MakeGRPO, loaded: LoadedModel) -> None:
    freeze(loaded.model, ["visual", "audio_tower"])
    trainer = make_grpo(max_steps=1)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    in_towers = {name for name in before if name.startswith(("visual.", "audio_tower."))}
    assert in_towers and not moved & in_towers
    assert {"seg_head.projector.0.weight", "seg_head.mask_decoder.down1.0.weight"} <= moved


# ---- reference model ------------------------------------------------------------------------------------------------


def test_the_reference_is_the_policy_at_first_and_stays_what_it_was(make_grpo: MakeGRPO, loaded: LoadedModel) -> None:
    trainer = make_grpo()
    trainer.train()
    first, second = trainer.state.log_history[:2]
    assert first["kl"] == 0.0 and second["kl"] > 1e-3
    initial = dict(loaded.model.named_parameters())
    for name, parameter in trainer.ref_model.named_parameters():
        assert torch.equal(parameter, initial[name]) and not parameter.requires_grad


def test_a_synced_reference_follows_the_policy(make_grpo: MakeGRPO) -> None:
    trainer = make_grpo(sync_ref_model=True, ref_model_sync_steps=1, ref_model_mixup_alpha=1.0)
    trainer.train()
    policy = dict(trainer.model.named_parameters())
    assert all(torch.equal(weight, policy[name]) for name, weight in trainer.ref_model.named_parameters())


def test_lora_is_compared_with_the_model_beneath_it_saved_modules_included(
    make_grpo: MakeGRPO, rollout: Rollout
) -> None:
    trainer = make_grpo(peft=True)
    before = rollout(trainer)["ref_per_token_logps"]
    trainer.train()
    assert trainer.state.log_history[0]["kl"] == 0.0 and trainer.state.log_history[1]["kl"] > 1e-5
    torch.testing.assert_close(rollout(trainer)["ref_per_token_logps"], before, atol=0, rtol=0)


def test_a_loaded_adapter_is_compared_with_itself_at_the_start(
    make_sft: MakeSFT, make_grpo: MakeGRPO, rollout: Rollout, tmp_path: Path
) -> None:
    sft = make_sft(peft=True, dropout=0.0)
    sft.train()
    sft.save_model(str(tmp_path / "adapter"))
    trainer = make_grpo(model=load_model(str(tmp_path / "adapter")).model)
    before = rollout(trainer)["ref_per_token_logps"]
    trainer.train()
    assert trainer.state.log_history[0]["kl"] == 0.0 and trainer.state.log_history[1]["kl"] > 1e-5
    torch.testing.assert_close(rollout(trainer)["ref_per_token_logps"], before, atol=0, rtol=0)


# ---- logs and rewards -----------------------------------------------------------------------------------------------


def test_rewards_are_logged_by_function_and_by_kind_of_reference(
    make_grpo: MakeGRPO, train_samples: list[AVSample]
) -> None:
    trainer = make_grpo(samples=train_samples[1:3], reward_weights=[1.0, 0.5], max_steps=1)
    kinds = {sample.reference_type for sample in train_samples[1:3]}
    assert len(kinds) == 2
    trainer.train()
    log = trainer.state.log_history[0]
    # In each group of two: gold and a wrong category, or no [SEG] and gold.
    assert log["rewards/format_reward/mean"] == 0.75 and log["rewards/category_reward/mean"] == 0.75
    assert log["reward"] == pytest.approx(1.125)
    assert sorted(log[f"reward/{kind}"] for kind in kinds) == pytest.approx([1.0, 1.25])
    assert sorted(log[f"category/{kind}"] for kind in kinds) == [0.5, 1.0]
    assert {f"iou/{kind}" for kind in kinds} <= set(log)
    assert log["chain/see"] == log["chain/hear"] == 1.0


def test_a_completion_that_no_reward_applies_to_is_left_out_of_the_curves(
    make_grpo: MakeGRPO, train_samples: list[AVSample]
) -> None:
    def applies_to_every_second(completions: list, **columns: Any) -> list[float | None]:
        return [None if i % 2 else 1.0 for i in range(len(completions))]

    trainer = make_grpo(samples=train_samples[1:3], rewards=[applies_to_every_second], max_steps=1)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["reward"] == 1.0
    assert [value for name, value in log.items() if name.startswith("reward/")] == [1.0, 1.0]


def test_the_completions_table_has_the_iou_that_the_reward_saw(
    make_grpo: MakeGRPO, loaded: LoadedModel, tmp_path: Path
) -> None:
    bright_masks(loaded.model)
    trainer = make_grpo(rewards=["reward_fns.mask_iou:mask_iou_reward"], log_completions=True, max_steps=1)
    trainer.train()
    table = pandas.read_parquet(tmp_path / "grpo" / "completions" / "completions_00001.parquet")
    assert {"uid", "reference", "category", "mask_iou", "mask_iou_reward", "prompt", "completion"} <= set(table.columns)
    assert table["mask_iou"].tolist() == pytest.approx(table["mask_iou_reward"].tolist())
    no_seg = [completion[0]["content"].count("[SEG]") == 0 for completion in table["completion"]]
    assert table["mask_iou"][no_seg].tolist() == [0.0]
    assert (table["mask_iou"][~pandas.Series(no_seg)] > 0.0).all()


def test_evaluation_scores_rollouts_as_training_does(make_grpo: MakeGRPO) -> None:
    trainer = make_grpo(peft=True, dropout=0.5, per_device_eval_batch_size=4, eval_strategy="steps", eval_steps=1)
    trainer.train()
    evaluations = [log for log in trainer.state.log_history if "eval_loss" in log]
    assert len(evaluations) == 2
    assert all(math.isfinite(log["eval_loss"]) for log in evaluations)
    assert evaluations[0]["eval_rewards/format_reward/mean"] == 0.75
    assert any(name.startswith("eval_iou/") for name in evaluations[0])


def test_a_reward_that_raises_stops_training_and_names_itself_and_the_sample(
    make_grpo: MakeGRPO, train_samples: list[AVSample]
) -> None:
    def broken_reward(completions: list, **columns: Any) -> list[float]:
        raise KeyError("colour")

    trainer = make_grpo(rewards=[broken_reward], samples=train_samples[:2])
    with pytest.raises(RewardError, match=r"'broken_reward' raised KeyError: 'colour'") as error:
        trainer.train()
    assert f"sample '{train_samples[0].key}'" in str(error.value)


def test_an_async_reward_is_awaited(make_grpo: MakeGRPO) -> None:
    async def patient_reward(completions: list, **columns: Any) -> list[float]:
        await asyncio.sleep(0.01)
        return [0.5] * len(completions)

    trainer = make_grpo(rewards=[patient_reward], max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["rewards/patient_reward/mean"] == 0.5


def test_rewards_are_computed_while_an_async_one_waits_in_their_order(make_grpo: MakeGRPO) -> None:
    """In TRL's order the service would be asked after the last of the others, which wait for it here."""
    asked, calls = threading.Event(), []

    async def service_reward(completions: list, **columns: Any) -> list[float]:
        asked.set()
        while calls != ["first", "second"]:
            await asyncio.sleep(0.001)
        return [0.25] * len(completions)

    def first_reward(completions: list, **columns: Any) -> list[float]:
        calls.append("first")
        return [float(asked.wait(20))] * len(completions)

    def second_reward(completions: list, **columns: Any) -> list[float]:
        calls.append("second")
        return [0.5] * len(completions)

    trainer = make_grpo(rewards=[first_reward, service_reward, second_reward], max_steps=1)
    trainer.train()
    log = trainer.state.log_history[0]
    names = ("first", "service", "second")
    assert [log[f"rewards/{name}_reward/mean"] for name in names] == [1.0, 0.25, 0.5]


def test_a_reward_that_raises_beside_an_async_one_is_named(make_grpo: MakeGRPO) -> None:
    async def service_reward(completions: list, **columns: Any) -> list[float]:
        return [0.25] * len(completions)

    def broken_reward(completions: list, **columns: Any) -> list[float]:
        raise KeyError("colour")

    with pytest.raises(RewardError, match=r"'broken_reward' raised KeyError: 'colour' \(for sample "):
        make_grpo(rewards=[service_reward, broken_reward]).train()


def test_an_async_reward_that_takes_too_long_stops_training(make_grpo: MakeGRPO) -> None:
    async def stuck_reward(completions: list, **columns: Any) -> list[float]:
        await asyncio.sleep(60)
        return [0.5] * len(completions)

    trainer = make_grpo(rewards=[stuck_reward], reward_timeout_s=0.1)
    with pytest.raises(RewardError, match=r"'stuck_reward' raised TimeoutError: no answer within 0.1 s"):
        trainer.train()


def test_a_model_that_was_used_for_inference_trains_the_same(
    make_grpo: MakeGRPO, loaded: LoadedModel, encode: SampleEncoder
) -> None:
    losses = []
    for is_used in (False, True):
        model = copy.deepcopy(loaded.model)
        if is_used:
            Predictor(model, encode, loaded.seg_token_id)
        trainer = make_grpo(model=model)
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history[:2]])
    assert losses[0] == losses[1]
