"""A task: what is asked about a clip, what a model is trained to say, and how its completion is judged.

A task is one class in one file, named in a recipe by `task: package.module:Name` or `task: path/to/mine.py:Name`.
Training, evaluation, reports and data tools ask it; none of them knows how an answer of a task is written.
"""

from __future__ import annotations

import abc
import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

from aurora_rl.data.chains import ChainFile
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


class PromptText(str):
    """A prompt's text that remembers which part is the recipe's own; other code sees a plain string.

    A text of a message that is a plain string is taken as text from outside, which must hold no control token.

    Attributes:
        own: the part that the recipe or the task wrote, such as the instruction without its reference.
        outside: the part that came from outside, which errors show.
    """

    own: str
    outside: str

    def __new__(cls, text: str, own: str, outside: str = "") -> Self:
        """Make a string of `text` and remember its parts."""
        prompt_text = super().__new__(cls, text)
        prompt_text.own, prompt_text.outside = own, outside
        return prompt_text

    def __getnewargs__(self) -> tuple[str, str, str]:  # type: ignore[override]  # str's own has one argument
        """Give pickle the arguments of `__new__`, so that a copy in another process keeps the parts."""
        return str(self), self.own, self.outside

    @classmethod
    def fill(cls, template: str, **outside: str) -> Self:
        """Put text from outside into the fields of a template, which is the own part.

        >>> text = PromptText.fill("Find {reference}.", reference="the drum")
        >>> text, text.own
        ('Find the drum.', 'Find .')

        Args:
            template: text of the recipe or the task. Only the named fields are filled, other braces stay.
            **outside: text for each field.

        Raises:
            ValueError: if the template lacks a field.
        """
        missing = [name for name in outside if f"{{{name}}}" not in template]
        if missing:
            raise ValueError(
                f"the instruction has no '{{{missing[0]}}}' field, so no clip's question would be asked: {template!r}"
            )
        fields = re.compile("|".join(re.escape(f"{{{name}}}") for name in outside))
        text = fields.sub(lambda field: outside[field[0][1:-1]], template)
        return cls(text, own=fields.sub("", template), outside="\n".join(outside.values()))


def chat_messages(
    text: str, media: PromptMedia | None = None, *, system_prompt: str | None = None
) -> list[dict[str, Any]]:
    """Build the chat messages of a question: frames as a video, then the sound, then the text.

    Args:
        text: user's text; a `PromptText` where a part of it is the recipe's own.
        media: the clip's media; None for the text alone.
        system_prompt: text of a system message; likewise.
    """
    content: list[dict[str, Any]] = []
    if media is not None and len(media.frames):
        content.append({"type": "video", "video": list(media.frames), **media.video_options})
    if media is not None and media.has_audio:
        content.append({"type": "audio"})
    content.append({"type": "text", "text": text})
    if not system_prompt:
        return [{"role": "user", "content": content}]
    system = {"role": "system", "content": [{"type": "text", "text": system_prompt}]}
    return [system, {"role": "user", "content": content}]


class Task(abc.ABC):
    """One kind of question about clips. Its methods are pure: they read a row and a text, never a model.

    Attributes:
        head: name of the head that predicts from the answer's token, a key of `models.heads.HEADS`; None for a task
            that is answered in words alone, whose rows need no masks.
        answer_token: token of that head, the only control token that a target may hold, once, at its end.
        closing: sentence with that token, which inference appends to a completion without one, so that the head
            predicts all the same; None to leave such a completion without a prediction.
        instruction: user's text for a row unless the recipe gives another one; `{reference}` stands for the row's own.
        curves: names of the training curves of `text_scores`, by the score's name; `{kind}` stands for the kind of the
            row's reference. A score without an entry is no curve.
        meanings: what `text_scores` mean, by the score's name, in a few words for the reader of a page.
        reflection_targets: those of `targets` that correct a mistake, `AVSample.wrong`; they train on the rows with a
            mistake and a share of the others.
    """

    head: ClassVar[str | None] = None
    answer_token: ClassVar[str | None] = None
    closing: ClassVar[str | None] = None
    instruction: ClassVar[str]
    curves: ClassVar[Mapping[str, str]] = {"accuracy": "accuracy/{kind}"}
    meanings: ClassVar[Mapping[str, str]] = {}
    reflection_targets: ClassVar[frozenset[str]] = frozenset()

    @property
    def name(self) -> str:
        """The name by which checkpoints and errors call the task."""
        return type(self).__name__

    def question(self, sample: AVSample) -> str:
        """Return a row's question, which takes the place of `{reference}`; all of it counts as text from outside."""
        return sample.reference

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
            system_prompt: text of a system message, a `PromptText` that is the recipe's own.

        Raises:
            ValueError: if the instruction leaves the row's question out.
        """
        text = PromptText.fill(instruction or self.instruction, reference=self.question(sample))
        return chat_messages(text, media, system_prompt=system_prompt)

    @abc.abstractmethod
    def target(self, sample: AVSample) -> Target:
        """Return the completion that supervised fine-tuning trains a row on, unless the recipe names another target.

        Raises:
            ValueError: if the row has none.
        """

    def targets(self) -> Mapping[str, Callable[[AVSample], Target]]:
        """Return further targets, by the name that a recipe gives as `target`."""
        return {}

    def chain_file(self, path: str | os.PathLike[str]) -> ChainFile:
        """Return a file of chains of thought and the way in which this task writes them down.

        Raises:
            ValueError: if the task knows no chains of thought.
        """
        raise ValueError(f"the task {self.name} has no chains of thought: leave out the file {os.fspath(path)!r}")

    @abc.abstractmethod
    def parse(self, text: str) -> Answer:
        """Read a completion. Any text has an answer, at worst an empty one: a malformed completion is no error."""

    @abc.abstractmethod
    def is_right(self, answer: Answer, sample: AVSample) -> bool:
        """Tell whether an answer's words are the row's truth."""

    def chosen(self, answer: Answer, sample: AVSample) -> int | None:
        """Return the index of the row's option that an answer means; None where it means none, or there are none."""
        return None

    def answers(self, sample: AVSample) -> Sequence[str]:
        """List all completions that answer a row in a different way, for an objective over all of them.

        Raises:
            ValueError: if there is no such list.
        """
        raise ValueError(f"the answers of the task {self.name} cannot be listed: leave out enumerate_answers")

    def check_truth(self, sample: AVSample) -> None:  # noqa: B027  (a task that needs masks alone leaves it out)
        """Check that a row has the truth in words that training and scores need; by default any row has.

        Raises:
            ValueError: naming the row and what it lacks.
        """

    def text_scores(self, answer: Answer, sample: AVSample) -> dict[str, float | None]:
        """Score an answer's words by name, each in [0, 1]; None where a score does not apply to the row."""
        return {"accuracy": float(self.is_right(answer, sample))}


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """Return the text of a completion in either form that TRL hands to reward functions.

    Of several turns it is what the model has said in words, a line a turn: neither calls of tools nor their answers.

    Args:
        completion: the text, or the chat messages of its turns, whose content is text or a list of parts.
    """
    if isinstance(completion, str):
        return completion
    contents = [message["content"] for message in completion if message.get("role") != "tool"]
    texts = (
        content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        for content in contents
    )
    return "\n".join(filter(None, texts))


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
