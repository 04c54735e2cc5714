"""The losses beside the language model's own: masks (BCE, Dice), feature distillation, exact policy. Pure functions.

SFT adds 2.0·BCE + 0.5·Dice and λ·distillation to the cross-entropy; GRPO adds the mask loss of chosen
completions to the policy loss. Everything is computed in float32 whatever the model's dtype.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

#: Masks of B rows: one (B, F, H, W) tensor, or B tensors (F, H, W) whose F, H and W may differ.
Masks = Tensor | Sequence[Tensor]
#: True masks of B rows; None for a row without truth, whose loss is 0.
GtMasks = Tensor | Sequence[Tensor | None]


@dataclasses.dataclass(frozen=True)
class MaskLosses:
    """The mask loss and its parts.

    Attributes:
        bce: scalar, weighted mean over rows, before `bce_weight`.
        dice: scalar, weighted mean over rows, before `dice_weight`.
        total: scalar, `bce_weight * bce + dice_weight * dice`.
        per_row: (B,) detached, each row's total before row weights.
    """

    bce: Tensor
    dice: Tensor
    total: Tensor
    per_row: Tensor


def exact_policy_loss(
    answer_logps: Tensor, rewards: Tensor, *, rest_reward: Tensor | float, entropy_weight: float = 0.03
) -> Tensor:
    """Compute the policy loss over all answers that can be given, without sampling.

    L = -mean_s [Σ_a π(a|s) r(s, a) + (1 - Σ_a π(a|s)) r_rest - w Σ_a π(a|s) log π(a|s)]  (FGPO, with w = 0.03)

    What the policy can write beside the answers has one reward; the paper's form leaves it out.

    Args:
        answer_logps: (B, A) float, log-probability of each whole answer; `exp` sums to 1 at most.
        rewards: (B, A) float, reward of each answer.
        rest_reward: reward of all other completions, one or (B,).
        entropy_weight: weight of the entropy.

    Returns:
        Scalar float32.

    Raises:
        ValueError: if the shapes differ.
    """
    if answer_logps.ndim != 2 or answer_logps.shape != rewards.shape:
        shapes = tuple(answer_logps.shape), tuple(rewards.shape)
        raise ValueError(f"log-probabilities {shapes[0]} and rewards {shapes[1]}: both (B, A)")
    logps = answer_logps.float()
    probs = logps.exp()  # (B, A)
    expected = (probs * rewards.float()).sum(1) + (1 - probs.sum(1)) * rest_reward
    entropy = -(probs * logps).sum(1)
    return -(expected + entropy_weight * entropy).mean()


def mask_bce_loss(mask_logits: Masks, gt_masks: GtMasks) -> Tensor:
    """Compute the binary cross-entropy of each row: mean over pixels, then frames.

    BCE = -mean[g·log σ(x) + (1 - g)·log(1 - σ(x))]  (paper, mask loss)

    Args:
        mask_logits: B rows of (F, H, W) float, logits.
        gt_masks: B rows of (F, H, W) bool; None for a row without truth, whose loss is 0.

    Returns:
        (B,) float32.

    Raises:
        ValueError: if a row's shapes differ.
    """
    return _per_row(_clip_bce, mask_logits, gt_masks)


def dice_loss(mask_logits: Masks, gt_masks: GtMasks, *, variant: str = "aurora") -> Tensor:
    """Compute the Dice loss of each row, p = σ(logits), sums over the pixels of a frame.

    - `"aurora"`: mean of 1 - (2·Σpg + 1) / (Σp + Σg + 1) over the frames whose truth is not empty, and 0 if there are
      none. The BCE alone trains a frame with empty truth: its Dice stays near 1 until the last pixel is gone.
    - `"lisa"` (the authors' release, after LISA, Lai et al. 2023): mean over all frames of
      1 - (2·Σpg/1000 + 1e-6) / (Σp/1000 + Σg/1000 + 1e-6).

    Args:
        mask_logits: B rows of (F, H, W) float, logits.
        gt_masks: B rows of (F, H, W) bool; None for a row without truth, whose loss is 0.
        variant: `"aurora"` or `"lisa"`.

    Returns:
        (B,) float32 in [0, 1].

    Raises:
        ValueError: if a row's shapes differ or the variant is unknown.
    """
    if variant not in _DICE_VARIANTS:
        raise ValueError(f"dice variant {variant!r} is unknown: choose one of {sorted(_DICE_VARIANTS)}")
    return _per_row(_DICE_VARIANTS[variant], mask_logits, gt_masks)


def mask_loss(
    mask_logits: Masks,
    gt_masks: GtMasks,
    *,
    row_weights: Tensor | None = None,
    normalizer: Tensor | None = None,
    bce_weight: float = 2.0,
    dice_weight: float = 0.5,
    dice_variant: str = "aurora",
) -> MaskLosses:
    """Compute a batch's mask loss: Σ w_b·(2·BCE_b + 0.5·Dice_b) / n, n = max(Σ w_b, 1)  (paper, segmentation loss).

    Args:
        mask_logits: B rows of (F, H, W) float, logits.
        gt_masks: B rows of (F, H, W) bool; None for a row without truth, whose loss is 0.
        row_weights: (B,) weights, 0 for a row without `[SEG]` or without truth; by default 1 for each row with truth.
            A zero-weighted row keeps its place in the graph with a gradient of exactly 0, so that every process runs
            the same backward collectives.
        normalizer: n, if these rows are only a part of the batch: Σ w_b over the whole batch, divided by the number of
            its parts. The mean of the parts' losses is then the loss of the whole batch.
        bce_weight: weight of the BCE.
        dice_weight: weight of the Dice loss.
        dice_variant: see `dice_loss`.

    Returns:
        The loss and its parts.

    Raises:
        ValueError: if a row's shapes differ, or the numbers of rows do.
    """
    if row_weights is None:
        row_weights = torch.tensor([float(truth is not None) for truth in gt_masks])
    bce = mask_bce_loss(mask_logits, gt_masks)  # (B,)
    dice = dice_loss(mask_logits, gt_masks, variant=dice_variant)  # (B,)
    mean_bce = weighted_mean(bce, row_weights, normalizer)
    mean_dice = weighted_mean(dice, row_weights, normalizer)
    return MaskLosses(
        bce=mean_bce,
        dice=mean_dice,
        total=bce_weight * mean_bce + dice_weight * mean_dice,
        per_row=(bce_weight * bce + dice_weight * dice).detach(),
    )


def feature_distillation_loss(
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    row_weights: Tensor | None = None,
    normalizer: Tensor | None = None,
) -> Tensor:
    """Pull the student's prompt embedding to the teacher's: mean_C (e_student - stopgrad e_teacher)², mean over rows.

    Segmentation-feature distillation of the paper: the teacher answers without a chain of thought, so its `[SEG]`
    embedding shows what the mask decoder needs after the chain as well.

    Args:
        student_features: (B, C) projected `[SEG]` states.
        teacher_features: (B, C) features of the frozen teacher.
        row_weights: (B,) weights as in `mask_loss`.
        normalizer: n of `mask_loss`, if these rows are only a part of the batch.

    Returns:
        Scalar float32.

    Raises:
        ValueError: if the shapes differ.
    """
    if student_features.shape != teacher_features.shape or student_features.ndim != 2:
        raise ValueError(
            f"student features {tuple(student_features.shape)} and teacher features {tuple(teacher_features.shape)} "
            "must both be (B, C): was the teacher trained with another projector width?"
        )
    squared_error = (student_features.float() - teacher_features.detach().float()).square()  # (B, C)
    return weighted_mean(squared_error.mean(1), row_weights, normalizer)


def _clip_bce(mask_logits: Tensor, gt_masks: Tensor) -> Tensor:
    # Frames of one clip are of one size, so the mean over everything is the mean over pixels, then frames.
    return functional.binary_cross_entropy_with_logits(mask_logits, gt_masks.float())


def _clip_dice(mask_logits: Tensor, gt_masks: Tensor) -> Tensor:
    dice = _frame_dice(mask_logits, gt_masks, scale=1.0, smooth=1.0)  # (F,)
    has_truth = gt_masks.flatten(1).any(1).float()  # (F,)
    return (dice * has_truth).sum() / has_truth.sum().clamp(min=1)


def _clip_lisa_dice(mask_logits: Tensor, gt_masks: Tensor) -> Tensor:
    return _frame_dice(mask_logits, gt_masks, scale=1000.0, smooth=1e-6).mean()


def _frame_dice(mask_logits: Tensor, gt_masks: Tensor, *, scale: float, smooth: float) -> Tensor:
    """Return (F,) 1 - (2·Σpg/scale + smooth) / (Σp/scale + Σg/scale + smooth)."""
    probs, truth = mask_logits.sigmoid().flatten(1) / scale, gt_masks.float().flatten(1)  # (F, HW)
    overlap = 2 * (probs * truth).sum(1)
    return 1 - (overlap + smooth) / (probs.sum(1) + (truth / scale).sum(1) + smooth)


_DICE_VARIANTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"aurora": _clip_dice, "lisa": _clip_lisa_dice}


def _per_row(clip_loss: Callable[[Tensor, Tensor], Tensor], mask_logits: Masks, gt_masks: GtMasks) -> Tensor:
    """Return (B,), the loss of each row in float32."""
    if len(mask_logits) != len(gt_masks):
        raise ValueError(f"{len(mask_logits)} rows of mask_logits for {len(gt_masks)} rows of gt_masks")
    losses = []
    for row, (logits, truth) in enumerate(zip(mask_logits, gt_masks, strict=True)):
        if truth is None:
            losses.append(0.0 * logits.float().sum())
            continue
        if logits.shape != truth.shape or logits.ndim != 3:
            raise ValueError(
                f"row {row}: mask_logits {tuple(logits.shape)} and gt_masks {tuple(truth.shape)} must be the same "
                "(F, H, W): bring the logits to the frames' size (Segmenter.postprocess)"
            )
        losses.append(clip_loss(logits.float(), truth))
    return torch.stack(losses)


def weighted_mean(per_row: Tensor, row_weights: Tensor | None, normalizer: Tensor | None = None) -> Tensor:
    """Return Σ w_b·per_row_b / n of (B,) values; weights and n as in `mask_loss`, except that all weights default to 1.

    Raises:
        ValueError: if the numbers of rows differ.
    """
    weights = torch.ones_like(per_row) if row_weights is None else row_weights.to(per_row)
    if weights.shape != per_row.shape:
        raise ValueError(f"row_weights has shape {tuple(weights.shape)}, expected {tuple(per_row.shape)}")
    return (per_row * weights).sum() / (weights.sum().clamp(min=1) if normalizer is None else normalizer)
