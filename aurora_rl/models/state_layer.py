"""Which layer of the text decoder feeds a head: `state_layer` in the head's config, which its checkpoints keep.

Layers are counted as in transformers' `hidden_states`: 1 is the state after the first layer, N that after the last one;
negative numbers count from the end, so that -1 is the last. What a head reads is always after the decoder's final norm:
each layer adds to the states of the one before, so that their scale differs, and a head would have to learn that first.
For layer N this is the decoder's own output, `last_hidden_state`.

No torch is imported: a command line is checked here too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.hooks import RemovableHandle

#: Field of a head's config, and its value where there is none.
STATE_LAYER, LAST = "state_layer", -1


def state_layer_of(config: Mapping[str, Any]) -> int:
    """Return the layer that a head's config names."""
    layer: int = config.get(STATE_LAYER, LAST)
    return layer


def check_state_layer(layer: Any, *, name: str, num_layers: int | None = None) -> None:
    """Check a layer's number.

    Args:
        layer: what the config says.
        name: name of the head or of the option, for the error.
        num_layers: N, the decoder's number of layers; None before it is known.

    Raises:
        ValueError: if the decoder has no such layer. 0, the embedding, is none: that of a head's token is the same
            whatever the question was.
    """
    choose = "choose 1 for the first layer of the decoder and so on, or -1 for the last and so on"
    if not isinstance(layer, int) or isinstance(layer, bool) or layer == 0:
        raise ValueError(f"{name}: {STATE_LAYER} is {layer!r}: {choose}")
    if num_layers is not None and abs(layer) > num_layers:
        raise ValueError(f"{name}: {STATE_LAYER} is {layer}, but the decoder has {num_layers} layers: {choose}")


@dataclasses.dataclass(frozen=True)
class StateLayer:
    """A layer of a text decoder, whose states are watched without keeping those of the others.

    Attributes:
        decoder: the decoder, with `layers` and the final `norm`; only the last layer needs neither.
        layer: number of the layer, see `check_state_layer`.
    """

    decoder: nn.Module
    layer: int = LAST

    @property
    def is_last(self) -> bool:
        """True for the decoder's own output."""
        return self.layer == LAST or self.layer == len(self._layers)

    def watch(self, keep: Callable[[torch.Tensor], None]) -> RemovableHandle:
        """Hand the states (B, L, D) of every call to `keep`, until the handle is removed; `normed` comes after it."""
        if self.is_last:
            return self.decoder.register_forward_hook(lambda _module, _args, output: keep(output.last_hidden_state))
        following = self._layers[self.layer if self.layer > 0 else self.layer + 1]
        # What the next layer is given, not what this one returns: a layer under reentrant gradient checkpointing
        # runs without gradients, and its output has one only outside.
        return following.register_forward_pre_hook(
            lambda _module, args, kwargs: keep(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )

    def normed(self, states: torch.Tensor) -> torch.Tensor:
        """Return states (..., D) of this layer as a head reads them: after the final norm."""
        norm: Any = None if self.is_last else self.decoder.norm
        return states if norm is None else norm(states)

    @property
    def _layers(self) -> Any:
        layers = getattr(self.decoder, "layers", None)
        if layers is None or not hasattr(self.decoder, "norm"):
            raise ValueError(
                f"{type(self.decoder).__name__} has no `layers` and `norm` by these names, so that a head can only "
                f"read its last state: leave {STATE_LAYER} out"
            )
        return layers
