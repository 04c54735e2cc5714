"""Each category has a timbre: a function from time to waveform with a spectrum and a rhythm of its own.

Pitch, rate and phase vary a little from clip to clip, so that a category is a kind of sound and not one recording.
Amplitudes are about 1; the scene sets the gain.
"""

from collections.abc import Callable

import numpy as np

Timbre = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _tone(cycles: np.ndarray) -> np.ndarray:
    return np.sin(2 * np.pi * cycles)


def _sawtooth(cycles: np.ndarray) -> np.ndarray:
    return 2 * np.mod(cycles, 1.0) - 1


def _pitch(rng: np.random.Generator) -> float:
    return rng.uniform(0.93, 1.07)


def _since_strike(seconds: np.ndarray, rng: np.random.Generator, *, rate: float) -> np.ndarray:
    """Return the seconds since the last of `rate` strikes a second."""
    period = 1.0 / (rate * rng.uniform(0.9, 1.1))
    return np.mod(seconds + rng.uniform(0, period), period)


def _bell(seconds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    pitch, since = _pitch(rng), _since_strike(seconds, rng, rate=2.5)
    return np.exp(-6 * since) * (_tone(900 * pitch * since) + 0.6 * _tone(2480 * pitch * since))


def _drum(seconds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    pitch, since = _pitch(rng), _since_strike(seconds, rng, rate=5)
    skin = 0.5 * rng.standard_normal(len(seconds), dtype=np.float32)
    return np.exp(-28 * since) * (skin + 1.2 * _tone(95 * pitch * since))


def _flute(seconds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    vibrato = 0.02 / (2 * np.pi * 5) * np.cos(2 * np.pi * 5 * seconds)
    return 0.9 * _tone(620 * _pitch(rng) * (seconds - vibrato))


def _siren(seconds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    # 1500 Hz swept by +-700 Hz, 1.6 times a second; cycles are the integral of the frequency.
    swing = 700 / (2 * np.pi * 1.6) * np.cos(2 * np.pi * (1.6 * seconds + rng.uniform(0, 1)))
    return 0.9 * _tone(1500 * _pitch(rng) * seconds - swing)


def _engine(seconds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _sawtooth(70 * _pitch(rng) * seconds) * (0.7 + 0.3 * _tone(12 * seconds))


def _bark(seconds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    pitch, since = _pitch(rng), _since_strike(seconds, rng, rate=3)
    return 0.8 * np.sign(_tone(380 * pitch * since - 250 * since**2)) * (since < 0.14)


def _chirp(seconds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    pitch, since = _pitch(rng), _since_strike(seconds, rng, rate=6)
    return _tone(3800 * pitch * since + 7000 * since**2) * (since < 0.09)


def _piano(seconds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    pitch, since = _pitch(rng), _since_strike(seconds, rng, rate=4)
    return 0.7 * np.exp(-7 * since) * (_sawtooth(262 * pitch * since) + _sawtooth(330 * pitch * since))


def _guitar(seconds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    pitch, since = _pitch(rng), _since_strike(seconds, rng, rate=3)
    partials = [np.exp(-3 * k * since) * _tone(147 * k * pitch * since) / k for k in range(1, 7)]
    return 0.9 * np.sum(partials, axis=0)


def _tick(seconds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    pitch, since = _pitch(rng), _since_strike(seconds, rng, rate=4)
    tick = np.exp(-90 * since) * _tone(2100 * pitch * since)
    tock = np.exp(-90 * abs(since - 0.12)) * _tone(1500 * pitch * since)
    return 1.5 * (tick + tock)


def _meow(seconds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    pitch, since = _pitch(rng), _since_strike(seconds, rng, rate=1.5)
    cycles = pitch * (500 * since + 900 * since**2 - 1100 * since**3)
    voice = _tone(cycles) + 0.6 * _tone(2 * cycles) + 0.5 * _tone(3 * cycles)
    return 0.6 * voice * np.sin(np.pi * np.clip(since / 0.5, 0, 1))


TIMBRES: dict[str, Timbre] = {
    "bell": _bell,
    "drum": _drum,
    "flute": _flute,
    "emergency-car": _siren,
    "engine": _engine,
    "dog": _bark,
    "bird": _chirp,
    "piano": _piano,
    "guitar": _guitar,
    "clock": _tick,
    "cat": _meow,
}
