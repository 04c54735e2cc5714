"""A step that shares prompts is the step that does not: loss, metrics and gradients, in the configurations of a run."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from aurora_rl.trainers.grpo import AuroraGRPOTrainer

MakeGRPO = Callable[..., AuroraGRPOTrainer]
METRICS = ("loss", "entropy", "mask_loss", "kl", "reward", "clip_ratio/region_mean")
REWARDS = ["reward_fns.format:format_reward", "reward_fns.mask_iou:mask_iou_reward"]
#: A step of three groups of four, or of what one process has of them.
STEP = {"per_device_train_batch_size": 12, "num_generations": 4, "mask_loss_on": "all", "max_steps": 1}


class Gradients(TrainerCallback):
    """Keeps the gradients before each step of the optimiser, and counts the decoder's tokens."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        found = {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}
        self.steps.append(found)


def run(make_grpo: MakeGRPO, **options: Any) -> tuple[list[dict[str, torch.Tensor]], dict[str, float], int]:
    """Gradients and metrics of a short run, and the number of tokens that its decoder has trained on."""
    torch.manual_seed(0)
    gradients, tokens = Gradients(), []
    trainer = make_grpo(rewards=REWARDS, callbacks=[gradients], **{"max_grad_norm": 0.0, **STEP, **options})
    decoder = trainer.accelerator.unwrap_model(trainer.model).get_decoder()

    def count(_module: Any, _args: Any, kwargs: Any) -> None:
        if torch.is_grad_enabled():
            tokens.append(kwargs["inputs_embeds"][..., 0].numel())

    decoder.register_forward_pre_hook(count, with_kwargs=True)
    trainer.train()
    assert trainer._passes.sharing.is_on is options["share_prompts"]
    logs = {k: v for entry in trainer.state.log_history for k, v in entry.items() if k in METRICS}
    return gradients.steps, logs, sum(tokens)


def worst_difference(plain: list[dict[str, torch.Tensor]], shared: list[dict[str, torch.Tensor]]) -> float:
    """Largest |difference| / |gradient| of a tensor; those of rounding errors alone are left out."""
    worst = 0.0
    for ours, theirs in zip(shared, plain, strict=True):
        assert ours.keys() == theirs.keys()
        largest = max(gradient.norm() for gradient in theirs.values())
        for name, gradient in theirs.items():
            if gradient.norm() > 1e-4 * largest:
                worst = max(worst, ((ours[name] - gradient).norm() / gradient.norm()).item())
    return worst


CASES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "two micro-batches": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
    "groups cut by micro-batches": {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2},
    "old and reference log-probabilities": {"num_iterations": 2, "max_steps": 2},
    "dapo": {"loss_type": "dapo"},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "cispo": {"loss_type": "cispo"},
    "sapo": {"loss_type": "sapo"},
    "vespo": {"loss_type": "vespo"},
    "luspo by sequence": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "gspo": {"importance_sampling_level": "sequence", "num_iterations": 2, "max_steps": 2},
    "entropy": {"top_entropy_quantile": 0.2, "entropy_coef": 0.01},
    "truncated completions masked": {"mask_truncated_completions": True, "num_iterations": 2, "max_steps": 2},
    "checkpointing": {"gradient_checkpointing": True},
    "LoRA": {"peft": True, "dropout": 0.0},
    "LoRA without dropout, checkpointing": {"peft": True, "disable_dropout": True, "gradient_checkpointing": True},
    "no mask loss, no KL": {"mask_loss_on": "off", "beta": 0.0},
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_has_the_same_gradients_and_metrics(name: str, make_grpo: MakeGRPO) -> None:
    plain, plain_logs, plain_tokens = run(make_grpo, share_prompts=False, **CASES[name])
    shared, shared_logs, shared_tokens = run(make_grpo, share_prompts=True, **CASES[name])
    print(name, worst_difference(plain, shared), plain_tokens/shared_tokens, max(abs(plain_logs[k]-shared_logs[k]) for k in plain_logs))
    assert worst_difference(plain, shared) < 1e-4
    assert plain_logs == pytest.approx(shared_logs, rel=1e-5, abs=1e-5)
    assert shared_tokens < plain_tokens
