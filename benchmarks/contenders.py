"""The two trainers and the parts of their steps: `stock` is TRL's GRPOTrainer, `aurora` is ours.

Both sample token by token, but the tokens are dictated: the same random words, then `[SEG]` and a full stop, because a
random model never emits a `[SEG]`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from aurora_rl.trainers import grounded_rollouts, grpo
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from benchmarks.memory import peak_memory
from benchmarks.timing import Seconds, Stopwatch
from benchmarks.workload import ImageEncoder, Policy, StepShape, aurora_dataset, stock_dataset

#: Parts of a step, as the table shows them.
PARTS = ("prompts", "generation", "scoring", "reward", "forward", "backward", "optimizer", "sync", "rest")
#: Parts that a step has for its masks alone. `mask states` is the language model's forward pass that our trainer adds,
#: if TRL scores no old log-probabilities and sampling has not recorded all states at `[SEG]`; no step here needs it.
#: Recording those states counts as generation. `mask decode` holds the head, resizing and the mask loss.
MASK_PARTS = ("mask states", "mask decode", "mask backward", "mask reward")


def length_reward(completions: list, **columns: Any) -> list[float]:
    """Return the number of characters of each completion, a reward that costs nothing."""
    return [float(len(completion[0]["content"])) for completion in completions]


class _Dictation(LogitsProcessor):
    """Dictates the same completions to every trainer: random words, then `[SEG]` and a full stop.

    Args:
        tokenizer: tokenizer, whose plain tokens are drawn.
        ending: ids of the last two tokens.
        completion_length: number of tokens of a completion.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ending: tuple[int, int], completion_length: int) -> None:
        self.words = sorted(set(tokenizer.get_vocab().values()) - tokenizer.added_tokens_decoder.keys())
        self.ending, self.completion_length = ending, completion_length
        self.position = 0
        self.completion_ids = np.empty((0, completion_length), dtype=np.int64)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.position == 0:
            self.completion_ids = np.random.default_rng(0).choice(self.words, (len(scores), self.completion_length))
            self.completion_ids[:, -2:] = self.ending
        token_ids = torch.tensor(self.completion_ids[:, self.position, None], device=scores.device)
        self.position += 1
        return torch.full_like(scores, -torch.inf).scatter(1, token_ids, 0.0)


@dataclasses.dataclass(frozen=True)
class Step:
    """Time and memory of one step.

    Attributes:
        parts: seconds of each part.
        peak_gb: highest memory in GB, without what was in use before the step.
        num_forwards: number of forward passes of the language model on whole sequences.
    """

    parts: dict[str, Seconds]
    peak_gb: float
    num_forwards: int

    def seconds(self, parts: Sequence[str], clock: str) -> float:
        """Return the seconds of some parts together."""
        return sum(self.parts.get(part, Seconds()).on(clock) for part in parts)


@dataclasses.dataclass
class Contender:
    """A trainer that is ready to step, with a stopwatch in it."""

    trainer: GRPOTrainer
    stopwatch: Stopwatch
    num_forwards: int = 0

    def step(self) -> Step:
        """Sample a group for each row of the data set, and train on it `num_iterations` times."""
        trainer, self.num_forwards = self.trainer, 0
        rows = [row for row in trainer.train_dataset for _ in range(trainer.num_generations)]
        accumulated = trainer.args.gradient_accumulation_steps
        with peak_memory() as peak, self.stopwatch.run():
            for number in range(1, trainer.num_iterations * trainer.args.steps_per_generation + 1):
                is_last = number % accumulated == 0
                trainer.accelerator.gradient_state._set_sync_gradients(is_last)  # as in transformers' loop
                trainer.model.train()
                trainer.training_step(trainer.model_wrapped, rows, None)
                if is_last:
                    with self.stopwatch.part("optimizer"):
                        trainer.optimizer.step()
                        trainer.optimizer.zero_grad()
        return Step(dict(self.stopwatch.parts), peak.gigabytes, self.num_forwards)

    def count_forward(self, *_: Any) -> None:
        """Count a forward pass, as a hook of the language model; those of `generate` are not counted."""
        self.num_forwards += self.stopwatch.running in ("scoring", "mask states", "forward")


def make_stock(policy: Policy, shape: StepShape, stopwatch: Stopwatch, *, num_iterations: int = 1) -> Contender:
    """Build TRL's trainer, with the reward that costs nothing."""
    trainer = GRPOTrainer(
        model=policy.copy(),
        reward_funcs=[length_reward],
        args=GRPOConfig(**_options(shape, num_iterations)),
        train_dataset=stock_dataset(shape),
        processing_class=policy.processor,
    )
    return ready(trainer, _ending(policy), stopwatch)


def make_aurora(policy: Policy, shape: StepShape, stopwatch: Stopwatch, *, num_iterations: int = 1) -> Contender:
    """Build our trainer, with that reward and the mask IoU, and the mask loss on all completions."""
    trainer = AuroraGRPOTrainer(
        model=policy.copy(),
        reward_funcs=[length_reward, "reward_fns.mask_iou:mask_iou_reward"],
        args=AuroraGRPOConfig(mask_loss_on="all", **_options(shape, num_iterations)),
        encode=ImageEncoder(policy, shape),
        train_dataset=aurora_dataset(),
        processing_class=policy.processor,
    )
    trainer._passes.sharing.is_tried = True  # a comparison of the first batch alone
    return ready(trainer, _ending(policy), stopwatch)


def make_words(policy: Policy, shape: StepShape, stopwatch: Stopwatch) -> Contender:
    """Build our trainer for a task that is answered in words alone, with a policy without a head."""
    trainer = AuroraGRPOTrainer(
        model=policy.copy(),
        reward_funcs=[length_reward],
        args=AuroraGRPOConfig(
            skip_zero_advantages=False, **_options(shape, num_iterations=1)
        ),  # TRL's passes them, too
        encode=ImageEncoder(policy, shape),
        train_dataset=aurora_dataset(),
        processing_class=policy.processor,
    )
    trainer._passes.sharing.is_tried = True
    return ready(trainer, _ending(policy), stopwatch)


def _options(shape: StepShape, num_iterations: int) -> dict[str, Any]:
    return {
        "output_dir": tempfile.gettempdir(),
        "max_steps": 1,
        "per_device_train_batch_size": shape.num_generations,
        "num_generations": shape.num_generations,
        "num_iterations": num_iterations,
        "max_completion_length": shape.completion_length,
        "generation_kwargs": {"min_new_tokens": shape.completion_length},
        "beta": 0.0,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _ending(policy: Policy) -> tuple[int, int]:
    """Return the ids of `[SEG]` and the full stop; without a head, of two full stops."""
    full_stop = policy.processor.tokenizer.convert_tokens_to_ids(".")
    return full_stop if policy.seg_token_id is None else policy.seg_token_id, full_stop


def ready(trainer: Any, ending: tuple[int, int], stopwatch: Stopwatch) -> Contender:
    """Train one step, which makes the optimiser and warms up, and then install the stopwatch.

    Args:
        trainer: TRL's GRPOTrainer or ours.
        ending: ids of the last two tokens of each completion.
        stopwatch: stopwatch that counts the trainer's parts.
    """
    model, length = trainer.accelerator.unwrap_model(trainer.model), trainer.max_completion_length
    tokenizer = trainer.processing_class.tokenizer
    generate = model.generate
    model.generate = lambda *args, **kwargs: generate(
        *args, logits_processor=LogitsProcessorList([_Dictation(tokenizer, ending, length)]), **kwargs
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer._step = 0  # the next step samples rollouts
    _watch_parts(trainer, stopwatch)
    if isinstance(trainer, AuroraGRPOTrainer) and trainer.encode.task.head is not None:
        _watch_mask_parts(trainer, stopwatch)
    contender = Contender(trainer, stopwatch)
    trainer.accelerator.unwrap_model(trainer.model).get_decoder().register_forward_pre_hook(contender.count_forward)
    return contender


def _watch_parts(trainer: Any, stopwatch: Stopwatch) -> None:
    """Count the parts that both trainers have; `scoring` holds TRL's forward passes without gradient."""

    def forward_part() -> str:
        return "forward" if torch.is_grad_enabled() else "scoring"

    has_masks = isinstance(trainer, AuroraGRPOTrainer) and trainer.encode.task.head is not None
    stopwatch.watch(trainer, "_generate_and_score_completions", "prompts")
    stopwatch.watch(trainer, "_generate_single_turn", "generation")
    stopwatch.watch(trainer, "_calculate_rewards", "reward")
    stopwatch.watch(trainer, "_get_per_token_logps_and_entropies", forward_part)
    stopwatch.watch(trainer, "_compute_loss", "forward")
    stopwatch.watch(trainer.accelerator, "backward", "mask backward" if has_masks else "backward")
    stopwatch.watch(trainer.accelerator, "gather", "sync")


def _watch_mask_parts(trainer: AuroraGRPOTrainer, stopwatch: Stopwatch) -> None:
    """Count the parts that our trainer has for masks alone."""
    head = trainer.accelerator.unwrap_model(trainer.model).seg_head
    _mark_end_of_mask_backward(head, stopwatch)
    stopwatch.watch(trainer._passes, "_by_a_pass_of_their_own", "mask states")
    stopwatch.watch(trainer._passes, "_from_states", "mask decode")
    stopwatch.watch(head, "forward", "mask decode")
    stopwatch.watch(head, "rows", "mask decode")
    trainer.reward_funcs[1] = stopwatch.watched(trainer.reward_funcs[1], "mask reward")


@contextlib.contextmanager
def mask_functions_watched(stopwatch: Stopwatch) -> Iterator[None]:
    """Count the functions that our trainer's modules call for masks alone, while the block runs."""
    parts = [
        (grounded_rollouts, "collate_frames", "mask decode"),
        (grpo, "head_loss", "mask decode"),
        (grpo, "reward_rows", "mask reward"),
    ]
    unwatched = [(module, name, getattr(module, name)) for module, name, _ in parts]
    try:
        for module, name, part in parts:
            stopwatch.watch(module, name, part)
        yield
    finally:
        for module, name, function in unwatched:
            setattr(module, name, function)


def _mark_end_of_mask_backward(head: torch.nn.Module, stopwatch: Stopwatch) -> None:
    """End the masks' part of a backward pass at the head's input: autograd runs in reverse order."""

    def mark(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            args[0].register_hook(lambda _gradient: stopwatch.switch("backward"))

    head.register_forward_pre_hook(mark)
