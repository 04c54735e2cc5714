"""The policy as its own sampler, by `generate` of transformers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import nn

from aurora_rl.models.collate import distinct_media
from aurora_rl.models.encoding import EncodedSample
from aurora_rl.models.eval_mode import eval_mode
from aurora_rl.models.grounding import shared_media
from aurora_rl.models.mllm import MLLMFamily
from aurora_rl.models.prefill import prefill_once
from aurora_rl.models.rollout_states import recorded_states
from aurora_rl.rollout.base import Rollouts, Turn, continued_prompt


class TransformersSource:
    """Samples completions by the policy that is trained, in this process.

    Args:
        model: the policy, wrapped or not.
        family: the policy's family.
        sample: function from prompt ids, media tensors and number of generations to completion ids; TRL's, which pads,
            and gathers weights that are spread over the processes.
        kept_token_id: token whose states are kept while sampling; None to keep none.
        head: name of the head that reads these states; None for the model's only one.
        shares_prompts: whether the decoder reads each distinct prompt once, see `models.prefill`.
    """

    def __init__(
        self,
        model: nn.Module,
        family: MLLMFamily,
        sample: Callable[[list[list[int]], dict[str, torch.Tensor], int], list[list[int]]],
        *,
        kept_token_id: int | None = None,
        head: str | None = None,
        shares_prompts: bool = True,
    ) -> None:
        self.model = model
        self.family = family
        self.sample = sample
        self.kept_token_id = kept_token_id
        self.head = head
        self.shares_prompts = shares_prompts

    def generate(self, prompt_ids: Sequence[Sequence[int]], rows: Sequence[EncodedSample], turn: Turn) -> Rollouts:
        """Sample one completion for each prompt, see `RolloutSource.generate`; the policy scores them later."""
        prompts = [continued_prompt(row, ids) for row, ids in zip(rows, prompt_ids, strict=True)]
        features, media_index = distinct_media(rows)
        media = self.family.collate_features(features, media_index)
        keeps = self.kept_token_id is not None
        recording = recorded_states(self.model, self.head) if keeps else contextlib.nullcontext()
        sharing = prefill_once(self.model) if self.shares_prompts else contextlib.nullcontext()
        media_of_rows = shared_media(self.model, media_index, features)
        # TRL samples in train mode, with LoRA's dropout on.
        with eval_mode(self.model), media_of_rows, recording as recorder, sharing as read:
            completion_ids = self.sample([prompt.prompt_ids for prompt in prompts], media, turn.num_generations)
        if recorder is None or self.kept_token_id is None:
            return Rollouts(completion_ids)
        recorder.repeat_prompts(None if read is None else read.prompt_of_row)
        return Rollouts(completion_ids, states=recorder.at_last(self.kept_token_id, completion_ids))
