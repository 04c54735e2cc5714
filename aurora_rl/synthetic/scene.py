"""A synthetic scene: the objects in view and their paths, the sounds and their times; then its pixels and waveform.

Drawing a scene is cheap and is repeated until it fits the wanted reference; rendering comes after. Lengths are in units
of 1/64 of the frame's width and times in shares of the clip, so that a scene is the same at every size and duration.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from aurora_rl.synthetic.config import SyntheticConfig
from aurora_rl.synthetic.looks import LOOKS
from aurora_rl.synthetic.timbres import TIMBRES

#: Width and height of a frame in the scene's unit of length.
EXTENT = 64.0
#: Least visible share of an object's outline, and number of visible pixels that must be exceeded, to be in view.
MIN_VISIBLE_SHARE, MIN_VISIBLE_PIXELS = 0.2, 12
#: Probabilities that nothing, one object, two objects, or one thing off screen sounds.
SOUND_PLANS = {"silence": 0.10, "one": 0.34, "two": 0.48, "off screen": 0.08}
#: Standard deviation of a room's noise, -68 dBFS: below the -60 dBFS at which a clip counts as silent.
ROOM_NOISE = 4e-4
#: Standard deviation of a muted recording's noise, -80 dBFS.
MUTED_NOISE = 1e-4
#: Standard deviation of the camera's noise, in steps of 8 bit.
CAMERA_NOISE = 5.0


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One object in view: its radius, rotation in radians, RGB colour (3,), and its centre (F,) in each frame."""

    category: str
    radius: float
    rotation: float
    rgb: np.ndarray
    x: np.ndarray
    y: np.ndarray


@dataclasses.dataclass(frozen=True)
class SoundEvent:
    """One category sounding from `start` to `end`, in shares of the clip."""

    category: str
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """The objects and the sounds of a clip.

    Attributes:
        objects: the N objects in view, from left to right.
        masks: (N, F, H, W) bool, the visible part of each object.
        sounds: the sounds in order of onset.
    """

    objects: tuple[SceneObject, ...]
    masks: np.ndarray
    sounds: tuple[SoundEvent, ...]

    @property
    def seen(self) -> tuple[str, ...]:
        """Categories in view, from left to right."""
        return tuple(obj.category for obj in self.objects)

    @property
    def heard(self) -> tuple[str, ...]:
        """Categories that sound, in order of onset."""
        return tuple(sound.category for sound in self.sounds)


def draw_scene(rng: np.random.Generator, config: SyntheticConfig, *, categories: Sequence[str]) -> Scene:
    """Draw a scene with two or three of the categories in view, each clearly visible in every frame.

    Args:
        rng: random generator of every choice.
        config: number of frames and their size.
        categories: categories that may be seen and heard, four or more.
    """
    while True:
        cast = [str(category) for category in rng.permutation(list(categories))]
        num_objects = int(rng.integers(2, 4))
        in_view, off_screen = cast[:num_objects], cast[num_objects:]
        objects = _place_objects(rng, in_view, num_frames=config.frames)
        outlines = np.stack([_outline(obj, config.size) for obj in objects])
        masks = np.empty_like(outlines)  # (N, F, H, W): outlines without the parts that nearer objects cover
        covered = np.zeros_like(outlines[0])
        for index in rng.permutation(num_objects):  # the nearest first
            masks[index] = outlines[index] & ~covered
            covered |= outlines[index]
        visible, whole = masks.sum((2, 3)), outlines.sum((2, 3))  # (N, F) pixels
        if ((visible > MIN_VISIBLE_PIXELS) & (visible >= MIN_VISIBLE_SHARE * whole)).all():
            return Scene(objects, masks, _draw_sounds(rng, in_view, off_screen))


def _place_objects(rng: np.random.Generator, categories: Sequence[str], *, num_frames: int) -> tuple[SceneObject, ...]:
    """Draw objects that move straight, each in its own slot of the width, so that their order never changes."""
    edges = np.linspace(0, EXTENT, len(categories) + 1)
    radii = rng.uniform(7, 10, 3) if len(categories) == 3 else rng.uniform(7.5, 12, 2)
    objects = []
    for category, radius, left, right in zip(categories, radii, edges[:-1], edges[1:], strict=True):
        # Less than a radius from the slot's edge: neighbours may overlap, but never change places.
        x_start, x_end = rng.uniform(left + 0.15 * radius, right - 0.15 * radius, 2)
        y_start = rng.uniform(radius, EXTENT - radius)
        y_end = np.clip(y_start + rng.uniform(-18, 18), radius, EXTENT - radius)
        rgb = np.array(LOOKS[category].rgb) * rng.uniform(0.85, 1.1) + rng.normal(0, 8, 3)
        x, y = np.linspace(x_start, x_end, num_frames), np.linspace(y_start, y_end, num_frames)
        objects.append(SceneObject(category, float(radius), rng.uniform(-0.35, 0.35), rgb, x, y))
    return tuple(objects)


def _pixel_centres(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the horizontal (1, W) and vertical (H, 1) position of each pixel's centre, in units of length."""
    centres = ((np.arange(size, dtype=np.float32) + 0.5) * np.float32(EXTENT / size)).astype(np.float32)
    return centres[None, :], centres[:, None]


def _outline(obj: SceneObject, size: int) -> np.ndarray:
    """Return the object's whole outline (F, H, W) bool, as if nothing were in front of it."""
    x, y = _pixel_centres(size)
    dx = (x - obj.x.astype(np.float32)[:, None, None]) / np.float32(obj.radius)  # (F, 1, W)
    dy = (y - obj.y.astype(np.float32)[:, None, None]) / np.float32(obj.radius)  # (F, H, 1)
    cos, sin = np.float32(np.cos(obj.rotation)), np.float32(np.sin(obj.rotation))
    return LOOKS[obj.category].outline(dx * cos + dy * sin, dy * cos - dx * sin)


def _draw_sounds(rng: np.random.Generator, in_view: Sequence[str], off_screen: Sequence[str]) -> tuple[SoundEvent, ...]:
    plan = rng.choice(list(SOUND_PLANS), p=list(SOUND_PLANS.values()))
    if plan == "silence":
        return ()
    if plan == "two":
        return two_sounds(rng, in_view)
    return one_sound(rng, in_view if plan == "one" else off_screen)


def one_sound(rng: np.random.Generator, categories: Sequence[str]) -> tuple[SoundEvent, ...]:
    """Draw one of the categories, which sounds for more than half of the clip."""
    start = rng.uniform(0, 0.3)
    return (SoundEvent(str(rng.choice(categories)), start, min(1.0, start + rng.uniform(0.55, 0.8))),)


def two_sounds(rng: np.random.Generator, categories: Sequence[str]) -> tuple[SoundEvent, ...]:
    """Draw two of the categories with onsets far apart: one after the other, or the second joins the first."""
    first, second = rng.choice(categories, 2, replace=False)
    start = rng.uniform(0, 0.1)
    onset = start + rng.uniform(0.32, 0.48)
    end_of_first = onset + rng.uniform(-0.025, 0.025) if rng.random() < 0.6 else 1.0
    return SoundEvent(str(first), start, end_of_first), SoundEvent(str(second), onset, 1.0)


def render_frames(scene: Scene, rng: np.random.Generator, config: SyntheticConfig) -> np.ndarray:
    """Render the scene's frames (F, H, W, 3) uint8: shaded objects on a dark gradient, and camera noise."""
    x, y = _pixel_centres(config.size)
    slope = rng.uniform(-0.35, 0.35, 2).astype(np.float32)
    light = slope[0] * (x - EXTENT / 2) + slope[1] * (y - EXTENT / 2)  # (H, W)
    background = rng.uniform(15, 75, 3).astype(np.float32) + light[..., None]
    shape = (config.frames, config.size, config.size, 3)
    pixels = CAMERA_NOISE * rng.standard_normal(shape, dtype=np.float32)
    occupied = np.any(scene.masks, axis=0, keepdims=True)[0]  # (F, H, W)
    pixels += np.where(occupied[..., None], 0, background)
    for obj, mask in zip(scene.objects, scene.masks, strict=True):
        frame, row, column = np.nonzero(mask)
        # Lit from the upper left, so that touching objects keep an edge.
        depth = (x[0, column] - obj.x[frame] + y[row, 0] - obj.y[frame]) / (2 * obj.radius)
        pixels[frame, row, column] += (obj.rgb * (1 - 0.15 * depth)[:, None]).astype(np.float32)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def render_waveform(
    sounds: Sequence[SoundEvent], rng: np.random.Generator, config: SyntheticConfig, *, noise: float = ROOM_NOISE
) -> np.ndarray:
    """Render the clip's audio (num_samples,) float32 in [-1, 1], mono: noise, and each sound at its own gain.

    Args:
        sounds: what sounds, and when.
        rng: random generator of the noise, the gains and each sound's pitch and rhythm.
        config: length and sampling rate.
        noise: standard deviation of the noise, a room's by default.
    """
    waveform = noise * rng.standard_normal(config.num_samples, dtype=np.float32)
    for sound in sounds:
        first, last = round(sound.start * config.num_samples), round(sound.end * config.num_samples)
        seconds = np.arange(last - first, dtype=np.float32) / np.float32(config.sampling_rate)
        # 10 ms ramps: a hard edge would click in every band.
        ramp = np.clip(np.minimum(seconds, seconds[::-1]) / 0.01, 0, 1)
        waveform[first:last] += rng.uniform(0.12, 0.25) * ramp * TIMBRES[sound.category](seconds, rng)
    return np.clip(waveform, -1, 1)


def render_muted_waveform(rng: np.random.Generator, config: SyntheticConfig) -> np.ndarray:
    """Render silent audio (num_samples,) float32: a recorder's noise of -80 dBFS."""
    return MUTED_NOISE * rng.standard_normal(config.num_samples, dtype=np.float32)
