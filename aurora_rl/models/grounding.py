"""The mixin that gives an MLLM heads: hidden state at a head's token -> head -> masks, boxes or other predictions.

Log-probabilities and predictions come from the same forward pass. TRL replaces an instance's `forward` by one with a
fused LM head, so the heads' branch wraps the present `forward` (`install_head_forward`) instead of being a part of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from aurora_rl.models.frozen_parts import FrozenPartsMixin
from aurora_rl.models.heads import FrameBatch, Head, MaskHead, build_head, head_attribute, head_configs
from aurora_rl.models.heads.base import run_head
from aurora_rl.models.packed_layout import PackedLayout
from aurora_rl.models.state_layer import StateLayer, check_state_layer, state_layer_of
from aurora_rl.models.tower_outputs import OutputsOnDisk, TowerOutputs


class GroundingMixin(FrozenPartsMixin, PreTrainedModel):
    """A mixin for a Hugging Face MLLM class, which calls `init_heads` at the end of its `__init__`.

    The model holds the heads that its config describes: none, one or several.
    """

    seg_head: nn.Module
    # In bf16 the small updates of a learning rate of 1e-5 would be rounded away. With `bf16: true` a head is, under
    # - DDP and one process: float32, its products bf16 by autocast;
    # - FSDP2: shards of float32, gathered as bf16 for a forward pass, which runs under autocast as well;
    # - DeepSpeed, ZeRO-3 while loading included: bf16, without autocast. It keeps the *buffers* named here in float32,
    #   parameters are cast; its optimiser updates float32 copies of them, so that no update is lost there either.
    # Hence code that uses a buffer casts it first: see `Segmenter.decode` and `SuppressingHead.bias`.
    # `init_heads` adds the other heads.
    _keep_in_fp32_modules_strict: tuple[str, ...] = ("seg_head",)
    #: Index of each row's distinct clip while `shared_media` is on; None where every row has its own clip.
    media_index: list[int] | None = None
    #: Features of each distinct clip, beside `media_index`.
    media_clips: Sequence[Mapping[str, torch.Tensor]] | None = None
    #: Where passes leave the outputs of the towers for later ones, while `sharing_tower_outputs` is on.
    tower_outputs: TowerOutputs | None = None
    #: Outputs of the towers that outlast a run; None where none are kept.
    tower_cache: OutputsOnDisk | None = None
    #: Layout of the row of groups while `shared_prefix.packed_row` is on; None where each row is one sequence.
    packed: PackedLayout | None = None

    def select_distinct(self, per_row: torch.Tensor) -> torch.Tensor:
        """Select from (B, ...) row values the (U, ...) values of distinct clips; only while `shared_media` is on."""
        assert self.media_index is not None
        first_rows = [self.media_index.index(clip) for clip in range(max(self.media_index) + 1)]
        return per_row[first_rows]

    def init_heads(self) -> None:
        """Build the heads that the config describes, see `heads.head_configs`.

        Raises:
            ValueError: if there is no head of a name, or the decoder lacks the layer whose states it reads.
        """
        configs, sizes = head_configs(self.config), self.config.get_text_config()
        for name, config in configs.items():
            check_state_layer(state_layer_of(config), name=f"head {name!r}", num_layers=sizes.num_hidden_layers)
            setattr(self, head_attribute(name), build_head(name, sizes.hidden_size, config))
        self._keep_in_fp32_modules_strict = tuple(map(head_attribute, configs))
        self.post_init()

    def init_segmentation(self) -> None:
        """Do what `init_heads` does, under its name of version 0.1."""
        self.init_heads()

    @property
    def heads(self) -> dict[str, Head]:
        """The model's heads by name, wrapped by PEFT where they are saved beside an adapter."""
        return {name: getattr(self, head_attribute(name)) for name in head_configs(self.config)}

    def head(self, name: str | None = None) -> Head:
        """Return a head.

        Args:
            name: its name; None for the only one.

        Raises:
            ValueError: if the model has no such head, or several and none is named.
        """
        names = list(head_configs(self.config))
        if name is None and len(names) != 1:
            raise ValueError(f"the model has the heads {names}: name the one that is asked for")
        if name is not None and name not in names:
            raise ValueError(f"the model has no head {name!r}, only {names}: load it with the config of that head")
        return getattr(self, head_attribute(name or names[0]))

    def state_layer(self, name: str | None = None) -> StateLayer:
        """Return the decoder's layer whose states a head reads; `name` as for `head`."""
        return StateLayer(self.get_decoder(), state_layer_of(self.head(name).config))

    def _supports_logits_to_keep(self) -> bool:
        """Tell `generate` to ask for the last position only, which the family's own signature does not offer.

        The logits of all positions of a prompt take (B, L, V): 8 GB for 16 rows of 1,700 tokens and 152,064 words.
        """
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Keep each layer's own initialisation in the head: the language model's 0.02 is too small for a decoder."""
        super()._init_weights(module)
        # transformers calls this for modules that own parameters, never for a whole head.
        reset = getattr(module, "reset_parameters", None)
        heads = (child for child in self.children() if isinstance(child, Head))
        if callable(reset) and any(module is part for head in heads for part in head.modules()):
            reset()

    def forward_with_heads(
        self,
        inner_forward: Callable[..., Any],
        *args: Any,
        seg_index: torch.Tensor | None = None,
        seg_frames: torch.Tensor | None = None,
        seg_frame_counts: torch.Tensor | None = None,
        seg_clip_index: torch.Tensor | None = None,
        head_name: str | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """Run `inner_forward` once; with `seg_index`, its output also holds what one head predicts.

        That is `head_outputs`, the result of `Head.predict`; the mask head's are also there by their names,
        `sparse_prompt_embeddings` and `mask_logits`.

        Args:
            inner_forward: the forward pass without heads.
            seg_index: (B,) position of the head's token in each row; in the one row, where it holds all of them.
            seg_frames, seg_frame_counts, seg_clip_index: fields of a `FrameBatch`; without them the head is given none.
            head_name: name of the head; None for the only one.
            logits_to_keep: number of last positions that are projected onto the vocabulary, or the positions
                themselves; 0 for all. transformers has the same argument.

        Raises:
            ValueError: if the model has no such head.
        """
        with projecting_only(self.lm_head, logits_to_keep):
            if seg_index is None:
                return inner_forward(*args, **kwargs)
            head, layer = self.head(head_name), self.state_layer(head_name)
            with _watched(layer) as captured:
                outputs = inner_forward(*args, **kwargs)
        hidden_states = captured[-1]  # (B, L, D)
        rows = 0 if self.packed is not None else torch.arange(len(seg_index), device=hidden_states.device)
        frames = None
        if seg_frames is not None and seg_frame_counts is not None and seg_clip_index is not None:
            frames = FrameBatch(seg_frames, seg_frame_counts, seg_clip_index)
        raw = run_head(head, layer.normed(hidden_states[rows, seg_index]), frames)
        return _output_class(outputs.__class__)(**outputs, head_outputs=raw)


#: The mixin's name in version 0.1.
SegmentationMixin = GroundingMixin


class BackboneView:
    """A model without its `lm_head`, for families whose `base_model` is the whole model.

    TRL's fused LM head calls `model.base_model(...).last_hidden_state` and projects by itself. All attributes are the
    model's own; only the call differs.
    """

    def __init__(self, model: GroundingMixin, forward: Callable[..., Any]) -> None:
        self.__dict__.update(_model=model, _forward=forward)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_model"], name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        model = self.__dict__["_model"]
        with _decoder_output(model) as captured, without_projection(model.lm_head):
            self.__dict__["_forward"](model, *args, **kwargs)
        return captured[-1]


def segmentation_model(model: nn.Module) -> GroundingMixin:
    """Find the model with the heads inside its wrappers, such as PEFT's or DDP's."""
    return next(module for module in model.modules() if isinstance(module, GroundingMixin))


@contextlib.contextmanager
def shared_media(
    model: nn.Module, media_index: Sequence[int], clips: Sequence[Mapping[str, torch.Tensor]] | None = None
) -> Iterator[None]:
    """Run the towers once for each distinct clip of a batch; the G rows of a group share one.

    Args:
        model: the model, wrapped or not.
        media_index: (B,) index of each row's distinct clip, in order of first appearance, as in
            `MLLMFamily.collate_features`.
        clips: features of each distinct clip, by whose identity tower outputs are kept; None to keep none.
    """
    inner = segmentation_model(model)
    inner.media_index, inner.media_clips = list(media_index), clips
    try:
        yield
    finally:
        inner.media_index = inner.media_clips = None


@contextlib.contextmanager
def sharing_tower_outputs(models: Iterable[nn.Module], outputs: TowerOutputs | None) -> Iterator[None]:
    """Give the outputs of the towers in one pass over a clip to later passes, until the block ends.

    Where the first model has a `tower_cache`, outputs are read from there, and those that it lacks are written to it.

    Args:
        models: models with the same towers, wrapped or not.
        outputs: where they are kept; None to run the towers in every pass.
    """
    inner = list(map(segmentation_model, models))
    before = [model.tower_outputs for model in inner]
    if outputs is not None:
        outputs.disk = inner[0].tower_cache
    for model in inner:
        model.tower_outputs = outputs
    try:
        yield
    finally:
        for model, outer in zip(inner, before, strict=True):
            model.tower_outputs = outer


def without_projection(lm_head: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Make `lm_head` return (B, L, 0), for a forward pass whose logits are not needed: (B, L, V) is large."""
    return _projecting_by(lm_head, lambda hidden_states: hidden_states[..., :0])


def projecting_only(lm_head: nn.Module, logits_to_keep: int | torch.Tensor) -> contextlib.AbstractContextManager[None]:
    """Make `lm_head` project some of the positions of (B, L, D) only.

    Args:
        lm_head: the head, wrapped by PEFT or TRL or not.
        logits_to_keep: number of last positions, or the positions themselves; 0 for all.
    """
    keeps_all = isinstance(logits_to_keep, int) and logits_to_keep == 0
    if keeps_all or torch.compiler.is_compiling():  # a forward pass that `generate` compiles reads one token a row
        return contextlib.nullcontext()
    positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    project = lm_head.forward
    return _projecting_by(lm_head, lambda hidden_states: project(hidden_states[:, positions]))


@contextlib.contextmanager
def _projecting_by(lm_head: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Replace `lm_head.forward` for a while; the head's hooks, which gather its weights under ZeRO-3, stay."""
    patched = lm_head.__dict__.get("forward")  # TRL's cast_lm_head_to_fp32 sets one
    lm_head.__dict__["forward"] = forward
    try:
        yield
    finally:
        lm_head.__dict__.pop("forward")
        if patched is not None:
            lm_head.__dict__["forward"] = patched


def install_head_forward(model: GroundingMixin) -> None:
    """Wrap the instance's present `forward`, such as TRL's fused one, so that a head predicts at `seg_index`."""
    inner_forward = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: GroundingMixin, *args: Any, **kwargs: Any) -> Any:
        return self.forward_with_heads(inner_forward, *args, **kwargs)

    model.forward = types.MethodType(forward, model)


def freeze_other_heads(model: nn.Module, name: str | None) -> None:
    """Freeze all heads but that of the run's task.

    No loss reaches the others, and launched processes would wait for their gradients.

    Args:
        model: the model, wrapped or not.
        name: name of the head that is trained; None for none.
    """
    for other, head in segmentation_model(model).heads.items():
        if other != name:
            head.requires_grad_(False)


def row_mask_logits(
    model: nn.Module,
    mask_logits: torch.Tensor,
    frame_counts: torch.Tensor,
    sizes: Sequence[tuple[int, int]],
    annotated_frames: Sequence[Sequence[int] | None] | None = None,
) -> list[torch.Tensor]:
    """Split a forward pass's `mask_logits` into rows, each at the size of its own frames.

    Args:
        model: the model, wrapped or not.
        mask_logits: (sum of F_b, h, w).
        frame_counts: (B,) number of frames of each row.
        sizes: H and W of each row's frames.
        annotated_frames: indices of each row's annotated frames, None for all of a row's, see `annotated_only`; None
            to keep all frames of all rows.

    Returns:
        B logits (F_b, H, W) float32; (A_b, H, W) where some frames of a row are not annotated.
    """
    return (
        segmentation_model(model)
        .head(MaskHead.name)
        .rows({"mask_logits": mask_logits}, frame_counts, sizes, annotated_frames)
    )


@functools.cache
def _output_class(base: type) -> type:
    """Derive from `base` a class that declares our field: DDP rebuilds outputs and drops undeclared fields."""

    def output(name: str) -> property:
        return property(lambda self: self.head_outputs.get(name))

    by_name = {name: output(name) for name in ("mask_logits", "sparse_prompt_embeddings")}
    fields = [("head_outputs", dict[str, torch.Tensor] | None, None)]
    return dataclasses.make_dataclass(f"Grounded{base.__name__}", fields, bases=(base,), namespace=by_name)


@contextlib.contextmanager
def _watched(layer: StateLayer) -> Iterator[list[torch.Tensor]]:
    """Capture the states of one layer, without those of the others."""
    captured: list[torch.Tensor] = []
    handle = layer.watch(captured.append)
    try:
        yield captured
    finally:
        handle.remove()


@contextlib.contextmanager
def _decoder_output(model: GroundingMixin) -> Iterator[list[Any]]:
    """Capture the text decoder's output."""
    captured: list[Any] = []
    handle = model.get_decoder().register_forward_hook(lambda _module, _args, output: captured.append(output))
    try:
        yield captured
    finally:
        handle.remove()
