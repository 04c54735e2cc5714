"""The agents' rounds against closed forms: scripted voices with known error rates, a segmenter with known ones."""

import asyncio
import json
from collections.abc import Callable

import numpy as np
import pytest

from aurora_rl.agents.closed_forms import RIGHT, ScriptedVoices, checked_rate, majority_rate, vote_rows
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
from aurora_rl.agents.roles import CHECK, JUDGE, PHRASE, REASON, RECOGNISE, SEVERITY
from aurora_rl.endpoint.errors import BadReplyError
from recipes.check_agents import main as check_agents


def look(voices: ScriptedVoices, segment: Callable[[str], Segmentation], **options: int) -> Findings:
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
    assert majority_rate(0.7, 3) == pytest.approx(0.784) and majority_rate(0.7, 1) == pytest.approx(0.7)
    assert sum(vote_rows(0.7, 3, 1000)) / 1000 == pytest.approx(0.784, abs=0.03)
    assert sum(vote_rows(0.7, 3, 1000, copies=True)) / 1000 == pytest.approx(0.7, abs=0.03)


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
    voices = ScriptedVoices()
    found = look(voices, always(RIGHT))
    assert voices.roles() == ["recognise"] * 3 + ["reason"] * 3 + ["judge", "phrase", "check"]
    assert (found.outcome, found.target, found.attempts[0].score) == (FIRST, "the drum", 0.5)
    assert found.masks is RIGHT and found.to_record()["agreement"] == 1.0


def test_an_easy_row_has_one_reasoner_and_no_judge():
    voices = ScriptedVoices(recognise=lambda **said: {"difficulty": "easy", "modality": "sound", "reason": "r"})
    look(voices, always(RIGHT))
    assert voices.roles() == ["recognise"] * 3 + ["reason", "phrase", "check"]


def test_agents_that_disagree_see_all_votes_without_names():
    kinds = iter(["picture", "sound", "both"] * 3)
    voices = ScriptedVoices(recognise=lambda **said: {"difficulty": "hard", "modality": next(kinds), "reason": "why"})
    found = look(voices, always(RIGHT))
    second = [text for name, text in voices.said if name == "recognise"][3]
    assert all(f"hard, {kind}: why" in second for kind in ("picture", "sound", "both"))
    assert len(found.recognition.rounds) == 3 and found.recognition.label == "hard, both"


def test_the_deciding_medium_comes_first():
    told: list[str] = []
    voices = ScriptedVoices(reason=lambda modality, **said: told.append(modality) or {"target": "x", "reason": "r"})
    look(voices, always(RIGHT))
    assert told == ["sound"] * 3


@pytest.mark.parametrize(("nothings", "outcome"), [(3, NULL), (2, NULL), (1, FIRST)])
def test_nothing_is_meant_if_two_of_three_reasoners_say_so(nothings, outcome):
    said = iter(["Nothing."] * nothings + ["the drum"] * (3 - nothings))
    voices = ScriptedVoices(reason=lambda **_: {"target": next(said), "reason": "r"})
    found = look(voices, always(RIGHT))
    assert found.outcome == outcome and (found.masks is None) == (outcome == NULL)


def test_a_rejected_phrase_is_told_with_the_reason():
    voices = ScriptedVoices(check=checking("rephrase", "accept"))
    found = look(voices, always(RIGHT))
    assert found.outcome == MENDED and '"drum": too small' in [t for name, t in voices.said if name == "phrase"][1]


def test_two_checks_that_find_no_target_are_believed_one_is_not():
    assert look(ScriptedVoices(check=checking("no target", "no target")), always(RIGHT)).outcome == NULL_BY_CHECK
    found = look(ScriptedVoices(check=checking("no target", "accept")), always(RIGHT))
    assert found.outcome == MENDED and found.masks is RIGHT


def test_after_the_last_check_the_next_masks_stand_unchecked():
    voices = ScriptedVoices(check=checking("rephrase", "rephrase"))
    found = look(voices, always(RIGHT), max_checks=2)
    assert found.outcome == UNCHECKED and [attempt.verdict for attempt in found.attempts] == ["rephrase"] * 2 + [None]
    assert look(ScriptedVoices(), always(RIGHT), max_checks=0).attempts[0].verdict is None


def test_a_check_helps_as_much_as_it_sees(tmp_path):
    """A segmenter right .6 a try, 3 checks: a sum(w^t) + q w^3, with a = q (1 - f) and w = q f + (1 - q) s."""
    assert checked_rate(0.6, 0.9, 0.1, 3) == pytest.approx(0.54 * (1 + 0.42 + 0.42**2) + 0.6 * 0.42**3)
    assert checked_rate(0.6, 0.5, 0.5, 7) == pytest.approx(0.6) == checked_rate(0.6, 0.9, 0.1, 0)
    check_agents(["--output_dir", str(tmp_path), "--rows", "1000"])
    result = json.loads((tmp_path / "result.json").read_text())
    assert [figure["met"] for figure in result["figures"]] == [True] * 4
    assert result["numbers"]["seeing_check"] == pytest.approx(0.907, abs=0.03)
    assert "| 0.600 ± 0.03 | met |" in (tmp_path / "table.md").read_text()


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
