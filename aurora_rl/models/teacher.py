"""The frozen teacher of segmentation-feature distillation: its prompt embedding at the `[SEG]` of a forced answer.

The teacher (stage 0) answers "It is drum [SEG]." without reasoning, so its state at `[SEG]` holds what the mask decoder
needs, undiluted by a chain of thought. The student, which reasons, is pulled towards it (`losses`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from aurora_rl.data.sample import AVSample
from aurora_rl.files.fingerprint import fingerprint_values
from aurora_rl.models.checkpoint_files import fingerprint_checkpoint
from aurora_rl.models.collate import SFTCollator
from aurora_rl.models.encoding import PromptOptions, SampleEncoder
from aurora_rl.models.grounding import segmentation_model, without_projection
from aurora_rl.models.heads import MaskHead
from aurora_rl.models.loading import LoadedModel
from aurora_rl.tasks.base import Target, Task
from aurora_rl.tasks.prompts import teacher_answer
from aurora_rl.tasks.reference_segmentation import ReferenceSegmentation

#: Keys of an `SFTCollator` batch that the features do not need: labels, and inputs of the mask decoder.
UNREAD = (
    *("labels", "gt_masks", "annotated_frames", "seg_weights", "head_name"),
    "datasets",
    *("seg_frames", "seg_frame_counts", "seg_clip_index"),
)


class Teacher:
    """A trained and frozen model that computes features.

    Args:
        loaded: the model; it is put in eval mode and its weights are frozen.
        encode: encoder of the samples; its task has a target "teacher", the forced answer.

    Raises:
        ValueError: if the task has no such target.
    """

    def __init__(self, loaded: LoadedModel, encode: SampleEncoder) -> None:
        self.model = loaded.model.eval().requires_grad_(False)
        self.collate_rows = SFTCollator(encode, loaded.seg_token_id, teacher_target(encode.task))

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
            return self.model(**inputs, head_name=MaskHead.name).sparse_prompt_embeddings.float()

    def features_of(self, samples: Sequence[AVSample]) -> torch.Tensor:
        """Return the features (B, C) float32 of samples, on the CPU."""
        inputs = self.collate([sample.to_row() for sample in samples])
        return self.features({name: tensor.to(self.model.device) for name, tensor in inputs.items()}).cpu()


def teacher_target(task: Task) -> Callable[[AVSample], Target]:
    """Return the target on which a task's teacher is trained, its answer without reasoning.

    Raises:
        ValueError: if the task has none, or no mask head, whose prompts are what is distilled.
    """
    if task.head != MaskHead.name:
        raise ValueError(f"the task {task.name} has no masks, whose prompts are distilled: drop `teacher`")
    if "teacher" not in task.targets():
        raise ValueError(f"the task {task.name} has no target 'teacher', whose features are distilled: drop `teacher`")
    return task.targets()["teacher"]


def fingerprint_teacher(
    name_or_path: str, options: PromptOptions, *, dtype: str, task: str = ReferenceSegmentation.__name__
) -> str:
    """Hash all that determines the features except the clips: weights, dtype, the prompt's options, and the task."""
    is_usual = task == ReferenceSegmentation.__name__
    answer = teacher_answer("{category}") if is_usual else task
    prompt = dataclasses.astuple(options)
    if not options.drop_sound:  # files of versions without this option, the last one, keep their names
        prompt = prompt[:-1]
    parts = [fingerprint_checkpoint(name_or_path), dtype, prompt, answer]
    return fingerprint_values(parts)
