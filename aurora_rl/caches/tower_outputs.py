"""The disk cache of frozen towers: what they have computed for each clip, filled by whichever run comes first.

    <folder>/<SHA-256 of the towers>-<dtype that they multiply in>/
        video.safetensors                       the output for no clip, whose form all others have
        <SHA-256 of the clip>.video.safetensors

A clip is named by the hash of the tensors that the towers read, and the towers by that of their weights and configs.
Other weights, other limits of a frame's area or another version of transformers therefore find nothing, and never what
is not theirs. A file gets its name when it is complete, and is compared with the hash in it whenever it is read, so
any number of processes may share a folder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from aurora_rl.files.atomic import write_whole
from aurora_rl.files.plain import check_plain_file, parse_json
from aurora_rl.models.mllm.clip_outputs import FIELDS, put_together, taken_apart
from aurora_rl.models.mllm.sharing import TowerSharingMixin
from aurora_rl.models.mllm.tower_fingerprint import towers_fingerprint
from aurora_rl.models.tensor_digest import tensor_digest
from aurora_rl.models.tower_outputs import ClipOutput, TowerRun

logger = logging.getLogger(__name__)

METADATA_KEY = "tower_outputs"


class TowerCacheError(ValueError):
    """Kept outputs of towers cannot be used."""


class TowerCache:
    """Outputs of one model's towers on disk.

    Args:
        folder: root of the cache.
        towers: fingerprint of the towers.
    """

    def __init__(self, folder: str | Path, towers: str) -> None:
        self.folder = Path(folder)
        self.towers = towers
        self._is_writable = True

    @classmethod
    def of_model(cls, folder: str | Path, model: TowerSharingMixin) -> TowerCache:
        """Return the cache of a model as it is now; all processes must call it."""
        return cls(folder, towers_fingerprint(model))

    def read_form(self, run: TowerRun) -> Any | None:
        """Return the tower's output for no clip; None if it is not there; errors as in `read`."""
        found = self._read(run, "")
        if found is None:
            return None
        return put_together(*found)

    def read(self, run: TowerRun, clip: str) -> ClipOutput | None:
        """Return what the tower has computed for a clip; None if it is not there.

        Raises:
            TowerCacheError: naming a file that is damaged or lies in another's place.
        """
        found = self._read(run, clip)
        return None if found is None else found[0]

    def write(self, run: TowerRun, form: Any, parts: Mapping[str, ClipOutput]) -> None:
        """Write what the tower has computed for some clips, where it is not there; a full disk ends that for good."""
        of_no_clip, *written_in = taken_apart(form)
        for clip, part in ({"": of_no_clip} | dict(parts)).items():
            self._write(run, clip, part, *written_in)

    def _path(self, run: TowerRun, clip: str) -> Path:
        folder = self.folder / f"{self.towers}-{_name(run.precision)}"
        return folder / f"{f'{clip}.' if clip else ''}{run.modality}.safetensors"

    def _facts(self, run: TowerRun, clip: str) -> dict[str, str]:
        return {"towers": self.towers, "precision": _name(run.precision), "modality": run.modality, "clip": clip}

    def _read(self, run: TowerRun, clip: str) -> tuple[ClipOutput, str, str] | None:
        path = self._path(run, clip)
        try:
            check_plain_file(path)
            with safe_open(path, framework="pt") as file:
                facts = parse_json((file.metadata() or {})[METADATA_KEY])
                tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            if facts.pop("digest") != tensor_digest(tensors.items()):
                raise ValueError("its bytes are not those that were written")
            field, form = str(facts.pop("field")), str(facts.pop("form"))
            if facts != self._facts(run, clip) or field not in FIELDS:
                raise ValueError("it belongs to another clip or to other towers")
            return _part(tensors, run.device), field, form
        except FileNotFoundError:
            return None
        except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise TowerCacheError(f"{path} cannot be used ({error}): delete it, and it is computed again") from error

    def _write(self, run: TowerRun, clip: str, part: ClipOutput, field: str, form: str) -> None:
        path = self._path(run, clip)
        if not self._is_writable or path.exists():
            return
        tensors = _tensors(part)
        facts = {**self._facts(run, clip), "field": field, "form": form}
        try:
            facts["digest"] = tensor_digest(tensors.items())
            write_whole(path, save(tensors, {METADATA_KEY: json.dumps(facts)}))
        except OSError as error:
            self._is_writable = False
            logger.warning("%s; this process keeps no more outputs of the towers on disk", error)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tensors(part: ClipOutput) -> dict[str, torch.Tensor]:
    """Return a part's tensors by their names in a file, in the names' order."""
    levels = {f"level.{number:03d}": level for number, level in enumerate(part.levels)}
    tensors = {"features": part.features, **levels} | ({} if part.mask is None else {"mask": part.mask})
    return {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}


def _part(tensors: Mapping[str, torch.Tensor], device: torch.device) -> ClipOutput:
    on_device = {name: tensor.to(device) for name, tensor in tensors.items()}
    levels = tuple(on_device[name] for name in sorted(on_device) if name.startswith("level."))
    return ClipOutput(on_device["features"], levels, on_device.get("mask"))
