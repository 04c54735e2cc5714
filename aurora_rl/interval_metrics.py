"""Spans of time against the truth: pure functions for rewards and evaluation.

Spans are pairs (start, end) in seconds after the clip's start. Those of one answer may overlap; together they are the
set of moments that they cover.
"""

from __future__ import annotations

from collections.abc import Sequence

Span = tuple[float, float]


def join_spans(spans: Sequence[Span]) -> list[Span]:
    """Return the same moments as spans that do not touch, in order of time; spans without length are left out.

    >>> join_spans([(2.0, 3.0), (0.5, 1.0), (1.0, 1.5), (4.0, 4.0)])
    [(0.5, 1.5), (2.0, 3.0)]
    """
    joined: list[Span] = []
    for start, end in sorted(spans):
        if end <= start:
            continue
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def temporal_iou(predicted: Sequence[Span], true: Sequence[Span]) -> float:
    """Return the length of the moments in both over that of the moments in either, in [0, 1].

    Moments that are empty on both sides agree, as empty masks do: the IoU is then 1.

    >>> temporal_iou([(0.0, 2.0)], [(1.0, 2.0), (3.0, 4.0)])
    0.3333333333333333
    >>> temporal_iou([], []), temporal_iou([(0.0, 1.0)], [])
    (1.0, 0.0)
    """
    predicted, true = join_spans(predicted), join_spans(true)
    both = sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in predicted for b in true)
    either = _length(predicted) + _length(true) - both
    return both / either if either > 0 else 1.0


def _length(spans: Sequence[Span]) -> float:
    return sum(end - start for start, end in spans)
