"""Gradient checkpointing that leaves frozen parts of an MLLM alone.

transformers makes the outputs of *every* part's input layer require gradients, so that what is frozen lets gradients
through to adapters behind it. Nothing lies behind the input layers of a frozen tower, and still its whole backward pass
would be run. It also hooks those layers anew at each `gradient_checkpointing_enable`, which TRL calls around every
generation and every scoring pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


class FrozenPartsMixin(PreTrainedModel):
    """Put in front of a Hugging Face MLLM class, whose language model and towers are models of their own.

    What is frozen is asked at each call, since TRL and PEFT freeze and add weights after a model is made.
    """

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """As transformers'; a frozen part keeps no activations that would have to be computed again."""
        super().gradient_checkpointing_enable(*args, **kwargs)
        for part in self._parts():
            if not _is_trained(part):
                part.gradient_checkpointing_disable()

    def enable_input_require_grads(self) -> None:
        """Let gradients through the input layers of trained parts; calling it again changes nothing."""
        self.disable_input_require_grads()
        layers = {id(layer): layer for part in self._parts() if _is_trained(part) for layer in _input_layers(part)}
        self._require_grads_hooks = [layer.register_forward_hook(_require_grad) for layer in layers.values()]

    def _parts(self) -> Iterator[PreTrainedModel]:
        """Language model and towers."""
        return (module for module in self.modules() if isinstance(module, PreTrainedModel) and module is not self)


def _is_trained(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())


def _input_layers(part: PreTrainedModel) -> list[nn.Module]:
    """The layer that a part's inputs go through first; none where transformers does not know it."""
    try:
        layer = part.get_input_embeddings()
    except NotImplementedError:
        return []
    return [layer] if isinstance(layer, nn.Module) else []


def _require_grad(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
    output.requires_grad_(True)
