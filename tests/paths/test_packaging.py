import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file

import aurora_rl

ROOT = Path(__file__).resolve().parents[2]
TOP_LEVEL_NAMES = {"aurora_rl", "reward_fns"}
#: What the project is built on; each is a dependency or, for vLLM, an extra.
FOUNDATIONS = {"torch", "trl", "transformers", "peft", "accelerate", "deepspeed", "datasets", "qwen-vl-utils"}


def read_pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\s<>=!~;\[]", requirement, maxsplit=1)[0] for requirement in requirements}


def constraint_lines() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_the_wheel_is_told_to_hold_exactly_the_two_packages() -> None:
    wheel = read_pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(wheel["packages"]) == TOP_LEVEL_NAMES


def test_the_foundations_are_dependencies_and_vllm_an_extra() -> None:
    project = read_pyproject()["project"]
    assert requirement_names(project["dependencies"]) >= FOUNDATIONS
    assert requirement_names(project["optional-dependencies"]["vllm"]) == {"vllm"}


def test_every_direct_dependency_has_a_constraint() -> None:
    project = read_pyproject()["project"]
    wanted = requirement_names(project["dependencies"])
    wanted |= {name for extra in project["optional-dependencies"].values() for name in requirement_names(extra)}
    constrained = {line.split("==")[0] for line in constraint_lines()}
    assert wanted - constrained == set()


def test_constraints_are_exact_and_name_no_build() -> None:
    inexact = [line for line in constraint_lines() if not re.fullmatch(r"[a-z0-9-]+==[0-9.]+(post[0-9]+)?", line)]
    assert inexact == []


def test_built_wheel_holds_exactly_the_two_packages(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert build.returncode == 0, build.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"aurora_rl-{aurora_rl.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        top_level = {name.split("/")[0] for name in archive.namelist()}
        first_clip = {name for name in archive.namelist() if name.startswith("aurora_rl/first_clip/")}
    shipped = [path for path in (ROOT / "aurora_rl" / "first_clip").rglob("*") if "__pycache__" not in path.parts]
    assert first_clip == {str(path.relative_to(ROOT)) for path in shipped if path.is_file()}
    assert {name for name in top_level if not name.endswith(".dist-info")} == TOP_LEVEL_NAMES


@pytest.mark.parametrize(
    ("name", "distributed_type"),
    [
        ("cpu", "NO"),
        ("single_gpu", "NO"),
        ("multi_gpu", "MULTI_GPU"),
        ("zero2", "DEEPSPEED"),
        ("zero3", "DEEPSPEED"),
        ("zero3_offload", "DEEPSPEED"),
        ("fsdp2", "FSDP"),
        ("multi_node", "DEEPSPEED"),
    ],
)
def test_accelerate_config_says_when_to_use_it_and_keeps_its_kind(name: str, distributed_type: str) -> None:
    file = ROOT / "accelerate_configs" / f"{name}.yaml"
    assert file.read_text().startswith("# When: ")
    config = load_config_from_file(str(file))  # refuses unknown keys
    assert config.distributed_type == distributed_type
    # accelerate drops DeepSpeed without a word where use_cpu is true
    assert config.use_cpu is (name == "cpu")


def test_the_page_on_running_names_every_accelerate_config() -> None:
    named = re.findall(r"^\| `(\w+)\.yaml` \|", (ROOT / "docs/running.md").read_text(), flags=re.MULTILINE)
    assert sorted(named) == sorted(file.stem for file in (ROOT / "accelerate_configs").glob("*.yaml"))
