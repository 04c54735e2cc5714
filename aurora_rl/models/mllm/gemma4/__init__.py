"""Gemma 4, which sees frames, reads text, and hears sound if it is of a size with ears.

model       the model with heads
sizes       what a clip takes
tiny        a model of random weights, whose vocabulary has no free row
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from aurora_rl.models.mllm.base import MLLMFamily
from aurora_rl.models.mllm.sizes import ClipPass, ClipSize

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin

EYES = ("model.vision_tower", "model.embed_vision")
#: Why vLLM is refused for sizes in which the tokens of a frame see each other.
BOTH_DIRECTIONS = (
    "vLLM 0.31 on a CPU lets the tokens of a frame see only those before them, so log-probabilities with frames differ "
    "from transformers' by 0.2 to 1.3; on a GPU they have not been compared"
)


class Gemma4Family(MLLMFamily):
    """Gemma 4 reads each frame as a picture of its own, of at most 70 tokens, after its time in whole seconds.

    Its processor scales frames by itself: `min_pixels` and `max_pixels` change nothing. Small sizes have a second table
    of the vocabulary, `embed_tokens_per_layer`, larger than the first: the row of `[SEG]` starts at the mean there too,
    but beside LoRA the table is trained only if `lora_modules_to_save` names it.
    """

    model_types = ("gemma4",)
    tower_names: ClassVar[tuple[str, ...]] = (*EYES, "model.audio_tower", "model.embed_audio")
    token_inputs = (*MLLMFamily.token_inputs, "num_soft_tokens_per_video")
    engine_architecture = "Gemma4ForConditionalGeneration"

    @property
    def model_class(self) -> type[PreTrainedModel]:
        from aurora_rl.models.mllm.gemma4.model import AuroraGemma4

        return AuroraGemma4

    def for_config(self, config: PretrainedConfig) -> MLLMFamily:
        return self if config.audio_config is not None else DeafGemma4Family()

    def read_vision(self, processor: ProcessorMixin, messages: Sequence[Mapping[str, Any]]) -> tuple[Any, Any]:
        from aurora_rl.models.mllm.processing import vision_as_given

        return vision_as_given(messages)

    def processor_options(self, processor: ProcessorMixin, **given: Any) -> dict[str, Any]:
        # Sampling the frames again would drop some; the metadata tell their times.
        metadata = [self.video_metadata(given["num_frames"], given["fps"])] if given["num_frames"] else None
        return {"videos_kwargs": {"do_sample_frames": False, "return_metadata": True, "video_metadata": metadata}}

    def trim_features(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Make every frame a video of its own: frames that pad a clip would get a token each."""
        names = {"pixel_values_videos", "video_position_ids"} & features.keys()
        return {**features, **{name: features[name].flatten(0, 1)[:, None] for name in names}}

    def silence(self, processor: ProcessorMixin) -> dict[str, torch.Tensor]:
        import numpy as np

        sound = np.zeros(self.shortest_sound(processor), np.float32)
        return dict(processor.feature_extractor([sound], return_tensors="pt"))

    def shortest_sound(self, processor: ProcessorMixin) -> int:
        return processor.feature_extractor.frame_length // 2 + 1

    def longest_sound(self, processor: ProcessorMixin) -> int | None:
        milliseconds = processor.audio_seq_length * processor.audio_ms_per_token
        return milliseconds * processor.feature_extractor.sampling_rate // 1000

    def clip_pass(self, config: PretrainedConfig, clip: ClipSize) -> ClipPass:
        from aurora_rl.models.mllm.gemma4.sizes import clip_pass

        return clip_pass(config, clip)

    def build_tiny(self, texts: Any, **options: Any) -> tuple[PreTrainedModel, ProcessorMixin]:
        from aurora_rl.models.mllm.gemma4.tiny import build_tiny

        return build_tiny(self, texts, **options)


class DeafGemma4Family(Gemma4Family):
    """Gemma 4 of a size without ears, in which the tokens of a frame see each other."""

    engine_refusal = BOTH_DIRECTIONS
    hears = False
    tower_names = EYES
    media_limits = {"image": 0, "video": 1}

    def for_config(self, config: PretrainedConfig) -> MLLMFamily:
        return self
