"""Refuses what reentrant gradient checkpointing would train wrongly without a word.

It runs a layer's forward pass without gradient, and again in the backward pass: only the layer's own output has a
gradient. What else later code takes out of a layer has none: the logits of its router, or keys and values that Gemma 4
hands on to other layers. TRL makes checkpointing reentrant for adapters under ZeRO-3.
"""

from __future__ import annotations

from typing import Any

REMEDY = "launch with accelerate_configs/zero2.yaml, or set gradient_checkpointing to false"


def check_checkpoints(trainer: Any) -> None:
    """Check that gradients reach all that is trained.

    Args:
        trainer: TRL's trainer, after its constructor, which decides how layers are checkpointed.

    Raises:
        ValueError: if they do not; the error says what to do.
    """
    args = trainer.args
    if not (args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")):
        return
    why = "gradient checkpointing is reentrant here, as TRL makes it for adapters under ZeRO-3:"
    if getattr(trainer.model.config.get_text_config(), "num_kv_shared_layers", 0):
        raise ValueError(f"{why} no gradient would reach the keys and values that layers share; {REMEDY}")
    if trainer.aux_loss_enabled:
        raise ValueError(
            f"{why} router_aux_loss_coef is {trainer.router_aux_loss_coef}, but the router loss would have no "
            f"gradient; {REMEDY}, or set it to 0"
        )
