"""From what a visitor of the page sends to what the page shows: checked, answered by the pipeline, drawn.

Nothing here knows of Gradio. Whatever a visitor may be told is a `RequestError`, in whose text no folder is named.
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
from aurora_rl.inference.pipeline import AuroraPipeline, ClipAnswer
from aurora_rl.models.control_tokens import ControlTokenError
from aurora_rl.report.pages import page_environment
from aurora_rl.serve.waveform import draw_waveform

logger = logging.getLogger(__name__)

#: As many as there are colours to tell them apart.
MAX_REFERENCES = len(COLOURS)
MAX_REFERENCE_LENGTH = 300  # characters; the longest of Ref-AVSBench has 104
MEGABYTE = 1024 * 1024  # bytes; Gradio's own message counts so
ADDED_SECONDS = 2.0  # that decoders may give beyond what the packets' time stamps tell: padding of whole frames
SHOWN_REFERENCE = 40  # characters of a reference that is too long


#: What a visitor is told of an error that is not the visitor's.
FAILED = "The server could not answer this: its log says why. Try another clip or other words."


class RequestError(ValueError):
    """Something that a visitor can put right; its text says how."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a clip may have.

    Attributes:
        max_seconds: length.
        max_mb: size of its file in `MEGABYTE`.
    """

    max_seconds: float = 60.0
    max_mb: int = 100

    @property
    def max_bytes(self) -> int:
        """Size of a clip's file in bytes."""
        return self.max_mb * MEGABYTE


@dataclasses.dataclass(frozen=True)
class ShownAnswer:
    """What the page shows.

    Attributes:
        overlay: video file of the clip with its masks drawn and its sound.
        waveform: HTML of the sound.
        chains: HTML of what was said of each reference.
    """

    overlay: Path
    waveform: str
    chains: str


class RequestAnswerer:
    """Answers one request after the other.

    Args:
        pipeline: the model.
        limits: of clips.
        folder: where videos are written, each in a folder of its own.
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
            RequestError: saying what the visitor can do.
        """
        references = read_references(text)
        if clip is None:
            raise RequestError("There is no clip: upload one, record one or load an example.")
        check_clip(clip, self.limits)
        with _told_to_visitors(clip):
            answer = self.pipeline(video=clip, text=references, max_seconds=self.limits.max_seconds + ADDED_SECONDS)
            overlay = self._draw(answer)
        templates = page_environment("aurora_rl.serve")
        return ShownAnswer(
            overlay=overlay,
            waveform=draw_waveform(answer, fps=self.pipeline.options.fps),
            chains=templates.get_template("answer.html.j2").render(answer=answer, colours=_css_colours(answer)),
        )

    def _draw(self, answer: ClipAnswer) -> Path:
        path = Path(tempfile.mkdtemp(prefix="answer-", dir=self.folder)) / "masks.mp4"
        with OverlayVideo(path, answer.footage) as overlay:
            for shown in self.pipeline.every_frame(answer):
                overlay.write(Picture(shown.picture.time, draw_masks(shown.picture.pixels, shown.masks)))
        return path


def read_references(text: str) -> list[str]:
    """The lines that are not empty.

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
    """HTML that tells a visitor of an error."""
    return page_environment("aurora_rl.serve").get_template("error.html.j2").render(text=str(error))


def check_clip(clip: Path, limits: Limits) -> None:
    """Refuse a file that is gone, too large, no video or too long, before any of it is decoded.

    Raises:
        RequestError: saying which.
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
    """Length of a video file in seconds, or more than `enough`, by the time stamps of its packets.

    Its header is not asked: what browsers record tells no length there, and what does may be wrong.

    Raises:
        av.FFmpegError: if it is no video.
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
def _told_to_visitors(clip: Path) -> Iterator[None]:
    """What goes wrong with a clip becomes a `RequestError`; what is the server's own business goes to the log."""
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


def _css_colours(answer: ClipAnswer) -> list[str]:
    """One a reference."""
    return ["rgb({}, {}, {})".format(*COLOURS[colour_of(number)]) for number in range(len(answer.references))]
