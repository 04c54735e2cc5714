"""Requests of the page's visitors: they are checked here, answered by the pipeline, and drawn.

Nothing here depends on Gradio. Every error that a visitor sees is a `RequestError`, whose text names no folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import av
import torch

from aurora_rl.data.containers import MediaError, bounded_packets, open_video
from aurora_rl.data.footage import Picture
from aurora_rl.inference.overlay import COLOURS, OverlayVideo, colour_of, draw_masks
from aurora_rl.inference.pipeline import AuroraPipeline
from aurora_rl.models.control_tokens import ControlTokenError
from aurora_rl.report.pages import page_environment
from aurora_rl.serve.waveform import draw_waveform

logger = logging.getLogger(__name__)

#: Number of references, one for each colour.
MAX_REFERENCES = len(COLOURS)
MAX_REFERENCE_LENGTH = 300  # characters; the longest of Ref-AVSBench has 104
MEGABYTE = 1024 * 1024  # bytes; Gradio's own message counts so
ADDED_SECONDS = 2.0  # seconds that decoders may add to the packets' time stamps, by padding to whole frames
SHOWN_REFERENCE = 40  # characters of a reference that is too long

#: Message about an error that is not the visitor's.
FAILED = "The server could not answer this: its log says why. Try another clip or other words."


class RequestError(ValueError):
    """An error that a visitor can correct; its text says how."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Upper limits of a clip.

    Attributes:
        max_seconds: length in seconds.
        max_mb: size of the file, in units of `MEGABYTE`.
    """

    max_seconds: float = 60.0
    max_mb: int = 100

    @property
    def max_bytes(self) -> int:
        """The size limit of a clip's file, in bytes."""
        return self.max_mb * MEGABYTE


@dataclasses.dataclass(frozen=True)
class ShownAnswer:
    """An answer as the page shows it.

    Attributes:
        overlay: video file of the clip with its masks drawn and its sound.
        waveform: HTML of the sound.
        chains: HTML of the answer to each reference.
    """

    overlay: Path
    waveform: str
    chains: str


class RequestAnswerer:
    """Answers one request after the other.

    Args:
        pipeline: pipeline with the model.
        limits: upper limits of clips.
        folder: folder of the videos, each of which has a folder of its own in it.
    """

    def __init__(self, pipeline: AuroraPipeline, limits: Limits, folder: Path) -> None:
        self.pipeline = pipeline
        self.limits = limits
        self.folder = folder

    def answer(self, clip: Path | None, text: str) -> ShownAnswer:
        """Check and answer a request.

        Args:
            clip: the uploaded file; None if there is none.
            text: the references, one a line.

        Raises:
            RequestError: if it cannot be answered; the text says what the visitor can do.
        """
        references = read_references(text)
        if clip is None:
            raise RequestError("There is no clip: upload one, record one or load an example.")
        check_clip(clip, self.limits)
        with _errors_for_visitors(clip):
            answer = self.pipeline(video=clip, text=references, max_seconds=self.limits.max_seconds + ADDED_SECONDS)
            overlay = Path(tempfile.mkdtemp(prefix="answer-", dir=self.folder)) / "masks.mp4"
            with OverlayVideo(overlay, answer.footage) as video:
                for shown in self.pipeline.every_frame(answer):
                    video.write(Picture(shown.picture.time, draw_masks(shown.picture.pixels, shown.masks)))
        colours = ["rgb({}, {}, {})".format(*COLOURS[colour_of(number)]) for number in range(len(answer.references))]
        templates = page_environment("aurora_rl.serve")
        return ShownAnswer(
            overlay=overlay,
            waveform=draw_waveform(answer, fps=self.pipeline.options.fps),
            chains=templates.get_template("answer.html.j2").render(answer=answer, colours=colours),
        )


def read_references(text: str) -> list[str]:
    """Return the references, one for each line that is not empty.

    Raises:
        RequestError: if there are none, too many, or one is too long.
    """
    references = [line.strip() for line in text.splitlines() if line.strip()]
    if not references:
        raise RequestError("There is no reference: describe what to find, one description a line.")
    if len(references) > MAX_REFERENCES:
        raise RequestError(
            f"There are {len(references)} references, at most {MAX_REFERENCES} are answered at once: leave some out."
        )
    for reference in references:
        if len(reference) > MAX_REFERENCE_LENGTH:
            raise RequestError(
                f"The reference “{reference[:SHOWN_REFERENCE]}…” has {len(reference)} characters: give at most "
                f"{MAX_REFERENCE_LENGTH}."
            )
    return references


def error_card(error: RequestError) -> str:
    """Return HTML that shows an error to a visitor."""
    return page_environment("aurora_rl.serve").get_template("error.html.j2").render(text=str(error))


def check_clip(clip: Path, limits: Limits) -> None:
    """Refuse a file that is gone, too large, not a video or too long, before any of it is decoded.

    Raises:
        RequestError: if it is; the text says which.
    """
    if not clip.is_file():
        raise RequestError("The clip is no longer there: uploads are removed after an hour. Upload it again.")
    size = clip.stat().st_size
    if size > limits.max_bytes:
        raise RequestError(f"{clip.name} has {size / MEGABYTE:.1f} MB: give a clip of at most {limits.max_mb} MB.")
    try:
        seconds = read_seconds(clip, enough=limits.max_seconds)
    except (av.FFmpegError, ValueError) as error:
        logger.info("no video: %s", error)
        raise RequestError(
            f"{clip.name} cannot be read as a video: give an MP4, MOV, WebM, MKV or AVI file that plays elsewhere."
        ) from error
    if seconds > limits.max_seconds:
        raise RequestError(f"{clip.name} is longer than {limits.max_seconds:g} s: cut it and upload the part.")


def read_seconds(clip: Path, *, enough: float) -> float:
    """Measure the length of a video file in seconds, or at least up to `enough`, from its packets' time stamps.

    The header is not used: recordings of browsers have no length there, and a length may be wrong.

    Raises:
        av.FFmpegError: if the file is not a video.
    """
    with open_video(clip) as container:
        first: float | None = None
        length = 0.0
        for packet in bounded_packets(container.demux(), clip):
            if packet.pts is None or packet.time_base is None:
                continue
            start = float(packet.pts * packet.time_base)
            first = start if first is None else min(first, start)
            length = max(length, start + float((packet.duration or 0) * packet.time_base) - first)
            if length > enough:
                break
        return length


@contextlib.contextmanager
def _errors_for_visitors(clip: Path) -> Iterator[None]:
    """Turn errors into a `RequestError`; details that concern the server alone go to the log."""
    try:
        yield
    except ControlTokenError as error:
        raise RequestError(f"{_upper(str(error))}.") from error
    except MediaError as error:
        text = str(error).replace(f"{os.path.abspath(clip.parent)}{os.sep}", "")
        if not text.startswith(clip.name):
            text = _upper(text)
        raise RequestError(f"{text}.") from error
    except torch.OutOfMemoryError as error:
        logger.exception("no memory for a request")
        raise RequestError("The clip does not fit into memory: cut it, scale it down or ask less at once.") from error
    except OSError as error:
        logger.exception("a request failed")
        raise RequestError("The server could not write the answer: try again later.") from error
    except Exception as error:
        logger.exception("a request failed")
        raise RequestError(FAILED) from error


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]
