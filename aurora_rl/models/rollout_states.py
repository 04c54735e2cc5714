"""States at `[SEG]` as `generate` passes them, so that a rollout's masks need no forward pass of their own.

`generate` calls the text decoder on the prompt and then on each new token but the last: call k leaves the state of
completion token k - 1, and a completion's very last token has none.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from aurora_rl.models.grounding import segmentation_model


@dataclasses.dataclass(frozen=True)
class SegStates:
    """States of sampled completions at their last `[SEG]`.

    Attributes:
        completion_ids: what was sampled; other completions have other states.
        hidden_states: (B, D), after the final norm; of a row without `[SEG]` the prompt's last, which means nothing.
        has_seg: (B,) bool.
    """

    completion_ids: tuple[tuple[int, ...], ...]
    hidden_states: torch.Tensor
    has_seg: torch.Tensor

    def belong_to(self, completion_ids: Sequence[Sequence[int]]) -> bool:
        """Whether these are the completions that were sampled."""
        return self.completion_ids == _frozen(completion_ids)


class StateRecorder:
    """A forward hook of the text decoder that keeps the last token's state of every call."""

    def __init__(self) -> None:
        self._states: list[torch.Tensor] = []  # of each call (B, D)
        self._num_tokens: list[int] = []  # that each call was fed

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():  # a CUDA graph overwrites its outputs at the next call
            return
        states = output.last_hidden_state  # (B, L, D)
        self._states.append(states[:, -1].clone())  # a view would keep the states of the whole prompt
        self._num_tokens.append(states.size(1))

    def at_last(self, token_id: int, completion_ids: Sequence[Sequence[int]]) -> SegStates | None:
        """The states at each completion's last `token_id`.

        Args:
            token_id: id of `[SEG]`.
            completion_ids: B completions as sampled together, cut after their end-of-turn tokens.

        Returns:
            None if a state is missing, or if the calls do not fit the completions: speculative decoding, beams and a
            prompt read in chunks make others.
        """
        length = max(map(len, completion_ids))
        positions = [_last_position(ids, token_id) for ids in completion_ids]
        one_a_token = len(self._states) == length and all(count == 1 for count in self._num_tokens[1:])
        if not one_a_token or len(self._states[0]) != len(completion_ids) or max(positions) == length - 1:
            return None
        hidden_states = torch.stack([self._states[position + 1][row] for row, position in enumerate(positions)])
        has_seg = torch.tensor(positions, device=hidden_states.device) >= 0
        return SegStates(_frozen(completion_ids), hidden_states, has_seg)


@contextlib.contextmanager
def recorded_states(model: nn.Module) -> Iterator[StateRecorder]:
    """Record the decoder's states while a batch is sampled.

    Args:
        model: the model, in whatever it is wrapped.
    """
    recorder = StateRecorder()
    handle = segmentation_model(model).get_decoder().register_forward_hook(recorder)
    try:
        yield recorder
    finally:
        handle.remove()


def _last_position(ids: Sequence[int], token_id: int) -> int:
    """-1 where there is none."""
    return max((position for position, token in enumerate(ids) if token == token_id), default=-1)


def _frozen(completion_ids: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, completion_ids))
