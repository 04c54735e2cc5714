"""Disk space of a run: its checkpoints, and what all runs share, image embeddings and outputs of towers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from aurora_rl.footprint.launch import Launch
from aurora_rl.footprint.parameters import MetaModel, total
from aurora_rl.footprint.parts import Part
from aurora_rl.footprint.workload import Clips
from aurora_rl.models.heads import head_class, head_configs
from aurora_rl.models.mllm import ClipPass
from aurora_rl.models.mllm.sizes import num_features

#: Numbers of optimiser state for each trained weight; other optimisers count as AdamW.
STATES = {"sgd": 0, "adamw_torch": 2, "adamw_torch_fused": 2}


def states_of(optim: Any) -> int:
    """Return how many numbers an optimiser keeps for each weight; `optim` is that of transformers' arguments."""
    return STATES.get(str(getattr(optim, "value", optim)), 2)


def disk_parts(meta: MetaModel, args: Any, launch: Launch, clips: Clips, *, head: str | None) -> Iterator[Part]:
    """Yield the parts on disk, for the whole run.

    Args:
        meta: the model.
        args: TRL's arguments; None for a run that writes no checkpoints.
        launch: how the run is spread over processes.
        clips: sizes of the clips.
        head: name of the head that the task needs; None for none.
    """
    yield from embedding_parts(meta, clips, head)
    if args is None or str(getattr(args.save_strategy, "value", args.save_strategy)) == "no":
        return
    num_bytes = checkpoint_bytes(meta, args, launch)
    yield Part("a checkpoint", num_bytes)
    if (
        args.save_total_limit
    ):  # an old one is deleted after the new one is complete; the best one is kept beside the last
        most = max(args.save_total_limit, 1 + bool(args.load_best_model_at_end)) + 1
        yield Part(f"checkpoints, {most} at most", most * num_bytes)


def checkpoint_bytes(meta: MetaModel, args: Any, launch: Launch) -> int:
    """Return the bytes of one checkpoint, with the files of all processes.

    Under PEFT only trained weights are written, without the reference adapter. DeepSpeed and FSDP write the weights a
    second time, in files of their own; but under ZeRO-3 DeepSpeed has them in the optimiser's float32 copies.
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


def embedding_parts(meta: MetaModel, clips: Clips, head: str | None) -> list[Part]:
    """Return the cached embeddings of the head's frozen image encoder; empty if there is no encoder to cache."""
    if head is None:
        return []
    encoder = head_class(head).frame_encoder(head_configs(meta.base.config)[head])
    if not encoder.cacheable:
        return []
    a_clip = clips.frames * torch.Size(encoder.frame_shape).numel() * torch.float16.itemsize
    name = "image embeddings of a clip" if clips.count is None else f"image embeddings of {clips.count:,} clips"
    return [Part(name, a_clip * (clips.count or 1))]


def tower_output_parts(meta: MetaModel, a_clip: ClipPass, clips: Clips, dtype: torch.dtype) -> list[Part]:
    """Return the kept outputs of the towers: a feature for each token of a clip, and more for deeper layers.

    Args:
        meta: the model.
        a_clip: what one clip takes.
        clips: sizes of the clips.
        dtype: dtype of the features.
    """
    config: Any = meta.base.config
    features = num_features(config, a_clip)
    num_bytes = round(features * config.get_text_config().hidden_size * dtype.itemsize)
    of = "a clip" if clips.count is None else f"{clips.count:,} clips"
    return [Part(f"outputs of the towers for {of}", num_bytes * (clips.count or 1))]
