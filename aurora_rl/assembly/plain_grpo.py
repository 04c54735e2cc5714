"""What `recipes/grpo_by_hand.py` leaves out of GRPO, so that the algorithm can be read, and what it refuses therefore.

- What changes where the numbers are computed, not which: processes, GPUs, bfloat16, LoRA, vLLM, gradient accumulation,
  reading ahead, projecting onto a part of the vocabulary at a time. It is one process on the CPU, in float32.
- Other losses, samplers and tasks: a key that asks for one is refused (`PLAIN`), or its task has no masks.
- Evaluation, logs, checkpoints, checks before torch is imported, and the choice of optimiser and schedule: keys about
  these are ignored. It is AdamW at a constant rate, with weight decay on biases too, and nothing is saved.
- Async rewards, TRL's columns (`trainer_state`, `log_metric`, `log_extra`), and completions that no reward applies to:
  the trainer gives them no advantage, there their reward is 0.
"""

from collections.abc import Mapping
from typing import Any

#: Keys that would ask for another algorithm, with the only value that is known there.
PLAIN: dict[str, Any] = {
    **{"loss_type": "grpo", "importance_sampling_level": "token", "use_bias_correction_kl": True},
    **{"epsilon_high": None, "delta": None, "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None},
    **{"entropy_coef": 0.0, "use_adaptive_entropy": False, "mask_truncated_completions": False},
    **{"scale_rewards": "group", "multi_objective_aggregation": "sum_then_normalize", "sync_ref_model": False},
    **{"top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0, "generation_kwargs": None},
    **{"gradient_accumulation_steps": 1, "steps_per_generation": 1, "use_vllm": False, "use_peft": False},
    **{"environment_factory": None},
}


def check_plain(options: Mapping[str, Any]) -> None:
    """Check that no option asks for what is left out.

    Raises:
        ValueError: naming the first such option and its value.
    """
    if other := [name for name, value in PLAIN.items() if options[name] != value]:
        raise ValueError(f"{other[0]} {options[other[0]]!r} is not known here, but in recipes/grpo.py")
    if options["max_steps"] < 1 or options["mask_loss_on"] == "off":
        raise ValueError("max_steps below 1 and mask_loss_on 'off' are not known here, but in recipes/grpo.py")
