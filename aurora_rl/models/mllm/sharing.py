"""Towers that run once for each distinct clip of a batch, whose outputs go to every row that asks about the clip.

The G completions of a prompt are rows of one clip. A batch therefore holds the inputs of the towers, and what describes
them (grids, lengths), once a clip, while token ids come once a row. Here the two meet: the methods
`get_{image,video,audio}_features` of the model's backbone are wrapped, so a family's class needs none of its own.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from aurora_rl.models.grounding import GroundingMixin
from aurora_rl.models.mllm.clip_outputs import join, of_no_clip, split
from aurora_rl.models.tower_outputs import ClipOutput, TowerOutputs, TowerRun, difference_between_passes

#: What transformers' processors call the media in `mm_token_type_ids`; 0 is text.
TOKEN_TYPES = {"image": 1, "video": 2, "audio": 3}
#: Stands behind the end of a short prompt, where prompts are taken out of a packed row.
NO_TOKEN = -1
#: Arguments of `get_rope_index` that describe media; the others belong to rows already.
DESCRIPTIONS = ("image_grid_thw", "video_grid_thw", "audio_seqlens", "second_per_grids", "second_per_grid_ts")


class TowerSharingMixin(GroundingMixin):
    """A mixin for a Hugging Face MLLM class, which gives the outputs of its towers to the rows of a batch."""

    #: Field of the audio tower's output that the placeholders take.
    audio_output = "pooler_output"
    #: (B, L) token ids of the forward pass that runs, where it reads ids; of a packed row, those of its prompts (U, P).
    _ids: torch.Tensor | None = None

    def init_heads(self) -> None:
        """Build the heads, see `GroundingMixin.init_heads`, and wrap the towers."""
        super().init_heads()
        backbone: Any = self.backbone
        if backbone is not self:  # TRL's fused LM head calls it directly
            backbone.forward = functools.wraps(backbone.forward)(functools.partial(self.read, backbone.forward))
        for modality in TOKEN_TYPES:
            name = f"get_{modality}_features"
            if (stock := getattr(backbone, name, None)) is not None:
                setattr(backbone, name, functools.partial(self._features_of_rows, modality, stock))
        if (stock := getattr(backbone, "get_rope_index", None)) is not None:
            backbone.get_rope_index = functools.partial(self._rope_index_of_rows, stock)

    @property
    def backbone(self) -> nn.Module:
        """The part that owns the towers: towers and language model without `lm_head`, or else the whole model."""
        part: Any = getattr(self, self.base_model_prefix, self)
        return part

    def token_types(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the medium of each token, a value of `TOKEN_TYPES`, or 0 for text; of the shape of `input_ids`."""
        types = torch.zeros_like(input_ids)
        for modality, value in TOKEN_TYPES.items():
            token_id = getattr(self.config, f"{modality}_token_id", None)
            if token_id is not None:
                types[input_ids == token_id] = value
        return types

    def read(self, inner_forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a forward pass that computes the towers, which see then what rows ask for them."""
        before, ids = self._ids, kwargs.get("input_ids", args[0] if args else None)
        self._ids = ids if ids is None or self.packed is None else self.packed.of_prompts(ids, fill=NO_TOKEN)
        try:
            return inner_forward(*args, **kwargs)
        finally:
            self._ids = before

    def tower_inputs(self, modality: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return what a tower reads of its clips' tensors, which have one entry a clip; by default as they are."""
        return inputs

    def _features_of_rows(self, modality: str, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return a tower's output for all rows; it runs on the distinct clips, unless their outputs are kept."""
        if self._ids is None:  # called on its own
            return stock(*args, **kwargs)
        counts = self._placeholders_of_clips(self._ids, modality)
        index = list(range(len(counts))) if self.media_index is None else self.media_index
        perceived = [clip for clip, count in enumerate(counts) if count]
        store = None if self.media_clips is None else self.tower_outputs
        clips = [] if self.media_clips is None else [self.media_clips[clip] for clip in perceived]
        run = None if store is None else self._run_of(modality, store, self._ids.device)
        if store is not None and run is not None and (kept := store.read(run, clips)) is not None:
            form, parts = kept
            outputs = of_no_clip(form, self._field(modality))
            return self._of_rows(outputs, modality, dict(zip(perceived, parts, strict=True)), index)
        given = inspect.signature(stock).bind_partial(*args, **kwargs).arguments
        outputs = self._run_tower(modality, stock, given, counts)
        if index == perceived and store is None:  # each row has a clip of its own
            return outputs
        sizes = [counts[clip] for clip in perceived]
        parts = split(outputs, self._field(modality), sizes, modality=modality) if perceived else []
        if store is not None and run is not None:
            store.keep(run, clips, of_no_clip(outputs, self._field(modality)), parts)
        return self._of_rows(outputs, modality, dict(zip(perceived, parts, strict=True)), index)

    def _of_rows(self, outputs: Any, modality: str, parts: Mapping[int, ClipOutput], index: Sequence[int]) -> Any:
        """Give each row its clip's part of a tower's output, whose form is that of `outputs`."""
        return join(outputs, self._field(modality), [parts[clip] for clip in index if clip in parts])

    def _run_tower(
        self, modality: str, stock: Callable[..., Any], given: Mapping[str, Any], counts: Sequence[int]
    ) -> Any:
        """Run a tower on the clips that have placeholders; on noise if none has."""
        inputs, options = {k: v for k, v in given.items() if k != "kwargs"}, given.get("kwargs", {})
        heard = [clip for clip, count in enumerate(counts) if count]
        if modality == "audio" and len(heard) < len(counts):
            inputs = _of_clips(inputs, heard) if heard else _noise(inputs)
        ids, self._ids = self._ids, None  # a family may compute videos by its method for images
        with contextlib.nullcontext() if self.tower_outputs is None else self.tower_outputs.autocast():
            try:
                return stock(**self.tower_inputs(modality, inputs), **options)
            finally:
                self._ids = ids

    def _run_of(self, modality: str, store: TowerOutputs, device: torch.device) -> TowerRun:
        with store.autocast():
            if torch.is_autocast_enabled(device.type):
                return TowerRun(modality, torch.get_autocast_dtype(device.type), device)
        if store.disk is None:  # nobody asks in which precision
            return TowerRun(modality, self.dtype, device)
        weights = (weight for _, part in self.tower_modules() for weight in part.parameters(recurse=False))
        return TowerRun(modality, next((w.dtype for w in weights if w.is_floating_point()), self.dtype), device)

    def towers_compute_the_same_always(self) -> bool:
        """Tell whether the outputs of the towers may be kept, see `models.tower_outputs.difference_between_passes`."""
        return difference_between_passes(self.tower_modules()) is None

    def tower_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules outside of decoder, embeddings and heads, by name: towers, and what holds them."""
        others = (self.get_decoder(), self.get_input_embeddings(), self.get_output_embeddings(), *self.heads.values())
        known = {id(module) for part in others for module in part.modules()}
        return ((name, module) for name, module in self.named_modules() if id(module) not in known)

    def _field(self, modality: str) -> str:
        return self.audio_output if modality == "audio" else "pooler_output"

    def _placeholders_of_clips(self, input_ids: torch.Tensor, modality: str) -> list[int]:
        counts = (self.token_types(input_ids) == TOKEN_TYPES[modality]).sum(1)  # (B,)
        return (counts if self.media_index is None else self.select_distinct(counts)).tolist()

    def _rope_index_of_rows(self, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Compute positions from media's descriptions, which come once a clip and are needed once a row."""
        given = inspect.signature(stock).bind_partial(*args, **kwargs).arguments
        inputs = {k: v for k, v in given.items() if k != "kwargs"}
        if self.packed is not None:
            inputs = self.packed.inputs_of_prompts(inputs)
        if self.media_index is not None:
            num_clips = max(self.media_index) + 1
            for name in DESCRIPTIONS:
                if isinstance(values := inputs.get(name), torch.Tensor):
                    by_clip = values.unflatten(0, (num_clips, -1))  # (U, media of a clip, ...)
                    inputs[name] = by_clip[self.media_index].flatten(0, 1)
        positions, deltas = stock(**inputs, **given.get("kwargs", {}))
        return positions if self.packed is None else self.packed.positions(positions), deltas


def _of_clips(inputs: Mapping[str, Any], clips: Sequence[int]) -> dict[str, Any]:
    """Return some clips' inputs of a tower."""
    return {name: value[clips] if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


def _noise(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return one clip's inputs, unmasked, for a batch without sound.

    The tower still runs, forward and backward, because under ZeRO-3 the other processes wait for its weights. No
    placeholder takes its output, so its gradient is zero.
    """
    return {
        name: torch.ones_like(value) if "mask" in name and value is not None else value
        for name, value in _of_clips(inputs, [0]).items()
    }
