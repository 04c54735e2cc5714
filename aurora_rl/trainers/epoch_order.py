"""The order of GRPO's prompts, which is the same in an unbroken run and in a resumed one."""

from collections.abc import Callable, Iterator

from torch.utils.data import Sampler
from trl.trainer.utils import RepeatSampler


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

    def __len__(self) -> int:
        return len(self.sampler)
