"""The merge of two attentions, and what of PyTorch it rests on."""

import inspect
import math

import pytest
import torch
from torch.nn.attention.varlen import AuxRequest, varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from aurora_rl.models.packed_attention import KERNELS
from aurora_rl.models.packed_attention.merged import merge
from aurora_rl.models.packed_layout import pack
from tests.models.packed_attention.flash_on_cpu import flash_on_cpu


def test_two_keys_apart_weigh_as_they_do_together() -> None:
    """Scores log 1 and log 3 of values 10 and 20: weights 1/4 and 3/4, mean 17.5, sum of exponentials 4."""
    scores = torch.tensor([1.0, 3.0], dtype=torch.float64).log()
    values = torch.tensor([10.0, 20.0], dtype=torch.float64)
    apart = [(value.view(1, 1, 1), score.view(1, 1)) for value, score in zip(values, scores, strict=True)]
    output, lse = merge(*apart[0], *apart[1])
    assert output.item() == pytest.approx(17.5) and lse.item() == pytest.approx(math.log(4))


def attention_with_sums(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(T, H, d) output and (H, T) log-sum-exp over all keys (K, H, d), written out."""
    scores = torch.einsum("qhd,khd->hqk", query, key) * query.size(-1) ** -0.5
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value), scores.logsumexp(-1)


def test_the_merge_has_the_gradients_of_attention_to_all_keys() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(length, 2, 8, generator=generator, dtype=torch.float64, requires_grad=True) for length in (5, 7, 7)
    )
    parts = [attention_with_sums(query, key[keys], value[keys]) for keys in (slice(3), slice(3, 7))]
    found, lse = merge(*parts[0], *parts[1])
    expected, whole_lse = attention_with_sums(query, key, value)
    torch.testing.assert_close((found, lse), (expected, whole_lse), atol=1e-12, rtol=0)
    weights = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((output * weights).sum(), (query, key, value)) for output in (found, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_varlen_attn_drops_the_gradient_of_its_log_sum_exp() -> None:
    """So that autograd alone would make wrong gradients. Once this fails, `merged` needs no operator of its own."""
    query, starts = torch.randn(3, 1, 8, requires_grad=True), torch.tensor([0, 3], dtype=torch.int32)
    with flash_on_cpu():
        _, lse = varlen_attn(query, query, query, starts, starts, 3, 3, return_aux=AuxRequest(lse=True))
        (gradient,) = torch.autograd.grad(lse.sum(), query)
    assert gradient.abs().max() == 0


def test_the_operators_take_what_they_are_given() -> None:
    names = [argument.name for argument in torch.ops.aten._flash_attention_backward.default._schema.arguments]
    assert names[:6] == ["grad_out", "query", "key", "value", "out", "logsumexp"]
    assert names[6:14] == [
        "cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal", "rng_state", "unused",
    ]  # fmt: skip
    assert names[14] == "scale"
    assert {"return_aux", "scale", "window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys()
    shape = torch.ops.torch_attn._varlen_attn(
        *(torch.empty(5, heads, 8, device="meta") for heads in (4, 2, 2)), None, None, 5, 5
    )[1].shape
    assert shape == (4, 5)  # (H, T)


def test_merging_keeps_no_copy_of_a_prompt() -> None:
    """Eight branches of 1 + 2 tokens on a prompt of 64 + 1: rows of 88 tokens, or 64 + 8 (64 + 3) with copies."""
    ids = torch.ones(8, 67, dtype=torch.long)
    layout = pack(ids, ids, 2, [0] * 8)
    states = [torch.randn(1, heads, 88, 8, requires_grad=True) for heads in (4, 2, 2)]
    longest = {}
    with flash_on_cpu():
        for name in ("varlen", "merged"):
            kept: list[torch.Tensor] = []
            with torch.autograd.graph.saved_tensors_hooks(lambda tensor, to=kept: to.append(tensor), lambda _: None):
                KERNELS[name](*states, layout)
            longest[name] = max(tensor.size(0) for tensor in kept if tensor.ndim == 3)
    assert longest == {"varlen": 64 + 8 * (64 + 3), "merged": 88}


def test_a_branch_without_a_shared_token_reads_itself() -> None:
    ids = torch.tensor([[7, 1, 2]])
    layout = pack(ids, torch.ones_like(ids), 2, [0])
    states = [torch.randn(1, 2, 3, 8, dtype=torch.float64) for _ in range(3)]
    with flash_on_cpu():
        found = KERNELS["merged"](*states, layout)
    expected = scaled_dot_product_attention(*states, is_causal=True)[0].transpose(0, 1)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
