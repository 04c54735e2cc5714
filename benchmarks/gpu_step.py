"""A GRPO step at the real shapes on one GPU: seconds by part, tokens a second, peak memory, FLOPs utilisation.

    python benchmarks/gpu_step.py --size 3b      (one GPU of 80 GB: not measured)
    python benchmarks/gpu_step.py --size 7b
    python benchmarks/gpu_step.py --size 7b --as_recipe --deepspeed --trace step.json
    python benchmarks/gpu_step.py --size 7b --as_recipe --sampler vllm
    python benchmarks/gpu_step.py --size toy     (a CPU, to check that it runs)

The shapes are the published ones, of docs/configs, and the weights are random: Qwen2.5-Omni in bf16 under LoRA, the SAM
ViT-H mask decoder on embeddings in the cache's format, 10 frames of 1280 x 720, 10 s of sound, G = 8 completions of
each of two clips, 256 new tokens. Two micro-batches make a step. Nothing is downloaded: the tokenizer has as many words
as the real one, most of them in no text. `--as_recipe` trains the same parts as recipes/ref_avs/grpo_7b.yaml: a loaded
adapter of rank 8, with `lm_head` and `embed_tokens`, against its reference, with 512 new tokens.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GenerationConfig, ProcessorMixin, training_args
from transformers.utils import logging as transformers_logging

from aurora_rl.assembly.arguments import DataArguments, ModelArguments
from aurora_rl.assembly.options import OptionParser
from aurora_rl.data.dataset import to_dataset
from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.footprint import Clips, Launch, estimate_footprint
from aurora_rl.footprint.flops import StepFlops, estimate_flops
from aurora_rl.footprint.parameters import MetaModel, measure_parts
from aurora_rl.footprint.parts import ALWAYS, SAMPLING, TRAINING, fullest, sum_of
from aurora_rl.footprint.report import known_tflops
from aurora_rl.footprint.workload import Workload
from aurora_rl.models.encoding import PromptOptions, SampleEncoder
from aurora_rl.models.heads.segmenters import build_frame_encoder
from aurora_rl.models.loading import prepare_vocabulary
from aurora_rl.models.mllm import EncodedPrompt, TowerPass
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from aurora_rl.models.mllm.qwen2_5_omni.model import AuroraQwen2_5Omni
from aurora_rl.models.mllm.qwen2_5_omni.tiny import (
    TinyOmniConfig,
    build_tiny_omni,
    build_tiny_processor,
    multimodal_token_fields,
)
from aurora_rl.tasks.reference_segmentation import ReferenceSegmentation
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
from benchmarks.gpu_watch import TRAINED_TOWERS, WATCHED_PARTS, MomentPeaks, trace_step, watch_media_and_towers
from benchmarks.timing import Stopwatch
from benchmarks.workload import REFERENCE, VOCABULARY

CONFIGS = Path(__file__).resolve().parents[1] / "docs" / "configs"
#: Sizes by which Qwen2.5-Omni reads frames and sound, and the size of its vocabulary.
PUBLISHED = TinyOmniConfig(patch_size=14, num_mel_bins=128, hop_length=160, min_vocab_size=151_643)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a step.

    Attributes:
        config: folder in docs/configs with the model's config; None for the tiny model.
        segmenter: config of the mask decoder.
        frame_size: height and width of a frame in pixels.
        num_frames: F, number of frames.
        seconds: length of the sound, in seconds.
        num_generations: G, number of completions of a prompt.
        completion_length: number of new tokens of every completion.
    """

    config: str | None
    segmenter: dict[str, Any]
    frame_size: tuple[int, int] = (720, 1280)
    num_frames: int = 10
    seconds: float = 10.0
    num_generations: int = 8
    completion_length: int = 256


@dataclasses.dataclass(frozen=True)
class Way:
    """Settings of a step.

    Attributes:
        as_recipe: whether the parts of the 7B recipe are trained, instead of LoRA and the mask head alone.
        deepspeed: whether to use ZeRO-2 in bf16 with one process, without autocast; otherwise plain PyTorch.
        sampler: library that samples in this process, "transformers" or "vllm".
    """

    as_recipe: bool = False
    deepspeed: bool = False
    sampler: str = "transformers"


PLAIN = Way()
#: Clips of a generation batch, which is cut into as many micro-batches, a group in each.
NUM_CLIPS = 2
#: Values of the recipe.
RECIPE_COMPLETION_LENGTH, BETA = 512, 0.04
SAM = {"type": "sam", "image_size": 1024}
SHAPES = {
    "3b": Shape("qwen2_5_omni_3b", SAM),
    "7b": Shape("qwen2_5_omni_7b", SAM),
    "toy": Shape(None, {"type": "sam", "image_size": 64}, (32, 32), 2, 1.0, 2, 6),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print one table."""
    parser = OptionParser(description=__doc__)
    parser.add_argument("--size", choices=SHAPES, required=True, help="shapes of the model that trains")
    parser.add_argument("--repeats", type=int, default=5, help="number of steps after the first, which warms up")
    parser.add_argument("--as_recipe", action="store_true", help="train what recipes/ref_avs/grpo_7b.yaml trains")
    parser.add_argument("--deepspeed", action="store_true", help="train with ZeRO-2 in bf16, in one process")
    parser.add_argument(
        "--sampler",
        choices=("transformers", "vllm"),
        default="transformers",
        help="program that samples the completions",
    )
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="file for the profile of one more step, for chrome://tracing"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the medians")
    args = parser.parse_args(argv)
    if args.size != "toy" and not torch.cuda.is_available():
        parser.error(f"--size {args.size} needs a GPU, and torch sees none; --size toy runs on a CPU")
    way, shape, stopwatch = Way(args.as_recipe, args.deepspeed, args.sampler), SHAPES[args.size], Stopwatch()
    if way.as_recipe and args.size != "toy":
        shape = dataclasses.replace(shape, completion_length=RECIPE_COMPLETION_LENGTH)
    if way.deepspeed:
        launch_deepspeed()
    with mask_functions_watched(stopwatch):
        contender = build(shape, stopwatch, way)
        watch_media_and_towers(contender.trainer, stopwatch)
        peaks = MomentPeaks(contender.trainer)
        steps = []
        for _ in range(args.repeats):
            steps.append(contender.step())
            peaks.end_step()
        numbers = summarise(contender, shape, steps) | peaks.rows() | estimated_rows(contender, shape, way)
        if args.trace:
            numbers |= trace_step(contender.step, args.trace)
    print("\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value:.4g} |" for name, value in numbers.items())]))
    if args.output:
        args.output.write_text(json.dumps(numbers, indent=2) + "\n")


def launch_deepspeed() -> None:
    """Set what `accelerate launch --config_file accelerate_configs/zero2.yaml --num_processes 1` sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
        "ACCELERATE_MIXED_PRECISION": "bf16",
        **{"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }
    if not torch.cuda.is_available():  # transformers refuses bf16 without a GPU unless `use_cpu`, which drops DeepSpeed
        os.environ["DS_ACCELERATOR"] = "cpu"
        training_args.is_torch_bf16_gpu_available = lambda: True


def build(shape: Shape, stopwatch: Stopwatch, way: Way = PLAIN) -> Contender:
    """Build the trainer, ready to step."""
    model, processor = build_model(shape)
    seg_token_id = prepare_vocabulary(model, processor, Qwen2_5OmniFamily())["masks"]
    trainer = AuroraGRPOTrainer(
        model=with_lora(model, way) if way.as_recipe else model,
        reward_funcs=[length_reward, "reward_fns.mask_iou:mask_iou_reward"],
        args=_arguments(shape, way),
        encode=_encoder(shape, processor),
        train_dataset=to_dataset([_sample(number) for number in range(NUM_CLIPS)], ReferenceSegmentation().messages),
        processing_class=processor,
        peft_config=None if way.as_recipe else lora(way),
    )
    if way.sampler == "vllm":
        _dictate_to_vllm(trainer, shape, seg_token_id)
    return ready(trainer, (seg_token_id, processor.tokenizer.convert_tokens_to_ids(".")), stopwatch)


def lora(way: Way) -> LoraConfig:
    """Return the adapter to train: the recipe's, or LoRA of rank 16 and the mask head."""
    saved = ["seg_head", "lm_head", "embed_tokens"] if way.as_recipe else ["seg_head"]
    targets = Qwen2_5OmniFamily.lora_target_modules
    rank = 8 if way.as_recipe else 16
    return LoraConfig(r=rank, target_modules=targets, modules_to_save=saved, task_type="CAUSAL_LM")


def with_lora(model: AuroraQwen2_5Omni, way: Way) -> PeftModel:
    """Add an adapter to the model, as if it had been loaded: TRL copies it for the reference."""
    return get_peft_model(model, lora(way))


def _dictate_to_vllm(trainer: Any, shape: Shape, seg_token_id: int) -> None:
    """Replace the last two tokens of each completion by `[SEG]` and a full stop, as a random model emits no `[SEG]`."""
    sample, stop = trainer._generate_single_turn, trainer.processing_class.tokenizer.convert_tokens_to_ids(".")

    def dictated(*args: Any, **kwargs: Any) -> Any:
        completion_ids, *rest = sample(*args, **kwargs)
        return ([[*ids[: shape.completion_length - 2], seg_token_id, stop] for ids in completion_ids], *rest)

    trainer._generate_single_turn = dictated


def build_model(shape: Shape, *, device: str | None = None) -> tuple[AuroraQwen2_5Omni, ProcessorMixin]:
    """Build a model of random weights, in bf16 except for the mask decoder.

    Args:
        shape: sizes, which name the model's config.
        device: device of the weights, by default a GPU; the tiny model is always made on the CPU.
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
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = AuroraQwen2_5Omni(config)
        finally:
            torch.set_default_dtype(torch.float32)
        model.seg_head.float()
    model.generation_config = GenerationConfig(**ids)
    return model, processor


def summarise(contender: Contender, shape: Shape, steps: Sequence[Step]) -> dict[str, float]:
    """Return the median seconds by part, and rates that follow from them.

    Model FLOPs utilisation counts the necessary operations of forward and backward passes, without recomputation.
    """
    numbers = {part: median(step.parts[part].wall if part in step.parts else 0.0 for step in steps) for part in _ALL}
    whole = median(step.seconds(_ALL, "wall") for step in steps)
    row = contender.trainer.encode(_sample())
    num_completions = NUM_CLIPS * shape.num_generations
    num_tokens = num_completions * (len(row.prompt.prompt_ids) + shape.completion_length)
    rewards_cpu = median(step.seconds(("reward", "mask reward"), "cpu") for step in steps)
    flops = step_flops(contender, shape).training
    passes = numbers["forward"] + numbers[TRAINED_TOWERS] + numbers["backward"]
    numbers |= {
        "whole step, s": whole,
        "prompt tokens a completion": len(row.prompt.prompt_ids),
        "new tokens a second of generation": num_completions * shape.completion_length / numbers["generation"],
        "tokens a second of the step": num_tokens / whole,
        "rewards, CPU s a completion": rewards_cpu / num_completions,
        "TFLOPs a second, forward + backward": flops / passes / 1e12,
    }
    if (tflops := known_tflops(contender.trainer.accelerator.device)) is not None:
        numbers["model FLOPs utilisation, forward + backward"] = flops / passes / (tflops * 1e12)
    return numbers


_ALL = (*PARTS, *MASK_PARTS, *WATCHED_PARTS)


def step_flops(contender: Contender, shape: Shape) -> StepFlops:
    """Count the operations as `aurora-rl footprint` does, but with the real numbers of tokens."""
    trainer, work = contender.trainer, step_work(contender, shape)
    meta = MetaModel(trainer.accelerator.unwrap_model(trainer.model), Qwen2_5OmniFamily(), (), has_loaded_adapter=False)
    is_gpu = trainer.accelerator.device.type == "cuda"
    return estimate_flops(meta, work, checkpointing=trainer.args.gradient_checkpointing, is_gpu=is_gpu)


def tower_work(contender: Contender, prompt: EncodedPrompt) -> dict[str, TowerPass]:
    """Return the towers' work for some clips of a prompt's real lengths."""
    config = contender.trainer.accelerator.unwrap_model(contender.trainer.model).config
    vision, audio = config.vision_config, config.audio_config
    patches, columns = len(prompt.features["pixel_values_videos"]), int(prompt.features["feature_attention_mask"].sum())
    return {
        "visual": TowerPass(patches, vision.hidden_size, vision.depth),
        "audio_tower": TowerPass(columns / 2, audio.d_model, audio.encoder_layers),
    }


def step_work(contender: Contender, shape: Shape) -> Workload:
    """Return the sizes of a micro-batch, which is a group."""
    prompt = contender.trainer.encode(_sample()).prompt
    return Workload(
        rows=shape.num_generations,
        clips=1,
        prompt_tokens=len(prompt.prompt_ids),
        completion_tokens=shape.completion_length,
        towers=tower_work(contender, prompt),
        frames=shape.num_frames,
        size=shape.frame_size,
        generated_rows=NUM_CLIPS * shape.num_generations,
        generated_clips=NUM_CLIPS,
        num_steps=NUM_CLIPS,
    )


def estimated_rows(contender: Contender, shape: Shape, way: Way) -> dict[str, float]:
    """Estimate this step as `aurora-rl footprint` does, in GB: its lines, and the sums of both moments."""
    trainer = contender.trainer
    launch = dataclasses.replace(Launch.of(trainer.args), is_gpu=trainer.accelerator.device.type == "cuda")
    footprint = estimate_footprint(
        ModelArguments(model=""),
        DataArguments(data_root=""),
        trainer.args,
        launch=launch,
        clips=Clips(None, shape.num_frames, shape.frame_size, shape.seconds),
        work=step_work(contender, shape),
        device_memory=torch.cuda.get_device_properties(0).total_memory if launch.is_gpu else None,
        meta=_meta_model(shape, way),
    )
    lines = {f"estimated: {part.name}, GB": part.num_bytes / 1e9 for part in footprint.device}
    for moment in (SAMPLING, TRAINING):
        parts = fullest(part for part in footprint.device if part.when == ALWAYS or part.when.startswith(moment))
        lines[f"estimated: peak while {moment}, GB"] = sum_of(parts) / 1e9
    return lines


def _meta_model(shape: Shape, way: Way) -> MetaModel:
    """Build the model that `build` trains, on the `meta` device."""
    model, processor = build_model(shape, device="meta")
    model.to("meta")
    prepare_vocabulary(model, processor, Qwen2_5OmniFamily())
    with torch.device("meta"):
        trained = with_lora(model, way)
    if way.deepspeed:
        trained.to(torch.bfloat16)
    parts = tuple(measure_parts(trained, Qwen2_5OmniFamily(), ModelArguments(model="")))
    return MetaModel(trained, Qwen2_5OmniFamily(), parts, has_loaded_adapter=way.as_recipe)


def _encoder(shape: Shape, processor: ProcessorMixin) -> SampleEncoder:
    """Build an encoder of noise for frames, sound and embeddings: no part of a step depends on their content."""
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (shape.num_frames, *shape.frame_size, 3), dtype=np.uint8)
    waveform = generator.uniform(-0.1, 0.1, int(16_000 * shape.seconds)).astype(np.float32)
    truth = np.zeros(frames.shape[:3], dtype=bool)
    truth[:, : shape.frame_size[0] // 2] = True
    # Half precision, as in the cache.
    embeddings = torch.randn(shape.num_frames, *build_frame_encoder(shape.segmenter).frame_shape).half()
    return SampleEncoder(
        Qwen2_5OmniFamily(),
        processor,
        lambda sample, clip: embeddings,
        options=PromptOptions(max_pixels=200_704),
        load=lambda sample: AVClip(frames, waveform, truth),
    )


def _sample(number: int = 0) -> AVSample:
    return AVSample(
        uid=f"noise {number}", row=number, split="train", media_id=f"noise {number}", category="drum",
        reference=REFERENCE, fps=1.0, frame_paths=(), audio_path="", mask_paths=(),
    )  # fmt: skip


def _arguments(shape: Shape, way: Way) -> AuroraGRPOConfig:
    on_gpu = torch.cuda.is_available()
    vllm: dict[str, Any] = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.35}
    vllm |= {"vllm_max_model_length": 4096} if on_gpu else {}
    shortest = "min_tokens" if way.sampler == "vllm" else "min_new_tokens"
    return AuroraGRPOConfig(
        output_dir=tempfile.gettempdir(),
        mask_loss_on="all",
        max_steps=1,
        per_device_train_batch_size=shape.num_generations,
        num_generations=shape.num_generations,
        max_completion_length=shape.completion_length,
        gradient_accumulation_steps=NUM_CLIPS,
        beta=BETA if way.as_recipe else 0.0,
        generation_kwargs={shortest: shape.completion_length},
        bf16=on_gpu or way.deepspeed,
        use_cpu=not (on_gpu or way.deepspeed),
        ddp_backend="gloo" if way.deepspeed and not on_gpu else None,
        gradient_checkpointing=on_gpu,
        lr_scheduler_type="constant",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **(vllm if way.sampler == "vllm" else {}),
    )


if __name__ == "__main__":
    logging.getLogger("aurora_rl").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    main()
