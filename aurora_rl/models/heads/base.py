"""A head predicts from the hidden state at its token: masks at `[SEG]`, boxes and points at `[BOX]`.

Flow: states (B, D) and the clips' frame inputs -> `Head.predict` -> raw tensors of the whole batch -> `Head.rows` ->
one prediction a row, for the annotated frames alone -> `Head.loss` in training, `Head.columns` for reward functions.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from aurora_rl.models.heads.segmenters import FrameEncoder, build_frame_encoder


class FrameBatch(NamedTuple):
    """The frame inputs of a batch; the frames of a clip are there once for all of its rows.

    Attributes:
        frames: (N, ...) inputs of the batch's U distinct clips, concatenated over their frames.
        counts: (U,) number of frames of each distinct clip; their sum is N.
        clip_index: (B,) index of each row's clip among the U clips.
    """

    frames: Tensor
    counts: Tensor
    clip_index: Tensor

    @property
    def row_counts(self) -> Tensor:
        """(B,) number of frames of each row."""
        return self.counts[self.clip_index]

    @property
    def row_frames(self) -> Tensor:
        """(sum over rows of F_b,) index of each row's frames among the N frames, row after row."""
        counts = self.row_counts
        frame_index = torch.cat([torch.arange(count, device=self.frames.device) for count in counts.tolist()])
        return frame_index + (self.counts.cumsum(0) - self.counts)[self.clip_index].repeat_interleave(counts)

    def by_frame(self, per_row: Tensor) -> Tensor:
        """Give each frame what all rows of its clip have: (B, C) becomes (N, G, C), G the most rows of a clip."""
        slots = self._slots
        grouped = per_row.new_zeros(len(self.counts), int(slots.max()) + 1, per_row.size(-1))
        return grouped.index_put((self.clip_index, slots), per_row).repeat_interleave(self.counts, dim=0)

    def by_row(self, per_frame: Tensor) -> Tensor:
        """Select each row's own entries, the reverse of `by_frame`: (N, G, ...) becomes (sum over rows of F_b, ...)."""
        return per_frame[self.row_frames, self._slots.repeat_interleave(self.row_counts)]

    @property
    def _slots(self) -> Tensor:
        """Number of each row (B,) among the rows of its clip: clips [0, 1, 0, 0] have the numbers [0, 0, 1, 2]."""
        same_clip = self.clip_index[:, None] == self.clip_index[None, :]
        return same_clip.tril(-1).sum(1)


@dataclasses.dataclass(frozen=True)
class HeadLoss:
    """The loss of a head and its parts.

    Attributes:
        total: scalar.
        parts: scalars by the name under which they are logged, before their weights.
    """

    total: Tensor
    parts: Mapping[str, Tensor]


def annotated_only(
    of_frames: Tensor, counts: list[int], annotated_frames: Sequence[Sequence[int] | None] | None
) -> tuple[Tensor, list[int]]:
    """Cut what a head predicts to the annotated frames, before it meets the truth in a loss, a reward or a score.

    In training it is the only place where predictions are cut: all that comes after it has one entry for each frame of
    `gt_masks`. Evaluation keeps the predictions of all frames, and cuts them where it scores (`evaluation.scoring`).

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


class Head(nn.Module, abc.ABC):
    """A module that predicts something about every frame of a clip; one file, and one line in `models.heads.HEADS`.

    It is rebuilt from its config, which is plain JSON in the checkpoint's config, before its weights are loaded.

    Args:
        hidden_size: D, the width of the language model's states.
        config: all that is needed to build the head; `state_layer` names the decoder's layer whose states it is given
            (`models.state_layer`).

    Attributes:
        name: key of `models.heads.HEADS`, which tasks give as `head`.
        token: token at whose state it predicts.
        outputs: names of what `predict` returns, in order; first those that need no frames.
        noun: what it predicts on a frame, in the names of a training's logs: `mask` in `mask_loss` and `mask_iou`.
    """

    name: ClassVar[str]
    token: ClassVar[str]
    noun: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]

    def __init__(self, hidden_size: int, config: dict[str, Any]) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.config = config

    @classmethod
    def complete_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Complete the config of a new head by the fields of a checkpoint that it names."""
        return config

    @classmethod
    def frame_encoder(cls, config: dict[str, Any], *, dtype: torch.dtype = torch.float32) -> FrameEncoder:
        """Build the frozen encoder that makes the frame inputs of a head with this config, by the config's type."""
        return build_frame_encoder(config, dtype=dtype)

    def load_pretrained(self) -> None:
        """Load published weights into a new head that has some; other heads keep their random ones."""

    def reset_parameters(self) -> None:
        """Initialise all weights again, each layer by its own rule (see `Segmenter.reset_parameters`)."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if module is not self and callable(reset):
                reset()

    def forward(self, states: Tensor, frames: FrameBatch | None = None) -> tuple[Tensor, ...]:
        """Return the tensors of `predict` in order; call `run_head`, which names them.

        A module's backward hooks see a tuple, but nothing inside a dict. ZeRO-3 reduces a head's gradients in such a
        hook, of PEFT's wrapper where there is one, and would lose them.

        Raises:
            ValueError: if `predict` returns other names than `outputs`.
        """
        raw = self.predict(states, frames)
        if tuple(raw) != self.outputs[: len(raw)]:
            raise ValueError(f"{type(self).__name__} predicts {list(raw)}: name these in its outputs, in order")
        return tuple(raw.values())

    @abc.abstractmethod
    def predict(self, states: Tensor, frames: FrameBatch | None = None) -> dict[str, Tensor]:
        """Predict for every frame of every row.

        Args:
            states: (B, D) states at the head's token, of any floating dtype.
            frames: the clips' frames; None to compute only what depends on the states.

        Returns:
            Tensors by name. Those of frames are (sum over rows of F_b, ...), row after row.
        """

    @abc.abstractmethod
    def rows(
        self,
        raw: Mapping[str, Tensor],
        frame_counts: Tensor,
        sizes: Sequence[tuple[int, int]],
        annotated_frames: Sequence[Sequence[int] | None] | None = None,
    ) -> list[Any]:
        """Split the result of `predict` into one prediction a row.

        Args:
            raw: result of `predict` with frames.
            frame_counts: (B,) number of frames of each row.
            sizes: H and W of each row's frames.
            annotated_frames: indices of each row's annotated frames, see `annotated_only`; None to keep all frames.
        """

    @abc.abstractmethod
    def loss(
        self,
        rows: Sequence[Any],
        gt_masks: Sequence[Tensor | None],
        *,
        row_weights: Tensor | None = None,
        normalizer: Tensor | None = None,
        **options: Any,
    ) -> HeadLoss:
        """Compute a batch's loss.

        Args:
            rows: result of `rows`.
            gt_masks: B truths (A, H, W) bool, on the predictions' device; None for a row without truth.
            row_weights: (B,) weights, see `losses.mask_loss`.
            normalizer: see `losses.mask_loss`.
            **options: values of `loss_options`.
        """

    @classmethod
    def loss_options(cls, args: Any) -> dict[str, Any]:
        """Return the options of `loss` that a trainer's config holds; by default the head's own config has them."""
        return {}

    #: Columns of a completion without the head's token.
    no_columns: ClassVar[Mapping[str, Any]]

    @abc.abstractmethod
    def columns(self, row: Any, gt_masks: Tensor | None, truth: Tensor | None) -> dict[str, Any]:
        """Return what reward functions get for one row, beside `gt_masks`; entries may be `rewards.Deferred`.

        Args:
            row: the row's prediction.
            gt_masks: (A, H, W) bool, true masks of the annotated frames, on the CPU; None for a row without truth.
            truth: the same masks on the prediction's device.
        """

    @abc.abstractmethod
    def row_score(self, row: Any, truth: Tensor) -> float:
        """Score one row's prediction in [0, 1] for the curves of a training; `truth` is on its device."""

    def score_of_columns(self, columns: Mapping[str, Any], row: Any, truth: Tensor) -> float:
        """Return `row_score` of a prediction whose `columns` are there, which may have it already."""
        return self.row_score(row, truth)

    def scores(
        self, row: Any | None, gt_masks: Tensor, annotated_frames: Sequence[int] | None = None
    ) -> dict[str, float | None]:
        """Score one row's prediction by name for an evaluation, each in [0, 1]; None where a score does not apply.

        Masks have no scores here: an evaluation scores them by the presets of their benchmarks.

        Args:
            row: the prediction on all frames; None without the head's token.
            gt_masks: (A, H, W) bool, true masks of the annotated frames, on the CPU.
            annotated_frames: indices of these frames; None for all.
        """
        return {}


def run_head(head: nn.Module, states: Tensor, frames: FrameBatch | None = None) -> dict[str, Tensor]:
    """Run a head with its hooks, wrapped by PEFT or not, and return the result of `Head.predict`."""
    names: Any = head.outputs
    return dict(zip(names, head(states, frames), strict=False))  # without frames there are fewer
