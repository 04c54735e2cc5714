"""States at `[SEG]` are recorded during `generate`, so that a rollout's masks need no forward pass of their own.

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
        completion_ids: the sampled completions, to which the states belong.
        hidden_states: (B, D), after the final norm; a row without `[SEG]` has the prompt's last state, without meaning.
        has_seg: (B,) bool.
    """

    completion_ids: tuple[tuple[int, ...], ...]
    hidden_states: torch.Tensor
    has_seg: torch.Tensor

    def belong_to(self, completion_ids: Sequence[Sequence[int]]) -> bool:
        """Tell whether these are the completions that were sampled."""
        return self.completion_ids == _frozen(completion_ids)


class StateRecorder:
    """A forward hook of the text decoder that keeps the last token's state of every call."""

    def __init__(self) -> None:
        self._states: list[torch.Tensor] = []  # (B, D) of each call
        self._num_tokens: list[int] = []  # tokens of each call's input

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():  # a CUDA graph overwrites its outputs at the next call
            return
        states = output.last_hidden_state  # (B, L, D)
        self._states.append(states[:, -1].clone())  # a view would keep the states of the whole prompt
        self._num_tokens.append(states.size(1))

    def at_last(self, token_id: int, completion_ids: Sequence[Sequence[int]]) -> SegStates | None:
        """Return the states at each completion's last `token_id`.

        Args:
            token_id: id of `[SEG]`.
            completion_ids: B completions as sampled together, cut after their end-of-turn tokens.

        Returns:
            The states; None if one is missing, or if the calls do not match the completions, as with speculative
            decoding, beams or a prompt that is read in chunks.
        """
        length = max(map(len, completion_ids))
        positions = [  # -1 where there is no such token
            max((position for position, token in enumerate(ids) if token == token_id), default=-1)
            for ids in completion_ids
        ]
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
        model: the model, wrapped or not.
    """
    recorder = StateRecorder()
    handle = segmentation_model(model).get_decoder().register_forward_hook(recorder)
    try:
        yield recorder
    finally:
        handle.remove()


def _frozen(completion_ids: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, completion_ids))
