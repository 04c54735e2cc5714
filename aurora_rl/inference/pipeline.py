"""Answers about a clip, in words and, where the task has them, masks: `AuroraPipeline(model)(video=..., text=...)`.

A clip longer than the model's training clips is answered window by window, and is never in memory as a whole. The rows
of a window go through the same `SampleEncoder` and `Predictor` as the rows of an evaluation.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from aurora_rl.data.containers import MAX_SECONDS, SAMPLING_RATE, FilePath, MediaError
from aurora_rl.data.footage import MAX_SIDE, Footage, Frame, Picture, open_footage
from aurora_rl.data.sample import NULL_CATEGORY, AVClip, AVSample
from aurora_rl.inference.box_prompts import BoxPrompts
from aurora_rl.inference.predictor import Predictor
from aurora_rl.inference.propagation import VIDEO_CLASSES, FrameMasks, MemoryMasks, NearestMasks, SampledMasks
from aurora_rl.metrics import MASK_THRESHOLD
from aurora_rl.models.clip_options import ClipOptions
from aurora_rl.models.encoding import EncodedSample, PromptOptions, SampleEncoder
from aurora_rl.models.grounding import sharing_tower_outputs
from aurora_rl.models.heads import BoxHead, MaskHead
from aurora_rl.models.loading import LoadedModel, load_model
from aurora_rl.models.mllm import MLLMFamily
from aurora_rl.models.tower_outputs import TowerOutputs
from aurora_rl.tasks.base import Task, load_task
from aurora_rl.tasks.completions import ParsedCompletion
from aurora_rl.tasks.reference_boxes import ReferenceBoxes
from aurora_rl.tasks.reference_segmentation import ReferenceSegmentation

logger = logging.getLogger(__name__)

#: Upper limit of the pixels of all masks (frames x references) of an answer, 1 GB as float32.
MAX_ANSWER_PIXELS = 256_000_000


@dataclasses.dataclass(frozen=True)
class WindowAnswer:
    """Answer of the model to one window of a clip.

    Attributes:
        start: start of the window, in seconds.
        end: end of the window, in seconds.
        text: the completion as generated.
        steps: text of each step of `prompts.STEP_LABELS` that the completion has, in order; none of other tasks.
        value: what is answered (`Answer.value`): of reference segmentation the normalised category of the object,
            `"null"` for no object; None if the text holds no answer.
        has_seg: whether the text itself has the token of the task's head, such as `[SEG]`; if not, the task's closing
            sentence was appended to get masks.
    """

    start: float
    end: float
    text: str
    steps: Mapping[str, str]
    value: str | None
    has_seg: bool

    @property
    def category(self) -> str | None:
        """The answer's value, by its name in reference segmentation."""
        return self.value

    @property
    def is_null(self) -> bool:
        """True if the answer is that there is no such target."""
        return self.category == NULL_CATEGORY


@dataclasses.dataclass(frozen=True)
class ReferenceAnswer:
    """Answer of the model to one reference.

    Attributes:
        reference: the referring sentence, or question.
        windows: one answer a window, in order of time; a clip no longer than the training clips has one window.
        mask_probs: (F, H, W) float32 probabilities of the sampled frames, averaged where windows overlap; None for a
            task without masks.
    """

    reference: str
    windows: tuple[WindowAnswer, ...]
    mask_probs: np.ndarray | None

    @property
    def masks(self) -> np.ndarray | None:
        """The masks (F, H, W) bool of the sampled frames; None for a task without masks."""
        return None if self.mask_probs is None else self.mask_probs > MASK_THRESHOLD

    @property
    def text(self) -> str:
        """What the model said, one paragraph a window."""
        return "\n\n".join(window.text for window in self.windows)

    @property
    def value(self) -> str | None:
        """The answer of most windows, where "null" counts only if no window has another; None without any."""
        answered = [window.value for window in self.windows if window.value is not None]
        named = [value for value in answered if value != NULL_CATEGORY]
        counts = collections.Counter(named or answered)
        return counts.most_common(1)[0][0] if counts else None

    @property
    def category(self) -> str | None:
        """The answer's value, by its name in reference segmentation."""
        return self.value

    @property
    def is_null(self) -> bool:
        """True if no window has such a target."""
        return self.category == NULL_CATEGORY


@dataclasses.dataclass(frozen=True)
class ClipAnswer:
    """Answers of the model to the references of a clip.

    Attributes:
        references: one answer a reference, in the given order.
        frame_times: times of the F sampled frames, in seconds.
        footage: the clip, which can be read again.
        seconds: seconds of each part: reading, encoding (processor and image encoder), reasoning, masks.
        notes: notes about how the clip was read, for the user.
    """

    references: tuple[ReferenceAnswer, ...]
    frame_times: tuple[float, ...]
    footage: Footage
    seconds: Mapping[str, float]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Window:
    """Consecutive sampled pictures.

    Attributes:
        first: index of the first picture.
        pictures: the pictures, in order of time.
        is_last: whether the clip ends with this window.
    """

    first: int
    pictures: tuple[Picture, ...]
    is_last: bool


class AuroraPipeline:
    """A trained model that answers references to a clip, or questions about it.

    Args:
        model: the result of `load_model`, or a hub name, or the folder of a model or an adapter.
        task: what is asked and how answers are read, a task or its name as in a recipe (`tasks.base.load_task`);
            reference segmentation by default, reference boxes with `box_prompts`. A checkpoint names its task, but no
            class to import.
        family: the model's family, as for `load_model`; not read where the model is loaded already.
        clip_options: how clips are given to the model; by default as the checkpoint says that it was trained.
        max_completion_length: upper limit of the tokens of a chain of thought.
        batch_size: number of rows (references x windows) generated at once.
        max_side: longest side of frames and masks, in pixels; larger frames are scaled down.
        device: device of the model; by default that of a loaded model, else a GPU if there is one.
        box_prompts: folder or hub name of a SAM that makes the masks, prompted with the boxes of the model's box head;
            None for a model with a mask head of its own.

    Raises:
        ValueError: if the checkpoint does not say how clips are given to it, and `clip_options` is None; if it was
            trained on another task, and `task` is None; if it has not the head of the task; or if the task gives no
            boxes for `box_prompts`.
    """

    def __init__(
        self,
        model: LoadedModel | str,
        *,
        task: str | Task | None = None,
        family: str | MLLMFamily | None = None,
        clip_options: ClipOptions | None = None,
        max_completion_length: int = 512,
        batch_size: int = 8,
        max_side: int = MAX_SIDE,
        device: torch.device | str | None = None,
        box_prompts: str | None = None,
    ) -> None:
        self.loaded = (
            model if isinstance(model, LoadedModel) else load_model(str(model), family=family, is_trainable=False)
        )
        if device is None and not isinstance(model, LoadedModel):
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device is not None:
            self.loaded.model.to(device)
        options = clip_options or self.loaded.clip_options
        if options is None:
            raise ValueError(
                "the checkpoint does not say how clips are given to the model, as older versions did not save it: "
                "give the clip_options of its training (--config with the recipe's YAML file)"
            )
        usual = ReferenceSegmentation() if box_prompts is None else ReferenceBoxes()
        self.task = load_task(usual if task is None else task)
        if task is None and options.task != self.task.name:
            raise ValueError(
                f"the model was trained on the task {options.task!r}, but {self.task.name} would be asked: name the "
                "class, as in AuroraPipeline(model, task='mine.py:Name'), or on the command line --config with a "
                "recipe's YAML file whose `task` names it"
            )
        self.options = options
        self.max_side = max_side
        if box_prompts is not None and self.task.head != BoxHead.name:
            raise ValueError(
                f"the task {self.task.name} gives no boxes for box_prompts: leave it out, or name another task"
            )
        self.box_prompts = None if box_prompts is None else BoxPrompts(box_prompts, device=self.loaded.model.device)
        self.predictor = Predictor(
            self.loaded.model,
            SampleEncoder(
                self.loaded.family,
                self.loaded.processor,
                self._frame_inputs(),
                task=self.task,
                options=self._prompt_options(),
            ),
            max_completion_length=max_completion_length,
            batch_size=batch_size,
            append_seg=True,
        )

    def _frame_inputs(self) -> Callable[[AVSample, AVClip], torch.Tensor] | None:
        if self.task.head is None:
            return None
        frame_encoder = self.loaded.frame_encoder(self.task.head).to(self.loaded.model.device)
        return lambda _sample, clip: frame_encoder.encode(clip.frames).cpu()

    def _prompt_options(self) -> PromptOptions:
        """Return the options of training; the instruction is the task's own where the model was trained on another."""
        if self.options.task == self.task.name:
            return self.options.prompt
        return dataclasses.replace(self.options.prompt, instruction=None)

    def check_masks(self) -> None:
        """Check that answers have masks; a ValueError tells that the task is answered otherwise."""
        if not self._gives_masks:
            raise ValueError(
                f"the task {self.task.name} gives no masks to draw or write: ask its model in Python, by "
                "AuroraPipeline, or give a model that segments, or the box_prompts that turn boxes into masks"
            )

    @property
    def _gives_masks(self) -> bool:
        return self.task.head == MaskHead.name or self.box_prompts is not None

    def __call__(
        self,
        *,
        video: FilePath | Sequence[Frame],
        text: str | Sequence[str],
        choices: Sequence[str] | None = None,
        audio: FilePath | np.ndarray | None = None,
        fps: float | None = None,
        window_seconds: float | None = None,
        stride_seconds: float | None = None,
        max_seconds: float = MAX_SECONDS,
    ) -> ClipAnswer:
        """Answer one or several references to a clip; the vision, audio and image encoders run once for all of them.

        Args:
            video: a video file, one still image, or frames in time order: image files, PIL images or arrays
                (H, W, 3) uint8.
            text: one reference, or question, or several.
            choices: options of the questions, for a task of multiple choice.
            audio: a sound file, or (N,) float32 in [-1, 1] at 16 kHz; None for the video's own sound.
            fps: frames a second of given frames; by default the model's rate.
            window_seconds: length of the windows that a longer clip is cut into; by default the length of the model's
                training clips.
            stride_seconds: seconds from the start of one window to the next; by default the length of a window. The
                last window ends with the clip.
            max_seconds: upper limit of the clip's length, whatever its header says.

        Raises:
            MediaError: if something cannot be read or is too large; the error names the file.
            ControlTokenError: if a reference or a choice holds a control token of the tokenizer, such as `[SEG]`.
            ValueError: if there is no reference, if the task needs choices and there are none, if a rate or a length is
                not above 0, or if windows would leave
                frames out.
        """
        references = [text] if isinstance(text, str) else list(text)
        if not references or not all(reference.strip() for reference in references):
            raise ValueError(f"the references are {references}: give at least one, none of them empty")
        asked = [self._row(number, reference, choices) for number, reference in enumerate(references)]
        self.predictor.encode.check(asked)
        for name, value in (("fps", fps), ("window_seconds", window_seconds), ("stride_seconds", stride_seconds)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}: it must be a number above 0")
        watch = Stopwatch()
        with watch("read"):
            footage = open_footage(
                video,
                audio=audio,
                fps=self.options.fps if fps is None else fps,
                max_side=self.max_side,
                max_seconds=max_seconds,
            )
        length, stride = self._window_frames(window_seconds, stride_seconds)
        windows = cut_windows(footage.sampled(self.options.fps), length, stride)
        joined = _JoinedMasks(len(references), footage)
        num_frames = 0
        answers: list[list[WindowAnswer]] = [[] for _ in references]
        while batch := self._read_windows(windows, len(references), watch):
            num_frames = batch[-1].first + len(batch[-1].pictures)
            for number, window, answer, mask_probs in self._answer(batch, asked, footage, watch):
                answers[number].append(answer)
                if mask_probs is not None:
                    joined.add(number, window.first, mask_probs)
        for note in footage.notes:
            logger.warning("%s: %s", footage.name, note)
        return ClipAnswer(
            references=tuple(
                ReferenceAnswer(reference, tuple(said), mask_probs)
                for reference, said, mask_probs in zip(references, answers, joined.means(), strict=True)
            ),
            frame_times=tuple(index / self.options.fps for index in range(num_frames)),
            footage=footage,
            seconds=watch.seconds,
            notes=tuple(footage.notes),
        )

    def every_frame(self, answer: ClipAnswer, *, track: bool = True, both_ways: bool = True) -> Iterator[FrameMasks]:
        """Read the clip again and give every picture its masks.

        If the mask head is SAM 2, SAM 3 or EdgeTAM, its memory propagates the masks of the sampled frames to the
        pictures between them; with every other head a picture gets the masks of the nearest sampled frame.

        Args:
            answer: the result of a call.
            track: whether the memory propagates masks; the nearest masks cost nothing.
            both_ways: whether a picture may be tracked from the sampled frame after it, for which it waits.

        Raises:
            ValueError: if the task gives no masks.
        """
        self.check_masks()
        masks = [each.masks for each in answer.references if each.masks is not None]
        sampled = SampledMasks(answer.frame_times, np.stack(masks))
        pictures = answer.footage.pictures()
        if track and self.box_prompts is None and self.loaded.segmenter_config["type"] in VIDEO_CLASSES:
            return self._memory.track(pictures, sampled, both_ways=both_ways)
        return NearestMasks().track(pictures, sampled)

    @functools.cached_property
    def _memory(self) -> MemoryMasks:
        return MemoryMasks(self.loaded.segmenter_config, device=self.loaded.model.device)

    def _window_frames(self, window_seconds: float | None, stride_seconds: float | None) -> tuple[int, int]:
        """Return length and stride of the windows, in sampled frames."""
        fps = self.options.fps
        usual = self.options.num_frames or ClipOptions.num_frames
        length = usual if window_seconds is None else max(1, round(window_seconds * fps))
        stride = length if stride_seconds is None else max(1, round(stride_seconds * fps))
        if stride > length:
            raise ValueError(
                f"windows of {length / fps:g} s every {stride / fps:g} s leave frames out: give a stride of at most "
                f"{length / fps:g} s"
            )
        return length, stride

    def _read_windows(self, windows: Iterator[Window], num_references: int, watch: Stopwatch) -> list[Window]:
        """Read the windows of one batch; none at the end of the clip."""
        with watch("read"):
            return list(itertools.islice(windows, max(1, self.predictor.batch_size // num_references)))

    def _answer(
        self, windows: Sequence[Window], samples: Sequence[AVSample], footage: Footage, watch: Stopwatch
    ) -> Iterator[tuple[int, Window, WindowAnswer, torch.Tensor | None]]:
        """Yield number of the reference, window, answer and masks (F, H, W), for each window and reference."""
        with watch("encode"):
            rows = [row for window in windows for row in self._encode(window, samples, footage)]
        asked = [(number, window) for window in windows for number in range(len(samples))]
        size, outputs = self.predictor.batch_size, TowerOutputs()
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            outputs.keep_only(row.prompt.features for row in batch)
            with watch("reason"), sharing_tower_outputs([self.predictor.model], outputs):
                said = self.predictor.generate(batch)
            with watch("masks"), sharing_tower_outputs([self.predictor.model], outputs):
                masks = self._masks(batch, said, [window for _, window in asked[start : start + size]])
            texts = self.loaded.processor.tokenizer.batch_decode(said, skip_special_tokens=True)
            for (number, window), text, mask_probs in zip(asked[start : start + size], texts, masks, strict=True):
                assert mask_probs is not None or not self._gives_masks  # thanks to `append_seg`
                yield number, window, self._window_answer(window, text), mask_probs

    def _masks(
        self, rows: Sequence[EncodedSample], said: Sequence[torch.Tensor], windows: Sequence[Window]
    ) -> list[torch.Tensor | None]:
        """Return each row's mask probabilities (F, H, W), by the model's mask head or by its boxes and a SAM."""
        if self.box_prompts is None:
            return self.predictor.decode_masks(rows, said)
        predictions = self.predictor.predict_rows(rows, said)
        embeddings: dict[int, torch.Tensor] = {}
        masks: list[torch.Tensor | None] = []
        for row, window, boxes in zip(rows, windows, predictions, strict=True):
            if window.first not in embeddings:  # rows of a window follow one another
                frames = np.stack([picture.pixels for picture in window.pictures])
                embeddings = {window.first: self.box_prompts.embed(frames)}
            masks.append(self.box_prompts.masks(embeddings[window.first], boxes, row.frame_size))
        return masks

    def _row(self, number: int, reference: str, choices: Sequence[str] | None) -> AVSample:
        """Make the row of a reference, of no clip yet."""
        return AVSample(
            uid="",
            row=number,
            split="",
            media_id="",
            category="",
            reference=reference,
            fps=self.options.fps,
            frame_paths=(),
            audio_path=None,
            choices=None if choices is None else tuple(choices),
        )

    def _encode(self, window: Window, asked: Sequence[AVSample], footage: Footage) -> list[EncodedSample]:
        frames = np.stack([picture.pixels for picture in window.pictures])
        clip = AVClip(frames, self._sound_of(window, footage.waveform), None)
        samples = [
            dataclasses.replace(
                sample,
                uid=footage.name,
                media_id=f"{footage.name}#{window.first}",
                use_audio_in_video=self.options.use_audio_in_video and clip.waveform is not None,
            )
            for sample in asked
        ]
        return self.predictor.encode.encode_references(samples, clip)

    def _sound_of(self, window: Window, waveform: np.ndarray | None) -> np.ndarray | None:
        """Cut out the sound of a window's pictures; the last window has all of the rest, as in training."""
        if waveform is None:
            return None
        start = round(window.first / self.options.fps * SAMPLING_RATE)
        length = round(len(window.pictures) / self.options.fps * SAMPLING_RATE)
        sound = waveform[start:] if window.is_last else waveform[start : start + length]
        return np.pad(sound, (0, max(0, length - len(sound))))  # the sound may end before the pictures

    def _window_answer(self, window: Window, text: str) -> WindowAnswer:
        answer = self.task.parse(text)
        token = self.task.answer_token
        fps = self.options.fps
        return WindowAnswer(
            start=window.first / fps,
            end=(window.first + len(window.pictures)) / fps,
            text=text,
            steps=dict(answer.steps) if isinstance(answer, ParsedCompletion) else {},
            value=answer.value,
            has_seg=token is not None and token in text,
        )


def cut_windows(pictures: Iterator[Picture], length: int, stride: int) -> Iterator[Window]:
    """Yield windows of `length` pictures every `stride`; the last ends with the clip, a short clip is one window."""
    recent: collections.deque[Picture] = collections.deque(maxlen=length)
    waiting: Window | None = None  # until it is known whether this is the last window
    num_read, covered, next_end = 0, 0, length
    for picture in pictures:
        recent.append(picture)
        num_read += 1
        if num_read > covered and waiting is not None:
            yield waiting
            waiting = None
        if num_read == next_end:
            waiting = Window(num_read - length, tuple(recent), is_last=False)
            covered, next_end = num_read, next_end + stride
    if num_read > covered:
        waiting = Window(num_read - len(recent), tuple(recent), is_last=False)
    if waiting is not None:
        yield dataclasses.replace(waiting, is_last=True)


class Stopwatch:
    """Adds up the seconds that named parts of a run take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started


class _JoinedMasks:
    """Mask probabilities of a clip's sampled frames, averaged over its windows."""

    def __init__(self, num_references: int, footage: Footage) -> None:
        self.footage = footage
        self.sums: list[dict[int, np.ndarray]] = [{} for _ in range(num_references)]
        self.counts: list[collections.Counter[int]] = [collections.Counter() for _ in range(num_references)]

    def add(self, reference: int, first: int, mask_probs: torch.Tensor) -> None:
        """Add a window's probabilities (F, H, W); its first frame has the number `first`."""
        sums = self.sums[reference]
        for index, probs in enumerate(mask_probs.numpy(), start=first):
            sums[index] = sums[index] + probs if index in sums else probs
            self.counts[reference][index] += 1
        num_pixels = len(self.sums) * len(sums) * mask_probs[0].numel()
        if num_pixels > MAX_ANSWER_PIXELS:
            raise MediaError(
                f"the masks of {self.footage.name} have more than {MAX_ANSWER_PIXELS} pixels together: cut the clip, "
                "lower max_side or ask fewer references at once"
            )

    def means(self) -> Iterator[np.ndarray | None]:
        """Yield the mean probabilities (F, H, W) float32 of each reference; None of a task without masks."""
        for sums, counts in zip(self.sums, self.counts, strict=True):
            yield np.stack([sums[index] / counts[index] for index in range(len(sums))]) if sums else None
