"""Prompts of the stronger model that writes chains of thought, and the reader of its replies.

The model gets the frames, the sound, the reference and the truth, so that its reasoning ends at the right answer; the
reasoning itself must not show that the truth was given. The answer's sentences are ours, not the model's.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from aurora_rl.chain_writing.chain_checks import ChainLimits, find_problems, repair
from aurora_rl.data.message_parts import MediaArguments, media_parts
from aurora_rl.data.sample import NULL_CATEGORY, AVSample
from aurora_rl.endpoint.errors import BadReplyError
from aurora_rl.endpoint.replies import read_json_object
from aurora_rl.tasks.completions import normalise_category
from aurora_rl.tasks.prompts import REASONING_STEPS, answer_for

CATEGORY_KEY = "answer_category"

SYSTEM_PROMPT = """\
You write examples for a model that watches a clip, hears its sound and finds what a sentence refers to. An example is \
the reasoning of somebody who finds out, in three short paragraphs:
- look: what is seen in the frames, who and what, where, and what changes.
- listen: what is heard, in order, and what in view it comes from; or that nothing is heard.
- read: what the sentence asks for, and which of the things seen and heard that is, and why.
You are told what the sentence refers to, so that the reasoning ends there. The reader is not told: the reasoning must \
hold by what can be seen and heard alone. Never say or hint that an answer, a category or a label was given or known, \
and never mention these instructions. Name the thing by its category in at least one paragraph, in plain words. Do not \
write the final answer, no headings, no lists, no markdown, no quotation marks around a paragraph."""

CORRECTION_PROMPT = """
This time there is a first attempt, whose reasoning or answer went wrong. Write the reasoning anew, from the clip: see \
and hear what the attempt missed or mistook, and be plain about the point at which it went wrong. Do not mention the \
attempt; its author is the one who now reasons again."""


@dataclasses.dataclass(frozen=True)
class ChainReply:
    """A reply that passed all checks: the steps, and the number of repairs of each kind."""

    steps: dict[str, str]
    repairs: tuple[str, ...]


def chain_messages(sample: AVSample, media: MediaArguments, *, wrong: str | None = None) -> list[dict[str, Any]]:
    """Make the conversation that asks for one row's chain.

    Args:
        sample: row, whose files are read.
        media: media that are sent.
        wrong: wrong reasoning that the model corrects.

    Raises:
        MediaError: if a file cannot be read; the error names it.
    """
    example = json.dumps({name: "..." for name in (*REASONING_STEPS, CATEGORY_KEY)})
    form = f"Reply with one JSON object, {example}, where {CATEGORY_KEY} is the category that your reasoning leads to."
    task = f"The sentence: {sample.reference}\n{_truth(sample.category)}\n{form}"
    if wrong is not None:
        task = f"The first attempt:\n<<<\n{wrong}\n>>>\n\n{task}"
    system = SYSTEM_PROMPT if wrong is None else SYSTEM_PROMPT + CORRECTION_PROMPT
    content = [*media_parts(sample, media), {"type": "text", "text": task}]
    # The templates of text models do not know content parts.
    user: Any = task if len(content) == 1 else content
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def chain_schema(categories: Sequence[str], limits: ChainLimits) -> dict[str, Any]:
    """Make the JSON schema of a reply: three steps of limited length, and one of the categories."""
    if "" in categories:
        raise ValueError("a row has no category, which its chain of thought must lead to: add the column `category`")
    step = {"type": "string", "minLength": 1, "maxLength": limits.max_step_chars}
    properties = {name: step for name in REASONING_STEPS} | {CATEGORY_KEY: {"type": "string", "enum": [*categories]}}
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def read_chain_reply(text: str, category: str, limits: ChainLimits) -> ChainReply:
    """Read the steps in a reply.

    Args:
        text: text by the model.
        category: true category.
        limits: limits of the chain.

    Raises:
        BadReplyError: if the text holds no JSON object or another category, or its chain has a problem.
    """
    fields = read_json_object(text)
    answered = fields.get(CATEGORY_KEY)
    if not isinstance(answered, str) or normalise_category(answered) != normalise_category(category):
        raise BadReplyError("wrong_category", f"the model answers {answered!r}, the truth is {category!r}")
    steps: dict[str, str] = {}
    repairs: list[str] = []
    for name in REASONING_STEPS:
        written = fields.get(name)
        if isinstance(written, str):
            steps[name], needed = repair(name, written)
            repairs += needed
    if problems := find_problems(steps, answer_for(category), category, limits):
        raise BadReplyError(problems[0].reason, problems[0].detail)
    return ChainReply(steps, tuple(repairs))


def chain_record(sample: AVSample, steps: Mapping[str, str], *, generator: str) -> dict[str, Any]:
    """Make a record of a file of chains, see `aurora_rl.data.chains`."""
    record = {
        "uid": sample.uid,
        "row": sample.row,
        "split": sample.split,
        "category": sample.category,
        "exp": sample.reference,
        "steps": dict(steps),
        "answer": answer_for(sample.category),
        "generator": generator,
        "verified": False,
    }
    # A file of chains sets the type of its rows' references, so the benchmark's own type is copied.
    return record if sample.reference_type is None else record | {"reference_type": sample.reference_type}


def _truth(category: str) -> str:
    if category == NULL_CATEGORY:
        return (
            f"The truth, for your eyes only: the sentence refers to nothing in this clip ({CATEGORY_KEY}: "
            f'"{NULL_CATEGORY}"). The reasoning finds that nothing seen and heard fits, and says why.'
        )
    return f"The truth, for your eyes only: it refers to the {category}."
