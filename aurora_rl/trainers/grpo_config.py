"""Arguments of `AuroraGRPOTrainer` beside TRL's own, and the method's defaults for TRL's."""

import dataclasses
from typing import Any

from trl import GRPOConfig

from aurora_rl.logs import is_terminal
from aurora_rl.trainers.cpu_device import CPUDeviceMixin

MASK_LOSS_ON = ("all", "correct_only", "off")


def _option(default: float | str | bool | None, help_text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help_text})


@dataclasses.dataclass
class AuroraGRPOConfig(CPUDeviceMixin, GRPOConfig):
    """TRL's `GRPOConfig` plus the mask loss, with the method's values for what the paper's stage 3 sets.

    Attributes:
        mask_loss_on: which completions with a `[SEG]` teach masks: "all" (the authors' choice), "correct_only" (those
            whose category is right; on wrong answers the mask loss teaches the truth's masks for another object), or
            "off".
        mask_loss_weight: weight of the mask loss beside the policy loss.
        mask_bce_weight: weight of the masks' binary cross-entropy within the mask loss.
        mask_dice_weight: weight of the masks' Dice loss within the mask loss.
        dice_variant: see `losses.dice_loss`.
        reward_timeout_s: seconds an async reward function may take for one batch.

    Raises:
        ValueError: for an unknown `mask_loss_on`, `use_vllm`, or checkpoints that would cut a generation batch.
    """

    mask_loss_on: str = _option("correct_only", f"One of {MASK_LOSS_ON}.")
    mask_loss_weight: float = _option(1.0, "Weight of the mask loss beside the policy loss.")
    mask_bce_weight: float = _option(2.0, "Weight of the masks' BCE.")
    mask_dice_weight: float = _option(0.5, "Weight of the masks' Dice loss.")
    dice_variant: str = _option("aurora", "'aurora' or 'lisa'.")
    reward_timeout_s: float = _option(60.0, "Seconds an async reward function may take.")

    loss_type: str = _option("grpo", "Loss formulation, see TRL.")
    beta: float = _option(0.04, "KL coefficient.")
    num_generations: int = _option(8, "G, completions a prompt.")
    max_completion_length: int = _option(512, "Tokens a completion may have; the authors' 150 cut their own answers.")

    def __post_init__(self) -> None:
        if self.disable_tqdm is None:  # type: ignore[has-type]
            self.disable_tqdm = not is_terminal()
        # Media are read by the columns that TRL would drop.
        self.remove_unused_columns = False
        super().__post_init__()
        if self.mask_loss_on not in MASK_LOSS_ON:
            raise ValueError(f"mask_loss_on={self.mask_loss_on!r}: choose one of {MASK_LOSS_ON}")
        if self.use_vllm:
            raise ValueError("use_vllm is not supported yet for audio + video prompts: set use_vllm to false")
        self._check_checkpoint_boundary()

    def _check_checkpoint_boundary(self) -> None:
        """TRL resumes with an empty generation buffer, so a checkpoint must fall where one ends."""
        steps = self.steps_per_generation * self.num_iterations / self.gradient_accumulation_steps
        if self.save_strategy == "steps":
            name, interval = "save_steps", self.save_steps
        elif self.save_strategy == "best" and self.eval_strategy == "steps":
            name, interval = "eval_steps", self.eval_steps
        else:
            return
        if 1 % steps and interval % steps:  # where every step ends a batch, a fraction of the run does too
            raise ValueError(
                f"{name}={interval} falls inside a generation batch, which lasts {steps:g} optimiser steps "
                "(steps_per_generation x num_iterations / gradient_accumulation_steps): a resumed run would differ. "
                f"Make it a multiple of {steps:g}"
            )
