"""Which call of the decoder left which token's state, and when the calls tell nothing."""

import pytest
import torch

from aurora_rl.models.rollout_states import StateRecorder, recorded_states
from aurora_rl.models.state_layer import StateLayer

SEG = 7


def state(call: int, row: int) -> list[float]:
    return [float(call), float(row)]


def recorder_of(num_tokens: list[int], num_rows: int) -> StateRecorder:
    """After a call on each of these numbers of tokens; tokens that are not the last of their call have states of -1."""
    recorder = StateRecorder(StateLayer(torch.nn.Identity()))
    for call, count in enumerate(num_tokens):
        states = torch.full((num_rows, count, 2), -1.0)
        states[:, -1] = torch.tensor([state(call, row) for row in range(num_rows)])
        recorder.keep(states)
    return recorder


def test_call_k_has_the_state_of_completion_token_k_minus_one():
    completion_ids = [[SEG, 1, 1, 1], [1, 1, SEG, 1], [SEG, SEG, 1], [1, 2]]
    states = recorder_of([9, 1, 1, 1], 4).at_last(SEG, completion_ids)
    assert states.hidden_states[:3].tolist() == [state(1, 0), state(3, 1), state(2, 2)]
    assert states.has_seg.tolist() == [True, True, True, False]
    assert states.belong_to([list(ids) for ids in completion_ids])
    assert not states.belong_to([*completion_ids[:3], [1, SEG]])


def test_the_completions_may_be_changed_in_place_later():
    completion_ids = [[SEG, 1]]
    states = recorder_of([9, 1], 1).at_last(SEG, completion_ids)
    completion_ids[0].append(SEG)
    assert not states.belong_to(completion_ids)


def test_seg_as_the_last_token_of_a_shorter_completion_has_been_fed_back_beside_the_others():
    states = recorder_of([9, 1, 1], 2).at_last(SEG, [[1, SEG], [1, 1, 1]])
    assert states.hidden_states[0].tolist() == state(2, 0)


def test_seg_as_the_very_last_token_has_no_state():
    assert recorder_of([9, 1, 1], 2).at_last(SEG, [[1, SEG, 1], [1, 1, SEG]]) is None


@pytest.mark.parametrize(
    ("num_tokens", "num_rows"),
    [([], 2), ([9, 1], 2), ([9, 1, 1, 1], 2), ([5, 4, 1], 2), ([9, 1, 3], 2), ([9, 10, 11], 2), ([9, 1, 1], 4)],
    ids=["none", "too few", "too many", "prompt in chunks", "several tokens at once", "no cache", "two beams"],
)
def test_calls_that_do_not_fit_the_completions_tell_nothing(num_tokens, num_rows):
    assert recorder_of([9, 1, 1], 2).at_last(SEG, [[SEG, 1, 1], [1, 1]]) is not None
    assert recorder_of(num_tokens, num_rows).at_last(SEG, [[SEG, 1, 1], [1, 1]]) is None


def test_a_compiled_decoder_is_not_recorded(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert recorder_of([9, 1, 1], 2).at_last(SEG, [[SEG, 1, 1], [1, 1]]) is None


def test_no_state_keeps_the_states_of_the_whole_prompt_alive():
    recorder = recorder_of([1000, 1], 2)
    assert all(kept.untyped_storage().nbytes() == kept.numel() * kept.element_size() for kept in recorder._states)


def test_recording_ends_with_its_block_even_after_an_error(loaded):
    with pytest.raises(RuntimeError), recorded_states(loaded.model):
        assert len(loaded.model.get_decoder()._forward_hooks) == 1
        raise RuntimeError
    assert not loaded.model.get_decoder()._forward_hooks
