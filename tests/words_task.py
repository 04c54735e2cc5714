"""A task without a head, for tests: the model names the object in one sentence, and nothing is masked."""

from __future__ import annotations

from typing import Any

from aurora_rl.data.sample import AVSample
from aurora_rl.tasks.base import Answer, PromptMedia, PromptText, Target, Task, chat_messages


class NamedObject(Answer):
    """The whole text is the answer."""

    @property
    def value(self) -> str:
        return self.text.strip().lower()


class NameTheObject(Task):
    """What does the sentence refer to? Answered in words alone."""

    instruction = "Name what this refers to: {reference}"
    curves = {"category": "category/{kind}"}

    def messages(
        self,
        sample: AVSample,
        media: PromptMedia | None = None,
        *,
        instruction: str | None = None,
        system_prompt: str | None = None,
    ) -> list[dict[str, Any]]:
        text = PromptText.fill(instruction or self.instruction, reference=sample.reference)
        return chat_messages(text, media, system_prompt=system_prompt)

    def target(self, sample: AVSample) -> Target:
        return Target(sample.category)

    def parse(self, text: str) -> NamedObject:
        return NamedObject(text)

    def is_right(self, answer: Answer, sample: AVSample) -> bool:
        return answer.value == sample.category

    def text_scores(self, answer: Answer, sample: AVSample) -> dict[str, float | None]:
        return {"category": float(self.is_right(answer, sample))}
