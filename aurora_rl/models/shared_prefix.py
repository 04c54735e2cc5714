"""A group's prompt goes through the decoder once, whatever the number of its completions.

All groups of a batch become one row (`models.packed_layout`), over which attention knows groups
(`models.packed_attention`). All else works token by token, so that it needs no change: P - 1 + G (C + 1) tokens of a
group of G completions of C tokens take the place of G (P + C). Here are the forward pass of a model on such a row, and
the reasons why some models cannot make one.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn

from aurora_rl.models.grounding import GroundingMixin, segmentation_model
from aurora_rl.models.packed_attention import IMPLEMENTATION, register
from aurora_rl.models.packed_layout import PackedLayout

#: What transformers calls the only kind of layer that can read a packed row.
FULL_ATTENTION = "full_attention"
#: Attention implementations of transformers that ours takes the place of, with the same results.
REPLACED = ("sdpa", IMPLEMENTATION)


def reason_against(model: nn.Module) -> str | None:
    """Return why a model cannot read a packed row, or would compute something else; None where it can.

    Args:
        model: the model, wrapped or not, with the dropout that it is trained with.
    """
    inner: Any = segmentation_model(model)
    config = inner.config.get_text_config()
    others = sorted({*(getattr(config, "layer_types", None) or ())} - {FULL_ATTENTION})
    if not _hands_on_layouts(inner):
        return f"{type(inner).__name__} does not hand a layout on to its decoder: make it of MLLMMixin"
    if getattr(config, "use_bidirectional_attention", None):
        return "tokens of media attend both ways in its decoder"
    if others:
        return f"the decoder has layers of {' and '.join(others)}, which do not know where a branch begins"
    if config._attn_implementation not in REPLACED:
        return f"attn_implementation is {config._attn_implementation!r}, and only sdpa reads a packed row"
    if _has_dropout(inner):
        return "the decoder has dropout, drawn once for all rows of a group: set disable_dropout to true"
    return None


def _hands_on_layouts(inner: Any) -> bool:
    """Tell whether prompts, positions and layout find their way: a family may be written without the common mixins."""
    parameters = inspect.signature(type(inner.get_decoder()).forward).parameters.values()
    takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    has_text_config = getattr(inner.config, "text_config", None) is inner.config.get_text_config()
    return hasattr(inner, "backbone") and takes_more and has_text_config


def _has_dropout(inner: GroundingMixin) -> bool:
    config = inner.config.get_text_config()
    modules = inner.get_decoder().modules()
    return bool(getattr(config, "attention_dropout", 0.0)) or any(
        isinstance(module, nn.Dropout) and module.p > 0 for module in modules
    )


def enable(model: nn.Module) -> None:
    """Give a model's decoder the attention that reads packed rows; other batches are computed as before."""
    register()
    inner = segmentation_model(model)
    if inner.config.get_text_config()._attn_implementation != IMPLEMENTATION:
        inner.set_attn_implementation({"text_config": IMPLEMENTATION})


@contextlib.contextmanager
def packed_row(model: nn.Module, layout: PackedLayout | None) -> Iterator[None]:
    """Run a model on a row of this layout while the block runs; on plain batches if it is None.

    Args:
        model: the model, wrapped or not, after `enable`.
        layout: the layout of `input_ids` (1, N). Media come once a group, see `grounding.shared_media`.

    Raises:
        RuntimeError: if the decoder's attention cannot read it; it would attend across branches unnoticed.
    """
    if layout is None:
        yield
        return
    inner: Any = segmentation_model(model)
    if inner.config.get_text_config()._attn_implementation != IMPLEMENTATION:
        raise RuntimeError(f"the decoder's attention is not {IMPLEMENTATION}: call `enable` first")

    counts_tokens = not hasattr(inner.backbone, "get_rope_index")  # positions of a padded batch mean nothing here

    def give_layout(_decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if counts_tokens:
            kwargs = {**kwargs, "position_ids": layout.text_positions()}
        elif kwargs.get("position_ids") is None:  # prompts without media
            kwargs = {**kwargs, "position_ids": layout.text_positions().expand(3, 1, -1)}
        return args, {**kwargs, "packed": layout}

    handle = inner.get_decoder().register_forward_pre_hook(give_layout, with_kwargs=True)
    inner.packed = layout
    try:
        yield
    finally:
        inner.packed = None
        handle.remove()
