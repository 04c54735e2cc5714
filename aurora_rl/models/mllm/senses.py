"""What a family says of its prompts: senses, tokens of media, and the arguments of its processor.

`models.mllm.processing` makes prompts of it. No torch is imported before a prompt is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PretrainedConfig, ProcessorMixin

    from aurora_rl.models.mllm.tool_calls import ToolFormat

#: Attributes of processors and tokenizers that name placeholders and delimiters of media.
MEDIA_TOKENS = (
    *(f"{medium}_token" for medium in ("image", "video", "audio")),
    *(f"{medium}_{end}_token" for medium in ("vision", "image", "video", "audio") for end in ("bos", "eos")),
    *(f"{medium}_{end}_token" for medium in ("vision", "image", "video", "audio") for end in ("start", "end")),
    *("boi_token", "eoi_token", "boa_token", "eoa_token", "bov_token", "eov_token"),
    *("start_image_token", "end_image_token", "context_image_token"),
)
#: Fields of configs with their ids.
MEDIA_TOKEN_FIELDS = tuple(
    f"{name}_token_id"
    for medium in ("audio", "image", "video", "vision")
    for name in (medium, f"{medium}_start", f"{medium}_end")
)


class Senses:
    """Defaults of a family whose processor is like Qwen's; a family says where it differs."""

    #: Whether the model hears; clips with sound are refused otherwise, unless the recipe drops it.
    hears: ClassVar[bool] = True
    #: What the model sees of a clip: its frames as a "video", each as an "image", or nothing (None).
    sees: ClassVar[str | None] = "video"
    #: Outputs of the processor that are no media: they are the prompt, or the model makes them of it.
    token_inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
    #: How the family's chats show tools and read calls; None where that is not proven, and calls are refused.
    tool_format: ClassVar[ToolFormat | None] = None
    #: Further fields of a video's metadata inside vLLM.
    engine_metadata: ClassVar[Mapping[str, Any]] = {}

    def multimodal_token_ids(self, config: PretrainedConfig) -> list[int]:
        """Return the ids of placeholder and delimiter tokens that a config names; a config may not name all."""
        ids = {getattr(config, name, None) for name in MEDIA_TOKEN_FIELDS}
        return sorted(token_id for token_id in ids if token_id is not None)

    def media_token_ids(self, processor: ProcessorMixin) -> list[int]:
        """Return the ids of placeholder and delimiter tokens that the processor or its tokenizer names."""
        known = processor.tokenizer.get_vocab()
        named = {getattr(owner, name, None) for owner in (processor, processor.tokenizer) for name in MEDIA_TOKENS}
        return sorted({known[token] for token in map(str, filter(None, named)) if token in known})

    def suppressed_token_ids(self, processor: ProcessorMixin, config: PretrainedConfig) -> list[int]:
        """Return the ids of tokens that a completion must never hold: a sampled placeholder would ask for media.

        Of the config's ids those count that the tokenizer has as added tokens: a field that a config leaves out has the
        class's default, which may be a word.
        """
        added = processor.tokenizer.added_tokens_decoder
        of_config = {token_id for token_id in self.multimodal_token_ids(config) if token_id in added}
        return sorted({*self.media_token_ids(processor), *of_config})

    def read_vision(self, processor: ProcessorMixin, messages: Sequence[Mapping[str, Any]]) -> tuple[Any, Any]:
        """Return images and videos of a conversation, at the size that the model sees; None where there are none.

        By default they are resized as Qwen's processors ask for, whose own resizing `processor_options` then stops. A
        family whose processor resizes by itself takes `processing.vision_as_given`.
        """
        if self.sees is None:
            return None, None
        from qwen_vl_utils import process_vision_info

        patch_size = getattr(processor.video_processor, "patch_size", None)
        if patch_size is None:
            raise NotImplementedError(
                f"{type(self).__name__}: {type(processor.video_processor).__name__} has no patch_size, by which frames "
                "are resized as for Qwen: give the family a method read_vision, such as processing.vision_as_given"
            )
        return process_vision_info(list(messages), image_patch_size=patch_size)

    def processor_options(
        self,
        processor: ProcessorMixin,
        *,
        num_frames: int,
        fps: float,
        waveform: np.ndarray | None,
        use_audio_in_video: bool,
    ) -> dict[str, Any]:
        """Return further arguments of the processor's call, such as `videos_kwargs`; none by default.

        Args:
            processor: the checkpoint's own processor.
            num_frames: number of frames of the video; 0 without one.
            fps: frames a second.
            waveform: (N,) sound, or None.
            use_audio_in_video: whether the sound is interleaved with the frames.
        """
        return {}

    def engine_options(self, processor: ProcessorMixin, *, fps: float, use_audio_in_video: bool) -> dict[str, Any]:
        """Return vLLM's `mm_processor_kwargs`; none should vary by clip, since vLLM loads a processor for each set."""
        return {}

    def video_metadata(self, num_frames: int, fps: float) -> dict[str, Any]:
        """Return what transformers and vLLM call a video's metadata."""
        return {"fps": fps, "total_num_frames": num_frames, "frames_indices": list(range(num_frames))}

    def trim_features(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a clip's media tensors as they are kept; by default as the processor gives them."""
        return features

    def silence(self, processor: ProcessorMixin) -> dict[str, torch.Tensor]:
        """Return the audio tower's inputs for a clip without sound, which no placeholder takes.

        All processes of a sharded model must run the same modules, with any clips. A family with ears has them.
        """
        raise NotImplementedError(f"{type(self).__name__} hears: give it a method silence")

    def shortest_sound(self, processor: ProcessorMixin) -> int:
        """Return the number of samples below which the audio tower computes nothing."""
        return 1

    def longest_sound(self, processor: ProcessorMixin) -> int | None:
        """Return the number of samples above which the processor would cut a sound; None for no limit."""
        return None

    def samples_per_unit(self, processor: ProcessorMixin) -> int:
        """Return the number of samples of which a sound has a whole number; zeros are appended to make it so."""
        return 1
