"""Where a training can be watched: the tracker that its numbers go to, and the samples of its evaluations."""

from __future__ import annotations

import dataclasses
from typing import Any

from aurora_rl.assembly.trackers import check_trackers, default_tracker


@dataclasses.dataclass
class WatchedMixin:
    """Options of watching a run, for the configs of SFT and GRPO.

    Attributes:
        report_to: trackers, see `TrainingArguments`. None is trackio where it is installed, whose page is on this
            machine and needs no account, else none.
        sample_rows: number of rows whose answers are shown after each evaluation, see `report.run_samples`; 0 for none.

    Raises:
        ValueError: if `sample_rows` is negative, or a tracker is not installed.
    """

    report_to: None | str | list[str] = dataclasses.field(
        default=None,
        metadata={
            "help": "Trackers of the numbers: trackio, tensorboard, wandb, or none; if none is named, trackio where it "
            "is installed."
        },
    )
    sample_rows: int = dataclasses.field(
        default=4,
        metadata={
            "help": "Rows whose answers each evaluation shows in output_dir/samples and the tracker; 0 for none."
        },
    )

    def __post_init__(self) -> None:
        if self.sample_rows < 0:
            raise ValueError(f"sample_rows={self.sample_rows}: give the number of rows to show, or 0 for none")
        if self.report_to is None:
            self.report_to = default_tracker()
            self._stay_local()
        check_trackers(self.report_to)
        super().__post_init__()  # type: ignore[misc]

    def _stay_local(self) -> None:
        """Keep a tracker that nobody has named here: with `push_to_hub` transformers would upload its page."""
        options: Any = self
        if self.report_to == "trackio" and options.trackio_static_space_id is None:
            options.trackio_static_space_id = False
