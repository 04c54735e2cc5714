"""A clip of the benchmark in memory: a rendered scene and the references to it."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from aurora_rl.synthetic.config import SPLITS, TRAINED_CATEGORIES, UNSEEN_CATEGORIES, SyntheticConfig
from aurora_rl.synthetic.moments import Moment, moments_of
from aurora_rl.synthetic.questions import Question, questions_of
from aurora_rl.synthetic.references import (
    TYPE_WEIGHTS,
    Reference,
    absent_references,
    pick_references,
    references_of,
    unheard_references,
)
from aurora_rl.synthetic.scene import (
    Scene,
    SoundEvent,
    draw_scene,
    one_sound,
    render_frames,
    render_muted_waveform,
    render_waveform,
    two_sounds,
)

#: Kinds of null clips, taken in turn, and the prefix of their media ids: "muted" has no sound, "crossed" has sounds
#: of categories that are not in view, "absent" has any sounds and references to a category that is not in view.
NULL_KINDS = (("muted", "null_m-"), ("crossed", "null_c-"), ("muted", "null_m-"), ("absent", "null_c-"))
#: Number of trained categories from which a clip of test_u is drawn, beside the unseen ones.
NUM_TRAINED_IN_TEST_U = 2
#: Keys of the random generators of a clip's questions, beside that of its scene.
QUESTION_STREAM, MOMENT_STREAM = (1,), (2,)
#: Scenes drawn for a type of reference before an error; usually a few are enough.
MAX_DRAWS = 1000


@dataclasses.dataclass(frozen=True)
class SyntheticClip:
    """The content of one media folder.

    Attributes:
        media_id: name of the media folder.
        vid: the same without a null clip's prefix.
        frames: (F, H, W, 3) uint8, RGB.
        masks: (N, F, H, W) bool, visible part of the objects in view, from left to right.
        waveform: (num_samples,) float32 in [-1, 1].
        seen: categories in view, from left to right.
        heard: categories that sound, in order of onset.
        references: the references of its rows.
        questions: every multiple-choice question that it answers.
        moments: questions about when something sounds.
    """

    media_id: str
    vid: str
    frames: np.ndarray
    masks: np.ndarray
    waveform: np.ndarray
    seen: tuple[str, ...]
    heard: tuple[str, ...]
    references: tuple[Reference, ...]
    questions: tuple[Question, ...]
    moments: tuple[Moment, ...]


def make_clip(config: SyntheticConfig, split: str, index: int) -> SyntheticClip:
    """Make clip `index` of a split whose references point at objects.

    A clip of train has `rows_per_clip` references; one of another split has one, whose types alternate.
    """
    rng = _generator(config, split, index)
    wanted_type = None if split == "train" else list(TYPE_WEIGHTS)[index % len(TYPE_WEIGHTS)]
    scene, references = _draw_until(wanted_type, rng, config, split=split)
    vid = f"{split}-{index:05d}_0_{round(1000 * config.seconds)}"
    return SyntheticClip(
        media_id=vid,
        vid=vid,
        frames=render_frames(scene, rng, config),
        masks=scene.masks,
        waveform=render_waveform(scene.sounds, rng, config),
        seen=scene.seen,
        heard=scene.heard,
        references=tuple(pick_references(references, rng, count=config.rows_per_clip if split == "train" else 1)),
        questions=_questions(config, split, index, seen=scene.seen, heard=scene.heard),
        moments=_moments(config, split, index, seen=scene.seen, sounds=scene.sounds),
    )


def make_null_clip(config: SyntheticConfig, split: str, index: int, *, turn: int) -> SyntheticClip:
    """Make the null twin of clip `index`: the same frames with other audio and references that point at nothing.

    Args:
        config: the benchmark's size.
        split: split of the twin; the clips of test_n are twins of those of test_s, as in Ref-AVSBench.
        index: index of the clip.
        turn: index of its kind in `NULL_KINDS`, cyclically.
    """
    clip = make_clip(config, "test_s" if split == "test_n" else split, index)
    rng = _generator(config, split, index, twin=True)
    kind, prefix = NULL_KINDS[turn % len(NULL_KINDS)]
    sounds = () if kind == "muted" else _sounds_from_elsewhere(rng, () if kind == "absent" else clip.seen)
    references = absent_references(clip.seen, rng) if kind == "absent" else unheard_references(rng)
    heard = tuple(sound.category for sound in sounds)
    return dataclasses.replace(
        clip,
        media_id=prefix + clip.vid,
        masks=np.zeros_like(clip.masks),
        waveform=render_waveform(sounds, rng, config) if sounds else render_muted_waveform(rng, config),
        heard=heard,
        references=tuple(pick_references(references, rng, count=config.rows_per_clip if split == "train" else 1)),
        questions=_questions(config, split, index, seen=clip.seen, heard=heard, twin=True),
        moments=_moments(config, split, index, seen=clip.seen, sounds=sounds, twin=True),
    )


def _generator(
    config: SyntheticConfig, split: str, index: int, *, twin: bool = False, stream: tuple[int, ...] = ()
) -> np.random.Generator:
    """Make a clip's own random generator, which does not depend on other clips nor on its other streams."""
    key = (SPLITS.index(split), index, int(twin), *stream)
    return np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=key))


def _questions(
    config: SyntheticConfig, split: str, index: int, *, seen: Sequence[str], heard: Sequence[str], twin: bool = False
) -> tuple[Question, ...]:
    """List a clip's questions; none in test_u, whose scenes are drawn until an unseen category is the target.

    There the picture tells something about the sound, so that `accuracy_of_sight` would be too low.
    """
    if split == "test_u":
        return ()
    return tuple(questions_of(seen, heard, _generator(config, split, index, twin=twin, stream=QUESTION_STREAM)))


def _moments(
    config: SyntheticConfig,
    split: str,
    index: int,
    *,
    seen: Sequence[str],
    sounds: Sequence[SoundEvent],
    twin: bool = False,
) -> tuple[Moment, ...]:
    """List a clip's questions about times; none in test_u, whose sounds were never heard in training."""
    if split == "test_u":
        return ()
    return tuple(moments_of(seen, sounds, _generator(config, split, index, twin=twin, stream=MOMENT_STREAM)))


def _draw_until(
    wanted_type: str | None, rng: np.random.Generator, config: SyntheticConfig, *, split: str
) -> tuple[Scene, list[Reference]]:
    """Draw scenes until one allows a reference of the type (None: any); return it and its references of the type."""
    for _ in range(MAX_DRAWS):
        scene = draw_scene(rng, config, categories=_categories(split, rng))
        references = references_of(scene, rng)
        if split == "test_u":
            references = [ref for ref in references if ref.category in UNSEEN_CATEGORIES]
        if wanted_type is not None:
            references = [ref for ref in references if ref.reference_type == wanted_type]
        if references:
            return scene, references
    raise RuntimeError(f"no scene of {MAX_DRAWS} allows a reference of type {wanted_type!r} ({split}, {config})")


def _categories(split: str, rng: np.random.Generator) -> Sequence[str]:
    """Return the categories that a clip may show and sound."""
    if split != "test_u":
        return TRAINED_CATEGORIES
    return [*UNSEEN_CATEGORIES, *rng.choice(TRAINED_CATEGORIES, NUM_TRAINED_IN_TEST_U, replace=False)]


def _sounds_from_elsewhere(rng: np.random.Generator, seen: Sequence[str]) -> tuple[SoundEvent, ...]:
    """Draw one or two sounds of categories that are not in `seen`."""
    others = [category for category in TRAINED_CATEGORIES if category not in seen]
    return one_sound(rng, others) if rng.random() < 0.5 else two_sounds(rng, others)
