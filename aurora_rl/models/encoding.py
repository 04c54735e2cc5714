"""Samples become tensors here: a sample's media and its messages make one `EncodedSample`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from aurora_rl.data.clip_reader import ClipReader
from aurora_rl.data.containers import MediaError
from aurora_rl.data.media import loudness_dbfs
from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.models.control_tokens import check_messages, naming, texts_of
from aurora_rl.models.head_tokens import head_token_id
from aurora_rl.models.mllm import EncodedPrompt, MLLMFamily
from aurora_rl.models.mllm.tool_calls import CallFinder
from aurora_rl.models.reference_media import (
    check_reference_media,
    has_recordings,
    sentence_about_media,
    with_reference_media,
)
from aurora_rl.tasks.base import PromptMedia, PromptText, Task
from aurora_rl.tasks.reference_segmentation import ReferenceSegmentation


@dataclasses.dataclass(frozen=True)
class EncodedSample:
    """A sample as the model reads it, with its truth.

    Attributes:
        sample: the sample's row.
        prompt: token ids and media tensors.
        frame_inputs: (F, ...) the head's input for each frame; None for a task that is answered in words alone.
        gt_masks: (A, H, W) bool, true masks of the annotated frames; None for a row without truth.
        loudness_dbfs: RMS of the clip's loudest 100 ms, in dBFS.
        frame_size: H and W of the frames in pixels; zeros for a clip without frames.
        annotated_frames: A indices in [0, F) of the frames that `gt_masks` holds, in order; None for all F.
        asks_head: whether the row's task asks the run's head. Others are beside such rows in a run on several data
            sets; they have one frame input of zeros, so that all processes run the same modules, and no truth.
    """

    sample: AVSample
    prompt: EncodedPrompt
    frame_inputs: torch.Tensor | None
    gt_masks: torch.Tensor | None
    loudness_dbfs: float
    frame_size: tuple[int, int]
    annotated_frames: tuple[int, ...] | None = None
    asks_head: bool = True


@dataclasses.dataclass(frozen=True)
class PromptOptions:
    """Options of the prompt that a sample becomes; the same for training, rollouts and evaluation.

    Attributes:
        instruction: user text with a `{reference}` field; None for the task's own.
        system_prompt: optional system message.
        min_pixels: lower limit of a frame's area for the vision tower, in pixels.
        max_pixels: upper limit of a frame's area for the vision tower, in pixels.
        drop_sound: whether the model is given no sound, which one without ears needs where clips have some.
    """

    instruction: str | None = None
    system_prompt: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    drop_sound: bool = False


@dataclasses.dataclass(frozen=True)
class SetPrompt:
    """What one of several data sets asks, and how.

    Attributes:
        task: its task.
        options: options of its prompts.
    """

    task: Task
    options: PromptOptions


class SampleEncoder:
    """Reads a sample's media and runs the family's processor on it.

    Args:
        family: the model's family.
        processor: the checkpoint's processor.
        frame_inputs: function from (sample, clip) to the head's inputs (F, ...): a frame encoder, or its cache; None
            for a task without a head.
        task: the task, which asks about a row; reference segmentation by default.
        options: options of the prompt.
        load: function that reads the media, a `ClipReader` by default; ablations that mute or blank a clip replace it.
        sets: task and options of each data set by its name, in a run on several; other rows have `task` and `options`.
        blank_frame: (1, ...) zeros in the form of `frame_inputs`, for rows whose task has no head.
        uses_gpu: whether `frame_inputs` runs an encoder on a GPU. Only the model's thread may do that: another thread
            would take memory that the model needs at that time.

    Attributes:
        tools: JSON schemas of the tools that the prompts show; none unless a trainer lets the model call them.
    """

    def __init__(
        self,
        family: MLLMFamily,
        processor: ProcessorMixin,
        frame_inputs: Callable[[AVSample, AVClip], torch.Tensor] | None,
        *,
        task: Task | None = None,
        options: PromptOptions | None = None,
        load: Callable[[AVSample], AVClip] | None = None,
        sets: Mapping[str, SetPrompt] | None = None,
        blank_frame: torch.Tensor | None = None,
        uses_gpu: bool = False,
    ) -> None:
        self.family = family
        self.processor = processor
        self.frame_inputs = frame_inputs
        self.task = task or ReferenceSegmentation()
        self.options = options or PromptOptions()
        self.load = load or ClipReader()
        self.sets = dict(sets or {})
        self.blank_frame = blank_frame
        self.uses_gpu = uses_gpu
        self.tools: Sequence[Mapping[str, Any]] = ()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.processor.tokenizer

    @property
    def in_calls(self) -> CallFinder | None:
        """What finds calls of tools in completions, where the head's token is no answer; None where none are made."""
        return self._call_finder if self.tools else None

    @functools.cached_property
    def _call_finder(self) -> CallFinder | None:
        tool_format = self.family.tool_format
        return None if tool_format is None else CallFinder(tool_format, self.tokenizer)

    @property
    def answer_token_id(self) -> int | None:
        """The id of the token at which the task's head predicts; None for a task without a head."""
        token = self.task.answer_token
        return None if self.task.head is None or token is None else head_token_id(self.tokenizer, token)

    def task_of(self, sample: AVSample) -> Task:
        """Return the task that asks a row's question: its data set's, or the run's only one."""
        of_set = self.sets.get(sample.dataset)
        return self.task if of_set is None else of_set.task

    def options_of(self, sample: AVSample) -> PromptOptions:
        """Return the options of a row's prompt, see `task_of`."""
        of_set = self.sets.get(sample.dataset)
        return self.options if of_set is None else of_set.options

    def _asks_head(self, sample: AVSample) -> bool:
        return self.task.head is None or self.task_of(sample).head is not None

    def check(self, samples: Sequence[AVSample]) -> None:
        """Check the rows' questions before the first clip is read, and whether the model can hear their sound.

        Raises:
            ControlTokenError: naming the row.
            MediaError: naming the first row with sound that the model has no ears for, or if the sound is dropped for a
                model that has nothing else.
        """
        for sample in samples:
            self._check_hearing(sample, has_sound=sample.audio_path is not None)
            check_reference_media(self.family, sample, drop_sound=self.options_of(sample).drop_sound)
        questions = [self._messages(sample) for sample in samples]
        # Thousands of rows share a question.
        first = {tuple(texts_of(question)): index for index, question in reversed(list(enumerate(questions)))}
        for index in sorted(first.values()):
            with naming(samples[index]):
                check_messages(self.tokenizer, questions[index])

    def text_prompt(self, sample: AVSample) -> list[dict[str, Any]]:
        """Return a row's message without its media, which TRL logs and hands to rewards."""
        return self.task_of(sample).messages(sample, instruction=self._instruction(sample))

    def __call__(self, sample: AVSample) -> EncodedSample:
        return self.prepare(sample)()

    def prepare(self, sample: AVSample) -> Callable[[], EncodedSample]:
        """Do the work that needs no GPU, in any thread, and return a function that does the rest."""
        clip = self.load(sample)
        if self.uses_gpu:
            encoded = self._encode(sample, clip, None)
            return lambda: dataclasses.replace(encoded, frame_inputs=self._frame_inputs(sample, clip))
        encoded = self._encode(sample, clip, self._frame_inputs(sample, clip))
        return lambda: encoded

    def encode_references(self, samples: Sequence[AVSample], clip: AVClip) -> list[EncodedSample]:
        """Encode several references to one clip, whose media are read already.

        The frames go through the image encoder once. The rows share one set of media tensors, so `distinct_media`
        finds that the towers need to run only once, but where a reference has files of its own.

        Args:
            samples: rows on the clip, equal except for their references.
            clip: the clip's media.
        """
        frame_inputs = self._frame_inputs(samples[0], clip)
        rows = [self._encode(sample, clip, frame_inputs) for sample in samples]
        shared = {row.sample.reference_media: row.prompt.features for row in reversed(rows)}
        prompts = [dataclasses.replace(row.prompt, features=shared[row.sample.reference_media]) for row in rows]
        return [dataclasses.replace(row, prompt=prompt) for row, prompt in zip(rows, prompts, strict=True)]

    def prompt_of(self, sample: AVSample, clip: AVClip) -> EncodedPrompt:
        """Encode a row's question about a clip in memory, such as one that has another clip's sound."""
        return self._encode(sample, clip, None).prompt

    def _frame_inputs(self, sample: AVSample, clip: AVClip) -> torch.Tensor | None:
        if self.frame_inputs is None:
            return None
        if not self._asks_head(sample):
            return self.blank_frame
        if not len(clip.frames):
            raise MediaError(
                f"sample {sample.key} has no frames, but the task predicts something in each frame: drop the row, or "
                "choose a task that is answered in words"
            )
        frame_inputs = self.frame_inputs(sample, clip)
        if len(frame_inputs) != len(clip.frames):
            raise MediaError(
                f"sample {sample.key} has {len(clip.frames)} frames, but {len(frame_inputs)} were encoded: delete the "
                "embedding cache, or load the clip with the frames that are on disk"
            )
        return frame_inputs

    def _check_hearing(self, sample: AVSample, *, has_sound: bool) -> None:
        if self.family.sees is None and self.options_of(sample).drop_sound:
            raise MediaError(
                f"drop_sound is true, but {type(self.family).__name__} only hears: without the sound of sample "
                f"{sample.key} it would be given nothing of the clip, so set `drop_sound: false`"
            )
        if has_sound and not self.family.hears and not self.options_of(sample).drop_sound:
            raise MediaError(
                f"sample {sample.key} has sound, but {type(self.family).__name__} has no ears: set `drop_sound: true` "
                "to train and answer without it, or choose a model that hears"
            )

    def _instruction(self, sample: AVSample) -> str | None:
        given, about_media = self.options_of(sample).instruction, sentence_about_media(sample)
        return about_media + (given or self.task_of(sample).instruction) if about_media else given

    def _messages(self, sample: AVSample, media: PromptMedia | None = None) -> list[dict[str, Any]]:
        system = self.options_of(sample).system_prompt
        return self.task_of(sample).messages(
            sample,
            media,
            instruction=self._instruction(sample),
            system_prompt=None if system is None else PromptText(system, own=system),
        )

    def _encode(self, sample: AVSample, clip: AVClip, frame_inputs: torch.Tensor | None) -> EncodedSample:
        options, asks_head = self.options_of(sample), self._asks_head(sample)
        self._check_hearing(sample, has_sound=clip.waveform is not None)
        check_reference_media(self.family, sample, drop_sound=options.drop_sound)
        shown = with_reference_media(self.family, sample, clip)
        waveform = None if options.drop_sound else shown.waveform
        limits = {"min_pixels": options.min_pixels, "max_pixels": options.max_pixels}
        sees_frames = len(clip.frames) > 0 and self.family.sees == "video"
        # A silent clip is frames alone, and where no frames are seen there is nothing to put the sound between. What is
        # heard after the clip has no frames, either.
        in_video = sample.use_audio_in_video and not has_recordings(sample)
        is_interleaved = in_video and waveform is not None and sees_frames
        media = PromptMedia(
            frames=[Image.fromarray(frame) for frame in shown.frames],
            has_audio=waveform is not None and not is_interleaved,
            video_options={"sample_fps": sample.fps} | {k: v for k, v in limits.items() if v is not None},
        )
        messages = self._messages(sample, media)
        shown_tools: dict[str, Any] = {"tools": self.tools} if self.tools else {}  # an own family may know none
        with naming(sample):
            prompt = self.family.encode(
                self.processor,
                messages,
                waveform=waveform,
                fps=sample.fps,
                use_audio_in_video=is_interleaved,
                **shown_tools,
            )
        return EncodedSample(
            sample=sample,
            prompt=prompt,
            frame_inputs=frame_inputs,
            gt_masks=torch.from_numpy(clip.gt_masks) if clip.gt_masks is not None and asks_head else None,
            loudness_dbfs=loudness_dbfs(clip.waveform),
            frame_size=(clip.frames.shape[1], clip.frames.shape[2]) if asks_head else (1, 1),
            annotated_frames=clip.annotated_frames if asks_head else None,
            asks_head=asks_head,
        )
