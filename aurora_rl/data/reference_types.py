"""The type of a reference is derived from its words where neither the benchmark nor its chains hold it.

Ref-AVSBench has no such column. Only tables of scores group rows by the derived type; samples keep None, and training
does not use it. The names are those of the synthetic benchmark, whose "name" (a category or a colour) is a "look" here:

    audio order      The first object to make a sound.
    audio + space    The sounding object on the left of the cello.
    audio            The object making the loudest sound. The object making a sound by being played by the man.
    space            The couch behind the two boys.
    look             The object having white and gray fur. The drum. The man playing with a lion.

The words were chosen on the official table, whose sentences follow few patterns. A sentence without any of the words is
a "look", also the rows of train and val that say only "NO.". A sound counts whoever makes it ("the guitar behind the
singing man"), and so does a place ("played by the man on the left").
"""

from __future__ import annotations

import re

from aurora_rl.data.sample import NULL_CATEGORY

#: Beginnings of words: "play" also matches "played" and "playing".
_SOUND = re.compile(
    r"""\b(sound | noise | audi[bo] | emit | emission | resonat | resound | echo
    | loud | volume | valume | silent | mute | intermittent | rhythm | tempo | tone | pitch | decibel
    | music | song | melod | sing | play(?!\w*\ with\b) | perform | strum | plunk | tap | beat | struck
    | hear | voice | vocal | speak | speech | talk | say | call | laugh | cry | crie | wail | scream | shout
    | bark | howl | roar | honk | whistl)""",
    re.IGNORECASE | re.VERBOSE,
)
_SPACE = re.compile(
    r"""\b((left | right)(?!\ hand) | middle | center | corner | side | front | behind | between
    | near | close\ to | closest | next\ to | beside | adjacent | far(ther | thest)?\b | distant
    | above | under | below | beneath | on\ (the | a | his | her)\b(?!\ (left | right)\ hand))""",
    re.IGNORECASE | re.VERBOSE,
)
#: Not "the first man from the left", which is a place.
_ORDER = re.compile(
    r"""\b((first | last)\b(?!.*\ from\b) | initial | initiat | inaugural | final | ultimate
    | before | after | preced | prior | follow | subsequent)""",
    re.IGNORECASE | re.VERBOSE,
)


def reference_type_of(reference: str, category: str, told: str | None) -> tuple[str, bool]:
    """Return the type of a reference, and whether it is derived from the sentence.

    Args:
        reference: the sentence.
        category: its category; `"null"` is a type of its own.
        told: the type in the benchmark or a chain of thought, if there is one.
    """
    told = told or (NULL_CATEGORY if category == NULL_CATEGORY else None)
    return told or derive_reference_type(reference), told is None


def derive_reference_type(reference: str) -> str:
    """Derive the type of a sentence that refers to something from its words.

    Returns:
        "audio order" for "The object that making a sound after the piano.", for example.
    """
    if not _SOUND.search(reference):
        return "space" if _SPACE.search(reference) else "look"
    if _ORDER.search(reference):
        return "audio order"
    return "audio + space" if _SPACE.search(reference) else "audio"
