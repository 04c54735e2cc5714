"""Pictures and sounds for the trackers of `report_to`, through the callbacks by which transformers sends them numbers.

TensorBoard, Weights & Biases and trackio are known; other trackers get their numbers from transformers alone.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from aurora_rl.data.containers import SAMPLING_RATE

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Sheet:
    """One row of the evaluation as a tracker shows it.

    Attributes:
        name: name of the curve-like series that the sheet belongs to, the same at every step.
        picture: frames, truth and prediction, one below the other.
        waveform: (N,) int16 sound of 16 kHz; None for a clip without sound.
        caption: reference and completion, plain text from outside.
    """

    name: str
    picture: Image.Image
    waveform: np.ndarray | None
    caption: str


def send_sheets(callbacks: Iterable[TrainerCallback], sheets: Sequence[Sheet], *, step: int) -> None:
    """Send sheets to all known trackers; one that fails is logged, since a training must not end by it.

    Args:
        callbacks: the trainer's callbacks.
        sheets: the sheets.
        step: optimiser step that they belong to.
    """
    for callback in callbacks:
        send = next((send for cls, send in SENDERS.items() if isinstance(callback, cls)), None)
        if send is None:
            continue
        try:
            send(callback, sheets, step)
        except Exception as error:  # whatever a tracker's library raises: a full disk, a lost connection
            logger.warning("%s took no samples of step %d: %r", type(callback).__name__, step, error)


def _to_tensorboard(callback: Any, sheets: Sequence[Sheet], step: int) -> None:
    writer = callback.tb_writer
    if writer is None:  # there is one from the first logged number on
        return
    for sheet in sheets:
        writer.add_image(sheet.name, np.asarray(sheet.picture), step, dataformats="HWC")
        if sheet.waveform is not None:
            sound = sheet.waveform[None].astype(np.float32) / 32767
            writer.add_audio(f"{sheet.name}/sound", sound, step, sample_rate=SAMPLING_RATE)
        # TensorBoard reads Markdown; four spaces make a block whose text is shown as it is.
        writer.add_text(f"{sheet.name}/chain", "\n".join(f"    {line}" for line in sheet.caption.splitlines()), step)
    writer.flush()


def _to_wandb(callback: Any, sheets: Sequence[Sheet], step: int) -> None:
    _log_media(callback._wandb, callback._wandb.log, sheets, step)


def _to_trackio(callback: Any, sheets: Sequence[Sheet], step: int) -> None:
    _log_media(callback._trackio, callback._trackio.log, sheets, step)


def _log_media(library: Any, log: Callable[[dict[str, Any]], Any], sheets: Sequence[Sheet], step: int) -> None:
    """Log sheets by a library with the classes `Image` and `Audio`, on the axis of transformers' numbers."""
    found: dict[str, Any] = {"train/global_step": step}
    for sheet in sheets:
        found[sheet.name] = library.Image(sheet.picture, caption=sheet.caption)
        if sheet.waveform is not None:
            sound = library.Audio(sheet.waveform, caption=sheet.caption, sample_rate=SAMPLING_RATE)
            found[f"{sheet.name}/sound"] = sound
    log(found)


SENDERS: dict[type[TrainerCallback], Callable[[Any, Sequence[Sheet], int], None]] = {
    TensorBoardCallback: _to_tensorboard,
    WandbCallback: _to_wandb,
    TrackioCallback: _to_trackio,
}
