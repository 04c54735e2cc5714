"""Arguments of `AuroraGRPOTrainer` beside TRL's own, and the method's defaults for TRL's."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from trl import GRPOConfig

from aurora_rl.assembly.sampling import read_engine_kwargs
from aurora_rl.logs import is_terminal
from aurora_rl.trainers.cpu_device import CPUDeviceMixin
from aurora_rl.trainers.interruption import STOP_GRACE_HELP, STOP_GRACE_S
from aurora_rl.trainers.router_loss import ROUTER_LOSS_HELP
from aurora_rl.trainers.watched import WatchedMixin

#: Arguments of transformers' `GenerationConfig` and vLLM's `SamplingParams` that would end completions elsewhere.
ENDS = ("eos_token_id", "forced_eos_token_id", "ignore_eos", "stop", "stop_strings", "stop_token_ids")
#: What `enumerate_answers` needs: it samples nothing and has a loss of its own, over the rewards as they are.
EXACT = {
    "beta": 0.0,
    "scale_rewards": "none",
    "multi_objective_aggregation": "sum_then_normalize",
    "use_vllm": False,
    "environment_factory": None,
    "router_aux_loss_coef": 0.0,
    "top_entropy_quantile": 1.0,
    "use_adaptive_entropy": False,
}
OF_OTHER_GROUPS = "by which groups that stay would get other advantages from those that come"
#: What `dynamic_sampling_rounds` does not work with, by option: the value, and why.
NOT_REFILLED = {
    "enumerate_answers": (True, "which samples nothing"),
    "one_step_off_policy": (True, "whose server samples the next batch by then, from the policy of this one"),
    "scale_rewards": ("batch", OF_OTHER_GROUPS),
    "multi_objective_aggregation": ("normalize_then_sum", OF_OTHER_GROUPS),
}
MASK_LOSS_ON = ("all", "correct_only", "off")


def _option(default: float | str | bool | None, help_text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help_text})


@dataclasses.dataclass
class AuroraGRPOConfig(WatchedMixin, CPUDeviceMixin, GRPOConfig):
    """TRL's `GRPOConfig` plus the mask loss, with the method's values for what the paper's stage 3 sets.

    Attributes:
        mask_loss_on: completions with a `[SEG]` that have a mask loss: "all" (the authors' choice), "correct_only"
            (those with the right category; on a wrong answer the mask loss would teach the true masks for another
            object), or "off".
        mask_loss_weight: weight of the mask loss beside the policy loss.
        mask_bce_weight: weight of the masks' binary cross-entropy within the mask loss.
        mask_dice_weight: weight of the masks' Dice loss within the mask loss.
        dice_variant: formula of the Dice loss, see `losses.dice_loss`.
        share_prompts: whether a group's prompt goes through the language model once for all its completions: where they
            are sampled (`models.prefill`), and where they are scored and trained on (`models.shared_prefix`), if that
            computes the same.
        skip_zero_advantages: whether completions without an advantage, those of a group of equal rewards above all, are
            left out of the training pass where they give no gradient (`trainers.taught_rows`).
        dynamic_sampling_rounds: largest number of times that further prompts are sampled for a generation batch, whose
            groups of equal rewards then give their places to others (`trainers.dynamic_sampling`); 0 for none.
        enumerate_answers: whether each row's answers, which its task must be able to list, are trained on all together,
            each weighed by its probability, and none is sampled (`trainers.enumerated_answers`); `num_generations` is
            their number, and `entropy_coef` the weight of the answers' entropy.
        router_aux_loss_coef: coefficient of the router loss of a model with experts; 0 trains without it. None, in YAML
            null, takes the checkpoint's own, which TRL does by default.
        environment_factory: what makes a rollout's environment, whose methods are tools that the policy may call, see
            `rollout.environments`; `max_tool_calling_iterations` limits the turns with calls. None for no tools.
        profile_steps: number of steps after the first whose parts are timed and whose operations are traced, into
            `output_dir/profile` (`trainers.step_profile`); 0 for none.
        reward_timeout_s: seconds that an async reward function may take for one batch.
        one_step_off_policy: whether a vLLM server samples the next generation batch while the present one is trained
            on, with the weights that this training begins with (`trainers.off_policy`).
        vllm_engine_kwargs: further arguments of `vllm.LLM` in colocate mode, such as `{"kv_cache_memory_bytes": 2e9}`.
        vllm_request_timeout_s: seconds that the vLLM server may take for one request.
        stop_grace_s: seconds from SIGTERM to the end of a step, see `AuroraSFTConfig`.

    Raises:
        ValueError: if `mask_loss_on` is unknown, a number of steps or rounds is negative, `generation_kwargs` end
            completions, `enumerate_answers`, `dynamic_sampling_rounds` or vLLM's options do not work with others, or a
            checkpoint would be written inside a generation batch.
    """

    mask_loss_on: str = _option("correct_only", "Completions that teach masks: all, correct_only or off.")
    mask_loss_weight: float = _option(1.0, "Weight of the mask loss beside the policy loss.")
    mask_bce_weight: float = _option(2.0, "Weight of the binary cross-entropy within the mask loss.")
    mask_dice_weight: float = _option(0.5, "Weight of the Dice loss within the mask loss.")
    dice_variant: str = _option("aurora", "Formula of the Dice loss: aurora or lisa.")
    share_prompts: bool = _option(True, "Put a group's prompt through the model once, where that computes the same.")
    skip_zero_advantages: bool = _option(True, "Leave completions without advantage out where they teach nothing.")
    dynamic_sampling_rounds: int = _option(
        0, "Largest number of times that groups of equal rewards are replaced by further prompts'."
    )
    enumerate_answers: bool = _option(False, "Train on all answers that a row can have, instead of samples.")
    router_aux_loss_coef: float | None = _option(0.0, ROUTER_LOSS_HELP)
    environment_factory: str | None = _option(
        None, "Tools that rollouts may call: a class as 'package.module:Name' or 'path/to/mine.py:Name'."
    )
    profile_steps: int = _option(0, "Number of steps after the first that are timed by part and traced.")
    reward_timeout_s: float = _option(60.0, "Seconds that an async reward function may take for a batch.")
    one_step_off_policy: bool = _option(
        False, "Let the vLLM server sample the next batch while this one is trained on."
    )
    vllm_engine_kwargs: dict[str, Any] | str | None = _option(None, "Further arguments of vllm.LLM, as JSON.")
    vllm_request_timeout_s: float = _option(600.0, "Seconds that the vLLM server may take for one request.")
    stop_grace_s: float = _option(STOP_GRACE_S, STOP_GRACE_HELP)

    loss_type: str = _option("grpo", "Formula of the policy loss, one that TRL knows.")
    beta: float = _option(0.04, "Coefficient of the KL divergence from the reference model.")
    num_generations: int = _option(8, "Number of completions sampled for a prompt (G).")
    max_completion_length: int = _option(
        512, "Largest number of tokens of a completion; the authors' 150 cut their own answers."
    )

    def __post_init__(self) -> None:
        if self.disable_tqdm is None:  # type: ignore[has-type]
            self.disable_tqdm = not is_terminal()
        # TRL would drop the columns that name the media files.
        self.remove_unused_columns = False
        super().__post_init__()
        if self.mask_loss_on not in MASK_LOSS_ON:
            raise ValueError(f"mask_loss_on={self.mask_loss_on!r}: choose one of {MASK_LOSS_ON}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: rollouts are drawn, so it must be a number above 0")
        if self.profile_steps < 0:
            raise ValueError(f"profile_steps={self.profile_steps}: give a number of steps, 0 for none")
        if named := sorted(set(self.generation_kwargs or {}) & set(ENDS)):
            raise ValueError(
                f"generation_kwargs has {', '.join(named)}, but masks, rewards and evaluation end a completion by one "
                "rule: at the tokenizer's eos_token and what the checkpoint's generation_config.json names. Drop it, "
                "or name the token there as eos_token_id"
            )
        if self.enumerate_answers:
            self._check_enumeration()
        if self.dynamic_sampling_rounds:
            self._check_dynamic_sampling()
        if self.one_step_off_policy:
            self._check_off_policy()
        if self.use_vllm:
            if self.vllm_model_impl != "vllm":
                raise ValueError(
                    f"vllm_model_impl={self.vllm_model_impl!r}: only 'vllm' reads frames and sound as trained"
                )
            token_modes = ("token_truncate", "token_mask")
            mode = self.vllm_importance_sampling_mode
            if self.loss_type == "vespo" and self.vllm_importance_sampling_correction and mode not in token_modes:
                raise ValueError(
                    f"loss_type 'vespo' needs vllm_importance_sampling_mode in {token_modes}, not {mode!r}"
                )
        self._check_checkpoint_boundary()

    def ends_generation_batch(self, step: int) -> bool:
        """Return whether a generation batch ends after this optimiser step: TRL resumes with an empty buffer."""
        return step * self.gradient_accumulation_steps % (self.steps_per_generation * self.num_iterations) == 0

    @property
    def old_logps_are_computed(self) -> bool:
        """True if TRL scores the rollouts before the rewards."""
        generate_every = self.steps_per_generation * self.num_iterations
        is_corrected = self.use_vllm and self.vllm_importance_sampling_correction
        return is_corrected or self.gradient_accumulation_steps % generate_every != 0

    @property
    def masks_share_forward(self) -> bool:
        """True if the rollouts' masks come from the forward pass that scores them.

        If TRL masks truncated completions, that pass does not attend to them, and a pass of its own decodes all masks.
        """
        return self.old_logps_are_computed and not self.mask_truncated_completions

    @property
    def engine_kwargs(self) -> dict[str, Any]:
        """The dictionary of `vllm_engine_kwargs`."""
        return read_engine_kwargs(self.vllm_engine_kwargs)

    def _check_enumeration(self) -> None:
        """Raise a ValueError if an option is set that the exact objective does not read."""
        for name, needed in EXACT.items():
            if (given := getattr(self, name)) != needed:
                raise ValueError(
                    f"enumerate_answers needs {name} {needed!r}, not {given!r}: its loss knows nothing else"
                )
        if self.per_device_train_batch_size % self.num_generations:
            raise ValueError(
                f"per_device_train_batch_size is {self.per_device_train_batch_size}: enumerate_answers needs whole "
                f"groups on each device, a multiple of num_generations, {self.num_generations}"
            )

    def _check_dynamic_sampling(self) -> None:
        """Raise a ValueError if batches cannot be refilled group by group."""
        if self.dynamic_sampling_rounds < 0:
            raise ValueError(
                f"dynamic_sampling_rounds={self.dynamic_sampling_rounds}: give a number of rounds, 0 for none"
            )
        for name, (value, reason) in NOT_REFILLED.items():
            if getattr(self, name) == value:
                raise ValueError(
                    f"dynamic_sampling_rounds does not work with {name} {value!r}, {reason}: leave one of them out"
                )
        rows = self.per_device_train_batch_size * self.steps_per_generation
        if rows % self.num_generations:
            raise ValueError(
                f"per_device_train_batch_size x steps_per_generation is {rows}: dynamic_sampling_rounds needs whole "
                f"groups on each device, a multiple of num_generations, {self.num_generations}"
            )

    def _check_off_policy(self) -> None:
        """Raise a ValueError if nobody could sample meanwhile, or nothing would correct what is sampled."""
        if not self.use_vllm or self.vllm_mode != "server":
            raise ValueError(
                "one_step_off_policy is true, but only a vLLM server samples while this process trains: set use_vllm "
                "to true and vllm_mode to server"
            )
        if not self.vllm_importance_sampling_correction:
            raise ValueError(
                "one_step_off_policy is true, but vllm_importance_sampling_correction is false: the loss would take "
                "the older policy's completions for its own. Set it to true"
            )

    def _check_checkpoint_boundary(self) -> None:
        """Raise a ValueError if a checkpoint would be written inside a generation batch."""
        steps = self.steps_per_generation * self.num_iterations / self.gradient_accumulation_steps
        if self.save_strategy == "steps":
            name, interval = "save_steps", self.save_steps
        elif self.save_strategy == "best" and self.eval_strategy == "steps":
            name, interval = "eval_steps", self.eval_steps
        else:
            return
        if 1 % steps and interval % steps:  # if every step ends a batch, so does an interval given as a fraction
            raise ValueError(
                f"{name}={interval} falls inside a generation batch, which lasts {steps:g} optimiser steps "
                "(steps_per_generation x num_iterations / gradient_accumulation_steps): a resumed run would differ. "
                f"Make it a multiple of {steps:g}"
            )

    @contextlib.contextmanager
    def changed(self, **values: Any) -> Iterator[None]:
        """Set some options to other values while the block runs."""
        given = {name: getattr(self, name) for name in values}
        try:
            for name, value in values.items():
                setattr(self, name, value)
            yield
        finally:
            for name, value in given.items():
                setattr(self, name, value)
