"""Gradient checkpointing that skips the frozen parts of an MLLM.

transformers makes the outputs of *every* part's input layer require gradients, so that adapters behind frozen layers
get gradients. A frozen tower has no such adapters, and its whole backward pass would run for nothing. transformers also
adds another hook to those layers at each `gradient_checkpointing_enable`, which TRL calls around every generation and
every scoring pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


class FrozenPartsMixin(PreTrainedModel):
    """A mixin for a Hugging Face MLLM class whose language model and towers are models of their own.

    Each call looks up which parts are frozen, since TRL and PEFT freeze and add weights after a model is made.
    """

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Enable checkpointing in trained parts only: a frozen part stores no activations that it could save."""
        super().gradient_checkpointing_enable(*args, **kwargs)
        for part in self._parts():
            if not _is_trained(part) and _has_checkpoints(part):
                part.gradient_checkpointing_disable()

    def enable_input_require_grads(self) -> None:
        """Make the outputs of trained parts' input layers require gradients; a second call changes nothing."""
        self.disable_input_require_grads()
        layers = {id(layer): layer for part in self._parts() if _is_trained(part) for layer in _input_layers(part)}
        self._require_grads_hooks = [layer.register_forward_hook(_require_grad) for layer in layers.values()]

    def _parts(self) -> Iterator[PreTrainedModel]:
        """Yield the language model and the towers."""
        return (module for module in self.modules() if isinstance(module, PreTrainedModel) and module is not self)


def _is_trained(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())


def _has_checkpoints(part: nn.Module) -> bool:
    """Tell whether some layer can be checkpointed; transformers raises an error for a part without one."""
    return any(hasattr(module, "gradient_checkpointing") for module in part.modules())


def _input_layers(part: PreTrainedModel) -> list[nn.Module]:
    """Return the input layer of a part; none where transformers does not know it."""
    try:
        layer = part.get_input_embeddings()
    except NotImplementedError:
        return []
    return [layer] if isinstance(layer, nn.Module) else []


def _require_grad(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
    output.requires_grad_(True)
