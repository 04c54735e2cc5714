"""Passes over one group, its prompt in every row or once: what `share_prompts` saves of training and of a prefill.

The language model reads text alone, without a mask head. Completions are of one length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median

import torch
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

from aurora_rl.models.grounding import shared_media
from aurora_rl.models.packed_layout import pack
from aurora_rl.models.prefill import prefill_once
from aurora_rl.models.shared_prefix import enable, packed_row
from benchmarks.timing import Seconds, now
from benchmarks.workload import REFERENCE, Policy, StepShape, build_policy


@dataclasses.dataclass(frozen=True)
class Group:
    """A prompt and its completions.

    Attributes:
        shape: sizes of the completions and of the model; those of the prompt's media are read in whole steps alone.
        prompt_length: P, number of tokens of the prompt.
    """

    shape: StepShape
    prompt_length: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        """G, P and C."""
        return self.shape.num_generations, self.prompt_length, self.shape.completion_length

    @property
    def tokens(self) -> tuple[int, int]:
        """Number of tokens that the decoder reads with the prompt in every row, and once."""
        generations, prompt, completion = self.sizes
        return generations * (prompt + completion), prompt - 1 + generations * (completion + 1)


@dataclasses.dataclass(frozen=True)
class Sharing:
    """Pairs of passes over one group.

    Attributes:
        plain: seconds of each pass with the prompt in every row.
        shared: seconds of each pass with the prompt once.
        plain_tokens: number of tokens that the decoder reads in the first.
        shared_tokens: number of those in the second.
        plain_bytes: bytes that the first keeps for its backward pass, weights aside; None of a pass without one.
        shared_bytes: bytes that the second keeps.
    """

    plain: list[Seconds]
    shared: list[Seconds]
    plain_tokens: int
    shared_tokens: int
    plain_bytes: int | None = None
    shared_bytes: int | None = None

    def ratio(self, clock: str) -> float:
        """Return how many times longer the plain pass takes, the median of the pairs."""
        return median(a.on(clock) / b.on(clock) for a, b in zip(self.plain, self.shared, strict=True))

    @property
    def tokens_ratio(self) -> float:
        return self.plain_tokens / self.shared_tokens

    @property
    def bytes_ratio(self) -> float:
        """Bytes kept by the shared pass, of those that the plain one keeps."""
        return (self.shared_bytes or 0) / (self.plain_bytes or 1)


def measure_sharing(group: Group, repeats: int) -> Sharing:
    """Run both passes in turn."""
    policy = build_policy(group.shape, has_head=False)
    add_fused_lm_head(policy.model)
    enable(policy.model.train())
    input_ids = draw_group(policy, group)
    mask, length = torch.ones_like(input_ids), group.shape.completion_length
    tokens: list[int] = []
    count_tokens(policy, tokens)
    labels = input_ids.clone()
    labels[:, :-length] = -100

    def plain() -> Tensor:
        return policy.model(input_ids=input_ids, attention_mask=mask, labels=labels, fused_lm_head=True).loss

    def shared() -> Tensor:
        layout = pack(input_ids, mask, length, [0] * len(input_ids))
        with packed_row(policy.model, layout):
            return policy.model(**layout.inputs(input_ids), fused_lm_head=True).loss

    pairs = [(seconds_of(plain, policy), seconds_of(shared, policy)) for _ in range(repeats + 1)][1:]  # the first warms
    kept = kept_bytes(plain, policy), kept_bytes(shared, policy)
    return Sharing([a for a, _ in pairs], [b for _, b in pairs], tokens[0], tokens[1], *kept)


def measure_prefill(group: Group, repeats: int) -> Sharing:
    """Let `generate` read a group's prompts and sample one token of each, in turn each row by itself and once."""
    policy = build_policy(group.shape, has_head=False)
    policy.model.eval()
    prompts = draw_group(policy, group)[:, : group.prompt_length]
    tokens: list[int] = []
    count_tokens(policy, tokens)

    def seconds(once: bool) -> Seconds:
        start = now()
        with shared_media(policy.model, [0] * len(prompts)), prefill_once(policy.model) if once else nullcontext():
            policy.model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=1)
        return now() - start

    pairs = [(seconds(False), seconds(True)) for _ in range(repeats + 1)][1:]
    return Sharing([a for a, _ in pairs], [b for _, b in pairs], *tokens[:2])


def count_tokens(policy: Policy, tokens: list[int]) -> None:
    """Add the number of tokens of each pass of the decoder to a list."""
    policy.model.get_decoder().register_forward_pre_hook(
        lambda _module, _args, inputs: tokens.append(inputs["inputs_embeds"][..., 0].numel()), with_kwargs=True
    )


def seconds_of(forward: Callable[[], Tensor], policy: Policy) -> Seconds:
    """Measure a forward and a backward pass."""
    policy.model.zero_grad()
    start = now()
    forward().backward()
    return now() - start


def kept_bytes(forward: Callable[[], Tensor], policy: Policy) -> int:
    """Count the bytes that a forward pass keeps for its backward pass, each storage once and no weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in policy.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward()  # whose graph holds the storages, so that none is freed and its address given anew
    del loss
    return sum(size for address, size in kept.items() if address not in weights)


def draw_group(policy: Policy, group: Group) -> Tensor:
    """Draw G completions of one prompt, (G, P + C), of words of the vocabulary."""
    words = torch.tensor(policy.processor.tokenizer(REFERENCE).input_ids)
    generations, prompt, completion = group.sizes
    drawn = words[torch.randint(len(words), (generations, prompt + completion))]
    drawn[:, :prompt] = drawn[0, :prompt]
    return drawn
