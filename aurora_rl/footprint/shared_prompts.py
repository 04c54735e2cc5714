"""Whether the trainer will share prompts within groups, and a layer that reads such a row."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from trl.trainer.utils import disable_dropout_in_model

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.footprint.parameters import MetaModel
from aurora_rl.models.packed_attention import IMPLEMENTATION, register, sdpa
from aurora_rl.models.packed_layout import PackedLayout, pack
from aurora_rl.models.shared_prefix import REPLACED, reason_against


def shares_prompts(meta: MetaModel, model_args: ModelArguments, args: Any) -> bool:
    """Tell whether the trainer begins with shared prompts, as `trainers.prompt_sharing.share_prompts` decides.

    Args:
        meta: the model, without dropout where the trainer takes it out (`without_dropout`).
        model_args: arguments of the model, which name the attention.
        args: TRL's arguments; those of SFT have no groups.
    """
    if not getattr(args, "share_prompts", False) or args.torch_compile:
        return False
    is_sdpa = model_args.attn_implementation in (None, *REPLACED)
    return is_sdpa and reason_against(meta.model) is None


def without_dropout(meta: MetaModel, args: Any) -> MetaModel:
    """Take the dropout out of a model where TRL does."""
    if getattr(args, "disable_dropout", False):
        disable_dropout_in_model(meta.model)
    return meta


def give_packed_attention(layer: nn.Module) -> None:
    """Let a copy of a decoder's layer read packed rows."""
    register()
    for module in layer.modules():
        if (config := getattr(module, "config", None)) is not None:
            config._attn_implementation = IMPLEMENTATION


@contextlib.contextmanager
def packed_on_meta() -> Iterator[None]:
    """Let packed rows be read on `meta`: a causal bias, a subclass of tensors, cannot be made while memory is measured.

    Fused kernels hold none.
    """
    names = vars(sdpa)
    causal_lower_right = names["causal_lower_right"]
    names["causal_lower_right"] = lambda *_: None
    try:
        yield
    finally:
        names["causal_lower_right"] = causal_lower_right


def meta_layout(rows: int, clips: int, prompt_tokens: int, completion_tokens: int) -> PackedLayout:
    """Return the trainer's layout of a full batch, on the `meta` device.

    Args:
        rows: number of rows.
        clips: number of groups among them.
        prompt_tokens: tokens of each prompt.
        completion_tokens: tokens of each completion.
    """
    ids = torch.zeros(rows, prompt_tokens + completion_tokens, dtype=torch.long, device="cpu")
    layout = pack(ids, torch.ones_like(ids), completion_tokens, [row * clips // rows for row in range(rows)])
    groups = (
        dataclasses.replace(group, index=group.index.to("meta"), kept=group.kept.to("meta")) for group in layout.groups
    )
    return dataclasses.replace(layout, groups=tuple(groups))
