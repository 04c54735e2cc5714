"""A policy that has collapsed writes one thing over and over; reading that must not stall a training step.

Every text here is so long that a reader which goes back over it, once for each of its characters, would run into the
suite's time limit of minutes by a factor of a hundred; one that does not takes a fraction of a second.
"""

import pytest
import torch

from aurora_rl.tasks.completions import parse_completion
from aurora_rl.tasks.prompts import without_seg
from reward_fns.category import category_reward
from reward_fns.format import format_reward
from reward_fns.perception import perception_reward
from reward_fns.reasoning_consistency import reasoning_consistency_reward

LENGTH = 200_000  # characters
UNITS = [
    " ", "\n", "\t", "\x0b", "\u00a0", "\u2028", ".", "[",
    "[SEG]", "*a ", "- \n", "1", "I see ", "and ", " and", ", and",
    ", ",
    "it is ", "It is [SEG]. ", "the ",
    "the target is ", "the target is a", "the target is the ", "the target is the\n",
    "there is no such target ", "wait ", "\nwait", "Wait, let me reconsider. ", "let me think again ",
    "Look: ", "\nLook: a",
    "the left ", "on the left of ", "hear no sound ", "a_", "- ", '"', "Answer:\n",
]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_a_repeated_completion_is_read_by_every_reward(unit: str) -> None:
    repeated = unit * (LENGTH // len(unit))
    text = f"Look: I see {repeated}\nListen: I hear {repeated}\nRead: {repeated}\nAnswer: {repeated}"
    parsed = parse_completion(text)
    assert parsed.text == text and "look" in parsed.steps
    assert without_seg(text).startswith("Look: I see")
    columns = {
        "category": ["drum"],
        "reference": ["the drum on the left"],
        "pred_masks": [torch.ones(1, 4, 4, dtype=torch.bool)],
        "loudness_dbfs": [-20.0],
        "seen": [["drum"]],
        "heard": [["drum"]],
    }
    for reward in (format_reward, category_reward, reasoning_consistency_reward, perception_reward):
        [score] = reward(prompts=[None], completions=[text], **columns)
        assert 0 <= score <= 1


def test_seg_tokens_inside_one_another_are_all_taken_out() -> None:
    depth = LENGTH // 10
    assert without_seg("the drum" + "[SE" * depth + "[SEG]" + "G]" * depth) == "the drum"
