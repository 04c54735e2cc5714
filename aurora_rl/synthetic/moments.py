"""Questions about when a thing sounds in a synthetic clip, with their gold reasoning.

Every sounding category is asked for, and one that does not sound: one in view where there is one, so that neither the
picture nor the question tells whether the answer is "never".
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from aurora_rl.synthetic.config import TRAINED_CATEGORIES
from aurora_rl.synthetic.references import heard_step, seen_step
from aurora_rl.synthetic.scene import SoundEvent


@dataclasses.dataclass(frozen=True)
class Moment:
    """One question about one clip.

    Attributes:
        category: what is asked for.
        spans: when it sounds, (start, end) in shares of the clip; () for never.
        kind: "never", "alone" if nothing else sounds in the clip, else "one of two".
        reasoning: gold reasoning before the answer.
    """

    category: str
    spans: tuple[tuple[float, float], ...]
    kind: str
    reasoning: str


def moments_of(seen: Sequence[str], sounds: Sequence[SoundEvent], rng: np.random.Generator) -> list[Moment]:
    """List the questions of a clip.

    Args:
        seen: categories in view, from left to right.
        sounds: sounds in order of onset.
        rng: random generator of the category that does not sound.
    """
    heard = [sound.category for sound in sounds]
    reasoning = f"Look: {seen_step(seen)}\nListen: {heard_step(heard)}"
    kind = "alone" if len(sounds) == 1 else "one of two"
    silent = [category for category in seen if category not in heard]
    others = silent or [category for category in TRAINED_CATEGORIES if category not in {*seen, *heard}]
    return [
        *(Moment(sound.category, ((sound.start, sound.end),), kind, reasoning) for sound in sounds),
        Moment(str(rng.choice(others)), (), "never", reasoning),
    ]
