"""The house as CONTRIBUTING draws it: what import-linter does not see."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("aurora_rl", "reward_fns", "data_prep", "recipes", "benchmarks", "tools")


def rooms() -> set[str]:
    return {path.parent.name for path in (ROOT / "aurora_rl").glob("*/__init__.py")}


def loose_modules() -> set[str]:
    return {path.stem for path in (ROOT / "aurora_rl").glob("*.py")} - {"__init__"}


def test_few_modules_stand_outside_a_room() -> None:
    assert len(loose_modules()) <= 6


def test_every_room_says_what_it_is_for() -> None:
    for room in rooms():
        text = (ROOT / "aurora_rl" / room / "__init__.py").read_text()
        assert re.match(r'"""\S.{30,}', text), room


def test_the_drawing_shows_every_room_and_loose_module_on_its_floor() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = next(c["layers"] for c in project["tool"]["importlinter"]["contracts"] if c.get("containers"))
    enforced = [set(layer.split(" | ")) for layer in layers]
    assert set().union(*enforced) == rooms() | loose_modules()
    drawing = re.search(r"^aurora_rl/\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL | re.MULTILINE)
    assert drawing is not None
    floors = drawing[1].split("──\n")
    assert [set(re.findall(r"^    (\w+)(?:/|\.py) ", floor, re.MULTILINE)) for floor in floors] == enforced


def is_of_a_model(path: Path) -> bool:
    return path.suffix == ".json" and any(path.parent.glob("*.safetensors"))


def test_what_a_family_calls_its_parts_is_named_in_its_folder_alone() -> None:
    names = re.compile(r"qwen|audio_tower|thinker|m-?rope|deepstack|mm_token_type", re.IGNORECASE)
    written = (".py", ".json", ".j2", ".css", ".js")  # by hand, or by a tool here; a model's own files name its parts
    files = [path for path in (ROOT / "aurora_rl").rglob("*") if path.suffix in written and not is_of_a_model(path)]
    texts = {path.relative_to(ROOT / "aurora_rl").as_posix(): path.read_text() for path in files}
    found = {place: names.findall(text) for place, text in texts.items() if not place.startswith("models/mllm/")}
    assert {place: hits for place, hits in found.items() if hits} == {}


def test_a_folder_of_tests_is_a_room_or_a_folder_of_the_product() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.parent.relative_to(ROOT / "tests").as_posix()
        if folder in (".", "paths"):  # loose modules, and what walks several rooms
            continue
        assert any((ROOT / top / folder).is_dir() for top in ("", "aurora_rl")), folder


def test_a_loose_test_file_tests_a_loose_module() -> None:
    names = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    assert {name for name in names if not any(name.startswith(module) for module in loose_modules())} == set()
