"""Floating-point operations of a training step, and the time they take at an assumed utilisation."""

from __future__ import annotations

import dataclasses
from typing import Self

from aurora_rl.footprint.launch import Launch
from aurora_rl.footprint.parameters import MetaModel
from aurora_rl.footprint.workload import Workload
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig

#: Dense bfloat16 peaks in TFLOP/s, of the makers' data sheets, by a part of the device's name.
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0}
UTILISATION = 0.4


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """Operations of one process in one optimiser step.

    Attributes:
        sampling: of rollouts.
        scoring: of forward passes without gradient (old and reference log-probabilities, the rollouts' masks).
        training: of forward and backward passes.
    """

    sampling: float
    scoring: float
    training: float

    @property
    def total(self) -> float:
        return self.sampling + self.scoring + self.training

    def seconds(self, tflops: float, utilisation: float = UTILISATION) -> float:
        """Time of a step. Sampling token by token is bound by memory, not by arithmetic, so it takes longer."""
        return self.total / (tflops * 1e12 * utilisation)


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """What rollouts cost beside the training on them.

    Attributes:
        samples_here: whether this process's device samples; with a vLLM server it does not.
        num_scored: forward passes without gradient over each rollout.
        num_iterations: how often each rollout is trained on.
    """

    samples_here: bool
    num_scored: int
    num_iterations: int

    @classmethod
    def of(cls, args: AuroraGRPOConfig, launch: Launch) -> Self:
        """As the trainer makes them.

        Their masks need a pass of their own where the one that scores them gives none and sampling leaves no states
        behind: an engine keeps its own, and sharded weights are not run by one process alone.
        """
        leaves_states = not (args.use_vllm or launch.zero_stage == 3)
        needs_mask_pass = not (args.masks_share_forward or leaves_states)
        return cls(
            samples_here=not args.use_vllm or args.vllm_mode == "colocate",
            num_scored=args.old_logps_are_computed + bool(args.beta) + needs_mask_pass,
            num_iterations=args.num_iterations,
        )


def estimate_flops(
    meta: MetaModel, work: Workload, *, checkpointing: bool, rollouts: Rollouts | None = None
) -> StepFlops:
    """Two operations for each weight and token forward, two for the gradient of the input, two for the weight's own.

    6 N a token where all N weights are trained (Kaplan et al. 2020, section 2.1), 4 N where frozen weights are only
    passed through, as under LoRA, and 2 N more where checkpointing runs the forward pass again. Attention's quadratic
    term and the mask decoder are left out.

    Args:
        meta: the model.
        work: of one process.
        checkpointing: whether the forward pass is run again.
        rollouts: what is sampled and scored; None in supervised training.
    """
    passed, trained = _multiplied_weights(meta)
    media, media_backward = _tower_flops(meta, work)
    forward = 2 * passed * work.tokens
    backward = 2 * (passed + trained) * work.tokens + media_backward
    passes = work.num_steps * (forward * (2 if checkpointing else 1) + media + backward)
    if rollouts is None:
        return StepFlops(0.0, 0.0, passes)
    a_rollout = work.num_steps * (forward + media) / rollouts.num_iterations  # with a cache, each token passes once
    return StepFlops(rollouts.samples_here * a_rollout, rollouts.num_scored * a_rollout, passes)


def _multiplied_weights(meta: MetaModel) -> tuple[int, int]:
    """Weights that each token is multiplied by, embeddings not among them, and how many of these are trained."""
    layers = list(meta.base.get_decoder().layers.parameters())
    head = meta.base.get_output_embeddings()
    head_is_trained = any(p.requires_grad for p in head.parameters())
    passed = sum(p.numel() for p in layers) + head.weight.numel()
    return passed, sum(p.numel() for p in layers if p.requires_grad) + head_is_trained * head.weight.numel()


def _tower_flops(meta: MetaModel, work: Workload) -> tuple[float, float]:
    """Forward and backward operations of the towers."""
    forward = backward = 0.0
    for name, tokens in (("visual", work.patches), ("audio_tower", work.mels / 2)):
        parameters = list(getattr(meta.base, name).parameters())
        passed = 2 * sum(p.numel() for p in parameters) * tokens
        forward += passed
        backward += 2 * passed * any(p.requires_grad for p in parameters)
    return forward, backward
