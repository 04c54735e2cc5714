"""Batches are made here from encoded samples, for supervised fine-tuning and for rollouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from aurora_rl.data.sample import AVSample
from aurora_rl.models.control_tokens import check_target, naming
from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.models.head_tokens import find_last_token
from aurora_rl.models.tower_outputs import clip_digest
from aurora_rl.tasks.base import Target


class SFTCollator:
    """Rows of the dataset become one right-padded batch with labels on the completion only.

    For a task with a head, the batch also holds `head_name`, `seg_index`, the frames of `collate_frames`, and for each
    row its `seg_weights` (0 without the head's token or without true masks) and `gt_masks` (None without them). It
    holds `annotated_frames` where a row has frames that are not annotated. In a run on several data sets each batch
    holds the names of its rows' sets, `datasets`, and with `names_clips` those of their clips, `clip_digests`.

    Args:
        encode: encoder that turns a sample into tensors.
        seg_token_id: id of the token at which the task's head predicts; None for a task without a head.
        target: function from a sample to its completion, one of `tasks.targets`.
        names_clips: whether outputs of the towers are read from a cache.
        earlier_turns: function from a sample to the turns before its target: token ids, and whether they are learned.
    """

    def __init__(
        self,
        encode: SampleEncoder,
        seg_token_id: int | None,
        target: Callable[[AVSample], Target],
        *,
        names_clips: bool = False,
        earlier_turns: Callable[[AVSample], Sequence[tuple[list[int], bool]]] = lambda _: (),
    ) -> None:
        self.names_clips = names_clips
        self.earlier_turns = earlier_turns
        self.encode = encode
        self.seg_token_id = seg_token_id
        self.target = target

    @property
    def head(self) -> str | None:
        """Name of the head that the batches train; None for a task without one."""
        return self.encode.task.head

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        # One row after the other: tools that a row calls are handed its clip, of which the last one read is kept.
        both = [(self.encode(sample), self._tokenize(sample)) for sample in map(AVSample.from_row, rows)]
        encoded, completions = [item for item, _ in both], [completion for _, completion in both]
        batch = right_pad(
            [item.prompt.prompt_ids for item in encoded],
            [ids for ids, _ in completions],
            self.encode.tokenizer.pad_token_id,
            learned=[is_learned for _, is_learned in completions],
        )
        media = self.encode.family.collate_features([item.prompt.features for item in encoded], range(len(encoded)))
        datasets = [item.sample.dataset for item in encoded]
        of_sets = {"datasets": datasets} if any(datasets) else {}
        digests = [clip_digest(item.prompt.features) for item in encoded] if self.names_clips else []
        of_clips = {"clip_digests": digests} if digests else {}
        return {**batch, **media, **self._head_inputs(encoded, batch), **of_sets, **of_clips}

    def _head_inputs(self, encoded: Sequence[EncodedSample], batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Return what the head reads and is trained on: nothing, if the task has no head."""
        frames = collate_frames(encoded)
        if not frames or self.seg_token_id is None:
            return {}
        seg_index, has_seg = find_last_token(
            batch["input_ids"],
            batch["attention_mask"] * (batch["labels"] != -100),
            self.seg_token_id,
            num_completion_tokens=batch["input_ids"].size(1),
        )
        has_truth = torch.tensor([item.gt_masks is not None for item in encoded])
        truth: dict[str, Any] = {"gt_masks": [item.gt_masks for item in encoded]}
        if any(item.annotated_frames is not None for item in encoded):
            truth["annotated_frames"] = [item.annotated_frames for item in encoded]
        inputs = {**frames, "seg_index": seg_index, "head_name": self.encode.task.head}
        return {**inputs, "seg_weights": (has_seg & has_truth).float(), **truth}

    def check(self, samples: Iterable[AVSample]) -> None:
        """Check the targets of all rows before the first one is needed.

        Raises:
            ControlTokenError: naming a row whose category or chain holds a control token.
            ValueError: if a row has no such target.
        """
        for sample in samples:
            self._checked_target(sample)

    def _checked_target(self, sample: AVSample) -> Target:
        target = self.target(sample)
        with naming(sample):
            answer_token = self.encode.task_of(sample).answer_token
            check_target(self.encode.tokenizer, target, answer_token=answer_token)
        return target

    def _tokenize(self, sample: AVSample) -> tuple[list[int], list[bool]]:
        """Return the token ids of a completion with its end of turn, and which of them are learned.

        Both parts of a target are tokenized as one text, as the model would write it. A token that belongs to both the
        given and the learned part is learned (in many vocabularies a full stop and the line break after it are one).
        """
        tokenizer, target = self.encode.tokenizer, self._checked_target(sample)
        tokens = tokenizer(target.given + target.learned, add_special_tokens=False, return_offsets_mapping=True)
        num_given = sum(end <= len(target.given) for _, end in tokens.offset_mapping)
        said = [*tokens.input_ids, tokenizer.eos_token_id]
        parts = [*self.earlier_turns(sample), (said[:num_given], False), (said[num_given:], True)]
        return (
            [token for ids, _ in parts for token in ids],
            [is_learned for ids, is_learned in parts for _ in ids],
        )


def right_pad(
    prompts: list[list[int]],
    completions: list[list[int]],
    pad_token_id: int,
    *,
    learned: list[list[bool]] | None = None,
) -> dict[str, torch.Tensor]:
    """Join prompts to completions: `input_ids`, `attention_mask` and `labels`, each (B, L).

    Args:
        prompts: B lists of token ids, without labels.
        completions: B lists of token ids, with labels.
        pad_token_id: id of the padding at the right.
        learned: whether each token of the completions has a label; all have one by default.
    """
    length = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
    input_ids = torch.full((len(prompts), length), pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, -100)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        end = len(prompt) + len(completion)
        input_ids[row, :end] = torch.tensor(prompt + completion)
        attention_mask[row, :end] = 1
        labels[row, len(prompt) : end] = torch.tensor(completion)
        if learned is not None:
            labels[row, len(prompt) : end][~torch.tensor(learned[row])] = -100
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def distinct_media(encoded: Sequence[EncodedSample]) -> tuple[list[Mapping[str, torch.Tensor]], list[int]]:
    """Return the media tensors of a batch's distinct samples, in order of first appearance, and each row's index."""
    first = {id(item.prompt.features): item.prompt.features for item in encoded}
    order = {key: index for index, key in enumerate(first)}
    return list(first.values()), [order[id(item.prompt.features)] for item in encoded]


def with_shared_media(rows: Sequence[EncodedSample]) -> list[EncodedSample]:
    """Give rows on one clip one set of media tensors, so that `distinct_media` finds one clip, and the towers run once.

    Rows that have the clip in a form of their own, such as with other limits of a frame's area, keep it.
    """
    known: dict[tuple[str, str], list[dict[str, torch.Tensor]]] = {}
    shared = []
    for row in rows:
        of_clip = known.setdefault(row.sample.clip_key, [])
        features = next((other for other in of_clip if _are_equal(other, row.prompt.features)), None)
        if features is None:
            of_clip.append(row.prompt.features)
            shared.append(row)
        else:
            shared.append(dataclasses.replace(row, prompt=dataclasses.replace(row.prompt, features=features)))
    return shared


def _are_equal(some: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in some.items())


def collate_frames(encoded: Sequence[EncodedSample]) -> dict[str, torch.Tensor]:
    """Collate the head's inputs: each distinct clip's frames once, and the index of each row's clip.

    The result is empty where the rows have no such inputs, that is, for a task that is answered in words alone.
    """
    clips = {item.sample.clip_key: item.frame_inputs for item in encoded if item.frame_inputs is not None}
    if not clips:
        return {}
    order = {key: index for index, key in enumerate(clips)}
    with torch.autocast("cpu", enabled=False):  # which refuses float16, the dtype of cached embeddings
        frames = torch.cat(list(clips.values()))
    return {
        "seg_frames": frames,
        "seg_frame_counts": torch.tensor([len(frames) for frames in clips.values()]),
        "seg_clip_index": torch.tensor([order[item.sample.clip_key] for item in encoded]),
    }
