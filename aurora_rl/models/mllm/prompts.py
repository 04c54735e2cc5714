"""A prompt as the model reads it, and the same prompt for vLLM; no torch is imported."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


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
