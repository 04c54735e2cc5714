"""Sizes of one pass of one process: tokens, patches and masks."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

from transformers import PretrainedConfig

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.data.containers import SAMPLING_RATE
from aurora_rl.data.media import read_clip_size, read_waveform
from aurora_rl.data.sample import AVSample
from aurora_rl.models.heads import MaskHead
from aurora_rl.models.mllm import ClipPass, ClipSize, MLLMFamily, TowerPass
from aurora_rl.rollout.environments import load_environment, tool_schemas
from aurora_rl.tasks.base import load_task

#: Characters of English text for a token of a large vocabulary; a low value, so that no text is underestimated.
CHARACTERS_PER_TOKEN = 3
#: Tokens of the chat template, the delimiters of the media and the reference's sentence.
TEMPLATE_TOKENS = 64
#: Assumed if no clip has been read: size of a video frame, number of frames, length of a chain of thought, and seconds
#: of the sound beside a still picture, which does not tell them.
ASSUMED_FRAME = (720, 1280)
ASSUMED_FRAMES = 10
ASSUMED_SECONDS = 10.0
ASSUMED_COMPLETION_TOKENS = 256


@dataclasses.dataclass(frozen=True)
class Clips:
    """Sizes of the clips, known or assumed.

    Attributes:
        count: number of distinct clips; None if no table has been read.
        frames: F, number of frames of the longest clip; 0 where all clips are sound alone.
        size: (H, W) of a frame in pixels.
        seconds: length of the longest sound, in seconds.
        completion_tokens: tokens of the longest gold completion.
    """

    count: int | None
    frames: int
    size: tuple[int, int]
    seconds: float
    completion_tokens: int = ASSUMED_COMPLETION_TOKENS

    @classmethod
    def assumed(cls, args: DataArguments, *, frames: int | None = None) -> Self:
        """Assume sizes from the arguments alone.

        Args:
            args: arguments that say how clips are given to the model.
            frames: F, if it is known; 0 for clips that are sound alone.
        """
        if frames is None:
            frames = args.num_frames or ASSUMED_FRAMES
        size = ASSUMED_FRAME if frames else (0, 0)
        return cls(None, frames, size, frames / args.fps if frames > 1 else ASSUMED_SECONDS)

    @classmethod
    def of(cls, samples: Sequence[AVSample]) -> Self:
        """Read sizes from the table of a benchmark, one frame's header, and the first sound without a film."""
        longest = max(samples, key=lambda sample: sample.num_frames)
        width, height = read_clip_size(longest)
        seconds = [sample.num_frames / sample.fps for sample in samples]
        heard = next((s.audio_path for s in samples if s.num_frames <= 1 and s.audio_path), None)
        seconds += [] if heard is None else [len(read_waveform(heard)) / SAMPLING_RATE]
        chains = [len(sample.chain) for sample in samples if sample.chain]
        return cls(
            count=len({sample.media_id for sample in samples}),
            frames=longest.num_frames,
            size=(height, width),
            seconds=max(seconds),
            completion_tokens=math.ceil(max(chains) / CHARACTERS_PER_TOKEN) if chains else ASSUMED_COMPLETION_TOKENS,
        )


@dataclasses.dataclass(frozen=True)
class Workload:
    """One forward and backward pass of one process.

    Attributes:
        rows: B, number of sequences.
        clips: U, number of distinct clips among them.
        prompt_tokens: tokens of one row's prompt.
        completion_tokens: tokens of one row's completion.
        towers: work of each tower for all clips, by the tower's dotted name.
        frames: F, number of frames of one clip.
        size: (H, W) of a frame in pixels.
        generated_rows: number of sequences sampled at a time; 0 in supervised training.
        num_steps: number of forward and backward passes of a process for one optimiser step.
        head: name of the head that the task needs; None for a task that is answered in words alone.
        generated_clips: number of distinct clips among the rows sampled at a time.
        shares_prompts: whether rows of one clip are a group that shares its prompt.
    """

    rows: int
    clips: int
    prompt_tokens: int
    completion_tokens: int
    towers: Mapping[str, TowerPass]
    frames: int
    size: tuple[int, int]
    generated_rows: int = 0
    num_steps: int = 1
    head: str | None = MaskHead.name
    generated_clips: int = 0
    shares_prompts: bool = False

    @property
    def has_masks(self) -> bool:
        """Whether masks are decoded. The activations of other heads, which are small beside them, are not counted."""
        return self.head == MaskHead.name

    @property
    def length(self) -> int:
        """L, the tokens of one row."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def row_tokens(self) -> int:
        """B x L, the tokens of all rows."""
        return self.rows * self.length

    @property
    def tokens(self) -> int:
        """Tokens that pass the decoder in training and scoring, as many as a `models.packed_layout` has.

        With shared prompts, all but the last token of a prompt pass once for all of its rows.
        """
        if not self.shares_prompts:
            return self.row_tokens
        return self.clips * (self.prompt_tokens - 1) + self.rows * (1 + self.completion_tokens)


def clip_pass(family: MLLMFamily, config: PretrainedConfig, data: DataArguments, clips: Clips) -> ClipPass:
    """Return what one clip takes of the prompt and of the towers."""
    clip = ClipSize(clips.frames, clips.size, clips.seconds, data.min_pixels, data.max_pixels)
    return family.clip_pass(config, clip)


def most_groups(rows: int, group: int, *, passes: int = 1) -> int:
    """Return the largest number of groups that one pass has rows of, where groups lie one behind the other.

    Args:
        rows: number of rows of a pass.
        group: number of rows of a group.
        passes: number of passes over a generation batch, the first of which begins with a group.

    >>> most_groups(8, 4), most_groups(2, 4, passes=2), most_groups(6, 4, passes=2)
    (2, 1, 2)
    """
    firsts = (number * rows for number in range(passes))
    return max((first + rows - 1) // group - first // group + 1 for first in firsts)


def build_workload(
    family: MLLMFamily, config: PretrainedConfig, data: DataArguments, args: Any, clips: Clips
) -> Workload:
    """Compute the sizes of a process's pass.

    Args:
        family: family of the model, which tells what a clip takes.
        config: config of the model.
        data: arguments that say how clips are given to the model.
        args: TRL's arguments, of SFT or (if they have `num_generations`) GRPO; the prompt shows the tools of their
            `environment_factory`.
        clips: sizes of the clips.

    Raises:
        ToolsError: if the environment cannot be used.
    """
    group = getattr(args, "num_generations", None)
    rows = args.per_device_train_batch_size
    passes = args.steps_per_generation if group else 1
    num_clips = most_groups(rows, group or 1, passes=passes)
    a_clip = clip_pass(family, config, data, clips)
    text = len(data.asked_instruction() + (data.system_prompt or "") + _tools_text(args))
    return Workload(
        rows=rows,
        clips=num_clips,
        prompt_tokens=a_clip.prompt_tokens + math.ceil(text / CHARACTERS_PER_TOKEN) + TEMPLATE_TOKENS,
        completion_tokens=args.max_completion_length if group else clips.completion_tokens,
        towers=a_clip.times(num_clips),
        frames=clips.frames,
        size=clips.size,
        generated_rows=rows * passes if group else 0,
        generated_clips=most_groups(rows * passes, group) if group else 0,
        num_steps=args.gradient_accumulation_steps,
        head=load_task(data.task).head,
    )


def _tools_text(args: Any) -> str:
    """Return the tools as the prompt describes them: in JSON, one a line."""
    factory = getattr(args, "environment_factory", None)
    return "" if factory is None else "\n".join(map(json.dumps, tool_schemas(load_environment(factory))))
