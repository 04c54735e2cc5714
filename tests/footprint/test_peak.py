import pytest
import torch
from torch import nn
from torch.nn import functional
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from aurora_rl.footprint.activations import FOLDED_TILES
from aurora_rl.footprint.peak import FusedAttention, LiveMemory, forward_and_backward, forward_only


def test_what_is_alive_is_counted_and_what_is_freed_is_not() -> None:
    with LiveMemory() as memory, torch.device("meta"):
        kept = torch.ones(100)  # 400 bytes
        freed = kept + 1
        del freed
        view = kept[10:]
        assert (memory.current, memory.peak) == (400, 800)
        del kept
        assert memory.current == 400  # the view keeps it
        del view
    assert memory.current == 0


def test_what_was_there_before_is_not_counted() -> None:
    before = torch.ones(100)
    with LiveMemory() as memory:
        before.mul_(2)
        before.view(10, 10).add_(1)
    assert memory.peak == 0


def test_meta_and_cpu_take_the_same() -> None:
    def run(device: str) -> tuple[int, int]:
        layer = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)).to(device)
        x = torch.zeros(10, 64, device=device, requires_grad=True)
        return forward_and_backward(lambda: layer(x))

    assert run("meta") == run("cpu")
    kept, _ = run("meta")
    assert kept == (2 * 256 + 64) * 10 * 4  # both activations of the middle, and the output


def test_attention_keeps_nothing_of_size_length_squared() -> None:
    def bytes_of(length: int) -> int:
        query = torch.empty(1, 4, length, 32, device="meta", requires_grad=True)
        return forward_and_backward(lambda: functional.scaled_dot_product_attention(query, query, query))[0]

    assert bytes_of(2048) == 2 * bytes_of(1024)


def test_a_mask_becomes_a_bias_of_the_query_s_dtype() -> None:
    query = torch.empty(2, 4, 100, 32, dtype=torch.bfloat16, device="meta")
    mask = torch.empty(2, 1, 100, 100, dtype=torch.bool, device="meta")
    with_mask = forward_only(lambda: functional.scaled_dot_product_attention(query, query, query, attn_mask=mask))
    without = forward_only(lambda: functional.scaled_dot_product_attention(query, query, query))
    assert with_mask - without == 2 * 100 * 100 * 2


def test_fused_attention_leaves_other_functions_alone() -> None:
    with FusedAttention():
        assert functional.relu(torch.tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]


def test_the_lm_head_folds_so_many_tiles_at_once() -> None:
    """Without Triton, TRL has copies of a tile alive while it folds it; the tile itself is as wide as it can get."""
    tokens, width, vocab_size = 512, 8, 4096
    hidden_states = torch.zeros(tokens, width, requires_grad=True)
    weight = torch.zeros(vocab_size, width, requires_grad=True)
    weight.grad = torch.zeros_like(weight)
    targets = torch.zeros(tokens, dtype=torch.long)
    options = (None, targets, 1.0, vocab_size, None, 1.0, ("log_probs",))
    _, peak = forward_and_backward(lambda: ChunkedLogProbFunction.apply(hidden_states, weight, *options)[0])
    tile = tokens * vocab_size * 4
    assert (peak - tile) / tile == pytest.approx(FOLDED_TILES, abs=0.05)
