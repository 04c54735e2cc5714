"""Clips of a page: the choice of an evaluation's rows, and their frames, masks and sound as data URIs.

A clip's frames are embedded once; masks are small transparent pictures over them. So two dozen clips with sound
stay well below 6 MB.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import soundfile
from PIL import Image

from aurora_rl.data.containers import SAMPLING_RATE
from aurora_rl.data.media import SILENCE_DBFS, load_clip, loudness_dbfs
from aurora_rl.data.run_lengths import decode_masks
from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.evaluation.records import RowResult
from aurora_rl.tasks.prompts import STEP_LABELS

_FRAME_HEIGHT = 144  # pixels; larger frames are scaled down to it
_MAX_MASK_SCALE = 4  # factor by which small masks are enlarged, so that their outlines stay thin
_MAX_STRIP_ASPECT = 7.2  # width / height of the strip of frames that still fits beside the text
_MIN_FRAMES = 3
_WAV_SECONDS = 4.0  # longer audio is embedded as MP3, a fifth of the size
_WAVEFORM_BINS = 240

# Colours that the three common kinds of colour blindness keep apart. Each region has a fill and an outline.
_REGION_COLOURS = {"hit": (20, 200, 170), "extra": (255, 128, 0), "missed": (215, 70, 239)}
_FILL_ALPHA = 90
_VEIL_ALPHA = 120  # opacity of the black outside masks, so that a mask is visible on an object of its own colour
_OVERLAY_ALPHA = bytes([0, _VEIL_ALPHA, *(_FILL_ALPHA, 255) * len(_REGION_COLOURS)])


@dataclasses.dataclass(frozen=True)
class Choice:
    """A row to show, and the reason."""

    key: str
    reason: str


@dataclasses.dataclass(frozen=True)
class ChainLine:
    """A line of a completion: its label ("Look:") if it has one, its text, and whether its claim is true."""

    label: str
    text: str
    is_true: bool | None


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One run's answer to a row.

    Attributes:
        name: name of the run.
        result: result of the row.
        lines: lines of the completion.
        overlay: PNG data URI of a picture over the frames: hit, extra and missed pixels; None where no masks are
            scored.
    """

    name: str
    result: RowResult
    lines: tuple[ChainLine, ...]
    overlay: str | None


@dataclasses.dataclass(frozen=True)
class GalleryClip:
    """One row of a page.

    Attributes:
        sample: the row.
        reason: reason for which it is shown.
        frames: WebP data URI of the shown frames side by side; None for a clip that is sound alone.
        size: (width, height) of that picture, in pixels.
        shown: 1-based numbers of the shown frames.
        num_frames: number of frames in the whole clip.
        truth: PNG data URI of the true masks, a picture over the frames; None where no masks are scored.
        audio: WAV or MP3 data URI.
        waveform: SVG path of the loudness envelope in a box of 240 x 40.
        seconds: length of the audio.
        loudness: loudness of the loudest 100 ms, in dBFS.
        attempts: answers, one of each run.
    """

    sample: AVSample
    reason: str
    frames: str | None
    size: tuple[int, int]
    shown: tuple[int, ...]
    num_frames: int
    truth: str | None
    audio: str
    waveform: str
    seconds: float
    loudness: float
    attempts: tuple[Attempt, ...]

    @property
    def is_silent(self) -> bool:
        """Whether the clip has no audible sound."""
        return self.loudness < SILENCE_DBFS


# ------------------------------------------------------------------------------------------------ which rows


def choose_rows(before: Sequence[RowResult], after: Sequence[RowResult], *, num_rows: int) -> list[Choice]:
    """Choose rows of every kind: largest gains and losses, best and worst, typical ones of each type, and null ones.

    The kinds take turns, each with its next row that is not chosen yet, so that a short gallery still has all kinds.

    Args:
        before: results of the earlier run.
        after: results of the later run on the same rows.
        num_rows: number of rows to choose.

    Returns:
        The choices, those of one kind together.
    """
    quality_before = {result.key: _quality(result) for result in before}
    ranked = _rank_by_reason({result.key: result for result in after}, quality_before)
    chosen: dict[str, str] = {}
    for reason, key in _take_turns(ranked):
        if len(chosen) == num_rows:
            break
        chosen.setdefault(key, reason)
    reasons = list(ranked)
    choices = [Choice(key=key, reason=reason) for key, reason in chosen.items()]
    return sorted(choices, key=lambda choice: reasons.index(choice.reason))  # stable: best first within a reason


def _quality(result: RowResult) -> float:
    """Sum up what training rewards: the form, a right answer, the masks."""
    greedy = result.completion
    return (greedy.scores.get("format") or 0.0) + greedy.is_right + (greedy.iou or 0.0)


def _rank_by_reason(after: Mapping[str, RowResult], quality_before: Mapping[str, float]) -> dict[str, list[str]]:
    """Rank the rows' keys under each reason, the best example first."""
    gain = {key: _quality(result) - quality_before[key] for key, result in after.items() if key in quality_before}
    iou = {key: _quality(row) if row.completion.iou is None else row.completion.iou for key, row in after.items()}
    target = [key for key, result in sorted(after.items()) if not result.is_null]
    null = [key for key, result in sorted(after.items()) if result.is_null]
    ranked = {
        "largest gain": sorted((key for key in gain if gain[key] > 0), key=lambda key: (-gain[key], key)),
        "largest loss": sorted((key for key in gain if gain[key] < 0), key=lambda key: (gain[key], key)),
        "best": sorted(target, key=lambda key: -iou[key]),
        "worst": sorted(target, key=lambda key: iou[key]),
    }
    told = {after[key].reference_type for key in target if not after[key].type_is_derived}
    for reference_type in sorted(name for name in told if name is not None):
        keys = [key for key in target if after[key].reference_type == reference_type]
        median = float(np.median([iou[key] for key in keys]))
        ranked[f"typical: {reference_type}"] = sorted(keys, key=lambda key: abs(iou[key] - median))
    false_alarm = {key: after[key].S or 0.0 for key in null}
    ranked["null, well answered"] = sorted(null, key=lambda key: -_quality(after[key]))
    ranked["null, false alarm"] = sorted(
        (key for key in null if false_alarm[key] > 0), key=lambda key: -false_alarm[key]
    )
    return ranked


def _take_turns(ranked: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """Yield (reason, key): the first of every reason, then the second of every reason, and so on."""
    columns = [[(reason, key) for key in keys] for reason, keys in ranked.items()]
    for turn in itertools.zip_longest(*columns):
        yield from (pair for pair in turn if pair is not None)


# ------------------------------------------------------------------------------------------------ one row


def render_clip(
    sample: AVSample,
    results: Mapping[str, RowResult],
    *,
    reason: str,
    load: Callable[[AVSample], AVClip] = load_clip,
) -> GalleryClip:
    """Read a row's media and convert them, with each run's answer, into the data that the page embeds.

    Args:
        sample: the row.
        results: results of the row by name of the run.
        reason: reason for which it is shown.
        load: function that reads the sample's media.

    Raises:
        MediaError: if a file cannot be read.
    """
    clip = load(sample)
    waveform = silence_of(sample) if clip.waveform is None else clip.waveform
    gt_masks, shown = _scored_masks(sample, clip, has_masks=any(row.masks for row in results.values()))
    strip = _frame_strip(clip.frames[shown]) if shown else None
    return GalleryClip(
        sample=sample,
        reason=reason,
        frames=None if strip is None else _image_uri(strip, "WEBP", quality=82, method=6),
        size=(0, 0) if strip is None else strip.size,
        shown=tuple(index + 1 for index in shown),
        num_frames=len(clip.frames),
        truth=None if gt_masks is None else mask_overlay(gt_masks, gt_masks),
        audio=_audio_uri(waveform),
        waveform=waveform_path(waveform),
        seconds=len(waveform) / SAMPLING_RATE,
        loudness=loudness_dbfs(clip.waveform),
        attempts=tuple(
            Attempt(name, row, chain_lines(row), _overlay_of(row, gt_masks, shown)) for name, row in results.items()
        ),
    )


def _scored_masks(sample: AVSample, clip: AVClip, *, has_masks: bool) -> tuple[np.ndarray | None, list[int]]:
    """Choose the frames that are shown, by index, and their true masks (F, H, W); None where no masks are scored."""
    masks = clip.gt_masks if has_masks else None
    scored = range(len(clip.frames)) if masks is None or sample.annotated_frames is None else sample.annotated_frames
    shown = _shown_frames(clip.frames, scored)
    return None if masks is None else masks[[list(scored).index(number) for number in shown]], shown


def _overlay_of(row: RowResult, gt_masks: np.ndarray | None, shown: Sequence[int]) -> str | None:
    """Draw a completion's masks on the shown frames over their truth (F, H, W); None where there are none."""
    if gt_masks is None or not row.completion.pred_masks:
        return None
    return mask_overlay(decode_masks(row.completion.pred_masks)[list(shown)], gt_masks)


def silence_of(sample: AVSample) -> np.ndarray:
    """Return the sound of a page's clip without sound: (N,) zeros as long as its frames."""
    return np.zeros(math.ceil(sample.num_frames / sample.fps * SAMPLING_RATE), dtype=np.float32)


def mask_overlay(pred_masks: np.ndarray, gt_masks: np.ndarray) -> str:
    """Draw where prediction and truth agree as a PNG data URI, see `overlay_picture`."""
    return _image_uri(overlay_picture(pred_masks, gt_masks), "PNG", optimize=True, transparency=_OVERLAY_ALPHA)


def overlay_picture(pred_masks: np.ndarray, gt_masks: np.ndarray) -> Image.Image:
    """Draw where prediction and truth agree, frames side by side, in a palette whose opacities are `_OVERLAY_ALPHA`.

    Args:
        pred_masks: predicted masks, (F, H, W) bool.
        gt_masks: true masks, (F, H, W) bool.
    """
    hit, extra, missed = (
        _strip_masks(masks) for masks in (pred_masks & gt_masks, pred_masks & ~gt_masks, gt_masks & ~pred_masks)
    )
    outline = _outline(hit | extra) | (_outline(hit | missed) & missed)
    palette_index = _strip_masks(np.ones_like(pred_masks)).astype(np.uint8)  # 0 between the frames, 1 on them
    for number, region in enumerate((hit, extra, missed), start=1):
        palette_index[region] = 2 * number
        palette_index[region & outline] = 2 * number + 1
    image = Image.fromarray(palette_index)
    image.putpalette([0] * 6 + [part for colour in _REGION_COLOURS.values() for part in colour * 2])
    return image


def contact_sheet(sample: AVSample, clip: AVClip, result: RowResult) -> Image.Image | None:
    """Place the frames of a clip, their true masks and the predicted ones below one another, as an RGB picture.

    Returns:
        The picture; frames alone where no masks are scored, None for a clip that is sound alone.
    """
    gt_masks, shown = _scored_masks(sample, clip, has_masks=result.masks is not None)
    if not shown:
        return None
    strip = _frame_strip(clip.frames[shown])
    factor = min(_MAX_MASK_SCALE, max(1, _FRAME_HEIGHT // strip.height))
    strip = strip.resize((strip.width * factor, strip.height * factor), Image.Resampling.NEAREST)
    strips = [strip]
    if gt_masks is not None:
        predicted = decode_masks(result.completion.pred_masks)[shown]
        strips += [_laid_over(strip, overlay_picture(masks, gt_masks)) for masks in (gt_masks, predicted)]
    gap = _gap(strip.height)
    sheet = Image.new("RGB", (strip.width, len(strips) * (strip.height + gap) - gap), "white")
    for number, picture in enumerate(strips):
        sheet.paste(picture, (0, number * (strip.height + gap)), picture)
    return sheet


def _laid_over(strip: Image.Image, overlay: Image.Image) -> Image.Image:
    """Lay a picture of `overlay_picture` over the frames (RGBA)."""
    overlay.info["transparency"] = _OVERLAY_ALPHA
    return Image.alpha_composite(strip, overlay.convert("RGBA").resize(strip.size))


def waveform_path(waveform: np.ndarray) -> str:
    """Draw a waveform's envelope as an SVG path, in a box 240 wide and 40 high.

    The height is the square root of the peak: quiet sounds can be seen, and silence is a flat line.

    Args:
        waveform: samples, (N,) float in [-1, 1].
    """
    bins = np.array_split(waveform, min(_WAVEFORM_BINS, len(waveform)))
    heights = [max(float(np.abs(part).max()) ** 0.5, 0.02) for part in bins]
    step = _WAVEFORM_BINS / len(bins)
    upper = [f"{(at + 0.5) * step:.1f} {20 - 19 * height:.1f}" for at, height in enumerate(heights)]
    lower = [f"{(at + 0.5) * step:.1f} {20 + 19 * height:.1f}" for at, height in enumerate(heights)]
    return f"M{'L'.join([*upper, *reversed(lower)])}Z"


def chain_lines(result: RowResult) -> tuple[ChainLine, ...]:
    """Split a greedy completion into lines, each step with whether its claim is true (None if unknown)."""
    greedy = result.completion
    verdicts = {"look": greedy.scores.get("see"), "listen": greedy.scores.get("hear"), "answer": float(greedy.is_right)}
    return tuple(_chain_line(line.strip(), verdicts) for line in greedy.text.splitlines() if line.strip())


def _chain_line(line: str, verdicts: Mapping[str, float | None]) -> ChainLine:
    for step, label in STEP_LABELS.items():
        if line.startswith(label):
            verdict = verdicts.get(step)
            return ChainLine(label, line.removeprefix(label).strip(), None if verdict is None else verdict == 1.0)
    return ChainLine("", line, None)


def _shown_frames(frames: np.ndarray, scored: Sequence[int]) -> list[int]:
    """Choose as many evenly spaced ones of the scored frames (F, H, W, 3) as fit side by side, by index."""
    if not len(frames):
        return []
    aspect = frames.shape[2] / frames.shape[1]
    count = min(len(scored), max(_MIN_FRAMES, int(_MAX_STRIP_ASPECT / aspect)))
    return [scored[index] for index in np.linspace(0, len(scored) - 1, count).round().astype(int)]


def _gap(frame_width: int) -> int:
    """Return the pixels between two frames of a strip."""
    return max(1, round(frame_width / 40))


def _frame_strip(frames: np.ndarray) -> Image.Image:
    """Place frames (F, H, W, 3) side by side, transparent between them, at most 144 pixels high."""
    num_frames, height, width = frames.shape[:3]
    scale = min(1.0, _FRAME_HEIGHT / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    gap = _gap(size[0])
    strip = Image.new("RGBA", (num_frames * (size[0] + gap) - gap, size[1]))
    for number, frame in enumerate(frames):
        strip.paste(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS), (number * (size[0] + gap), 0))
    return strip


def _strip_masks(masks: np.ndarray) -> np.ndarray:
    """Place masks (F, H, W) as `_frame_strip` places the frames; small ones are enlarged by a whole number."""
    num_frames, height, width = masks.shape
    scale = min(1.0, _FRAME_HEIGHT / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    factor = min(_MAX_MASK_SCALE, max(1, _FRAME_HEIGHT // size[1]))
    gap = _gap(size[0])
    strip = np.zeros((size[1], num_frames * (size[0] + gap) - gap), dtype=bool)
    for number, mask in enumerate(masks):
        left = number * (size[0] + gap)
        strip[:, left : left + size[0]] = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    return strip.repeat(factor, axis=0).repeat(factor, axis=1)


def _outline(mask: np.ndarray) -> np.ndarray:
    """Find the outline of a mask (H, W), two pixels wide inside the mask."""
    inside = mask
    for _ in range(2):
        padded = np.pad(inside, 1)
        inside = inside & padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    return mask & ~inside


def _image_uri(image: Image.Image, file_format: str, **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return f"data:image/{file_format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _audio_uri(waveform: np.ndarray) -> str:
    """Encode audio for a browser: WAV if the clip is short, MP3 if it is long."""
    is_short = len(waveform) <= math.ceil(_WAV_SECONDS * SAMPLING_RATE)
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, SAMPLING_RATE, format="WAV" if is_short else "MP3")
    kind = "wav" if is_short else "mpeg"
    return f"data:audio/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


# ------------------------------------------------------------------------------------------------ all rows


def render_clips(
    samples: Sequence[AVSample], runs: Mapping[str, Sequence[RowResult]], num_clips: int
) -> list[GalleryClip]:
    """Choose rows whose media exist, and render them with the answers of two runs.

    Args:
        samples: rows of the benchmark, with their media on disk.
        runs: results of the earlier and the later run, by the run's name.
        num_clips: largest number of rows.

    Raises:
        MediaError: if the media of a chosen row cannot be read.
    """
    at_hand = {sample.key: sample for sample in samples}
    by_run = {name: {row.key: row for row in rows if row.key in at_hand} for name, rows in runs.items()}
    before, after = (list(rows.values()) for rows in by_run.values())
    return [
        render_clip(
            at_hand[choice.key], {name: rows[choice.key] for name, rows in by_run.items()}, reason=choice.reason
        )
        for choice in choose_rows(before, after, num_rows=num_clips)
    ]
