"""Experts inside vLLM's CPU build, whose weights are sent more than once.

A CPU's kernel reads the experts' weights from a layout of its own, which vLLM 0.31 gives them when it loads the model.
When they are loaded again it leaves them as they come, and the kernel takes the numbers from the wrong places.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

STOCK = UnquantizedFusedMoEMethod._setup_kernel


def lay_out_experts_at_each_loading() -> None:
    """Make vLLM give the experts the kernel's layout at every loading; a second call changes nothing."""
    setattr(UnquantizedFusedMoEMethod, "_setup_kernel", _setup_kernel)  # noqa: B010  # mypy forbids to assign a method


def _setup_kernel(self: UnquantizedFusedMoEMethod, layer: Any, w13: torch.Tensor, w2: torch.Tensor) -> None:
    """Do what vLLM does, and for weights that come again also what it does for the first ones."""
    is_loaded_again = self.moe_kernel is not None
    STOCK(self, layer, w13, w2)
    if is_loaded_again:
        self.moe_kernel.fused_experts.process_weights_after_loading(layer)
