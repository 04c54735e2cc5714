"""Each category has an outline and a colour of its own.

An outline is a test in the object's own coordinates: `u` to the right, `v` down, in units of the object's radius.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

Outline = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) <= 1.0


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(abs(u), abs(v)) <= 0.85


def _bar(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (abs(u) <= 1.25) & (abs(v) <= 0.5)


def _diamond(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return abs(u) + abs(v) <= 1.15


def _hexagon(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(abs(u), abs(u) * 0.5 + abs(v) * 0.866) <= 0.95


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.minimum(np.maximum(abs(u), abs(v) / 0.42), np.maximum(abs(v), abs(u) / 0.42)) <= 1.0


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (v <= 0.75) & (v >= abs(u) * 1.75 - 1.0)


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return abs(np.hypot(u, v) - 0.75) <= 0.3


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) <= 0.8 + 0.35 * np.cos(5 * np.arctan2(u, -v))


def _crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (np.hypot(u, v) <= 1.1) & (np.hypot(u - 0.5, v) > 0.8)


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    x, y = 1.15 * u, 0.15 - 1.15 * v
    return (x * x + y * y - 1.0) ** 3 <= x * x * y**3


@dataclasses.dataclass(frozen=True)
class Look:
    """A category's appearance: the colour's name and RGB value (0-255), and the outline."""

    colour: str
    rgb: tuple[int, int, int]
    outline: Outline


LOOKS = {
    "bell": Look("yellow", (240, 210, 40), _disc),
    "drum": Look("red", (215, 45, 45), _square),
    "flute": Look("cyan", (50, 205, 215), _bar),
    "emergency-car": Look("purple", (205, 60, 220), _diamond),
    "engine": Look("gray", (125, 130, 140), _hexagon),
    "dog": Look("brown", (150, 90, 40), _cross),
    "bird": Look("green", (60, 190, 70), _triangle),
    "piano": Look("blue", (60, 80, 225), _ring),
    "guitar": Look("orange", (250, 140, 20), _star),
    "clock": Look("white", (235, 235, 230), _crescent),
    "cat": Look("pink", (250, 165, 190), _heart),
}
