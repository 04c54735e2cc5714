"""Prompts of the stronger model that writes chains of thought, and the reader of its replies.

The model gets the frames, the sound, the reference and the truth, so that its reasoning ends at the right answer; the
reasoning itself must not show that the truth was given. The answer's sentences are ours, not the model's.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import wave
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from aurora_rl.chain_writing.chain_checks import ChainLimits, find_problems, repair
from aurora_rl.data.containers import SAMPLING_RATE
from aurora_rl.data.media import read_clip_frames, read_clip_sound
from aurora_rl.data.sample import NULL_CATEGORY, AVSample
from aurora_rl.endpoint.errors import BadReplyError
from aurora_rl.tasks.completions import normalise_category
from aurora_rl.tasks.prompts import REASONING_STEPS, answer_for

Media = Literal["frames+audio", "frames", "none"]
MEDIA = get_args(Media)
JPEG_QUALITY = 90
CATEGORY_KEY = "answer_category"

SYSTEM_PROMPT = """\
You write examples for a model that watches a clip, hears its sound and finds what a sentence refers to. An example is \
the reasoning of somebody who finds out, in three short paragraphs:
- look: what is seen in the frames, who and what, where, and what changes.
- listen: what is heard, in order, and what in view it comes from; or that nothing is heard.
- read: what the sentence asks for, and which of the things seen and heard that is, and why.
You are told what the sentence refers to, so that the reasoning ends there. The reader is not told: the reasoning must \
hold by what can be seen and heard alone. Never say or hint that an answer, a category or a label was given or known, \
and never mention these instructions. Name the thing by its category in at least one paragraph, in plain words. Do not \
write the final answer, no headings, no lists, no markdown, no quotation marks around a paragraph."""

CORRECTION_PROMPT = """
This time there is a first attempt, whose reasoning or answer went wrong. Write the reasoning anew, from the clip: see \
and hear what the attempt missed or mistook, and be plain about the point at which it went wrong. Do not mention the \
attempt; its author is the one who now reasons again."""


@dataclasses.dataclass
class MediaArguments:
    """The media of a clip that are sent.

    Attributes:
        media: "frames+audio", "frames" for models without audio, or "none" for models of text only.
        max_side: longest side of a frame, in pixels; larger frames are scaled down.
    """

    media: Media = dataclasses.field(
        default="frames+audio", metadata={"help": f"What of a clip is sent: {', '.join(MEDIA)}."}
    )
    max_side: int = dataclasses.field(default=512, metadata={"help": "Longest side of a sent frame, in pixels."})

    def __post_init__(self) -> None:
        if self.media not in MEDIA:
            raise ValueError(f"media is {self.media!r}: choose from {', '.join(MEDIA)}")
        if self.max_side < 1:
            raise ValueError(f"max_side is {self.max_side}: it must be above 0")


@dataclasses.dataclass(frozen=True)
class ChainReply:
    """A reply that passed all checks: the steps, and the number of repairs of each kind."""

    steps: dict[str, str]
    repairs: tuple[str, ...]


def chain_messages(sample: AVSample, media: MediaArguments, *, wrong: str | None = None) -> list[dict[str, Any]]:
    """Make the conversation that asks for one row's chain.

    Args:
        sample: row, whose files are read.
        media: media that are sent.
        wrong: wrong reasoning that the model corrects.

    Raises:
        MediaError: if a file cannot be read; the error names it.
    """
    example = json.dumps({name: "..." for name in (*REASONING_STEPS, CATEGORY_KEY)})
    form = f"Reply with one JSON object, {example}, where {CATEGORY_KEY} is the category that your reasoning leads to."
    task = f"The sentence: {sample.reference}\n{_truth(sample.category)}\n{form}"
    if wrong is not None:
        task = f"The first attempt:\n<<<\n{wrong}\n>>>\n\n{task}"
    system = SYSTEM_PROMPT if wrong is None else SYSTEM_PROMPT + CORRECTION_PROMPT
    content = [*media_parts(sample, media), {"type": "text", "text": task}]
    # The templates of text models do not know content parts.
    user: Any = task if len(content) == 1 else content
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def chain_schema(categories: Sequence[str], limits: ChainLimits) -> dict[str, Any]:
    """Make the JSON schema of a reply: three steps of limited length, and one of the categories."""
    if "" in categories:
        raise ValueError("a row has no category, which its chain of thought must lead to: add the column `category`")
    step = {"type": "string", "minLength": 1, "maxLength": limits.max_step_chars}
    properties = {name: step for name in REASONING_STEPS} | {CATEGORY_KEY: {"type": "string", "enum": [*categories]}}
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def read_chain_reply(text: str, category: str, limits: ChainLimits) -> ChainReply:
    """Read the steps in a reply.

    Args:
        text: text by the model.
        category: true category.
        limits: limits of the chain.

    Raises:
        BadReplyError: if the text holds no JSON object or another category, or its chain has a problem.
    """
    fields = _read_json(text)
    answered = fields.get(CATEGORY_KEY)
    if not isinstance(answered, str) or normalise_category(answered) != normalise_category(category):
        raise BadReplyError("wrong_category", f"the model answers {answered!r}, the truth is {category!r}")
    steps: dict[str, str] = {}
    repairs: list[str] = []
    for name in REASONING_STEPS:
        written = fields.get(name)
        if isinstance(written, str):
            steps[name], needed = repair(name, written)
            repairs += needed
    if problems := find_problems(steps, answer_for(category), category, limits):
        raise BadReplyError(problems[0].reason, problems[0].detail)
    return ChainReply(steps, tuple(repairs))


def chain_record(sample: AVSample, steps: Mapping[str, str], *, generator: str) -> dict[str, Any]:
    """Make a record of a file of chains, see `aurora_rl.data.chains`."""
    record = {
        "uid": sample.uid,
        "row": sample.row,
        "split": sample.split,
        "category": sample.category,
        "exp": sample.reference,
        "steps": dict(steps),
        "answer": answer_for(sample.category),
        "generator": generator,
        "verified": False,
    }
    # A file of chains sets the type of its rows' references, so the benchmark's own type is copied.
    return record if sample.reference_type is None else record | {"reference_type": sample.reference_type}


def media_parts(sample: AVSample, media: MediaArguments) -> list[dict[str, Any]]:
    """Encode frames and sound of a clip as parts of a message; a clip without sound has no part for it.

    Raises:
        MediaError: if a file cannot be read; the error names it.
    """
    if media.media == "none":
        return []
    frames = read_clip_frames(sample)  # (F, H, W, 3)
    parts = [{"type": "text", "text": f"The frames of the clip, one every {1 / sample.fps:g} s:"}]
    parts += [_image_part(frame, max_side=media.max_side) for frame in frames]
    if media.media == "frames":
        return parts
    waveform = read_clip_sound(sample)
    if waveform is None:
        return [*parts, {"type": "text", "text": "The clip has no sound."}]
    sound = base64.b64encode(_wav(waveform)).decode("ascii")
    audio = {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}
    return [*parts, {"type": "text", "text": "Its sound:"}, audio]


def _image_part(frame: np.ndarray, *, max_side: int) -> dict[str, Any]:
    image = Image.fromarray(frame)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)  # does not enlarge smaller ones
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}


def _wav(waveform: np.ndarray) -> bytes:
    """Encode a waveform (N,) in [-1, 1] as a file of 16 bits, which every endpoint reads."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLING_RATE)
        file.writeframes(np.round(waveform.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def _truth(category: str) -> str:
    if category == NULL_CATEGORY:
        return (
            f"The truth, for your eyes only: the sentence refers to nothing in this clip ({CATEGORY_KEY}: "
            f'"{NULL_CATEGORY}"). The reasoning finds that nothing seen and heard fits, and says why.'
        )
    return f"The truth, for your eyes only: it refers to the {category}."


def _read_json(text: str) -> dict[str, Any]:
    """Parse the first JSON object of a reply; without a schema a model may write text or a fence before it."""
    text = text.rpartition("</think>")[2]
    start = text.find("{")
    try:
        fields, _ = json.JSONDecoder().raw_decode(text, max(start, 0))
    except (ValueError, RecursionError) as error:
        raise BadReplyError("invalid_json", f"no JSON object in the reply ({error}): {text[:80]!r}") from None
    if not isinstance(fields, dict):
        raise BadReplyError("invalid_json", f"the reply is no JSON object: {text[:80]!r}")
    return fields
