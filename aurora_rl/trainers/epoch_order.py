"""The order of GRPO's prompts, the same whether a run went through or was resumed."""

from collections.abc import Callable, Iterator

from torch.utils.data import Sampler
from trl.trainer.utils import RepeatSampler


class EpochOrder(Sampler):
    """TRL's sampler with an order that depends on the epoch alone.

    TRL draws the orders of all epochs from one generator, which a resumed run starts anew: resumed in a later epoch it
    would go on in the order of the first one. The epoch is asked for and not set, so that it reaches the sampler
    through whatever accelerate wraps around it.

    Args:
        sampler: TRL's.
        epoch: gives the number of the epoch that begins.
    """

    def __init__(self, sampler: RepeatSampler, epoch: Callable[[], int]) -> None:
        self.sampler = sampler
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return self.of(self.epoch())

    def of(self, epoch: int) -> Iterator[int]:
        """The order of an epoch, drawn at the first `next`; it changes nothing in one that has been drawn."""
        if self.sampler.shuffle:
            self.sampler.generator.manual_seed(self.sampler.seed + epoch)
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)
