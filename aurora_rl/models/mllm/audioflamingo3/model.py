"""Audio Flamingo 3 with heads."""

from typing import Any

from transformers import AudioFlamingo3ForConditionalGeneration

from aurora_rl.models.mllm.mixin import MLLMMixin


class AuroraAudioFlamingo3(MLLMMixin, AudioFlamingo3ForConditionalGeneration):
    """Audio Flamingo 3 with `[SEG]` -> masks."""

    def tower_inputs(self, modality: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """Take the windows out of the clips: (U, W, mels, T) -> (windows, mels, T), without those of padding."""
        is_heard = inputs["input_features_mask"].any(-1)  # (U, W)
        return {name: clips[is_heard] for name, clips in inputs.items()}
