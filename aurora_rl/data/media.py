"""Files of a clip (frames, audio, masks, or one video) read into arrays.

Second room of the flow: `AVSample` holds paths, `load_clip` turns them into an `AVClip`. Whatever cannot be read is
a `MediaError` that names the file; nothing unreadable becomes zeros, because a black frame or a silent clip would
train the model on a lie. Files are untrusted: sizes are checked from headers before anything is decoded, and only
plain image, audio and video formats are opened (no format that runs a program or follows links to other files).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr
from PIL import Image, ImageOps

from aurora_rl.data.sample import AVClip, AVSample

SAMPLING_RATE = 16_000  # Hz, what the audio towers of the supported language models expect

MAX_IMAGE_PIXELS = 64_000_000  # one frame or mask; 8K video is 33 million
MAX_CLIP_PIXELS = 512_000_000  # all frames of a clip, 1.5 GB as RGB
MAX_SECONDS = 3600  # of audio or video
MAX_SAMPLING_RATE = 192_000
MAX_PEAK = 4.0  # 12 dB over full scale: lossy codecs overshoot a little, integers stored as floats do by far

FRAME_FORMATS = ("JPEG", "PNG", "WEBP")
FRAME_MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr")  # 16-bit modes would be cut off, not scaled
MASK_FORMATS = ("PNG",)
MASK_MODES = ("L", "1", "P")
AUDIO_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")
# Demuxers of self-contained files. Playlists (hls, dash, concat) are left out: they open other files and addresses.
VIDEO_FORMATS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "ogg", "flv")

AUDIO_BLOCK = 16_384  # samples decoded at a time, so that a file of many channels stays small in memory
CUT_DATA_CHUNK = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)  # in libsndfile's log of a file
UNKNOWN_CHUNK_SIZE = 0x7FFFFFFF  # this and above is what programs write that stream a WAV
LOUDNESS_WINDOW = 0.1  # seconds
TIME_TOLERANCE = 1e-6  # seconds; time stamps are rounded to the container's time base
FilePath = str | os.PathLike[str]


class MediaError(ValueError):
    """A clip's file is missing, unreadable, or disagrees with the clip's other files."""


def load_clip(sample: AVSample) -> AVClip:
    """Read a sample's frames, audio and masks.

    A null reference without mask files has empty masks: its truth is empty by definition.

    Raises:
        MediaError: naming the sample and the file, if a file cannot be read, if frames and masks differ in number or
            size, if a null reference has a mask that is not empty, or if another reference has no masks.
    """
    _check_mask_count(sample)
    try:
        frames = read_frames(sample.frame_paths)  # (F, H, W, 3)
        waveform = None if sample.audio_path is None else read_waveform(sample.audio_path)  # (N,)
        gt_masks = read_masks(sample.mask_paths) if sample.mask_paths else np.zeros(frames.shape[:3], dtype=bool)
    except MediaError as error:
        raise MediaError(f"{_name(sample)}: {error}") from error
    _check_masks_agree(sample, gt_masks, frames)
    return AVClip(frames=frames, waveform=waveform, gt_masks=gt_masks)


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
    """Read one image as a user has it: a photograph is turned upright by its EXIF orientation.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        MediaError: if it cannot be read or is too large.
    """
    with _open_image(path, formats=FRAME_FORMATS, modes=FRAME_MODES) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def read_frame_size(path: FilePath) -> tuple[int, int]:
    """Width and height of a frame in pixels, from its header; nothing is decoded.

    Raises:
        MediaError: if the header cannot be read, or the image has too many pixels or another format than a frame.
    """
    with _open_image(path, formats=FRAME_FORMATS, modes=FRAME_MODES) as image:
        return image.size


def read_mask_size(path: FilePath) -> tuple[int, int]:
    """Width and height of a mask in pixels, from its header; nothing is decoded.

    Raises:
        MediaError: if the header cannot be read, or the image has too many pixels or another format than a mask.
    """
    with _open_image(path, formats=MASK_FORMATS, modes=MASK_MODES) as image:
        return image.size


def read_masks(paths: Sequence[FilePath]) -> np.ndarray:
    """Read a clip's masks: what is not 0 is object, be it a grey level (255), a bit or a palette index.

    Args:
        paths: F PNG files of mode L, 1 or P and of one size, in time order.

    Returns:
        (F, H, W) bool.

    Raises:
        MediaError: if there are no masks, one cannot be read, they differ in size or are too large.
    """
    return _read_images(paths, formats=MASK_FORMATS, modes=MASK_MODES) > 0


def read_grey_levels(paths: Sequence[FilePath]) -> np.ndarray:
    """Read a clip's predicted masks as PNG files of 8-bit grey.

    Args:
        paths: F PNG files of mode L and of one size, in time order.

    Returns:
        (F, H, W) uint8.

    Raises:
        MediaError: if there are none, one cannot be read or has another mode, they differ in size or are too large.
    """
    return _read_images(paths, formats=MASK_FORMATS, modes=("L",))


def read_waveform(path: FilePath, *, sampling_rate: int = SAMPLING_RATE) -> np.ndarray:
    """Read an audio file (WAV, FLAC, OGG or MP3), mix it to mono by the mean and resample it.

    Args:
        path: the audio file.
        sampling_rate: of the result, in Hz.

    Returns:
        (N,) float32 in [-1, 1].

    Raises:
        MediaError: if the file cannot be read, is empty, too long, cut off, or holds values that are not finite.
    """
    with _open_audio(path) as file:
        source_rate = file.samplerate
        blocks = list(_mono_blocks(file))
    mono = np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)
    return _finish_waveform(mono, path, source_rate=source_rate, sampling_rate=sampling_rate)


def check_audio(path: FilePath) -> None:
    """Decode an audio file block by block and drop it: refuses what `read_waveform` refuses, in little memory.

    Raises:
        MediaError: as `read_waveform`.
    """
    num_samples = 0
    first = np.zeros(0, dtype=np.float32)
    with _open_audio(path) as file:
        for block in _mono_blocks(file):
            _check_values(block, path)
            first = block if num_samples == 0 else first
            num_samples += block.size
        if num_samples <= AUDIO_BLOCK:  # so short that it may be empty, or be resampled to nothing
            _finish_waveform(first, path, source_rate=file.samplerate, sampling_rate=SAMPLING_RATE)


def read_video(path: FilePath, *, fps: float, require_audio: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a video file's frames at a steady rate, and its audio.

    Frame k is the picture on screen at k / fps seconds after the first one, whatever the file's own rate.

    Args:
        path: a video file.
        fps: frames a second of the result.
        require_audio: whether a file without audio is an error.

    Returns:
        Frames (F, H, W, 3) uint8, RGB, and the waveform (N,) float32 in [-1, 1], mono, 16 kHz, or None where the file
        has no audio and none is required. Each starts at its own stream's start.

    Raises:
        MediaError: if the file cannot be read, has no video or lacks a required audio stream, or is too large.
    """
    if not fps > 0:
        raise ValueError(f"fps is {fps}: give a positive number of frames a second")
    check_is_file(path)
    try:
        with open_video(path) as container:
            has_audio = bool(container.streams.audio)
            if require_audio and not has_audio:
                raise MediaError(
                    f"the video {path} has no audio stream: use one with sound or pass require_audio=False"
                )
            frames = _decode_frames(container, path, fps=fps)  # (F, H, W, 3)
        if not has_audio:
            return frames, None
        with open_video(path) as container:
            return frames, decode_audio(container, path)  # (N,)
    except MediaError:
        raise
    except (av.FFmpegError, ValueError) as error:  # PyAV itself refuses with ValueError, e.g. audio that changes format
        raise MediaError(f"cannot read the video {path}: {error}; replace or re-encode it") from error


def loudness_dbfs(waveform: np.ndarray | None, *, sampling_rate: int = SAMPLING_RATE) -> float:
    """RMS level of the loudest 100 ms of a waveform, over all windows.

    Args:
        waveform: (N,) float in [-1, 1]; one shorter than the window is taken whole. None where there is no sound.
        sampling_rate: in Hz.

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


def _check_mask_count(sample: AVSample) -> None:
    num_masks, num_frames = len(sample.mask_paths), len(sample.frame_paths)
    if num_masks == num_frames or (sample.is_null and num_masks == 0):
        return
    folder = f" ({Path(sample.mask_paths[0]).parent})" if num_masks else ""
    raise MediaError(
        f"{_name(sample)} has {num_masks} masks{folder} for {num_frames} frames: add the missing mask or drop the row"
    )


def _check_masks_agree(sample: AVSample, gt_masks: np.ndarray, frames: np.ndarray) -> None:
    """Check masks (F, H, W) against frames (F, H, W, 3) and against the sample's category."""
    if gt_masks.shape != frames.shape[:3]:
        raise MediaError(
            f"{_name(sample)} has masks of {_size_text(gt_masks[0])} pixels ({sample.mask_paths[0]}) for frames of "
            f"{_size_text(frames[0])} ({sample.frame_paths[0]}): save the masks at the frames' size"
        )
    if sample.is_null and gt_masks.any():
        index = int(gt_masks.any(axis=(1, 2)).argmax())
        raise MediaError(
            f"{_name(sample)} is a null reference, but its mask {sample.mask_paths[index]} marks "
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
        images.append(_read_image(path, formats=formats, modes=modes, convert_to=convert_to))
        if images[-1].shape != images[0].shape:
            raise MediaError(
                f"{paths[0]} has {_size_text(images[0])} pixels but {path} has {_size_text(images[-1])}: "
                "give all images of a clip one size"
            )
        check_clip_pixels(len(paths) * images[0].shape[0] * images[0].shape[1], path)
    return np.stack(images)


def _read_image(
    path: FilePath, *, formats: tuple[str, ...], modes: tuple[str, ...], convert_to: str | None
) -> np.ndarray:
    """Read one image into (H, W) or (H, W, 3); nothing is decoded before the header was checked."""
    with _open_image(path, formats=formats, modes=modes) as image:
        return np.asarray(image.convert(convert_to) if convert_to else image)


@contextlib.contextmanager
def _open_image(path: FilePath, *, formats: tuple[str, ...], modes: tuple[str, ...]) -> Iterator[Image.Image]:
    """An image whose header was checked; damage that shows while it is decoded is a `MediaError`, too."""
    check_is_file(path)
    try:
        with Image.open(path, formats=formats) as image:
            _check_image_header(image, path, modes=modes)
            yield image
    except MediaError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(f"the image {path} is too large: {error}; scale it down") from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damaged files
        raise MediaError(
            f"cannot read the image {path}: {error}; expected {' or '.join(formats)}, replace the file or drop the row"
        ) from error


def _check_image_header(image: Image.Image, path: FilePath, *, modes: tuple[str, ...]) -> None:
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        raise MediaError(
            f"the image {path} has {width}x{height} pixels: the limit is {MAX_IMAGE_PIXELS} in all, scale it down"
        )
    if image.mode not in modes:
        raise MediaError(f"the image {path} has mode {image.mode}: expected one of {', '.join(modes)}, convert it")


@contextlib.contextmanager
def _open_audio(path: FilePath) -> Iterator[soundfile.SoundFile]:
    """An audio file whose header was checked; damage that shows while it is decoded is a `MediaError`, too."""
    check_is_file(path)
    try:
        with soundfile.SoundFile(os.fspath(path)) as file:
            if file.format not in AUDIO_FORMATS:
                raise MediaError(f"the audio {path} is {file.format}: expected {', '.join(AUDIO_FORMATS)}, convert it")
            _check_sampling_rate(file.samplerate, path)
            _check_length(file.frames / file.samplerate, path)
            _check_not_cut_off(file, path)
            yield file
    except soundfile.SoundFileError as error:
        raise MediaError(f"cannot read the audio {path}: {error}; replace the file or drop the row") from error


def _mono_blocks(file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    """The mean of the channels, (n,) float32 at a time."""
    for block in file.blocks(AUDIO_BLOCK, dtype="float32", always_2d=True):
        yield block.mean(axis=1)


def _check_sampling_rate(sampling_rate: int, path: FilePath) -> None:
    if not 0 < sampling_rate <= MAX_SAMPLING_RATE:
        raise MediaError(
            f"the audio of {path} has {sampling_rate} Hz: the limit is {MAX_SAMPLING_RATE} Hz, resample it"
        )


def _check_not_cut_off(file: soundfile.SoundFile, path: FilePath) -> None:
    """Refuse a WAV that ends before its header says; libsndfile only logs it, and would return the shorter audio."""
    match = CUT_DATA_CHUNK.search(file.extra_info)
    if match is None:
        return
    promised, found = int(match[1]), int(match[2])
    if found < promised < UNKNOWN_CHUNK_SIZE:
        raise MediaError(f"the audio {path} is cut off: {found} bytes of {promised}; replace the file or drop the row")


def _check_length(seconds: float, path: FilePath) -> None:
    if seconds > MAX_SECONDS:
        raise MediaError(f"{path} is {seconds:.0f} s long: the limit is {MAX_SECONDS} s, cut it into clips")


def check_clip_pixels(num_pixels: int, path: FilePath) -> None:
    """Refuse a clip whose frames up to `path` hold more than `MAX_CLIP_PIXELS` pixels together."""
    if num_pixels > MAX_CLIP_PIXELS:
        raise MediaError(
            f"the frames up to {path} have {num_pixels} pixels together: the limit is {MAX_CLIP_PIXELS}, "
            "use fewer or smaller frames"
        )


def check_is_file(path: FilePath) -> None:
    """Refuse what is no plain file.

    Raises:
        MediaError: naming it.
    """
    if not os.path.isfile(path):  # also refuses pipes and devices, which would block
        raise MediaError(f"the file {path} does not exist or is no plain file: restore it or drop the row")


def _finish_waveform(mono: np.ndarray, path: FilePath, *, source_rate: int, sampling_rate: int) -> np.ndarray:
    """Check a decoded mono waveform (N,) and bring it to `sampling_rate`."""
    if mono.size == 0:
        raise MediaError(f"the audio of {path} is empty: replace the file or drop the row")
    _check_values(mono, path)
    waveform = soxr.resample(mono, source_rate, sampling_rate, quality="HQ")
    if waveform.size == 0:
        raise MediaError(f"the audio of {path} is shorter than one sample at {sampling_rate} Hz: replace the file")
    return np.clip(waveform, -1.0, 1.0).astype(np.float32, copy=False)


def _check_values(mono: np.ndarray, path: FilePath) -> None:
    """Refuse a decoded mono waveform (N,), N > 0, whose values are no audio."""
    if not np.isfinite(mono).all():
        raise MediaError(f"the audio of {path} holds values that are not finite: replace the file or drop the row")
    peak = float(np.abs(mono).max())
    if peak > MAX_PEAK:
        raise MediaError(f"the audio of {path} has a peak of {peak:g}: expected values in [-1, 1], scale it")


def open_video(path: FilePath) -> av.container.InputContainer:
    """A video file of one of `VIDEO_FORMATS`; PyAV raises `av.FFmpegError` where it is none."""
    # The absolute path keeps a file name such as "concat:a" from being read as a protocol.
    options = {"format_whitelist": ",".join(VIDEO_FORMATS), "protocol_whitelist": "file"}
    return av.open(os.path.abspath(path), options=options)


def _decode_frames(container: av.container.InputContainer, path: FilePath, *, fps: float) -> np.ndarray:
    """Frames (F, H, W, 3) on screen at 0, 1 / fps, 2 / fps ... seconds."""
    if not container.streams.video:
        raise MediaError(f"{path} has no video stream: give a video, or read its audio with read_waveform")
    frames: list[np.ndarray] = []
    for frame in frames_on_screen(container, path, fps=fps):
        # Phones store upright video sideways and note the rotation, which is counter-clockwise like np.rot90's.
        picture = np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90))
        if frames and picture.shape != frames[0].shape:
            raise MediaError(f"the video {path} changes its size: re-encode it to one size")
        frames.append(picture)
        check_clip_pixels(len(frames) * picture.shape[0] * picture.shape[1], path)
    if not frames:
        raise MediaError(f"the video {path} has no frames: replace the file")
    return np.stack(frames)


def frames_on_screen(container: av.container.InputContainer, path: FilePath, *, fps: float) -> Iterator[av.VideoFrame]:
    """Yield the frame shown at each of 0, 1 / fps, 2 / fps ... seconds until the last one leaves the screen."""
    stream = container.streams.video[0]
    shown: av.VideoFrame | None = None
    start, num_yielded = 0.0, 0
    for frame in container.decode(stream):
        check_video_frame(frame, path)
        if shown is None:
            start, shown = frame.time, frame
        _check_length(frame.time - start, path)
        while num_yielded / fps < frame.time - start - TIME_TOLERANCE:
            yield shown
            num_yielded += 1
        shown = frame
    if shown is None:
        return
    end = shown.time - start + _last_frame_seconds(shown, stream)
    _check_length(end, path)
    while num_yielded == 0 or num_yielded / fps < end - TIME_TOLERANCE:
        yield shown
        num_yielded += 1


def check_video_frame(frame: av.VideoFrame, path: FilePath) -> None:
    """Refuse a frame of a video that has no time or too many pixels.

    Raises:
        MediaError: naming the file.
    """
    if frame.time is None:
        raise MediaError(f"the video {path} has frames without time stamps: remux it, for example to mp4")
    if frame.width * frame.height > MAX_IMAGE_PIXELS:
        raise MediaError(
            f"the video {path} has frames of {frame.width}x{frame.height} pixels: the limit is {MAX_IMAGE_PIXELS} in "
            "all, scale it down"
        )


def _last_frame_seconds(frame: av.VideoFrame, stream: av.video.stream.VideoStream) -> float:
    """How long the last frame stays on screen: by its own duration or up to the stream's end, whichever is less.

    Either alone misleads: a reordered (B) frame may carry another frame's duration, and the header of a cut-off file
    promises an end that its pictures never reach.
    """
    candidates = []
    if frame.duration and frame.time_base:
        candidates.append(float(frame.duration * frame.time_base))
    if stream.duration and stream.time_base:
        candidates.append(float((stream.duration + (stream.start_time or 0)) * stream.time_base) - frame.time)
    if not candidates and stream.average_rate:
        candidates.append(float(1 / stream.average_rate))
    return max(min(candidates, default=0.0), 0.0)


def decode_audio(container: av.container.InputContainer, path: FilePath) -> np.ndarray:
    """The first audio stream as (N,) float32, mono, 16 kHz."""
    stream = container.streams.audio[0]
    _check_sampling_rate(stream.rate, path)
    to_float = av.AudioResampler(format="fltp")  # keeps rate and channels
    blocks: list[np.ndarray] = []
    num_samples = 0
    for frame in container.decode(stream):
        blocks += [part.to_ndarray().mean(axis=0) for part in to_float.resample(frame)]  # (channels, n) -> (n,)
        num_samples += frame.samples
        _check_length(num_samples / stream.rate, path)
    mono = np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)
    return _finish_waveform(mono, path, source_rate=stream.rate, sampling_rate=SAMPLING_RATE)


def _size_text(image: np.ndarray) -> str:
    """`width x height` of an image (H, W) or (H, W, 3)."""
    return f"{image.shape[1]}x{image.shape[0]}"
