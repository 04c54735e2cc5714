"""Audio Flamingo 3, which hears and reads text, and sees nothing.

model       the model with heads
tiny        one of random weights
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from aurora_rl.models.mllm.base import MLLMFamily
from aurora_rl.models.mllm.sizes import ClipPass, ClipSize, windowed_pass

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin

#: Beginnings of weights' names and what they were before transformers 5, as the hub's checkpoints and vLLM have them.
FORMER_PREFIXES = {
    "model.language_model.": "language_model.model.",
    "model.": "",
    "lm_head.": "language_model.lm_head.",
}


class AudioFlamingo3Family(MLLMFamily):
    """Audio Flamingo 3 hears a sound in windows of 30 seconds, all of which are one entry of a batch."""

    model_types = ("audioflamingo3",)
    tower_names = ("model.audio_tower", "model.multi_modal_projector")
    sees = None
    token_inputs = (*MLLMFamily.token_inputs, "num_audio_tokens")
    media_limits = {"audio": 1}
    engine_architecture = "AudioFlamingo3ForConditionalGeneration"

    @property
    def model_class(self) -> type[PreTrainedModel]:
        from aurora_rl.models.mllm.audioflamingo3.model import AuroraAudioFlamingo3

        return AuroraAudioFlamingo3

    def engine_name(self, name: str) -> str:
        for prefix, former in FORMER_PREFIXES.items():
            if name.startswith(prefix):
                return former + name.removeprefix(prefix)
        return name

    def trim_features(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Make one entry of a clip's windows: (W, mels, T) -> (1, W, mels, T)."""
        return {name: windows[None] for name, windows in features.items()}

    def silence(self, processor: ProcessorMixin) -> dict[str, torch.Tensor]:
        import torch

        extractor = processor.feature_extractor
        return {
            "input_features": torch.zeros(1, 1, extractor.feature_size, extractor.nb_max_frames),
            "input_features_mask": torch.zeros(1, 1, extractor.nb_max_frames, dtype=torch.int32),
        }

    def shortest_sound(self, processor: ProcessorMixin) -> int:
        return 2 * processor.feature_extractor.hop_length + 1  # begins the third column of the first token

    def longest_sound(self, processor: ProcessorMixin) -> int:
        return int(processor.max_audio_len * processor.feature_extractor.sampling_rate)

    def clip_pass(self, config: PretrainedConfig, clip: ClipSize) -> ClipPass:
        return windowed_pass(config, clip, self.tower_names[0])

    def build_tiny(self, texts: Iterable[str], **options: Any) -> tuple[PreTrainedModel, ProcessorMixin]:
        from aurora_rl.models.mllm.audioflamingo3.tiny import build_tiny

        return build_tiny(self, texts, **options)
