"""Completions are read back here: text becomes steps, category and number of `[SEG]` tokens.

This is the inverse of `prompts.render_chain`. Rewards, evaluation and the mask loss all read completions through
`parse_completion`, so that they agree on what was answered. A malformed completion is data, never an error.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping

from aurora_rl.data.sample import NULL_CATEGORY
from aurora_rl.tasks.base import Answer, completion_text
from aurora_rl.tasks.prompts import FINAL_SENTENCE, REASONING_STEPS, SEG_TOKEN, STEP_LABELS

__all__ = ["ParsedCompletion", "completion_text", "normalise_category", "parse_completion"]

_STEP_OF_LABEL = {label: step for step, label in STEP_LABELS.items()}
_LABEL = re.compile(rf"^[ \t]*({'|'.join(map(re.escape, STEP_LABELS.values()))})", re.MULTILINE)
# A completion may be any text, also that of a policy that has collapsed, so no pattern may read a run of white space or
# a sentence again from each of its characters.
_CLAIM_PART = re.compile(
    r"(?P<null>there is no such target\b)|(?P<claim>the target is )(?:(?:the|an|a)\s++(?=[^.!?\n\[]))?"
    rf"|(?P<end>[.!?\n]|{re.escape(SEG_TOKEN)})|\[",
    re.IGNORECASE,
)
#: The whole of an answer without reasoning (prompts.teacher_answer).
_FORCED_ANSWER = re.compile(rf"\s*It is (?P<category>[^.!?\n\[]+?) {re.escape(SEG_TOKEN)}\.?\s*")
#: "Wait, let me reconsider."; a "wait" counts where it begins a sentence, not in "they wait for the bus".
_WITHDRAWAL = re.compile(r"(?P<wait>wait)\b|\blet me (?:reconsider|think again|check again)\b", re.IGNORECASE)
_REST_OF_SENTENCE = re.compile(r"[^.!?\n]*+[.!?\n]?")
_LIST_SEPARATOR = re.compile(r"(?:,|(?<!\s))\s++(?:and\s++then|and|then)\s++|,\s*+")
_ARTICLE = re.compile(r"^(?:the|an|a) ")
_NOTHING = frozenset({"nothing", "no sound", "silence"})


def normalise_category(text: str) -> str:
    """Return the spelling in which categories are compared.

    >>> normalise_category('"Hair-Dryer"')
    'hair dryer'
    """
    without_quotes = re.sub(r'["“”`]', "", text).strip().strip("'‘’")
    return re.sub(r"[\s_-]+", " ", without_quotes).strip().lower()


@dataclasses.dataclass(frozen=True)
class ParsedCompletion(Answer):
    """The parts of one completion.

    Attributes:
        text: the completion as it was generated.
        standing: the part that is not withdrawn: the text after the last "Wait, let me reconsider.", or all of it.
        steps: text of each step of `prompts.STEP_LABELS` that is there, in order of appearance. A step that is there
            twice has its last text. Where a chain starts again in `standing`, only the steps of that chain count.
        step_order: every label of these steps, in order, repetitions included.
        category: the last final claim, normalised; `"null"` for "there is no such target"; None if there is neither.
        targets: every final claim, normalised, in order, withdrawn ones included.
        num_seg: number of `[SEG]` in the text.
        ends_with_seg: whether "It is [SEG]." ends the text.
        seen: categories after "I see" in the look step; () for nothing, None if the step has no "I see".
        heard: categories after "I hear" in the listen step, in order; () for nothing, None without "I hear".
    """

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
    def value(self) -> str | None:
        """The category that is answered."""
        return self.category

    @property
    def has_all_steps(self) -> bool:
        """Whether the four steps are there once each, in order."""
        return self.step_order == tuple(STEP_LABELS)


def parse_completion(text: str) -> ParsedCompletion:
    """Read a completion's text.

    >>> parsed = parse_completion("Look: I see a drum.\\nAnswer: the target is the drum. It is [SEG].")
    >>> parsed.category, parsed.seen, parsed.heard, parsed.num_seg, parsed.has_all_steps
    ('drum', ('drum',), None, 1, False)
    """
    standing = _standing(text)
    restarted = _split_steps(standing)
    starts_again = any(step == REASONING_STEPS[0] for step, _ in restarted)
    labelled = restarted if starts_again else _split_steps(text)
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


def _split_steps(text: str) -> list[tuple[str, str]]:
    """Return (step, its text) of each labelled paragraph."""
    labels = list(_LABEL.finditer(text))
    ends = [*(label.start() for label in labels), len(text)][1:]
    return [
        (_STEP_OF_LABEL[label[1]], text[label.end() : end].strip()) for label, end in zip(labels, ends, strict=False)
    ]


def _standing(text: str) -> str:
    """Return the text after the last sentence that withdraws a chain, or all of it where there is none."""
    for match in reversed(list(_WITHDRAWAL.finditer(text))):
        if match["wait"] is None or _begins_sentence(text, match.start()):
            rest = _REST_OF_SENTENCE.match(text, match.end())
            return text[rest.end() if rest else match.end() :]
    return text


def _begins_sentence(text: str, position: int) -> bool:
    while position > 0 and text[position - 1].isspace() and text[position - 1] != "\n":
        position -= 1
    return position == 0 or text[position - 1] in ".!?\n"


def _claims(text: str) -> Iterator[str]:
    """Yield every final claim, normalised, in order.

    A sentence cut off by the length limit is no claim: "the target is the man" may have become "the mandolin". So a
    claim counts only when its sentence ends. All words up to there belong to it, even another "the target is".
    """
    if forced := _FORCED_ANSWER.fullmatch(text):
        yield normalise_category(forced["category"])
    claim: re.Match[str] | None = None
    nulls_within = 0  # null claims inside an open claim; they count if that claim does not
    for part in _CLAIM_PART.finditer(text):
        if part["claim"]:
            claim = claim or part
        elif part["null"]:
            if claim is None:
                yield NULL_CATEGORY
            else:
                nulls_within += 1
        else:
            said = text[claim.end() : part.start()] if claim and part["end"] else ""
            yield from [normalise_category(said)] if said else [NULL_CATEGORY] * nulls_within
            claim, nulls_within = None, 0
    yield from [NULL_CATEGORY] * nulls_within


def _perceived(step: str, *, verb: str) -> tuple[str, ...] | None:
    """Return the categories listed after "I see" or "I hear" in a step; None if the step has neither."""
    lists = re.findall(rf"\bI {verb} ([^.!?\n]+)", step)
    if not lists:
        return None
    items = (normalise_category(item) for text in lists for item in _LIST_SEPARATOR.split(text))
    names = (_ARTICLE.sub("", item) for item in items)
    return tuple(name for name in names if name and name not in _NOTHING)
