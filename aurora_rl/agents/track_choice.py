"""The agents' other order, `evidence: tracks`: the segmenter follows all candidates first, then the agents choose.

    recognise x N -> consensus -> phrase -> tracks -> reason (1, or N and a judge) -> check -> accept
                                    ^---------- rephrase, or another thing -----------|

After AgentRVOS (arXiv 2603.23489), whose abstract alone was read: an agent chooses among what SAM 3 has followed.
Rounds, votes and limits are those of `agents.investigation`. Reasoners who agree need no judge, since their choices can
be compared, as free words cannot.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from aurora_rl.agents.consensus import Consensus, Vote, has_quorum, majority
from aurora_rl.agents.investigation import (
    NULL,
    NULL_BY_CHECK,
    AgentArguments,
    Attempt,
    Findings,
    Segmentation,
    Voices,
    all_of,
    is_denied,
    outcome_of,
    reasoners_and_modality,
    recognise,
)
from aurora_rl.agents.roles import (
    ACCEPT,
    CHECK,
    CONCEPT,
    JUDGE,
    NO_TARGET,
    NOTHING,
    PERSONAS,
    REASON,
    REPHRASE,
    choosing,
)
from aurora_rl.agents.track_pictures import describe_tracks

#: Why an attempt without tracks ended.
NOT_FOUND = "the segmenter found no such thing"


async def choose_track(
    reference: str, voices: Voices, find_tracks: Callable[[str], Sequence[Segmentation]], args: AgentArguments
) -> Findings:
    """Let the agents work on one reference.

    Args:
        reference: the referring sentence.
        voices: who plays the roles.
        find_tracks: function of a noun phrase that returns the tracks of all things it names, possibly none.
        args: numbers of agents, rounds and checks.

    Raises:
        NoAnswerError: of a voice that does not answer.
    """
    recognised = await recognise(reference, voices, args)
    choice = _Choice(reference, voices, find_tracks, *reasoners_and_modality(recognised, args))
    first: np.ndarray | None = None
    for number in range(args.max_checks + 1):
        masks = await choice.attempt(is_last=number == args.max_checks)
        first = masks if first is None else first
        if choice.is_nothing or is_denied(choice.attempts):
            outcome = NULL if choice.is_nothing else NULL_BY_CHECK
            return choice.findings(recognised, outcome, None, first)
        if choice.attempts[-1].verdict == ACCEPT:
            break
    return choice.findings(recognised, outcome_of(choice.attempts), masks, first)


@dataclasses.dataclass
class _Choice:
    """The attempts at one reference.

    Attributes:
        reference: the referring sentence.
        voices: who plays the roles.
        find_tracks: function of a noun phrase that returns tracks.
        num_reasoners: number of agents that reason.
        modality: medium that they are given first.
        attempts: attempts so far.
        reasonings: replies of reasoners and judges so far.
        is_nothing: whether the last reasoners said that the reference points at nothing.
    """

    reference: str
    voices: Voices
    find_tracks: Callable[[str], Sequence[Segmentation]]
    num_reasoners: int
    modality: str
    attempts: list[Attempt] = dataclasses.field(default_factory=list)
    reasonings: list[dict[str, str]] = dataclasses.field(default_factory=list)
    is_nothing: bool = False

    async def attempt(self, *, is_last: bool) -> np.ndarray | None:
        """Ask for a phrase, a track and, but in the last attempt, a check; return the track's masks (F, H, W)."""
        history = self._history()
        phrase = (await self.voices.say(CONCEPT, f"The sentence: {self.reference}{history}"))["phrase"]
        tracks = await asyncio.to_thread(self.find_tracks, phrase)
        if not tracks:
            self.attempts.append(Attempt(phrase, None, NO_TARGET, NOT_FOUND, num_tracks=0))
            return None
        text = f'The sentence: {self.reference}\nTracks of "{phrase}":\n{describe_tracks(tracks)}{history}'
        reply = await self._choose(text, tracks, may_be_other=not is_last)
        number = int(reply["target"]) if reply["target"].isdecimal() else None
        if number is None:
            self.is_nothing = reply["target"] == NOTHING
            verdict = None if self.is_nothing else REPHRASE
            self.attempts.append(Attempt(phrase, None, verdict, reply["reason"], len(tracks)))
            return None
        chosen = tracks[number - 1]
        verdict_of = {} if is_last else await self._check(text, tracks, number)
        self.attempts.append(
            Attempt(phrase, chosen.score, verdict_of.get("verdict"), verdict_of.get("reason", ""), len(tracks), number)
        )
        return chosen.masks

    async def _choose(self, text: str, tracks: Sequence[Segmentation], *, may_be_other: bool) -> dict[str, str]:
        """Return the reply that decides: one of those whose choice two thirds of the reasoners share, or a judge's."""
        masks = [track.masks for track in tracks]
        role = choosing(REASON, len(tracks), may_be_other=may_be_other)
        said = (
            self.voices.say(role, text, persona=persona, modality=self.modality, tracks=masks)
            for persona in PERSONAS[: self.num_reasoners]
        )
        replies = await all_of(said)
        self.reasonings += replies
        votes = [Vote(reply["target"], reply["reason"]) for reply in replies]
        if has_quorum(votes):
            return next(reply for reply in replies if reply["target"] == majority(votes)[0])
        reasons = "".join(f"\n- {vote.label}: {vote.reason}" for vote in votes)
        judge = choosing(JUDGE, len(tracks), may_be_other=may_be_other)
        asked = f"{text}\nWhat people said:{reasons}"
        verdict = await self.voices.say(judge, asked, modality=self.modality, tracks=masks)
        self.reasonings.append(verdict)
        return verdict

    async def _check(self, text: str, tracks: Sequence[Segmentation], number: int) -> dict[str, str]:
        others = [track.masks for track in tracks]
        asked = f"{text}\nTrack {number} was taken for it; it alone is coloured in the last frames."
        return await self.voices.say(CHECK, asked, masks=tracks[number - 1].masks, tracks=others)

    def _history(self) -> str:
        """Write what was tried before and why it was rejected; nothing in the first attempt."""
        if not self.attempts:
            return ""
        lines = (
            f'\n- "{tried.phrase}"{"" if tried.track is None else f", track {tried.track}"}: {tried.reason}'
            for tried in self.attempts
        )
        return f"\nTried before, and what was wrong:{''.join(lines)}"

    def findings(
        self, recognised: Consensus, outcome: str, masks: np.ndarray | None, first: np.ndarray | None
    ) -> Findings:
        """Return what was said, with the masks of the end and of the first track that was chosen."""
        last = self.attempts[-1]
        target = None if last.track is None else f'track {last.track} of "{last.phrase}"'
        return Findings(recognised, tuple(self.reasonings), target, tuple(self.attempts), outcome, masks, first)
