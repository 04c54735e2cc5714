"""Linear layers inside vLLM's CPU build, for inputs that do not lie row by row in memory.

Its kernel takes such inputs alone ("Expected a.stride(-1) == 1"), and the layers of Gemma's audio tower get others.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm import _custom_ops

STOCK = _custom_ops.onednn_mm


def let_linear_layers_read_any_layout() -> None:
    """Make vLLM copy inputs of another layout before its kernel reads them; a second call changes nothing."""
    setattr(_custom_ops, "onednn_mm", _onednn_mm)  # noqa: B010  # mypy forbids to assign a function


def _onednn_mm(handler: Any, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return STOCK(handler, x.contiguous(), bias)
