"""The contract with TRL: every private seam that the trainers are built on, so that an upgrade fails here by name."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import trl
from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints
from trl import GRPOTrainer, SFTTrainer
from trl.models import utils as model_utils
from trl.trainer import callbacks
from trl.trainer import utils as trainer_utils

from aurora_rl.models.loading import LoadedModel
from aurora_rl.trainers.dynamic_sampling import RefillingTrainer
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.off_policy import OffPolicyTrainer
from aurora_rl.trainers.prompt_sharing import WholeGroupsTrainer
from aurora_rl.trainers.reference_model import PolicyCheckpoints
from aurora_rl.trainers.resumable import ResumableTrainer
from aurora_rl.trainers.sft import AuroraSFTTrainer
from aurora_rl.trainers.shared_towers import CachedTowersTrainer
from aurora_rl.trainers.tool_calls import ToolsTrainer
from aurora_rl.trainers.upcoming import ReadAheadTrainer

#: What each overridden method must take, `self` left out.
GRPO_OVERRIDES = {
    "_generate_and_score_completions": ["inputs"],
    "_generate": ["prompts"],
    "_tokenize_prompts": ["prompts"],
    "_generate_single_turn": ["prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"],
    "_get_per_token_logps_and_entropies": [
        "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy", "compute_aux_loss",
        "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles",
        "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
    ],
    "_calculate_rewards": ["inputs", "prompts", "completions", "completion_ids_list"],
    "_compute_loss": ["model", "inputs"],
}  # fmt: skip
TOOL_CALLS_OVERRIDES = {
    "_generate_and_score_completions": ["inputs"],
    "_generate": ["prompts"],
    "_get_tool_suffix_ids": ["tool_messages"],
    "_calculate_rewards": ["inputs", "prompts", "completions", "completion_ids_list"],
}
WHOLE_GROUPS_OVERRIDES = {"_prepare_inputs": ["generation_batch"]}
POLICY_CHECKPOINT_OVERRIDES = {
    "_save": ["output_dir", "state_dict"],
    "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
}
READ_AHEAD_OVERRIDES = {
    "_get_train_sampler": ["dataset"],
    "train": ["resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
    "get_batch_samples": ["epoch_iterator", "num_batches", "device"],
}
OFF_POLICY_OVERRIDES = {
    "train": ["resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
    "_save_rng_state": ["output_dir"],
    "_load_rng_state": ["checkpoint"],
}
REFILLING_OVERRIDES = {
    "_calculate_rewards": ["inputs", "prompts", "completions", "completion_ids_list"],
}
RESUMABLE_OVERRIDES = {
    "train": ["resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
    "_get_output_dir": ["trial"],
    "_save_checkpoint": ["model", "trial"],
    "_push_from_checkpoint": ["checkpoint_folder"],
    "_determine_best_metric": ["metrics", "trial"],
    "_run_epoch": [
        "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial",
        "ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained",
        "steps_trained_in_current_epoch",
    ],
    "_finalize_training": ["trial", "num_train_samples", "start_time"],
    "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
    "_issue_warnings_after_load": ["load_result"],
}  # fmt: skip
SFT_OVERRIDES = {
    "_get_train_sampler": ["train_dataset"],
    "get_batch_samples": ["epoch_iterator", "num_batches", "device"],
    "compute_loss": ["model", "inputs", "return_outputs", "num_items_in_batch"],
}

CACHED_TOWERS_OVERRIDES = {
    "training_step": ["args", "kwargs"],
    "prediction_step": ["model", "inputs", "prediction_loss_only", "ignore_keys"],
}

#: Functions and constructors that are called, and the parameters that are given to them.
CALLED = {
    "trl.trainer.utils.add_fused_lm_head": (
        trainer_utils.add_fused_lm_head,
        ["model", "temperature", "cast_lm_head_to_fp32", "outputs"],
    ),
    "trl.trainer.utils.pad": (trainer_utils.pad, ["tensors", "padding_value", "padding_side"]),
    "trl.trainer.utils.split_tensor_dict": (trainer_utils.split_tensor_dict, ["tensor_dict", "num_chunks"]),
    "trl.trainer.utils.RepeatSampler": (
        trainer_utils.RepeatSampler,
        ["data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed"],
    ),
    "trl.models.utils.prepare_deepspeed": (model_utils.prepare_deepspeed, ["model", "accelerator"]),
    "trl.models.utils.prepare_fsdp": (model_utils.prepare_fsdp, ["model", "accelerator"]),
    "trl.trainer.callbacks.SyncRefModelCallback": (callbacks.SyncRefModelCallback, ["ref_model", "accelerator"]),
    "GRPOTrainer._log_completion_extra": (GRPOTrainer._log_completion_extra, ["self", "column", "values"]),
    "transformers.trainer_utils.rotate_checkpoints": (
        rotate_checkpoints,
        ["output_dir", "save_total_limit", "best_model_checkpoint", "use_mtime", "checkpoint_prefix"],
    ),
    "GRPOTrainer._log_metric": (GRPOTrainer._log_metric, ["self", "name", "value"]),
}


def parameters_of(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def overridden(ours: type, theirs: type) -> set[str]:
    own = {name for name, value in vars(ours).items() if inspect.isfunction(value)}
    return {name for name in own if hasattr(theirs, name)} - {"__init__"}


def test_the_seams_are_those_of_the_pinned_release() -> None:
    assert trl.__version__.startswith("1.16."), f"TRL is {trl.__version__}: read trl_seams anew, then change this line"


@pytest.mark.parametrize(
    "ours, theirs, table",
    [
        (AuroraGRPOTrainer, GRPOTrainer, GRPO_OVERRIDES),
        (ToolsTrainer, GRPOTrainer, TOOL_CALLS_OVERRIDES),
        (WholeGroupsTrainer, GRPOTrainer, WHOLE_GROUPS_OVERRIDES),
        (PolicyCheckpoints, Trainer, POLICY_CHECKPOINT_OVERRIDES),
        (ReadAheadTrainer, GRPOTrainer, READ_AHEAD_OVERRIDES),
        (OffPolicyTrainer, GRPOTrainer, OFF_POLICY_OVERRIDES),
        (RefillingTrainer, GRPOTrainer, REFILLING_OVERRIDES),
        (AuroraSFTTrainer, SFTTrainer, SFT_OVERRIDES),
        (CachedTowersTrainer, SFTTrainer, CACHED_TOWERS_OVERRIDES),
        (ResumableTrainer, Trainer, RESUMABLE_OVERRIDES),
    ],
    ids=[
        "grpo",
        "tool calls",
        "whole groups",
        "policy checkpoints",
        "read ahead",
        "off policy",
        "refilling",
        "sft",
        "cached towers",
        "resumable",
    ],
)
def test_every_override_is_listed_here_and_takes_what_trl_gives(ours: type, theirs: type, table: dict) -> None:
    assert overridden(ours, theirs) == set(table), f"{ours.__name__} overrides other methods than this file lists"
    for name, expected in table.items():
        found = parameters_of(getattr(theirs, name))[1:]
        assert found == expected, f"seam {theirs.__name__}.{name} takes {found}, it took {expected}"


@pytest.mark.parametrize("name", CALLED)
def test_what_is_called_takes_what_is_given(name: str) -> None:
    function, expected = CALLED[name]
    missing = set(expected) - set(parameters_of(function))
    assert not missing, f"seam {name} has lost the parameters {sorted(missing)}"


def test_the_fused_output_is_a_dataclass_with_the_fields_that_are_read() -> None:
    assert dataclasses.is_dataclass(trainer_utils.FusedCausalLMOutput), "seam FusedCausalLMOutput is no dataclass"
    found = {field.name for field in dataclasses.fields(trainer_utils.FusedCausalLMOutput)}
    missing = {"loss", "log_probs", "entropy", "aux_loss", "label_mask", "is_top1"} - found
    assert not missing, f"seam FusedCausalLMOutput has lost the fields {sorted(missing)}"


def test_lists_survive_shuffling_and_splitting() -> None:
    batch = {"completion_ids": torch.arange(4)[:, None], "encoded_rows": ["a", "b", "c", "d"]}
    shuffled = trainer_utils.shuffle_sequence_dict(batch)
    order = shuffled["completion_ids"][:, 0].tolist()
    assert shuffled["encoded_rows"] == ["abcd"[i] for i in order], "seam shuffle_sequence_dict leaves lists behind"
    halves = trainer_utils.split_tensor_dict(shuffled, 2)
    assert [len(half["encoded_rows"]) for half in halves] == [2, 2], "seam split_tensor_dict leaves lists behind"


def test_a_fused_head_scores_labels_that_are_shifted_already(loaded: LoadedModel) -> None:
    model = loaded.model
    trainer_utils.add_fused_lm_head(model)
    ids = torch.randint(0, 100, (1, 6))
    plain = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs  # (1, 5)
    labels = torch.cat([ids[:, 1:], torch.tensor([[-100]])], dim=1)
    shifted = model(input_ids=ids, shift_labels=labels, fused_lm_head=True).log_probs  # (1, 6)
    torch.testing.assert_close(shifted[:, :-1], plain, msg="seam FusedCausalLMOutput: shift_labels score others")


def test_a_grpo_trainer_has_the_attributes_that_are_read(make_grpo: Callable[..., AuroraGRPOTrainer]) -> None:
    trainer = make_grpo()
    names = [
        "_metrics", "_logs", "_tokenizer", "_step", "beta", "ref_model", "temperature", "num_iterations",
        "num_generations", "_buffered_inputs", "shuffle_dataset", "reward_weights", "mask_truncated_completions",
        "is_deepspeed_enabled", "is_fsdp_enabled", "accelerator", "environments", "environment_factories",
        "max_tool_calling_iterations",
        "is_deepspeed_enabled", "is_fsdp_enabled", "accelerator", "aux_loss_enabled", "_entropy_bonus_enabled",
        "top_entropy_quantile",
    ]  # fmt: skip
    missing = [name for name in names if not hasattr(trainer, name)]
    assert not missing, f"seam GRPOTrainer has lost the attributes {missing}"
    assert set(trainer._metrics) == {"train", "eval"}, "seam GRPOTrainer._metrics is no longer keyed by train and eval"


def test_an_sft_trainer_has_the_attributes_that_are_read(make_sft: Callable[..., AuroraSFTTrainer]) -> None:
    trainer = make_sft(max_steps=1)
    assert set(trainer._metrics) == {"train", "eval"}, "seam SFTTrainer._metrics is no longer keyed by train and eval"
    trainer.train()
    steps = getattr(trainer, "current_gradient_accumulation_steps", None)
    assert steps == 1, "seam Trainer.current_gradient_accumulation_steps is no longer set by train()"


@pytest.mark.parametrize(
    "accumulation, steps_per_generation, num_iterations, expected",
    [(1, 1, 1, False), (1, 2, 1, True), (1, 1, 2, True), (2, 2, 1, False), (4, 2, 2, False), (2, 4, 1, True)],
)
def test_old_log_probabilities_are_computed_where_the_trainer_expects_them(
    make_grpo: Callable[..., AuroraGRPOTrainer],
    rollout: Callable[..., dict[str, Any]],
    accumulation: int,
    steps_per_generation: int,
    num_iterations: int,
    expected: bool,
) -> None:
    trainer = make_grpo(
        gradient_accumulation_steps=accumulation,
        steps_per_generation=steps_per_generation,
        num_iterations=num_iterations,
    )
    assert trainer.args.old_logps_are_computed is expected
    found = "old_per_token_logps" in rollout(trainer)
    assert found is expected, "seam GRPOTrainer._generate_and_score_completions: other condition for old log-probs"


def test_a_generation_batch_has_the_keys_that_the_loss_reads(
    make_grpo: Callable[..., AuroraGRPOTrainer], rollout: Callable[..., dict[str, Any]]
) -> None:
    expected = {
        "prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch",
        "ref_per_token_logps", "encoded_rows", "mask_weights", "masks_per_forward",
    }  # fmt: skip
    assert set(rollout(make_grpo())) == expected, "seam GRPOTrainer._generate_and_score_completions gives other keys"
