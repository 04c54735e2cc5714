"""The same work for both trainers: one model class, one set of clips as images without sound, one optimiser.

TRL's trainer knows images only, so both trainers get the frames of a clip as images in memory.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from transformers import ProcessorMixin

from aurora_rl.data.dataset import to_dataset
from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.models.heads.segmenters import build_frame_encoder
from aurora_rl.models.loading import freeze
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from aurora_rl.models.mllm.qwen2_5_omni.model import AuroraQwen2_5Omni
from aurora_rl.models.mllm.qwen2_5_omni.tiny import TinyOmniConfig, build_tiny_omni
from aurora_rl.tasks.base import Task
from aurora_rl.tasks.multiple_choice import MultipleChoice
from aurora_rl.tasks.prompts import SEG_TOKEN
from aurora_rl.tasks.reference_segmentation import ReferenceSegmentation

REFERENCE = "The yellow object on the left that is heard before the drum."
#: Texts that train the vocabulary, so that the prompt's words are single tokens.
VOCABULARY = (REFERENCE, "Look: a drum. Listen: a bell. Read: the bell. Answer: the target is the bell. It is [SEG].")


@dataclasses.dataclass(frozen=True)
class StepShape:
    """Sizes of one training step.

    Attributes:
        num_generations: G, number of completions of the step's only prompt.
        num_frames: F, number of frames.
        completion_length: number of tokens of every completion.
        hidden_size: width of the language model.
        num_layers: depth of the language model.
        num_heads: attention heads of the language model and the towers.
        frame_size: side of a frame in pixels; 8 x 8 of them are a patch, 4 patches are a token.
        num_more_words: number of words behind the reference, by which a prompt gets the length that is wanted.
    """

    num_generations: int = 8
    num_frames: int = 10
    completion_length: int = 64
    hidden_size: int = 384
    num_layers: int = 6
    num_heads: int = 6
    frame_size: int = 64
    num_more_words: int = 0

    @property
    def text(self) -> str:
        """The prompt's text."""
        return REFERENCE + " drum" * self.num_more_words


@dataclasses.dataclass(frozen=True)
class Policy:
    """A random model and its processor; without a mask head there is no `[SEG]`."""

    model: AuroraQwen2_5Omni
    processor: ProcessorMixin
    seg_token_id: int | None

    def copy(self) -> AuroraQwen2_5Omni:
        """Copy the model, so that another trainer starts from the same weights."""
        return copy.deepcopy(self.model)


def build_policy(shape: StepShape, *, has_head: bool = True) -> Policy:
    """Build a random Qwen2.5-Omni thinker with a `dot` mask decoder or without a head, its towers frozen."""
    sizes = TinyOmniConfig(
        hidden_size=shape.hidden_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        tower_size=16 * shape.num_heads,
    )
    segmenter = {"type": "dot", "image_size": shape.frame_size, "width": 32}
    model, processor = build_tiny_omni(VOCABULARY, segmenter if has_head else None, sizes)
    freeze(model, list(Qwen2_5OmniFamily.tower_names))
    return Policy(model, processor, processor.tokenizer.convert_tokens_to_ids(SEG_TOKEN) if has_head else None)


def draw_frames(shape: StepShape) -> np.ndarray:
    """Draw frames of noise, (F, H, W, 3) uint8: no part of a step depends on their content."""
    size = (shape.num_frames, shape.frame_size, shape.frame_size, 3)
    return np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)


def stock_dataset(shape: StepShape) -> Dataset:
    """Make the rows for TRL's trainer: a text prompt and the frames as `images`."""
    images = [Image.fromarray(frame) for frame in draw_frames(shape)]
    prompt = [{"role": "user", "content": shape.text}]
    return Dataset.from_list([{"prompt": prompt, "images": images}])


def aurora_dataset() -> Dataset:
    """Make the same row for Aurora-RL's trainer, whose encoder provides the media."""
    sample = AVSample(
        uid="noise", row=0, split="train", media_id="noise", category="drum", reference=REFERENCE, fps=1.0,
        frame_paths=(), audio_path="", choices=("drum", "bell"), answer="drum",
    )  # fmt: skip
    return to_dataset([sample], functools.partial(ReferenceSegmentation().messages, instruction="{reference}"))


class ImageEncoder(SampleEncoder):
    """Encoder that puts one clip's frames as images, without sound, before the reference.

    The task of a policy without a head is a multiple-choice question.
    """

    def __init__(self, policy: Policy, shape: StepShape) -> None:
        frames, truth, encode = draw_frames(shape), None, None
        task: Task = MultipleChoice()
        if policy.seg_token_id is not None:
            frame_encoder, task = build_frame_encoder(policy.model.config.segmenter), ReferenceSegmentation()
            encode = lambda sample, clip: frame_encoder.encode(clip.frames)  # noqa: E731
            truth = np.zeros(frames.shape[:3], dtype=bool)
            truth[:, : shape.frame_size // 2] = True
        super().__init__(Qwen2_5OmniFamily(), policy.processor, encode, task=task)
        self.clip = AVClip(frames, np.zeros(0, np.float32), truth)
        self.text = shape.text

    def prepare(self, sample: AVSample) -> Callable[[], EncodedSample]:
        parts: list[dict[str, Any]] = [{"type": "image", "image": Image.fromarray(frame)} for frame in self.clip.frames]
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": self.text}]}]
        encoded = EncodedSample(
            sample=sample,
            prompt=self.family.encode(self.processor, messages, waveform=None, fps=sample.fps),
            frame_inputs=None if self.frame_inputs is None else self.frame_inputs(sample, self.clip),
            gt_masks=None if self.clip.gt_masks is None else torch.from_numpy(self.clip.gt_masks),
            loudness_dbfs=0.0,
            frame_size=(self.clip.frames.shape[1], self.clip.frames.shape[2]),
        )
        return lambda: encoded
