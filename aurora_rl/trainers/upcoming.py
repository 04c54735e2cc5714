"""A look at the batches that an epoch's iterator will give later."""

from collections.abc import Iterator
from typing import Any


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
