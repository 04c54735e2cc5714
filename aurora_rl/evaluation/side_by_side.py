"""The numbers of scores.json in the order in which tables show them: each beside the same with something taken away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def with_ablations(tables: Mapping[str, Any], *path: str) -> dict[str, Any]:
    """Return the numbers of groups, each followed by those of the same group under each ablation.

    Args:
        tables: content of scores.json.
        *path: keys that lead to the groups, such as "tables", "by_letter".
    """
    groups = _at(tables, path)
    ablations = tables.get("ablations", {})
    beside_each: dict[str, Any] = {}
    for group, numbers in groups.items():
        beside_each[group] = numbers
        for name, of_ablation in ablations.items():
            if group in (ablated := _at(of_ablation, path)):
                beside_each[f"{group}, {name.replace('_', ' ')}"] = ablated[group]
    return beside_each


def letter_rows(tables: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Return how often each letter is right, is chosen, and is chosen under each ablation; empty without options.

    `none` counts answers that choose no option.
    """
    if not tables.get("letters"):
        return {}
    passes = {"": tables, **{f", {name.replace('_', ' ')}": of for name, of in tables.get("ablations", {}).items()}}
    right = {letter: counts["right"] for letter, counts in tables["letters"].items()}
    chosen = {
        f"chosen{suffix}": {letter: counts["chosen"] for letter, counts in of["letters"].items()}
        | {"none": of["overall"].get("unreadable", 0)}
        for suffix, of in passes.items()
    }
    return {"right": right, **chosen}


def _at(tables: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    for key in path:
        tables = tables.get(key, {})
    return tables
