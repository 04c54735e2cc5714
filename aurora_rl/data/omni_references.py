"""What an OmniAVS reference is made of: words or speech, and perhaps a sound and a picture that it points to.

Read from the authors' code (FudanCVL/OmniAVS, evaluate.py and internvl/train/my_utils/omniavs_dataset.py):

    {"expr": "the thing that sounds like <audio>", "expr_type": "text_sound", "referring_sound": "3.wav", ...}

    referrings/referring_speeches/<file>    referrings/referring_sounds/<file>    referrings/referring_images/<file>

A file that a row does not have is null. A spoken reference's `expr` is what is said, which the model is not shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from aurora_rl.data.files import DatasetError
from aurora_rl.data.sample import AVSample

TEXT_TYPE = "text"
SPEECH, SOUND, IMAGE = "speech", "sound", "image"
#: Field of the file's name, and folder of the file, by what it is.
FILES = {
    SPEECH: ("referring_speech", "referrings/referring_speeches"),
    SOUND: ("referring_sound", "referrings/referring_sounds"),
    IMAGE: ("referring_image", "referrings/referring_images"),
}
#: The types of references, and what each comes with beside the clip, in the order of the files.
TYPES: Mapping[str, tuple[str, ...]] = {
    f"{told}{'_'.join(['', *more])}": (*((SPEECH,) if told == SPEECH else ()), *more)
    for told in (TEXT_TYPE, SPEECH)
    for more in ((), (SOUND,), (IMAGE,), (SOUND, IMAGE))
}
#: What stands in a sentence for a file, in the data and in our prompts.
PLACES = {"<audio>": "[the sound that comes with this reference]", "<image>": "[the picture that comes with it]"}
SPOKEN = "what the recorded sentence describes"


@dataclasses.dataclass(frozen=True)
class OmniReference:
    """A reference as words and files.

    Attributes:
        words: text of the reference, as a prompt has it.
        files: paths of its files relative to the benchmark's folder: speech, sound, picture, where there are any.
    """

    words: str
    files: tuple[str, ...] = ()


def read_reference(record: Mapping[str, Any], place: str) -> OmniReference:
    """Read a line's reference.

    >>> line = {"expr": "the thing like <image>", "expr_type": "text_image", "referring_image": "7.jpg"}
    >>> read_reference(line, "line 1")  # doctest: +NORMALIZE_WHITESPACE
    OmniReference(words='the thing like [the picture that comes with it]',
                  files=('referrings/referring_images/7.jpg',))

    Raises:
        DatasetError: if the type is unknown, or a file is not named that the type comes with.
    """
    kind = record["expr_type"]
    if kind not in TYPES:
        raise DatasetError(f"{place} has the expr_type {kind!r}: expected one of {', '.join(TYPES)}")
    names = {part: record.get(FILES[part][0]) for part in TYPES[kind]}
    if missing := [FILES[part][0] for part, name in names.items() if not isinstance(name, str) or not name]:
        raise DatasetError(f"{place} is of expr_type {kind!r} and lacks {missing}: expected the name of a file each")
    files = tuple(f"{FILES[part][1]}/{name}" for part, name in names.items())
    return OmniReference(_words(record["expr"], TYPES[kind]), files)


def check_words_alone(samples: Iterable[AVSample], form: str) -> None:
    """Check that no reference has files of its own, before rows are written in a form that has no place for them.

    Args:
        samples: the rows.
        form: what is written, for the error.

    Raises:
        DatasetError: naming the first row that has some.
    """
    if found := next((sample for sample in samples if sample.reference_media), None):
        raise DatasetError(
            f"sample {found.key} refers by the file {found.reference_media[0]}, which {form} has no place for: convert "
            "the references in words, of `omni_avs`"
        )


def _words(sentence: str, parts: tuple[str, ...]) -> str:
    """Return the words of a prompt: a spoken sentence is not written down, but what it points to is named."""
    if SPEECH in parts:
        named = [words for words, part in zip(PLACES.values(), (SOUND, IMAGE), strict=True) if part in parts]
        return ", ".join([SPOKEN, *(f"which points to {words}" for words in named)])
    for mark, words in PLACES.items():
        sentence = sentence.replace(mark, words)
    return sentence
