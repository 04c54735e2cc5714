"""Prompts whose sound, or whose frames, are another clip's: what shows whether a completion depends on them.

Another clip of the batch stands in where there is one, silence or black frames where there is none. The prompt is
encoded anew, so that lengths, positions and places of the sound between the frames are those of what it holds.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.models.tower_outputs import TowerOutputs


@dataclasses.dataclass(frozen=True)
class Sense:
    """A part of a clip that can be exchanged.

    Attributes:
        column: name of the rewards' column that tells what a completion owes to it.
        lack: what a model lacks that does not perceive it.
        field: field of `AVClip`.
        modalities: names of the towers that read it.
    """

    column: str
    lack: str
    field: str
    modalities: tuple[str, ...]

    def of(self, clip: AVClip) -> np.ndarray | None:
        """Return the part of a clip; None for a clip without it."""
        part: np.ndarray | None = getattr(clip, self.field)
        return part if part is not None and len(part) else None

    def put(self, part: np.ndarray, clip: AVClip) -> AVClip:
        """Return a clip with another part of this kind."""
        changes: dict[str, Any] = {self.field: part}
        return dataclasses.replace(clip, **changes)


HEARING = Sense("listening_gain", "ears", "waveform", ("audio",))
SIGHT = Sense("looking_gain", "eyes", "frames", ("image", "video"))
SENSES = (HEARING, SIGHT)
#: Columns of rewards, see `trainers.counterfactuals`.
GAIN_COLUMNS = tuple(sense.column for sense in SENSES)


@dataclasses.dataclass(frozen=True)
class Exchanged:
    """A row with another prompt.

    Attributes:
        row: the row as it was encoded, but for its prompt.
        other: row about the clip that gave its part; None if the part is silence, or black frames.
        lenders: row whose clip a tower reads in the new prompt, by the tower's modality; none for silence.
    """

    row: EncodedSample
    other: EncodedSample | None
    lenders: Mapping[str, EncodedSample]


def perceives(encode: SampleEncoder, sense: Sense, sample: AVSample | None = None) -> bool:
    """Tell whether the model is given a part of clips: it has the sense, and the sound is not dropped.

    Args:
        encode: the run's encoder.
        sense: the part.
        sample: the row in question; None for any row of the run.
    """
    if sense is SIGHT:
        return encode.family.sees is not None
    of_run = [part.options for part in encode.sets.values()] or [encode.options]
    options = of_run if sample is None else [encode.options_of(sample)]
    return encode.family.hears and not all(option.drop_sound for option in options)


def exchange(
    encode: SampleEncoder, rows: Sequence[EncodedSample], sense: Sense, rng: random.Random
) -> list[Exchanged | None]:
    """Encode rows about clips of which one part is another clip's.

    The other clip is of the same data set, with other content. Of several those about another category come first, then
    those of the same length, then chance decides. Each clip is read from its files once.

    Args:
        encode: the run's encoder.
        rows: B rows; the copies of one share the result.
        sense: the part that is exchanged.
        rng: source of that chance.

    Returns:
        One result a row, in order; None for a row that has no such part, or whose model is not given it.
    """
    distinct = {id(row.prompt): row for row in rows}
    clips = {row.sample.clip_key: encode.load(row.sample) for row in distinct.values()}
    order = rng.sample(list(distinct.values()), len(distinct))
    found = {key: _exchange(encode, row, order, clips, sense) for key, row in distinct.items()}
    return [found[id(row.prompt)] for row in rows]


def _exchange(
    encode: SampleEncoder,
    row: EncodedSample,
    order: Sequence[EncodedSample],
    clips: Mapping[tuple[str, str], AVClip],
    sense: Sense,
) -> Exchanged | None:
    clip = clips[row.sample.clip_key]
    part = sense.of(clip)
    if part is None or not perceives(encode, sense, row.sample):
        return None
    other = _other(row, part, order, clips, sense)
    sample, given = row.sample, np.zeros_like(part)
    if other is not None:
        given = getattr(clips[other.sample.clip_key], sense.field)
        sample = dataclasses.replace(sample, fps=other.sample.fps) if sense is SIGHT else sample
    prompt = encode.prompt_of(sample, sense.put(given, clip))
    givers = {modality: other if each is sense else row for each in SENSES for modality in each.modalities}
    # A tower reads a reference's own files together with the clip's.
    own = row.sample.reference_media
    lenders = {
        each: giver for each, giver in givers.items() if giver is not None and giver.sample.reference_media == own
    }
    return Exchanged(dataclasses.replace(row, prompt=prompt), other, lenders)


def _other(
    row: EncodedSample,
    part: np.ndarray,
    order: Sequence[EncodedSample],
    clips: Mapping[tuple[str, str], AVClip],
    sense: Sense,
) -> EncodedSample | None:
    """Return the row whose clip gives its part; None if no clip will do."""
    parts = [(other, sense.of(clips[other.sample.clip_key])) for other in order]
    fit = [
        (other, given)
        for other, given in parts
        if given is not None and other.sample.dataset == row.sample.dataset and not np.array_equal(given, part)
    ]
    same = [(other.sample.category == row.sample.category, given.shape != part.shape) for other, given in fit]
    return fit[same.index(min(same))][0] if fit else None


def towers_of(exchanged: Sequence[Exchanged | None], outputs: TowerOutputs | None) -> TowerOutputs | None:
    """Return what frozen towers have computed for the parts that exchanged prompts are made of.

    Args:
        exchanged: results of `exchange`.
        outputs: what is kept of the batch's own clips.

    Returns:
        The same by the prompts' own features. None where every tower has to run: nothing is kept, or the processes must
        call the same modules, and one of them may have a silence, which no tower has heard.
    """
    if outputs is None or outputs.in_step:
        return None
    borrowed = outputs.without_clips()
    for item in filter(None, exchanged):
        for modality, lender in item.lenders.items():
            borrowed.borrow(outputs, modality, item.row.prompt.features, lender.prompt.features)
    return borrowed
