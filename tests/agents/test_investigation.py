"""The agents' rounds against closed forms: scripted voices with known error rates, a segmenter with known ones."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aurora_rl.agents.consensus import Vote, delphi, has_quorum, majority
from aurora_rl.agents.investigation import (
    FIRST,
    MENDED,
    NULL,
    NULL_BY_CHECK,
    UNCHECKED,
    AgentArguments,
    Findings,
    Segmentation,
    investigate,
)
from aurora_rl.agents.roles import CHECK, JUDGE, PHRASE, REASON, RECOGNISE, SEVERITY, Role
from aurora_rl.endpoint.errors import BadReplyError

RIGHT, WRONG = np.ones((1, 2, 2), bool), np.zeros((1, 2, 2), bool)


class Scripted:
    """Voices that answer by functions of the role's name; notes what was said."""

    def __init__(self, **answers: Callable[..., dict[str, str]]) -> None:
        usual = {
            "recognise": lambda **said: {"difficulty": "hard", "modality": "sound", "reason": "r"},
            "reason": lambda **said: {"target": "the drum", "reason": "r"},
            "judge": lambda **said: {"target": "the drum", "reason": "r"},
            "phrase": lambda **said: {"phrase": "drum"},
            "check": lambda **said: {"verdict": "accept", "reason": "r"},
        }
        self.answers = usual | answers
        self.said: list[tuple[str, str]] = []

    async def say(self, role: Role, text: str, **options: Any) -> dict[str, str]:
        self.said.append((role.name, text))
        return self.answers[role.name](text=text, **options)

    def roles(self) -> list[str]:
        return [name for name, _ in self.said]


def look(voices: Scripted, segment: Callable[[str], Segmentation], **options: int) -> Findings:
    return asyncio.run(investigate("the loud one", voices, segment, AgentArguments(**options)))


def always(masks: np.ndarray) -> Callable[[str], Segmentation]:
    return lambda phrase: Segmentation(masks, 0.5)


def checking(*verdicts: str) -> Callable[..., dict[str, str]]:
    left = list(verdicts)
    return lambda **said: {"verdict": left.pop(0), "reason": "too small"}


# ---- votes


def test_of_equally_many_votes_the_gravest_wins():
    votes = [Vote("easy, both"), Vote("hard, picture"), Vote("hard, sound")]
    assert majority(votes, SEVERITY) == ("hard, sound", pytest.approx(1 / 3))
    assert majority([Vote("a"), Vote("b")]) == ("a", 0.5)
    assert has_quorum([Vote("a"), Vote("a"), Vote("b")]) and not has_quorum([Vote("a"), Vote("b")])


def test_a_majority_of_three_is_right_as_often_as_the_binomial_says():
    """Three that are right with .7, independently: .7^3 + 3 .7^2 .3 = .784; three copies of one: .7."""
    rng = random.Random(0)
    two_kinds = [[Vote(str(rng.random() < 0.7)) for _ in range(3)] for _ in range(1000)]
    assert sum(majority(of_row)[0] == "True" for of_row in two_kinds) / 1000 == pytest.approx(0.784, abs=0.03)
    copies = [[Vote(str(right))] * 3 for right in (rng.random() < 0.7 for _ in range(1000))]
    assert sum(majority(of_row)[0] == "True" for of_row in copies) / 1000 == pytest.approx(0.7, abs=0.03)


def test_rounds_end_at_agreement_or_at_their_number():
    asked: list[int] = []

    async def never(last: list[Vote]) -> list[Vote]:
        asked.append(len(last))
        return [Vote("a"), Vote("b"), Vote("c")]

    async def at_once(last: list[Vote]) -> list[Vote]:
        return [Vote("a"), Vote("a"), Vote("c")]

    ended = asyncio.run(delphi(never, max_rounds=3))
    assert (len(ended.rounds), asked, has_quorum(ended.rounds[-1])) == (3, [0, 3, 3], False)
    agreed = asyncio.run(delphi(at_once, max_rounds=3))
    assert (agreed.label, len(agreed.rounds), has_quorum(agreed.rounds[-1])) == ("a", 1, True)
    with pytest.raises(ValueError, match="nobody voted"):
        asyncio.run(delphi(lambda last: asyncio.sleep(0, []), max_rounds=1))
    with pytest.raises(ValueError, match="expected one at least"):
        asyncio.run(delphi(never, max_rounds=0))


# ---- rows


def test_an_accepted_row_asks_everybody_once():
    voices = Scripted()
    found = look(voices, always(RIGHT))
    assert voices.roles() == ["recognise"] * 3 + ["reason"] * 3 + ["judge", "phrase", "check"]
    assert (found.outcome, found.target, found.attempts[0].score) == (FIRST, "the drum", 0.5)
    assert found.masks is RIGHT and found.to_record()["agreement"] == 1.0


def test_an_easy_row_has_one_reasoner_and_no_judge():
    voices = Scripted(recognise=lambda **said: {"difficulty": "easy", "modality": "sound", "reason": "r"})
    look(voices, always(RIGHT))
    assert voices.roles() == ["recognise"] * 3 + ["reason", "phrase", "check"]


def test_agents_that_disagree_see_all_votes_without_names():
    kinds = iter(["picture", "sound", "both"] * 3)
    voices = Scripted(recognise=lambda **said: {"difficulty": "hard", "modality": next(kinds), "reason": "why"})
    found = look(voices, always(RIGHT))
    second = [text for name, text in voices.said if name == "recognise"][3]
    assert all(f"hard, {kind}: why" in second for kind in ("picture", "sound", "both"))
    assert len(found.recognition.rounds) == 3 and found.recognition.label == "hard, both"


def test_the_deciding_medium_comes_first():
    told: list[str] = []
    voices = Scripted(reason=lambda modality, **said: told.append(modality) or {"target": "x", "reason": "r"})
    look(voices, always(RIGHT))
    assert told == ["sound"] * 3


@pytest.mark.parametrize(("nothings", "outcome"), [(3, NULL), (2, NULL), (1, FIRST)])
def test_nothing_is_meant_if_two_of_three_reasoners_say_so(nothings, outcome):
    said = iter(["Nothing."] * nothings + ["the drum"] * (3 - nothings))
    voices = Scripted(reason=lambda **_: {"target": next(said), "reason": "r"})
    found = look(voices, always(RIGHT))
    assert found.outcome == outcome and (found.masks is None) == (outcome == NULL)


def test_a_rejected_phrase_is_told_with_the_reason():
    voices = Scripted(check=checking("rephrase", "accept"))
    found = look(voices, always(RIGHT))
    assert found.outcome == MENDED and '"drum": too small' in [t for name, t in voices.said if name == "phrase"][1]


def test_two_checks_that_find_no_target_are_believed_one_is_not():
    assert look(Scripted(check=checking("no target", "no target")), always(RIGHT)).outcome == NULL_BY_CHECK
    found = look(Scripted(check=checking("no target", "accept")), always(RIGHT))
    assert found.outcome == MENDED and found.masks is RIGHT


def test_after_the_last_check_the_next_masks_stand_unchecked():
    voices = Scripted(check=checking("rephrase", "rephrase"))
    found = look(voices, always(RIGHT), max_checks=2)
    assert found.outcome == UNCHECKED and [attempt.verdict for attempt in found.attempts] == ["rephrase"] * 2 + [None]
    assert look(Scripted(), always(RIGHT), max_checks=0).attempts[0].verdict is None


@pytest.mark.parametrize(
    ("sensitivity", "false_alarm", "expected"),
    [(0.9, 0.1, 0.907), (0.5, 0.5, 0.600)],
)
def test_a_check_helps_as_much_as_it_sees(sensitivity, false_alarm, expected):
    """A segmenter right .6 a try, 3 checks: a sum(w^t) + q w^3, with a = q (1 - f) and w = q f + (1 - q) s."""
    q, rng = 0.6, random.Random(1)
    w = q * false_alarm + (1 - q) * (1 - (1 - sensitivity))
    closed = q * (1 - false_alarm) * sum(w**t for t in range(3)) + q * w**3
    assert closed == pytest.approx(expected, abs=1e-3)

    def check(masks: np.ndarray, **said: Any) -> dict[str, str]:
        rejects = rng.random() < (false_alarm if masks.all() else sensitivity)
        return {"verdict": "rephrase" if rejects else "accept", "reason": "r"}

    async def rows() -> list[Findings]:
        def segment(phrase: str) -> Segmentation:
            return Segmentation(RIGHT if rng.random() < q else WRONG)

        return [await investigate("x", Scripted(check=check), segment, AgentArguments(agents=1)) for _ in range(1000)]

    right = sum(bool(found.masks.all()) for found in asyncio.run(rows()))
    assert right / 1000 == pytest.approx(expected, abs=0.03)


# ---- replies


@pytest.mark.parametrize(
    ("role", "text"),
    [
        (RECOGNISE, '{"difficulty": "medium", "modality": "both", "reason": "r"}'),
        (RECOGNISE, '{"difficulty": "easy", "modality": "both"}'),
        (REASON, '{"target": "", "reason": "r"}'),
        (JUDGE, '{"target": ["a"], "reason": "r"}'),
        (PHRASE, "drum"),
        (CHECK, '{"verdict": "maybe", "reason": "r"}'),
        (CHECK, "[]"),
    ],
)
def test_an_unreadable_reply_is_no_opinion(role, text):
    with pytest.raises(BadReplyError):
        role.read(text)


def test_a_reply_is_read_in_any_case_and_kept_short():
    read = CHECK.read('Sure: {"verdict": "No Target", "reason": "' + "a " * 1000 + '"}')
    assert read["verdict"] == "no target" and len(read["reason"]) == 600
    assert set(CHECK.schema["properties"]) == {"verdict", "reason"}
    assert '"accept" or "rephrase" or "no target"' in CHECK.system_prompt("You.")


@pytest.mark.parametrize("options", [{"agents": 0}, {"agents": 6}, {"max_rounds": 0}, {"max_checks": -1}])
def test_numbers_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match="expected"):
        AgentArguments(**options)
