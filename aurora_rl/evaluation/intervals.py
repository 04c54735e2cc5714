"""Confidence intervals of a mean, by resampling clips with replacement (percentile bootstrap, Efron 1979).

Several references ask about the same clip, and their results are correlated. So whole clips are drawn, not single rows:
an interval over rows would be too narrow.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float

    def in_words(self, *, signed: bool = False) -> str:
        """Write the mean and its interval, such as "0.500 [0.400, 0.600]"; a difference with its signs."""
        form = "+.3f" if signed else ".3f"
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"


def bootstrap_interval(
    values: Sequence[float],
    *,
    clips: Sequence[Hashable] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Compute the mean of `values` with its bootstrap interval. The order of the values does not matter.

    Args:
        values: N numbers, one a row.
        clips: N names of the rows' clips; rows of one clip are drawn together. None if each row has a clip of its
            own.
        num_resamples: number of sets of clips that are drawn.
        seed: seed of the draws.
        confidence: share of the resampled means inside the interval.

    Raises:
        ValueError: if there are no values, or the numbers of clips and values differ.
    """
    if not len(values):
        raise ValueError("there are no values to take the mean of: give at least one")
    if clips is not None and len(clips) != len(values):
        raise ValueError(f"there are {len(clips)} clips for {len(values)} values: give one clip a value")
    means = _resampled_means(values, clips, np.random.default_rng(seed), num_resamples=num_resamples)
    return _interval(math.fsum(values) / len(values), means, confidence)


def bootstrap_mean_of_means(
    groups: Sequence[tuple[Sequence[float], Sequence[Hashable]]],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Compute the mean of the groups' means with its interval; each group, such as a split, is drawn separately.

    Args:
        groups: values and clips of each group, see `bootstrap_interval`; no clip is in two groups.
        num_resamples, seed, confidence: see `bootstrap_interval`.
    """
    rng = np.random.default_rng(seed)
    resampled = [_resampled_means(values, clips, rng, num_resamples=num_resamples) for values, clips in groups]
    mean = math.fsum(math.fsum(values) / len(values) for values, _ in groups) / len(groups)
    return _interval(mean, np.mean(resampled, axis=0), confidence)


def bootstrap_difference(
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    clips: Mapping[str, Hashable] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Compute the mean of `after - before` with its interval, row by row.

    Args:
        before: value of each row, by the row's key.
        after: values of the same rows in the other run.
        clips: clip of each row, by the row's key; see `bootstrap_interval`.
        num_resamples: number of sets of clips that are drawn.
        seed: seed of the draws.
        confidence: share of the resampled means inside the interval.

    Raises:
        ValueError: if the two runs do not hold the same rows.
    """
    unpaired = sorted(before.keys() ^ after.keys())
    if unpaired:
        raise ValueError(
            f"{len(unpaired)} rows are in one run only, the first is {unpaired[0]!r}: evaluate both on the same rows"
        )
    keys = sorted(before)
    return bootstrap_interval(
        [after[key] - before[key] for key in keys],
        clips=[clips[key] for key in keys] if clips is not None else None,
        num_resamples=num_resamples,
        seed=seed,
        confidence=confidence,
    )


def bootstrap_over_seeds(
    differences: Sequence[Mapping[str, float]],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Compute the mean difference of two ways to train, each run with several seeds, with its interval.

    Seeds and rows are drawn independently, so that the interval covers both the variance of training with another seed
    and that of scoring other clips. With three seeds the first part is a rough estimate.

    Args:
        differences: differences of each seed by the row's key; one row a clip.
        num_resamples, seed, confidence: see `bootstrap_interval`.

    Raises:
        ValueError: if there is no seed or no row, or the seeds do not hold the same rows.
    """
    keys = sorted(differences[0]) if differences else []
    if not keys or any(sorted(of_seed) != keys for of_seed in differences):
        raise ValueError(f"{len(differences)} seeds with {len(keys)} rows in the first: give all the same rows")
    values = np.array([[of_seed[key] for key in keys] for of_seed in differences])  # (S, N)
    rng = np.random.default_rng(seed)
    seeds = rng.integers(len(values), size=(num_resamples, len(values)))
    rows = rng.integers(len(keys), size=(num_resamples, len(keys)))
    means = [values[of_seeds].mean(0)[of_rows].mean() for of_seeds, of_rows in zip(seeds, rows, strict=True)]
    return _interval(float(values.mean()), np.array(means), confidence)


def _interval(mean: float, resampled_means: np.ndarray, confidence: float) -> Interval:
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(resampled_means, [tail, 1.0 - tail])
    return Interval(mean=mean, low=float(low), high=float(high))


def _resampled_means(
    values: Sequence[float], clips: Sequence[Hashable] | None, rng: np.random.Generator, *, num_resamples: int
) -> np.ndarray:
    """Draw sets of clips with replacement and return their means, (num_resamples,)."""
    sums, counts = _sums_by_clip(values, clips)
    picks = rng.integers(len(sums), size=(num_resamples, len(sums)), dtype=np.int32)
    means: np.ndarray = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    return means


def _sums_by_clip(values: Sequence[float], clips: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """Return each clip's sum and number of values, in an order that does not depend on the rows' order."""
    if clips is None:
        return np.sort(np.asarray(values, dtype=np.float64)), np.ones(len(values))
    by_clip: defaultdict[Hashable, list[float]] = defaultdict(list)
    for clip, value in zip(clips, values, strict=True):
        by_clip[clip].append(value)
    pairs = sorted((math.fsum(group), len(group)) for group in by_clip.values())
    sums, counts = np.asarray(pairs, dtype=np.float64).T
    return sums, counts
