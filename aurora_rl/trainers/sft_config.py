"""Arguments of `AuroraSFTTrainer` beside TRL's own."""

import dataclasses

from trl import SFTConfig

from aurora_rl.logs import is_terminal
from aurora_rl.trainers.cpu_device import CPUDeviceMixin
from aurora_rl.trainers.interruption import STOP_GRACE_HELP, STOP_GRACE_S
from aurora_rl.trainers.router_loss import ROUTER_LOSS_HELP
from aurora_rl.trainers.watched import WatchedMixin


@dataclasses.dataclass
class AuroraSFTConfig(WatchedMixin, CPUDeviceMixin, SFTConfig):
    """TRL's `SFTConfig` plus the weights of the mask loss and of the distillation.

    Attributes:
        ce_weight: weight of the cross-entropy over completion tokens.
        mask_bce_weight: weight of the masks' binary cross-entropy.
        mask_dice_weight: weight of the masks' Dice loss.
        dice_variant: formula of the Dice loss, see `losses.dice_loss`.
        distill_weight: λ of the feature distillation, where there is a teacher; 0 trains without one.
        router_aux_loss_coef: coefficient of the router loss of a model with experts; 0 trains without it, as GRPO does:
            under LoRA the routers are frozen, and an even load is no aim on the narrow data of one task. None, in YAML
            null, takes the checkpoint's own.
        environment_factory: what makes the environment whose tools the prompts show and rows call in their column
            `calls`, see `rollout.calls`; None for no tools.
        stop_grace_s: seconds that a rank may take from SIGTERM to the end of its step. After that it exits without a
            checkpoint, because another rank may have failed, and waiting for it would never end. A single process has
            no such limit.
    """

    ce_weight: float = dataclasses.field(
        default=1.0, metadata={"help": "Weight of the cross-entropy over completion tokens."}
    )
    mask_bce_weight: float = dataclasses.field(
        default=2.0, metadata={"help": "Weight of the masks' binary cross-entropy."}
    )
    mask_dice_weight: float = dataclasses.field(default=0.5, metadata={"help": "Weight of the masks' Dice loss."})
    dice_variant: str = dataclasses.field(
        default="aurora", metadata={"help": "Formula of the Dice loss: aurora or lisa."}
    )
    distill_weight: float = dataclasses.field(
        default=1.0, metadata={"help": "Weight of the feature distillation, where there is a teacher."}
    )
    router_aux_loss_coef: float | None = dataclasses.field(default=0.0, metadata={"help": ROUTER_LOSS_HELP})
    environment_factory: str | None = dataclasses.field(
        default=None,
        metadata={"help": "Tools that rows call in `calls`: a class as 'package.module:Name' or 'path/mine.py:Name'."},
    )
    stop_grace_s: float = dataclasses.field(default=STOP_GRACE_S, metadata={"help": STOP_GRACE_HELP})

    def __post_init__(self) -> None:
        if self.disable_tqdm is None:  # type: ignore[has-type]
            self.disable_tqdm = not is_terminal()
        # TRL would drop the columns that name the media files; the collator makes the labels.
        self.remove_unused_columns = False
        given = self.dataset_kwargs or {}  # type: ignore[has-type]
        self.dataset_kwargs = {**given, "skip_prepare_dataset": True}
        super().__post_init__()
