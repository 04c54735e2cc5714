"""From samples to tensors: media -> `EncodedSample` (one row, any order) -> batches for SFT and for rollouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from aurora_rl.data.clip_reader import ClipReader
from aurora_rl.data.media import loudness_dbfs
from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.data.targets import Target
from aurora_rl.models.control_tokens import check_references, check_target, naming
from aurora_rl.models.mllm import EncodedPrompt, MLLMFamily
from aurora_rl.models.seg_tokens import find_seg
from aurora_rl.prompts import DEFAULT_INSTRUCTION, build_messages


@dataclasses.dataclass(frozen=True)
class EncodedSample:
    """A sample as the model reads it, with the truth it is scored against.

    Attributes:
        sample: the row it comes from.
        prompt: token ids and media tensors.
        frame_inputs: (F, ...) what the mask decoder sees of each frame.
        gt_masks: (F, H, W) bool.
        loudness_dbfs: RMS of the clip's loudest 100 ms.
    """

    sample: AVSample
    prompt: EncodedPrompt
    frame_inputs: torch.Tensor
    gt_masks: torch.Tensor
    loudness_dbfs: float


@dataclasses.dataclass(frozen=True)
class PromptOptions:
    """How a sample is put to the model; the same for training, rollouts and evaluation.

    Attributes:
        instruction: user text with a `{reference}` field.
        system_prompt: optional system message.
        min_pixels: lower limit of a frame's area for the vision tower, in pixels.
        max_pixels: upper limit of a frame's area for the vision tower, in pixels.
    """

    instruction: str = DEFAULT_INSTRUCTION
    system_prompt: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None


class SampleEncoder:
    """Reads a sample's media and runs the family's processor on it.

    Args:
        family: the model's family.
        processor: the checkpoint's processor.
        frame_inputs: maps (sample, clip) to the mask decoder's inputs (F, ...): a frame encoder, or its cache.
        options: how the sample is put to the model.
        load: reads the media; replaced by ablations that mute or blank a clip. A `ClipReader` by default.
        uses_gpu: whether `frame_inputs` runs an encoder on a GPU, which no other thread than the model's may do: it
            would take memory that the model has by then.
    """

    def __init__(
        self,
        family: MLLMFamily,
        processor: ProcessorMixin,
        frame_inputs: Callable[[AVSample, AVClip], torch.Tensor],
        *,
        options: PromptOptions | None = None,
        load: Callable[[AVSample], AVClip] | None = None,
        uses_gpu: bool = False,
    ) -> None:
        self.family = family
        self.processor = processor
        self.frame_inputs = frame_inputs
        self.options = options or PromptOptions()
        self.load = load or ClipReader()
        self.uses_gpu = uses_gpu

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.processor.tokenizer

    def check(self, samples: Sequence[AVSample]) -> None:
        """Check what rows ask before the first clip is read; raises a `ControlTokenError` that names the row."""
        first = {sample.reference: sample for sample in reversed(samples)}  # thousands of rows ask the same
        for sample in first.values():
            with naming(sample):
                self.check_references([sample.reference])

    def check_references(self, references: Iterable[str]) -> None:
        """Check what is to be asked; raises a `ControlTokenError`."""
        check_references(self.tokenizer, references, instruction=self.options.instruction)

    def __call__(self, sample: AVSample) -> EncodedSample:
        return self.prepare(sample)()

    def prepare(self, sample: AVSample) -> Callable[[], EncodedSample]:
        """Do all that needs no GPU, which may be done in another thread; what is returned does the rest."""
        clip = self.load(sample)
        if self.uses_gpu:
            encoded = self._encode(sample, clip, torch.empty(0))
            return lambda: dataclasses.replace(encoded, frame_inputs=self.frame_inputs(sample, clip))
        encoded = self._encode(sample, clip, self.frame_inputs(sample, clip))
        return lambda: encoded

    def encode_references(self, samples: Sequence[AVSample], clip: AVClip) -> list[EncodedSample]:
        """Rows that ask about one clip, whose media nobody has to read again.

        Its frames go through the image encoder once, and the rows share one set of media tensors, by which
        `distinct_media` knows that the towers need to run once.

        Args:
            samples: rows on the clip, alike except for their references.
            clip: its media.
        """
        frame_inputs = self.frame_inputs(samples[0], clip)
        rows = [self._encode(sample, clip, frame_inputs) for sample in samples]
        features = rows[0].prompt.features
        return [dataclasses.replace(row, prompt=dataclasses.replace(row.prompt, features=features)) for row in rows]

    def _encode(self, sample: AVSample, clip: AVClip, frame_inputs: torch.Tensor) -> EncodedSample:
        limits = {"min_pixels": self.options.min_pixels, "max_pixels": self.options.max_pixels}
        messages = build_messages(
            sample.reference,
            frames=[Image.fromarray(frame) for frame in clip.frames],
            has_audio=clip.waveform is not None and not sample.use_audio_in_video,
            instruction=self.options.instruction,
            system_prompt=self.options.system_prompt,
            video_options={"sample_fps": sample.fps} | {k: v for k, v in limits.items() if v is not None},
        )
        with naming(sample):
            prompt = self.family.encode(
                self.processor,
                messages,
                waveform=clip.waveform,
                fps=sample.fps,
                use_audio_in_video=sample.use_audio_in_video,
            )
        return EncodedSample(
            sample=sample,
            prompt=prompt,
            frame_inputs=frame_inputs,
            gt_masks=torch.from_numpy(clip.gt_masks),
            loudness_dbfs=loudness_dbfs(clip.waveform),
        )


class SFTCollator:
    """Rows of the dataset -> one right-padded batch with labels on the completion only.

    Args:
        encode: turns a sample into tensors.
        seg_token_id: id of `[SEG]`.
        target: what a sample is trained to say, one of `data.targets`.
    """

    def __init__(self, encode: SampleEncoder, seg_token_id: int, target: Callable[[AVSample], Target]) -> None:
        self.encode = encode
        self.seg_token_id = seg_token_id
        self.target = target

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        encoded = [self.encode(AVSample.from_row(row)) for row in rows]
        completions = [self._tokenize(item.sample) for item in encoded]
        batch = right_pad(
            [item.prompt.prompt_ids for item in encoded],
            [ids for ids, _ in completions],
            self.encode.tokenizer.pad_token_id,
            num_given=[count for _, count in completions],
        )
        seg_index, has_seg = find_seg(
            batch["input_ids"],
            batch["attention_mask"] * (batch["labels"] != -100),
            self.seg_token_id,
            num_completion_tokens=batch["input_ids"].size(1),
        )
        return {
            **batch,
            **self.encode.family.collate_features([item.prompt.features for item in encoded], range(len(encoded))),
            **collate_frames(encoded),
            "seg_index": seg_index,
            "seg_weights": has_seg.float(),
            "gt_masks": [item.gt_masks for item in encoded],
        }

    def check(self, samples: Iterable[AVSample]) -> None:
        """Check what rows are to say before the first of them is needed.

        Raises:
            ControlTokenError: naming a row whose category or chain holds a control token.
            ValueError: if a row has no such target.
        """
        for sample in samples:
            self._checked_target(sample)

    def _checked_target(self, sample: AVSample) -> Target:
        target = self.target(sample)
        with naming(sample):
            check_target(self.encode.tokenizer, target)
        return target

    def _tokenize(self, sample: AVSample) -> tuple[list[int], int]:
        """Token ids of a completion with its end of turn, and how many of them are given.

        Both parts are tokenized as one text, as the model would write it; a token that reaches from what is given into
        what is learned is learned (a full stop with the line break after it is one token of Qwen's).
        """
        tokenizer, target = self.encode.tokenizer, self._checked_target(sample)
        tokens = tokenizer(target.given + target.learned, add_special_tokens=False, return_offsets_mapping=True)
        num_given = sum(end <= len(target.given) for _, end in tokens.offset_mapping)
        return [*tokens.input_ids, tokenizer.eos_token_id], num_given


def right_pad(
    prompts: list[list[int]], completions: list[list[int]], pad_token_id: int, *, num_given: list[int] | None = None
) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask` and `labels`, each (B, L), of prompts joined to completions.

    Args:
        prompts: B lists of token ids, without labels.
        completions: B lists of token ids, with labels.
        pad_token_id: fills the rows up at the right.
        num_given: first so many tokens of each completion that have no labels; none by default.
    """
    given = num_given or [0] * len(prompts)
    length = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
    input_ids = torch.full((len(prompts), length), pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, -100)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        end = len(prompt) + len(completion)
        input_ids[row, :end] = torch.tensor(prompt + completion)
        attention_mask[row, :end] = 1
        labels[row, len(prompt) + given[row] : end] = torch.tensor(completion[given[row] :])
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def distinct_media(encoded: Sequence[EncodedSample]) -> tuple[list[Mapping[str, torch.Tensor]], list[int]]:
    """Media tensors of the distinct samples of a batch, in order of first appearance, and which each row has."""
    first = {id(item.prompt.features): item.prompt.features for item in encoded}
    order = {key: index for index, key in enumerate(first)}
    return list(first.values()), [order[id(item.prompt.features)] for item in encoded]


def collate_frames(encoded: Sequence[EncodedSample]) -> dict[str, torch.Tensor]:
    """The mask decoder's part of a batch: each distinct clip's frames once, and which clip each row watches."""
    clips = {item.sample.media_id: item.frame_inputs for item in encoded}
    order = {media_id: index for index, media_id in enumerate(clips)}
    return {
        "seg_frames": torch.cat(list(clips.values())),
        "seg_frame_counts": torch.tensor([len(frames) for frames in clips.values()]),
        "seg_clip_index": torch.tensor([order[item.sample.media_id] for item in encoded]),
    }
