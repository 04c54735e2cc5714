"""A tool for rollouts whose first turn is scripted, since a random model calls nothing."""

from typing import Any


class Peak:
    """Tells of the rollout's clip; its names are short, for a tiny model spells them letter by letter."""

    def reset(self, *, read_clip: Any, uid: str, **row: Any) -> None:
        self._read_clip, self.uid, self.told = read_clip, uid, ""

    def peak(self) -> str:
        """Tell the sound's peak."""
        self.told = f"{abs(self._read_clip().waveform).max():.4f}"
        return self.told


def call(name: str) -> str:
    """Return a call as the model writes it."""
    return f'<tool_call>{{"name": "{name}", "arguments": {{}}}}</tool_call>'
