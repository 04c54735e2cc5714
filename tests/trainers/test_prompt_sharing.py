"""A step that shares prompts is the step that does not: loss, metrics and gradients, in the configurations of a run."""

import dataclasses
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from trl.trainer.utils import shuffle_sequence_dict

from aurora_rl.models import packed_attention, packed_layout
from aurora_rl.models.packed_layout import PackedLayout
from aurora_rl.trainers import prompt_sharing
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.prompt_sharing import PromptSharing, shuffle_groups

MakeGRPO = Callable[..., AuroraGRPOTrainer]
Rollout = Callable[..., dict[str, Any]]
METRICS = ("loss", "entropy", "mask_loss", "kl", "reward", "clip_ratio/region_mean")
REWARDS = ["reward_fns.format:format_reward", "reward_fns.mask_iou:mask_iou_reward"]
#: Three groups of four completions of different lengths, with and without `[SEG]`, in a step.
STEP = {"per_device_train_batch_size": 12, "num_generations": 4, "mask_loss_on": "all", "max_steps": 1}
Gradients = dict[str, torch.Tensor]


class Recorder(TrainerCallback):
    """Keeps the gradients before each step of the optimiser."""

    def __init__(self) -> None:
        self.steps: list[Gradients] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.steps.append({name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None})


def count_tokens(trainer: AuroraGRPOTrainer) -> list[int]:
    """Tokens of every training pass of the decoder from now on."""
    tokens: list[int] = []

    def count(_module: Any, _args: Any, kwargs: Any) -> None:
        if torch.is_grad_enabled():
            tokens.append(kwargs["inputs_embeds"][..., 0].numel())

    trainer.accelerator.unwrap_model(trainer.model).get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    return tokens


def run(make_grpo: MakeGRPO, **options: Any) -> tuple[list[Gradients], dict[str, float], int]:
    """Gradients and metrics of a short run, and the number of tokens that its decoder has trained on."""
    torch.manual_seed(0)
    recorder = Recorder()
    trainer = make_grpo(rewards=REWARDS, callbacks=[recorder], **{"max_grad_norm": 0.0, **STEP, **options})
    tokens = count_tokens(trainer)
    trainer.train()
    assert trainer._passes.sharing.is_on is options["share_prompts"]
    logs = {k: v for entry in trainer.state.log_history for k, v in entry.items() if k in METRICS}
    return recorder.steps, logs, sum(tokens)


def worst_difference(ours: Gradients, theirs: Gradients) -> float:
    """Largest |difference| / |gradient| of a tensor; those of rounding errors alone are left out."""
    assert ours.keys() == theirs.keys()
    largest = max(gradient.norm() for gradient in theirs.values())
    compared = {name: gradient for name, gradient in theirs.items() if gradient.norm() > 1e-4 * largest}
    return max(((ours[name] - gradient).norm() / gradient.norm()).item() for name, gradient in compared.items())


CASES: dict[str, dict[str, Any]] = {
    "groups cut by micro-batches": {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2},
    "whole groups in two micro-batches": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
    "old log-probabilities": {"num_iterations": 2, "max_steps": 2},
    "truncated completions masked": {"mask_truncated_completions": True, "num_iterations": 2, "max_steps": 2},
    "checkpointing": {"gradient_checkpointing": True},
    "LoRA and checkpointing": {"peft": True, "dropout": 0.0, "gradient_checkpointing": True},
    "LoRA, dropout switched off": {"peft": True, "disable_dropout": True, "beta": 0.0},
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_has_the_same_gradients_and_metrics(name: str, make_grpo: MakeGRPO) -> None:
    plain, plain_logs, plain_tokens = run(make_grpo, share_prompts=False, **CASES[name])
    shared, shared_logs, shared_tokens = run(make_grpo, share_prompts=True, **CASES[name])
    for ours, theirs in zip(shared, plain, strict=True):
        assert worst_difference(ours, theirs) < 1e-4
    assert plain_logs == pytest.approx(shared_logs, rel=1e-5, abs=1e-5)
    assert shared_tokens < plain_tokens


#: Attributes of TRL's trainer that choose the loss.
LOSSES: dict[str, dict[str, Any]] = {
    **{name: {"loss_type": name} for name in ("grpo", "dapo", "bnpo", "dr_grpo", "cispo", "sapo", "vespo")},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "gspo": {"importance_sampling_level": "sequence"},
    "high entropy alone": {"top_entropy_quantile": 0.2},
    "without KL": {"beta": 0.0},
}


def loss_and_gradients(
    trainer: AuroraGRPOTrainer, inputs: dict[str, Any], *, is_on: bool
) -> tuple[torch.Tensor, Gradients]:
    trainer._passes.sharing.is_on = is_on
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.fixture
def trainer(make_grpo: MakeGRPO) -> AuroraGRPOTrainer:
    return make_grpo(rewards=REWARDS, num_iterations=2, share_prompts=True, **STEP)


@pytest.fixture
def inputs(trainer: AuroraGRPOTrainer, rollout: Rollout) -> dict[str, Any]:
    """A generation batch, with old log-probabilities from which the policy has moved, and those of an engine."""
    inputs = rollout(trainer, 3)
    shift = 0.1 * torch.randn(inputs["completion_ids"].shape)
    ratio = torch.full_like(shift, 0.9) * inputs["completion_mask"]
    moved = {"old_per_token_logps": inputs["old_per_token_logps"] + shift, "importance_sampling_ratio": ratio}
    return inputs | moved


def test_each_loss_has_the_same_gradients(
    trainer: AuroraGRPOTrainer, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, attributes in LOSSES.items():
        with monkeypatch.context() as patch:
            for attribute, value in attributes.items():
                patch.setattr(trainer, attribute, value)
            plain, theirs = loss_and_gradients(trainer, inputs, is_on=False)
            shared, ours = loss_and_gradients(trainer, inputs, is_on=True)
        torch.testing.assert_close(shared, plain, atol=1e-5, rtol=1e-5, msg=name)
        assert worst_difference(ours, theirs) < 1e-4, name


def test_the_correction_of_an_engine_has_the_same_gradients(
    trainer: AuroraGRPOTrainer, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "use_vllm", True)
    monkeypatch.setattr(trainer, "vllm_importance_sampling_correction", True)
    plain, theirs = loss_and_gradients(trainer, inputs, is_on=False)
    shared, ours = loss_and_gradients(trainer, inputs, is_on=True)
    without = inputs | {"importance_sampling_ratio": torch.ones_like(inputs["importance_sampling_ratio"])}
    uncorrected = loss_and_gradients(trainer, without, is_on=True)[1]
    assert worst_difference(ours, uncorrected) > 1e-2, "no correction in the loss"
    torch.testing.assert_close(shared, plain, atol=1e-5, rtol=1e-5)
    assert worst_difference(ours, theirs) < 1e-4


def test_the_decoder_reads_each_prompt_once(trainer: AuroraGRPOTrainer, inputs: dict[str, Any]) -> None:
    tokens = count_tokens(trainer)
    loss_and_gradients(trainer, inputs, is_on=True)
    prompts = [row.prompt.prompt_ids for row in inputs["encoded_rows"][::4]]
    assert tokens == [sum(len(ids) - 1 for ids in prompts) + 12 + inputs["completion_mask"].sum().item()]


def late(layout: PackedLayout) -> PackedLayout:
    """Every completion is one position late."""
    return dataclasses.replace(layout, step=layout.step + (layout.step > 0).long())


def test_the_head_reads_its_own_token_and_no_other(
    trainer: AuroraGRPOTrainer, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = loss_and_gradients(trainer, inputs, is_on=False)
    stock = PackedLayout.places_of
    monkeypatch.setattr(PackedLayout, "places_of", lambda self, columns: stock(self, columns) - 1)
    wrong, _ = loss_and_gradients(trainer, inputs, is_on=True)
    assert (wrong - plain).abs() > 1e-5


# ---- the first batch ------------------------------------------------------------------------------------------------


def start(make_grpo: MakeGRPO, **options: Any) -> AuroraGRPOTrainer:
    """Train one step, beginning with the comparison that the other tests leave out."""
    trainer = make_grpo(rewards=REWARDS, share_prompts=True, **{**STEP, **options})
    trainer._passes.sharing.is_tried = not trainer._passes.sharing.is_on
    trainer.train()
    return trainer


def test_the_first_batch_is_scored_both_ways_and_the_log_says_so(
    make_grpo: MakeGRPO, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="aurora_rl"):
        trainer = start(make_grpo)
    assert trainer._passes.sharing.is_on and trainer._passes.sharing.is_tried
    [line] = [record.message for record in caplog.records if record.name == prompt_sharing.__name__]
    assert line.startswith("prompts are shared within groups: log-probabilities of the first group differ by ")


def test_a_wrong_layout_is_found_on_the_first_batch_and_the_run_goes_on_without(
    make_grpo: MakeGRPO, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _, plain_tokens = run(make_grpo, share_prompts=False)
    stock = packed_layout._layout
    monkeypatch.setattr(packed_layout, "_layout", lambda *args: late(stock(*args)))
    torch.manual_seed(0)
    recorder = Recorder()
    trainer = start(make_grpo, callbacks=[recorder], max_grad_norm=0.0)
    assert trainer._passes.sharing.is_on is False
    [record] = [record for record in caplog.records if record.name == prompt_sharing.__name__]
    assert record.levelname == "WARNING" and record.message.startswith("prompts are not shared")
    assert worst_difference(recorder.steps[0], plain[0]) < 1e-6


def test_a_kernel_that_fails_on_the_first_batch_leaves_the_plain_pass(
    trainer: AuroraGRPOTrainer,
    inputs: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected, _ = loss_and_gradients(trainer, inputs, is_on=False)
    trainer._passes.sharing.is_tried = False

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no kernel for this shape")

    monkeypatch.setitem(packed_attention.KERNELS, "sdpa", fail)
    passes: list[int] = []
    last = trainer.accelerator.unwrap_model(trainer.model).get_decoder().norm
    last.register_forward_hook(lambda *_: passes.append(1))
    loss, _ = loss_and_gradients(trainer, inputs, is_on=True)
    assert len(passes) == 3, "a pass that breaks off leaves other processes waiting for its shards of the weights"
    assert loss == expected and trainer._passes.sharing.is_tried and not trainer._passes.sharing.is_on
    assert "prompts are not shared, so that steps take longer: no kernel for this shape" in caplog.text


@pytest.mark.parametrize(
    ("dtype", "own", "others", "expected"),
    [
        (torch.float32, 1e-6, 1e-6, True),
        (torch.float32, 1e-3, 1e-6, False),
        (torch.float32, 1e-6, 1e-3, False),
        (torch.float32, float("nan"), 1e-6, False),
        (torch.bfloat16, 1e-2, 1e-3, True),
        (torch.bfloat16, 0.2, 1e-3, False),
    ],
)
def test_one_process_decides_for_all(
    dtype: torch.dtype, own: float, others: float, expected: bool, trainer: AuroraGRPOTrainer
) -> None:
    def gather(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values, torch.tensor([others])])

    mixed = "bf16" if dtype == torch.bfloat16 else "no"
    accelerator: Any = SimpleNamespace(gather=gather, mixed_precision=mixed, is_main_process=True)
    sharing = PromptSharing(accelerator, is_on=True)
    plain, mask = torch.zeros(2, 3), torch.tensor([[1, 1, 0], [1, 0, 0]])
    sharing.decide(trainer.model, plain + own, plain, mask)
    assert sharing.is_on is expected and sharing.is_tried


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"share_prompts": False}, None),
        ({"peft": True, "dropout": 0.1}, "set disable_dropout to true"),
        ({"torch_compile": True, "torch_compile_backend": "eager"}, "the model is compiled"),
    ],
)
def test_where_prompts_are_not_shared_the_log_says_why(
    options: dict[str, Any], reason: str | None, make_grpo: MakeGRPO, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_grpo(**{"share_prompts": True, **options})
    lines = [record.message for record in caplog.records if record.name == prompt_sharing.__name__]
    assert not trainer._passes.sharing.is_on
    assert len(lines) == (reason is not None) and all(str(reason) in line for line in lines)


def test_a_run_that_cuts_rows_into_pieces_is_told_why_it_shares_no_prompts() -> None:
    split = SimpleNamespace(cp_enabled=True, sp_enabled=False)
    accelerator = SimpleNamespace(parallelism_config=split)
    trainer: Any = SimpleNamespace(args=SimpleNamespace(torch_compile=False), accelerator=accelerator)
    assert "cuts a row into pieces" in str(prompt_sharing._reason_of_run(trainer))
    split.cp_enabled = False
    assert prompt_sharing._reason_of_run(trainer) is None


# ---- whole groups ---------------------------------------------------------------------------------------------------


def rows_of(sizes: list[int]) -> dict[str, Any]:
    """A generation batch of groups of these sizes, whose rows are numbered."""
    prompts = [SimpleNamespace(number=number) for number in range(len(sizes))]
    rows = [SimpleNamespace(prompt=prompt) for prompt, size in zip(prompts, sizes, strict=True) for _ in range(size)]
    return {
        "completion_ids": torch.arange(len(rows))[:, None],
        "encoded_rows": rows,
        "num_items_in_batch": torch.tensor(7),
        "nothing": None,
    }


def test_groups_are_shuffled_and_their_rows_stay_neighbours() -> None:
    batch = rows_of([3, 3, 2, 3])
    orders = set()
    for _ in range(20):
        shuffled = shuffle_groups(batch)
        numbers = [row.prompt.number for row in shuffled["encoded_rows"]]
        ids = shuffled["completion_ids"][:, 0].tolist()
        assert sorted(ids) == list(range(11))
        assert [batch["encoded_rows"][row] for row in ids] == shuffled["encoded_rows"]
        order = [number for place, number in enumerate(numbers) if place == 0 or numbers[place - 1] != number]
        assert sorted(order) == [0, 1, 2, 3]
        assert shuffled["num_items_in_batch"] == 7 and shuffled["nothing"] is None
        orders.add(tuple(order))
    assert len(orders) > 5


def test_a_micro_batch_holds_whole_groups_where_they_fit_and_trl_s_does_not(make_grpo: MakeGRPO) -> None:
    trainer = make_grpo(
        share_prompts=True, per_device_train_batch_size=4, gradient_accumulation_steps=3, num_generations=4
    )
    trainer.train()
    for micro_batch in trainer._buffered_inputs:
        assert len({id(row.prompt) for row in micro_batch["encoded_rows"]}) == 1
    rows = shuffle_sequence_dict(rows_of([4, 4, 4]))["encoded_rows"]
    assert len({row.prompt.number for row in rows[:4]}) > 1
