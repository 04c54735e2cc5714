"""Clips of the synthetic benchmark as video files, made on demand."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

from aurora_rl.data.footage import Picture, open_footage
from aurora_rl.inference.overlay import OverlayVideo
from aurora_rl.models.clip_options import ClipOptions
from aurora_rl.synthetic import SyntheticConfig
from aurora_rl.synthetic.clips import make_clip

#: Number of the first example in the train split; no benchmark is that large, so no model was trained on it.
FIRST_CLIP = 1_000_000
REFERENCES = 2  # number of references of an example


class SyntheticExamples:
    """Makes clips with references, one after the other without end.

    Args:
        folder: folder of the examples, each of which has a folder of its own in it.
        options: how clips are given to the model; an example is as long as the model's training clips.
    """

    def __init__(self, folder: Path, options: ClipOptions) -> None:
        self.folder = folder
        seconds = max(1.0, options.num_frames / options.fps)
        self.config = SyntheticConfig(
            frames=max(1, round(seconds * options.fps)), seconds=seconds, rows_per_clip=REFERENCES
        )
        self._numbers = itertools.count(FIRST_CLIP)

    def write_next(self) -> tuple[Path, list[str]]:
        """Write the next clip, and return its file and its references."""
        clip = make_clip(self.config, "train", next(self._numbers))
        path = Path(tempfile.mkdtemp(prefix="example-", dir=self.folder)) / "example.mp4"
        footage = open_footage(list(clip.frames), audio=clip.waveform, fps=self.config.fps)
        with OverlayVideo(path, footage) as video:
            for picture in footage.pictures():
                video.write(Picture(picture.time, picture.pixels))
        return path, [reference.sentence for reference in clip.references]
