"""The router loss of a model with experts, which asks for an even load of them: the recipe says whether it is trained.

TRL weighs the loss by `router_aux_loss_coef`, and adds it to the trainer's own. transformers has a second switch in the
checkpoint's config, `output_router_logits`, which some families lack, so that TRL takes them for models without
experts; where it is on, `generate` fails (`models.loading` switches it off). So TRL finds the switch here, and a
checkpoint leaves training as it came: switched off, with its own coefficient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

ROUTER_LOSS_HELP = "Coefficient of the router loss of a model with experts; 0 for none, null for the checkpoint's own."


@contextlib.contextmanager
def router_loss_of_recipe(model: nn.Module) -> Iterator[None]:
    """Let TRL's constructor see that a model has experts, and keep what it writes out of the model's config.

    Args:
        model: the policy, wrapped by PEFT or not; one without a router loss is left alone.
    """
    of_model: Any = model.config
    config = of_model.get_text_config()
    coefficient = getattr(config, "router_aux_loss_coef", None)
    if coefficient is None:
        yield
        return
    config.output_router_logits = False
    try:
        yield
    finally:
        config.output_router_logits = False
        config.router_aux_loss_coef = coefficient
