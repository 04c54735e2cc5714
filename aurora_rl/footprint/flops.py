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
        scoring: of forward passes without gradient (old and reference log-probabilities, the rollouts' masks; a live
            teacher).
        training: of forward and backward passes.
        recomputing: of what the backward pass runs forward again: checkpointed layers, and TRL's LM head in any case,
            for it keeps no logits.
    """

    sampling: float
    scoring: float
    training: float
    recomputing: float

    @property
    def total(self) -> float:
        return self.sampling + self.scoring + self.training + self.recomputing


def least_seconds(flops: float, tflops: float, utilisation: float = UTILISATION) -> float:
    """Time of so many operations. Sampling token by token is bound by memory, not by arithmetic, so it takes longer."""
    return flops / (tflops * 1e12 * utilisation)


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
    meta: MetaModel,
    work: Workload,
    *,
    checkpointing: bool,
    is_gpu: bool,
    rollouts: Rollouts | None = None,
    teacher: MetaModel | None = None,
) -> StepFlops:
    """Two operations for each weight and token forward, two for the gradient of the input, two for the weight's own.

    6 N a token where all N weights are trained (Kaplan et al. 2020, section 2.1), 4 N where frozen weights are only
    passed through, as under LoRA, and 2 N more where the forward pass runs again. Attention's quadratic term and the
    mask decoder are left out.

    Args:
        meta: the model.
        work: of one process.
        checkpointing: whether the layers' forward pass is run again.
        is_gpu: whether the LM head takes the completion's tokens alone (see `activations`).
        rollouts: what is sampled and scored; None in supervised training.
        teacher: the live teacher of supervised training.
    """
    layers, head = _layer_flops(meta), _head_flops(meta)
    completions = work.rows * work.completion_tokens
    scored = completions if is_gpu else work.tokens
    media, media_backward = _tower_flops(meta, work)
    forward = layers.passed * work.tokens + head.passed * scored + media
    backward = layers.backward * work.tokens + head.backward * scored + media_backward
    again = checkpointing * layers.passed * work.tokens + head.passed * scored
    sampling, scoring, times = 0.0, 0.0, float(work.num_steps)
    if teacher is not None:
        scoring = _teacher_flops(teacher, work)
    if rollouts is not None:
        times /= rollouts.num_iterations
        scoring = rollouts.num_scored * forward
        if rollouts.samples_here:  # with a cache, each token passes once
            sampling = layers.passed * work.tokens + head.passed * completions + media
    return StepFlops(
        sampling=times * sampling,
        scoring=times * scoring,
        training=work.num_steps * (forward + backward),
        recomputing=work.num_steps * again,
    )


@dataclasses.dataclass(frozen=True)
class _TokenFlops:
    """Operations of one token in matrices that it is multiplied by."""

    passed: int
    backward: int


def _layer_flops(meta: MetaModel) -> _TokenFlops:
    parameters = list(meta.base.get_decoder().layers.parameters())
    passed = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return _TokenFlops(2 * passed, 2 * (passed + trained))


def _head_flops(meta: MetaModel) -> _TokenFlops:
    """PEFT keeps the original beside the copy that is trained; a token passes one of the two."""
    head = meta.base.get_output_embeddings()
    is_trained = any(p.requires_grad for p in head.parameters())
    return _TokenFlops(2 * head.weight.numel(), 2 * (1 + is_trained) * head.weight.numel())


def _teacher_flops(teacher: MetaModel, work: Workload) -> float:
    """It reads the prompts, a few words after them, and has no use for the LM head."""
    return _layer_flops(teacher).passed * work.rows * work.prompt_tokens + _tower_flops(teacher, work)[0]


def _tower_flops(meta: MetaModel, work: Workload) -> tuple[float, float]:
    """Forward and backward operations of the towers."""
    forward = backward = 0.0
    for name, tokens in (("visual", work.patches), ("audio_tower", work.mels / 2)):
        parameters = list(getattr(meta.base, name).parameters())
        passed = 2 * sum(p.numel() for p in parameters) * tokens
        forward += passed
        backward += 2 * passed * any(p.requires_grad for p in parameters)
    return forward, backward
