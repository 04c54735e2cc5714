"""Reference boxes: reference segmentation with a box and a point in place of each mask.

The text is the same, but for the token: a chain ends with "It is [BOX]."
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from aurora_rl.data.chains import ChainFile
from aurora_rl.data.sample import AVSample
from aurora_rl.tasks.base import Target
from aurora_rl.tasks.completions import ParsedCompletion
from aurora_rl.tasks.prompts import BOX_TOKEN, DEFAULT_INSTRUCTION, FINAL_SENTENCE, SEG_TOKEN, render_chain
from aurora_rl.tasks.reference_segmentation import ReferenceSegmentation


class ReferenceBoxes(ReferenceSegmentation):
    """Find what a sentence refers to, in four steps of reasoning, and say where it is by a box and a point."""

    head = "boxes"
    answer_token = BOX_TOKEN
    closing = FINAL_SENTENCE.replace(SEG_TOKEN, BOX_TOKEN)
    instruction = DEFAULT_INSTRUCTION.replace(SEG_TOKEN, BOX_TOKEN)

    def target(self, sample: AVSample) -> Target:
        return _with_boxes(super().target(sample))

    def targets(self) -> Mapping[str, Callable[[AVSample], Target]]:
        return {name: _of_boxes(target) for name, target in super().targets().items()}

    def chain_file(self, path: str | os.PathLike[str]) -> ChainFile:
        return ChainFile(Path(path), _render, answer_token=BOX_TOKEN)

    def parse(self, text: str) -> ParsedCompletion:
        """Read a completion as reference segmentation does; its `[SEG]`, which asks for nothing here, are no tokens."""
        parsed = super().parse(text.replace(SEG_TOKEN, "[seg]").replace(BOX_TOKEN, SEG_TOKEN))
        return dataclasses.replace(parsed, text=text)


def _with_boxes(target: Target) -> Target:
    return Target(*(part.replace(SEG_TOKEN, BOX_TOKEN) for part in (target.learned, target.given)))


def _of_boxes(target: Callable[[AVSample], Target]) -> Callable[[AVSample], Target]:
    return lambda sample: _with_boxes(target(sample))


def _render(steps: Mapping[str, str], answer: str) -> str:
    return render_chain(steps, answer).replace(SEG_TOKEN, BOX_TOKEN)
