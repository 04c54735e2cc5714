"""Boxes and points: the state at `[BOX]` attends to the places of a frame and reads a box off them.

The prompt of a row is a kernel over the frame's features. Its softmax over all places says where the object is; each
place tells how far the edges of its object are away, and the box is their mean under that attention. The pooled
features say whether the object is there at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from aurora_rl.box_metrics import box_overlap, box_quality, box_scores, boxes_of_masks
from aurora_rl.losses import weighted_mean
from aurora_rl.models.heads.base import FrameBatch, Head, HeadLoss, annotated_only
from aurora_rl.models.heads.segmenters import (
    FRAME_ENCODERS,
    SEGMENTERS,
    DotSegmenter,
    complete_segmenter_config,
)
from aurora_rl.tasks.prompts import BOX_TOKEN

#: Constant added to the logits of the distances, so that an untrained box is small: sigmoid(-2) = 0.12 of the frame.
DISTANCE_BIAS = -2.0
NORM_GROUPS = 4
#: Weights of the loss's parts where the head's config has none; those of boxes are DETR's (Carion et al. 2020).
LOSS_WEIGHTS = {"giou": 2.0, "l1": 5.0, "presence": 1.0, "point": 1.0}


@dataclasses.dataclass(frozen=True)
class FrameBoxes:
    """A row's prediction on A frames. Coordinates are shares of the frame's width and height, from the top left.

    Attributes:
        boxes: (A, 4) left, top, right, bottom; not clipped to the frame.
        presence_logits: (A,) logit of the object's being in the frame.
        points: (A, 2) x and y of a point on the object.
        log_attention: (A, h, w) log of the attention to each place of the head's input, which sums to 1.
        extent: shares of that input, in height and width, that the frame fills; the rest is padding.
    """

    boxes: Tensor
    presence_logits: Tensor
    points: Tensor
    log_attention: Tensor
    extent: tuple[float, float]


class BoxHead(Head):
    """A presence logit, a box and a point for each frame.

    Args:
        hidden_size: D.
        config: `{"type": "dot", "image_size": S, "width": d}` for a small U-net over the frames, or the config of a SAM
            (`models.heads.segmenters`) with `width`, whose image embeddings the head then reads. `width` is the number
            of features, a multiple of 8, 64 by default. `loss_weights` replaces some of `LOSS_WEIGHTS`.

    Raises:
        ValueError: if the type, the width or the name of a loss weight is unknown.
    """

    name = "boxes"
    token = BOX_TOKEN
    noun = "box"
    outputs = ("prompts", "boxes", "presence_logits", "log_attention")
    no_columns = {"pred_boxes": None, "box_presence": None, "pred_points": None}

    def __init__(self, hidden_size: int, config: dict[str, Any]) -> None:
        super().__init__(hidden_size, config)
        if unknown := config.get("loss_weights", {}).keys() - LOSS_WEIGHTS.keys():
            raise ValueError(f"loss_weights of the box head has {sorted(unknown)}: it knows {sorted(LOSS_WEIGHTS)}")
        width = config.get("width", 64)
        self.loss_weights = {**LOSS_WEIGHTS, **config.get("loss_weights", {})}
        self.frame_shape = self.frame_encoder(config).frame_shape
        self.trunk = _trunk(config, self.frame_shape, width)
        self.distances = nn.Conv2d(width, 4, kernel_size=1)
        self.projector = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 2 * width)
        )  # the kernel, and what the presence is asked with
        self.presence = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU(), nn.Linear(width, 1))

    @classmethod
    def complete_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        return complete_segmenter_config(config)

    def predict(self, states: Tensor, frames: FrameBatch | None = None) -> dict[str, Tensor]:
        """Predict for every frame; the features of a frame are computed once for all rows on its clip.

        Returns:
            `prompts` (B, 2 d), and with frames `boxes` (sum over rows of F_b, 4), `presence_logits` (sum of F_b,) and
            `log_attention` (sum of F_b, h, w), all float32. Boxes are left, top, right, bottom in shares of the head's
            input, which padding may be part of.

        Raises:
            ValueError: if the frame inputs are those of another encoder.
        """
        dtype = next(self.projector.parameters()).dtype
        prompts = self.projector(states.to(dtype))  # (B, 2 d)
        if frames is None:
            return {"prompts": prompts}
        if tuple(frames.frames.shape[1:]) != self.frame_shape:
            raise ValueError(
                f"frame inputs are {tuple(frames.frames.shape)}, expected (N, {', '.join(map(str, self.frame_shape))}):"
                " encode the frames by the head's own `frame_encoder`"
            )
        features = self._features(frames.frames.to(dtype))  # (N, d, h, w)
        kernels, questions = frames.by_frame(prompts).chunk(2, dim=-1)  # (N, G, d)
        scores = torch.einsum("ndhw,ngd->nghw", features, kernels) / kernels.size(-1) ** 0.5
        log_attention = scores.float().flatten(2).log_softmax(-1).view(scores.shape)  # (N, G, h, w)
        pooled = torch.einsum("nghw,ndhw->ngd", log_attention.exp().to(features), features)
        presence_logits = self.presence(torch.cat([pooled, questions, pooled * kernels], dim=-1))[..., 0]  # (N, G)
        return {
            "prompts": prompts,
            "boxes": frames.by_row(_mean_boxes(log_attention.exp(), self.distances(features).float())),
            "presence_logits": frames.by_row(presence_logits.float()),
            "log_attention": frames.by_row(log_attention),
        }

    def _features(self, frame_inputs: Tensor) -> Tensor:
        if isinstance(self.trunk, DotSegmenter):
            return self.trunk.pixel_features(frame_inputs)
        features: Tensor = self.trunk(frame_inputs)
        return features

    def rows(
        self,
        raw: Mapping[str, Tensor],
        frame_counts: Tensor,
        sizes: Sequence[tuple[int, int]],
        annotated_frames: Sequence[Sequence[int] | None] | None = None,
    ) -> list[FrameBoxes]:
        """Return B predictions in shares of the frames themselves, without padding."""
        counts = frame_counts.tolist()
        parts = []
        for name in ("boxes", "presence_logits", "log_attention"):
            tensor, kept = annotated_only(raw[name], counts, annotated_frames)
            parts.append(tensor.split(kept))
        return [self._row(*tensors, size=size) for *tensors, size in zip(*parts, sizes, strict=True)]

    def _row(
        self, boxes: Tensor, presence_logits: Tensor, log_attention: Tensor, *, size: tuple[int, int]
    ) -> FrameBoxes:
        encoder = FRAME_ENCODERS[self.config["type"]]
        height, width = extent = encoder.frame_extent(size, self.config["image_size"])
        boxes = boxes / boxes.new_tensor([width, height, width, height])
        return FrameBoxes(boxes, presence_logits, _best_points(log_attention, extent), log_attention, extent)

    def loss(
        self,
        rows: Sequence[FrameBoxes],
        gt_masks: Sequence[Tensor | None],
        *,
        row_weights: Tensor | None = None,
        normalizer: Tensor | None = None,
        **options: Any,
    ) -> HeadLoss:
        """Compute Σ w_b (2 GIoU_b + 5 L1_b + presence_b + point_b) / n, n as in `losses.mask_loss`.

        Each part is a row's mean: GIoU (1 - generalised IoU), L1 (mean of the four coordinates) and point over the
        frames with the object, presence (binary cross-entropy) over all annotated frames, so that an empty frame trains
        the presence alone. The point's part is -log of the attention inside the mask. It asks for any place on the
        object: the mean of the places, which an L1 to the mask's centre would train, may lie beside a ring or between
        two parts.
        """
        if row_weights is None:
            row_weights = torch.tensor([float(truth is not None) for truth in gt_masks])
        of_rows = [_row_losses(row, truth) for row, truth in zip(rows, gt_masks, strict=True)]
        parts = {
            name: weighted_mean(torch.stack([losses[name] for losses in of_rows]), row_weights, normalizer)
            for name in LOSS_WEIGHTS
        }
        total = torch.stack([self.loss_weights[name] * part for name, part in parts.items()]).sum()
        return HeadLoss(total, {f"box_{name}": part for name, part in parts.items()})

    @torch.no_grad()
    def columns(self, row: FrameBoxes, gt_masks: Tensor | None, truth: Tensor | None) -> dict[str, Any]:
        """Return `pred_boxes` (A, 4), `box_presence` (A,) probabilities and `pred_points` (A, 2), on the CPU."""
        return {
            "pred_boxes": row.boxes.clamp(0, 1).cpu(),
            "box_presence": row.presence_logits.sigmoid().cpu(),
            "pred_points": row.points.cpu(),
        }

    @torch.no_grad()
    def row_score(self, row: FrameBoxes, truth: Tensor) -> float:
        """Return the reward `box_iou`: the mean over frames of the box's IoU, 1 - presence where the truth is empty."""
        return box_quality(row.boxes.clamp(0, 1), row.presence_logits.sigmoid(), truth)

    @torch.no_grad()
    def scores(
        self, row: FrameBoxes | None, gt_masks: Tensor, annotated_frames: Sequence[int] | None = None
    ) -> dict[str, float | None]:
        """Return `box_metrics.box_scores`; a missing prediction says of every frame that nothing is there."""
        if row is None:
            is_there = gt_masks.flatten(1).any(1)
            found = 0.0 if is_there.any() else None
            names = ("box_iou", "box_hits", "point_in_mask")
            return {**dict.fromkeys(names, found), "presence": 1 - is_there.float().mean().item()}
        frames = list(range(len(row.boxes)) if annotated_frames is None else annotated_frames)
        columns = {name: column[frames] for name, column in self.columns(row, gt_masks, gt_masks).items()}
        return box_scores(columns["pred_boxes"], columns["box_presence"], columns["pred_points"], gt_masks)


def _trunk(config: dict[str, Any], frame_shape: tuple[int, ...], width: int) -> nn.Module:
    """Return the module that makes features (N, width, h, w) of frame inputs."""
    if SEGMENTERS[config["type"]] is DotSegmenter:
        return DotSegmenter({**config, "width": width})
    if width % NORM_GROUPS:
        raise ValueError(f"width {width} of the box head must be a multiple of {NORM_GROUPS}")
    layers = [
        [nn.Conv2d(channels, width, kernel_size, padding=kernel_size // 2), nn.GroupNorm(NORM_GROUPS, width), nn.GELU()]
        for channels, kernel_size in ((frame_shape[0], 1), (width, 3))
    ]
    return nn.Sequential(*layers[0], *layers[1])


def _centres(count: int, device: torch.device) -> Tensor:
    """Return (count,) float32, the centres of that many equal cells of [0, 1]."""
    return (torch.arange(count, device=device, dtype=torch.float32) + 0.5) / count


def _mean_boxes(attention: Tensor, distances: Tensor) -> Tensor:
    """Return (N, G, 4), the mean under the attention of the box that each place tells.

    Products and sums, not a matrix product, which autocast would round to half precision.

    Args:
        attention: (N, G, h, w) float32.
        distances: (N, 4, h, w) float32, logits of the distances to the left, top, right and bottom edge.
    """
    away = (distances + DISTANCE_BIAS).sigmoid()
    x = _centres(away.size(-1), away.device).expand_as(away[:, 0])
    y = _centres(away.size(-2), away.device)[:, None].expand_as(away[:, 0])
    edges = (x - away[:, 0], y - away[:, 1], x + away[:, 2], y + away[:, 3])  # each (N, h, w)
    return torch.stack([(attention * edge[:, None]).sum((-2, -1)) for edge in edges], dim=-1)


@torch.no_grad()
def _best_points(log_attention: Tensor, extent: tuple[float, float]) -> Tensor:
    """Return (A, 2), x and y of the centre of the place with the most attention, in shares of the frame."""
    height, width = log_attention.shape[-2:]
    best = log_attention.flatten(1).argmax(1)
    x = _centres(width, best.device)[best % width] / extent[1]
    y = _centres(height, best.device)[best // width] / extent[0]
    return torch.stack([x, y], dim=-1).clamp(0, 1)


def _row_losses(row: FrameBoxes, truth: Tensor | None) -> dict[str, Tensor]:
    """Return the parts of a row's loss; zeros that keep their place in the graph, where the row has no truth."""
    if truth is None:
        zero = 0.0 * (row.boxes.sum() + row.presence_logits.sum() + row.log_attention.sum())
        return dict.fromkeys(LOSS_WEIGHTS, zero)
    if truth.ndim != 3 or len(truth) != len(row.boxes):
        raise ValueError(f"boxes of {len(row.boxes)} frames for gt_masks {tuple(truth.shape)}, expected (A, H, W)")
    is_there = truth.flatten(1).any(1)  # (A,)
    true_boxes = boxes_of_masks(truth).to(row.boxes)
    _, giou = box_overlap(row.boxes, true_boxes)
    attended = (row.log_attention.exp() * _on_places(truth, row)).sum((-2, -1)).clamp(min=1e-6)

    def mean(per_frame: Tensor) -> Tensor:
        return (per_frame * is_there).sum() / is_there.sum().clamp(min=1)

    return {
        "giou": mean(1 - giou),
        "l1": mean((row.boxes - true_boxes).abs().mean(-1)),
        "presence": functional.binary_cross_entropy_with_logits(row.presence_logits, is_there.to(row.boxes)),
        "point": mean(-attended.log()),
    }


def _on_places(truth: Tensor, row: FrameBoxes) -> Tensor:
    """Return (A, h, w), the share of each place of the head's input that lies in the mask."""
    height, width = row.log_attention.shape[-2:]
    filled = max(1, round(height * row.extent[0])), max(1, round(width * row.extent[1]))
    shares = functional.interpolate(truth[:, None].to(row.log_attention), size=filled, mode="area")[:, 0]
    return functional.pad(shares, (0, width - filled[1], 0, height - filled[0]))
