"""What a run writes to disk: its checkpoints, and the image embeddings that all runs share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from aurora_rl.footprint.launch import Launch
from aurora_rl.footprint.parameters import MetaModel, total
from aurora_rl.footprint.parts import Part
from aurora_rl.footprint.workload import Clips
from aurora_rl.models.heads.segmenters import build_frame_encoder

#: Bytes of optimiser state for each trained byte; other optimisers are taken to be AdamW.
STATES = {"sgd": 0, "adamw_torch": 2, "adamw_torch_fused": 2}


def states_of(optim: Any) -> int:
    """Numbers that an optimiser keeps for each weight; `optim` as in transformers' arguments."""
    return STATES.get(str(getattr(optim, "value", optim)), 2)


def disk_parts(meta: MetaModel, args: Any, launch: Launch, clips: Clips) -> Iterator[Part]:
    """Parts on disk, of the whole run.

    Args:
        meta: the model.
        args: TRL's, None for a run that writes no checkpoints.
        launch: how the run is spread.
        clips: what is known of the clips.
    """
    yield from embedding_parts(meta, clips)
    if args is None or str(getattr(args.save_strategy, "value", args.save_strategy)) == "no":
        return
    num_bytes = checkpoint_bytes(meta, args, launch)
    yield Part("a checkpoint", num_bytes)
    if args.save_total_limit:  # an old one goes when the new one is whole; the best one stays beside the last one
        most = max(args.save_total_limit, 1 + bool(args.load_best_model_at_end)) + 1
        yield Part(f"checkpoints, {most} at most", most * num_bytes)


def checkpoint_bytes(meta: MetaModel, args: Any, launch: Launch) -> int:
    """Bytes of one checkpoint, all processes' files together.

    Under PEFT what is trained is written alone, the reference adapter not. DeepSpeed and FSDP write the weights a
    second time, in files of their own, except under ZeRO-3, where DeepSpeed has them in the optimiser's float32 copies.
    """
    weights = meta.trained.trained_bytes if meta.model is not meta.base else total(meta.parts).num_bytes
    if args.save_only_model:
        return weights
    states = states_of(args.optim)
    if launch.is_deepspeed:
        optimiser: int = meta.trained.trained * (1 + states) * torch.float32.itemsize
        return weights + (weights if launch.zero_stage < 3 else 0) + optimiser
    is_fsdp = launch.zero_stage == 3
    return weights * (1 + is_fsdp) + states * meta.trained.trained_bytes


def embedding_parts(meta: MetaModel, clips: Clips) -> list[Part]:
    """Embeddings of the frozen image encoder, where the mask decoder has one that is worth to be kept."""
    encoder = build_frame_encoder(meta.base.config.segmenter)
    if not encoder.cacheable:
        return []
    a_clip = clips.frames * torch.Size(encoder.frame_shape).numel() * torch.float16.itemsize
    name = "image embeddings of a clip" if clips.count is None else f"image embeddings of {clips.count:,} clips"
    return [Part(name, a_clip * (clips.count or 1))]
