"""Rules by which benchmarks of questions tell whether an answer is right. They disagree, so tables show all of them.

A rule of a benchmark is written as its published script works, faults included, since the numbers of papers come from
it. Measured on MMAU-mini's 1,000 questions (v05.15.25):

    what is said                    strict   mmau   mmsu  echoink
    the right option's letter        1,000      2  1,000    1,000
    "(B) text" of the right option   1,000    967      1    1,000
    "The answer is <right text>"         0    907      1       75
    a wrong option's text                2      9    151       96   (questions in which one of them counts as right)

(MMSU has four options and asks for a letter alone. The two of `strict` are chords: its answer "C" is the third option.)
`strict` is the one to train and to compare with.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence

from aurora_rl.tasks.completions import normalise_category

LETTERS = string.ascii_uppercase
#: "B", "B.", "(B)", and "B. bell" with the option's text.
_LETTER = re.compile(r"\(?(?P<letter>[A-Za-z])(?:[.:)]{0,2}$|[.:)]{1,2}\s+(?P<text>\S.*))")
_WORD = re.compile(r"\b\w+\b")
_FREE_LETTER = re.compile(r"\b([A-D])\b", re.IGNORECASE)

#: Tells whether a text is right, of the text, the options and the index of the right one; None leaves the question out
#: of the benchmark's total.
Matcher = Callable[[str, Sequence[str], int], bool | None]


def match_choice(marked: str, choices: Sequence[str]) -> int | None:
    """Match the text of an answer to the options strictly: it is a letter, an option's text, or both and they agree.

    A single letter is always read as an option's letter.

    >>> choices = ["bell", "hair-dryer"]
    >>> match_choice("B", choices), match_choice("the hair dryer", choices), match_choice("This is a bell", choices)
    (1, 1, None)

    Returns:
        The option's index; None where the text is anything else.
    """
    texts = [_spelling(choice) for choice in choices]
    lettered = _LETTER.fullmatch(marked.strip())
    if lettered is None:
        said = _spelling(marked)
        return texts.index(said) if said in texts else None
    index = LETTERS.index(lettered["letter"].upper())
    if index >= len(choices):
        return None
    said = _spelling(lettered["text"] or "")
    return index if said in ("", texts[index]) else None


def match_strictly(said: str, choices: Sequence[str], right: int) -> bool:
    """Tell whether an answer is the right option by `match_choice`; what cannot be read is wrong.

    >>> match_strictly("(B) bell", ["drum", "bell"], 1), match_strictly("It is a bell", ["drum", "bell"], 1)
    (True, False)
    """
    return is_same_option(choices, match_choice(said, choices), right)


def is_same_option(choices: Sequence[str], chosen: int | None, right: int) -> bool:
    """Tell whether a chosen option is the right one; some questions repeat an option, which is right at both places."""
    return chosen is not None and _spelling(choices[chosen]) == _spelling(choices[right])


def match_mmau(said: str, choices: Sequence[str], right: int) -> bool:
    """Match as the scripts of MMAU and MMAR: all words of the right option, and none that only others have.

    Source: `string_match` of Sakshi113/MMAU and ddlBoJack/MMAR, `evaluation.py`. A letter alone is wrong, since it is
    no word of the option.

    >>> match_mmau("The answer is a bell.", ["drum", "bell"], 1), match_mmau("B", ["drum", "bell"], 1)
    (True, False)
    """
    words, right_words = _words(said), _words(choices[right])
    others = set().union(*(_words(choice) for choice in choices)) - right_words
    return bool(words) and right_words <= words and not words & others


def match_mmsu(said: str, choices: Sequence[str], right: int) -> bool | None:
    """Match as the script of MMSU: the first character if it is A to D, else the last but one.

    Source: `mmsu_evaluation.py` of dingdongwang/MMSU. A text without a letter at either place is left out of the total
    (None), an empty one is wrong, and "Based on ..." is B.

    >>> options = ["drum", "bell"]
    >>> [match_mmsu(said, options, 1) for said in ("B", "The answer is B.", "Based on the sound: A", "bell", "")]
    [True, True, True, None, False]
    """
    text = said.strip().replace("\n", "")
    if text in ("", "None"):
        return False
    letter = next((character for character in (text[:1], text[-2:-1]) if character and character in "ABCD"), None)
    if letter is None:
        return None
    index = "ABCD".index(letter)
    return index < len(choices) and choices[index] == choices[right]


def match_echoink(said: str, choices: Sequence[str], right: int) -> bool:
    """Match as the script of EchoInk-R1: the first letter A to D that stands free, in either case.

    Source: `extract_choice` of HarryHsing/EchoInk, `src/omniInstruct-v1_eval_valid.py`.

    >>> match_echoink("B", ["drum", "bell"], 1), match_echoink("This is a bell", ["drum", "bell"], 1)
    (True, False)
    """
    found = _FREE_LETTER.search(said)
    return found is not None and LETTERS.index(found[1].upper()) == right


def count_right(match: Matcher, questions: Sequence[tuple[Sequence[str], int]]) -> dict[str, int]:
    """Count for how many questions a rule takes four kinds of answers for right.

    >>> count_right(match_mmau, [(["drum", "bell"], 1)])
    {'bare_letter': 0, 'letter_and_text': 1, 'the_answer_is': 1, 'wrong_choice_right': 0}

    Args:
        match: the rule.
        questions: options, and the index of the right one.
    """
    counts = dict.fromkeys(("bare_letter", "letter_and_text", "the_answer_is", "wrong_choice_right"), 0)
    for choices, right in questions:
        letter, text = LETTERS[right], choices[right]
        counts["bare_letter"] += bool(match(letter, choices, right))
        counts["letter_and_text"] += bool(match(f"({letter}) {text}", choices, right))
        counts["the_answer_is"] += bool(match(f"The answer is {text}", choices, right))
        counts["wrong_choice_right"] += any(match(other, choices, right) for other in choices if other != text)
    return counts


def _spelling(text: str) -> str:
    """Return the spelling in which an answer and the options are compared, the same for both."""
    return normalise_category(text.strip().rstrip(".")).removeprefix("the ")


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


#: All rules by the name that scores have.
MATCHERS: Mapping[str, Matcher] = {
    "strict": match_strictly,
    "mmau": match_mmau,
    "mmsu": match_mmsu,
    "echoink": match_echoink,
}
