"""Options of a model's training clips, noted in its checkpoint, so that new clips are prepared in the same way."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from aurora_rl.data.sample import AVSample
from aurora_rl.models.encoding import PromptOptions
from aurora_rl.tasks.reference_segmentation import ReferenceSegmentation


@dataclasses.dataclass(frozen=True)
class ClipOptions:
    """Options of the clips that a model was trained on.

    Attributes:
        prompt: wording of the prompt, and the frames' size for the vision tower.
        fps: frames a second.
        num_frames: largest number of frames of a clip; 0 for a training on sound alone.
        use_audio_in_video: whether the sound was interleaved with the frames.
        task: name of the task, `tasks.base.Task.name`; a checkpoint names no class to import.
    """

    prompt: PromptOptions = PromptOptions()
    fps: float = 1.0
    num_frames: int = 10
    use_audio_in_video: bool = False
    task: str = ReferenceSegmentation.__name__

    def __post_init__(self) -> None:
        if not self.fps > 0 or self.num_frames < 0:
            raise ValueError(
                f"clips of {self.num_frames} frames at {self.fps} a second: give positive numbers, or 0 frames"
            )

    @classmethod
    def of_samples(
        cls, samples: Sequence[AVSample], prompt: PromptOptions, *, task: str = ReferenceSegmentation.__name__
    ) -> ClipOptions:
        """Derive the options of a training set; where clips differ in rate, the most common one counts."""
        rates = collections.Counter(sample.sampled_fps or sample.fps for sample in samples)
        interleaved = sum(sample.use_audio_in_video for sample in samples)
        return cls(
            prompt=prompt,
            fps=rates.most_common(1)[0][0],
            num_frames=max(sample.num_frames for sample in samples),
            use_audio_in_video=2 * interleaved > len(samples),
            task=task,
        )

    def to_arguments(self, task: str = ReferenceSegmentation.__name__) -> dict[str, Any]:
        """Return the options by their names in `assembly.arguments.DataArguments`, for a run on a task.

        The instruction is left out where the model was trained on another task, and what a training on sound alone does
        not tell about frames.
        """
        fields = self.to_dict()
        arguments = {**fields.pop("prompt"), **fields}
        if not self.num_frames:
            del arguments["fps"], arguments["num_frames"]
        if arguments.pop("task") != task:
            del arguments["instruction"]
        return arguments

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON for a checkpoint's config."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ClipOptions:
        """Read the result of `to_dict`."""
        return cls(**{**fields, "prompt": PromptOptions(**fields["prompt"])})
