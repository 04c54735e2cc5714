"""The words of reference segmentation: its instruction, its answers, and chains of thought written down.

A gold chain (steps + answer) becomes the completion text that SFT trains on and that `completions.parse_completion`
reads back.
"""

import re
from collections.abc import Mapping

from aurora_rl.data.sample import NULL_CATEGORY

SEG_TOKEN = "[SEG]"
BOX_TOKEN = "[BOX]"
#: The end of every answer.
FINAL_SENTENCE = f"It is {SEG_TOKEN}."

#: What a target is called whose category is not known.
UNNAMED_CATEGORY = "described object"

#: The sentence between wrong reasoning and its correction (paper, reflective training).
REFLECTION_TRIGGER = "Wait, let me reconsider."
_ASKS_FOR_MASKS = re.compile(
    # White space is read only from the start of its run: otherwise a run of n characters would be read n times.
    rf"(?:(?<!\s)\s++)?\bit is\s*+{re.escape(SEG_TOKEN)}[ \t]*+\.?|(?:(?<![ \t])[ \t]++)?{re.escape(SEG_TOKEN)}",
    re.IGNORECASE,
)

#: The steps before the answer, in the order they must appear (paper, figure of the reasoning pipeline).
REASONING_STEPS = ("look", "listen", "read")
#: The label that opens each step's paragraph.
STEP_LABELS = {"look": "Look:", "listen": "Listen:", "read": "Read:", "answer": "Answer:"}

DEFAULT_INSTRUCTION = (
    "Watch the frames, listen to the sound and find what this refers to: {reference}\n"
    "Reason in four short paragraphs.\n"
    "Look: what you see in the frames.\n"
    "Listen: what you hear, in order.\n"
    "Read: what the reference asks for.\n"
    "Answer: end with 'the target is the <category>. It is [SEG].', "
    "or with 'there is no such target. It is [SEG].'"
)


def answer_for(category: str) -> str:
    """Return the final pair of sentences of a completion.

    Args:
        category: category of the target; `NULL_CATEGORY` if nothing is referred to, "" if the category is not known.
    """
    if category == NULL_CATEGORY:
        return f"there is no such target. {FINAL_SENTENCE}"
    return f"the target is the {category or UNNAMED_CATEGORY}. {FINAL_SENTENCE}"


def teacher_answer(category: str) -> str:
    """Return the forced answer of the distillation's teacher, such as `"It is drum [SEG]."`; it does not reason."""
    return f"It is {category or UNNAMED_CATEGORY} {SEG_TOKEN}."


def without_seg(text: str) -> str:
    """Remove every request for masks from a text: "It is [SEG]." and any other `[SEG]`.

    >>> without_seg("Answer: the target is the drum. It is [SEG].")
    'Answer: the target is the drum.'
    """
    if SEG_TOKEN in text:
        kept: list[str] = []  # removing one `[SEG]` may make another, as in `[SE[SEG]G]`, at any depth
        for character in _ASKS_FOR_MASKS.sub("", text):
            kept.append(character)
            if character == SEG_TOKEN[-1] and "".join(kept[-len(SEG_TOKEN) :]) == SEG_TOKEN:
                del kept[-len(SEG_TOKEN) :]
        text = "".join(kept)
    return text.strip()


def render_chain(steps: Mapping[str, str], answer: str) -> str:
    """Join the reasoning steps and the answer into completion text, one labelled paragraph a line.

    Args:
        steps: text of each of `REASONING_STEPS`, without labels.
        answer: the final sentences, see `answer_for`.

    Returns:
        For example `"Look: I see a drum.\\nListen: I hear a drum.\\nRead: ...\\nAnswer: the target is the drum.
        It is [SEG]."`.

    Raises:
        ValueError: if a step is missing.
    """
    missing = [step for step in REASONING_STEPS if not steps.get(step)]
    if missing:
        raise ValueError(f"the chain of thought lacks the step(s) {missing}: give all of {list(REASONING_STEPS)}")
    paragraphs = [f"{STEP_LABELS[step]} {steps[step].strip()}" for step in REASONING_STEPS]
    return "\n".join([*paragraphs, f"{STEP_LABELS['answer']} {answer.strip()}"])
