"""Positions of a batch whose rows have their sound between the frames, or after them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aurora_rl.models.mllm.mixin import MLLMMixin


class InterleavingMixin(MLLMMixin):
    """A mixin for thinkers of the Qwen-Omni line, which transformers lets place the sound by one flag a batch."""

    audio_output = "last_hidden_state"

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
        stock = self.stock.get_rope_index.__get__(self)
        if audio_seqlens is not None:
            audio_seqlens = audio_seqlens[audio_seqlens > 0]  # the thinker counts off one for each sound
        if input_ids is None or video_grid_thw is None:
            return stock(
                input_ids, image_grid_thw, video_grid_thw, attention_mask, False, audio_seqlens, second_per_grids
            )
        starts = input_ids[:, :-1] == self.config.vision_start_token_id
        images, videos, between = (
            (starts & (input_ids[:, 1:] == getattr(self.config, f"{name}_token_id"))).sum(1).tolist()
            for name in ("image", "video", "audio_start")
        )
        interleaved = [count > 0 for count in between]
        if len(set(interleaved)) == 1:
            flag = interleaved[0]
            return stock(
                input_ids, image_grid_thw, video_grid_thw, attention_mask, flag, audio_seqlens, second_per_grids
            )
        num_videos = [sum(counts) for counts in zip(videos, between, strict=True)]
        num_audios = (input_ids == self.config.audio_start_token_id).sum(1).tolist()
        rows = zip(
            input_ids.split(1),
            _split_rows(image_grid_thw, images),
            _split_rows(video_grid_thw, num_videos),
            [None] * len(input_ids) if attention_mask is None else attention_mask.split(1),
            interleaved,
            _split_rows(audio_seqlens, num_audios),
            _split_rows(second_per_grids, num_videos),
            strict=True,
        )
        position_ids, deltas = zip(*(stock(*row) for row in rows), strict=True)
        return torch.cat(position_ids, dim=1), torch.cat(deltas)


def _split_rows(values: torch.Tensor | None, counts: list[int]) -> Sequence[torch.Tensor | None]:
    """Split a batch's values of media into rows, one value for each medium of the row."""
    return [None] * len(counts) if values is None else values.split(counts)
