"""The order of the rows of a run, which is the same in an unbroken run and in a resumed one."""

import itertools
from collections.abc import Callable, Iterator

from torch.utils.data import Sampler
from trl.trainer.utils import RepeatSampler

from aurora_rl.data.mixing import Mix


class EpochOrder(Sampler):
    """TRL's sampler with an order that depends on the epoch alone.

    TRL draws the orders of all epochs from one generator, which a resumed run starts again: a run that resumes in a
    later epoch would get the order of the first one. The sampler calls `epoch` instead of having the number set, so
    that the number reaches it through whatever accelerate wraps around it.

    Args:
        sampler: TRL's sampler.
        epoch: function that returns the number of the epoch that begins.
    """

    def __init__(self, sampler: RepeatSampler, epoch: Callable[[], int]) -> None:
        self.sampler = sampler
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return self.of(self.epoch())

    def of(self, epoch: int) -> Iterator[int]:
        """Return the order of an epoch; it is drawn at the first `next`, and orders drawn before stay as they are."""
        if self.sampler.shuffle:
            self.sampler.generator.manual_seed(self.sampler.seed + epoch)
        return iter(self.sampler)

    def rows(self, epoch: int) -> list[int]:
        """Return the order of an epoch, each row once."""
        given = self.sampler
        seed = given.seed + epoch
        return list(RepeatSampler(given.data_source, 1, given.batch_size, shuffle=given.shuffle, seed=seed))

    def __len__(self) -> int:
        return len(self.sampler)


class MixedOrder(Sampler):
    """The order of the rows of several data sets, `data.mixing.Mix`, in the place of a trainer's own sampler.

    Args:
        mix: the order of an epoch's rows.
        epoch: function that returns the number of the epoch that begins, as in `EpochOrder`.
        copies: G, how often a row comes in succession; each unit of the mix then comes `repeats` times, as in TRL's
            `RepeatSampler`.
        repeats: number of times that a unit comes.
    """

    def __init__(self, mix: Mix, epoch: Callable[[], int], *, copies: int = 1, repeats: int = 1) -> None:
        self.mix = mix
        self.epoch = epoch
        self.copies = copies
        self.repeats = repeats

    def __iter__(self) -> Iterator[int]:
        return self.of(self.epoch())

    def of(self, epoch: int) -> Iterator[int]:
        """Return the order of an epoch."""
        order = self.mix.order(epoch)
        while unit := list(itertools.islice(order, self.mix.unit)):
            for _ in range(self.repeats):
                for index in unit:
                    yield from itertools.repeat(index, self.copies)

    def rows(self, epoch: int) -> list[int]:
        """Return the order of an epoch without copies."""
        return list(self.mix.order(epoch))

    def __len__(self) -> int:
        return len(self.mix) * self.copies * self.repeats
