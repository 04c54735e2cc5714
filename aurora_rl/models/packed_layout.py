"""Where each token of a batch of groups stands in one row without padding: each prompt once, then its completions.

    [ prompt 1 but its last token | its last token + completion 1 | its last token + completion 2 | ... | prompt 2 ... ]

Every branch begins with a copy of the prompt's last token, which predicts the completion's first one. So each label has
a place of its own, and a head takes all labels as `shift_labels`.

Letters: B padded rows of L tokens, U groups, N tokens of the packed row, P tokens of the longest prompt, C width of the
padded completions, G branches of a group, S tokens of its longest branch.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from aurora_rl.models.packed_segments import Segments


@dataclasses.dataclass(frozen=True)
class Group:
    """A prompt and its completions in the packed row.

    Attributes:
        start: place of the prompt's first token.
        shared: number of tokens that all branches read, the prompt's without its last one.
        lengths: tokens of each branch: the prompt's last one and the completion's.
        index: (G, S) place of each branch's tokens; behind the end of a short branch, its last one again.
        kept: (sum of `lengths`,) the entries of the flattened `index` that are no such repetition.
    """

    start: int
    shared: int
    lengths: tuple[int, ...]
    index: torch.Tensor
    kept: torch.Tensor

    @property
    def prompt(self) -> slice:
        """Places of the shared tokens."""
        return slice(self.start, self.start + self.shared)

    def branches(self, of_row: torch.Tensor) -> torch.Tensor:
        """Return the values (..., N, d) of the row's tokens as those of the branches, (..., G, S, d)."""
        if not self._has_padding:
            own = slice(self.prompt.stop, self.prompt.stop + sum(self.lengths))
            return of_row[..., own, :].unflatten(-2, self.index.shape)
        return of_row[..., self.index, :]

    def in_row(self, of_branches: torch.Tensor) -> torch.Tensor:
        """Return values of the branches (..., G, S, d) as those of their tokens in the row, (..., n, d)."""
        flat = of_branches.flatten(-3, -2)
        return flat[..., self.kept, :] if self._has_padding else flat

    @property
    def _has_padding(self) -> bool:
        return len(self.kept) < self.index.numel()


@dataclasses.dataclass(frozen=True)
class PackedLayout:
    """Where each token of a padded batch stands in the packed row. All tensors lie on the batch's device.

    Attributes:
        groups: the U groups in order.
        first_rows: a padded row of each group.
        source: (N,) index of each token in the flattened (B * L) batch.
        scored: (N,) bool, whether the token's successor in the row is the label that it predicts.
        copies: (N,) number of padded rows that a token stands for.
        group: (N,) index of a token's group.
        place: (N,) index of a token in its prompt; for a completion's token, that of the prompt's last token.
        step: (N,) number of a token in its completion, counted from 1; 0 for the prompt's tokens.
        prompts: (U, P) place of each prompt's tokens; `prompt_mask` (U, P) bool tells which are there.
        branch_start: (B,) place of each row's branch.
        lengths: (B,) number of each row's completion tokens.
        num_prompt_columns: number of columns of the padded batch before its completions.
        errors: place for the errors of attention kernels, which leave NaN then: the pass goes on through all modules,
            as other processes with shards of the weights rely on. None raises them.
    """

    groups: tuple[Group, ...]
    first_rows: tuple[int, ...]
    source: torch.Tensor
    scored: torch.Tensor
    copies: torch.Tensor
    group: torch.Tensor
    place: torch.Tensor
    step: torch.Tensor
    prompts: torch.Tensor
    prompt_mask: torch.Tensor
    branch_start: torch.Tensor
    lengths: torch.Tensor
    num_prompt_columns: int
    errors: list[Exception] | None = None

    @functools.cached_property
    def segments(self) -> Segments:
        """The row's prompts and branches as sequences, made once for all layers."""
        return Segments.of([(group.shared, group.lengths) for group in self.groups], self.source.device)

    def inputs(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` and `shift_labels`, all (1, N), of padded `input_ids` (B, L).

        The mask holds `copies`: no token is padding for a decoder, and a mean over tokens that is weighed by it, such
        as the load-balancing loss of experts, is the mean over the padded batch.
        """
        packed = input_ids.flatten()[self.source]
        labels = torch.where(self.scored, packed.roll(-1), -100)
        return {"input_ids": packed[None], "attention_mask": self.copies[None], "shift_labels": labels[None]}

    def of_prompts(self, per_token: torch.Tensor, fill: int) -> torch.Tensor:
        """Return (1, N) values as those of the prompts, (U, P); `fill` behind a prompt's end."""
        return per_token[0, self.prompts].masked_fill(~self.prompt_mask, fill)

    def inputs_of_prompts(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments of a function of tokens, with prompts (U, P) in the place of the packed row (1, N)."""
        width = len(self.source)
        by_token = {
            name: self.of_prompts(value, fill=0)
            for name, value in inputs.items()
            if isinstance(value, torch.Tensor) and value.shape == (1, width)
        }
        return {**inputs, **by_token, "attention_mask": self.prompt_mask.long()}

    def positions(self, of_prompts: torch.Tensor) -> torch.Tensor:
        """Return the positions (..., 1, N) of all tokens from those of the prompts, (..., U, P).

        A completion counts on from its prompt's last token, which is text in every chat template.
        """
        return (of_prompts[..., self.group, self.place] + self.step)[..., None, :]

    def text_positions(self) -> torch.Tensor:
        """Return the positions (1, N) for a decoder that counts tokens and knows no media."""
        return (self.place + self.step)[None]

    def completions(self, per_token: torch.Tensor, width: int) -> torch.Tensor:
        """Return (1, N) values of the predicting tokens as those of the completions, (B, C); 0 behind their ends."""
        steps = torch.arange(width, device=per_token.device)
        places = (self.branch_start[:, None] + steps).clamp(max=per_token.size(1) - 1)
        return per_token[0, places].masked_fill(steps >= self.lengths[:, None], 0)

    def places_of(self, columns: torch.Tensor) -> torch.Tensor:
        """Return the place (B,) in the packed row of one token of each padded row.

        Args:
            columns: (B,) column of a completion's token, or of the prompt's last one.
        """
        return self.branch_start + columns - (self.num_prompt_columns - 1)


def pack(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    num_completion_tokens: int,
    group_of_row: Sequence[Hashable],
) -> PackedLayout:
    """Lay out a padded batch as one row.

    Args:
        input_ids: (B, L) prompts, left-padded, then completions, right-padded.
        attention_mask: (B, L), 0 for padding.
        num_completion_tokens: number of last columns that are completion.
        group_of_row: key of each row's group; rows of a group need not be neighbours.

    Raises:
        ValueError: if a prompt is empty, rows of one group have different prompts, or padding lies elsewhere.
    """
    width = input_ids.size(1) - num_completion_tokens
    rows_of: dict[Hashable, list[int]] = {}
    for row, key in enumerate(group_of_row):
        rows_of.setdefault(key, []).append(row)
    groups_of_rows = list(rows_of.values())
    real = attention_mask.bool()
    prompt_lengths, completion_lengths = torch.stack([real[:, :width].sum(1), real[:, width:].sum(1)]).tolist()
    _check(input_ids, real, width, (prompt_lengths, completion_lengths), groups_of_rows)
    return _layout(groups_of_rows, prompt_lengths, completion_lengths, width, input_ids)


def _check(
    input_ids: torch.Tensor,
    real: torch.Tensor,
    width: int,
    lengths: tuple[list[int], list[int]],
    groups_of_rows: Sequence[Sequence[int]],
) -> None:
    prompt_lengths, completion_lengths = torch.tensor(lengths, device=real.device)[:, :, None]  # (B, 1) each
    columns = torch.arange(real.size(1), device=real.device)
    expected = (columns >= width - prompt_lengths) & (columns < width + completion_lengths)
    if not torch.equal(real, expected):
        raise ValueError("prompts must be left-padded and completions right-padded, without holes in between")
    if 0 in lengths[0]:
        raise ValueError(f"row {lengths[0].index(0)} has no prompt: a completion needs a token that predicts its first")
    first = {row: rows[0] for rows in groups_of_rows for row in rows}
    firsts = [first[row] for row in range(len(real))]
    prompts = torch.where(real, input_ids, -1)[:, :width]
    differs = (prompts != prompts[firsts]).any(1).tolist()
    if True in differs:
        row = differs.index(True)
        raise ValueError(f"rows {first[row]} and {row} are of one group, but their prompts differ")


def _layout(
    groups_of_rows: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    completion_lengths: Sequence[int],
    width: int,
    input_ids: torch.Tensor,
) -> PackedLayout:
    """Lay out groups; the tensors are made on the CPU and moved once."""
    device, length = input_ids.device, input_ids.size(1)
    groups, source, scored, copies, place, step = [], [], [], [], [], []
    branch_start = [0] * len(prompt_lengths)
    start = 0
    for rows in groups_of_rows:
        first, shared = rows[0], prompt_lengths[rows[0]] - 1
        last_column = width - 1
        source.append(torch.arange(last_column - shared, last_column) + first * length)
        scored.append(torch.zeros(shared, dtype=torch.bool))
        copies.append(torch.full((shared,), len(rows)))
        place.append(torch.arange(shared))
        step.append(torch.zeros(shared, dtype=torch.long))
        branches = [1 + completion_lengths[row] for row in rows]
        for row, size in zip(rows, branches, strict=True):
            own = torch.arange(size)
            source.append(last_column + own + row * length)
            scored.append(own < size - 1)
            copies.append(torch.ones_like(own))
            place.append(torch.full_like(own, shared))
            step.append(own)
        starts = list(itertools.accumulate(branches[:-1], initial=start + shared))
        for row, at in zip(rows, starts, strict=True):
            branch_start[row] = at
        groups.append(_group(start, shared, starts, branches, device))
        start = starts[-1] + branches[-1]
    sizes = [group.shared + sum(group.lengths) for group in groups]
    prompt_columns = torch.arange(max(group.shared for group in groups) + 1)
    starts_of_prompts = torch.tensor([group.start for group in groups])[:, None]
    ends_of_prompts = torch.tensor([group.shared for group in groups])[:, None]
    return PackedLayout(
        groups=tuple(groups),
        first_rows=tuple(rows[0] for rows in groups_of_rows),
        source=torch.cat(source).to(device),
        scored=torch.cat(scored).to(device),
        copies=torch.cat(copies).to(device),
        group=torch.arange(len(groups)).repeat_interleave(torch.tensor(sizes)).to(device),
        place=torch.cat(place).to(device),
        step=torch.cat(step).to(device),
        prompts=(starts_of_prompts + prompt_columns.clamp(max=ends_of_prompts)).to(device),
        prompt_mask=(prompt_columns <= ends_of_prompts).to(device),
        branch_start=torch.tensor(branch_start, device=device),
        lengths=torch.tensor(completion_lengths, device=device),
        num_prompt_columns=width,
    )


def _group(start: int, shared: int, starts: Sequence[int], lengths: Sequence[int], device: torch.device) -> Group:
    begins, sizes = torch.tensor(starts)[:, None], torch.tensor(lengths)[:, None]
    steps = torch.arange(max(lengths))
    index = begins + steps.minimum(sizes - 1)
    kept = (steps < sizes).flatten().nonzero()[:, 0]
    return Group(start, shared, tuple(lengths), index.to(device), kept.to(device))
