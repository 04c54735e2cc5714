"""Check the estimate of `aurora_rl.footprint` against real training steps on the CPU.

python tools/measure_footprint.py

A Qwen2.5-Omni of 7 M weights, or a model of another family, large enough to outweigh all else that a step allocates,
is trained for two steps in each setting. Weights, gradients and optimiser state are counted from the tensors
themselves; the peak is that of PyTorch's CPU allocator during the second step, from its profiler; PyTorch counts the
operations of the first step. This takes about three minutes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from aurora_rl.assembly.arguments import DataArguments, ModelArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.assembly.encoder import assemble_encoder
from aurora_rl.assembly.model import assemble_model, peft_config
from aurora_rl.assembly.options import OptionParser
from aurora_rl.data.dataset import to_dataset
from aurora_rl.data.sample import AVSample
from aurora_rl.footprint import Clips, Footprint, Launch, estimate_footprint
from aurora_rl.footprint.workload import Workload, build_workload
from aurora_rl.models.collate import SFTCollator
from aurora_rl.models.mllm import MLLM_FAMILIES
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from aurora_rl.models.mllm.qwen2_5_omni.tiny import TinyOmniConfig, build_tiny_omni
from aurora_rl.synthetic import SyntheticConfig, write_synthetic_benchmark
from aurora_rl.tasks.targets import gold_chain
from aurora_rl.trainers.sft import AuroraSFTTrainer
from aurora_rl.trainers.sft_config import AuroraSFTConfig

BENCHMARK = SyntheticConfig(train=8, val=1, test_s=1, test_u=0, test_n=1, rows_per_clip=1)
SIZE = TinyOmniConfig(hidden_size=256, num_layers=8, num_heads=8, tower_size=64)
BATCH_SIZE = 8
SEGMENTER = {"type": "dot", "image_size": 64, "width": 32}
FROZEN_TOWERS = {"freeze": ["towers"]}
#: Other families by the settings' first words, and the size of their models.
FAMILIES = {"Qwen3-VL": "qwen3_vl", "Qwen3-Omni": "qwen3_omni_moe", "Gemma 4 unified": "gemma4_unified"}
FAMILY_SIZE = {"hidden_size": 256, "num_layers": 8, "num_heads": 8, "tower_size": 64}

#: Name -> values of (ModelArguments, AuroraSFTConfig) that differ from full fine-tuning by AdamW.
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full, batch 8": (FROZEN_TOWERS, {}),
    "full, batch 4": (FROZEN_TOWERS, {"per_device_train_batch_size": 4}),
    "full, batch 8, SGD": (FROZEN_TOWERS, {"optim": "sgd"}),
    "full, batch 8, checkpointing": (FROZEN_TOWERS, {"gradient_checkpointing": True}),
    "LoRA, batch 8": ({**FROZEN_TOWERS, "use_peft": True}, {}),
    "LoRA, batch 8, checkpointing": ({**FROZEN_TOWERS, "use_peft": True}, {"gradient_checkpointing": True}),
    "full and towers, batch 8": ({}, {}),
    **{f"{name}, LoRA, batch 8": ({**FROZEN_TOWERS, "use_peft": True}, {}) for name in FAMILIES},
}


@dataclasses.dataclass(frozen=True)
class Measured:
    """Bytes and operations of one setting, estimated or measured.

    Attributes:
        weights: bytes of all parameters.
        gradients: bytes of the gradients after the backward pass.
        optimiser: bytes of the optimiser state after the first step.
        step: peak of the second step in bytes, without weights and optimiser state.
        flops: operations of products and convolutions in a step; PyTorch does not count the CPU's fused attention.
    """

    weights: int
    gradients: int
    optimiser: int
    step: int
    flops: float


#: Field -> the table's unit, and its size.
UNITS = dict.fromkeys(("weights", "gradients", "optimiser", "step"), ("MB", 1e6)) | {"flops": ("GFLOP", 1e9)}


def measure(setting: str, model: Path, data_args: DataArguments) -> tuple[Measured, Measured]:
    """Estimate and measure one setting."""
    model_options, options = SETTINGS[setting]
    model_type = FAMILIES.get(setting.split(",")[0])
    if model_type is not None:
        model, data_args = model.with_name(model_type), of_family(model_type, data_args)
    model_args = ModelArguments(model=str(model), lora_dropout=0.0, **model_options)
    samples = load_split(data_args, data_args.train_split)[:BATCH_SIZE]
    trainer = build_trainer(model_args, data_args, samples, model, **options)
    watch = StepWatch(trainer)
    trainer.add_callback(watch)
    trainer.train()
    work = work_of(trainer, model_type or Qwen2_5OmniFamily.model_types[0], data_args, samples)
    launch = dataclasses.replace(Launch.of(trainer.args), is_gpu=False)
    footprint = estimate_footprint(
        model_args, data_args, trainer.args, launch=launch, clips=Clips.of(samples), work=work
    )
    return summary(footprint), watch.measured


def of_family(model_type: str, data_args: DataArguments) -> DataArguments:
    """Return the arguments of the data for a family, which may hear nothing."""
    return dataclasses.replace(data_args, drop_sound=not MLLM_FAMILIES[model_type]().hears)


def build_trainer(
    model_args: ModelArguments, data_args: DataArguments, samples: list[AVSample], folder: Path, **options: Any
) -> AuroraSFTTrainer:
    """Build a trainer as recipes/sft.py does, for two steps."""
    loaded = assemble_model(model_args, head="masks")
    common = {"max_steps": 2, "save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False}
    batch = {"per_device_train_batch_size": BATCH_SIZE, "gradient_checkpointing": False, "disable_tqdm": True}
    args = AuroraSFTConfig(output_dir=str(folder / "out"), **{**common, **batch, **options})
    encode = assemble_encoder(data_args, loaded, samples)
    return AuroraSFTTrainer(
        model=loaded.model,
        args=args,
        data_collator=SFTCollator(encode, loaded.seg_token_id, gold_chain),
        train_dataset=to_dataset(samples, encode.text_prompt),
        processing_class=loaded.processor,
        peft_config=peft_config(model_args, loaded),
    )


def work_of(trainer: AuroraSFTTrainer, model_type: str, data_args: DataArguments, samples: list[AVSample]) -> Workload:
    """Return the sizes of the trainer's batches, with the real length of their rows."""
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(trainer.args.per_device_train_batch_size)])
    config = trainer.accelerator.unwrap_model(trainer.model).config
    work = build_workload(MLLM_FAMILIES[model_type](), config, data_args, trainer.args, Clips.of(samples))
    return dataclasses.replace(work, prompt_tokens=batch["input_ids"].size(1), completion_tokens=0)


def summary(footprint: Footprint) -> Measured:
    """Return the numbers of an estimate that are compared."""

    def total(start: str) -> int:
        return sum(part.num_bytes for part in footprint.device if part.name.startswith(start))

    weights, optimiser = total("weights: "), total("optimiser")
    step = footprint.peak - weights - optimiser
    return Measured(weights, total("gradients"), optimiser, step, footprint.flops.total)


class StepWatch(TrainerCallback):
    """Counts gradients and optimiser state, and the first step's operations, and profiles the second step."""

    def __init__(self, trainer: AuroraSFTTrainer) -> None:
        self.model = trainer.model
        self.profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.operations = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._grouped_mm: grouped_flops})
        self.gradients = self.optimiser = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.operations.__enter__()
        else:
            self.profiler.start()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.gradients = sum(p.grad.nbytes for p in self.model.parameters() if p.grad is not None)

    def on_step_end(self, args: Any, state: Any, control: Any, *, optimizer: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.operations.__exit__(None, None, None)
        else:
            self.profiler.stop()
        states = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
        self.optimiser = sum(t.nbytes for t in states)

    @property
    def measured(self) -> Measured:
        weights = sum(p.nbytes for p in self.model.parameters())
        step = allocated_peak(self.profiler)
        return Measured(weights, self.gradients, self.optimiser, step, self.operations.get_total_flops())


def grouped_flops(
    left: torch.Size, right: torch.Size, *args: Any, out_shape: Any = None, out_val: Any = None, **options: Any
) -> int:
    """Count the operations of the experts' product: each row of (tokens, D) is multiplied with one expert."""
    return 2 * left.numel() * right[-1]


def allocated_peak(profiler: profile) -> int:
    """Return the most bytes allocated at once, beside those allocated before the profiler started."""
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


@contextlib.contextmanager
def prepared(folder: Path | None = None) -> Iterator[tuple[Path, DataArguments]]:
    """Write a benchmark and models to disk, and remove them after the block."""
    with tempfile.TemporaryDirectory() as temporary:
        root = folder or Path(temporary)
        write_synthetic_benchmark(root / "data", BENCHMARK)
        data_args = DataArguments(
            str(root / "data"), chains="chains.jsonl", fps=BENCHMARK.fps, num_frames=BENCHMARK.frames, min_pixels=256
        )
        texts = [text for s in load_split(data_args, "train") for text in (s.reference, s.chain or "")]
        model, processor = build_tiny_omni(texts, SEGMENTER, SIZE)
        model.save_pretrained(root / "model")
        processor.save_pretrained(root / "model")
        for model_type in FAMILIES.values():
            model, processor = MLLM_FAMILIES[model_type]().build_tiny(texts, segmenter=SEGMENTER, sizes=FAMILY_SIZE)
            model.save_pretrained(root / model_type)
            processor.save_pretrained(root / model_type)
        yield root / "model", data_args


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table with a row for each setting."""
    parser = OptionParser(description=__doc__)
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="settings that are measured"
    )
    args = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    titles = [f"{name}, {unit}: estimated / measured" for name, (unit, _) in UNITS.items()]
    print(f"| setting | {' | '.join(titles)} | ratio of steps, of flops |")
    print("|---" * (len(titles) + 2) + "|")
    with prepared() as (model, data_args):
        for setting in args.settings:
            print(f"| {setting} | {' | '.join(row(*measure(setting, model, data_args)))} |", flush=True)


def row(estimate: Measured, found: Measured) -> Iterator[str]:
    """Yield the cells of one setting."""
    for name, (_, size) in UNITS.items():
        yield f"{getattr(estimate, name) / size:.2f} / {getattr(found, name) / size:.2f}"
    yield f"{estimate.step / found.step:.2f}, {estimate.flops / found.flops:.2f}"


if __name__ == "__main__":
    main()
