"""Reference segmentation: a clip and a sentence; four steps of reasoning and the masks of what it refers to."""

from __future__ import annotations

import os
from pathlib import Path

from aurora_rl.data.chains import ChainFile
from aurora_rl.data.sample import AVSample
from aurora_rl.tasks.completions import ParsedCompletion, normalise_category
from aurora_rl.tasks.prompts import SEG_TOKEN, render_chain


def chain_file(path: str | os.PathLike[str]) -> ChainFile:
    """Return a file of chains of thought that are written down in the four steps of this task."""
    return ChainFile(Path(path), render_chain, answer_token=SEG_TOKEN)


def see_score(parsed: ParsedCompletion, sample: AVSample) -> float | None:
    """Return 1 if the chain names exactly the objects in view, each once, else 0; None where the truth is unknown."""
    if sample.seen is None:
        return None
    named = parsed.seen
    if named is None or len(named) != len(set(named)):
        return 0.0
    return float(set(named) == set(map(normalise_category, sample.seen)))


def hear_score(parsed: ParsedCompletion, sample: AVSample) -> float | None:
    """Return 1 if the chain names exactly the sounds, in order of onset, else 0; None where the truth is unknown."""
    if sample.heard is None:
        return None
    return float(parsed.heard == tuple(map(normalise_category, sample.heard)))
