"""Targets of supervised fine-tuning: each stage has a function from a sample to its `Target`.

teacher       "It is drum [SEG]."                                                            stage 0
chain         "Look: ... Answer: the target is the drum. It is [SEG]."                       stage 1
answer        "the target is the drum. It is [SEG]."                                         stage 1, without chains
reflection    a chain that went wrong, "Wait, let me reconsider.", and the chain that is right    stage 2
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence

from aurora_rl.data.sample import AVSample
from aurora_rl.tasks.base import Target
from aurora_rl.tasks.prompts import REFLECTION_TRIGGER, answer_for, teacher_answer


def forced_answer(sample: AVSample) -> Target:
    """Return the teacher's completion, which has no reasoning."""
    return Target(teacher_answer(sample.category))


def gold_chain(sample: AVSample) -> Target:
    """Return the four-step chain.

    Raises:
        ValueError: if the sample has none.
    """
    if sample.chain is None:
        raise ValueError(
            f"sample {sample.key} has no chain of thought: name a file that holds it with `chains`, or train the "
            "answer alone by `target: answer`"
        )
    return Target(sample.chain)


def answer_only(sample: AVSample) -> Target:
    """Return the last sentences of a chain, for a benchmark that has no chains of thought."""
    return Target(answer_for(sample.category))


def reflection(sample: AVSample, *, learn_wrong: bool = False) -> Target:
    """Return y_wrong + trigger + y_correct for a row with a mistake, the chain alone for others (paper, stage 2).

    Args:
        sample: a row; its `wrong` is the chain of an earlier model, without `[SEG]`.
        learn_wrong: whether y_wrong carries labels, too. Without them the model learns when to withdraw a chain and
            how to continue, but not to make the mistake.

    Raises:
        ValueError: if the sample has no chain.
    """
    chain = gold_chain(sample).learned
    if sample.wrong is None:
        return Target(chain)
    # The line break is learned: after a wrong answer it decides between "Wait" and "It is [SEG]."
    correction = f"\n{REFLECTION_TRIGGER}\n{chain}"
    return Target(sample.wrong + correction) if learn_wrong else Target(correction, given=sample.wrong)


#: The functions by the name that a YAML file gives as `target`.
TARGETS: dict[str, Callable[[AVSample], Target]] = {
    "teacher": forced_answer,
    "chain": gold_chain,
    "answer": answer_only,
    "reflection": reflection,
    "reflection_learn_wrong": functools.partial(reflection, learn_wrong=True),
}


def mistakes_and_replay(samples: Sequence[AVSample], *, replay_share: float, seed: int) -> list[AVSample]:
    """Choose the rows of reflective training: all with a mistake, and a share of rows without one.

    Without rows that are answered correctly at once, a model learns to withdraw every answer.

    Args:
        samples: rows of the training split.
        replay_share: share of the result that has no mistake, in [0, 1).
        seed: seed of the choice among the rows without a mistake.

    Returns:
        The rows in the samples' order; fewer without a mistake where there are not enough.

    Raises:
        ValueError: if the share is out of range, or no row has a mistake.
    """
    if not 0 <= replay_share < 1:
        raise ValueError(f"replay_share is {replay_share}: expected at least 0 and less than 1")
    mistakes = [sample for sample in samples if sample.wrong is not None]
    if not mistakes:
        raise ValueError(f"none of {len(samples)} rows has a mistake: name a file that holds them with `reflections`")
    others = [sample for sample in samples if sample.wrong is None]
    num_replayed = min(len(others), round(len(mistakes) * replay_share / (1 - replay_share)))
    replayed = random.Random(seed).sample(others, num_replayed)
    return sorted([*mistakes, *replayed], key=lambda sample: sample.row)
