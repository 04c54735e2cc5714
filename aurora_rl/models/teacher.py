"""The frozen teacher of segmentation-feature distillation: its prompt embedding at the `[SEG]` of a forced answer.

The teacher (stage 0) answers "It is drum [SEG]." without reasoning, so its state at `[SEG]` holds what the mask decoder
needs, undiluted by a chain of thought. The student, which reasons, is pulled towards it (`losses`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from aurora_rl.data.sample import AVSample
from aurora_rl.models.checkpoint_files import check_checkpoint_files, read_adapter_config
from aurora_rl.models.collate import SFTCollator
from aurora_rl.models.encoding import PromptOptions, SampleEncoder
from aurora_rl.models.grounding import segmentation_model, without_projection
from aurora_rl.models.loading import LoadedModel
from aurora_rl.tasks.prompts import teacher_answer
from aurora_rl.tasks.targets import forced_answer

#: Keys of an `SFTCollator` batch that the features do not need: labels, and inputs of the mask decoder.
UNREAD = ("labels", "gt_masks", "seg_weights", "seg_frames", "seg_frame_counts", "seg_clip_index")


class Teacher:
    """A trained and frozen model that computes features.

    Args:
        loaded: the model; it is put in eval mode and its weights are frozen.
        encode: encoder of the samples.
    """

    def __init__(self, loaded: LoadedModel, encode: SampleEncoder) -> None:
        self.model = loaded.model.eval().requires_grad_(False)
        self.collate_rows = SFTCollator(encode, loaded.seg_token_id, forced_answer)

    def to(self, device: torch.device | str) -> Teacher:
        """Compute on this device from now on."""
        self.model.to(device)
        return self

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate rows of the dataset into the inputs of `features`."""
        batch = self.collate_rows(rows)
        return {name: value for name, value in batch.items() if name not in UNREAD}

    @torch.no_grad()
    def features(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the prompt embeddings (B, C) float32 of a batch from `collate`, on the inputs' device."""
        with without_projection(segmentation_model(self.model).get_output_embeddings()):
            return self.model(**inputs).sparse_prompt_embeddings.float()

    def features_of(self, samples: Sequence[AVSample]) -> torch.Tensor:
        """Return the features (B, C) float32 of samples, on the CPU."""
        inputs = self.collate([sample.to_row() for sample in samples])
        return self.features({name: tensor.to(self.model.device) for name, tensor in inputs.items()}).cpu()


def teacher_fingerprint(name_or_path: str, options: PromptOptions, *, dtype: str) -> str:
    """Hash of all that the features depend on, but the clips: weights, dtype, and how a clip is put to the teacher."""
    parts = [
        checkpoint_fingerprint(name_or_path),
        dtype,
        dataclasses.astuple(options),
        teacher_answer("{category}"),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def checkpoint_fingerprint(name_or_path: str) -> str:
    """Hash of a checkpoint's weights and configs, those of the model beneath an adapter included.

    Raises:
        OSError: if there is no such checkpoint.
    """
    check_checkpoint_files(name_or_path)
    adapter = find_adapter_config_file(name_or_path)
    config_file = Path(adapter or cached_file(name_or_path, "config.json"))
    files = sorted([config_file, *config_file.parent.glob("*.safetensors")])
    parts = [[file.name, _file_hash(file)] for file in files]
    if adapter:
        parts.append(["base", checkpoint_fingerprint(read_adapter_config(config_file)["base_model_name_or_path"])])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
