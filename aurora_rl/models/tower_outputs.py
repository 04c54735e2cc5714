"""What frozen towers have computed for each clip, kept while a generation batch lasts.

Prefill, scoring, reference and training passes read the same clips. A frozen tower without dropout computes the same
for a clip in each of them, so that the first pass computes it and the others are given it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel


@dataclasses.dataclass(frozen=True)
class ClipOutput:
    """What a tower has computed for one clip.

    Attributes:
        features: (N, D), one for each placeholder; (T, D), padded, where there is a `mask`.
        levels: features for deeper layers of the language model, each (N, D).
        mask: (T,) which of the features placeholders take; None for all.
    """

    features: torch.Tensor
    levels: tuple[torch.Tensor, ...] = ()
    mask: torch.Tensor | None = None


class TowerOutputs:
    """Outputs of the towers for the clips of a batch, which end with it.

    Args:
        in_step: whether weights are spread over the processes, which must then call the same modules. Clips decide
            nothing in that case: the towers run in every pass until `complete`, and in none after it.
        autocast: makes the context that the towers run in, in whichever pass; by default that of the pass.
    """

    def __init__(
        self,
        *,
        in_step: bool = False,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self.in_step = in_step
        self.autocast = autocast
        self._complete: set[str] = set()
        self._forms: dict[str, Any] = {}  # by modality, a tower's output for no clip
        self._kept: dict[str, dict[int, ClipOutput]] = {}  # by modality and by the id of a clip's features
        self._clips: dict[int, Mapping[str, torch.Tensor]] = {}  # which keeps the ids from being given anew

    def complete(self) -> None:
        """Say that every process has run its towers on all of its clips."""
        self._complete.update(self._forms)

    def read(self, modality: str, clips: Sequence[Mapping[str, torch.Tensor]]) -> tuple[Any, list[ClipOutput]] | None:
        """Return a tower's output for no clip, and what it has computed for each of some; None if it has to run.

        Args:
            modality: what the tower reads.
            clips: features of the clips.

        Raises:
            RuntimeError: if other processes rely on a clip that has not been computed.
        """
        if modality not in (self._complete if self.in_step else self._forms):
            return None
        kept = self._kept.get(modality, {})
        if all(id(clip) in kept for clip in clips):
            return self._forms[modality], [kept[id(clip)] for clip in clips]
        if self.in_step:
            raise RuntimeError(
                f"a clip's {modality} was never computed in this generation batch, and the other processes do not run "
                "the tower now: every pass must be over clips of the batch's first pass"
            )
        return None

    def keep(
        self,
        modality: str,
        clips: Sequence[Mapping[str, torch.Tensor]],
        form: Any,
        parts: Sequence[ClipOutput],
    ) -> None:
        """Keep what a tower has computed for some clips; what is kept of a clip already stays.

        Args:
            modality: what the tower reads.
            clips: features of the clips.
            form: the tower's output for no clip.
            parts: its output for each clip.
        """
        self._forms.setdefault(modality, form)
        for clip, part in zip(clips, parts, strict=True):
            self._clips[id(clip)] = clip
            self._kept.setdefault(modality, {}).setdefault(id(clip), part)

    def without_clips(self) -> TowerOutputs:
        """Return a place for further clips, which knows the form of what the towers that have run give."""
        further = TowerOutputs(autocast=self.autocast)
        further._forms.update(self._forms)
        return further

    def borrow(
        self,
        lender: TowerOutputs,
        modality: str,
        clip: Mapping[str, torch.Tensor],
        like: Mapping[str, torch.Tensor],
    ) -> None:
        """Keep for a clip what a tower has computed for one that is like it, if that is kept.

        Args:
            lender: place where it is kept.
            modality: what the tower reads, the same in both clips.
            clip: features of the clip.
            like: features of the one that is like it.
        """
        part = lender._kept.get(modality, {}).get(id(like))
        if part is not None:
            self.keep(modality, [clip], lender._forms[modality], [part])

    def keep_only(self, clips: Iterable[Mapping[str, torch.Tensor]]) -> None:
        """Drop what is kept of all other clips."""
        wanted = {id(clip) for clip in clips}
        self._clips = {clip: features for clip, features in self._clips.items() if clip in wanted}
        for modality, kept in self._kept.items():
            self._kept[modality] = {clip: part for clip, part in kept.items() if clip in wanted}

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that are kept."""
        parts = [part for kept in self._kept.values() for part in kept.values()]
        tensors = [t for part in parts for t in (part.features, *part.levels, part.mask) if t is not None]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())


def compute_the_same_always(modules: Iterable[nn.Module]) -> bool:
    """Tell whether modules give the same outputs in all passes of a generation batch, over policy and reference.

    That is, no weight of theirs is trained, no adapter lies in them that one pass has on and another off, and nothing
    in them is random or depends on the batch.
    """
    for module in modules:
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            return False
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper, _BatchNorm)):
            return False
        if isinstance(module, _DropoutNd) and module.p > 0:
            return False
        if isinstance(module, PreTrainedModel) and _drops(module.config):
            return False
    return True


def _drops(config: Any) -> bool:
    """Tell whether a model's config asks for dropout, which transformers' models may apply without a module for it."""
    return any("drop" in name and isinstance(value, (int, float)) and value > 0 for name, value in vars(config).items())
