"""A GRPO step at the real shapes on one GPU: seconds by part, tokens a second, peak memory, FLOPs utilisation.

    python benchmarks/gpu_step.py --size 3b      (one GPU of 80 GB: not measured)
    python benchmarks/gpu_step.py --size 7b
    python benchmarks/gpu_step.py --size toy     (a CPU, to see that it runs)

The shapes are the published ones, of docs/configs, and the weights random: Qwen2.5-Omni in bf16 under LoRA, the SAM
ViT-H mask decoder on embeddings as they come from the cache, 10 frames, 10 s of sound, G = 8, 256 new tokens. Nothing
is downloaded: the tokenizer has as many words as the real one, most of them in no text.
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
from transformers import GenerationConfig, PretrainedConfig, ProcessorMixin
from transformers.utils import logging as transformers_logging

from aurora_rl.data.dataset import to_dataset
from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.footprint.flops import StepFlops, estimate_flops
from aurora_rl.footprint.parameters import MetaModel
from aurora_rl.footprint.report import known_tflops
from aurora_rl.footprint.workload import Workload
from aurora_rl.models.batch import PromptOptions, SampleEncoder
from aurora_rl.models.loading import prepare_vocabulary
from aurora_rl.models.mllm.qwen2_5_omni import AuroraQwen2_5Omni, Qwen2_5OmniFamily
from aurora_rl.models.segmenters import build_frame_encoder
from aurora_rl.models.tiny import TinyOmniConfig, build_tiny_omni, build_tiny_processor, multimodal_token_fields
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

CONFIGS = Path(__file__).resolve().parents[1] / "docs" / "configs"
#: As Qwen2.5-Omni reads frames and sound, and as many words as it knows.
PUBLISHED = TinyOmniConfig(patch_size=14, num_mel_bins=128, hop_length=160, min_vocab_size=151_643)


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is run.

    Attributes:
        config: folder in docs/configs with the model's config; None for the tiny model.
        segmenter: config of the mask decoder.
        frame_size: height and width of a frame in pixels.
        num_frames: F.
        seconds: of sound.
        num_generations: G.
        completion_length: new tokens of every completion.
    """

    config: str | None
    segmenter: dict[str, Any]
    frame_size: tuple[int, int] = (360, 640)
    num_frames: int = 10
    seconds: float = 10.0
    num_generations: int = 8
    completion_length: int = 256


SAM = {"type": "sam", "image_size": 1024}
SHAPES = {
    "3b": Shape("qwen2_5_omni_3b", SAM),
    "7b": Shape("qwen2_5_omni_7b", SAM),
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


def build_model(shape: Shape, *, device: str | None = None) -> tuple[AuroraQwen2_5Omni, ProcessorMixin]:
    """Random weights, in bf16 but for the mask decoder.

    Args:
        shape: which model.
        device: where the weights are made, a GPU unless it says otherwise; the tiny model's are made on the CPU.
    """
    if shape.config is None:
        return build_tiny_omni(VOCABULARY, shape.segmenter, TinyOmniConfig(num_layers=2))
    processor = build_tiny_processor(VOCABULARY, PUBLISHED)
    tokenizer = processor.tokenizer
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AuroraQwen2_5Omni.config_class.from_pretrained(CONFIGS / shape.config)
    config.segmenter = shape.segmenter
    config.update(multimodal_token_fields(tokenizer))
    config.text_config.update(ids)
    with torch.device(device or "cuda"):
        model = _random_bf16(config)
    model.generation_config = GenerationConfig(**ids)
    return model, processor


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

    Model FLOPs utilisation counts what forward and backward passes must compute, with nothing that runs again.
    """
    numbers = {part: median(step.parts[part].wall if part in step.parts else 0.0 for step in steps) for part in _ALL}
    whole = median(step.seconds(_ALL, "wall") for step in steps)
    row = contender.trainer.encode(_sample())
    num_tokens = shape.num_generations * (len(row.prompt.prompt_ids) + shape.completion_length)
    flops = step_flops(contender, shape).training
    passes = numbers["forward"] + numbers["backward"]
    numbers |= {
        "whole step, s": whole,
        "prompt tokens a completion": len(row.prompt.prompt_ids),
        "new tokens a second of generation": shape.num_generations * shape.completion_length / numbers["generation"],
        "tokens a second of the step": num_tokens / whole,
        "peak memory above the weights, GB": max(step.peak_gb for step in steps),
        "TFLOPs a second, forward + backward": flops / passes / 1e12,
    }
    if (tflops := known_tflops(contender.trainer.accelerator.device)) is not None:
        numbers["model FLOPs utilisation, forward + backward"] = flops / passes / (tflops * 1e12)
    return numbers


_ALL = (*PARTS, *MASK_PARTS)


def step_flops(contender: Contender, shape: Shape) -> StepFlops:
    """As `aurora-rl footprint` counts them, of the tokens that there are."""
    trainer = contender.trainer
    prompt = trainer.encode(_sample()).prompt
    work = Workload(
        rows=shape.num_generations,
        clips=1,
        prompt_tokens=len(prompt.prompt_ids),
        completion_tokens=shape.completion_length,
        patches=len(prompt.features["pixel_values_videos"]),
        mels=int(prompt.features["feature_attention_mask"].sum()),
        frames=shape.num_frames,
        size=shape.frame_size,
    )
    meta = MetaModel(trainer.accelerator.unwrap_model(trainer.model), Qwen2_5OmniFamily(), (), has_loaded_adapter=False)
    is_gpu = trainer.accelerator.device.type == "cuda"
    return estimate_flops(meta, work, checkpointing=trainer.args.gradient_checkpointing, is_gpu=is_gpu)


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
