"""The roles that agents play: what each is told, the form of its reply, and how that is read.

    recognise   how hard is the reference, and does the picture or the sound decide?
    reason      which thing in the clip is meant, if any
    judge       which of several reasoners is right
    phrase      a short noun phrase by which a segmenter finds that thing
    check       do the drawn masks show it: accept, rephrase, or no such target

Where the segmenter's tracks are evidence, `phrase` comes before `reason`, and reasoners and judge name a track.

A reply that cannot be read is a failed attempt of the endpoint (`BadReplyError`), never an opinion: a row without
readable replies fails, and is not taken for one whose reference points at nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from aurora_rl.agents.consensus import Vote
from aurora_rl.endpoint.errors import BadReplyError
from aurora_rl.endpoint.replies import read_json_object

EASY, HARD = "easy", "hard"
MODALITIES = ("picture", "sound", "both")
VERDICTS = ACCEPT, REPHRASE, NO_TARGET = "accept", "rephrase", "no target"
#: What a reasoner says where the reference points at nothing in the clip.
NOTHING = "nothing"
#: What one says where the thing is in the clip, and in no track.
OTHER = "another thing"
MAX_CHARS = 600

#: Beginnings of the agents' instructions, one an agent: identical agents would give identical votes.
PERSONAS = (
    "You are a sound engineer: you trust what you hear and ask which thing in view could make it.",
    "You are a film editor: you trust what you see, where things are and how they move.",
    "You are a sceptic: you look for what speaks against the first impression, and whether the thing is there at all.",
    "You are a linguist: you weigh each word of the sentence and what it rules out.",
    "You are a careful witness: you say only what the clip shows, in the order in which it happens.",
)

CLIP = "You are given frames of a short clip, perhaps its sound, and a sentence that refers to one thing in it."


@dataclasses.dataclass(frozen=True)
class Role:
    """One role.

    Attributes:
        name: name of the role, which the endpoint is told as the schema's name.
        instruction: what the agent is told, after its persona.
        fields: fields of the reply; the allowed values of a choice, or None for free text.
    """

    name: str
    instruction: str
    fields: Mapping[str, Sequence[str] | None]

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of a reply."""
        free = {"type": "string", "minLength": 1, "maxLength": MAX_CHARS}
        properties = {
            name: free if of is None else {"type": "string", "enum": [*of]} for name, of in self.fields.items()
        }
        return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}

    def system_prompt(self, persona: str = "") -> str:
        """Write the system message of an agent."""
        form = ", ".join(
            f'"{name}": ' + ("text" if of is None else " or ".join(f'"{value}"' for value in of))
            for name, of in self.fields.items()
        )
        return " ".join(filter(None, [persona, self.instruction, f"Reply with one JSON object: {{{form}}}."]))

    def read(self, text: str) -> dict[str, str]:
        """Read a reply's fields.

        Raises:
            BadReplyError: if it is no such object.
        """
        found = read_json_object(text)
        fields = {}
        for name, allowed in self.fields.items():
            value = found.get(name)
            if allowed is not None and type(value) is int:  # a number that is chosen, without its quotes
                value = str(value)
            if not isinstance(value, str) or not value.strip():
                raise BadReplyError("invalid_reply", f"the {self.name} has no {name}: {str(found)[:80]!r}")
            fields[name] = " ".join(value.split())[:MAX_CHARS]
            if allowed is not None:
                fields[name] = fields[name].lower()
                if fields[name] not in allowed:
                    raise BadReplyError("invalid_reply", f"{name} is {value[:80]!r}: expected one of {list(allowed)}")
        return fields


RECOGNISE = Role(
    "recognise",
    f"{CLIP} Judge before anybody searches: is it easy or hard to tell which thing is meant, and does the picture, the "
    "sound or only both together decide it?",
    {"reason": None, "difficulty": (EASY, HARD), "modality": MODALITIES},
)
REASON = Role(
    "reason",
    f"{CLIP} Find out which thing is meant: say what is seen, what is heard and what follows. The target is a "
    f'description of that one thing by its kind, look and place; or "{NOTHING}", if no thing in the clip fits.',
    {"reason": None, "target": None},
)
JUDGE = Role(
    "judge",
    f"{CLIP} Several people have reasoned about it; weigh their reasons against the clip. The target is the "
    f'description that holds, in your own words if need be; or "{NOTHING}".',
    {"reason": None, "target": None},
)
PHRASE = Role(
    "phrase",
    "A segmenter finds things in pictures by a short English noun phrase. It hears nothing, and knows neither the "
    "sentence nor other phrases. Write a phrase of at most eight words for the target, by its kind, colour and place "
    "in the picture; not one that was rejected before.",
    {"phrase": None},
)
CHECK = Role(
    "check",
    f"{CLIP} In the frames a coloured area marks what a segmenter took for that thing. Accept it if it covers that "
    "thing, all of it and nothing else, in the frames where it is visible. Otherwise say what is wrong, so that it can "
    f'be described better (rephrase); or that no such thing is in the clip ("{NO_TARGET}").',
    {"reason": None, "verdict": VERDICTS},
)
#: `PHRASE` where the segmenter comes before the reasoners.
CONCEPT = Role(
    "phrase",
    f"{CLIP} A segmenter finds and follows all things that a short English noun phrase names. It hears nothing, and "
    "does not know the sentence. Write a phrase of at most four words for the kind of thing that may be meant, wide "
    "enough that all candidates fit it; not one by which the thing was not found before.",
    {"phrase": None},
)


def choosing(role: Role, num_tracks: int, *, may_be_other: bool) -> Role:
    """Return a reasoner's or judge's role with numbered tracks to choose from.

    >>> choosing(REASON, 2, may_be_other=False).fields["target"]
    ('1', '2', 'nothing')

    Args:
        role: `REASON` or `JUDGE`.
        num_tracks: number of tracks.
        may_be_other: whether "another thing" is a choice, after which the segmenter is asked for another kind.
    """
    numbers = tuple(str(number) for number in range(1, num_tracks + 1))
    people = "Several people have reasoned about it; weigh their reasons. " if role.name == JUDGE.name else ""
    other = f'; "{OTHER}", if it is in the clip and in no track' if may_be_other else ""
    return Role(
        role.name,
        f"{CLIP} A segmenter has followed things through the frames; its tracks are coloured and numbered. {people}Say "
        f'which track is the thing that is meant. The target is its number{other}; or "{NOTHING}", if no thing in the '
        "clip fits the sentence.",
        {"reason": None, "target": (*numbers, *([OTHER] if may_be_other else []), NOTHING)},
    )


def points_at_nothing(target: str) -> bool:
    """Tell whether a reasoner says that the reference points at nothing."""
    return target.strip().strip('."').lower() == NOTHING


def recognition(reply: Mapping[str, str]) -> Vote:
    """Make the vote of a reply of `recognise`: difficulty and modality together."""
    return Vote(f"{reply['difficulty']}, {reply['modality']}", reply["reason"])


#: Labels of recognitions from the easiest to the hardest; of equally many votes the hardest wins.
SEVERITY = tuple(f"{difficulty}, {modality}" for difficulty in (EASY, HARD) for modality in MODALITIES)
