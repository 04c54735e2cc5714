"""Presets of J, F and S for each benchmark, defined in docs/evaluation.md."""

from __future__ import annotations

import dataclasses

_AREAS = "255 thresholds on {}, β² = 0.3; the best threshold of each clip"


@dataclasses.dataclass(frozen=True)
class Preset:
    """A benchmark's way to compute J and F.

    Attributes:
        size: side of the square that predictions and truth are resized to, in pixels; None keeps the frames' size.
        j_threshold: probability above which a pixel counts for J.
        j_meaning: masks and size that J is computed on, for the reader of a page.
        f_meaning: masks and thresholds that F compares, for the reader of a page.
        thresholds_logits: whether F's thresholds are applied to logits instead of probabilities.
        is_davis: whether J is 1 on a frame where both masks are empty and F compares outlines, as in DAVIS, instead of
            areas at 255 thresholds.
    """

    size: int | None
    j_threshold: float
    j_meaning: str
    f_meaning: str
    thresholds_logits: bool = False
    is_davis: bool = False


PRESETS = {
    # The official Ref-AVS script.
    "refavs": Preset(256, 0.4, "p > 0.4, at 256 x 256", _AREAS.format("probabilities, at 256 x 256")),
    "avsbench": Preset(224, 0.5, "p > 0.5, at 224 x 224", _AREAS.format("probabilities, at 224 x 224")),
    # The release of AURORA's authors.
    "aurora": Preset(
        None, 0.5, "p > 0.5, at the frames' size", _AREAS.format("logits, at the frames' size"), thresholds_logits=True
    ),
    "davis": Preset(
        None,
        0.5,
        "p > 0.5, at the frames' size; two empty masks agree",
        "of the masks' outlines, p > 0.5",
        is_davis=True,
    ),
}


def find_preset(name: str) -> Preset:
    """Return the preset of a name.

    Raises:
        ValueError: if there is none.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no evaluation preset {name!r}: use one of {', '.join(PRESETS)}")
    return PRESETS[name]
