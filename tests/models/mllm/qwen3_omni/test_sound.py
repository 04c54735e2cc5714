"""Sounds of Qwen3-Omni: whole columns, and between the frames."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from aurora_rl.models.mllm import EncodedPrompt
from aurora_rl.models.mllm.contract import SECOND, Subject
from aurora_rl.models.mllm.qwen3_omni import Qwen3OmniFamily
from tests.conversations import build_messages


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject.of(Qwen3OmniFamily())


def encode(subject: Subject, num_samples: int, *, interleaved: bool, seed: int = 0) -> EncodedPrompt:
    random = np.random.default_rng(seed)
    frames = [Image.fromarray(frame) for frame in random.integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)]
    options = {"sample_fps": 2.0, "min_pixels": 256, "max_pixels": 65536}
    messages = build_messages("the drum" * (seed + 1), frames=frames, has_audio=not interleaved, video_options=options)
    waveform = random.normal(0, 0.1, num_samples).astype(np.float32)
    return subject.family.encode(
        subject.processor, messages, waveform=waveform, fps=2.0, use_audio_in_video=interleaved
    )


def test_vllm_is_given_whole_columns_of_sound(subject: Subject) -> None:
    """16,077 samples are 100 columns of 160 and a part of one, which vLLM would count as a token more."""
    prompt = encode(subject, 16_077, interleaved=False)
    [(waveform, _)] = prompt.engine.media["audio"]
    assert len(waveform) == 101 * 160 and not waveform[16_077:].any()
    assert prompt.features["feature_attention_mask"].sum() == 101


def test_rows_with_sound_between_and_after_the_frames_share_a_batch(subject: Subject) -> None:
    prompts = [encode(subject, 4 * SECOND, interleaved=seed % 2 == 0, seed=seed) for seed in range(3)]
    together = subject.logits(prompts)
    for row, alone in zip(together, subject.alone(prompts), strict=True):
        assert_close(row, alone, rtol=0, atol=1e-4)
    between = prompts[0].features
    after = dataclasses.replace(encode(subject, 4 * SECOND, interleaved=False), features=between)
    assert not torch.equal(subject.logits([after])[0][-1], together[0][-1])
