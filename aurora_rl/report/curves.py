"""The learning curves of a page, and the keys of a trainer's log that each chart draws."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from aurora_rl.files.plain import parse_json, read_text_file
from aurora_rl.report.charts import Series, line_chart


@dataclasses.dataclass(frozen=True)
class Panel:
    """A chart, and the keys of a trainer's log that are its lines.

    Attributes:
        title: heading of the chart.
        key: pattern of the whole key; a group `name` is the line's label.
        is_share: whether the values lie in [0, 1].
    """

    title: str
    key: str
    is_share: bool = False


PANELS = (
    Panel("Loss", r"loss"),
    Panel("Reward", r"reward"),
    Panel("Rewards by function", r"rewards/(?P<name>.+)/mean", is_share=True),
    Panel("Chain of thought, share right", r"chain/(?P<name>.+)", is_share=True),
    Panel("Mask IoU by reference type", r"iou/(?P<name>.+)", is_share=True),
    Panel("Category by reference type, share right", r"category/(?P<name>.+)", is_share=True),
    Panel("KL from the reference model, nats a token", r"kl"),
    Panel("Entropy, nats a token", r"entropy"),
    Panel("Completion length, tokens", r"completions/mean_length"),
    Panel("Mask losses", r"mask_(?P<name>bce|dice|loss)"),
    Panel("With the true text ahead", r"(?P<name>teacher_forced_iou|mean_token_accuracy)", is_share=True),
    Panel("Reward by data set", r"dataset/(?P<name>.+)/reward"),
    Panel("IoU by data set", r"dataset/(?P<name>.+)/iou", is_share=True),
    Panel("Answers by data set, share right", r"dataset/(?P<name>.+/(category|accuracy))", is_share=True),
    Panel("Mask IoU by data set, with the true text ahead", r"dataset/(?P<name>.+)/teacher_forced_iou", is_share=True),
    Panel("To watch", r"(?P<name>frac_reward_zero_std|completions/clipped_ratio)", is_share=True),
)
_KEY_LABELS = {
    "frac_reward_zero_std": "groups without signal",
    "completions/clipped_ratio": "completions cut off",
    "see": "sees right",
    "hear": "hears right",
    "teacher_forced_iou": "mask IoU",
    "mean_token_accuracy": "tokens right",
    "mask_iou_reward": "mask IoU",
    "bce": "BCE",
    "dice": "Dice",
}
_MAX_SERIES = 6


def read_log_history(path: str | Path) -> list[dict[str, Any]]:
    """Read a trainer's log: one dict a logging step.

    Args:
        path: a `trainer_state.json`, or a folder that holds one.

    Raises:
        ValueError: if the file is not a trainer state.
    """
    path = Path(path)
    path = path / "trainer_state.json" if path.is_dir() else path
    try:
        return list(parse_json(read_text_file(path))["log_history"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no trainer state ({error}): give the file that trainer.save_state() writes"
        ) from error


def draw_curves(log_history: Sequence[Mapping[str, Any]], run: str) -> list[tuple[str, Markup]]:
    """Draw each panel that a run has logged: (heading, SVG)."""
    keys = dict.fromkeys(key for entry in log_history for key in entry)  # in the order in which they were first logged
    charts = []
    for panel in PANELS:
        matches = [match for key in keys if (match := re.fullmatch(panel.key, key))]
        lines = [_line(log_history, match) for match in matches]
        series = [line for line in lines if line.values][:_MAX_SERIES]
        if series:
            title = f"{run}: {panel.title}"
            charts.append((panel.title, Markup(line_chart(series, title=title, is_share=panel.is_share))))
    return charts


def _line(log_history: Sequence[Mapping[str, Any]], match: re.Match[str]) -> Series:
    """Return one key's numbers; an entry in which it is not a number has no point."""
    key, label = match[0], match.groupdict().get("name", match[0])
    points = [(entry["step"], entry[key]) for entry in log_history if isinstance(entry.get(key), int | float)]
    return Series(
        label=_KEY_LABELS.get(label, _readable(label)),
        steps=tuple(step for step, _ in points),
        values=tuple(value for _, value in points),
    )


def _readable(key: str) -> str:
    return key.removesuffix("_reward").replace("_", " ").replace("/", " ").strip()
