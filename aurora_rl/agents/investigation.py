"""What the agents do with one row: recognise, reason, phrase, segment, check; with any voices and any segmenter.

    recognise x N -> consensus -> reason (1, or N and a judge) -> phrase -> segment -> check -> accept
                                                                   ^-------- rephrase --------|

Departures from MAR3 (arXiv 2603.27706), whose abstract alone is public: the rule (easy references have one reasoner,
hard ones N and a judge), the numbers of agents, rounds and checks, and when it ends are ours. `agents.track_choice` has
the other order, in which the segmenter comes before the reasoners.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np

from aurora_rl.agents.consensus import Consensus, Vote, delphi, has_quorum, majority
from aurora_rl.agents.roles import (
    ACCEPT,
    CHECK,
    EASY,
    JUDGE,
    NO_TARGET,
    NOTHING,
    PERSONAS,
    PHRASE,
    REASON,
    RECOGNISE,
    SEVERITY,
    Role,
    points_at_nothing,
    recognition,
)

#: How a row ended: masks accepted at the first check, at a later one, or at none; or the reference points at nothing,
#: by the reasoners or by two checks.
OUTCOMES = FIRST, MENDED, UNCHECKED, NULL, NULL_BY_CHECK = (
    "accepted at first",
    "accepted later",
    "not accepted",
    "nothing meant",
    "nothing found",
)
#: Checks that say that there is no such target, at which it is believed.
NO_TARGET_CHECKS = 2
#: What the reasoners have before them: the clip alone, or the segmenter's tracks too.
Evidence = Literal["clip", "tracks"]
EVIDENCE = CLIP_ALONE, TRACKS = get_args(Evidence)


@dataclasses.dataclass
class AgentArguments:
    """How many agents there are, and when they end.

    Attributes:
        agents: number N of agents that recognise a reference, and that reason about a hard one.
        max_rounds: largest number of rounds of the vote about difficulty and modality.
        max_checks: largest number of checks of the masks; 0 takes the first masks as they are.
        evidence: "clip", whose reasoners describe the target for the segmenter, or "tracks", whose reasoners choose
            among numbered tracks that the segmenter found before.
    """

    agents: int = dataclasses.field(default=3, metadata={"help": "Number of agents that judge and reason."})
    max_rounds: int = dataclasses.field(default=3, metadata={"help": "Largest number of rounds of their vote."})
    max_checks: int = dataclasses.field(default=3, metadata={"help": "Largest number of checks of a row's masks."})
    evidence: Evidence = dataclasses.field(
        default="clip",
        metadata={"help": "What reasoners have: the clip, or also numbered tracks to choose from (clip, tracks)."},
    )

    def __post_init__(self) -> None:
        if not 1 <= self.agents <= len(PERSONAS):
            raise ValueError(f"agents is {self.agents}: expected 1 to {len(PERSONAS)}, one for each persona")
        if self.max_rounds < 1 or self.max_checks < 0:
            raise ValueError(
                f"max_rounds is {self.max_rounds}, max_checks {self.max_checks}: expected 1 or more, 0 or more"
            )
        if self.evidence not in EVIDENCE:
            raise ValueError(f"evidence is {self.evidence!r}: choose from {', '.join(EVIDENCE)}")


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """Masks of a phrase.

    Attributes:
        masks: (F, H, W) bool.
        score: how sure the segmenter is, in [0, 1]; None if it does not say.
    """

    masks: np.ndarray
    score: float | None = None


class Voices(Protocol):
    """Who plays the roles: an endpoint, or a script in tests."""

    async def say(
        self,
        role: Role,
        text: str,
        *,
        persona: str = "",
        modality: str = "both",
        masks: np.ndarray | None = None,
        tracks: Sequence[np.ndarray] = (),
    ) -> dict[str, str]:
        """Return the fields of an agent's reply.

        Args:
            role: the role that it plays.
            text: what it is asked.
            persona: who it is.
            modality: medium that it is given first.
            masks: (F, H, W) bool masks that are drawn on the frames it sees.
            tracks: (F, H, W) bool masks of each of several tracks, which it sees with their numbers, from 1.
        """


class Segment(Protocol):
    """A segmenter of the row's clip."""

    def __call__(self, phrase: str) -> Segmentation:
        """Return the masks of what a noun phrase names."""


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One phrase and what became of it.

    Attributes:
        phrase: phrase that the segmenter was given.
        score: the segmenter's score.
        verdict: the check's verdict; None for masks that were not checked.
        reason: the check's reason.
        num_tracks: number of tracks that were found by the phrase; None where tracks are no evidence.
        track: number of the one that was chosen, from 1; None for none.
    """

    phrase: str
    score: float | None
    verdict: str | None = None
    reason: str = ""
    num_tracks: int | None = None
    track: int | None = None

    def to_record(self) -> dict[str, Any]:
        """Return the fields in JSON's types; those of tracks only where there are any."""
        record = dataclasses.asdict(self)
        of_tracks = {"num_tracks": record.pop("num_tracks"), "track": record.pop("track")}
        return record if self.num_tracks is None else {**record, **of_tracks}


@dataclasses.dataclass(frozen=True)
class Findings:
    """All that was said about a row, and its masks.

    Attributes:
        recognition: the vote about difficulty and modality.
        reasonings: replies of the reasoners, and of the judge, if there was one.
        target: what is meant; None if nothing is.
        attempts: phrases in order.
        outcome: one of `OUTCOMES`.
        masks: (F, H, W) bool masks of the end; None for a reference that points at nothing, or if no track was found.
        first_masks: masks of the first phrase, or of the first track that was chosen.
    """

    recognition: Consensus
    reasonings: tuple[dict[str, str], ...]
    target: str | None
    attempts: tuple[Attempt, ...]
    outcome: str
    masks: np.ndarray | None = None
    first_masks: np.ndarray | None = None

    def to_record(self) -> dict[str, Any]:
        """Return everything but the masks in JSON's types."""
        return {
            "difficulty_and_modality": self.recognition.label,
            "agreement": round(self.recognition.share, 4),
            "votes": [[dataclasses.asdict(vote) for vote in votes] for votes in self.recognition.rounds],
            "reasonings": list(self.reasonings),
            "target": self.target,
            "attempts": [attempt.to_record() for attempt in self.attempts],
            "outcome": self.outcome,
        }


async def investigate(reference: str, voices: Voices, segment: Segment, args: AgentArguments) -> Findings:
    """Let the agents work on one reference.

    Raises:
        NoAnswerError: of a voice that does not answer.
    """
    recognised = await recognise(reference, voices, args)
    reasonings, target = await _reason(reference, voices, *reasoners_and_modality(recognised, args))
    if target is None:
        return Findings(recognised, tuple(reasonings), None, (), NULL)
    attempts: list[Attempt] = []
    first: np.ndarray | None = None
    for number in range(args.max_checks + 1):
        phrase = (await voices.say(PHRASE, _phrase_question(reference, target, attempts)))["phrase"]
        found = await asyncio.to_thread(segment, phrase)
        first = found.masks if first is None else first
        is_last = number == args.max_checks
        verdict = {} if is_last else await voices.say(CHECK, f"The sentence: {reference}", masks=found.masks)
        attempts.append(Attempt(phrase, found.score, verdict.get("verdict"), verdict.get("reason", "")))
        if is_denied(attempts):
            return Findings(recognised, tuple(reasonings), target, tuple(attempts), NULL_BY_CHECK, None, first)
        if is_last or attempts[-1].verdict == ACCEPT:
            break
    outcome = outcome_of(attempts)
    return Findings(recognised, tuple(reasonings), target, tuple(attempts), outcome, found.masks, first)


def is_denied(attempts: Sequence[Attempt]) -> bool:
    """Tell whether enough attempts ended with no such target for that to be believed."""
    return sum(attempt.verdict == NO_TARGET for attempt in attempts) >= NO_TARGET_CHECKS


def outcome_of(attempts: Sequence[Attempt]) -> str:
    """Return how a row with masks ended."""
    if attempts[-1].verdict != ACCEPT:
        return UNCHECKED
    return FIRST if len(attempts) == 1 else MENDED


def reasoners_and_modality(recognised: Consensus, args: AgentArguments) -> tuple[int, str]:
    """Return how many agents reason, one about an easy reference, and the medium that decides."""
    difficulty, _, modality = recognised.label.partition(", ")
    return 1 if difficulty == EASY else args.agents, modality


async def recognise(reference: str, voices: Voices, args: AgentArguments) -> Consensus:
    """Let the agents vote on how hard a reference is, and which medium decides it."""

    async def ask(last: Sequence[Vote]) -> list[Vote]:
        seen = "".join(f"\n- {vote.label}: {vote.reason}" for vote in last)
        others = f"\nIn the last round the votes were, without names:{seen}\nVote again." if last else ""
        text = f"The sentence: {reference}{others}"
        said = (voices.say(RECOGNISE, text, persona=persona) for persona in PERSONAS[: args.agents])
        return [recognition(reply) for reply in await all_of(said)]

    return await delphi(ask, max_rounds=args.max_rounds, severity=SEVERITY)


async def _reason(
    reference: str, voices: Voices, num_reasoners: int, modality: str
) -> tuple[list[dict[str, str]], str | None]:
    """Return all reasonings and the target, None for none: of one reasoner its own, of several what a judge says."""
    text = f"The sentence: {reference}"
    said = (voices.say(REASON, text, persona=persona, modality=modality) for persona in PERSONAS[:num_reasoners])
    replies = await all_of(said)
    meant = [Vote(NOTHING if points_at_nothing(reply["target"]) else "something") for reply in replies]
    if has_quorum(meant) and majority(meant)[0] == NOTHING:
        return replies, None
    if num_reasoners == 1:
        return replies, replies[0]["target"]
    reasons = "".join(f"\n- {reply['target']}: {reply['reason']}" for reply in replies)
    verdict = await voices.say(JUDGE, f"{text}\nWhat people said:{reasons}", modality=modality)
    return [*replies, verdict], None if points_at_nothing(verdict["target"]) else verdict["target"]


async def all_of(said: Iterable[Awaitable[dict[str, str]]]) -> list[dict[str, str]]:
    """Return all replies, or raise the first error once nobody is waited for any more."""
    replies = await asyncio.gather(*said, return_exceptions=True)
    if failed := next((reply for reply in replies if isinstance(reply, BaseException)), None):
        raise failed
    return [reply for reply in replies if not isinstance(reply, BaseException)]


def _phrase_question(reference: str, target: str, attempts: Sequence[Attempt]) -> str:
    question = f"The sentence: {reference}\nThe target: {target}"
    if not attempts:
        return question
    rejected = "".join(f'\n- "{attempt.phrase}": {attempt.reason}' for attempt in attempts)
    return f"{question}\nRejected phrases, and what was wrong with their masks:{rejected}"
