"""Tools that measure a sound and answer in words: what a model that chooses tools may call.

A tool is a function of a waveform, (N,) float32 in [-1, 1], and its sampling rate in Hz; its docstring's first line is
what a model reads about it, its answer one short sentence. `SOUND_TOOLS` has all that need no weights;
`EventClassifier` is one with the weights of an audio classifier.

    >>> loudest = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32)
    >>> duration(loudest, 16_000), pitch(loudest, 16_000)
    ('The sound lasts 1.0 s.', 'The strongest note is 440 Hz (A4).')

They are plain signal processing in numpy, checked on signals whose truth is known; none was scored on recordings.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soxr

from aurora_rl.named.objects import load_object

#: Level below which a sound counts as silent, in dBFS.
SILENT_DBFS = -50.0
#: Windows of short measurements and their distance, in seconds.
WINDOW_S, HOP_S = 0.032, 0.01
#: Range of notes that `pitch` looks for, and that of voices, in Hz.
NOTES_HZ, VOICES_HZ = (50.0, 2000.0), (70.0, 400.0)
#: Range of tempos, and the one that is likeliest before a sound is heard, in beats a minute.
TEMPOS_BPM, USUAL_BPM = (40.0, 240.0), 120.0
#: Correlation of a sound with itself a period later, from which it has a pitch.
CLEAR_PITCH = 0.6
#: Most lines of `loudness`.
MAX_WINDOWS = 10

_NOTE_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


class SoundTool(Protocol):
    """A tool: it measures a waveform, (N,) float32 in [-1, 1], at a sampling rate in Hz, and tells it in words."""

    def __call__(self, waveform: np.ndarray, sampling_rate: int) -> str: ...


def duration(waveform: np.ndarray, sampling_rate: int) -> str:
    """Tell how long the sound lasts."""
    check_waveform(waveform, sampling_rate)
    return f"The sound lasts {len(waveform) / sampling_rate:.1f} s."


def loudness(waveform: np.ndarray, sampling_rate: int) -> str:
    """Tell how loud the sound is over time."""
    check_waveform(waveform, sampling_rate)
    if not len(waveform):
        return "There is no sound."
    count = max(1, min(MAX_WINDOWS, round(len(waveform) / sampling_rate)))
    edges = np.linspace(0, len(waveform), count + 1).astype(int)
    parts = [
        f"{start / sampling_rate:.1f}-{end / sampling_rate:.1f} s {_level_text(waveform[start:end])}"
        for start, end in zip(edges[:-1], edges[1:], strict=True)
    ]
    return f"Loudness: {', '.join(parts)}."


def silence(waveform: np.ndarray, sampling_rate: int) -> str:
    """Tell which share of the time is silent."""
    check_waveform(waveform, sampling_rate)
    levels = _levels(_frames(waveform, sampling_rate))
    return f"{float(np.mean(levels < SILENT_DBFS)):.0%} of the time is silent."


def pitch(waveform: np.ndarray, sampling_rate: int) -> str:
    """Tell the pitch of the strongest note.

    It is the fundamental of the loudest fifth of a second; of a chord, the note that all share.
    """
    check_waveform(waveform, sampling_rate)
    width = sampling_rate // 5
    starts = range(0, max(1, len(waveform) - width + 1), max(1, width // 4))
    loudest = max((waveform[start : start + width] for start in starts), key=level_dbfs)
    found = fundamental(loudest, sampling_rate, NOTES_HZ)
    return (
        "No note can be made out." if found is None else f"The strongest note is {found:.0f} Hz ({note_name(found)})."
    )


def onsets(waveform: np.ndarray, sampling_rate: int) -> str:
    """Tell how many sounds begin, and when."""
    check_waveform(waveform, sampling_rate)
    times = onset_times(waveform, sampling_rate)
    at = ", ".join(f"{time:.1f}" for time in times[:MAX_WINDOWS]) + (", ..." if len(times) > MAX_WINDOWS else "")
    return f"{len(times)} sounds begin, at {at} s." if len(times) > 1 else _few_onsets(times)


def tempo(waveform: np.ndarray, sampling_rate: int) -> str:
    """Tell the tempo in beats a minute."""
    check_waveform(waveform, sampling_rate)
    found = beats_per_minute(waveform, sampling_rate)
    return "There is no steady beat." if found is None else f"The tempo is {found:.0f} beats a minute."


def speech(waveform: np.ndarray, sampling_rate: int) -> str:
    """Tell when something sounds like a voice.

    It is a rule, no trained detector: sound with a pitch of 70 to 400 Hz whose level rises and falls as syllables do.
    A melody that is sung or played in that range counts, too; whispers, and voices beneath music or noise, are missed.
    """
    check_waveform(waveform, sampling_rate)
    spans = voiced_spans(waveform, sampling_rate)
    told = ", ".join(f"{start:.1f}-{end:.1f} s" for start, end in spans)
    return f"It sounds like a voice at {told}." if spans else "Nothing sounds like a voice."


#: All tools that need no weights, by the name that models read.
SOUND_TOOLS: Mapping[str, SoundTool] = {
    tool.__name__: tool for tool in (duration, loudness, silence, pitch, onsets, tempo, speech)
}


class EventClassifier:
    """Tell which events are heard, by the weights of an audio classifier.

    Args:
        path: folder of a model of transformers' `AutoModelForAudioClassification` with its feature extractor. Nothing
            is downloaded, no code of the folder is run, and weights must be safetensors.
        top: number of labels that are told.

    Raises:
        FileNotFoundError: if the folder is not there.
    """

    def __init__(self, path: str | os.PathLike[str], *, top: int = 3) -> None:
        from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

        if not Path(path).is_dir():
            raise FileNotFoundError(f"there is no folder {path}: name the folder of an audio classifier")
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self.top = top
        self.extractor = AutoFeatureExtractor.from_pretrained(path, **options)
        self.model = AutoModelForAudioClassification.from_pretrained(path, use_safetensors=True, **options).eval()

    def __call__(self, waveform: np.ndarray, sampling_rate: int) -> str:
        import torch

        check_waveform(waveform, sampling_rate)
        wanted = self.extractor.sampling_rate
        # A convolution needs some width: a shorter sound is followed by silence.
        padded = np.pad(waveform, (0, max(0, sampling_rate // 10 - len(waveform))))
        sound = soxr.resample(padded, sampling_rate, wanted)
        inputs = self.extractor(sound, sampling_rate=wanted, return_tensors="pt")
        with torch.no_grad():
            probs = self.model(**inputs).logits[0].float().softmax(-1)  # (labels,)
        values, indices = probs.topk(min(self.top, len(probs)))
        names = self.model.config.id2label
        told = [f"{names[int(i)]} {float(v):.0%}" for v, i in zip(values, indices, strict=True)]
        return f"A classifier hears: {', '.join(told)}."


def describe(tool: SoundTool | type) -> str:
    """Return what a model reads about a tool, the first line of its docstring."""
    return (tool.__doc__ or "").strip().splitlines()[0].removesuffix(".")


def load_tools(names: Sequence[str], *, classifier: str | None = None) -> dict[str, SoundTool]:
    """Return tools by their names, in this order.

    Args:
        names: keys of `SOUND_TOOLS`, "events" for the classifier, or functions of one's own as
            `package.module:function` or `path/to/mine.py:function`, whose names are those of the functions.
        classifier: folder of the classifier.

    Raises:
        ValueError: if a name is unknown or repeated, or "events" has no classifier.
    """
    known = [*SOUND_TOOLS, "events"]
    if unknown := [name for name in names if name not in known and ":" not in name]:
        raise ValueError(
            f"unknown tool {unknown[0]!r}: choose from {', '.join(known)}, or write 'path/to/mine.py:function'"
        )
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"tools are {list(names)}: name each once, and at least one")
    if "events" in names and classifier is None:
        raise ValueError("the tool 'events' needs `classifier`, the folder of an audio classifier")
    tools: dict[str, SoundTool] = {}
    for name in names:
        if ":" in name:
            tools[name.rpartition(":")[2]] = load_object(name, what="tool")
        else:
            tools[name] = EventClassifier(str(classifier)) if name == "events" else SOUND_TOOLS[name]
    return tools


def check_waveform(waveform: np.ndarray, sampling_rate: int) -> None:
    """Refuse what is no waveform.

    Raises:
        ValueError: if it is not one-dimensional or not finite, or the rate is not positive.
    """
    if waveform.ndim != 1 or not np.isfinite(waveform).all() or sampling_rate <= 0:
        raise ValueError(
            f"the waveform has the shape {waveform.shape} at {sampling_rate} Hz: expected finite numbers (N,), mono"
        )


def fundamental(waveform: np.ndarray, sampling_rate: int, range_hz: tuple[float, float]) -> float | None:
    """Return the pitch in Hz by the sound's correlation with itself; None where there is no clear one.

    The period is the shortest lag whose correlation is nearly that of the best, so that neither a strong overtone nor
    two periods are taken for it (de Cheveigné and Kawahara 2002, section II).

    Args:
        waveform: (N,) of steady sound, at least two periods of the lowest pitch.
        sampling_rate: its rate in Hz.
        range_hz: lowest and highest pitch.
    """
    longest = int(sampling_rate / range_hz[0]) + 1
    shortest = max(2, int(sampling_rate / range_hz[1]))
    if len(waveform) < 2 * longest or level_dbfs(waveform) < SILENT_DBFS:
        return None
    correlation = self_correlation(waveform - waveform.mean(), longest + 1)
    inner = np.arange(shortest, longest)
    is_peak = (correlation[inner] >= correlation[inner - 1]) & (correlation[inner] > correlation[inner + 1])
    peaks = inner[is_peak]
    if not len(peaks) or correlation[peaks].max() < CLEAR_PITCH:
        return None
    lag = int(peaks[correlation[peaks] >= 0.9 * correlation[peaks].max()][0])
    return sampling_rate / (lag + _vertex(correlation[lag - 1 : lag + 2]))


def self_correlation(waveform: np.ndarray, count: int) -> np.ndarray:
    """Correlate a sound with itself at the lags 0 to `count - 1`.

    Returns:
        (count,), each normalised by the energies of the two parts that overlap, so that a periodic sound has 1.0.
    """
    size = len(waveform)
    spectrum = np.fft.rfft(waveform.astype(np.float64), 2 * size)
    products = np.fft.irfft(np.abs(spectrum) ** 2)[:count]
    energy = np.concatenate([[0.0], np.cumsum(waveform.astype(np.float64) ** 2)])
    lags = np.arange(count)
    overlap = np.sqrt(energy[size - lags] * (energy[size] - energy[lags]))
    return products / np.maximum(overlap, 1e-12)


def note_name(hertz: float) -> str:
    """Return the nearest note of equal temperament.

    >>> note_name(440.0), note_name(261.6)
    ('A4', 'C4')
    """
    key = round(69 + 12 * np.log2(hertz / 440.0))
    return f"{_NOTE_NAMES[key % 12]}{key // 12 - 1}"


def onset_strengths(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Measure how much louder each window is than the one before, summed over frequencies (spectral flux).

    Returns:
        (T,) one each `HOP_S`; silence is taken to stand before the first window.
    """
    frames = _frames(waveform, sampling_rate)
    magnitudes = np.abs(np.fft.rfft(frames * np.hanning(frames.shape[1]), axis=1)) / frames.shape[1]  # (T, bins)
    # Below a level of about -60 dB a change counts as none.
    loudness_of_bins = np.log1p(1000.0 * magnitudes)
    rises = np.diff(loudness_of_bins, axis=0, prepend=np.zeros((1, loudness_of_bins.shape[1])))
    return np.maximum(rises, 0.0).sum(axis=1)


def onset_times(waveform: np.ndarray, sampling_rate: int) -> list[float]:
    """Find when sounds begin, in seconds: peaks of `onset_strengths` far above their neighbourhood."""
    strengths = onset_strengths(waveform, sampling_rate)
    if not len(strengths) or level_dbfs(waveform) < SILENT_DBFS:
        return []
    # A sound's rise is spread over the windows that overlap it.
    around, wide = int(0.06 / HOP_S), int(0.25 / HOP_S)
    smooth = np.convolve(strengths, np.ones(3), mode="same")
    least = 0.3 * smooth.max()
    times: list[float] = []
    for index, value in enumerate(smooth):
        near = smooth[max(0, index - around) : index + around + 1]
        is_first = not (smooth[max(0, index - around) : index] == value).any()
        # Noise rises and falls all the time, so an onset must stand out.
        usual = float(np.median(smooth[max(0, index - wide) : index + wide + 1]))
        if value >= max(least, 2 * usual) and value == near.max() and is_first:
            times.append(index * HOP_S)
    return times


def beats_per_minute(waveform: np.ndarray, sampling_rate: int) -> float | None:
    """Return the tempo by the correlation of onset strengths with themselves; None without a steady beat.

    Tempos near `USUAL_BPM` are preferred by a bell over octaves (Ellis 2007), as half and double fit as well.
    """
    if len(onset_times(waveform, sampling_rate)) < 3:
        return None
    strengths = onset_strengths(waveform, sampling_rate)
    longest = int(60 / TEMPOS_BPM[0] / HOP_S)
    if len(strengths) <= longest:
        longest = len(strengths) // 2
    # Widened, since a beat may fall between two windows.
    widened = np.convolve(strengths, np.hanning(7), mode="same")
    correlation = self_correlation(widened - widened.mean(), longest + 1)
    lags = np.arange(int(60 / TEMPOS_BPM[1] / HOP_S), longest)
    if not len(lags) or correlation[lags].max() < 0.3:
        return None
    octaves = np.log2(60 / (lags * HOP_S) / USUAL_BPM)
    best = int(lags[np.argmax(correlation[lags] * np.exp(-0.5 * octaves**2))])
    return 60 / ((best + _vertex(correlation[best - 1 : best + 2])) * HOP_S)


def voiced_spans(waveform: np.ndarray, sampling_rate: int) -> list[tuple[float, float]]:
    """Find spans in seconds that sound like a voice, see `speech`."""
    width, hop = int(0.04 * sampling_rate), max(1, int(HOP_S * sampling_rate))
    starts = range(0, len(waveform) - width + 1, hop)
    parts = [waveform[start : start + width] for start in starts]
    is_voiced = np.array([fundamental(part, sampling_rate, VOICES_HZ) is not None for part in parts], dtype=bool)
    levels = np.array([level_dbfs(part) for part in parts])
    times = np.flatnonzero(is_voiced) * hop / sampling_rate
    # Syllables are parted by less than 0.3 s.
    groups = np.split(np.flatnonzero(is_voiced), np.flatnonzero(np.diff(times) > 0.3) + 1) if len(times) else []
    spans = [(float(g[0] * hop / sampling_rate), float((g[-1] * hop + width) / sampling_rate), g) for g in groups]
    return [(start, end) for start, end, g in spans if end - start >= 0.2 and levels[g].std() >= 1.0]


def _frames(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Cut a sound into windows (T, W) of `WINDOW_S` each `HOP_S`; a shorter sound is one window, padded by zeros."""
    width, hop = max(2, int(WINDOW_S * sampling_rate)), max(1, int(HOP_S * sampling_rate))
    padded = np.pad(waveform, (0, max(0, width - len(waveform))))
    return np.lib.stride_tricks.sliding_window_view(padded, width)[::hop]


def _levels(frames: np.ndarray) -> np.ndarray:
    """Return the RMS of windows (T, W) in dBFS, (T,); at least -120."""
    return 10 * np.log10(np.maximum(np.mean(frames.astype(np.float64) ** 2, axis=1), 1e-12))


def level_dbfs(waveform: np.ndarray) -> float:
    """Return the RMS of a waveform (N,) in dBFS; -120 for silence and for no sound."""
    return float(_levels(waveform[None])[0]) if len(waveform) else -120.0


def _level_text(waveform: np.ndarray) -> str:
    level = level_dbfs(waveform)
    return "silent" if level < SILENT_DBFS else f"{level:.0f} dB"


def _few_onsets(times: Sequence[float]) -> str:
    return f"1 sound begins, at {times[0]:.1f} s." if times else "No sound begins."


def _vertex(values: np.ndarray) -> float:
    """Return where the parabola through three neighbours has its top, from the middle one, in [-0.5, 0.5]."""
    before, middle, after = (float(value) for value in values)
    bend = before - 2 * middle + after
    return 0.0 if bend >= 0 else float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5))
