"""TRL's options, each trained for two steps: the loss stays finite and what should learn moves."""

import copy
import math
from collections.abc import Callable

import pytest
import torch

from aurora_rl.models.grounding import segmentation_model
from aurora_rl.models.loading import LoadedModel
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig

OPTIONS = {
    "grpo": {"loss_type": "grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo"},
    "cispo": {"loss_type": "cispo"},
    "sapo": {"loss_type": "sapo"},
    "vespo": {"loss_type": "vespo"},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "gspo": {"importance_sampling_level": "sequence"},
    "no KL": {"beta": 0.0},
    "KL with bias correction": {"use_bias_correction_kl": True},
    "reference synced": {"sync_ref_model": True, "ref_model_sync_steps": 1},
    "LoRA and KL": {"peft": True},
    "LoRA without KL": {"peft": True, "beta": 0.0},
    "LoRA, gradient checkpointing": {"peft": True, "gradient_checkpointing": True},
    "two iterations": {"num_iterations": 2},
    "gradient accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    "several steps a generation": {"steps_per_generation": 2},
    "iterations over an accumulated batch": {
        "num_iterations": 2,
        "steps_per_generation": 2,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
    },
    "truncated completions masked": {"mask_truncated_completions": True, "per_device_train_batch_size": 6},
    "mask loss on all": {"mask_loss_on": "all"},
    "mask loss off": {"mask_loss_on": "off"},
    "LISA's Dice": {"dice_variant": "lisa"},
    "rewards scaled by batch": {"scale_rewards": "batch", "multi_objective_aggregation": "normalize_then_sum"},
    "high-entropy tokens": {"top_entropy_quantile": 0.2},
    "off-policy mask": {"off_policy_mask_threshold": 0.5, "num_iterations": 2},
    "two-sided clipping": {"delta": 2.0, "epsilon_high": 0.3},
    "entropy bonus": {"entropy_coef": 0.01},
    "bf16 autocast": {"bf16": True},
}
PARTS = ("projector", "mask_decoder", "self_attn", "lm_head", "embed_tokens")


def weights(trainer: AuroraGRPOTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def moved_parts(trainer: AuroraGRPOTrainer, before: dict[str, torch.Tensor]) -> set[str]:
    moved = [name for name, weight in weights(trainer).items() if not torch.equal(weight, before[name])]
    return {part for part in PARTS if any(part in name for name in moved)}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_two_steps_keep_the_loss_finite_and_move_the_weights(
    make_grpo: Callable[..., AuroraGRPOTrainer], options: dict
) -> None:
    trainer = make_grpo(**options)
    before = weights(trainer)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 2
    assert all(math.isfinite(log["loss"]) and 0 < log["grad_norm"] < math.inf for log in logs)
    untrained = {"projector", "mask_decoder"} if options.get("mask_loss_on") == "off" else set()
    assert moved_parts(trainer, before) == set(PARTS) - untrained


def test_a_bf16_model_trains_with_a_float32_head(
    make_grpo: Callable[..., AuroraGRPOTrainer], loaded: LoadedModel
) -> None:
    trainer = make_grpo(model=copy.deepcopy(loaded.model).to(torch.bfloat16), cast_lm_head_to_fp32=True)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert logs[0]["kl"] == 0.0 and math.isfinite(logs[1]["loss"])


@pytest.mark.parametrize("peft", [False, True], ids=["full", "LoRA"])
@pytest.mark.parametrize("cast", [False, True], ids=["", "head in float32"])
def test_a_rollout_projects_only_the_last_position_of_a_prompt(
    make_grpo: Callable[..., AuroraGRPOTrainer], peft: bool, cast: bool
) -> None:
    trainer = make_grpo(script=None, peft=peft, cast_lm_head_to_fp32=cast, max_steps=1)
    positions: list[int] = []
    lm_head = segmentation_model(trainer.model).lm_head
    lm_head.register_forward_hook(lambda _module, _args, logits: positions.append(logits[..., :1].numel()))
    trainer.train()
    rows = trainer._batch.rows
    # Prompts are read once for all of their rows. Scoring passes project nothing: TRL's fused head reads the weight.
    assert set(positions) == {0, len({id(row.prompt) for row in rows}), len(rows)}


@pytest.mark.parametrize("peft", [False, True], ids=["full", "LoRA"])
def test_gradient_checkpointing_changes_no_number(make_grpo: Callable[..., AuroraGRPOTrainer], peft: bool) -> None:
    histories = []
    for flag in (False, True):
        trainer = make_grpo(peft=peft, gradient_checkpointing=flag)  # its constructor sets the seed
        trainer.train()
        histories.append(trainer.state.log_history[:2])
    for plain, checkpointed in zip(*histories, strict=True):
        assert checkpointed["loss"] == pytest.approx(plain["loss"], rel=1e-5)
        assert checkpointed["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)


def test_weights_in_the_first_process_alone_are_refused_where_the_reference_is_copied_from_them(
    make_grpo: Callable[..., AuroraGRPOTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aurora_rl.trainers.reference_model.is_fsdp_enabled", lambda: True)
    with pytest.raises(ValueError, match="fsdp_cpu_ram_efficient_loading is true"):
        make_grpo()
    make_grpo(peft=True)  # the reference is the policy without its adapters


def test_an_unknown_mask_loss_is_refused(make_grpo: Callable[..., AuroraGRPOTrainer]) -> None:
    with pytest.raises(ValueError, match="mask_loss_on='some'"):
        make_grpo(mask_loss_on="some")


@pytest.mark.parametrize(
    "options",
    [
        {"save_strategy": "steps", "save_steps": 3, "steps_per_generation": 2},
        {"save_strategy": "steps", "save_steps": 2, "steps_per_generation": 2, "num_iterations": 2},
        {"save_strategy": "steps", "save_steps": 0.5, "steps_per_generation": 2},
        {
            "save_strategy": "best",
            "metric_for_best_model": "reward",
            "eval_strategy": "steps",
            "eval_steps": 3,
            "steps_per_generation": 2,
        },
    ],
)
def test_checkpoints_inside_a_generation_batch_are_refused(
    make_grpo: Callable[..., AuroraGRPOTrainer], options: dict
) -> None:
    with pytest.raises(ValueError, match="falls inside a generation batch, which lasts [24] optimiser steps"):
        make_grpo(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"save_steps": 1},
        {"save_steps": 4, "steps_per_generation": 2, "num_iterations": 2},
        {"save_steps": 3, "steps_per_generation": 2, "gradient_accumulation_steps": 4},
        {"save_steps": 0.5},
    ],
)
def test_checkpoints_between_generation_batches_are_accepted(
    make_grpo: Callable[..., AuroraGRPOTrainer], options: dict
) -> None:
    assert make_grpo(save_strategy="steps", **options).args.save_steps == options["save_steps"]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_rollouts_need_a_temperature(temperature: float) -> None:
    with pytest.raises(ValueError, match="must be a number above 0"):
        AuroraGRPOConfig("out", use_cpu=True, temperature=temperature)
