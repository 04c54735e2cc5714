"""The size of a synthetic benchmark, and the categories of its splits."""

import dataclasses
from typing import TypeVar

#: Categories of every split.
TRAINED_CATEGORIES = ("bell", "drum", "flute", "emergency-car", "engine", "dog", "bird", "piano")
#: Categories that occur in test_u only.
UNSEEN_CATEGORIES = ("guitar", "clock", "cat")

#: The splits of Ref-AVSBench, in the order of metadata.csv.
SPLITS = ("train", "val", "test_s", "test_u", "test_n")


Number = TypeVar("Number", int, float)


def _option(default: Number, help_text: str) -> Number:
    return dataclasses.field(default=default, metadata={"help": help_text})


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """Size of a synthetic benchmark; the fields are also the command line of `data_prep/make_synthetic.py`.

    A clip depends on its split, its index and the options of media only, so a benchmark with more clips begins
    with the clips of a smaller one.

    Raises:
        ValueError: if an option is out of range.
    """

    train: int = _option(600, "clips of the train split, without the null clips added to it")
    val: int = _option(60, "clips of the val split, without the null clips added to it")
    test_s: int = _option(100, "clips of the split test_s, with categories of the train split")
    test_u: int = _option(100, "clips of the split test_u, with categories that are never trained")
    test_n: int = _option(60, "clips of the split test_n, with null references")
    rows_per_clip: int = _option(3, "references of each train clip, all different; clips of other splits have one")
    frames: int = _option(4, "number of frames of a clip")
    size: int = _option(64, "height and width of a frame, in pixels")
    seconds: float = _option(2.0, "length of a clip in seconds; frames / seconds is the loader's fps")
    sampling_rate: int = _option(16_000, "sampling rate of the sound, in Hz")
    seed: int = _option(0, "seed of the whole benchmark")

    def __post_init__(self) -> None:
        # In smaller frames objects have too few pixels, in shorter clips two onsets are too close to tell apart, and
        # lower rates lose the overtones that distinguish two timbres.
        least = {"frames": 1, "rows_per_clip": 1, "size": 32, "seconds": 1.0, "sampling_rate": 16_000}
        for name, value in vars(self).items():
            if value < least.get(name, 0):
                raise ValueError(f"{name}={value} is too small: give at least {least.get(name, 0)}")

    @property
    def fps(self) -> float:
        """Frames a second."""
        return self.frames / self.seconds

    @property
    def num_samples(self) -> int:
        """Samples of a clip's audio."""
        return round(self.seconds * self.sampling_rate)
