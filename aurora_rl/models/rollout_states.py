"""States at `[SEG]` are recorded during `generate`, so that a rollout's masks need no forward pass of their own.

`generate` calls the text decoder on the prompt and then on each new token but the last: call k leaves the state of
completion token k - 1, and a completion's very last token has none.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from aurora_rl.models.grounding import segmentation_model
from aurora_rl.models.state_layer import StateLayer


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
    """Keeps the last token's state of every call of the text decoder.

    Args:
        layer: the decoder's layer whose states they are.
    """

    def __init__(self, layer: StateLayer) -> None:
        self._layer = layer
        self._states: list[torch.Tensor] = []  # (B, D) of each call
        self._num_tokens: list[int] = []  # tokens of each call's input

    def keep(self, states: torch.Tensor) -> None:
        """Keep the last of a call's states (B, L, D)."""
        if torch.compiler.is_compiling():  # a CUDA graph overwrites its outputs at the next call
            return
        self._states.append(states[:, -1].clone())  # a view would keep the states of the whole prompt
        self._num_tokens.append(states.size(1))

    def repeat_prompts(self, prompt_of_row: torch.Tensor | None) -> None:
        """Give every row its prompt's state, where the first call has read distinct prompts (`models.prefill`).

        Args:
            prompt_of_row: (B,) place of each row's prompt in that call; None if the call has read all rows.
        """
        if prompt_of_row is not None and self._states:
            self._states[0] = self._states[0][prompt_of_row]

    @torch.no_grad()
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
        states = torch.stack([self._states[position + 1][row] for row, position in enumerate(positions)])
        hidden_states = self._layer.normed(states)
        has_seg = torch.tensor(positions, device=hidden_states.device) >= 0
        return SegStates(_frozen(completion_ids), hidden_states, has_seg)


@contextlib.contextmanager
def recorded_states(model: nn.Module, head: str | None = None) -> Iterator[StateRecorder]:
    """Record the states that a head reads while a batch is sampled.

    Args:
        model: the model, wrapped or not.
        head: the head's name; None for the only one.
    """
    layer = segmentation_model(model).state_layer(head)
    recorder = StateRecorder(layer)
    handle = layer.watch(recorder.keep)
    try:
        yield recorder
    finally:
        handle.remove()


def _frozen(completion_ids: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, completion_ids))
