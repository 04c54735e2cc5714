"""Masks from the states that sampling leaves behind, held against a forward pass over the finished completions.

Completions are forced token by token through `generate`, since a random model never writes a `[SEG]`.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LogitsProcessor, LogitsProcessorList

from aurora_rl.data.sample import AVSample
from aurora_rl.models.encoding import SampleEncoder
from aurora_rl.models.grounding import segmentation_model
from aurora_rl.models.loading import LoadedModel
from aurora_rl.models.rollout_states import StateRecorder
from aurora_rl.trainers.grpo import AuroraGRPOTrainer

MakeGRPO = Callable[..., AuroraGRPOTrainer]
Rollout = Callable[..., dict[str, Any]]

#: Completions of two rows on each of three clips, a character a token; S is `[SEG]`, E the end of the turn.
COMPLETIONS = ("drum S.E", "SbellS ohE", "bellE", "drum SE", "SE", "bell andS.")
CUT_AT_SEG = (*COMPLETIONS[:5], "bell and.S")
LENGTH = 10  # of the longest, and the most there may be
#: Of probabilities. Sums in another order differed by 3e-7 in float32 and by 5e-3 in bf16, neighbouring tokens by 0.1.
FLOAT32_ATOL, BF16_ATOL = 1e-4, 2e-2


class ForcedTokens(LogitsProcessor):
    """Lets `generate` sample nothing but the given completions."""

    def __init__(self, completion_ids: list[list[int]]) -> None:
        self.completion_ids = completion_ids
        self.position = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        for row, ids in enumerate(self.completion_ids):
            forced[row, ids[min(self.position, len(ids) - 1)]] = 0.0
        self.position += 1
        return forced


class Columns:
    """A reward that keeps the masks it is given."""

    def __call__(self, completions: list, **columns: Any) -> list[float]:
        self.mask_probs = columns["mask_probs"]
        return [float(index % 2) for index in range(len(completions))]


def ids_of(trainer: AuroraGRPOTrainer, completion: str) -> list[int]:
    special = {"S": trainer.seg_token_id, "E": trainer._tokenizer.eos_token_id}
    return [special.get(token) or trainer._tokenizer(token).input_ids[0] for token in completion]


def force(trainer: AuroraGRPOTrainer, completions: Sequence[str]) -> None:
    """Whatever this trainer samples from now on is these completions."""
    completion_ids = [ids_of(trainer, completion) for completion in completions]
    plain = trainer.model.generate

    def generate(**inputs: Any) -> torch.Tensor:
        return plain(**inputs, logits_processor=LogitsProcessorList([ForcedTokens(completion_ids)]))

    trainer.model.generate = generate


@pytest.fixture
def samples(train_samples: list[AVSample], encode: SampleEncoder) -> list[AVSample]:
    """Of three clips, with prompts of different lengths."""
    samples = train_samples[:6:2]
    assert len({sample.media_id for sample in samples}) == 3
    assert len({len(encode(sample).prompt.prompt_ids) for sample in samples}) > 1
    return samples


@pytest.fixture
def trainer_on(make_grpo: MakeGRPO, samples: list[AVSample]) -> MakeGRPO:
    def make(**options: Any) -> AuroraGRPOTrainer:
        columns = Columns()
        defaults = {"script": None, "rewards": [columns], "samples": samples, "beta": 0.0}
        sizes = {"per_device_train_batch_size": 6, "max_completion_length": LENGTH}
        trainer = make_grpo(**{**defaults, **sizes, **options})
        trainer.columns = columns
        return trainer

    return make


@contextlib.contextmanager
def decoder_calls(trainer: AuroraGRPOTrainer) -> Iterator[list[tuple[int, bool]]]:
    """(tokens, is a gradient recorded) of every call of the language model."""
    calls: list[tuple[int, bool]] = []
    decoder = trainer.accelerator.unwrap_model(trainer.model).get_decoder()
    handle = decoder.register_forward_hook(
        lambda _module, _args, output: calls.append((output.last_hidden_state.size(1), torch.is_grad_enabled()))
    )
    yield calls
    handle.remove()


def masks_of(trainer: AuroraGRPOTrainer, rollout: Rollout, *, train: bool = True) -> list[torch.Tensor | None]:
    """The masks that the rewards are given, of one rollout of three prompts."""
    rollout(trainer, 3, train=train)
    return trainer.columns.mask_probs


def masks_by_forward(trainer: AuroraGRPOTrainer, rollout: Rollout, *, train: bool = True) -> list[torch.Tensor | None]:
    """The same where no states are left behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StateRecorder, "at_last", lambda *_: None)
        return masks_of(trainer, rollout, train=train)


def assert_same(
    masks: list[torch.Tensor | None], expected: list[torch.Tensor | None], atol: float = FLOAT32_ATOL
) -> None:
    assert [mask is None for mask in masks] == [mask is None for mask in expected]
    for mask, by_forward in zip(masks, expected, strict=True):
        if by_forward is not None:
            torch.testing.assert_close(mask, by_forward, atol=atol, rtol=0)


def move_adapters(model: nn.Module) -> None:
    """LoRA's B is zero until it is trained, and the adapters would not show."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.5)


@pytest.mark.parametrize(
    ("options", "scored"),
    [
        ({}, 0),
        ({"peft": True, "dropout": 0.5}, 0),
        ({"gradient_checkpointing": True}, 0),
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}, 0),
        ({"mask_truncated_completions": True, "num_iterations": 2}, 1),
    ],
    ids=["full", "LoRA", "checkpointing", "in chunks", "truncated masked"],
)
def test_masks_from_sampling_equal_those_of_a_forward_pass(
    trainer_on: MakeGRPO, rollout: Rollout, options: dict, scored: int
) -> None:
    trainer = trainer_on(**options)
    move_adapters(trainer.model)
    force(trainer, COMPLETIONS)
    with decoder_calls(trainer) as calls:
        masks = masks_of(trainer, rollout)
    assert len(calls) == LENGTH + scored  # the prompt, each token but the last, TRL's old log-probabilities
    assert [mask is not None for mask in masks] == ["S" in completion for completion in COMPLETIONS]
    assert trainer.model.training and trainer.model.seg_head.training
    with decoder_calls(trainer) as more_calls:
        expected = masks_by_forward(trainer, rollout)
    assert len(more_calls) == len(calls) + 6 // trainer.args.per_device_train_batch_size
    assert_same(masks, expected)


def test_masks_from_another_layer_of_sampling_equal_those_of_a_forward_pass(
    trainer_on: MakeGRPO, rollout: Rollout
) -> None:
    trainer, found = trainer_on(), []
    force(trainer, COMPLETIONS)
    head = segmentation_model(trainer.model).head()
    for layer in (-1, 1):
        head.config = {**head.config, "state_layer": layer}
        found.append(masks_of(trainer, rollout))
        assert_same(found[-1], masks_by_forward(trainer, rollout))
    differences = [(a - b).abs().max().item() for a, b in zip(*found, strict=True) if a is not None]
    assert min(differences) > 10 * FLOAT32_ATOL, differences


@pytest.mark.parametrize("is_bf16_model", [False, True], ids=["autocast", "bf16 model"])
def test_in_bf16_the_masks_differ_by_rounding_alone(
    trainer_on: MakeGRPO, rollout: Rollout, loaded: LoadedModel, is_bf16_model: bool
) -> None:
    model = loaded.model.to(torch.bfloat16) if is_bf16_model else loaded.model
    model.seg_head.float()
    trainer = trainer_on(model=model, bf16=not is_bf16_model)
    force(trainer, COMPLETIONS)
    with decoder_calls(trainer) as calls:
        masks = masks_of(trainer, rollout)
    assert len(calls) == LENGTH
    assert_same(masks, masks_by_forward(trainer, rollout), BF16_ATOL)


def test_the_state_of_the_token_before_gives_other_masks(
    trainer_on: MakeGRPO, rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, plain = trainer_on(), StateRecorder.at_last
    force(trainer, COMPLETIONS)
    expected = masks_by_forward(trainer, rollout)

    def one_early(self: StateRecorder, *args: Any) -> Any:
        self._states = [self._states[0], *self._states[:-1]]
        return plain(self, *args)

    monkeypatch.setattr(StateRecorder, "at_last", one_early)
    for mask, by_forward in zip(masks_of(trainer, rollout), expected, strict=True):
        if by_forward is not None:
            assert (mask - by_forward).abs().max() > BF16_ATOL


def test_evaluation_takes_the_states_too(trainer_on: MakeGRPO, rollout: Rollout) -> None:
    trainer = trainer_on(per_device_eval_batch_size=4)
    force(trainer, COMPLETIONS)
    with decoder_calls(trainer) as calls:
        masks = masks_of(trainer, rollout, train=False)
    assert len(calls) == LENGTH
    assert_same(masks, masks_by_forward(trainer, rollout, train=False))


def test_a_rollout_batch_takes_one_forward_pass_and_that_is_of_the_loss(trainer_on: MakeGRPO) -> None:
    trainer = trainer_on(rewards="reward_fns.mask_iou:mask_iou_reward", mask_loss_on="all", share_prompts=False)
    force(trainer, COMPLETIONS)
    with decoder_calls(trainer) as calls:
        trainer.train()
    rollouts = [(calls[0][0], False)] + [(1, False)] * (LENGTH - 1)
    assert calls[: LENGTH + 1] == [*rollouts, (calls[0][0] + LENGTH, True)]
    assert len(calls) == 2 * (LENGTH + 1)  # two steps


def test_one_completion_cut_at_its_seg_brings_the_forward_pass_back(trainer_on: MakeGRPO, rollout: Rollout) -> None:
    trainer = trainer_on()
    force(trainer, CUT_AT_SEG)
    with decoder_calls(trainer) as calls:
        masks = masks_of(trainer, rollout)
    assert len(calls) == LENGTH + 1
    assert_same(masks, masks_by_forward(trainer, rollout))
    assert masks[5] is not None


def test_completions_that_were_changed_after_sampling_have_masks_of_their_own(
    trainer_on: MakeGRPO, rollout: Rollout
) -> None:
    trainer = trainer_on()
    force(trainer, [completion.replace("S", "x") for completion in COMPLETIONS])
    sample = trainer._generate_single_turn

    def sample_and_change(*args: Any) -> tuple[list[list[int]], None]:
        sample(*args)
        return [ids_of(trainer, completion) for completion in COMPLETIONS], None

    trainer._generate_single_turn = sample_and_change
    masks = masks_of(trainer, rollout)
    del trainer._generate_single_turn, trainer.model.generate
    force(trainer, COMPLETIONS)
    assert_same(masks, masks_of(trainer, rollout))


def test_states_are_recorded_only_where_masks_need_them_and_each_process_may_decide_for_itself(
    trainer_on: MakeGRPO, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trainer_on(num_iterations=2)._source().kept_token_id is None
    trainer = trainer_on()
    assert trainer._source().kept_token_id == trainer.seg_token_id
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "is_fsdp_enabled", True)
        assert trainer._source().kept_token_id is None
    monkeypatch.setattr("aurora_rl.trainers.grounded_rollouts.is_deepspeed_zero3_enabled", lambda: True)
    assert trainer._source().kept_token_id is None
