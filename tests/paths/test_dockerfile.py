"""The Dockerfile, which nothing here builds: a linter reads it, and what no linter knows of this project is checked."""

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HADOLINT = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
SECRET = re.compile(r"key|token|secret|passw", re.IGNORECASE)


def instructions() -> list[tuple[str, str]]:
    """The instructions with their arguments, without comments, each on one line."""
    lines = (line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#"))
    text = re.sub(r"\\\s*\n", " ", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def arguments_of(name: str) -> list[str]:
    return [arguments for instruction, arguments in instructions() if instruction == name]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def copied() -> list[str]:
    """Sources that are copied into the image."""
    return [source for arguments in arguments_of("COPY") for source in arguments.split()[:-1]]


@pytest.mark.skipif(HADOLINT is None, reason="needs hadolint, of the extra dev")
def test_linter_has_nothing_to_say() -> None:
    done = subprocess.run([str(HADOLINT), "Dockerfile"], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_base_is_one_release_of_cuda_with_its_compiler() -> None:
    [base] = arguments_of("FROM")
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-devel-ubuntu\d+\.\d+", base)


def test_torch_is_installed_first_and_everything_by_the_constraints() -> None:
    installs = [part for run in arguments_of("RUN") for part in run.split("&&") if "pip install" in part]
    assert [("torch" in install, "EXTRAS" in install) for install in installs] == [(True, False), (False, True)]
    assert all("--constraint constraints.txt" in install and "--no-cache" in install for install in installs)
    order = [f"{name} {arguments}" for name, arguments in instructions()]
    position = {
        word: next(i for i, line in enumerate(order) if word in line) for word in ("torch numpy", "COPY aurora_rl")
    }
    assert position["torch numpy"] < position["COPY aurora_rl"]  # or each change of the code would fetch torch again


def test_extras_are_ours() -> None:
    [default] = [value.split("=")[1] for value in arguments_of("ARG") if value.startswith("EXTRAS=")]
    assert set(default.split(",")) <= project()["project"]["optional-dependencies"].keys()


def test_all_that_the_wheel_is_made_of_is_copied_and_let_in() -> None:
    wheel = project()["tool"]["hatch"]["build"]["targets"]["wheel"]
    project_files = [project()["project"]["readme"], *project()["project"]["license-files"], "pyproject.toml"]
    assert {*wheel["packages"], *wheel["force-include"], *project_files, "constraints.txt"} == set(copied())
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied())
    assert all((ROOT / source).exists() for source in copied())


def test_nothing_secret_becomes_part_of_the_image_and_it_does_not_run_as_root() -> None:
    for name in ("ENV", "ARG", "COPY"):
        assert not [arguments for arguments in arguments_of(name) if SECRET.search(arguments)]
    assert not arguments_of("ADD") and not any("curl" in run or "wget" in run for run in arguments_of("RUN"))
    assert not [name for source in copied() for name in hidden_files(ROOT / source)]
    names = [name for name, _ in instructions()]
    assert int(arguments_of("USER")[-1]) > 0 and names.index("USER") > max(i for i, n in enumerate(names) if n == "RUN")


def hidden_files(path: Path) -> list[str]:
    """Files of the checkout that look like keys; git would not have them either."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if "__pycache__" not in file.parts]
    return [
        str(file) for file in files if any(fnmatch.fnmatch(file.name, kind) for kind in (".env*", "*.pem", "*_rsa"))
    ]
