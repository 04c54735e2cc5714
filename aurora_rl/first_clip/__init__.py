"""A trained model and clips that come with the package, for a first look without a training or a download.

`model/` is the demo's model after SFT with its card, `clips/` a dozen clips that it was not trained on, as own data
(`clips.jsonl`). `tools/first_clip.py` makes both from the files of `make demo`.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent
MODEL = _HERE / "model"
CLIPS = _HERE / "clips"
#: The model card; what it says under `KNOWLEDGE` is shown where the model answers.
CARD = MODEL / "README.md"
KNOWLEDGE = "## What it can know"


def knowledge_of(model: str | Path) -> str | None:
    """Return what a model's card says that it can know, as one line of plain text; None where it does not say.

    Args:
        model: folder of a model, or its name on the hub, which has no card here.
    """
    try:
        card = (Path(model) / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    before, found, after = card.partition(f"\n{KNOWLEDGE}\n")
    return " ".join(after.partition("\n#")[0].split()) or None if found else None
