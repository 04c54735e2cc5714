"""Sentences that refer to one object of a scene, or to nothing, and the gold chain of thought that resolves them.

Every reference here is unambiguous: in every frame it is true of exactly one object, or of none.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from aurora_rl.data.sample import NULL_CATEGORY
from aurora_rl.synthetic.config import TRAINED_CATEGORIES
from aurora_rl.synthetic.looks import LOOKS
from aurora_rl.synthetic.scene import Scene
from aurora_rl.tasks.prompts import answer_for

#: Types of references to an object, by their names in Ref-AVSBench, and their weights in train.
TYPE_WEIGHTS = {"name": 1.0, "space": 1.5, "audio": 2.5, "audio + space": 3.0, "audio order": 3.0}
NULL_TYPE = "null"


@dataclasses.dataclass(frozen=True)
class Idea:
    """One way to single an object out.

    Attributes:
        reference_type: a key of `TYPE_WEIGHTS`.
        request: request in the words of the chain's read step.
        sentences: wordings; `{category}` and `{colour}` are replaced by the object's own.
    """

    reference_type: str
    request: str
    sentences: tuple[str, ...]


IDEAS = {
    "category": Idea("name", "the {category}", ("The {category}.", "The {category} in the video.")),
    "colour": Idea("name", "the {colour} object", ("The {colour} object.", "The {colour} object in the video.")),
    "left": Idea("space", "the object on the left", ("The object on the left.", "The leftmost object.")),
    "right": Idea("space", "the object on the right", ("The object on the right.", "The rightmost object.")),
    "middle": Idea("space", "the object in the middle", ("The object in the middle.", "The middle object.")),
    "sounding": Idea(
        "audio",
        "the object that sounds",
        ("The sounding object.", "The object making a sound.", "The object that can be heard."),
    ),
    "left sounding": Idea(
        "audio + space",
        "the sounding object on the left",
        ("The sounding object on the left.", "The object on the left making a sound."),
    ),
    "right sounding": Idea(
        "audio + space",
        "the sounding object on the right",
        ("The sounding object on the right.", "The object on the right making a sound."),
    ),
    "first": Idea(
        "audio order",
        "the object that sounds first",
        ("The first object to make a sound.", "The object that sounds first."),
    ),
    "last": Idea(
        "audio order",
        "the object that sounds last",
        ("The last object to make a sound.", "The object that sounds last."),
    ),
}


@dataclasses.dataclass(frozen=True)
class Reference:
    """One reference to one clip.

    Attributes:
        reference_type: a key of `TYPE_WEIGHTS`, or `NULL_TYPE`.
        sentence: the referring sentence.
        request: request in the words of the chain's read step.
        category: category referred to, or `NULL_CATEGORY`.
        target: index of the object referred to, from the left; None for a null reference.
    """

    reference_type: str
    sentence: str
    request: str
    category: str
    target: int | None


def references_of(scene: Scene, rng: np.random.Generator) -> list[Reference]:
    """List every reference that is true of exactly one object of the scene, in one wording each."""
    targets = [("category", index) for index in range(len(scene.objects))]
    targets += [("colour", index) for index in range(len(scene.objects))]
    x = _centroids_x(scene.masks)
    targets += [("left", 0)] if _stays_left(x, 0, range(len(x))) else []
    targets += [("right", len(x) - 1)] if _stays_right(x, len(x) - 1, range(len(x))) else []
    if len(x) == 3 and (abs(x[1] - 0.5) < 1 / 6).all():
        targets.append(("middle", 1))
    targets += _audio_targets(scene)
    return [_refer(idea, scene.seen[index], rng, target=index) for idea, index in targets]


def _audio_targets(scene: Scene) -> list[tuple[str, int]]:
    sounding = [scene.seen.index(category) for category in scene.heard if category in scene.seen]
    if len(sounding) == 1 and len(scene.heard) == 1:
        return [("sounding", sounding[0])]
    if len(sounding) < 2:
        return []
    x = _centroids_x(scene.masks)
    left, right = min(sounding), max(sounding)
    targets = [("first", sounding[0]), ("last", sounding[-1])]
    targets += [("left sounding", left)] if _stays_left(x, left, sounding) else []
    targets += [("right sounding", right)] if _stays_right(x, right, sounding) else []
    return targets


def _centroids_x(masks: np.ndarray) -> np.ndarray:
    """Return (N, F), the horizontal centre of each mask (N, F, H, W) as a share of the width."""
    columns = masks.sum(2)  # (N, F, W)
    centres = (np.arange(masks.shape[-1]) + 0.5) / masks.shape[-1]
    return (columns @ centres) / columns.sum(-1)


def _stays_left(x: np.ndarray, index: int, others: Sequence[int]) -> bool:
    """Tell whether an object is left in both meanings in every frame: left of all others, and in the left half."""
    return bool((x[index] <= x[list(others)].min(0)).all() and (x[index] < 0.5).all())


def _stays_right(x: np.ndarray, index: int, others: Sequence[int]) -> bool:
    return _stays_left(1 - x, index, others)


def unheard_references(rng: np.random.Generator) -> list[Reference]:
    """List the null references to a clip in which nothing in view sounds: all references that ask for a sound.

    References with a place are among them. In clips with sound the place alone identifies the object, so a model that
    has never seen "the sounding object on the left" for a silent clip need not listen.
    """
    ideas = [name for name, idea in IDEAS.items() if "audio" in idea.reference_type]
    return [_refer(name, NULL_CATEGORY, rng) for name in ideas]


def absent_references(seen: Sequence[str], rng: np.random.Generator) -> list[Reference]:
    """List null references to each trained category that is not in view, by name and by colour."""
    absent = [category for category in TRAINED_CATEGORIES if category not in seen]
    return [_refer(idea, category, rng) for category in absent for idea in ("category", "colour")]


def _refer(idea_name: str, category: str, rng: np.random.Generator, *, target: int | None = None) -> Reference:
    """Choose a wording of an idea; without a target it is a null reference, even if it names a category."""
    idea = IDEAS[idea_name]
    words = {"category": category, "colour": LOOKS[category].colour} if category in LOOKS else {}
    return Reference(
        reference_type=NULL_TYPE if target is None else idea.reference_type,
        sentence=str(rng.choice(idea.sentences)).format(**words),
        request=idea.request.format(**words),
        category=NULL_CATEGORY if target is None else category,
        target=target,
    )


def pick_references(references: Sequence[Reference], rng: np.random.Generator, *, count: int) -> list[Reference]:
    """Draw up to `count` different references: first a type by `TYPE_WEIGHTS`, then one of that type."""
    remaining, picked = list(references), list[Reference]()
    while remaining and len(picked) < count:
        types = [name for name in [*TYPE_WEIGHTS, NULL_TYPE] if any(ref.reference_type == name for ref in remaining)]
        weights = np.array([TYPE_WEIGHTS.get(name, 1.0) for name in types])
        chosen_type = rng.choice(types, p=weights / weights.sum())
        candidates = [ref for ref in remaining if ref.reference_type == chosen_type]
        picked.append(candidates[rng.integers(len(candidates))])
        remaining.remove(picked[-1])
    return picked


def gold_chain(reference: Reference, *, seen: Sequence[str], heard: Sequence[str]) -> tuple[dict[str, str], str]:
    """Return the reasoning steps and the answer of a reference.

    Args:
        reference: the reference.
        seen: categories in view, from left to right.
        heard: categories that sound, in order of onset.

    Returns:
        `({"look": "I see a drum and a bell.", "listen": "I hear a drum, then a bell.",
        "read": "the object that sounds first is asked for."}, "the target is the drum. It is [SEG].")`, for example.
    """
    steps = {
        "look": seen_step(seen),
        "listen": heard_step(heard),
        "read": f"{reference.request} is asked for.",
    }
    return steps, answer_for(reference.category)


def seen_step(seen: Sequence[str]) -> str:
    """Say what is in view, from left to right, such as "I see a drum, a bell and a flute."."""
    return f"I see {_listing(seen)}."


def heard_step(heard: Sequence[str]) -> str:
    """Say what sounds, in order of onset, such as "I hear a drum, then a bell."; "I hear nothing." for silence."""
    return f"I hear {', then '.join(map(_with_article, heard)) or 'nothing'}."


def _with_article(category: str) -> str:
    return f"{'an' if category[0] in 'aeiou' else 'a'} {category}"


def _listing(categories: Sequence[str]) -> str:
    """Join the categories in words, such as "a drum, a bell and a flute"."""
    *rest, last = map(_with_article, categories)
    return f"{', '.join(rest)} and {last}" if rest else last
