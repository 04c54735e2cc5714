"""A task: what is asked about a clip, what a model is trained to say, and how its completion is judged.

A task is one class in one file, named in a recipe by `task: package.module:Name` or `task: path/to/mine.py:Name`.
Training, evaluation, reports and data tools ask it; none of them knows how an answer of a task is written.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from aurora_rl.data.sample import AVSample
from aurora_rl.named.objects import NamedObjectError, load_object


@dataclasses.dataclass(frozen=True)
class Target:
    """A completion to be trained on, in two parts.

    Attributes:
        learned: text that carries labels.
        given: text before it that is read but not learned (labels of -100).
    """

    learned: str
    given: str = ""


@dataclasses.dataclass(frozen=True)
class Answer:
    """A completion as its task reads it; a task derives a class with the parts that it needs.

    Attributes:
        text: the completion as it was generated.
    """

    text: str

    @property
    def value(self) -> str | None:
        """What is answered, in the spelling in which answers are compared; None if the text holds no answer."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class PromptMedia:
    """The media of a prompt, in the form of chat messages.

    Attributes:
        frames: the clip's frames, F images of PIL; empty for a clip that is sound alone.
        has_audio: whether the sound is a part of its own after the frames.
        video_options: further keys of the video part, such as `max_pixels` and `sample_fps`, for the family.
    """

    frames: Sequence[Any]
    has_audio: bool
    video_options: Mapping[str, Any]


class Task(abc.ABC):
    """One kind of question about clips. Its methods are pure: they read a row and a text, never a model.

    Attributes:
        head: name of the head that predicts from the answer's token, a key of `models.heads.HEADS`; None for a task
            that is answered in words alone, whose rows need no masks.
        instruction: user's text for a row unless the recipe gives another one; `{reference}` stands for the row's own.
    """

    head: ClassVar[str | None]
    instruction: ClassVar[str]

    @abc.abstractmethod
    def messages(
        self,
        sample: AVSample,
        media: PromptMedia | None = None,
        *,
        instruction: str | None = None,
        system_prompt: str | None = None,
    ) -> list[dict[str, Any]]:
        """Return the chat messages that ask a row's question.

        Args:
            sample: the row.
            media: its media; None for the text alone, which is logged and handed to rewards.
            instruction: user's text in place of the task's own.
            system_prompt: text of a system message.

        Raises:
            ValueError: if the instruction leaves the row's question out.
        """

    @abc.abstractmethod
    def target(self, sample: AVSample) -> Target:
        """Return the completion that supervised fine-tuning trains a row on.

        Raises:
            ValueError: if the row has none.
        """

    @abc.abstractmethod
    def parse(self, text: str) -> Answer:
        """Read a completion. Any text has an answer, at worst an empty one: a malformed completion is no error."""

    @abc.abstractmethod
    def is_right(self, answer: Answer, sample: AVSample) -> bool:
        """Tell whether an answer's words are the row's truth."""

    @abc.abstractmethod
    def text_scores(self, answer: Answer, sample: AVSample) -> dict[str, float | None]:
        """Score an answer's words by name, each in [0, 1]; None where a score does not apply to the row."""


def load_task(spec: str | Task | type[Task]) -> Task:
    """Load the task that a recipe names.

    Args:
        spec: `"package.module:Name"`, `"path/to/mine.py:Name"`, or a task, which is returned unchanged.

    Raises:
        NamedObjectError: if there is no such class, or it is no task.
    """
    found = load_object(spec, what="task") if isinstance(spec, str) else spec
    task = found() if isinstance(found, type) and issubclass(found, Task) else found
    if not isinstance(task, Task):
        raise NamedObjectError(f"{spec!r} is a {type(found).__name__}, expected a class derived from tasks.base.Task")
    return task
