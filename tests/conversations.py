"""Chat messages about clips that belong to no row, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aurora_rl.tasks.base import PromptMedia, PromptText, chat_messages
from aurora_rl.tasks.prompts import DEFAULT_INSTRUCTION


def build_messages(
    reference: str,
    *,
    frames: Sequence[Any] | None = None,
    has_audio: bool = True,
    instruction: str = DEFAULT_INSTRUCTION,
    system_prompt: str | None = None,
    video_options: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Ask about a reference as a task does; `frames` of None leave the media out."""
    media = None if frames is None else PromptMedia(frames, has_audio, video_options or {})
    system = None if system_prompt is None else PromptText(system_prompt, own=system_prompt)
    return chat_messages(PromptText.fill(instruction, reference=reference), media, system_prompt=system)
