"""The mixin that gives an MLLM masks: hidden state at `[SEG]` -> projector -> prompt -> mask decoder.

Log-probabilities and masks come from the same forward pass. TRL replaces an instance's `forward` by one with a fused
LM head, so the mask branch wraps the present `forward` (`install_mask_forward`) instead of being a part of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from aurora_rl.models.frozen_parts import FrozenPartsMixin
from aurora_rl.models.heads.segmenters import Segmenter, build_segmenter

#: Names of the keyword arguments that ask a forward pass for masks.
SEG_INPUTS = ("seg_index", "seg_frames", "seg_frame_counts", "seg_clip_index")


class SegmentationHead(nn.Module):
    """Projector and mask decoder.

    projector = Linear(D, D) - ReLU - Linear(D, C), as in the authors' code.
    """

    def __init__(self, hidden_size: int, segmenter_config: dict[str, Any]) -> None:
        super().__init__()
        self.mask_decoder = build_segmenter(segmenter_config)
        self.projector = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, self.mask_decoder.prompt_dim)
        )

    def reset_parameters(self) -> None:
        """Initialise all weights again, by each layer's own rule."""
        self.mask_decoder.reset_parameters()
        for layer in self.projector:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def forward(
        self,
        hidden_states: torch.Tensor,
        frames: torch.Tensor | None = None,
        frame_counts: torch.Tensor | None = None,
        clip_index: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Decode every row's masks; the frames of a clip are read once for all of its rows.

        Args:
            hidden_states: (B, D) states at `[SEG]`.
            frames: (N, ...) mask-decoder inputs of the batch's distinct clips, concatenated over their frames; None
                to compute the prompts only.
            frame_counts: (U,) number of frames of each distinct clip; their sum is N.
            clip_index: (B,) index of each row's clip among the U clips.

        Returns:
            (B, C) prompts of the mask decoder, and (sum over rows of F_b, h, w) mask logits, row after row.
        """
        prompts = self.projector(hidden_states.to(next(self.projector.parameters()).dtype))  # (B, C)
        if frames is None or frame_counts is None or clip_index is None:
            return prompts, None
        slots = _slots_within_clip(clip_index)
        grouped = prompts.new_zeros(len(frame_counts), int(slots.max()) + 1, prompts.size(-1))
        grouped = grouped.index_put((clip_index, slots), prompts)  # (U, G, C)
        mask_logits = self.mask_decoder(frames, grouped.repeat_interleave(frame_counts, dim=0))  # (N, G, h, w)
        row_counts = frame_counts[clip_index]
        frame_index = torch.cat([torch.arange(f, device=frames.device) for f in row_counts.tolist()])
        frame_index = frame_index + (frame_counts.cumsum(0) - frame_counts)[clip_index].repeat_interleave(row_counts)
        return prompts, mask_logits[frame_index, slots.repeat_interleave(row_counts)]


class SegmentationMixin(FrozenPartsMixin, PreTrainedModel):
    """A mixin for a Hugging Face MLLM class, which calls `init_segmentation` at the end of its `__init__`."""

    seg_head: nn.Module
    # In bf16 the small updates of a learning rate of 1e-5 would be rounded away. With `bf16: true` the head is, under
    # - DDP and one process: float32, its products bf16 by autocast;
    # - FSDP2: shards of float32, gathered as bf16 for a forward pass, which runs under autocast as well;
    # - DeepSpeed, ZeRO-3 while loading included: bf16, without autocast. It keeps the *buffers* named here in float32,
    #   parameters are cast; its optimiser updates float32 copies of them, so that no update is lost there either.
    # Hence code that uses a buffer casts it first: see `Segmenter.decode` and `SuppressingHead.bias`.
    _keep_in_fp32_modules_strict = ("seg_head",)
    #: Index of each row's distinct clip while `shared_media` is on; None where every row has its own clip.
    media_index: list[int] | None = None

    def select_distinct(self, per_row: torch.Tensor) -> torch.Tensor:
        """Select from (B, ...) row values the (U, ...) values of distinct clips; only while `shared_media` is on."""
        assert self.media_index is not None
        first_rows = [self.media_index.index(clip) for clip in range(max(self.media_index) + 1)]
        return per_row[first_rows]

    def init_segmentation(self) -> None:
        """Build the head that `config.segmenter` describes.

        Raises:
            ValueError: if the config has no `segmenter`.
        """
        segmenter_config = getattr(self.config, "segmenter", None)
        if not segmenter_config:
            raise ValueError("config.segmenter is missing: load the model by aurora_rl.models.loading.load_model")
        hidden_size = self.config.get_text_config().hidden_size
        self.seg_head = SegmentationHead(hidden_size, segmenter_config)
        self.post_init()

    def _supports_logits_to_keep(self) -> bool:
        """Tell `generate` to ask for the last position only, which the family's own signature does not offer.

        The logits of all positions of a prompt take (B, L, V): 8 GB for 16 rows of 1,700 tokens and 152,064 words.
        """
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Keep each layer's own initialisation in the head: the language model's 0.02 is too small for a decoder."""
        super()._init_weights(module)
        # transformers calls this for modules that own parameters, never for the whole head.
        head, reset = getattr(self, "seg_head", None), getattr(module, "reset_parameters", None)
        if callable(reset) and head is not None and any(module is part for part in head.modules()):
            reset()

    def forward_with_masks(
        self,
        inner_forward: Callable[..., Any],
        *args: Any,
        seg_index: torch.Tensor | None = None,
        seg_frames: torch.Tensor | None = None,
        seg_frame_counts: torch.Tensor | None = None,
        seg_clip_index: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """Run `inner_forward` once; with `seg_index`, its output also holds prompts and masks.

        They are `sparse_prompt_embeddings` (B, C) and `mask_logits` as in `SegmentationHead.forward`; without
        `seg_frames` the masks are None.

        Args:
            inner_forward: the forward pass without masks.
            seg_index: (B,) position of `[SEG]` in each row.
            seg_frames, seg_frame_counts, seg_clip_index: see `SegmentationHead.forward`.
            logits_to_keep: number of last positions that are projected onto the vocabulary, or the positions
                themselves; 0 for all. transformers has the same argument.
        """
        with projecting_only(self.lm_head, logits_to_keep):
            if seg_index is None:
                return inner_forward(*args, **kwargs)
            with _decoder_output(self) as captured:
                outputs = inner_forward(*args, **kwargs)
        hidden_states = captured["last_hidden_state"]  # (B, L, D), after the final norm
        rows = torch.arange(len(seg_index), device=hidden_states.device)
        prompts, mask_logits = self.seg_head(
            hidden_states[rows, seg_index], seg_frames, seg_frame_counts, seg_clip_index
        )
        return _output_class(outputs.__class__)(**outputs, mask_logits=mask_logits, sparse_prompt_embeddings=prompts)


class BackboneView:
    """A model without its `lm_head`, for families whose `base_model` is the whole model.

    TRL's fused LM head calls `model.base_model(...).last_hidden_state` and projects by itself. All attributes are the
    model's own; only the call differs.
    """

    def __init__(self, model: SegmentationMixin, forward: Callable[..., Any]) -> None:
        self.__dict__.update(_model=model, _forward=forward)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_model"], name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        model = self.__dict__["_model"]
        with _decoder_output(model, whole=True) as captured, without_projection(model.lm_head):
            self.__dict__["_forward"](model, *args, **kwargs)
        return captured["outputs"]


def segmentation_model(model: nn.Module) -> SegmentationMixin:
    """Find the segmentation model inside its wrappers, such as PEFT's or DDP's."""
    return next(module for module in model.modules() if isinstance(module, SegmentationMixin))


@contextlib.contextmanager
def shared_media(model: nn.Module, media_index: Sequence[int]) -> Iterator[None]:
    """Run the towers once for each distinct clip of a batch; the G rows of a group share one.

    Args:
        model: the model, wrapped or not.
        media_index: (B,) index of each row's distinct clip, in order of first appearance, as in
            `MLLMFamily.collate_features`.
    """
    inner = segmentation_model(model)
    inner.media_index = list(media_index)
    try:
        yield
    finally:
        inner.media_index = None


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


def install_mask_forward(model: SegmentationMixin) -> None:
    """Wrap the instance's present `forward`, such as TRL's fused one, so that it returns masks for `seg_index`."""
    inner_forward = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: SegmentationMixin, *args: Any, **kwargs: Any) -> Any:
        return self.forward_with_masks(inner_forward, *args, **kwargs)

    model.forward = types.MethodType(forward, model)


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
    decoder = next(module for module in model.modules() if isinstance(module, Segmenter))
    mask_logits, counts = annotated_only(mask_logits, frame_counts.tolist(), annotated_frames)
    if len(set(sizes)) == 1:  # one resize for the whole batch
        return list(decoder.postprocess(mask_logits, sizes[0]).split(counts))
    return [decoder.postprocess(row, size) for row, size in zip(mask_logits.split(counts), sizes, strict=True)]


def annotated_only(
    of_frames: torch.Tensor, counts: list[int], annotated_frames: Sequence[Sequence[int] | None] | None
) -> tuple[torch.Tensor, list[int]]:
    """Cut what a head predicts to the annotated frames, before it meets the truth in a loss, a reward or a score.

    It is the only place where predictions are cut: all that comes after it has one entry for each frame of `gt_masks`.

    Args:
        of_frames: (sum of F_b, ...), one entry a frame, row after row.
        counts: B numbers of frames F_b.
        annotated_frames: indices of each row's annotated frames, None for all of the row's; None to cut nothing.

    Returns:
        (sum of A_b, ...), and the numbers A_b.
    """
    if annotated_frames is None or all(indices is None for indices in annotated_frames):
        return of_frames, counts
    rows = zip(of_frames.split(counts), annotated_frames, strict=True)
    kept = [row if indices is None else row[list(indices)] for row, indices in rows]
    return torch.cat(kept), [len(row) for row in kept]


def _slots_within_clip(clip_index: torch.Tensor) -> torch.Tensor:
    """Number each row (B,) among the rows of its clip: [0, 1, 0, 0] -> [0, 0, 1, 2]."""
    same_clip = clip_index[:, None] == clip_index[None, :]
    return same_clip.tril(-1).sum(1)


@functools.cache
def _output_class(base: type) -> type:
    """Derive from `base` a class that declares our fields: DDP rebuilds outputs and drops undeclared fields."""
    fields = [(name, torch.Tensor | None, None) for name in ("mask_logits", "sparse_prompt_embeddings")]
    return dataclasses.make_dataclass(f"Masked{base.__name__}", fields, bases=(base,))


@contextlib.contextmanager
def _decoder_output(model: SegmentationMixin, *, whole: bool = False) -> Iterator[dict[str, Any]]:
    """Capture the text decoder's output, without the states of all layers."""
    captured: dict[str, Any] = {}

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        captured["outputs" if whole else "last_hidden_state"] = output if whole else output.last_hidden_state

    handle = model.get_decoder().register_forward_hook(keep)
    try:
        yield captured
    finally:
        handle.remove()
