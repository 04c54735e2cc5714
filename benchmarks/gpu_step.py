"""A GRPO step at the real shapes on one GPU: seconds by part, tokens a second, peak memory, FLOPs utilisation.

    python benchmarks/gpu_step.py --size 3b      (one GPU of 80 GB: not measured)
    python benchmarks/gpu_step.py --size 7b
    python benchmarks/gpu_step.py --size toy     (a CPU, to see that it runs)

The shapes are the published ones, the weights random: Qwen2.5-Omni in bf16 under LoRA, the SAM ViT-H mask decoder on
embeddings as they come from the cache, 10 frames, 10 s of sound, G = 8, 256 new tokens.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from transformers import AutoProcessor, PretrainedConfig, ProcessorMixin
from transformers.utils import logging as transformers_logging

from aurora_rl.data.dataset import to_dataset
from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.models.batch import PromptOptions, SampleEncoder
from aurora_rl.models.loading import prepare_vocabulary
from aurora_rl.models.mllm.qwen2_5_omni import AuroraQwen2_5Omni, Qwen2_5OmniFamily
from aurora_rl.models.segmenters import build_frame_encoder
from aurora_rl.models.tiny import TinyOmniConfig, build_tiny_omni
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from benchmarks.contenders import (
    MASK_PARTS,
    PARTS,
    Contender,
    Step,
    length_reward,
    mask_functions_watched,
    ready,
)
from benchmarks.timing import Stopwatch
from benchmarks.workload import REFERENCE, VOCABULARY

#: Dense bf16 FLOPs a second that the maker states, by a part of the device's name.
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is run.

    Attributes:
        hub_name: whose config and processor are taken; None for the tiny model.
        segmenter: config of the mask decoder.
        frame_size: height and width of a frame in pixels.
        num_frames: F.
        seconds: of sound.
        num_generations: G.
        completion_length: new tokens of every completion.
    """

    hub_name: str | None
    segmenter: dict[str, Any]
    frame_size: tuple[int, int] = (360, 640)
    num_frames: int = 10
    seconds: float = 10.0
    num_generations: int = 8
    completion_length: int = 256


SAM = {"type": "sam", "image_size": 1024}
SHAPES = {
    "3b": Shape("Qwen/Qwen2.5-Omni-3B", SAM),
    "7b": Shape("Qwen/Qwen2.5-Omni-7B", SAM),
    "toy": Shape(None, {"type": "sam", "image_size": 64}, (32, 32), 2, 1.0, 2, 6),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, required=True)
    parser.add_argument("--repeats", type=int, default=5, help="steps after the first, which warms up (default: 5)")
    parser.add_argument("--json", type=Path, help="file for the medians")
    args = parser.parse_args(argv)
    if args.size != "toy" and not torch.cuda.is_available():
        parser.error(f"--size {args.size} needs a GPU, and torch sees none; --size toy runs on a CPU")
    shape, stopwatch = SHAPES[args.size], Stopwatch()
    with mask_functions_watched(stopwatch):
        contender = build(shape, stopwatch)
        numbers = summarise(contender, shape, [contender.step() for _ in range(args.repeats)])
    print("\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value:.4g} |" for name, value in numbers.items())]))
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n")


def build(shape: Shape, stopwatch: Stopwatch) -> Contender:
    """The trainer, ready to step."""
    model, processor = build_model(shape)
    seg_token_id = prepare_vocabulary(model, processor, Qwen2_5OmniFamily())
    trainer = AuroraGRPOTrainer(
        model=model,
        reward_funcs=[length_reward, "reward_fns.mask_iou:mask_iou_reward"],
        args=_arguments(shape),
        encode=_encoder(shape, processor),
        seg_token_id=seg_token_id,
        train_dataset=to_dataset([_sample()]),
        processing_class=processor,
        peft_config=LoraConfig(
            r=16,
            target_modules=Qwen2_5OmniFamily.lora_target_modules,
            modules_to_save=["seg_head"],
            task_type="CAUSAL_LM",
        ),
    )
    return ready(trainer, (seg_token_id, processor.tokenizer.convert_tokens_to_ids(".")), stopwatch)


def build_model(shape: Shape) -> tuple[AuroraQwen2_5Omni, ProcessorMixin]:
    """Random weights, in bf16 but for the mask decoder, on the GPU if there is one."""
    if shape.hub_name is None:
        return build_tiny_omni(VOCABULARY, shape.segmenter, TinyOmniConfig(num_layers=2))
    config = AuroraQwen2_5Omni.config_class.from_pretrained(shape.hub_name)
    config = Qwen2_5OmniFamily().config_from(config)
    config.segmenter = shape.segmenter
    with torch.device("cuda"):
        model = _random_bf16(config)
    return model, AutoProcessor.from_pretrained(shape.hub_name, trust_remote_code=False)


def _random_bf16(config: PretrainedConfig) -> AuroraQwen2_5Omni:
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = AuroraQwen2_5Omni(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.seg_head.float()
    return model


def summarise(contender: Contender, shape: Shape, steps: Sequence[Step]) -> dict[str, float]:
    """Medians: seconds by part, and what follows from them.

    Model FLOPs utilisation counts what forward and backward of the language model must compute: 2 FLOPs a weight and
    token forward; backward as much again, for LoRA leaves the weights themselves without gradients.
    """
    numbers = {part: median(step.parts[part].wall if part in step.parts else 0.0 for step in steps) for part in _ALL}
    whole = median(step.seconds(_ALL, "wall") for step in steps)
    row = contender.trainer.encode(_sample())
    num_tokens = shape.num_generations * (len(row.prompt.prompt_ids) + shape.completion_length)
    decoder = contender.trainer.accelerator.unwrap_model(contender.trainer.model).get_decoder()
    flops = 4 * sum(p.numel() for p in decoder.layers.parameters()) * num_tokens
    passes = numbers["forward"] + numbers["backward"]
    numbers |= {
        "whole step, s": whole,
        "prompt tokens a completion": len(row.prompt.prompt_ids),
        "new tokens a second of generation": shape.num_generations * shape.completion_length / numbers["generation"],
        "tokens a second of the step": num_tokens / whole,
        "peak memory above the weights, GB": max(step.peak_gb for step in steps),
        "TFLOPs a second, forward + backward": flops / passes / 1e12,
    }
    if (peak := _peak_flops()) is not None:
        numbers["model FLOPs utilisation, forward + backward"] = flops / passes / peak
    return numbers


_ALL = (*PARTS, *MASK_PARTS)


def _peak_flops() -> float | None:
    """Of this GPU; None where it is unknown."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


def _encoder(shape: Shape, processor: ProcessorMixin) -> SampleEncoder:
    """Noise for frames, sound and embeddings: none of a step's parts depends on what is seen or heard."""
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (shape.num_frames, *shape.frame_size, 3), dtype=np.uint8)
    waveform = generator.uniform(-0.1, 0.1, int(16_000 * shape.seconds)).astype(np.float32)
    truth = np.zeros(frames.shape[:3], dtype=bool)
    truth[:, : shape.frame_size[0] // 2] = True
    # Half precision, as the cache has them.
    embeddings = torch.randn(shape.num_frames, *build_frame_encoder(shape.segmenter).frame_shape).half()
    return SampleEncoder(
        Qwen2_5OmniFamily(),
        processor,
        lambda sample, clip: embeddings,
        options=PromptOptions(max_pixels=200_704),
        load=lambda sample: AVClip(frames, waveform, truth),
    )


def _sample() -> AVSample:
    return AVSample(
        uid="noise", row=0, split="train", media_id="noise", category="drum", reference=REFERENCE, fps=1.0,
        frame_paths=(), audio_path="", mask_paths=(),
    )  # fmt: skip


def _arguments(shape: Shape) -> AuroraGRPOConfig:
    on_gpu = torch.cuda.is_available()
    return AuroraGRPOConfig(
        output_dir=tempfile.gettempdir(),
        mask_loss_on="all",
        max_steps=1,
        per_device_train_batch_size=shape.num_generations,
        num_generations=shape.num_generations,
        max_completion_length=shape.completion_length,
        generation_kwargs={"min_new_tokens": shape.completion_length},
        bf16=on_gpu,
        use_cpu=not on_gpu,
        gradient_checkpointing=on_gpu,
        lr_scheduler_type="constant",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


if __name__ == "__main__":
    logging.getLogger("aurora_rl").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    main()
