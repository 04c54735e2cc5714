"""Tables of an evaluation's rows, for any system: means, both kinds of Mix, intervals, groups.

Every row of metadata.csv counts, exact duplicates included, as in the official Ref-AVS script. Sums are rounded once
(`math.fsum`), so that neither the order of the rows nor the number of processes changes a digit.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from aurora_rl.evaluation.intervals import bootstrap_mean_of_means
from aurora_rl.evaluation.measures import MEASURES, TARGET_MEASURES, Measure, mean, measures_of
from aurora_rl.evaluation.records import RowResult
from aurora_rl.tasks.completions import normalise_category
from aurora_rl.tasks.matchers import LETTERS

#: The seen and the unseen split, over which Mix is computed.
MIX_SPLITS = ("test_s", "test_u")

Table = dict[str, float | int]
Intervals = dict[str, dict[str, float]]  # mean, low and high of each number
GroupKey = Callable[[RowResult], str | None]


def mark_novelty(rows: Iterable[RowResult], train_categories: Iterable[str]) -> list[RowResult]:
    """Set the rows' `novelty` by the categories of the training split; without categories it stays None."""
    trained = set(map(normalise_category, train_categories))
    if not trained:
        return list(rows)
    return [dataclasses.replace(row, novelty=_novelty(row, trained)) for row in rows]


def _novelty(row: RowResult, trained: set[str]) -> str | None:
    if row.is_null or not row.category:
        return None
    return "seen" if normalise_category(row.category) in trained else "new"


def novelty_group(row: RowResult) -> str | None:
    """Return a group such as "test_u, new categories"; None outside the unseen split, or if `novelty` is unknown."""
    is_known = row.split == MIX_SPLITS[1] and row.novelty
    return f"{row.split}, {row.novelty} categories" if is_known else None


def right_letter(row: RowResult) -> str | None:
    """Return the letter of a question's right option; None for a row without options."""
    return None if row.choices is None or row.answer is None else LETTERS[row.choices.index(row.answer)]


def chosen_letter(row: RowResult) -> str | None:
    """Return the letter of the option that a model has chosen; None where its answer cannot be read."""
    return None if row.greedy is None or row.greedy.chosen is None else LETTERS[row.greedy.chosen]


def letter_counts(rows: Sequence[RowResult]) -> dict[str, dict[str, int]]:
    """Count how often each letter is `right` and is `chosen`, which shows a model that prefers a place in the list."""
    right, chosen = (Counter(map(letter, rows)) for letter in (right_letter, chosen_letter))
    letters = sorted({*right, *chosen} - {None}, key=str)
    return {str(letter): {"right": right[letter], "chosen": chosen[letter]} for letter in letters}


#: Functions that group rows, by the names of the tables in scores.json.
GROUPINGS: dict[str, GroupKey] = {
    "by_category": lambda row: row.category or None,  # a question may be about none
    "by_reference_type": lambda row: row.reference_type,
    "by_novelty": novelty_group,
    "by_letter": right_letter,
}


def score_tables(rows: Sequence[RowResult]) -> dict[str, Any]:
    """Compute the content of scores.json.

    Args:
        rows: rows scored under one preset; from `mark_novelty`, if the unseen split's new categories are separated.

    Returns:
        Values of `number_tables`, and `intervals`: the 95 % bootstrap interval over clips of each number of `overall`,
        `splits`, `mix` and each table, except groups of a single clip and `F_pooled`.

    Raises:
        ValueError: if there are no rows, or they were scored under several presets.
    """
    groupings = {"splits": group_rows(rows, _split)} | {name: group_rows(rows, key) for name, key in GROUPINGS.items()}
    intervals = {name: {group: _intervals(of) for group, of in groups.items()} for name, groups in groupings.items()}
    mix = {definition: groups and _mix_intervals(groups) for definition, groups in _mix_groups(rows).items()}
    return number_tables(rows) | {"intervals": {"overall": _intervals(rows), "mix": mix, **intervals}}


def common_tables(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Collect the numbers of several data sets, which are not averaged: their scores differ in meaning.

    Args:
        scores: content of scores.json of each data set, by its name.

    Returns:
        `datasets`: each set's `preset`, `overall` and `clips`; `splits`: the table of each split of each set, by
        `<data set>/<split>`; `preset`: those of all sets; `mix`: empty; `source`: the model.
    """
    kept = ("preset", "overall", "clips")
    return {
        "preset": ", ".join(dict.fromkeys(tables["preset"] for tables in scores.values())),
        "datasets": {name: {key: tables[key] for key in kept} for name, tables in scores.items()},
        "splits": {
            f"{name}/{split}": numbers for name, tables in scores.items() for split, numbers in tables["splits"].items()
        },
        "mix": {},
        "source": next(iter(scores.values()))["source"],
    }


def _split(row: RowResult) -> str:
    return row.split


def number_tables(rows: Sequence[RowResult]) -> dict[str, Any]:
    """Compute the tables without their intervals, which are slow.

    Args:
        rows: rows scored under one preset, see `score_tables`.

    Returns:
        `preset`; `overall`: the table of all rows; `splits`: each split's; `mix`: J and F over the seen and the unseen
        split by both definitions that papers give, None where one is absent; `tables`: those `by_category`,
        `by_reference_type`, `by_novelty` and `by_letter` (of the right option); `letters`: how often each letter is
        right and is chosen; `clips`: how many clips the rows are about; `derived_types`: rows whose reference type is
        derived from the sentence; `duplicates`: rows that repeat an earlier row's uid and sentence, and count as any
        other.

    Raises:
        ValueError: as `score_tables`.
    """
    return {
        "preset": only_preset(rows),
        "overall": table(rows),
        "splits": _tables_by(rows, _split),
        "mix": {definition: groups and _mix_table(groups) for definition, groups in _mix_groups(rows).items()},
        "tables": {name: _tables_by(rows, key) for name, key in GROUPINGS.items()},
        "letters": letter_counts(rows),
        "clips": len({row.media_id for row in rows}),
        "derived_types": sum(row.type_is_derived for row in rows),
        "duplicates": len(rows) - len({(row.split, row.uid, row.reference) for row in rows}),
    }


def table(rows: Sequence[RowResult]) -> Table:
    """Compute the numbers of some rows: each measure that applies, and counts.

    `n` counts rows; if some but not all are null references, `n_null` is their number and `n` that of the others.
    `missing` counts rows without a prediction of masks, if masks are scored, and `unreadable` greedy completions that
    hold no answer, or none of the question's options, if the rows are a model's.
    """
    measures = measures_of(rows)
    numbers: Table = {name: value for name, measure in measures.items() if (value := measure.over(rows)) is not None}
    num_null = sum(row.is_null for row in rows)
    has_both = 0 < num_null < len(rows)
    counts = {"n": len(rows) - num_null, "n_null": num_null} if has_both else {"n": len(rows)}
    if any(row.masks for row in rows):
        counts["missing"] = sum(row.is_missing for row in rows)
    if any(row.greedy for row in rows):
        counts["unreadable"] = sum(row.is_unreadable for row in rows)
    return numbers | counts


def only_preset(rows: Iterable[RowResult]) -> str:
    """Return the preset of all rows.

    Raises:
        ValueError: if there are several, or no rows.
    """
    presets = sorted({row.preset for row in rows})
    if len(presets) != 1:
        raise ValueError(f"the rows were scored under the presets {presets}: give rows of exactly one")
    return presets[0]


def group_rows(rows: Iterable[RowResult], key: GroupKey) -> dict[str, list[RowResult]]:
    """Group rows by name, groups of only null references last; rows whose key is None are skipped."""
    groups: defaultdict[str, list[RowResult]] = defaultdict(list)
    for row in rows:
        if (name := key(row)) is not None:
            groups[name].append(row)
    return {
        name: groups[name] for name in sorted(groups, key=lambda name: (all(row.is_null for row in groups[name]), name))
    }


def _tables_by(rows: Iterable[RowResult], key: GroupKey) -> dict[str, Table]:
    return {name: table(group) for name, group in group_rows(rows, key).items()}


def _mix_groups(rows: Sequence[RowResult]) -> dict[str, list[list[RowResult]] | None]:
    """Return the groups whose means each definition of Mix averages; None if one of the two splits is absent."""
    seen, unseen = ([row for row in rows if row.split == split and not row.is_null] for split in MIX_SPLITS)
    if not seen or not unseen:
        return {"mean_of_splits": None, "row_weighted": None}
    return {"mean_of_splits": [seen, unseen], "row_weighted": [[*seen, *unseen]]}


def _mix_table(groups: Sequence[Sequence[RowResult]]) -> Table:
    values = {name: [MEASURES[name].over(group) for group in groups] for name in TARGET_MEASURES}
    known = {name: [value for value in of if value is not None] for name, of in values.items()}
    return {name: mean(of) for name, of in known.items() if len(of) == len(groups)}


def _intervals(rows: Sequence[RowResult]) -> Intervals:
    """Compute the interval of each number; none for rows of a single clip, as nothing is known of other clips."""
    drawn = {name: _draws(measure, rows) for name, measure in measures_of(rows).items()}
    return {name: _interval([draws]) for name, draws in drawn.items() if len(set(draws[1])) > 1}


def _mix_intervals(groups: Sequence[Sequence[RowResult]]) -> Intervals:
    drawn = {name: [_draws(MEASURES[name], rows) for rows in groups] for name in TARGET_MEASURES}
    return {name: _interval(draws) for name, draws in drawn.items() if all(values for values, _ in draws)}


Draws = tuple[list[float], list[str]]


def _draws(measure: Measure, rows: Iterable[RowResult]) -> Draws:
    """Return the numbers of the rows that a measure applies to, and their clips."""
    pairs = measure.pairs(rows)
    return [value for _, value in pairs], [row.media_id for row, _ in pairs]


def _interval(groups: Sequence[Draws]) -> dict[str, float]:
    """Compute the mean of the groups' means with its interval."""
    return dataclasses.asdict(bootstrap_mean_of_means(groups))
