"""Inference: chains of thought and masks for references to a clip, and the videos and files that show them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aurora_rl.inference.pipeline import AuroraPipeline

__all__ = ["AuroraPipeline"]


def __getattr__(name: str) -> Any:
    """Import `AuroraPipeline` when it is asked for: it imports torch, and checks of arguments come before that."""
    if name != "AuroraPipeline":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from aurora_rl.inference.pipeline import AuroraPipeline

    return AuroraPipeline
