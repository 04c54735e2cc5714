"""Read the files of a clip (frames, audio, masks) into arrays.

`AVSample` holds paths, `load_clip` turns them into an `AVClip`. A file that cannot be read is a `MediaError` that names
it; nothing unreadable becomes zeros, because a black frame or a silent clip would be wrong training data. Files are
untrusted: sizes are checked from headers before anything is decoded, and only plain image and audio formats are opened
(no format that runs a program or follows links to other files).
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from aurora_rl.data.containers import (
    MAX_IMAGE_PIXELS,
    SAMPLING_RATE,
    FilePath,
    MediaError,
    check_clip_pixels,
    check_is_file,
)
from aurora_rl.data.frame_cache import frame_files, keep_frames
from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.data.sound import check_sound, log_notes, mono, open_sound
from aurora_rl.data.video import read_video_frames, read_video_size, read_video_sound

FRAME_FORMATS = ("JPEG", "PNG", "WEBP")
MOVING_FORMATS = (*FRAME_FORMATS, "GIF")  # formats of pictures that may be animated
FRAME_MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr")  # 16-bit modes would be clipped, not scaled
MASK_FORMATS = ("PNG",)
MASK_MODES = ("L", "1", "P")

ORIENTATION_TAG = 0x0112  # of EXIF

LOUDNESS_WINDOW = 0.1  # seconds
SILENCE_DBFS = -60.0  # a clip whose loudest window is below this level counts as silent


def read_media(sample: AVSample) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a sample's frames (F, H, W, 3), F = 0 where it has none, and its sound (N,), None where it has none.

    Raises:
        MediaError: naming the file, if one cannot be read.
    """
    return read_clip_frames(sample), read_clip_sound(sample)


def read_clip_frames(sample: AVSample) -> np.ndarray:
    """Read a sample's frames (F, H, W, 3) uint8, RGB; F = 0 where it has none. The errors are those of `read_media`."""
    if sample.video_path is not None:
        return _read_sampled(sample.video_path, sample.frame_times, sample.frame_cache)
    return read_frames(sample.frame_paths) if sample.frame_paths else np.zeros((0, 0, 0, 3), dtype=np.uint8)


def _read_sampled(video: str, times: Sequence[float], cache: str | None) -> np.ndarray:
    """Read the frames of a video at some times, from the cache where there is one."""
    check_is_file(video)
    if cache is None:
        return read_video_frames(video, times)
    files = frame_files(cache, video, times)
    if all(file.is_file() for file in files):
        return read_frames(files)
    return keep_frames(files, lambda: read_video_frames(video, times))


def read_clip_sound(sample: AVSample) -> np.ndarray | None:
    """Read a sample's sound (N,), from the first picture on if it is the video's own; None where there is none."""
    if sample.audio_path is None:
        return None
    return (
        read_video_sound(sample.audio_path)
        if sample.audio_path == sample.video_path
        else read_waveform(sample.audio_path)
    )


def read_clip_size(sample: AVSample) -> tuple[int, int]:
    """Read width and height of a sample's frames in pixels; zeros where it has none."""
    if sample.video_path is not None:
        return read_video_size(sample.video_path)
    return read_frame_size(sample.frame_paths[0]) if sample.frame_paths else (0, 0)


def load_clip(
    sample: AVSample, *, read: Callable[[AVSample], tuple[np.ndarray, np.ndarray | None]] = read_media
) -> AVClip:
    """Read a sample's frames, audio and masks.

    A row without mask files has no true masks, except a null reference: its truth is empty by definition.

    Args:
        sample: the row.
        read: function that reads the sample's frames and sound.

    Raises:
        MediaError: naming the sample and the file, if a file cannot be read, if there is neither a frame nor a sound,
            if frames and masks differ in number or size, or if a null reference has a mask that is not empty.
    """
    _check_counts(sample)
    try:
        frames, waveform = read(sample)  # (F, H, W, 3), (N,)
        gt_masks = _read_truth(sample, frames)  # (A, H, W)
    except MediaError as error:
        raise MediaError(f"{_name(sample)}: {error} or drop the row") from error
    if gt_masks is not None:
        _check_masks_agree(sample, gt_masks, frames)
    return AVClip(frames, waveform, gt_masks, sample.annotated_frames)


def _read_truth(sample: AVSample, frames: np.ndarray) -> np.ndarray | None:
    """Read the masks (A, H, W) of the annotated frames; None where the sample's truth is not known."""
    if not sample.has_gt_masks:
        return None
    paths = [path for path in sample.mask_paths if path]
    return read_masks(paths) if paths else np.zeros(frames.shape[:3], dtype=bool)


def read_frames(paths: Sequence[FilePath]) -> np.ndarray:
    """Read a clip's frames.

    Args:
        paths: F image files (JPEG, PNG or WebP) of one size, in time order.

    Returns:
        (F, H, W, 3) uint8, RGB.

    Raises:
        MediaError: if there are no frames, one cannot be read, they differ in size or are too large.
    """
    return _read_images(paths, formats=FRAME_FORMATS, modes=FRAME_MODES, convert_to="RGB")


def read_picture(path: FilePath) -> np.ndarray:
    """Read a user's image: a photograph is rotated upright by its EXIF orientation.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        MediaError: if it cannot be read or is too large.
    """
    with _open_image(path, formats=FRAME_FORMATS, modes=FRAME_MODES) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def open_picture(path: FilePath, formats: tuple[str, ...]) -> contextlib.AbstractContextManager[Image.Image]:
    """Open an RGB or grey image and check its header; damage found in decoding is a `MediaError`, too."""
    return _open_image(path, formats=formats, modes=FRAME_MODES)


def read_frame_size(path: FilePath) -> tuple[int, int]:
    """Read width and height of a frame in pixels from its header, without decoding.

    Raises:
        MediaError: if the header cannot be read, or the image has too many pixels or another format than a frame.
    """
    with _open_image(path, formats=FRAME_FORMATS, modes=FRAME_MODES) as image:
        return image.size


def check_upright(path: FilePath) -> None:
    """Refuse a frame whose EXIF orientation says that it is to be turned: frames are read as they are stored.

    Raises:
        MediaError: if it is, or if its header cannot be read.
    """
    with _open_image(path, formats=FRAME_FORMATS, modes=FRAME_MODES) as image:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    if orientation != 1:
        raise MediaError(f"the picture {path} is stored turned (EXIF orientation {orientation}): save it upright")


def read_mask_size(path: FilePath) -> tuple[int, int]:
    """Read width and height of a mask in pixels from its header, without decoding.

    Raises:
        MediaError: if the header cannot be read, or the image has too many pixels or another format than a mask.
    """
    with _open_image(path, formats=MASK_FORMATS, modes=MASK_MODES) as image:
        return image.size


def read_masks(paths: Sequence[FilePath]) -> np.ndarray:
    """Read a clip's masks: every pixel other than 0 is object, as a grey level (255), a bit or a palette index.

    Args:
        paths: F PNG files of mode L, 1 or P and of one size, in time order.

    Returns:
        (F, H, W) bool.

    Raises:
        MediaError: if there are no masks, one cannot be read, they differ in size or are too large.
    """
    return _read_images(paths, formats=MASK_FORMATS, modes=MASK_MODES) > 0


def read_mask_levels(paths: Sequence[FilePath]) -> tuple[np.ndarray, str]:
    """Read a clip's predicted masks as PNG files of 8-bit grey, of a palette, or of 1 bit, all of one kind.

    Args:
        paths: F PNG files of mode L, P or 1 and of one size, in time order.

    Returns:
        Grey levels or indices of the palette, (F, H, W) uint8, or bits, (F, H, W) bool; and the mode.

    Raises:
        MediaError: if there are none, one cannot be read or has another mode, they differ in size or are too large.
    """
    if not paths:
        raise MediaError("there are no image files: give at least one")
    with _open_image(paths[0], formats=MASK_FORMATS, modes=MASK_MODES) as image:
        mode = image.mode
    return _read_images(paths, formats=MASK_FORMATS, modes=(mode,)), mode


def read_waveform(path: FilePath, *, sampling_rate: int = SAMPLING_RATE) -> np.ndarray:
    """Read a sound file (WAV, FLAC, OGG, MP3, AAC, MP4 or WebM), mix it to mono by the mean and resample it.

    Each part is placed by its time stamps, from the first sample on; gaps are silent. Notes for the user are logged
    once per file.

    Args:
        path: the audio file.
        sampling_rate: sampling rate of the result, in Hz.

    Returns:
        (N,) float32 in [-1, 1].

    Raises:
        MediaError: if the file is of no known kind, empty, too long, truncated or damaged, or holds values that are not
            finite.
    """
    check_is_file(path)
    with open_sound(path) as sound:
        waveform = mono(sound, sampling_rate=sampling_rate)
    log_notes(sound)
    return waveform


def check_audio(path: FilePath) -> list[str]:
    """Decode an audio file block by block, in little memory, to find the errors of `read_waveform`.

    Returns:
        Notes for the user, such as gaps or channels that cancel out.

    Raises:
        MediaError: for the reasons of `read_waveform`.
    """
    check_is_file(path)
    with open_sound(path) as sound:
        check_sound(sound, sampling_rate=SAMPLING_RATE)
    return sound.notes


def loudness_dbfs(waveform: np.ndarray | None, *, sampling_rate: int = SAMPLING_RATE) -> float:
    """Compute the RMS level of the loudest 100 ms of a waveform, over all windows.

    Args:
        waveform: (N,) float in [-1, 1]; a waveform shorter than the window is one window. None where there is no sound.
        sampling_rate: the waveform's sampling rate, in Hz.

    Returns:
        Level in dB relative to full scale: 0 for a full-scale square wave, -3.01 for a full-scale sine, `-inf` for
        digital silence and for no sound.

    Raises:
        ValueError: if the waveform is not (N,) with N > 0.
    """
    if waveform is None:
        return float("-inf")
    if waveform.ndim != 1 or waveform.size == 0:
        raise ValueError(f"a waveform has shape {waveform.shape}: expected (N,) with N > 0")
    window = min(max(round(LOUDNESS_WINDOW * sampling_rate), 1), waveform.size)
    energy = np.concatenate([[0.0], np.cumsum(np.square(waveform, dtype=np.float64))])
    mean_square = float(np.max(energy[window:] - energy[:-window])) / window
    return float(10.0 * np.log10(mean_square)) if mean_square > 0 else float("-inf")


def _name(sample: AVSample) -> str:
    place = f", {sample.origin}" if sample.origin else ""
    return f"clip {sample.uid!r} (row {sample.row}{place})"


def _check_counts(sample: AVSample) -> None:
    num_masks, num_frames = len(sample.mask_paths), sample.num_frames
    if not num_frames and sample.audio_path is None:
        raise MediaError(f"{_name(sample)} has neither frames nor sound: give it media or drop the row")
    if num_masks in (0, num_frames):
        return
    folder = Path(next(filter(None, sample.mask_paths), "")).parent
    raise MediaError(
        f"{_name(sample)} has {num_masks} masks ({folder}) for {num_frames} frames: add the missing mask or drop "
        "the row"
    )


def _check_masks_agree(sample: AVSample, gt_masks: np.ndarray, frames: np.ndarray) -> None:
    """Check masks (A, H, W) against frames (F, H, W, 3) and against the sample's category."""
    paths = [path for path in sample.mask_paths if path]
    if gt_masks.shape[1:] != frames.shape[1:3]:
        raise MediaError(
            f"{_name(sample)} has masks of {_size_text(gt_masks[0])} pixels ({paths[0]}) for frames of "
            f"{_size_text(frames[0])} ({sample.media_files[0]}): save the masks at the frames' size"
        )
    if sample.is_null and gt_masks.any():
        index = int(gt_masks.any(axis=(1, 2)).argmax())
        raise MediaError(
            f"{_name(sample)} is a null reference, but its mask {paths[index]} marks "
            f"{int(gt_masks[index].sum())} pixels: empty the mask, or give the row the category of the object"
        )


def _read_images(
    paths: Sequence[FilePath], *, formats: tuple[str, ...], modes: tuple[str, ...], convert_to: str | None = None
) -> np.ndarray:
    """Read images of one size into one array (F, H, W) or, converted to RGB, (F, H, W, 3)."""
    if not paths:
        raise MediaError("there are no image files: give at least one")
    images: list[np.ndarray] = []
    for path in paths:
        with _open_image(path, formats=formats, modes=modes) as image:
            images.append(np.asarray(image.convert(convert_to) if convert_to else image))
        if images[-1].shape != images[0].shape:
            raise MediaError(
                f"{paths[0]} has {_size_text(images[0])} pixels but {path} has {_size_text(images[-1])}: "
                "give all images of a clip one size"
            )
        check_clip_pixels(len(paths) * images[0].shape[0] * images[0].shape[1], path)
    return np.stack(images)


#: Errors that Pillow raises on damaged files.
DAMAGED_IMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError, MemoryError),
    *(struct.error, zlib.error),
)


@contextlib.contextmanager
def _open_image(path: FilePath, *, formats: tuple[str, ...], modes: tuple[str, ...]) -> Iterator[Image.Image]:
    """Open an image and check its header; damage found in decoding is a `MediaError`, too."""
    check_is_file(path)
    try:
        with Image.open(path, formats=formats) as image:
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS:
                raise MediaError(
                    f"the image {path} has {width}x{height} pixels: the limit is {MAX_IMAGE_PIXELS} in all, "
                    "scale it down"
                )
            if image.mode not in modes:
                raise MediaError(
                    f"the image {path} has mode {image.mode}: expected one of {', '.join(modes)}, convert it"
                )
            yield image
    except MediaError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(f"the image {path} is too large: {error}; scale it down") from error
    except DAMAGED_IMAGE as error:
        raise MediaError(
            f"cannot read the image {path}: {error}; expected {' or '.join(formats)}, replace the file"
        ) from error


def _size_text(image: np.ndarray) -> str:
    """Write the size of an image (H, W) or (H, W, 3) as `width x height`."""
    return f"{image.shape[1]}x{image.shape[0]}"
