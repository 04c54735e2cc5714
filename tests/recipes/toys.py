"""What stands in for the models and data that the recipes name: small ones, of the same form."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from peft import get_peft_model

from aurora_rl.assembly.arguments import DataArguments, ModelArguments, TargetArguments
from aurora_rl.assembly.model import peft_config
from aurora_rl.models.loading import LoadedModel, load_model
from aurora_rl.models.mllm import MLLM_FAMILIES
from aurora_rl.scripts import sft
from aurora_rl.synthetic import SyntheticConfig, write_synthetic_benchmark
from aurora_rl.synthetic.sounds import SoundsConfig, write_sounds
from aurora_rl.trainers.sft_config import AuroraSFTConfig
from tests.data.test_avsbench import write_audio, write_frames, write_masks

#: Recipes of other families than Qwen2.5-Omni, by what their names begin with.
FAMILIES = {"qwen3_vl_8b": "qwen3_vl", "gemma4_12b": "gemma4_unified", "qwen3_omni_30b": "qwen3_omni_moe"}


@dataclasses.dataclass(frozen=True)
class Toys:
    """What stands in for models and data.

    Attributes:
        omni: a plain model, without a mask decoder.
        sam: SAM.
        adapter: a LoRA adapter that answers in the form of the benchmark; its mask decoder is SAM's.
        families: a plain model of each other family, and an adapter of it, by what the recipes' names begin with; and
            those of recipes that are answered in words, by their folder.
        tiny: models with the head of each folder's recipes: the demo's mask decoder, a box head, none.
        benchmarks: data, by the YAML's folder.
        reflections: mistakes of half of the rows, by the YAML's folder.
        pass_rates: rates of all rows that the recipes with a curriculum train on.
    """

    omni: str
    sam: str
    adapter: str
    families: Mapping[str, tuple[str, str]]
    tiny: Mapping[str, str]
    benchmarks: Mapping[str, Path]
    reflections: Mapping[str, Path]
    pass_rates: Path


def write_s4(root: Path) -> Path:
    """AVSBench S4: ten clips to train on, with their first mask alone, and a few of each other split."""
    lines = ["name,start,category,split"]
    for split, number in (("train", 10), ("val", 2), ("test", 4)):
        for index in range(number):
            name = f"{split}clip{index}"
            clip = f"{split}/dog_barking/{name}"
            lines.append(f"{name},0,dog_barking,{split}")
            write_frames(root / "visual_frames" / clip, [f"{name}_{i}.png" for i in range(1, 6)])
            masks = [f"{name}_{i}.png" for i in range(1, 2 if split == "train" else 6)]
            write_masks(root / "gt_masks" / clip, masks, mode="1", value=1, width=32)
            write_audio(root / "audio_wav" / f"{clip}.wav")
    (root / "s4_meta_data.csv").write_text("\n".join(lines) + "\n")
    return root


def write_avqa(root: Path) -> Path:
    """Questions of EchoInk-R1's form: a still picture and a sound each, no masks."""
    for split, number in (("train", 4), ("valid", 3)):
        clips = [f"clip{index}" for index in range(number)]
        write_frames(root / split / "images", [f"{clip}.png" for clip in clips])
        records = []
        for index, clip in enumerate(clips):
            write_audio(root / split / "audios" / f"{clip}.wav")
            record = {"problem_id": index, "problem": "What sounds?", "problem_type": "multiple choice"}
            record |= {"options": ["A. drum", "B. bell"], "solution": "<answer>B</answer>"}
            records.append({**record, "path": {"image": f"images/{clip}.png", "audio": f"audios/{clip}.wav"}})
        (root / split / f"omni_rl_format_{split}.json").write_text(json.dumps(records))
    return root


def write_ref_avs(root: Path) -> Path:
    """Clips of ten frames and ten seconds, as Ref-AVSBench's are."""
    sizes = {"train": 12, "val": 2, "test_s": 2, "test_u": 2, "test_n": 2}
    write_synthetic_benchmark(root, SyntheticConfig(**sizes, rows_per_clip=2, frames=10, seconds=10.0))
    return root


def write_reflections(benchmark: Path, path: Path) -> Path:
    """Every second chain, taken back: the stage-1 model named another object."""
    records = [json.loads(line) for line in (benchmark / "chains.jsonl").read_text().splitlines()]
    wrong = {"wrong": "Answer: the target is the zebra."}
    lines = [json.dumps({**record, **wrong}) for record in records[::2] if record["split"] == "train"]
    path.write_text("\n".join(lines) + "\n")
    return path


def taught_adapter(omni: str, sam: str, benchmark: Path, folder: Path) -> str:
    """An adapter on a model that has learned the form of an answer, so that GRPO's rollouts have masks and rewards.

    At a constant rate 25 steps are enough for one [SEG] in every greedy answer, 30 leave a margin for other machines.
    The frozen towers, whose features the form does not need, would cost a third of the time.
    """
    segmenter = {"type": "sam", "checkpoint": sam, "image_size": 64}
    training = {"max_steps": 30, "learning_rate": 5e-3, "per_device_train_batch_size": 4, "warmup_steps": 2}
    quiet = {
        "lr_scheduler_type": "constant_with_warmup",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    data_args = DataArguments(str(benchmark), embedding_cache=str(folder / "embeddings"))
    sft.main(
        ModelArguments(model=omni, segmenter=segmenter, freeze=["visual", "audio_tower"]),
        data_args,
        TargetArguments(target="answer"),
        AuroraSFTConfig(str(folder / "taught"), **training, **quiet),
    )
    return save_adapter(load_model(str(folder / "taught"), dtype="bfloat16"), folder / "adapter")


def save_adapter(loaded: LoadedModel, folder: Path) -> str:
    adapter = get_peft_model(loaded.model, peft_config(ModelArguments(model="", use_peft=True), loaded))
    adapter.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return str(folder)


def write_pass_rates(path: Path, rows: int) -> Path:
    """Rates that keep all rows of `write_sounds`."""
    lines = [{"uid": f"train-{row:05d}", "row": row, "passes": 1 + row, "tries": 16} for row in range(rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def of_words(omni: str, folder: Path) -> tuple[str, str]:
    """A plain model, and an untrained adapter of it that has no head."""
    loaded = load_model(omni, dtype="bfloat16")
    adapter = get_peft_model(
        loaded.model, peft_config(ModelArguments(model="", use_peft=True, lora_modules_to_save=[]), loaded)
    )
    adapter.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return omni, str(folder)


def of_family(model_type: str, sam: str, benchmark: Path, folder: Path) -> tuple[str, str]:
    """A plain model of a family, and an untrained adapter of it with SAM's mask decoder."""
    texts = [json.loads(line)["answer"] for line in (benchmark / "chains.jsonl").read_text().splitlines()]
    model, processor = MLLM_FAMILIES[model_type]().build_tiny(texts)
    model.save_pretrained(folder / "plain")
    processor.save_pretrained(folder / "plain")
    segmenter = {"type": "sam", "checkpoint": sam, "image_size": 64}
    loaded = load_model(str(folder / "plain"), segmenter=segmenter, dtype="bfloat16")
    return str(folder / "plain"), save_adapter(loaded, folder / "adapter")


def with_box_head(checkpoint: str, folder: Path) -> str:
    """A model with a box head beside its mask decoder, which no step of a box recipe may run."""
    loaded = load_model(checkpoint, heads={"boxes": {"type": "dot", "image_size": 32, "width": 8}})
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return str(folder)


def make_toys(benchmark: Path, omni: str, sam: str, tiny: str, folder: Path) -> Toys:
    """Write all of them into a folder; the demo's benchmark and the plain models are given."""
    ref_avs = write_ref_avs(folder / "ref_avs")
    write_sounds(folder / "sounds", SoundsConfig(sft=8, train=8, test=0))
    return Toys(
        omni,
        sam,
        taught_adapter(omni, sam, ref_avs, folder),
        {
            **{name: of_family(kind, sam, ref_avs, folder / name) for name, kind in FAMILIES.items()},
            "audio_qa": of_words(omni, folder / "words"),
        },
        {"": tiny, "boxes": with_box_head(tiny, folder / "boxes"), "choice": omni},
        {
            "ref_avs": ref_avs,
            "synthetic": benchmark,
            "avsbench": write_s4(folder / "avsbench"),
            "avqa": write_avqa(folder / "avqa"),
            "audio_qa": folder / "sounds",
        },
        {
            "ref_avs": write_reflections(ref_avs, folder / "reflections.jsonl"),
            "synthetic": write_reflections(benchmark, folder / "reflections_synthetic.jsonl"),
        },
        write_pass_rates(folder / "pass_rates.jsonl", rows=8),
    )
