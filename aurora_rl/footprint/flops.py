"""Floating-point operations of a training step, and their time at an assumed utilisation."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from torch import nn

from aurora_rl.footprint.launch import Launch
from aurora_rl.footprint.parameters import MetaModel
from aurora_rl.footprint.workload import Workload
from aurora_rl.models.mllm import TowerPass
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig

#: Dense bfloat16 peaks in TFLOP/s, from the makers' data sheets, by a part of the device's name.
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0}
UTILISATION = 0.4


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """Operations of one process in one optimiser step.

    Attributes:
        sampling: operations of sampling rollouts.
        scoring: operations of forward passes without gradient (old and reference log-probabilities, the rollouts'
            masks; a live teacher).
        training: operations of forward and backward passes.
        recomputing: operations that the backward pass repeats: those of checkpointed layers, and always those of TRL's
            LM head, which keeps no logits.
    """

    sampling: float
    scoring: float
    training: float
    recomputing: float

    @property
    def total(self) -> float:
        return self.sampling + self.scoring + self.training + self.recomputing


def least_seconds(flops: float, tflops: float, utilisation: float = UTILISATION) -> float:
    """Return the seconds of some operations; sampling takes longer, since memory bounds it and not arithmetic."""
    return flops / (tflops * 1e12 * utilisation)


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """The passes over rollouts beside the training on them.

    Attributes:
        samples_here: whether this process's device samples; with a vLLM server it does not.
        num_scored: number of forward passes without gradient over each rollout.
        num_iterations: number of times that each rollout is trained on.
        by_engine: whether vLLM samples, whose towers compute nothing for the policy's own passes.
        reads_prompts_once: whether sampling reads a prompt once for all of its completions (`models.prefill`). Of
            vLLM, whose caches may do as much, every row is counted.
    """

    samples_here: bool
    num_scored: int
    num_iterations: int
    by_engine: bool = False
    reads_prompts_once: bool = False

    @classmethod
    def of(cls, args: AuroraGRPOConfig, launch: Launch, *, head: str | None) -> Self:
        """Read from the arguments how the trainer makes rollouts.

        Their masks need a pass of their own if the scoring pass gives none and sampling records no states: vLLM gives
        no states, and a single process cannot run sharded weights. A task without a head, None, needs none.
        """
        records_states = not (args.use_vllm or launch.zero_stage == 3)
        needs_mask_pass = head is not None and not (args.masks_share_forward or records_states)
        return cls(
            samples_here=not args.use_vllm or args.vllm_mode == "colocate",
            num_scored=args.old_logps_are_computed + bool(args.beta) + needs_mask_pass,
            num_iterations=args.num_iterations,
            by_engine=args.use_vllm,
            reads_prompts_once=args.share_prompts and not args.use_vllm,
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
    """Count two operations a weight and token forward, two for the input's gradient, two for the weight's gradient.

    Of a layer with experts a token passes those alone that it is sent to. This is 6 N a token if all N weights are
    trained (Kaplan et al. 2020, section 2.1), 4 N if the weights are frozen and gradients only pass through, as under
    LoRA, and 2 N more if the forward pass runs again. Attention's quadratic term and the mask decoder are not counted.
    Frozen towers run in the first pass over rollouts alone, once for each clip of a generation batch. Training and
    scoring meet a shared prompt once, and so does sampling where `rollouts` says so.

    Args:
        meta: the model.
        work: sizes of one pass of one process.
        checkpointing: whether the layers' forward pass runs again.
        is_gpu: whether the LM head scores only the completion's tokens (see `activations`).
        rollouts: passes over rollouts; None in supervised training.
        teacher: the live teacher of supervised training.
    """
    layers, head = layer_flops(meta), _head_flops(meta)
    completions = work.rows * work.completion_tokens
    scored = completions if is_gpu else work.tokens
    media, media_backward = _tower_flops(meta, work)
    # The distinct prompts of a generation batch, as a share of one pass over it.
    prompts = work.generated_clips * work.rows / work.generated_rows if rollouts else float(work.clips)
    media_once = media * prompts / work.clips
    forward = layers.passed * work.tokens + head.passed * scored
    backward = layers.backward * work.tokens + head.backward * scored + media_backward
    again = checkpointing * layers.passed * work.tokens + head.passed * scored
    sampling, scoring, times = 0.0, 0.0, float(work.num_steps)
    training = work.num_steps * (forward + backward)
    if rollouts is None or media_backward:
        training += work.num_steps * media
    if teacher is not None:  # it reads the prompts and a few words more, without the LM head
        scoring = layer_flops(teacher).passed * work.rows * work.prompt_tokens + _tower_flops(teacher, work)[0]
    if rollouts is not None:
        times /= rollouts.num_iterations
        scoring = rollouts.num_scored * forward
        if media_backward:
            scoring += rollouts.num_scored * media
        elif rollouts.by_engine and rollouts.num_scored:
            scoring += media_once
        elif rollouts.by_engine:
            training += times * media_once
        if rollouts.samples_here:  # with a cache each token passes once
            read = prompts if rollouts.reads_prompts_once else work.rows
            tokens = read * work.prompt_tokens + completions
            sampling = layers.passed * tokens + head.passed * completions + media_once
    return StepFlops(
        sampling=times * sampling,
        scoring=times * scoring,
        training=training,
        recomputing=work.num_steps * again,
    )


@dataclasses.dataclass(frozen=True)
class TokenFlops:
    """Operations of one token in some matrices.

    Attributes:
        passed: operations of the forward pass.
        backward: operations of the backward pass.
    """

    passed: float
    backward: float


def layer_flops(meta: MetaModel) -> TokenFlops:
    """Count the operations of a token in the language model's layers."""
    config = meta.base.config.get_text_config()
    passed = trained = 0.0
    for name, parameter in meta.base.get_decoder().layers.named_parameters():
        active = parameter.numel() * (_share_of_experts(config) if "experts" in name.split(".") else 1)
        passed += active
        trained += active * parameter.requires_grad
    return TokenFlops(2 * passed, 2 * (passed + trained))


def _share_of_experts(config: Any) -> float:
    """Return the share of a layer's experts that a token is sent to."""
    chosen = getattr(config, "num_experts_per_tok", None) or getattr(config, "top_k_experts", None)
    return chosen / config.num_experts


def _head_flops(meta: MetaModel) -> TokenFlops:
    """Count one LM head: PEFT keeps the original beside the trained copy, and a token passes one of the two."""
    head = meta.base.get_output_embeddings()
    is_trained = any(p.requires_grad for p in head.parameters())
    return TokenFlops(2 * head.weight.numel(), 2 * (1 + is_trained) * head.weight.numel())


def _tower_flops(meta: MetaModel, work: Workload) -> tuple[float, float]:
    """Return the forward and backward operations of the towers; tables of embeddings are looked up, not multiplied."""
    forward = backward = 0.0
    for name, tower in work.towers.items():
        module = meta.base.get_submodule(name)
        tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
        weights = {name: p for name, p in module.named_parameters() if id(p) not in tables}
        passed = 2 * sum(p.numel() * _tokens_of(name, tower) for name, p in weights.items())
        forward += passed
        backward += 2 * passed * any(p.requires_grad for p in weights.values())
    return forward, backward


def _tokens_of(name: str, tower: TowerPass) -> float:
    """Return how many tokens a tower's weight meets; mergers, those for deeper layers too, read merged ones."""
    return tower.tokens / (tower.merged if "merger" in name.split(".")[0] else 1)
