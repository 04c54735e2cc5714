"""Qwen2.5-VL, which sees frames and reads text, and hears nothing; the Qwens that see are derived from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from aurora_rl.models.mllm.base import MLLMFamily
from aurora_rl.models.mllm.tool_calls import QWEN_TOOLS, ToolFormat

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, ProcessorMixin

    from aurora_rl.models.mllm.qwen2_5_vl.tiny import TinyParts


class Qwen2_5VLFamily(MLLMFamily):
    """Qwen2.5-VL reads the frames as a video."""

    model_types = ("qwen2_5_vl",)
    tower_names = ("model.visual",)
    hears = False
    position_axes = 3
    tool_format: ClassVar[ToolFormat | None] = QWEN_TOOLS
    media_limits = {"image": 0, "video": 1}
    engine_architecture = "AuroraQwen2_5_VLForConditionalGeneration"
    engine_class: ClassVar[str | None] = f"{__name__}.engine:AuroraQwen2_5_VLForConditionalGeneration"
    engine_metadata = {"do_sample_frames": False}

    @property
    def model_class(self) -> type[PreTrainedModel]:
        from aurora_rl.models.mllm.qwen2_5_vl.model import AuroraQwen2_5VL

        return AuroraQwen2_5VL

    def processor_options(
        self,
        processor: ProcessorMixin,
        *,
        num_frames: int,
        fps: float,
        waveform: np.ndarray | None,
        use_audio_in_video: bool,
    ) -> dict[str, Any]:
        # The frames are resized already, and sampling them again would drop some; the metadata tell their times. The
        # cap concerns resizing, and is given only because transformers warns without it.
        videos: dict[str, Any] = {
            "do_resize": False,
            "do_sample_frames": False,
            "cap_pixels_per_frame": False,
            "return_metadata": True,
        }
        if num_frames:
            videos["video_metadata"] = [self.video_metadata(num_frames, fps)]
        return {"videos_kwargs": videos}

    def engine_options(self, processor: ProcessorMixin, *, fps: float, use_audio_in_video: bool) -> dict[str, Any]:
        return {"do_resize": False, "do_sample_frames": False}

    def tiny_parts(self) -> TinyParts:
        """Return what a tiny model of the family is made of."""
        from aurora_rl.models.mllm.qwen2_5_vl.tiny import QWEN2_5_VL

        return QWEN2_5_VL

    def build_tiny(
        self,
        texts: Iterable[str],
        *,
        segmenter: dict[str, Any] | None = None,
        heads: dict[str, dict[str, Any]] | None = None,
        sizes: Mapping[str, Any] | None = None,
    ) -> tuple[PreTrainedModel, ProcessorMixin]:
        from aurora_rl.models.mllm.qwen2_5_vl.tiny import build_tiny

        return build_tiny(self, texts, segmenter=segmenter, heads=heads, sizes=sizes)
