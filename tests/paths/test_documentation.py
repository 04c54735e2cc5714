"""Every code block of README and docs is run here, checked by the program that would run it, or says why it is not.

A block counts as checked by what it is:

python           is executed, the blocks of a page one after the other
bash             each command is read by its own program's parser; make's targets and files are looked up; and
                 tests/paths/test_documented_commands.py runs it
yaml             is read by the recipe that knows its keys
json             is parsed
text, bibtex     hold no code

or by a comment on the line above it, as tests/documented_blocks.py lists them. Commands that are not run are read by
their programs' parsers all the same.
"""

import dataclasses
import itertools
import json
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from PIL import Image
from trl import TrlParser

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import LOADERS, load_split
from aurora_rl.assembly.known_options import SAVED_MASKS, read_asked
from aurora_rl.cli import parse_arguments
from aurora_rl.cli.launching import check_launch
from aurora_rl.data.media import load_clip
from aurora_rl.data.splits import SPLIT_READERS
from aurora_rl.files.packaged import find_config
from aurora_rl.models.heads import HEADS, FrameBatch, Head
from aurora_rl.models.heads.base import run_head
from aurora_rl.models.heads.segmenters import FRAME_ENCODERS, SEGMENTERS, build_frame_encoder, build_segmenter
from aurora_rl.models.mllm.contract import CHECKS as CONTRACT
from aurora_rl.models.mllm.contract import Subject
from aurora_rl.scripts.stage_plan import read_plan
from tests.documented_blocks import PAGES, ROOT, Block, all_blocks, blocks_of, marked, unmarked
from tools.script_parser import script_parser

NOT_CODE = {"text", "bibtex"}
PROGRAMS = {"accelerate", "aurora-rl", "export", "make", "pip", "python", "vllm"}


# Every block is of one kind


def test_no_block_goes_unseen() -> None:
    for page in PAGES:
        fences = re.findall(r"^ *```", (ROOT / page).read_text(), flags=re.MULTILINE)
        assert len(fences) == 2 * len(blocks_of(page)), page
    assert len(all_blocks()) > 50


def test_every_block_is_checked_or_says_why_it_is_not() -> None:
    checked = {"python", "bash", "yaml", "json", *NOT_CODE}
    blocks = [block for block in all_blocks() if block.mark in (None, "run with")]
    lost = [str(block) for block in blocks if block.language not in checked]
    assert lost == [], "name the block's language, or say above it: <!-- not run: WHY -->"


def test_what_claims_to_be_no_code_holds_no_command() -> None:
    lines = [(str(b), line) for kind in NOT_CODE for b in unmarked(kind) for line in b.code.splitlines()]
    assert [(where, line) for where, line in lines if line.split(" ")[0] in PROGRAMS] == []


def test_comments_above_blocks_are_spelled_right() -> None:
    for page in PAGES:
        comments = re.findall(r"<!-- ?(?:not )?run\b.*", (ROOT / page).read_text())
        assert len(comments) == sum(block.mark is not None for block in blocks_of(page)), page


def test_a_test_that_runs_a_block_reads_its_page() -> None:
    assert marked("run by")
    for block in marked("run by"):
        assert block.text is not None
        test = (ROOT / block.text).read_text()
        assert all(part in test for part in Path(block.page).parts), f"{block}: {block.text} does not read {block.page}"


def test_what_a_reason_says_runs_elsewhere_does() -> None:
    reasons = {str(block): block.text or "" for block in marked("not run")}
    ci = (ROOT / ".ci" / "run").read_text()
    for where, reason in reasons.items():
        assert all((ROOT / name).exists() for name in re.findall(r"tests/[\w/.]*\w", reason)), where
        in_ci = re.search(r"CI runs ([^;]+)", reason)
        assert in_ci is None or all(command in ci for command in re.findall(r"`(.+?)`", in_ci[1])), where


# Commands


def commands_of(block: Block) -> list[list[str]]:
    """Words of each command, without comments and `NAME=value` in front; lines that end in a backslash go on."""
    exported = exports_of(block.page)
    code = re.sub(r"\$([A-Z_]+)", lambda name: exported.get(name[1], name[0]), block.code)
    lines = code.replace("\\\n", " ").splitlines()
    commands = [itertools.dropwhile(is_assignment, shlex.split(line, comments=True)) for line in lines]
    return [words for words in map(list, commands) if words]


def exports_of(page: str) -> dict[str, str]:
    code = "".join(block.code for block in blocks_of(page) if block.language == "bash")
    return dict(re.findall(r"^export ([A-Z_]+)=(.+)$", code, flags=re.MULTILINE))


def is_assignment(word: str) -> bool:
    return re.fullmatch(r"[A-Z_]+=.+", word) is not None


def fields_of(script: str) -> set[str]:
    """Keys that a script's dataclasses have; none for a script of plain options."""
    kinds = getattr(script_parser(script), "dataclass_types", [])
    return {field.name for kind in kinds for field in dataclasses.fields(kind)}


def check_script(script: str, arguments: list[str]) -> None:
    """Read the arguments as the script does, on a machine without a GPU."""
    parser = script_parser(script)
    if not isinstance(parser, TrlParser):
        parser.parse_args(arguments)
        return
    on_cpu = ["--use_cpu", "true"] if "use_cpu" in fields_of(script) else []
    fresh = TrlParser(parser.dataclass_types)  # a parser keeps what it read in a config as its defaults
    *_, of_config, of_command = fresh.parse_args_and_config(
        [*arguments, *on_cpu], return_remaining_strings=True, separate_remaining_strings=True
    )
    body = ROOT / "aurora_rl" / "scripts" / Path(script).name
    takes_recipes = body.is_file() and "separate_remaining_strings" in body.read_text()  # other keys are training's
    assert (of_command, [] if takes_recipes else of_config) == ([], [])


def check_python(arguments: list[str]) -> None:
    script, *rest = arguments
    if script == "-m":
        module, family = rest
        assert module == "aurora_rl.models.mllm.contract" and ":" in family
    else:
        check_script(script, rest)


def check_accelerate(arguments: list[str]) -> None:
    launch, *rest = arguments
    assert launch == "launch"
    args = launch_command_parser().parse_args(rest)
    assert args.config_file is None or (ROOT / args.config_file).is_file(), args.config_file
    if args.module:
        assert args.training_script == "aurora_rl.cli"
        check_aurora(args.training_script_args)
    else:
        check_python([args.training_script, *args.training_script_args])


def check_aurora(arguments: list[str]) -> None:
    if not arguments:  # the list of commands
        return
    args = parse_arguments(arguments)
    if arguments[0] == "footprint":
        check_script(f"recipes/{args.recipe}.py", ["--config", args.config, *args.options])
    elif arguments[0] in ("sft", "grpo"):
        check_launch(args.launch)
        config = ["--config", find_config(args.config)]
        if "/" not in args.config:  # one that the page before has written
            config = ["--model", "m", "--data_root", "d", "--output_dir", "o"]
        check_script(f"recipes/{arguments[0]}.py", [*config, *args.options])
    elif arguments[0] == "evaluate" and args.model is not None:
        check_script("recipes/evaluate.py", ["--model", args.model, *with_config(args.options)])
    elif arguments[0] == "evaluate":  # saved masks, with options of the data
        read_asked(SAVED_MASKS, [*args.options, "--data_root", "d"])
    elif arguments[0] == "agents":
        check_script("recipes/agents.py", ["--config", find_config(args.config), *args.options])
    elif arguments[0] == "run":
        check_script(args.script, with_config(args.words))
    else:
        assert args.options == []


def with_config(words: list[str]) -> list[str]:
    """The words with the file of a packaged recipe in the place of its name."""
    return [
        find_config(word) if before == "--config" else word for before, word in zip(["", *words], words, strict=False)
    ]


def check_sbatch(arguments: list[str]) -> None:
    """Options of Slurm, the script of two nodes, and what its launchers are told."""
    script = next(number for number, word in enumerate(arguments) if not word.startswith("--"))
    assert arguments[script] == "accelerate_configs/slurm_two_nodes.sh"
    check_python(arguments[script + 1 :])


def check_docker(arguments: list[str]) -> None:
    """The image's name comes before what its entry point, `aurora-rl`, is told."""
    if arguments[0] == "build":
        assert arguments[-1] == "."
        return
    image = arguments.index("aurora-rl")
    assert arguments[0] == "run" and "--rm" in arguments[:image]
    check_aurora(arguments[image + 1 :])


def check_make(arguments: list[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {word for word in arguments if "=" not in word} <= targets


def check_pip(arguments: list[str]) -> None:
    command, option, package = arguments
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert (command, option) == ("install", "-e")
    assert set(re.fullmatch(r"\.\[(.+)\]", package)[1].split(",")) <= set(extras)  # type: ignore[index]


def check_export(arguments: list[str]) -> None:
    assert all(map(is_assignment, arguments))


def check_vllm(arguments: list[str]) -> None:
    """vLLM may be missing; the command for a CPU is started by tests/rollout/test_server.py."""
    command, model, *options = arguments
    assert command == "serve"
    assert not model.startswith("-") and all(name.startswith("--") for name in options if name.startswith("-"))


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "accelerate": check_accelerate,
    "aurora-rl": check_aurora,
    "docker": check_docker,
    "export": check_export,
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
    "sbatch": check_sbatch,
    "vllm": check_vllm,
}


@pytest.mark.parametrize("block", all_blocks("bash"), ids=str)
def test_commands_are_understood_by_their_programs(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    commands = commands_of(block)
    assert commands
    for program, *arguments in commands:
        assert program in CHECKS, f"{block}: nothing here can check {program!r}"
        CHECKS[program](arguments)


STAGE_FILES = [path for path in sorted(ROOT.glob("recipes/**/*.yaml")) if "stages" in yaml.safe_load(path.read_text())]


@pytest.mark.parametrize("path", STAGE_FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_commands_of_the_shipped_stages_are_understood(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for stage in read_plan(path).stages.values():
        words = list(stage.command)
        script = next(number for number, word in enumerate(words) if word.endswith(".py"))
        check_script(words[script], words[script + 1 :])


def test_a_command_with_a_wrong_option_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    wrong = [
        "aurora-rl doctor data --workers 8",
        "aurora-rl evaluate --model m --data_root d --output_dir o --batchsize 2",
        "aurora-rl sft --config synthetic/sft --lerning_rate 1",
        "aurora-rl grpo --config synthetic/grpo --launch zero7",
        "make everything",
        "python data_prep/make_synthetic.py --output_dir x --clips 3",
        "python data_prep/verify_cot.py chains.jsonl --output x --samples 3",
        "accelerate launch --config_file none.yaml recipes/sft.py --config recipes/synthetic/sft.yaml",
        "accelerate launch recipes/sft.py --config recipes/synthetic/sft.yaml --lerning_rate 1",
        "pip install -e '.[everything]'",
        "aurora-rl evaluate --predictions masks --data_root d --output_dir o --benchmarks clips",
        "sbatch accelerate_configs/slurm_two_nodes.sh recipes/sft.py --config recipes/synthetic/sft.yaml --nodes 4",
        "docker run --rm aurora-rl sft --config synthetic/sft --launch zero7",
    ]
    for command in wrong:
        program, *arguments = shlex.split(command)
        with pytest.raises((AssertionError, SystemExit, ValueError)):
            CHECKS[program](arguments)


# Files


@pytest.mark.parametrize("block", unmarked("yaml"), ids=str)
def test_keys_are_known_to_a_recipe(block: Block, tmp_path: Path) -> None:
    keys = yaml.safe_load(block.code)
    recipes = [f"recipes/{name}.py" for name in ("sft", "grpo", "evaluate")]
    recipe = next((recipe for recipe in recipes if keys.keys() <= fields_of(recipe)), None)
    assert recipe is not None, f"no recipe knows all of {sorted(keys)}"
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"model": "m", "data_root": "d", "output_dir": "o", **keys}))
    check_script(recipe, ["--config", str(config)])


@pytest.mark.parametrize("block", unmarked("json"), ids=str)
def test_json_is_json(block: Block) -> None:
    json.loads(block.code)


# Python


def run_page(page: str) -> dict[str, Any]:
    """Names that the page's blocks leave, executed one after the other."""
    names: dict[str, Any] = {}
    for block in unmarked("python"):
        if block.page == page:
            exec(block.text or "", names)
            exec(compile("\n" * block.line + block.code, str(ROOT / page), "exec"), names)
    return names


@pytest.fixture(autouse=True)
def registers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page adds to a dict is gone after the test."""
    for register in (SEGMENTERS, FRAME_ENCODERS, LOADERS, SPLIT_READERS):
        for name in ("grid", "mine"):
            monkeypatch.delitem(register, name, raising=False)
            monkeypatch.setitem(register, name, None)  # type: ignore[arg-type]
    monkeypatch.setitem(HEADS, "brightness", Head)  # the page's own takes its place


@pytest.mark.parametrize("page", sorted({block.page for block in unmarked("python")}))
def test_python_runs(page: str) -> None:
    assert run_page(page)


@pytest.mark.parametrize("name", CONTRACT)
def test_the_family_of_its_page_passes_the_contract(family_of_page: Subject, name: str) -> None:
    assert CONTRACT[name](family_of_page) is not None or name == "silence"


@pytest.fixture(scope="module")
def family_of_page() -> Subject:
    return Subject.of(run_page("docs/new_mllm.md")["Qwen2VLFamily"]())


def test_the_mask_head_of_its_page_decodes_and_learns() -> None:
    run_page("docs/new_mask_head.md")
    config = {"type": "grid", "image_size": 32, "width": 4}
    segmenter, encoder = build_segmenter(config), build_frame_encoder(config)
    frames = encoder.encode(np.full((3, 20, 40, 3), 128, np.uint8))
    mask_logits = segmenter(frames, torch.ones(3, 2, 4))
    assert mask_logits.shape == (3, 2, 4, 4)
    assert segmenter.postprocess(mask_logits, (20, 40)).shape == (3, 2, 20, 40)
    mask_logits.sum().backward()
    assert all(parameter.grad is not None for parameter in segmenter.parameters())


def test_the_head_of_its_page_predicts_and_learns() -> None:
    head = run_page("docs/heads.md")["BrightnessHead"](4, {})
    clips = FrameBatch(torch.ones(3, 3, 32, 32), torch.tensor([1, 2]), torch.tensor([1, 0]))
    rows = head.rows(run_head(head, torch.ones(2, 4), clips), clips.row_counts, [(8, 8)] * 2)
    assert [len(row) for row in rows] == [2, 1]
    loss = head.loss(rows, [torch.ones(2, 8, 8, dtype=torch.bool), torch.zeros(1, 8, 8, dtype=torch.bool)])
    loss.total.backward()
    assert head.scale.weight.grad.abs().max() > 0
    assert 0 <= head.row_score(rows[0], torch.ones(2, 8, 8, dtype=torch.bool)) <= 1


def test_the_loader_of_its_page_reads_a_folder_and_refuses_a_broken_one(tmp_path: Path) -> None:
    run_page("docs/new_dataset.md")
    (tmp_path / "items.csv").write_text("uid,split,category,reference\n3f2a,train,drum,The object that is hit.\n")
    clip = tmp_path / "clips" / "3f2a"
    for kind, mode in (("frames", "RGB"), ("masks", "L")):
        (clip / kind).mkdir(parents=True)
        for number in range(2):
            Image.new(mode, (8, 6), 255).save(clip / kind / f"{number}.png")  # type: ignore[arg-type]
    soundfile.write(clip / "audio.wav", np.zeros(16_000, np.float32), 16_000)
    [sample] = load_split(DataArguments(data_root=str(tmp_path), benchmark="mine"), "train")
    assert (sample.uid, sample.category, sample.origin) == ("3f2a", "drum", "items.csv:2")
    assert load_clip(sample).gt_masks.shape == (2, 6, 8)
    (clip / "masks" / "1.png").unlink()
    with pytest.raises(ValueError, match="3f2a"):
        load_split(DataArguments(data_root=str(tmp_path), benchmark="mine"), "train")
