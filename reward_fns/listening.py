"""Rewards for perceiving (optional): the completion says what it would not have said beside another sound, or picture.

A policy can answer many questions about sound from the picture alone, and rewards on the answer do not mind. These
compare the completion's likelihood with and without the clip's own sound. They do not ask whether the completion is
right, so they belong beside a reward that does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def listening_reward(
    prompts: list[Any], completions: list[Any], *, listening_gain: Sequence[float | None], **columns: Any
) -> list[float | None]:
    """Return what the clip's sound adds to the completion's likelihood, squashed to [0, 1]; 0.5 is nothing.

    With g, the mean over the completion's tokens of its log-probability beside the clip minus that beside the clip with
    another clip's sound (silence where the batch holds no other), it is 1 / (1 + exp(-g / 0.1)).

    Example: "I hear a drum." has 5 tokens. The own sound makes "drum" e times as likely as another one does, and the
    others as likely: g = 1/5 = 0.2, and the reward 1 / (1 + exp(-2)) = 0.881. A completion that does not depend on the
    sound earns 0.5, one that fits the other sound better less.

    >>> import math
    >>> gain = 1 / (1 + math.exp(-(1 / 5) / 0.1))
    >>> [round(reward, 3) for reward in listening_reward([None], ["I hear a drum."], listening_gain=[gain])]
    [0.881]

    Args:
        prompts: not read.
        completions: not read.
        listening_gain: the trainer's column, which it computes because the parameter is named here.
        **columns: not read.

    Returns:
        Per completion a number in [0, 1]; None for a clip without sound.
    """
    return list(listening_gain)


def looking_reward(
    prompts: list[Any], completions: list[Any], *, looking_gain: Sequence[float | None], **columns: Any
) -> list[float | None]:
    """Return what the clip's frames add to the completion's likelihood, as `listening_reward` does for the sound.

    Example: "I see a drum." has 5 tokens, one of which the frames of another clip make e times as likely: g = -1/5, and
    the reward is 1 / (1 + exp(2)) = 0.119.

    >>> import math
    >>> gain = 1 / (1 + math.exp(-(-1 / 5) / 0.1))
    >>> [round(reward, 3) for reward in looking_reward([None], ["I see a drum."], looking_gain=[gain])]
    [0.119]

    Args:
        prompts: not read.
        completions: not read.
        looking_gain: the trainer's column, which it computes because the parameter is named here.
        **columns: not read.

    Returns:
        Per completion a number in [0, 1]; None for a clip without frames.
    """
    return list(looking_gain)
