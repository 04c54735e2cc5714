"""Every shipped recipe takes its first steps as it is shipped, at toy width: bf16, ZeRO, LoRA, checkpointing, SAM.

Each YAML under recipes/ is driven by the command of its first comment, under the accelerate config named there. Only
what `OVERRIDDEN` lists is another: models, data and folders, and what makes a run short or a CPU needs. Training
recipes take two optimiser steps, save, and take the second one again from the first one's checkpoint; others run, are
killed, and run again. YAMLs that agree in all that decides how a step runs share one run (`shares_run_with`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from aurora_rl.models.loading import load_model
from aurora_rl.scripts import run_stages
from aurora_rl.scripts.run_stages import Runner, StageFailedError
from aurora_rl.scripts.stage_plan import Stage
from tests.recipes.correcting_endpoint import correcting_endpoint
from tests.recipes.lanes import LANES, Lane
from tests.recipes.shipped import RECIPES, ROOT, Recipe
from tests.recipes.toys import Toys, make_toys

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(1500)]

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
#: Scripts that ask about training rows.
COUNTING = ("data_prep/collect_mistakes.py", "data_prep/pass_rates.py")
#: Recipes that leave a file, and no checkpoint.
KILLED = (
    *("synthetic/evaluate", "synthetic/choice/evaluate", "synthetic/mistakes", "synthetic/choice/pass_rates"),
    *("ref_avs/evaluate", "ref_avs/mistakes_7b", "avsbench/evaluate", "avqa/evaluate"),
)
#: Recipes that make a first model.
FIRST = ("synthetic/init", "synthetic/boxes/init", "synthetic/choice/init")


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
    **{f"synthetic/calls/{name}": "tests/recipes/test_when_to_call.py" for name in ("stages", *TOOL_RECIPES)},
    "audio_tools/table_7b": "tests/recipes/test_tool_choices.py",
    "audio_tools/grpo_7b": "tests/recipes/test_tool_choices.py",
    "synthetic/state_layers/stages": "tests/recipes/test_compare_stages.py",
    "synthetic/tenth/stages": "tests/recipes/test_compare_stages.py",
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
    return make_toys(tiny_benchmark, omni_checkpoint, sam_checkpoint, tiny_checkpoint, folder)


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
            tiny = self.toys.tiny.get("/".join(recipe.name.split("/")[1:-1]), self.toys.tiny[""])
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
    assert SHARED == ["ref_avs/grpo_3b", "ref_avs/sft_3b", "synthetic/tenth/grpo"]
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
