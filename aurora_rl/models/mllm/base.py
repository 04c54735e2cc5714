"""The interface of a family of omni-modal LLMs: each family is one subclass in a folder of its own.

Nothing outside the folder names a part of the family's models. This module, and a family's class, import no torch: what
starts vLLM or checks a command line asks a family too.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from aurora_rl.models.mllm.sizes import ClipPass, ClipSize, usual_pass

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin

#: Name that stands for all towers of a family, where a config names parts of the model.
TOWERS = "towers"
#: Fields of our checkpoints' configs that vLLM does not know. It gets quantised weights unpacked.
OWN_FIELDS = ("segmenter", "heads", "clip_options", "quantization_config")


@dataclasses.dataclass(frozen=True)
class EnginePrompt:
    """One prompt for vLLM, which runs the processor itself.

    Attributes:
        prompt_ids: token ids with each medium's placeholder once, since vLLM expands them.
        messages: the conversation, whose media parts are empty: the media are in `media`, in the same order.
        media: vLLM's `multi_modal_data`: `{"video": [(frames (F, H, W, 3) uint8, metadata)], "audio": [(waveform (N,)
            float32, Hz)]}`; a modality that the prompt lacks is left out. Frames have the size that the model sees.
        processor_options: vLLM's `mm_processor_kwargs`.
        said: last of `prompt_ids`, which came after the conversation: completions and what answered them.
    """

    prompt_ids: list[int]
    messages: list[dict[str, Any]]
    media: dict[str, list[Any]]
    processor_options: dict[str, Any]
    said: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
    """One prompt as the model reads it.

    Attributes:
        prompt_ids: token ids with media placeholders expanded, up to the beginning of the assistant's turn.
        features: the family's media tensors for this row (batch dimension of 1, or flattened patches).
        engine: the same prompt for vLLM, which must expand it to `prompt_ids`.
    """

    prompt_ids: list[int]
    features: dict[str, torch.Tensor]
    engine: EnginePrompt

    def extended(self, ids: Sequence[int]) -> EncodedPrompt:
        """Return the prompt of a further turn, with the same media.

        Args:
            ids: tokens of all that was said since, such as a completion and the answer to it. They are text alone, so
                the policy's ids and the engine's, whose placeholders are not expanded, go on in the same way.
        """
        engine = self.engine
        engine = dataclasses.replace(engine, prompt_ids=[*engine.prompt_ids, *ids], said=(*engine.said, *ids))
        return dataclasses.replace(self, prompt_ids=[*self.prompt_ids, *ids], engine=engine)


class MLLMFamily(abc.ABC):
    """One family of models: its classes, its inputs, its adapters and its sizes."""

    #: `model_type` of the configs that the family reads.
    model_types: ClassVar[tuple[str, ...]]
    #: Dotted names of the sub-modules that stay frozen in fine-tuning (method: vision and audio towers).
    tower_names: ClassVar[tuple[str, ...]]
    #: Regular expression of the decoder's projections that LoRA adapts.
    lora_target_modules: ClassVar[str]
    #: Field of a hub checkpoint's config that `model_class` is built from; None if it is the whole config.
    config_part: ClassVar[str | None] = None
    #: Number of a token's positions in the decoder: 3 where time, height and width have one each.
    position_axes: ClassVar[int] = 1
    #: Prefix of a weight's name in the layout that vLLM loads.
    engine_prefix: ClassVar[str] = ""
    #: The model class inside vLLM, by its name.
    engine_architecture: ClassVar[str]
    #: Where that class is, as 'package.module:Name' or 'path/to/file.py:Name'; None for a class of vLLM itself.
    engine_class: ClassVar[str | None] = None

    #: Largest number of a prompt's pictures, videos and sounds inside vLLM; a family without ears has no audio.
    media_limits: ClassVar[Mapping[str, int]] = {"image": 0, "video": 1, "audio": 1}

    @property
    @abc.abstractmethod
    def model_class(self) -> type[PreTrainedModel]:
        """The family's generation class with `GroundingMixin`; a class attribute will do."""

    def config_from(self, config: PretrainedConfig) -> PretrainedConfig:
        """Return the part of a hub checkpoint's config that `model_class` is built from."""
        return getattr(config, self.config_part, config) if self.config_part else config

    def engine_config(self, config: PretrainedConfig) -> PretrainedConfig:
        """Build the config of the full checkpoint that vLLM loads from the config of `model_class`."""
        full = type(config)(**engine_fields(config))
        full.architectures = [self.engine_architecture]
        return full

    @abc.abstractmethod
    def multimodal_token_ids(self, config: PretrainedConfig) -> list[int]:
        """Return the ids of placeholder and delimiter tokens that a completion must never hold."""

    @abc.abstractmethod
    def encode(
        self,
        processor: ProcessorMixin,
        messages: Sequence[Mapping[str, Any]],
        *,
        waveform: np.ndarray | None,
        fps: float,
        use_audio_in_video: bool = False,
    ) -> EncodedPrompt:
        """Run the family's processor on one conversation.

        Args:
            processor: the checkpoint's own processor.
            messages: messages of a task (`tasks.base.chat_messages`), with the frames in the video part.
            waveform: (N,) float32 at the processor's sampling rate, or None for a prompt without sound.
            fps: frames a second, which aligns video and audio in time.
            use_audio_in_video: whether the sound is interleaved with the frames, chunk by chunk; the messages then have
                no audio part of their own.

        A prompt without sound still has an input for the audio tower, without a placeholder in the prompt: all
        processes of a sharded model must run the same modules, with any clips.

        Raises:
            ControlTokenError: if an untrusted text would become a control token, see `models.control_tokens`.
            ValueError: if placeholders and media do not match, or the sound is too short to be heard.
        """

    @abc.abstractmethod
    def collate_features(
        self, features: Sequence[Mapping[str, torch.Tensor]], media_index: Sequence[int]
    ) -> dict[str, torch.Tensor]:
        """Join media tensors into one batch.

        Args:
            features: media tensors of the batch's U distinct clips.
            media_index: (B,) index of each row's clip among them. Inputs of the towers are joined once a clip, their
                descriptions (grids, lengths) once a row; run the model under `grounding.shared_media`.

        Raises:
            ValueError: if some clips lack a medium that others have.
        """

    def clip_pass(self, config: PretrainedConfig, clip: ClipSize) -> ClipPass:
        """Return what one clip takes of the prompt and of the towers, for the estimate of memory and operations.

        By default `tower_names` are those of a vision tower of patches and an audio tower like Whisper's.
        """
        return usual_pass(config, clip, self.tower_names)

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
