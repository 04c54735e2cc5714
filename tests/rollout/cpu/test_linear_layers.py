"""Linear layers of vLLM's CPU build read inputs of any layout."""

import pytest
import torch

pytestmark = pytest.mark.vllm


def test_an_input_that_lies_column_by_column_gives_the_same() -> None:
    from vllm import _custom_ops

    from aurora_rl.rollout.cpu.linear_layers import STOCK, let_linear_layers_read_any_layout

    weight, x = torch.randn(64, 32), torch.randn(32, 8).T
    handler = _custom_ops.create_onednn_mm(weight.t(), 32)
    with pytest.raises(RuntimeError, match=r"stride\(-1\)"):
        STOCK(handler, x, None)
    let_linear_layers_read_any_layout()
    torch.testing.assert_close(_custom_ops.onednn_mm(handler, x, None), x @ weight.T)
