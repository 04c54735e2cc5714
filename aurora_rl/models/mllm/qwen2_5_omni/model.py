"""The thinker (vision tower, audio tower, language model) with a segmentation head.

The talker, which speaks, is never loaded.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PretrainedConfig, Qwen2_5OmniThinkerForConditionalGeneration

from aurora_rl.models.grounding import BackboneView, GroundingMixin


class AuroraQwen2_5Omni(GroundingMixin, Qwen2_5OmniThinkerForConditionalGeneration):
    """Qwen2.5-Omni's thinker with `[SEG]` -> masks."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.init_heads()

    # `generate` checks its keyword arguments against this signature, so it must stay the family's own.
    @functools.wraps(Qwen2_5OmniThinkerForConditionalGeneration.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward_with_heads(super().forward, *args, **kwargs)

    def get_image_features(
        self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Compute the thinker's image features once for each distinct clip; all rows have the same number of images."""
        if self.media_index is None or image_grid_thw is None:
            return super().get_image_features(pixel_values, image_grid_thw, **kwargs)
        grids = image_grid_thw.unflatten(0, (len(self.media_index), -1))  # (B, images, 3)
        outputs = super().get_image_features(pixel_values, self.select_distinct(grids).flatten(0, 1), **kwargs)
        images, num_images = outputs.pooler_output, grids.size(1)
        outputs.pooler_output = [image for i in self.media_index for image in images[i * num_images :][:num_images]]
        return outputs

    def get_video_features(
        self, pixel_values_videos: torch.Tensor, video_grid_thw: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Compute the thinker's video features once for each distinct clip, and share them among its rows."""
        if self.media_index is None or video_grid_thw is None:
            return super().get_video_features(pixel_values_videos, video_grid_thw, **kwargs)
        outputs = super().get_video_features(pixel_values_videos, self.select_distinct(video_grid_thw), **kwargs)
        outputs.pooler_output = [outputs.pooler_output[i] for i in self.media_index]
        return outputs

    def get_audio_features(
        self,
        input_features: torch.Tensor,
        feature_attention_mask: torch.Tensor | None = None,
        audio_feature_lengths: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Compute the thinker's audio features once for each distinct clip, and share them among its rows with sound.

        Args:
            input_features: (U, mels, T) spectrograms of the distinct clips.
            feature_attention_mask: (B, T), zeros for a row without sound.
        """
        if feature_attention_mask is None:
            return super().get_audio_features(input_features, feature_attention_mask, audio_feature_lengths, **kwargs)
        mask = feature_attention_mask if self.media_index is None else self.select_distinct(feature_attention_mask)
        heard = mask.any(-1)  # (U,)
        if not heard.any():
            # The tower still runs, forward and backward, because under ZeRO-3 the other ranks wait for its weights.
            # No placeholder takes its output, so its gradient is zero.
            return super().get_audio_features(input_features[:1], torch.ones_like(mask[:1]), None, **kwargs)
        outputs = super().get_audio_features(input_features[heard], mask[heard], audio_feature_lengths, **kwargs)
        if self.media_index is not None:
            _, lengths = self.audio_tower._get_feat_extract_output_lengths(mask[heard].sum(-1))
            clips = outputs.last_hidden_state.split(lengths.tolist())
            sounds = dict(zip(heard.nonzero().flatten().tolist(), clips, strict=True))
            outputs.last_hidden_state = torch.cat([sounds[i] for i in self.media_index if i in sounds])
        return outputs

    def get_rope_index(
        self,
        input_ids: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        use_audio_in_video: bool = False,
        audio_seqlens: torch.Tensor | None = None,
        second_per_grids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the thinker's positions; the token ids of each row decide whether its sound lies between the frames.

        Args:
            use_audio_in_video: not read; a flag for the whole batch could contradict its rows unnoticed.
            audio_seqlens: (B,) lengths of the spectrograms, 0 for a row without sound.
        """
        if audio_seqlens is not None:
            audio_seqlens = audio_seqlens[audio_seqlens > 0]  # the thinker counts off one for each sound
        if input_ids is None or video_grid_thw is None:
            return super().get_rope_index(
                input_ids, image_grid_thw, video_grid_thw, attention_mask, False, audio_seqlens, second_per_grids
            )
        starts = input_ids[:, :-1] == self.config.vision_start_token_id
        followed_by = {
            name: (starts & (input_ids[:, 1:] == getattr(self.config, f"{name}_token_id"))).sum(1).tolist()
            for name in ("image", "video", "audio_start")
        }
        interleaved = [count > 0 for count in followed_by["audio_start"]]
        num_videos = [sum(counts) for counts in zip(followed_by["video"], followed_by["audio_start"], strict=True)]
        num_audios = (input_ids == self.config.audio_start_token_id).sum(1).tolist()
        if len(set(interleaved)) == 1:
            return super().get_rope_index(
                input_ids,
                image_grid_thw,
                video_grid_thw,
                attention_mask,
                interleaved[0],
                audio_seqlens,
                second_per_grids,
            )
        rows = zip(
            input_ids.split(1),
            _split_rows(image_grid_thw, followed_by["image"]),
            _split_rows(video_grid_thw, num_videos),
            [None] * len(input_ids) if attention_mask is None else attention_mask.split(1),
            interleaved,
            _split_rows(audio_seqlens, num_audios),
            _split_rows(second_per_grids, num_videos),
            strict=True,
        )
        position_ids, deltas = zip(*(super(AuroraQwen2_5Omni, self).get_rope_index(*row) for row in rows), strict=True)
        return torch.cat(position_ids, dim=1), torch.cat(deltas)

    @property
    def base_model(self) -> Any:
        """Multimodal merge and decoder without `lm_head`; the thinker's own `base_model` is the whole thinker."""
        return BackboneView(self, Qwen2_5OmniThinkerForConditionalGeneration.forward)


def _split_rows(values: torch.Tensor | None, counts: list[int]) -> Sequence[torch.Tensor | None]:
    """Split a batch's values of media into rows, one value for each medium of the row."""
    return [None] * len(counts) if values is None else values.split(counts)
