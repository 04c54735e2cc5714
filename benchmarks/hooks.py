"""Hooks that gradient checkpointing adds to the input layers during a GRPO run, and their cost a token.

    python benchmarks/hooks.py --steps 60

A tiny model with LoRA and frozen towers is trained twice: with transformers' own `enable_input_require_grads`, which
adds hooks to every part's input layer after each generation, and with ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from unittest import mock

import torch
from peft import LoraConfig
from transformers import PreTrainedModel, PrinterCallback

from aurora_rl.assembly.options import OptionParser
from aurora_rl.models.frozen_parts import FrozenPartsMixin
from aurora_rl.models.loading import freeze
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from benchmarks.timing import now
from benchmarks.workload import ImageEncoder, StepShape, aurora_dataset, build_policy

SHAPE = StepShape(
    num_generations=2, num_frames=2, completion_length=4, hidden_size=64, num_layers=2, num_heads=2, frame_size=32
)
CALLS = 200


@dataclasses.dataclass(frozen=True)
class Hooks:
    """Forward hooks on the input layers of language model and towers after a run, and their cost.

    Attributes:
        count: number of hooks on all three layers.
        microseconds: processor time of embedding one token.
    """

    count: int
    microseconds: float


def measure_hooks(steps: int) -> dict[str, Hooks]:
    """Train `steps` steps with the methods of transformers and with ours."""
    with _as_transformers():
        before = _train(steps)
    return {"transformers": before, "ours": _train(steps)}


@contextlib.contextmanager
def _as_transformers() -> Iterator[None]:
    """Replace our methods by those of transformers while the block runs."""
    names = ("enable_input_require_grads", "gradient_checkpointing_enable")
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(FrozenPartsMixin, name, getattr(PreTrainedModel, name)))
        yield


def _train(steps: int) -> Hooks:
    policy = build_policy(SHAPE)
    model = policy.copy()
    freeze(model, list(Qwen2_5OmniFamily.tower_names))
    trainer = AuroraGRPOTrainer(
        model=model,
        reward_funcs=["reward_fns.format:format_reward"],
        args=AuroraGRPOConfig(
            output_dir=tempfile.mkdtemp(),
            max_steps=steps,
            per_device_train_batch_size=SHAPE.num_generations,
            num_generations=SHAPE.num_generations,
            max_completion_length=SHAPE.completion_length,
            gradient_checkpointing=True,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        encode=ImageEncoder(policy, SHAPE),
        train_dataset=aurora_dataset(),
        processing_class=policy.processor,
        peft_config=LoraConfig(
            r=4,
            target_modules=Qwen2_5OmniFamily.lora_target_modules,
            modules_to_save=["seg_head"],
            task_type="CAUSAL_LM",
        ),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    parts = (model.get_decoder(), model.visual, model.audio_tower)
    layers = [part.get_input_embeddings() for part in parts]
    return Hooks(sum(len(layer._forward_hooks) for layer in layers), _microseconds(layers[0]))


@torch.no_grad()
def _microseconds(embedding: torch.nn.Module) -> float:
    token = torch.zeros(1, 1, dtype=torch.long)
    start = now()
    for _ in range(CALLS):
        embedding(token)
    return 1e6 * (now() - start).on("cpu") / CALLS


def main() -> None:
    """Measure, and print a table."""
    parser = OptionParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="number of optimiser steps of each run")
    steps = parser.parse_args().steps
    print(f"| after {steps} steps | hooks on the three input layers | one token embedded, µs |\n| --- | --- | --- |")
    for name, hooks in measure_hooks(steps).items():
        print(f"| {name} | {hooks.count} | {hooks.microseconds:.0f} |")


if __name__ == "__main__":
    main()
