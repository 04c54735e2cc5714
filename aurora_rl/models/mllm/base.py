"""The interface of a family of omni-modal LLMs: each family is one subclass in a folder of its own.

Nothing outside the folder names a part of the family's models. This module, and a family's class, import no torch: what
starts vLLM or checks a command line asks a family too.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from aurora_rl.models.mllm.prompts import EncodedPrompt, EnginePrompt
from aurora_rl.models.mllm.senses import Senses
from aurora_rl.models.mllm.sizes import ClipPass, ClipSize, SoundRate, usual_pass

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin

#: Name that stands for all towers of a family, where a config names parts of the model.
TOWERS = "towers"
#: Fields of our checkpoints' configs that vLLM does not know. It gets quantised weights unpacked.
OWN_FIELDS = ("segmenter", "heads", "clip_options", "quantization_config")


class MLLMFamily(Senses, abc.ABC):
    """One family of models: its classes, its inputs, its adapters and its sizes."""

    #: `model_type` of the configs that the family reads.
    model_types: ClassVar[tuple[str, ...]]
    #: Name on the hub of a checkpoint to start from, where recipes name none.
    hub_model: ClassVar[str | None] = None
    #: Dotted names of the sub-modules that stay frozen in fine-tuning (method: vision and audio towers).
    tower_names: ClassVar[tuple[str, ...]]
    #: Regular expression of the decoder's projections that LoRA adapts.
    lora_target_modules: ClassVar[str] = r"model\.language_model\.layers\.\d+\.self_attn\.(q_proj|v_proj)"
    #: Field of a hub checkpoint's config that `model_class` is built from; None if it is the whole config.
    config_part: ClassVar[str | None] = None
    #: Number of a token's positions in the decoder: 3 where time, height and width have one each.
    position_axes: ClassVar[int] = 1
    #: How the audio tower shortens a sound, for the estimate before loading.
    sound_rate: ClassVar[SoundRate] = SoundRate()
    #: Tokens of text that tell the time of each grid of frames in the prompt.
    tokens_of_time: ClassVar[int] = 0
    #: Prefix of a weight's name in the layout that vLLM loads.
    engine_prefix: ClassVar[str] = ""
    #: The model class inside vLLM, by its name.
    engine_architecture: ClassVar[str]
    #: Where that class is, as 'package.module:Name' or 'path/to/file.py:Name'; None for a class of vLLM itself.
    engine_class: ClassVar[str | None] = None

    #: Why rollouts by vLLM are refused for the family; None where they equal those of transformers.
    engine_refusal: ClassVar[str | None] = None
    #: Why outputs of the towers are not kept on disk, said of the family; None where they may be.
    tower_cache_refusal: ClassVar[str | None] = None
    #: Largest number of a prompt's pictures, videos and sounds inside vLLM; a family without ears has no audio.
    media_limits: ClassVar[Mapping[str, int]] = {"image": 0, "video": 1, "audio": 1}

    @property
    @abc.abstractmethod
    def model_class(self) -> type[PreTrainedModel]:
        """The family's generation class with `MLLMMixin`; a class attribute will do."""

    def config_from(self, config: PretrainedConfig) -> PretrainedConfig:
        """Return the part of a hub checkpoint's config that `model_class` is built from."""
        return getattr(config, self.config_part, config) if self.config_part else config

    def for_config(self, config: PretrainedConfig) -> MLLMFamily:
        """Return the family as a checkpoint has it, where sizes of one `model_type` differ in their senses.

        Args:
            config: config of `model_class`.
        """
        return self

    def engine_config(self, config: PretrainedConfig) -> PretrainedConfig:
        """Build the config of the full checkpoint that vLLM loads from the config of `model_class`."""
        full = type(config)(**engine_fields(config))
        full.architectures = [self.engine_architecture]
        return full

    def engine_name(self, name: str) -> str:
        """Return the name that vLLM, and the hub's checkpoints, give to a weight of the model."""
        return self.engine_prefix + name

    def engine_weight(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight of the model, by its dotted name, as vLLM reads it: laid out as in the hub's checkpoints."""
        return weight

    def encode(
        self,
        processor: ProcessorMixin,
        messages: Sequence[Mapping[str, Any]],
        *,
        waveform: np.ndarray | None,
        fps: float,
        use_audio_in_video: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> EncodedPrompt:
        """Run the family's processor on one conversation.

        Args:
            processor: the checkpoint's own processor.
            messages: messages of a task (`tasks.base.chat_messages`), with the frames in the video part.
            waveform: (N,) float32 at the processor's sampling rate, or None for a prompt without sound.
            fps: frames a second, which aligns video and audio in time.
            use_audio_in_video: whether the sound is interleaved with the frames, chunk by chunk; the messages then have
                no audio part of their own.
            tools: JSON schemas of the tools that the prompt shows, in the family's `tool_format`.

        A prompt without sound still has an input for the audio tower, without a placeholder in the prompt: all
        processes of a sharded model must run the same modules, with any clips.

        Raises:
            ControlTokenError: if an untrusted text would become a control token, see `models.control_tokens`.
            ValueError: if placeholders and media do not match, the sound is too short to be heard, or the family has no
                ears for it.
        """
        from aurora_rl.models.mllm.processing import encode

        options: dict[str, Any] = {"waveform": waveform, "fps": fps, "use_audio_in_video": use_audio_in_video}
        return encode(self, processor, messages, **options, tools=tools)

    def collate_features(
        self, features: Sequence[Mapping[str, torch.Tensor]], media_index: Sequence[int] | None = None
    ) -> dict[str, torch.Tensor]:
        """Join media tensors into one batch, one entry a clip, padded where clips differ.

        Args:
            features: media tensors of the batch's U distinct clips.
            media_index: (B,) index of each row's clip among them. It is not read here: under `grounding.shared_media`
                `MLLMMixin` gives clips to rows. A family whose model does that by itself may need it.

        Raises:
            ValueError: if some clips lack a medium that others have.
        """
        from aurora_rl.models.mllm.processing import collate_features

        return collate_features(features)

    def clip_pass(self, config: PretrainedConfig, clip: ClipSize) -> ClipPass:
        """Return what one clip takes of the prompt and of the towers, for the estimate of memory and operations.

        By default `tower_names` are those of a vision tower of patches and an audio tower like Whisper's.
        """
        return usual_pass(
            config, clip, self.tower_names, sound_rate=self.sound_rate, tokens_of_time=self.tokens_of_time
        )

    def build_tiny(
        self,
        texts: Iterable[str],
        *,
        segmenter: dict[str, Any] | None = None,
        heads: dict[str, dict[str, Any]] | None = None,
        sizes: Mapping[str, Any] | None = None,
    ) -> tuple[PreTrainedModel, ProcessorMixin]:
        """Make a model of random weights that trains on a CPU, and its processor.

        Args:
            texts: texts that the vocabulary is trained on.
            segmenter: config of the mask decoder; None for none.
            heads: configs of other heads by name.
            sizes: sizes of the model by name, where they differ from the family's own.

        Raises:
            ValueError: if the family has no tiny model, or no size of some name.
        """
        raise ValueError(f"{type(self).__name__} makes no tiny model: give it a method build_tiny")

    def names_of_parts(self, names: Iterable[str]) -> list[str]:
        """Return the dotted names of some parts: `towers` stands for all of them, other names for themselves."""
        return [part for name in names for part in (self.tower_names if name == TOWERS else (name,))]

    def is_tower(self, name: str) -> bool:
        """Tell whether a dotted name, of a module or parameter, lies in a tower, at any depth of wrappers."""
        return any(f".{tower}." in f".{name}." for tower in self.tower_names)


def engine_fields(config: PretrainedConfig) -> dict[str, Any]:
    """Return the fields of a checkpoint's config that vLLM knows, with an LM head of its own.

    Head and embeddings are sent as two weights, whether they are tied here or LoRA has separated them.
    """
    fields = {name: value for name, value in config.to_dict().items() if name not in OWN_FIELDS}
    fields["tie_word_embeddings"] = False
    if "text_config" in fields:
        fields["text_config"] = {**fields["text_config"], "tie_word_embeddings": False}
    return fields


__all__ = ["OWN_FIELDS", "TOWERS", "EncodedPrompt", "EnginePrompt", "MLLMFamily", "engine_fields"]
