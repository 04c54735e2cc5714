"""GRPO whose rollouts a real vLLM engine writes: importance sampling, seeds, masks, and an exact resume."""

import copy
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import set_seed
from trl.generation.vllm_generation import VLLMGeneration

from aurora_rl.data.dataset import to_dataset
from aurora_rl.models.loading import LoadedModel, load_model
from aurora_rl.rollout.base import Rollouts, Turn, continued_prompt
from aurora_rl.rollout.vllm_source import VLLMSource
from aurora_rl.tasks.reference_segmentation import ReferenceSegmentation
from aurora_rl.trainers.grounded_rollouts import RolloutBatch
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from tests.trainers.test_tool_calls import Peak, call

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

OPTIONS = {
    "max_steps": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "per_device_train_batch_size": 4,
    "num_generations": 2,
    "max_completion_length": 12,
    "use_vllm": True,
    "vllm_mode": "colocate",
}


@pytest.fixture
def make_trainer(generation, tiny_checkpoint, encode, train_samples, tmp_path, monkeypatch) -> Callable:
    """A trainer on the engine that runs already, with weights of its own to sync."""

    def engine_of(trainer: AuroraGRPOTrainer, loaded: LoadedModel) -> VLLMGeneration:
        generation.model, generation.accelerator = trainer.model, trainer.accelerator
        generation.temperature, generation.max_completion_length = trainer.temperature, trainer.max_completion_length
        return generation

    monkeypatch.setattr("aurora_rl.trainers.grpo.vllm_engine", engine_of)
    for name in ("model", "accelerator", "temperature", "max_completion_length"):
        monkeypatch.setattr(generation, name, getattr(generation, name))

    def make(rewards: list | None = None, **options) -> AuroraGRPOTrainer:
        set_seed(0)
        loaded: LoadedModel = load_model(tiny_checkpoint)
        loaded.model.visual.requires_grad_(False)
        loaded.model.audio_tower.requires_grad_(False)
        return AuroraGRPOTrainer(
            model=loaded.model,
            reward_funcs=rewards or [number_of_kinds_reward],
            args=AuroraGRPOConfig(**{"output_dir": str(tmp_path / "run"), **OPTIONS, **options}),
            encode=encode,
            train_dataset=to_dataset(train_samples, ReferenceSegmentation().messages),
            processing_class=loaded.processor,
        )

    return make


def number_of_kinds_reward(completion_ids: list[list[int]], **_) -> list[float]:
    """Differs between the completions of a random model."""
    return [float(len(set(ids))) for ids in completion_ids]


def roll(trainer: AuroraGRPOTrainer, num_prompts: int = 2) -> dict:
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    rows = [trainer.train_dataset[i] for i in range(num_prompts) for _ in range(trainer.num_generations)]
    return trainer._generate_and_score_completions(rows)


def test_log_probabilities_of_vllm_and_of_the_policy_agree(make_trainer):
    trainer = make_trainer()
    batch = roll(trainer)
    mask = batch["completion_mask"].bool()
    assert mask.sum() > 20
    assert_close(batch["sampling_per_token_logps"][mask], batch["old_per_token_logps"][mask], atol=1e-4, rtol=0)
    assert_close(batch["importance_sampling_ratio"], torch.ones(4, 1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_importance_sampling_corrects_for_a_stale_engine(make_trainer, mode):
    trainer = make_trainer(
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_max=1.05,
        vllm_importance_sampling_clip_min=0.5 if mode.endswith("mask") else None,
    )
    roll(trainer)  # the engine has these weights
    with torch.no_grad():
        for parameter in trainer.model.model.parameters():
            parameter.mul_(1.02)
    batch = roll(trainer)
    mask = batch["completion_mask"]
    log_ratio = (batch["old_per_token_logps"] - batch["sampling_per_token_logps"]) * mask
    ratio = (log_ratio.sum(1, keepdim=True) if mode.startswith("sequence") else log_ratio).exp()
    assert (ratio > 1.05).any() and (ratio < 1.05).any()  # some are cut off, others not
    assert (ratio - 1).abs().max() > 1e-3  # control: without staleness all are 1
    if mode.endswith("truncate"):
        expected = ratio.clamp(max=1.05)
    else:
        expected = torch.where((ratio > 1.05) | (ratio < 0.5), 0.0, ratio)
    assert_close(batch["importance_sampling_ratio"], expected)


def test_the_correction_reaches_the_loss(make_trainer):
    trainer = make_trainer(vllm_importance_sampling_mode="token_truncate", beta=0.0, mask_loss_on="off")
    batch = {**roll(trainer), "advantages": torch.tensor([1.0, -1.0, 0.5, -0.5])}
    gradients = []
    for weight in (1.0, 0.5):
        trainer.model.zero_grad()
        ratio = weight * batch["importance_sampling_ratio"]
        trainer._compute_loss(trainer.model, {**batch, "importance_sampling_ratio": ratio}).backward()
        gradients.append(trainer.model.lm_head.weight.grad.clone())
    assert gradients[0].abs().max() > 0
    assert_close(gradients[1], gradients[0] / 2)


def test_masks_come_from_the_forward_pass_that_corrects(make_trainer):
    trainer, passes = make_trainer(share_prompts=False), []  # the first batch is tried both ways else
    policy = trainer.model
    handles = [
        module.register_forward_hook(lambda module, *_: passes.append(module.__class__.__name__))
        for module in (policy.get_decoder(), policy.seg_head)
    ]
    roll(trainer)
    for handle in handles:
        handle.remove()
    assert passes == ["Qwen2_5OmniThinkerTextModel", "MaskHead"]


def test_each_request_has_a_seed_of_its_own(make_trainer, generation):
    trainer = make_trainer()
    source = trainer._vllm
    batches = [(0, False), (0, False), (1, False), (1, True)]  # two of one step, then another, evaluated as well
    seeds = [source.request_seeds(4, Turn(2, step=step, is_eval=is_eval)) for step, is_eval in batches]
    assert len({seed for batch in seeds for seed in batch}) == 16
    resumed = VLLMSource(generation, seed=trainer.args.seed)
    assert resumed.request_seeds(4, Turn(2)) == seeds[0]
    assert not set(resumed.request_seeds(4, Turn(2, first_row=4))) & set(seeds[0])  # of another process


def test_a_second_turn_of_some_rows_is_that_of_each_row_alone_and_of_transformers(
    make_trainer, generation, difference, encode, train_samples, monkeypatch
):
    trainer = make_trainer(top_k=1)  # transformers' one choice
    monkeypatch.setattr(generation, "temperature", 0.0)  # and vLLM's
    rows = [encode(train_samples[index]) for index in (0, 0, 4, 4)]
    trainer._batch = RolloutBatch(rows)

    def take_turn(ids, rows):
        return Rollouts(*trainer._generate_single_turn(ids, rows, {}, 1))

    prompt_ids = [row.prompt.prompt_ids for row in rows]
    said = take_turn(prompt_ids, rows).completion_ids
    tool = trainer._tokenizer(" the drum is louder than the bell.").input_ids
    ids, some = [[*prompt_ids[i], *said[i], *tool] for i in (1, 3)], [rows[1], rows[3]]
    length = trainer.max_completion_length
    monkeypatch.setattr(generation, "max_completion_length", len(said[1]) + len(tool) + length)  # room for a second one
    together = take_turn(ids, some)
    assert [len(x) for x in together.completion_ids] == [length + len(said[1]) - len(said[i]) for i in (1, 3)]
    assert together.completion_ids != [said[1], said[3]]  # the first turn once more
    alone = [take_turn([x], [row]) for x, row in zip(ids, some, strict=True)]
    assert together.completion_ids == [rollouts.completion_ids[0] for rollouts in alone]
    prompts = [continued_prompt(row, x) for row, x in zip(some, ids, strict=True)]
    assert difference(trainer.model, generation.loaded, prompts, together) < 1e-4
    monkeypatch.setattr(trainer, "use_vllm", False)
    assert take_turn(ids, some).completion_ids == together.completion_ids
    with pytest.raises(ValueError, match="do not begin with"):
        trainer._vllm.generate(ids, some[::-1], Turn(1))


def test_a_rollout_goes_on_after_a_call_with_the_room_that_is_left_as_by_transformers(
    make_trainer, generation, difference, monkeypatch
):
    options = {"top_k": 1, "max_completion_length": 110, "environment_factory": f"{Peak.__module__}:Peak"}
    trainer = make_trainer(**options)
    monkeypatch.setattr(generation, "temperature", 0.0)
    sample, turns = trainer._vllm.generate, []

    def generate(ids, rows, turn):
        """The first turn is scripted, since a random model calls nothing."""
        if not turns:
            texts = ["I know.", call("peak"), "I know.", call("peak")]
            said = [[*trainer._tokenizer(text).input_ids, trainer._tokenizer.eos_token_id] for text in texts]
            turns.append((ids, rows, Rollouts(said, [[0.0] * len(some) for some in said])))
        else:
            turns.append((ids, rows, sample(ids, rows, turn)))
        return copy.deepcopy(turns[-1][2])  # TRL cuts what it gets

    monkeypatch.setattr(trainer._vllm, "generate", generate)
    batch = roll(trainer)
    _, (ids, rows, found) = turns
    said = [len(x) - len(row.prompt.prompt_ids) for x, row in zip(ids, rows, strict=True)]
    assert len(rows) == 2 and [n + len(x) for n, x in zip(said, found.completion_ids, strict=True)] == [110, 110]
    prompts = [continued_prompt(row, x) for row, x in zip(rows, ids, strict=True)]
    assert difference(trainer.model, generation.loaded, prompts, found) < 1e-4
    is_tools = batch["completion_mask"].bool() & ~batch["tool_mask"].bool()
    assert is_tools.any(1).tolist() == [False, True, False, True]
    monkeypatch.setattr(trainer, "use_vllm", False)
    by_transformers = trainer._generate_single_turn(ids, rows, {}, 1)[0]
    assert [x[: len(y)] for x, y in zip(by_transformers, found.completion_ids, strict=True)] == found.completion_ids


def test_a_profiled_step_shows_the_weight_sync_as_a_part(make_trainer, tmp_path):
    make_trainer(max_steps=2, profile_steps=1, max_completion_length=2).train()
    lines = (tmp_path / "run/profile/parts.md").read_text().splitlines()[2:]
    seconds = {part: float(spent) for part, spent, _ in (line.strip("| ").split(" | ") for line in lines)}
    assert seconds["weight sync"] > 0 and seconds["generation"] > 0


def history(folder: Path) -> list[dict]:
    lines = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    keys = ("step", "loss", "reward", "kl", "grad_norm", "entropy", "completions/mean_length")
    return [{key: line[key] for key in keys} for line in lines if "loss" in line]


def test_a_resumed_run_is_the_unbroken_one(make_trainer, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    make_trainer = functools.partial(make_trainer, lr_scheduler_type="constant")  # not that of a run of two steps
    trainer = make_trainer(output_dir=str(whole))
    trainer.train()
    trainer.save_state()
    trainer.save_model(str(whole))
    make_trainer(output_dir=str(broken), max_steps=2, save_strategy="steps", save_steps=2).train()
    resume(make_trainer, broken, checkpoint=broken / "checkpoint-2")
    for found, expected in zip(history(broken), history(whole), strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    first, second = load_file(whole / "model.safetensors"), load_file(broken / "model.safetensors")
    for name, weight in first.items():
        assert_close(second[name], weight, rtol=1e-4, atol=1e-6)

    # The control: seeds by the steps that this process has done, which are those of a run that began here.
    request_seeds = VLLMSource.request_seeds

    def forgetful(source: VLLMSource, num_rows: int, turn: Turn) -> list[int]:
        return request_seeds(source, num_rows, dataclasses.replace(turn, step=turn.step - 2))

    monkeypatch.setattr(VLLMSource, "request_seeds", forgetful)
    resume(make_trainer, tmp_path / "control", checkpoint=broken / "checkpoint-2")
    found, expected = history(tmp_path / "control"), history(whole)
    assert found[:2] == history(broken)[:2]
    assert all(line["reward"] != other["reward"] for line, other in zip(found[2:], expected[2:], strict=True))


def resume(make_trainer: Callable, folder: Path, *, checkpoint: Path) -> None:
    trainer = make_trainer(output_dir=str(folder))
    trainer.train(resume_from_checkpoint=str(checkpoint))
    trainer.save_state()
    trainer.save_model(str(folder))
