"""The prompts and branches of a packed row as kernels for sequences of several lengths take them.

Such a kernel is given all tokens one after the other, the place where each sequence starts, and the longest length.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import torch


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Sequences one after the other.

    Attributes:
        starts: (number of sequences + 1,) int32, place of each one's first token, and the number of all tokens.
        longest: number of tokens of the longest.
    """

    starts: torch.Tensor
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Lengths:
        """Put sequences of these lengths one after the other; none is empty."""
        starts = list(itertools.accumulate(lengths, initial=0))
        return cls(torch.tensor(starts, dtype=torch.int32, device=device), max(lengths, default=0))


@dataclasses.dataclass(frozen=True)
class Segments:
    """Who reads what in a packed row. Prompts with nothing to share are left out of all `Lengths`.

    Attributes:
        sizes: number of shared tokens of each group, and of each branch's own.
        own: each prompt and each branch, in the row's order.
        read: what each of them reads: the prompt itself; a branch its prompt and itself.
        branches: the branches of each group together, where they have something to share.
        prompts: what these share.
        branch_places: place in the row of each token of `branches`.
        prompt_places: place in the row of each token of `prompts`.
    """

    sizes: tuple[tuple[int, tuple[int, ...]], ...]
    own: Lengths
    read: Lengths
    branches: Lengths
    prompts: Lengths
    branch_places: torch.Tensor
    prompt_places: torch.Tensor

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, tuple[int, ...]]], device: torch.device) -> Segments:
        """Describe a row of these `sizes`."""
        own, read, branches, prompts = [], [], [], []
        branch_places, prompt_places = [torch.arange(0)], [torch.arange(0)]
        start = 0
        for shared, lengths in sizes:
            middle = start + shared
            end = middle + sum(lengths)
            if shared:
                own.append(shared)
                read.append(shared)
                branches.append(end - middle)
                prompts.append(shared)
                prompt_places.append(torch.arange(start, middle))
                branch_places.append(torch.arange(middle, end))
            own += lengths
            read += [shared + length for length in lengths]
            start = end
        return cls(
            sizes=tuple(sizes),
            own=Lengths.of(own, device),
            read=Lengths.of(read, device),
            branches=Lengths.of(branches, device),
            prompts=Lengths.of(prompts, device),
            branch_places=torch.cat(branch_places).to(device),
            prompt_places=torch.cat(prompt_places).to(device),
        )

    def behind_prompts(self, states: torch.Tensor) -> torch.Tensor:
        """Return the states (N, Hkv, d) of the row's tokens as those of what is read, with a prompt before each branch.

        The gradients of a prompt's copies are summed in one go, which rounds once.
        """
        pieces = iter(states.split([length for shared, own in self.sizes for length in (shared, *own)]))
        read = []
        for _, own in self.sizes:
            copies = next(pieces).expand(1 + len(own), -1, -1, -1).unbind()
            read.append(copies[0])
            for copy, branch in zip(copies[1:], itertools.islice(pieces, len(own)), strict=True):
                read += [copy, branch]
        return torch.cat(read)
