"""What frozen towers have computed for each clip, kept while a generation batch lasts.

Prefill, scoring, reference and training passes read the same clips. A frozen tower without dropout computes the same
for a clip in each of them, so that the first pass computes it and the others are given it. Where a folder is named,
outputs also outlast the batch and the run (`caches.tower_outputs`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel

from aurora_rl.models.sharding import true_on_all
from aurora_rl.models.tensor_digest import tensor_digest


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


@dataclasses.dataclass(frozen=True)
class TowerRun:
    """A tower in a forward pass.

    Attributes:
        modality: what the tower reads.
        precision: dtype that it multiplies in, which autocast may have chosen.
        device: device of its outputs.
    """

    modality: str
    precision: torch.dtype
    device: torch.device


class ClipDigest(dict[str, torch.Tensor]):
    """A clip that is known by the digest of its features alone, which are in a batch with those of other clips.

    Attributes:
        digest: `clip_digest` of the features.
    """

    def __init__(self, digest: str) -> None:
        super().__init__()
        self.digest = digest


def clip_digest(features: Mapping[str, torch.Tensor]) -> str:
    """Return a hash of all that the towers read of a clip; other limits of a frame's area give another one."""
    return features.digest if isinstance(features, ClipDigest) else tensor_digest(sorted(features.items()))


class OutputsOnDisk(Protocol):
    """Outputs of a model's towers that outlast a run; a clip is named by `clip_digest`."""

    def read_form(self, run: TowerRun) -> Any | None:
        """Return the tower's output for no clip; None if it is not there."""

    def read(self, run: TowerRun, clip: str) -> ClipOutput | None:
        """Return what the tower has computed for a clip; None if it is not there."""

    def write(self, run: TowerRun, form: Any, parts: Mapping[str, ClipOutput]) -> None:
        """Write what the tower has computed for some clips, and its output for no clip, where they are not there."""


class TowerOutputs:
    """Outputs of the towers for the clips of a batch, which end with it.

    Args:
        in_step: whether weights are spread over the processes, which must then call the same modules. Clips decide
            nothing in that case: the towers run in every pass until `complete`, and in none after it. With outputs on
            disk they run in a pass unless each process has all of its clips there.
        autocast: makes the context that the towers run in, in whichever pass; by default that of the pass.

    Attributes:
        disk: outputs that outlast the batch; None where there are none.
    """

    disk: OutputsOnDisk | None = None

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
        self._digests: dict[int, str] = {}

    def complete(self) -> None:
        """Say that every process has run its towers on all of its clips."""
        self._complete.update(self._forms)

    def reopen(self) -> None:
        """Say that clips come on which no process has run its towers yet."""
        self._complete.clear()

    def read(self, run: TowerRun, clips: Sequence[Mapping[str, torch.Tensor]]) -> tuple[Any, list[ClipOutput]] | None:
        """Return a tower's output for no clip, and what it has computed for each of some; None if it has to run.

        Args:
            run: the tower in this pass.
            clips: features of the clips.

        Raises:
            RuntimeError: if other processes rely on a clip that has not been computed.
        """
        modality, is_over = run.modality, run.modality in self._complete
        if self.disk is not None and not is_over:
            self._load(self.disk, run, clips)
        kept = self._kept.get(modality, {})
        has_all = modality in self._forms and all(id(clip) in kept for clip in clips)
        if self.in_step and not is_over and (self.disk is None or not true_on_all(has_all)):
            return None
        if has_all:
            return self._forms[modality], [kept[id(clip)] for clip in clips]
        if self.in_step:
            raise RuntimeError(
                f"a clip's {modality} was never computed in this generation batch, and the other processes do not run "
                "the tower now: every pass must be over clips of the batch's first pass"
            )
        return None

    def keep(
        self,
        run: TowerRun,
        clips: Sequence[Mapping[str, torch.Tensor]],
        form: Any,
        parts: Sequence[ClipOutput],
    ) -> None:
        """Keep what a tower has computed for some clips; what is kept of a clip already stays.

        Args:
            run: the tower in this pass.
            clips: features of the clips.
            form: the tower's output for no clip.
            parts: its output for each clip.
        """
        self._forms.setdefault(run.modality, form)
        for clip, part in zip(clips, parts, strict=True):
            self._put(run.modality, clip, part)
        if self.disk is not None:
            self.disk.write(run, form, dict(zip(map(self._digest, clips), parts, strict=True)))

    def _put(self, modality: str, clip: Mapping[str, torch.Tensor], part: ClipOutput) -> None:
        self._clips[id(clip)] = clip
        self._kept.setdefault(modality, {}).setdefault(id(clip), part)

    def _load(self, disk: OutputsOnDisk, run: TowerRun, clips: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """Bring into memory what the disk has of some clips."""
        if run.modality not in self._forms and (form := disk.read_form(run)) is not None:
            self._forms[run.modality] = form
        for clip in clips:
            if id(clip) in self._kept.get(run.modality, {}):
                continue
            if (part := disk.read(run, self._digest(clip))) is not None:
                self._put(run.modality, clip, part)

    def _digest(self, clip: Mapping[str, torch.Tensor]) -> str:
        self._clips[id(clip)] = clip
        if id(clip) not in self._digests:
            self._digests[id(clip)] = clip_digest(clip)
        return self._digests[id(clip)]

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
            self._forms.setdefault(modality, lender._forms[modality])
            self._put(modality, clip, part)

    def keep_only(self, clips: Iterable[Mapping[str, torch.Tensor]]) -> None:
        """Drop what is kept of all other clips."""
        wanted = {id(clip) for clip in clips}
        self._clips = {clip: features for clip, features in self._clips.items() if clip in wanted}
        self._digests = {clip: digest for clip, digest in self._digests.items() if clip in wanted}
        for modality, kept in self._kept.items():
            self._kept[modality] = {clip: part for clip, part in kept.items() if clip in wanted}

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that are kept."""
        parts = [part for kept in self._kept.values() for part in kept.values()]
        tensors = [t for part in parts for t in (part.features, *part.levels, part.mask) if t is not None]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())


def difference_between_passes(modules: Iterable[tuple[str, nn.Module]]) -> str | None:
    """Say why modules may give other outputs in another pass, over policy and reference; None if they cannot.

    They cannot if no weight of theirs is trained, no adapter lies in them that one pass has on and another off, and
    nothing in them is random or depends on the batch.

    Args:
        modules: the modules, by name.
    """
    for name, module in modules:
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            return f"{name} is trained"
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            return f"{name} has an adapter"
        if isinstance(module, _BatchNorm):
            return f"{name} normalises over the batch"
        drops = isinstance(module, _DropoutNd) and module.p > 0
        if drops or (isinstance(module, PreTrainedModel) and _drops(module.config)):
            return f"{name or 'the model'} has dropout"
    return None


def _drops(config: Any) -> bool:
    """Tell whether a model's config asks for dropout, which transformers' models may apply without a module for it."""
    return any("drop" in name and isinstance(value, (int, float)) and value > 0 for name, value in vars(config).items())
