"""GRPO by hand against the trainer, on the same rollouts, and as a user starts it."""

import dataclasses
import re
import runpy
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.assembly.plain_grpo import PLAIN
from aurora_rl.data.sample import AVSample
from aurora_rl.rewards import load_reward_func
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from recipes.grpo_by_hand import ForwardPass, group_advantages, grpo_loss, reward_columns, run_forward
from tests.trainers.conftest import REWARDS, gold, no_seg, wrong
from tests.trainers.conftest import make_grpo as make_grpo
from tests.trainers.conftest import rollout as rollout

ROOT = Path(__file__).resolve().parents[2]
COMPARED = (
    "seg_head.projector.0.weight",
    "seg_head.mask_decoder.down1.0.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.self_attn.q_proj.weight",
    "lm_head.weight",
)
Rollout = Callable[..., dict[str, Any]]


def unequal(sample: AVSample, index: int) -> str:
    """Completions of several lengths, right and wrong, with and without `[SEG]`."""
    chain = (gold, wrong, no_seg, gold)[index % 4](sample, index)
    return chain.replace("Look:", "Look: now, now,") if index % 3 == 0 else chain


@pytest.fixture
def trainer(make_grpo: Callable[..., AuroraGRPOTrainer]) -> AuroraGRPOTrainer:
    """A trainer whose policy has left its reference, so that there is a KL divergence."""
    trainer = make_grpo(
        script=unequal, rewards=REWARDS, reward_weights=[1.0, 0.5], per_device_train_batch_size=8, num_generations=4,
        beta=0.3, epsilon=0.1, temperature=0.7, num_iterations=2,
        mask_loss_weight=0.6, mask_bce_weight=1.5, mask_dice_weight=0.7,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    return trainer


@pytest.fixture
def inputs(trainer: AuroraGRPOTrainer, rollout: Rollout) -> dict[str, Any]:
    """The trainer's generation batch, with old log-probabilities from which the policy has moved past the limit."""
    inputs = rollout(trainer, 2)
    shift = torch.randn(inputs["completion_ids"].shape, generator=torch.Generator().manual_seed(2))
    inputs["old_per_token_logps"] = inputs["old_per_token_logps"] + 0.2 * shift
    return inputs


def completions(inputs: dict[str, Any]) -> list[list[int]]:
    pairs = zip(inputs["completion_ids"], inputs["completion_mask"].bool(), strict=True)
    return [ids[mask].tolist() for ids, mask in pairs]


def forward_by_hand(trainer: AuroraGRPOTrainer, model: torch.nn.Module, inputs: dict[str, Any]) -> ForwardPass:
    rows, ids = inputs["encoded_rows"], completions(inputs)
    return run_forward(model, trainer.encode, rows, ids, trainer.temperature)


def at_completions(by_trainer: Tensor, inputs: dict[str, Any], like: ForwardPass) -> Tensor:
    """The trainer's numbers of completion tokens, where the pass by hand has them."""
    placed = torch.zeros_like(like.logps)
    placed[like.in_completion] = by_trainer[inputs["completion_mask"].bool()]
    return placed


def loss_by_hand(trainer: AuroraGRPOTrainer, inputs: dict[str, Any]) -> Tensor:
    new = forward_by_hand(trainer, trainer.model, inputs)
    old = at_completions(inputs["old_per_token_logps"], inputs, new)
    ref = at_completions(inputs["ref_per_token_logps"], inputs, new)
    teaches_masks = inputs["mask_weights"].bool()
    return grpo_loss(new, old, ref, inputs["advantages"], inputs["encoded_rows"], teaches_masks, trainer.args)


def gradients(trainer: AuroraGRPOTrainer, loss: Tensor) -> dict[str, Tensor]:
    parameters = dict(trainer.model.named_parameters())
    found = torch.autograd.grad(loss, [parameters[name] for name in COMPARED])
    return dict(zip(COMPARED, found, strict=True))


def test_loss_and_gradients_equal_the_trainers_on_the_same_rollouts(
    trainer: AuroraGRPOTrainer, inputs: dict[str, Any]
) -> None:
    expected = trainer._compute_loss(trainer.model, inputs)
    given = loss_by_hand(trainer, inputs)
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=0)
    given_gradients = gradients(trainer, given)
    for name, gradient in gradients(trainer, expected).items():
        assert gradient.abs().max() > 1e-3, f"{name}: nothing to compare"
        torch.testing.assert_close(given_gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


#: Other formulas in the place of the file's own.
OTHER_FORMULAS = {
    "tokens of the batch as normaliser": (
        "per_row_loss.mean()",
        "(per_row_loss * num_tokens).sum() / num_tokens.sum()",
    ),
    "masks divided by B": ("masks.total", "masks.total * teaches_masks.sum() / len(rows)"),
    "no clipping": ("clamp(1 - args.epsilon, 1 + args.epsilon)", "clamp(0.0)"),
    "no correction of the KL": ("kl = ratio * (", "kl = 1.0 * ("),
    "no KL": ("args.beta * kl", "0.0 * kl"),
    "no temperature": (" / temperature)", ")"),
    "masks of wrong answers": ("teaches_masks.float()", "new.has_seg.float()"),
    "log-probabilities one position late": ("outputs.logits[:, :-1]", "outputs.logits[:, 1:]"),
}


def test_the_comparison_sees_each_other_formula(
    trainer: AuroraGRPOTrainer, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (ROOT / "recipes" / "grpo_by_hand.py").read_text()
    with torch.no_grad():
        expected = trainer._compute_loss(trainer.model, inputs).item()
        for name, (own, other) in OTHER_FORMULAS.items():
            assert source.count(own) == 1, name
            changed = types.ModuleType("changed")
            monkeypatch.setitem(sys.modules, "changed", changed)  # dataclasses look their module up
            exec(source.replace(own, other), vars(changed))
            monkeypatch.setitem(globals(), "run_forward", changed.run_forward)
            monkeypatch.setitem(globals(), "grpo_loss", changed.grpo_loss)
            assert abs(loss_by_hand(trainer, inputs).item() - expected) > 1e-4, name


def test_log_probabilities_rewards_and_advantages_equal_the_trainers(
    trainer: AuroraGRPOTrainer, rollout: Rollout
) -> None:
    inputs = rollout(trainer, 2)
    with torch.no_grad():
        old = forward_by_hand(trainer, trainer.model, inputs)
        ref = forward_by_hand(trainer, trainer.ref_model, inputs)
    for given, name in ((old, "old_per_token_logps"), (ref, "ref_per_token_logps")):
        expected = at_completions(inputs[name], inputs, given)
        torch.testing.assert_close(given.logps, expected, atol=1e-5, rtol=0)
    rows = inputs["encoded_rows"]
    texts = trainer._tokenizer.batch_decode(completions(inputs), skip_special_tokens=True)
    columns = reward_columns(trainer.encode, rows, texts, old)
    scores = torch.tensor([load_reward_func(spec)(**columns) for spec in REWARDS])
    advantages = group_advantages(scores.T @ torch.tensor([1.0, 0.5]), 4)
    assert advantages.std() > 0.1
    torch.testing.assert_close(advantages, inputs["advantages"], atol=1e-5, rtol=0)
    answers = zip(columns["answers"], rows, strict=True)
    is_right = [trainer.encode.task.is_right(answer, row.sample) for answer, row in answers]
    teaches_masks = old.has_seg & torch.tensor(is_right)
    assert teaches_masks.tolist() == inputs["mask_weights"].bool().tolist()


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["recipes/grpo_by_hand.py", *arguments])
    runpy.run_path("recipes/grpo_by_hand.py", run_name="__main__")


@pytest.fixture
def arguments(tiny_benchmark: Path, tiny_checkpoint: str) -> list[str]:
    """A short run of the synthetic recipe on the tiny model."""
    options = {
        "config": "recipes/synthetic/grpo.yaml",
        "model": tiny_checkpoint,
        "data_root": tiny_benchmark,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 6,
        "num_iterations": 2,
        "reward_funcs": "tests/trainers/faulty_grpo.py:letters_reward",  # a random model earns nothing from others
        "reward_weights": 1.0,
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def test_two_steps_print_reward_and_loss(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(arguments, monkeypatch)
    number = r"(-?\d+\.\d{4})"
    lines = re.findall(rf"^step (\d): reward {number}, loss {number}$", capsys.readouterr().out, re.M)
    assert [line[0] for line in lines] == ["1", "2"]
    # The second step uses the rollouts of the first again, and the policy has moved meanwhile.
    assert lines[0][1] == lines[1][1] and lines[0][2] != lines[1][2]


@pytest.mark.parametrize(
    ("option", "value"), [("loss_type", "dapo"), ("use_peft", "true"), ("mask_loss_on", "off"), ("max_steps", "-1")]
)
def test_what_the_file_leaves_out_is_refused_before_anything_is_loaded(
    option: str, value: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aurora_rl.assembly.model.assemble_model", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=rf"{option}.*recipes/grpo\.py"):
        run([*arguments, f"--{option}", value], monkeypatch)


def test_the_only_known_values_are_the_method_s_defaults() -> None:
    """Otherwise a recipe that does not set them would be refused."""
    defaults = {f.name: f.default for cls in (ModelArguments, AuroraGRPOConfig) for f in dataclasses.fields(cls)}
    filled = {"steps_per_generation": 1}  # by GRPOConfig
    assert {name: defaults[name] for name in PLAIN} | filled == PLAIN
