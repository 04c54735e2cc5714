"""Every shipped recipe takes its first steps as it is shipped, at toy width: bf16, ZeRO, LoRA, checkpointing, SAM.

Each YAML under recipes/ is driven by the command of its first comment, under the accelerate config named there. Only
what `OVERRIDDEN` lists is another: models, data and folders, and what makes a run short or a CPU needs. Training
recipes take two optimiser steps, save, and take the second one again from the first one's checkpoint; others run, are
killed, and run again. YAMLs that agree in all that decides how a step runs share one run (`shares_run_with`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import get_peft_model
from safetensors.torch import load_file

from aurora_rl.assembly.arguments import DataArguments, ModelArguments, TargetArguments
from aurora_rl.assembly.model import peft_config
from aurora_rl.models.loading import LoadedModel, load_model
from aurora_rl.models.mllm import MLLM_FAMILIES
from aurora_rl.scripts import run_stages, sft
from aurora_rl.scripts.run_stages import Runner, StageFailedError
from aurora_rl.scripts.stage_plan import Stage
from aurora_rl.synthetic import SyntheticConfig, write_synthetic_benchmark
from aurora_rl.synthetic.sounds import SoundsConfig, write_sounds
from aurora_rl.trainers.sft_config import AuroraSFTConfig
from tests.data.test_avsbench import write_audio, write_frames, write_masks
from tests.recipes.correcting_endpoint import correcting_endpoint

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(1500)]

ROOT = Path(__file__).resolve().parents[2]
RECIPES = {str(path.relative_to(ROOT / "recipes").with_suffix("")): path for path in ROOT.glob("recipes/**/*.yaml")}

#: What a drive may change of a YAML.
OVERRIDDEN = {
    *("model", "segmenter", "data_root", "reflections", "pass_rates", "embedding_cache", "output_dir", "output"),
    *("max_steps", "save_steps", "eval_steps", "logging_steps", "warmup_steps"),
    *("max_completion_length", "dataloader_num_workers", "dataloader_persistent_workers"),
    *("max_eval_samples", "max_rows"),
    *("use_cpu", "ddp_backend"),
    # vLLM's on a CPU, where its default takes a share of the machine's memory for keys and values.
    "vllm_engine_kwargs",
    # Of the demo's recipes, which keep one checkpoint at most: the resume starts from the last but one.
    *("save_strategy", "save_only_model", "save_total_limit"),
}
#: A 7B recipe with a box head in the place of its mask decoder.
WITH_BOXES = {
    "task": "aurora_rl.tasks.reference_boxes:ReferenceBoxes",
    "segmenter": None,
    "embedding_cache": None,
    "heads": {"boxes": {"type": "dot", "image_size": 64, "width": 8}},
}
#: Further launches of training recipes, beside the one that their first comment names.
ALSO_UNDER = {"ref_avs/sft_7b": ("zero3", "fsdp2"), "ref_avs/grpo_7b": ("zero3", "fsdp2")}
#: Training recipes that take their steps here, with the launches they do it under.
TRAINED = (
    "ref_avs/sft_7b",
    "ref_avs/teacher_7b",
    "ref_avs/reflection_7b",
    "ref_avs/grpo_7b",
    "ref_avs/grpo_7b_vllm",
    "ref_avs/qwen3_vl_8b_sft",
    "ref_avs/qwen3_vl_8b_grpo",
    "ref_avs/gemma4_12b_sft",
    "ref_avs/gemma4_12b_grpo",
    "ref_avs/qwen3_omni_30b_sft",
    "ref_avs/qwen3_omni_30b_grpo",
    "avsbench/sft_7b",
    "avqa/grpo_7b",
    "audio_qa/grpo_7b",
    "synthetic/sft",
    "synthetic/teacher",
    "synthetic/reflection",
    "synthetic/grpo",
    "synthetic/grpo_without_guards",
    "synthetic/boxes/sft",
    "synthetic/boxes/grpo",
    "synthetic/choice/sft",
    "synthetic/choice/grpo",
)
#: Recipes of other families than Qwen2.5-Omni, by what their names begin with.
FAMILIES = {"qwen3_vl_8b": "qwen3_vl", "gemma4_12b": "gemma4_unified", "qwen3_omni_30b": "qwen3_omni_moe"}
#: Gemma multiplies embeddings and layers by buffers, which are of its weights' dtype as they were in its training.
SCALES_OF_GEMMA = {"language_model buffers": ["bfloat16", "float32"], "embed_tokens buffers": ["bfloat16"]}
#: Recipes that take their steps once: the trainers resume any family and any task alike, which their neighbours show.
ONCE = {
    *("ref_avs/qwen3_vl_8b_sft", "ref_avs/qwen3_vl_8b_grpo", "ref_avs/gemma4_12b_grpo", "ref_avs/qwen3_omni_30b_sft"),
    # Multiple choice about a still picture: its neighbours resume, and are killed, alike.
    *("avqa/grpo_7b", "avqa/evaluate"),
    "audio_qa/grpo_7b",
}
#: The last function of a killed run's process, by script.
KILLED_AFTER = {
    "recipes/evaluate.py": "aurora_rl.files.journal:Journal.append",
    "data_prep/collect_mistakes.py": "aurora_rl.files.journal:Journal.append",
    "data_prep/pass_rates.py": "aurora_rl.files.journal:Journal.append",
    "recipes/init_tiny.py": "transformers:PreTrainedModel.save_pretrained",
}
#: What a recipe takes over from the one whose model it goes on from.
GOES_ON = ("model", "segmenter", "use_peft", "lora_modules_to_save")
#: Scripts that ask about training rows.
COUNTING = ("data_prep/collect_mistakes.py", "data_prep/pass_rates.py")
#: Recipes that leave a file, and no checkpoint.
KILLED = (
    *("synthetic/evaluate", "synthetic/choice/evaluate", "synthetic/mistakes", "synthetic/choice/pass_rates"),
    *("ref_avs/evaluate", "ref_avs/mistakes_7b", "avsbench/evaluate", "avqa/evaluate"),
)
#: Recipes that make a first model.
FIRST = ("synthetic/init", "synthetic/boxes/init", "synthetic/choice/init")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A YAML and the command of its first comment."""

    name: str

    @property
    def content(self) -> dict[str, Any]:
        return yaml.safe_load(RECIPES[self.name].read_text())

    @property
    def command(self) -> list[str]:
        return shlex.split(RECIPES[self.name].read_text().splitlines()[0].removeprefix("# "))

    @property
    def lane(self) -> str:
        """Stem of the accelerate config; a plain `python` command counts as one process."""
        return next((Path(word).stem for word in self.command if word.startswith("accelerate_configs/")), "cpu")

    @property
    def script(self) -> str:
        return next(word for word in self.command if word.endswith(".py"))

    @property
    def samples_by_vllm(self) -> bool:
        return bool(self.content.get("use_vllm"))

    @property
    def base(self) -> dict[str, Any]:
        """The content with what it takes over from the recipe whose model it goes on from."""
        model = self.content.get("model", "")
        for name in RECIPES:
            folder = Recipe(name).content.get("output_dir") if name != self.name else None
            if folder and "stages" not in Recipe(name).content and (model == folder or model.startswith(f"{folder}/")):
                earlier = Recipe(name).base
                return {**{key: earlier.get(key) for key in GOES_ON}, **self.own_choices}
        return self.content

    @property
    def own_choices(self) -> dict[str, Any]:
        return {key: value for key, value in self.content.items() if key != "model"}

    @property
    def kind(self) -> tuple[Any, ...]:
        """All that decides how a step runs."""
        base = self.base
        return (
            self.script,
            self.lane,
            re.sub(r"-\d+B$", "", base.get("model") or "tiny"),
            (base.get("segmenter") or {}).get("type", "dot"),
            bool(base.get("use_peft")),
            bool(self.content.get("gradient_checkpointing")),
            self.content.get("beta"),
            self.content.get("target", "chain"),
            self.samples_by_vllm,
        )


#: Recipes that learn to choose tools, one after another.
TOOL_RECIPES = ("init", "sft", "grpo", "evaluate")
#: Driven by other tests, which name them.
DRIVEN_ELSEWHERE = {
    "synthetic/stages": "tests/paths/test_all_stages.py",
    # Their recipes are driven one by one; tests/paths/test_documentation.py reads their commands.
    "synthetic/demo": "tests/recipes/test_report.py",
    "synthetic/smoke": "tests/recipes/test_report.py",
    "agents/ref_avs": "tests/agents/test_agents_command.py",
    "synthetic/choice/stages": "tests/recipes/test_compare_answers.py",
    "synthetic/choice/think_stages": "tests/recipes/test_compare_answers.py",
    "synthetic/moments/stages": "tests/recipes/test_compare_answers.py",
    **{f"synthetic/moments/{name}": "tests/recipes/test_moments.py" for name in ("init", "sft", "grpo", "evaluate")},
    **{f"synthetic/seeds{full}": "tests/recipes/test_gather_seeds.py" for full in ("", "_full")},
    "synthetic/listening/stages": "tests/recipes/test_compare_listening.py",
    "synthetic/audio_qa/stages": "tests/recipes/test_compare_orders.py",
    **{
        f"synthetic/audio_qa/{name}": "tests/recipes/test_audio_qa.py"
        for name in ("init", "sft", "pass_rates", "grpo", "evaluate")
    },
    **{f"audio_qa/{name}": "tests/recipes/test_audio_qa.py" for name in ("sft_7b", "pass_rates", "evaluate")},
    **{f"synthetic/tools/{name}": "tests/recipes/test_tool_choices.py" for name in ("stages", *TOOL_RECIPES)},
    "audio_tools/table_7b": "tests/recipes/test_tool_choices.py",
    "audio_tools/grpo_7b": "tests/recipes/test_tool_choices.py",
    "synthetic/state_layers/stages": "tests/recipes/test_compare_stages.py",
    "synthetic/state_layers/init_2": "tests/recipes/test_compare_stages.py",
    "synthetic/state_layers/init_3": "tests/recipes/test_compare_stages.py",
    "synthetic/state_layers/init_4": "tests/recipes/test_compare_stages.py",
}
SHARED = sorted(
    name
    for name in RECIPES
    if name not in (*TRAINED, *DRIVEN_ELSEWHERE) and Recipe(name).script in ("recipes/sft.py", "recipes/grpo.py")
    if Recipe(name).kind in {Recipe(other).kind for other in TRAINED}
)


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


@pytest.fixture(scope="module")
def toys(
    lane: Callable[[str], Lane],  # so that the first one imports its libraries meanwhile
    tiny_benchmark: Path,
    omni_checkpoint: str,
    sam_checkpoint: str,
    tiny_checkpoint: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Toys:
    folder = tmp_path_factory.mktemp("toys")
    ref_avs = write_ref_avs(folder / "ref_avs")
    write_sounds(folder / "sounds", SoundsConfig(sft=8, train=8, test=0))
    return Toys(
        omni_checkpoint,
        sam_checkpoint,
        taught_adapter(omni_checkpoint, sam_checkpoint, ref_avs, folder),
        {
            **{name: of_family(kind, sam_checkpoint, ref_avs, folder / name) for name, kind in FAMILIES.items()},
            "audio_qa": of_words(omni_checkpoint, folder / "words"),
        },
        {"": tiny_checkpoint, "boxes": with_box_head(tiny_checkpoint, folder / "boxes"), "choice": omni_checkpoint},
        {
            "ref_avs": ref_avs,
            "synthetic": tiny_benchmark,
            "avsbench": write_s4(folder / "avsbench"),
            "avqa": write_avqa(folder / "avqa"),
            "audio_qa": folder / "sounds",
        },
        {
            "ref_avs": write_reflections(ref_avs, folder / "reflections.jsonl"),
            "synthetic": write_reflections(tiny_benchmark, folder / "reflections_synthetic.jsonl"),
        },
        write_pass_rates(folder / "pass_rates.jsonl", rows=8),
    )


#: Accelerate configs, in the order in which they are driven.
LANES = ("zero2", "zero3", "fsdp2", "multi_gpu", "cpu")


class Lane:
    """Processes under one accelerate config that run one script after the other (contract_run.py)."""

    def __init__(self, config: str, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.ranks = 1 if config == "cpu" else 2
        self.number = 0
        command = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            f"accelerate_configs/{config}.yaml",
        ]
        command += [] if config == "cpu" else ["--num_processes", "2", "--main_process_port", "0"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment["DS_ACCELERATOR"] = "cpu"
        self.log = (folder / "launcher.log").open("w+")
        script = ["tests/recipes/contract_run.py", str(folder)]
        self.process = subprocess.Popen(
            [*command, *script], cwd=ROOT, env=environment, stdout=self.log, stderr=self.log
        )

    def run(self, script: str, arguments: list[str], **options: Any) -> tuple[bool, str]:
        """Run a script; whether it went well in every process, and what they said."""
        number, self.number = self.number, self.number + 1
        log = str(self.folder / f"{number}.log")
        job = {"script": script, "arguments": arguments, "port": free_port(), "log": log, **options}
        (self.folder / "next").write_text(json.dumps(job))
        (self.folder / "next").rename(self.folder / f"{number}.json")
        codes = [self._code(self.folder / f"{number}.{rank}") for rank in range(self.ranks)]
        said = "".join(Path(f"{log}.{rank}").read_text(errors="replace")[-6000:] for rank in range(self.ranks))
        return not any(codes), said

    def _code(self, path: Path) -> int:
        while not path.exists() or not path.read_text():
            if self.process.poll() is not None:
                self.log.seek(0)
                raise AssertionError(f"the lane {self.config} has ended:\n{self.log.read()[-10000:]}")
            time.sleep(0.02)
        return int(path.read_text())

    def close(self) -> None:
        (self.folder / "stop").touch()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=600)
        self.process.kill()
        self.log.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def lane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Lane]]:
    """The lane of an accelerate config. The next one imports its libraries while this one works; no third is open."""
    collected = " ".join(item.name for item in request.session.items)
    coming = [config for config in LANES if f"-{config}]" in collected]
    open_lanes: dict[str, Lane] = {}

    def start(config: str) -> None:
        if config not in open_lanes:
            open_lanes[config] = Lane(config, tmp_path_factory.mktemp(config))

    def of(config: str) -> Lane:
        start(config)
        following = coming[coming.index(config) + 1 :][:1] if config in coming else []
        for other in [other for other in open_lanes if other not in (config, *following)]:
            open_lanes.pop(other).close()
        for other in following:
            start(other)
        return open_lanes[config]

    for config in coming[:1]:
        start(config)
    yield of
    for each in open_lanes.values():
        each.close()


class Drive:
    """Writes a recipe's YAML with toys in place of what it names, and runs its command."""

    def __init__(self, toys: Toys, lane: Callable[[str], Lane], folder: Path) -> None:
        self.toys, self.lane, self.folder = toys, lane, folder

    def write(self, recipe: Recipe, config: str, *, other: Mapping[str, Any] | None = None, **changes: Any) -> Path:
        """The YAML with what is overridden; `other` makes another recipe of it first."""
        shipped = {**recipe.content, **(other or {})}
        content = {**shipped, **self._short(recipe), **self._paths(recipe), **self._device(recipe, config), **changes}
        content |= other or {}
        assert {key for key in content if content[key] != shipped.get(key)} <= OVERRIDDEN
        if shipped.get("segmenter"):
            assert content["segmenter"]["type"] == shipped["segmenter"]["type"]
        path = self.folder / f"{recipe.name.replace('/', '-')}-{len(list(self.folder.iterdir()))}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    def __call__(
        self, recipe: Recipe, config: str, out: Path, *arguments: str,
        other: Mapping[str, Any] | None = None, **options: Any,
    ) -> tuple[bool, str]:  # fmt: skip
        """Run it under an accelerate config; whether that went well, and what it said."""
        key = "output" if "output" in recipe.content else "output_dir"
        path = self.write(recipe, config, other=other, **{key: str(out)})
        return self.lane(config).run(recipe.script, ["--config", str(path), *arguments], **options)

    def _paths(self, recipe: Recipe) -> dict[str, Any]:
        bench, shipped = recipe.name.split("/")[0], recipe.content
        paths: dict[str, Any] = {"data_root": str(self.toys.benchmarks[bench])}
        if "embedding_cache" in shipped:
            paths["embedding_cache"] = str(self.folder / f"embeddings_{bench}")
        if "reflections" in shipped:
            paths["reflections"] = str(self.toys.reflections[bench])
        if "pass_rates" in shipped:
            paths["pass_rates"] = str(self.toys.pass_rates)
        if "segmenter" in shipped and "model" in shipped:
            paths["segmenter"] = {**shipped["segmenter"], "checkpoint": self.toys.sam, "image_size": 64}
        if "model" in shipped:
            tiny = self.toys.tiny["/".join(recipe.name.split("/")[1:-1])]
            family = recipe.name.split("/")[1].rpartition("_")[0]
            usual = self.toys.families.get(bench, (self.toys.omni, self.toys.adapter))
            plain, adapter = self.toys.families.get(family, usual)
            others = {"synthetic": tiny, "avqa": plain}.get(bench, adapter)
            paths["model"] = others if shipped["model"].startswith("outputs/") else plain
        return paths

    def _short(self, recipe: Recipe) -> dict[str, Any]:
        if recipe.script in ("recipes/sft.py", "recipes/grpo.py"):
            short = {"max_steps": 2, "save_steps": 1, "logging_steps": 1, "warmup_steps": 0}
            short |= {"save_strategy": "steps", "save_only_model": False, "save_total_limit": 2}
            short |= {"dataloader_num_workers": 0, "dataloader_persistent_workers": False}
            short |= {"eval_steps": 1, "max_eval_samples": 2} if "eval_steps" in recipe.content else {}
            return short | ({"max_completion_length": 16} if recipe.script == "recipes/grpo.py" else {})
        short = {"max_completion_length": 16} if "max_completion_length" in recipe.content else {}
        return short | ({"max_rows": 8} if recipe.script in COUNTING else {})

    def _device(self, recipe: Recipe, config: str) -> dict[str, Any]:
        if recipe.script == "recipes/init_tiny.py":
            return {}
        is_training = recipe.script in ("recipes/sft.py", "recipes/grpo.py")
        device: dict[str, Any] = {"use_cpu": not (is_training and config.startswith("zero"))}  # DeepSpeed only trains
        device |= {"vllm_engine_kwargs": {"kv_cache_memory_bytes": 64_000_000}} if recipe.samples_by_vllm else {}
        return device | ({"ddp_backend": "gloo"} if is_training and config != "cpu" else {})


@pytest.fixture(scope="module")
def drive(toys: Toys, lane: Callable[[str], Lane], tmp_path_factory: pytest.TempPathFactory) -> Drive:
    return Drive(toys, lane, tmp_path_factory.mktemp("drives"))


LAUNCHES = [(name, config) for name in TRAINED for config in (Recipe(name).lane, *ALSO_UNDER.get(name, ()))]
#: In the order of lanes, so that each is started once.
LAUNCHES.sort(key=lambda launch: LANES.index(launch[1]))


def expected_dtype(config: str, group: str) -> str:
    """Of a group of parameters or buffers, as contract_run.py names them.

    DeepSpeed casts every parameter and adds its steps to float32 copies. FSDP2 holds all that is trained in float32,
    and the mask decoder and adapters that are not as well. Buffers keep their dtype everywhere; the head's suppressed
    logits are of the head's.
    """
    part, kind = group.split()[0], group.split()[-1]
    if part == "masters" or config == "cpu":
        return "float32"
    if kind == "buffers":
        return "bfloat16" if part == "lm_head" else "float32"
    if group == "lora frozen":  # GRPO's reference: PEFT puts what TRL adds by itself in float32, and DeepSpeed's
        return "bfloat16" if config == "zero2" else "float32"  # ZeRO-3 casts nothing that it has not spread at loading
    if config == "fsdp2" and (kind == "trained" or part in ("lora", "seg_head")):
        return "float32"
    return "bfloat16"


def logs(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def assert_finite(history: list[dict[str, Any]]) -> None:
    for line in history:
        assert all(math.isfinite(value) for value in line.values() if isinstance(value, float)), line


def trained_weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*model.safetensors")
    return load_file(path)


def rotary_frequencies(model: str) -> dict[str, list[float]]:
    """Of a model loaded in one process, by the names of its buffers."""
    buffers = load_model(model).model.named_buffers()
    return {name: buffer.flatten()[:8].tolist() for name, buffer in buffers if name.endswith("inv_freq")}


def rows_of(path: Path) -> dict[str, tuple[str, Any]]:
    """What each row was answered: the text, or how often it was right, and the masks where the file has them."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {f"{row['uid']}/{row['row']}": (answer_of(row), masks_of(row)) for row in rows}


def answer_of(row: Mapping[str, Any]) -> Any:
    return row["passes"] if "passes" in row else row.get("completion") or row["greedy"]["text"]


def masks_of(row: Mapping[str, Any]) -> Any:
    return row["greedy"]["pred_masks"] if "greedy" in row else None


# Tests that need one lane stand side by side: it is started once. Here begins ZeRO-2's.


def test_yamls_that_share_a_run_are_read_and_built(drive: Drive, tmp_path: Path) -> None:
    assert SHARED == ["ref_avs/grpo_3b", "ref_avs/sft_3b"]
    for name in SHARED:
        went_well, said = drive(Recipe(name), Recipe(name).lane, tmp_path / name, build_only=True)
        assert went_well and "built" in said, said


def test_a_decoder_that_does_not_cast_its_buffers_breaks_the_contract(drive: Drive, tmp_path: Path) -> None:
    went_well, said = drive(Recipe("ref_avs/sft_7b"), "zero2", tmp_path / "broken", uncast_buffers=True)
    assert not went_well
    assert re.search(r"RuntimeError: expected .*(dtype|scalar type)", said)  # each operator has words of its own


class LaneRunner(Runner):
    """The runner itself, whose launched stages run in a lane under the same accelerate config."""

    lane: Lane
    #: The stages that were run, in order.
    ran: list[str]
    #: A stage that is killed at the end of a function, and that function.
    killed: tuple[str, str] | None

    def _execute(self, stage: Stage, command: Sequence[str], lock: int | None) -> None:
        self.ran.append(stage.name)
        if "accelerate.commands.launch" not in command:
            super()._execute(stage, command, lock)
            return
        script = next(number for number, word in enumerate(command) if word.endswith(".py"))
        options = {"killed_after": self.killed[1]} if self.killed and self.killed[0] == stage.name else {}
        went_well, said = self.lane.run(command[script], list(command[script + 1 :]), **options)
        if not went_well:
            raise StageFailedError(said)


def write_7b_stages(drive: Drive, url: str, folder: Path) -> Path:
    """The stages of the 7B model, each stage's recipe as `Drive.write` changes it, the endpoint at `url`."""
    content = Recipe("ref_avs/stages_7b").content
    for stage in content["stages"].values():
        if "config" in stage:
            name = stage["config"].removeprefix("recipes/").removesuffix(".yaml")
            stage["config"] = str(drive.write(Recipe(name), "zero2"))
    benchmark = str(drive.toys.benchmarks["ref_avs"])
    content["stages"]["corrections_7b"]["options"] |= {"data_root": benchmark, "base_url": url}
    path = folder / "stages.yaml"
    path.write_text(yaml.safe_dump({**content, "output_dir": str(folder / "out")}, sort_keys=False))
    return path


def test_the_7b_stages_are_killed_and_resume_to_their_scores(
    drive: Drive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Recipe("ref_avs/stages_7b").content["accelerate_config"] == "accelerate_configs/zero2.yaml"
    monkeypatch.setattr(run_stages, "Runner", LaneRunner)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("GEMINI_API_KEY", "a-key")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    LaneRunner.lane = drive.lane("zero2")
    LaneRunner.ran = []
    LaneRunner.killed = ("sft_7b", "aurora_rl.trainers.resumable:ResumableTrainer._save_checkpoint")
    with correcting_endpoint() as (url, asked):
        path = str(write_7b_stages(drive, url, tmp_path))
        assert run_stages.main(["--config", path]) == 1, capsys.readouterr().err
        assert LaneRunner.ran == ["teacher_7b", "sft_7b"]
        assert (tmp_path / "out/sft_7b/checkpoint-1").is_dir()
        LaneRunner.killed, LaneRunner.ran = None, []
        code = run_stages.main(["--config", path])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "sft_7b: was interrupted, resumes from its last checkpoint" in said.out
    stages = ["sft_7b", "mistakes_7b", "corrections_7b", "reflection_7b", "grpo_7b", "evaluation_7b"]
    assert LaneRunner.ran == stages
    for stage in ("teacher_7b", "sft_7b", "reflection_7b", "grpo_7b"):
        assert [line["step"] for line in logs(tmp_path / "out" / stage) if "loss" in line] == [1, 2]
        assert_finite(logs(tmp_path / "out" / stage))
    assert any("distillation" in line for line in logs(tmp_path / "out/sft_7b"))
    corrected = (tmp_path / "out/corrections_7b/reflections.jsonl").read_text().splitlines()
    assert asked == ["gemini-3.5-flash"] * len(asked) and len(corrected) == len(asked) > 0
    assert len(rows_of(tmp_path / "out/evaluation_7b/results.jsonl")) == 6


@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_a_box_head_takes_the_7b_recipes_steps_sharded_in_bf16_beneath_lora(
    config: str, drive: Drive, tmp_path: Path
) -> None:
    recipe, out = Recipe("ref_avs/sft_7b"), tmp_path / "boxes"
    went_well, said = drive(recipe, config, out, other=WITH_BOXES)
    assert went_well, said
    steps = [line for line in logs(out) if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert all(line["box_presence"] > 0 for line in steps)
    assert_finite(logs(out))
    first, second = (trained_weights(out / f"checkpoint-{step}") for step in (1, 2))
    of_head = [name for name in first if "boxes_head" in name]
    unchanged = [name for name in of_head if torch.equal(first[name], second[name])]
    assert len(unchanged) < len(of_head), (unchanged, steps)


def as_parameter(name: str, config: str) -> Any:
    return pytest.param(
        name, config, id=f"{name}-{config}", marks=[pytest.mark.vllm] if Recipe(name).samples_by_vllm else []
    )


@pytest.mark.parametrize(("name", "config"), [as_parameter(*launch) for launch in LAUNCHES])
def test_two_steps_a_save_and_a_resume(name: str, config: str, drive: Drive, tmp_path: Path) -> None:
    recipe, out, again = Recipe(name), tmp_path / "unbroken", tmp_path / "resumed"
    went_well, said = drive(recipe, config, out)
    assert went_well, said
    steps = [line for line in logs(out) if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert_finite(logs(out))
    assert all(("sampling/sampling_logp_difference/max" in line) == recipe.samples_by_vllm for line in steps)
    if recipe.content.get("eval_strategy") == "steps":
        assert sum(any(key.startswith("eval_") for key in line) for line in logs(out)) == 2
    left = json.loads((out / "contract.json").read_text())
    found = left["dtypes"]
    expected = {group: [expected_dtype(config, group)] for group in found}
    assert found == expected | (SCALES_OF_GEMMA if "gemma4" in name else {})
    assert left["rotary"] == rotary_frequencies(str(out))  # ZeRO-3 would make them in bf16
    has_adapter = bool(recipe.base.get("use_peft"))
    assert {"language_model frozen" if has_adapter else "language_model trained", "masters"} <= found.keys()
    if has_adapter:
        trained = {group for group in found if group.endswith("trained")}
        saved = recipe.base.get("lora_modules_to_save")
        parts = ("seg_head", "lm_head", "embed_tokens") if saved is None else saved
        assert trained == {f"{part} trained" for part in ("lora", *parts)}

    if name in ONCE:
        return
    went_well, said = drive(recipe, config, again, "--resume_from_checkpoint", str(out / "checkpoint-1"))
    assert went_well, said
    (step,) = [line for line in logs(again) if "loss" in line and line["step"] == 2]
    assert (step["loss"], step["grad_norm"]) == (steps[1]["loss"], steps[1]["grad_norm"])
    weights, expected = trained_weights(again), trained_weights(out)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", FIRST)
def test_the_first_model_is_made_again_after_a_kill(name: str, drive: Drive, tmp_path: Path) -> None:
    recipe, out = Recipe(name), tmp_path / "model"
    went_well, _ = drive(recipe, "cpu", out, killed_after=KILLED_AFTER[recipe.script])
    assert not went_well and not (out / "tokenizer.json").exists()
    went_well, said = drive(recipe, "cpu", out)
    assert went_well, said
    heads = dict(recipe.content.get("heads", {}))
    heads |= {"masks": recipe.content["segmenter"]} if "segmenter" in recipe.content else {}
    made = {head: config["type"] for head, config in load_model(str(out)).heads.items()}
    assert made == {head: config["type"] for head, config in heads.items()}


@pytest.mark.parametrize("name", KILLED)
def test_killed_and_run_again_it_leaves_what_an_unbroken_run_leaves(name: str, drive: Drive, tmp_path: Path) -> None:
    recipe, file = Recipe(name), "results.jsonl"
    if recipe.script in COUNTING:
        file = f"{recipe.script}.jsonl".rpartition("/")[2]
    places = [tmp_path / place / (file if "output" in recipe.content else "") for place in ("unbroken", "killed")]
    went_well, said = drive(recipe, recipe.lane, places[0])
    assert went_well, said
    unbroken = rows_of(tmp_path / "unbroken" / file)
    assert len(unbroken) > 1
    if name in ONCE:
        return
    went_well, _ = drive(recipe, recipe.lane, places[1], killed_after=KILLED_AFTER[recipe.script])
    assert not went_well and not (tmp_path / "killed" / file).exists()
    went_well, said = drive(recipe, recipe.lane, places[1])
    assert went_well, said
    assert unbroken == rows_of(tmp_path / "killed" / file)


DRIVEN = {
    *TRAINED,
    *SHARED,
    *KILLED,
    *FIRST,
    "ref_avs/stages_7b",
}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_is_driven(name: str) -> None:
    if name in DRIVEN_ELSEWHERE:
        assert Path(name).name in (ROOT / DRIVEN_ELSEWHERE[name]).read_text()
    else:
        assert name in DRIVEN, f"nothing drives recipes/{name}.yaml: put it into TRAINED or KILLED"
