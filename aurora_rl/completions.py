"""What a completion claims: the way back from text to steps, category and number of `[SEG]` tokens.

The inverse of `prompts.render_chain`. Rewards, evaluation and the mask loss all read completions through
`parse_completion`, so that they agree on what was answered. A malformed completion is data, never an error.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aurora_rl.prompts import FINAL_SENTENCE, NULL_CATEGORY, REASONING_STEPS, SEG_TOKEN, STEP_LABELS

_STEP_OF_LABEL = {label: step for step, label in STEP_LABELS.items()}
_LABEL = re.compile(rf"^[ \t]*({'|'.join(map(re.escape, STEP_LABELS.values()))})", re.MULTILINE)
# A sentence cut off by the length limit is no claim: "the target is the man" may have become "the mandolin".
_SENTENCE_END = rf"[.!?\n]|{re.escape(SEG_TOKEN)}"
_TARGET = re.compile(
    r"there is no such target\b"
    rf"|the target is (?:(?:the|an|a)\s+)?(?P<category>[^.!?\n\[]+?)\s*(?:{_SENTENCE_END})",
    re.IGNORECASE,
)
#: The whole of an answer without reasoning (prompts.teacher_answer).
_FORCED_ANSWER = re.compile(rf"\s*It is (?P<category>[^.!?\n\[]+?) {re.escape(SEG_TOKEN)}\.?\s*")
#: "Wait, let me reconsider." as a sentence of its own; not "they wait for the bus".
_WITHDRAWAL = re.compile(
    r"(?:^|(?<=[.!?\n]))\s*wait\b[^.!?\n]*[.!?\n]?|\blet me (?:reconsider|think again|check again)\b[^.!?\n]*[.!?\n]?",
    re.IGNORECASE,
)
_LIST_SEPARATOR = re.compile(r",?\s+(?:and\s+then|and|then)\s+|,\s*")
_ARTICLE = re.compile(r"^(?:the|an|a) ")
_NOTHING = frozenset({"nothing", "no sound", "silence"})


def normalise_category(text: str) -> str:
    """The one spelling under which categories are compared.

    >>> normalise_category('"Hair-Dryer"')
    'hair dryer'
    """
    without_quotes = re.sub(r'["“”`]', "", text).strip().strip("'‘’")
    return re.sub(r"[\s_-]+", " ", without_quotes).strip().lower()


@dataclasses.dataclass(frozen=True)
class ParsedCompletion:
    """What one completion says.

    Attributes:
        text: the completion as it was generated.
        standing: what is not withdrawn: the text after the last "Wait, let me reconsider.", or all of it.
        steps: text of each step of `prompts.STEP_LABELS` that is there, in order of appearance; of a step that is
            there twice, the last. Where the chain starts anew in what stands, only the steps of that.
        step_order: every label of these steps, in order, repetitions included.
        category: the last final claim, normalised; `"null"` for "there is no such target"; None if neither is said.
        targets: every final claim, normalised, in order, withdrawn ones included.
        num_seg: number of `[SEG]` in the text.
        ends_with_seg: whether "It is [SEG]." ends the text.
        seen: categories after "I see" in the look step; () for nothing, None if it is not said.
        heard: categories after "I hear" in the listen step, in order; () for nothing, None if it is not said.
    """

    text: str
    standing: str
    steps: Mapping[str, str]
    step_order: tuple[str, ...]
    category: str | None
    targets: tuple[str, ...]
    num_seg: int
    ends_with_seg: bool
    seen: tuple[str, ...] | None
    heard: tuple[str, ...] | None

    @property
    def has_all_steps(self) -> bool:
        """Whether the four steps are there once each, in order."""
        return self.step_order == tuple(STEP_LABELS)


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """Text of a completion in either form TRL hands to reward functions.

    Args:
        completion: the text, or the chat messages of the turn, whose content is text or a list of parts.
    """
    if isinstance(completion, str):
        return completion
    return "".join(_content_text(message["content"]) for message in completion)


def parse_completion(text: str) -> ParsedCompletion:
    """Read a completion's text.

    >>> parsed = parse_completion("Look: I see a drum.\\nAnswer: the target is the drum. It is [SEG].")
    >>> parsed.category, parsed.seen, parsed.heard, parsed.num_seg, parsed.has_all_steps
    ('drum', ('drum',), None, 1, False)
    """
    standing = _WITHDRAWAL.split(text)[-1]
    restarted = _split_steps(standing)
    starts_anew = any(step == REASONING_STEPS[0] for step, _ in restarted)
    labelled = restarted if starts_anew else _split_steps(text)
    steps = dict(labelled)
    targets = tuple(_claims(text))
    return ParsedCompletion(
        text=text,
        standing=standing,
        steps=steps,
        step_order=tuple(step for step, _ in labelled),
        category=targets[-1] if targets else None,
        targets=targets,
        num_seg=text.count(SEG_TOKEN),
        ends_with_seg=text.rstrip().endswith(FINAL_SENTENCE),
        seen=_perceived(steps.get("look", ""), verb="see"),
        heard=_perceived(steps.get("listen", ""), verb="hear"),
    )


def _content_text(content: str | Iterable[Mapping[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _split_steps(text: str) -> list[tuple[str, str]]:
    """(step, its text) for each labelled paragraph."""
    labels = list(_LABEL.finditer(text))
    ends = [*(label.start() for label in labels), len(text)][1:]
    return [
        (_STEP_OF_LABEL[label[1]], text[label.end() : end].strip()) for label, end in zip(labels, ends, strict=False)
    ]


def _claims(text: str) -> Iterable[str]:
    if forced := _FORCED_ANSWER.fullmatch(text):
        yield normalise_category(forced["category"])
    for match in _TARGET.finditer(text):
        yield NULL_CATEGORY if match["category"] is None else normalise_category(match["category"])


def _perceived(step: str, *, verb: str) -> tuple[str, ...] | None:
    """Categories listed after "I see" or "I hear" in a step; None if that is not said."""
    lists = re.findall(rf"\bI {verb} ([^.!?\n]+)", step)
    if not lists:
        return None
    items = (normalise_category(item) for text in lists for item in _LIST_SEPARATOR.split(text))
    names = (_ARTICLE.sub("", item) for item in items)
    return tuple(name for name in names if name and name not in _NOTHING)
