"""Media of the next rollouts are read while a step trains, so the rows of the next rollouts must be known early."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from trl import GRPOTrainer

from aurora_rl.data.mixing import Mix, MixedSet
from aurora_rl.data.sample import AVSample
from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.models.read_ahead import ReadAhead
from aurora_rl.trainers.epoch_order import EpochOrder, MixedOrder
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from aurora_rl.trainers.resumable import ResumableTrainer


class UpcomingBatches(Iterator[Any]):
    """An iterator over the same batches that can be asked for a later one.

    A batch holds rows of the dataset, that is paths and text; their media are read elsewhere.

    Args:
        batches: the epoch's iterator, which nobody else may use from now on.
    """

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches = batches
        self._drawn: dict[int, Any] = {}  # by place in the epoch, without those that are forgotten
        self._num_drawn = 0
        self._num_given = 0

    def __next__(self) -> Any:
        self._draw(self._num_given + 1)
        if self._num_given == self._num_drawn:
            raise StopIteration
        self._num_given += 1
        return self._drawn[self._num_given - 1]

    def look_ahead(self, place: int, distance: int) -> Any | None:
        """Return the batch that is `distance` batches after the one at `place`; None beyond the last one.

        Args:
            place: number of a batch in the epoch, counted from 0; batches before it are forgotten.
            distance: number of batches after it.
        """
        for known in [known for known in self._drawn if known < min(place, self._num_given)]:
            del self._drawn[known]
        self._draw(place + distance + 1)
        return self._drawn.get(place + distance)

    def _draw(self, num_batches: int) -> None:
        """Draw from the iterator until `num_batches` have been drawn in all, or it is at its end."""
        for _ in range(num_batches - self._num_drawn):
            try:
                batch = next(self.batches)
            except StopIteration:
                return
            self._drawn[self._num_drawn] = batch
            self._num_drawn += 1


class ReadAheadTrainer(ResumableTrainer, GRPOTrainer):
    """TRL's GRPOTrainer that encodes the rows of its next rollouts in a thread.

    Args:
        encode: encoder that turns a sample into tensors.
        sets: data sets whose rows follow one another in `train_dataset`; none in a run on one.
        *args: arguments of TRL's trainer.
        **kwargs: named arguments of TRL's trainer.
    """

    args: AuroraGRPOConfig

    def __init__(self, *args: Any, encode: SampleEncoder, sets: Sequence[MixedSet] = (), **kwargs: Any) -> None:
        self._ahead = ReadAhead(encode)
        self._sets = tuple(sets)
        self._order: EpochOrder | MixedOrder | None = None
        # The epoch's batches to come, and TRL's count of micro-batches at the epoch's start.
        self._upcoming: UpcomingBatches | None = None
        self._first_step = 0
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        sampler = super()._get_train_sampler(dataset)
        if not self._sets:
            self._order = EpochOrder(sampler, self._epoch)
            return self._order
        # The unit is a generation batch: of TRL's sampler it takes the sizes, in place of its rows.
        mix = Mix(self._sets, unit=sampler.batch_size, seed=self.args.seed, shuffle=sampler.shuffle)
        self._order = MixedOrder(mix, self._epoch, copies=sampler.mini_repeat_count, repeats=sampler.repeat_count)
        return self._order

    def _epoch(self) -> int:
        return int(self.state.epoch or 0)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `ResumableTrainer` does, and read media ahead meanwhile."""
        try:
            with self._ahead:
                return super().train(*args, **kwargs)
        finally:
            self._upcoming = None

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        if self._upcoming is None or self._upcoming.batches is not epoch_iterator:
            self._upcoming, self._first_step = UpcomingBatches(epoch_iterator), self._step
        return super().get_batch_samples(self._upcoming, num_batches, device)

    @property
    def _generate_every(self) -> int:
        """Number of micro-batches from one generation batch to the next."""
        return self.args.steps_per_generation * self.num_iterations

    def _encode_rows(self, inputs: list[dict[str, Any]]) -> list[EncodedSample]:
        """Read each distinct row once, ahead of its turn in training; its G copies share the tensors."""
        encoded = self._ahead.take([AVSample.from_row(row) for row in inputs])
        if self.model.training:
            self._ahead.begin([AVSample.from_row(row) for row in self._next_generation_batch()])
        return encoded

    def _next_generation_batch(self, further: int = 0) -> list[dict[str, Any]]:
        """Return the rows of this process's next rollouts; none if the run ends before them.

        Args:
            further: number of generation batches to leave out; 1 or more returns none beyond the end of the epoch.
        """
        if self._upcoming is None:
            return []
        distance = self._generate_every * (1 + further) - self._step % self._generate_every
        place, per_step = self._step - self._first_step, self.args.gradient_accumulation_steps
        end = place % per_step + distance  # micro-batches from the start of this step to the next rollouts
        steps_left = self.state.max_steps - self.state.global_step
        if end // per_step >= steps_left:
            return []
        rows = self._upcoming.look_ahead(place, distance)
        if rows is not None or further:
            return rows or []
        # The end of the epoch also ends a step, which may have fewer micro-batches.
        return self._first_rows_of_next_epoch() if math.ceil(end / per_step) < steps_left else []

    def _first_rows_of_next_epoch(self) -> list[dict[str, Any]]:
        """Predict which rows the data loader will give first; if it gives others, they are read when they come."""
        if self._order is None:
            return []
        num_rows = self.args.per_device_train_batch_size * self.args.steps_per_generation
        start = self.accelerator.process_index * num_rows
        order = self._order.of(int(self.state.epoch) + 1)
        return [self.train_dataset[index] for index in itertools.islice(order, start, start + num_rows)]
