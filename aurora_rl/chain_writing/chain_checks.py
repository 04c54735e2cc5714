"""Checks of a chain of thought, and repairs that do not change its meaning.

`generate_cot` and `correct_cot` check each reply and retry; `verify_cot` checks files from any source.

    PROBLEMS  reasons to drop a chain, each with its meaning
    repair    removes labels and markdown from a step's text and joins it into one paragraph
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from aurora_rl.data.sample import NULL_CATEGORY
from aurora_rl.tasks.base import load_task
from aurora_rl.tasks.completions import normalise_category
from aurora_rl.tasks.prompts import REASONING_STEPS, SEG_TOKEN, STEP_LABELS, answer_for, render_chain
from aurora_rl.tasks.reference_segmentation import ReferenceSegmentation, answers_category, has_form

#: The task whose chains are written and checked here.
TASK = ReferenceSegmentation()

PROBLEMS = {
    "unreadable": "no JSON record with uid, row, category, steps and answer",
    "duplicate": "the row has a record already",
    "wrong_category": "the answer is not the row's category",
    "missing_step": "a step is missing, empty or without a word",
    "too_long": "a step is longer than allowed",
    "leak": "the chain says that it was told the answer",
    "second_answer": "a step answers, or the answer does so twice",
    "withdrawal": "a step takes something back ('Wait, ...')",
    "step_label": "a step holds the label of a step",
    "unnamed_category": "no step names the answered category",
    "bad_character": "control characters or what no decoder could read",
    "special_token": "text that a tokenizer takes for one of its special tokens",
    "unparseable": "written out, the chain is not read back as four steps and one answer",
    "bad_wrong_text": "the reasoning to be corrected is empty, or holds [SEG]",
}

#: Words that betray that the writer knew the truth before. Each line is one family.
LEAKS = (
    r"ground[- ]?truth|the truth\b|for (?:your|my) eyes",
    r"(?:first|earlier|previous|initial) (?:attempt|reasoning|answer)\b",
    r"the (?:given|provided|true|correct|expected|known|specified|supplied|desired|required|stated) "
    r"(?:category|label|class|answer|target|solution)",
    r"(?:category|label|class|answer|target) (?:is|was|has been) (?:given|provided|specified|supplied|known|stated)",
    r"(?:given|knowing) that the (?:category|label|class|answer|target)",
    r"annotat(?:ed|ions?|ors?)",
    r"as (?:provided|given|instructed|told|annotated|labell?ed)\b",
    r"(?:according to|based on|per|matches|matching|agrees with|consistent with) the "
    r"(?:given |provided )?(?:label|category|class|answer|annotation|metadata|prompt|instructions?)\b",
    r"(?:I|we) (?:was|were|am|are|have been|had been) (?:told|given|informed|instructed|provided)",
    r"(?:I|we) (?:already )?know (?:that )?the (?:answer|target|category)",
    r"the (?:hint|metadata|dataset|data set|prompt)\b",
    r"answer_category|exact(?:ly)? the category",
)
_LEAK = re.compile("|".join(rf"\b(?:{leak})" for leak in LEAKS), re.IGNORECASE)
_ANSWER = re.compile(
    rf"the target (?:is|are|was)\b|there is no such target\b|the (?:final )?answer is\b|{re.escape(SEG_TOKEN)}",
    re.IGNORECASE,
)
_WITHDRAWAL = re.compile(r"(?:^|(?<=[.!?] ))wait\b|\blet me (?:reconsider|think again|check again)\b", re.IGNORECASE)
_ANY_LABEL = re.compile(rf"(?:^|(?<=[.!?] ))(?:{'|'.join(map(re.escape, STEP_LABELS.values()))})", re.IGNORECASE)
_SPECIAL_TOKEN = re.compile(r"<\|[^|<>]*\|>|</?s>|<(?:pad|unk|bos|eos|image|video|audio|think)>|</think>")
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»"}


@dataclasses.dataclass
class ChainLimits:
    """Limits of a chain.

    Attributes:
        max_step_chars: largest length of a step, in characters; also the schema's limit, so that a model must be brief.
        allow_unnamed: whether the answer of a chain may be a category that no earlier step names.
    """

    max_step_chars: int = dataclasses.field(default=600, metadata={"help": "Largest length of a step, in characters."})
    allow_unnamed: bool = dataclasses.field(
        default=False, metadata={"help": "Keep chains whose answer no earlier step names."}
    )

    def __post_init__(self) -> None:
        if self.max_step_chars < 1:
            raise ValueError(f"max_step_chars is {self.max_step_chars}: it must be above 0")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A reason to drop a chain: a key of `PROBLEMS`, and the place in the text."""

    reason: str
    detail: str


def check_task(spec: str) -> None:
    """Check that a recipe's task is the one whose chains are written here.

    Args:
        spec: the task, as `DataArguments.task` names it.

    Raises:
        ValueError: if it is another task.
    """
    task = load_task(spec)
    if not isinstance(task, ReferenceSegmentation) or task.answer_token != TASK.answer_token:
        raise ValueError(
            f"chains are written for reference segmentation, not for the task {task.name}: leave `task` out, or write "
            "the chains of that task by other means"
        )


def repair(step: str, text: str) -> tuple[str, tuple[str, ...]]:
    """Repair a step's text, without changing its meaning.

    >>> repair("look", '**Look:** "I see a\\n`drum`."')
    ('I see a drum.', ('label', 'markdown', 'quotes', 'spaces'))

    Args:
        step: name of the step.
        text: text by the model.

    Returns:
        The text, and the kinds of repairs: "characters" (invisible ones), "label" (the step's own, before it),
        "markdown", "quotes" (around the whole text), "spaces".
    """
    repairs = set()
    for name, change in (
        ("characters", _drop_invisible),
        ("spaces", str.strip),
        ("label", lambda words: _drop_label(step, words)),
        ("markdown", _drop_markdown),
        ("quotes", _drop_quotes),
        ("spaces", lambda words: " ".join(words.split())),
    ):
        new = change(text)
        if new != text:
            repairs.add(name)
            text = new
    return text, tuple(sorted(repairs))


def find_problems(steps: Mapping[str, Any], answer: str, category: str, limits: ChainLimits) -> list[Problem]:
    """Find all problems of a chain, in the order of `PROBLEMS`.

    Args:
        steps: text of each step, repaired.
        answer: final sentences.
        category: true category.
        limits: limits of the chain.
    """
    found = [*_answer_problems(answer, category)]
    for step in REASONING_STEPS:
        found += _step_problems(step, steps.get(step), limits)
    if not found and not limits.allow_unnamed and not names_category(steps, category):
        found.append(Problem("unnamed_category", f"no step names the {category!r} that is answered"))
    if not found and not _reads_back(steps, answer, category):
        found.append(Problem("unparseable", render_chain(steps, answer)))
    return sorted(found, key=lambda problem: list(PROBLEMS).index(problem.reason))


def names_category(steps: Mapping[str, str], category: str) -> bool:
    """Return whether a step names a category, in the singular or plural; always true for a null reference."""
    if category == NULL_CATEGORY:
        return True
    name = re.compile(rf"\b{re.escape(normalise_category(category))}(?:s|es)?\b")
    return any(name.search(normalise_category(text)) for text in steps.values())


def _answer_problems(answer: str, category: str) -> Iterator[Problem]:
    parsed = TASK.parse(answer)
    if not answers_category(parsed, category):
        yield Problem("wrong_category", f"answers {parsed.category!r}, the truth is {category!r}")
    if len(parsed.targets) > 1 or not has_form(parsed, require_steps=False):
        yield Problem("second_answer", f"expected an answer such as {answer_for(category)!r}, not {answer!r}")


def _step_problems(step: str, text: object, limits: ChainLimits) -> Iterator[Problem]:
    if not isinstance(text, str) or not any(character.isalpha() for character in text):
        yield Problem("missing_step", f"{step} is {text!r}")
        return
    if len(text) > limits.max_step_chars:
        yield Problem("too_long", f"{step} has {len(text)} characters, allowed are {limits.max_step_chars}")
    for reason, pattern in (
        ("leak", _LEAK),
        ("second_answer", _ANSWER),
        ("withdrawal", _WITHDRAWAL),
        ("step_label", _ANY_LABEL),
        ("special_token", _SPECIAL_TOKEN),
    ):
        if match := pattern.search(text):
            yield Problem(reason, f"{step} says {match[0]!r}")
    if bad := next((character for character in text if _is_bad(character)), None):
        yield Problem("bad_character", f"{step} holds U+{ord(bad):04X}")


def _reads_back(steps: Mapping[str, str], answer: str, category: str) -> bool:
    """Return whether the trainers, which parse the chain's text, find the same steps and category in it."""
    parsed = TASK.parse(render_chain(steps, answer))
    return has_form(parsed) and parsed.targets == (normalise_category(category),)


def _is_bad(character: str) -> bool:
    """Return whether a character is a control, half a surrogate pair, unassigned, private, or a replacement."""
    return unicodedata.category(character) in ("Cc", "Cs", "Co", "Cn") or character == "\ufffd"


def _drop_invisible(text: str) -> str:
    """Remove zero-width, soft-hyphen and direction characters."""
    return "".join(character for character in text if unicodedata.category(character) != "Cf")


def _drop_label(step: str, text: str) -> str:
    label = re.escape(STEP_LABELS[step].rstrip(":"))
    return re.sub(
        rf"^[\s*_#>-]*(?:(?:step )?\d+[.):]*\s*)?[*_]*{label}[*_]*\s*:[*_]*\s*", "", text, flags=re.IGNORECASE
    )


def _drop_markdown(text: str) -> str:
    # Headings, lists, quotations; only a line's own white space, as a run of empty lines would take quadratic time.
    text = re.sub(r"^[^\S\n]*+(?:#{1,6}|[-*•>]|\d++[.)])\s++", "", text, flags=re.MULTILINE)
    text = re.sub(r"```\w*", "", text).replace("`", "")
    return re.sub(r"(?<!\w)(\*\*|__|\*)(?=\S)(.{1,500}?)(?<=\S)\1(?!\w)", r"\2", text, flags=re.DOTALL)


def _drop_quotes(text: str) -> str:
    """Remove a pair of quotes around the whole text, but not the quotes of two separate quotations at its ends."""
    inside = text[1:-1]
    is_quoted = len(text) > 1 and _QUOTES.get(text[0]) == text[-1]
    return inside if is_quoted and text[0] not in inside and text[-1] not in inside else text
