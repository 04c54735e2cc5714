"""The mixin that makes a family's model of a class of transformers, whose body may then be empty.

`class AuroraMyOmni(MLLMMixin, MyOmniForConditionalGeneration): ...` has heads, shares towers among rows
(`models.mllm.sharing`), gets the inputs that are made of token ids, and has the `base_model` that TRL's fused LM head
calls.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from aurora_rl.models.frozen_parts import FrozenPartsMixin
from aurora_rl.models.grounding import BackboneView
from aurora_rl.models.mllm.sharing import TowerSharingMixin


class MLLMMixin(TowerSharingMixin):
    """A mixin for a Hugging Face MLLM class, which stands behind it; a subclass may replace any method."""

    #: The class of transformers.
    stock: ClassVar[type[PreTrainedModel]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known: Any = getattr(cls, "stock", None)
        stock: Any = known or next(base for base in cls.__mro__[1:] if not issubclass(base, FrozenPartsMixin))
        if stock is PreTrainedModel:
            return  # a mixin
        _convert_checkpoints_as(stock, cls)
        if known is not None:
            return  # derived from a class that has all of this, as FSDP derives one of a model's

        def __init__(self: Any, config: Any, *args: Any, **options: Any) -> None:
            super(cls, self).__init__(config, *args, **options)
            self.init_heads()

        # `generate` checks its keyword arguments against this signature, so it must stay the family's own.
        @functools.wraps(stock.forward)
        def forward(self: Any, *args: Any, **options: Any) -> Any:
            return self.forward_with_heads(functools.partial(self.read, super(cls, self).forward), *args, **options)

        cls.stock = stock
        for name, method in (("__init__", __init__), ("forward", forward)):
            if name not in vars(cls):
                setattr(cls, name, method)

    @property
    def base_model(self) -> Any:
        """Multimodal merge and decoder without `lm_head`."""
        return BackboneView(self, _read_stock) if self.backbone is self else self.backbone

    def read(self, inner_forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do what `TowerSharingMixin.read` does, with the inputs that are made of token ids."""
        return super().read(inner_forward, *args, **self._with_positions(self._with_token_types(kwargs, *args)))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as transformers does, with the inputs that are made of token ids."""
        return super().generate(*args, **self._with_token_types(kwargs, *args))

    def _with_token_types(self, kwargs: dict[str, Any], *args: Any) -> dict[str, Any]:
        """Add `mm_token_type_ids` where the model reads them.

        Without them some models raise nothing and place all media as if they were text. They hold one value for each
        token of prompt and completion, so that no batch can bring them.
        """
        if "mm_token_type_ids" not in _parameters(self.stock.forward) or kwargs.get("mm_token_type_ids") is not None:
            return kwargs
        ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        if not isinstance(ids, torch.Tensor):
            return kwargs
        return {**kwargs, "mm_token_type_ids": self.token_types(ids)}

    def _with_positions(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Add `position_ids` of the attention mask, as `generate` does, where a model would count padding as tokens.

        Relative positions are the same either way, but not their products in bf16: a scoring pass would differ from
        the rollout that it scores. Models with `get_rope_index` read the mask by themselves.
        """
        mask = kwargs.get("attention_mask")
        if "position_ids" not in _parameters(self.stock.forward) or hasattr(self.backbone, "get_rope_index"):
            return kwargs
        given = any(kwargs.get(name) is not None for name in ("position_ids", "past_key_values"))
        if given or not isinstance(mask, torch.Tensor) or mask.dim() != 2:
            return kwargs
        return {**kwargs, "position_ids": (mask.long().cumsum(1) - 1).masked_fill(mask == 0, 0)}


def _convert_checkpoints_as(stock: type[PreTrainedModel], cls: type[PreTrainedModel]) -> None:
    """Let a class load, and save, the layouts of weights that transformers converts for its own classes alone.

    Many of the hub's checkpoints have the names of earlier versions, or a matrix for each expert.
    """
    for name in (stock.__name__, stock.config_class.model_type):
        if (conversions := get_checkpoint_conversion_mapping(name)) is not None:
            register_checkpoint_conversion_mapping(cls.__name__, conversions, overwrite=True)
            return


def _read_stock(model: MLLMMixin, *args: Any, **kwargs: Any) -> Any:
    return model.read(functools.partial(model.stock.forward, model), *args, **kwargs)


@functools.cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
