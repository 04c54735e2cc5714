"""References that come with a recording or a picture of their own, which no model here is given yet."""

from __future__ import annotations

from pathlib import Path

from aurora_rl.data.containers import MediaError
from aurora_rl.data.message_parts import is_picture
from aurora_rl.data.sample import AVSample
from aurora_rl.models.mllm import MLLMFamily


def check_reference_media(family: MLLMFamily, sample: AVSample) -> None:
    """Check that a reference is words alone.

    Raises:
        MediaError: naming the row, its file, why the family is not given it, and what can be done.
    """
    if not sample.reference_media:
        return
    name = type(family).__name__
    file = sample.reference_media[0]
    why = f"its prompt has one clip, whose towers run once, and no place for a second {_kind(file)}"
    for path in sample.reference_media:
        if is_picture(path) and family.sees is None:
            file, why = path, "it sees nothing"
        if not is_picture(path) and not family.hears:
            file, why = path, "it has no ears"
    raise MediaError(
        f"sample {sample.key} refers by the {_kind(file)} {Path(file).name}, which {name} cannot be given: {why}. "
        "Choose `benchmark: omni_avs`, which leaves such references out, or ask a chat endpoint (aurora-rl agents)"
    )


def _kind(path: str) -> str:
    return "picture" if is_picture(path) else "sound"
