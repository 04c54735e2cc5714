"""A loader of one's own, named in YAML: what it is handed, and what it may return."""

from pathlib import Path

import pytest

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.assembly.early import check_asked, check_benchmark
from aurora_rl.assembly.known_options import read_asked
from aurora_rl.data.files import DatasetError
from aurora_rl.named.objects import NamedObjectError

LOADER = """
import dataclasses
from aurora_rl.data.ref_avs import load_ref_avs
from aurora_rl.data.sample import AVSample

SEEN = {}

def load(root, split, *, fps, num_frames=10, mine=7):
    SEEN.update(root=root, split=split, fps=fps, mine=mine)
    return load_ref_avs(root, split, fps=fps, num_frames=num_frames)

def anything(root, split, **options):
    SEEN.update(options)
    return load(root, split, fps=2.0, num_frames=None)

def changed(root, split, **values):
    rows = load(root, split, fps=2.0, num_frames=None)
    return [*rows[:2], dataclasses.replace(rows[2], **values)]

def generator(root, split): yield None
def nothing(root, split): return []
def dicts(root, split): return [{"uid": "a"}]
def twice(root, split): return load(root, split, fps=2.0, num_frames=None) * 2
def masks(root, split): return changed(root, split, mask_paths=("a.png",))
def rate(root, split): return changed(root, split, fps=float("nan"))
def paths(root, split): return changed(root, split, frame_paths=["a.jpg"])
def number(root, split): return changed(root, split, row="2")
def asks(root, split, *, depth): return []
Number = 3
class Loader: ...
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(LOADER)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine.py"


def arguments(root: Path, loader: str) -> DataArguments:
    return DataArguments(data_root=str(root), benchmark=f"mine.py:{loader}", fps=2.0, num_frames=None)


def test_a_loader_gets_the_options_that_its_signature_names(mine: Path, tiny_benchmark: Path) -> None:
    samples = load_split(arguments(tiny_benchmark, "load"), "train")
    assert samples == load_split(DataArguments(data_root=str(tiny_benchmark), fps=2.0, num_frames=None), "train")
    from aurora_rl.named.objects import load_object

    seen = load_object("mine.py:SEEN", what="loader")
    assert seen == {"root": str(tiny_benchmark), "split": "train", "fps": 2.0, "mine": 7}
    load_split(arguments(tiny_benchmark, "anything"), "val")
    assert {"mask_cache", "media_cache", "task", "chains"} <= set(seen)
    assert "benchmark" not in seen


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ("generator", "mine.py:generator returned a generator for the split 'train': expected a list"),
        ("nothing", "mine.py:nothing returned no rows for the split 'train'"),
        ("dicts", "row 0 of the split 'train' as a dict: expected aurora_rl.data.sample.AVSample"),
        ("twice", "results are keyed by them"),
        ("masks", "with 1 masks for 4 frames"),
        ("rate", "with fps nan: expected a positive number"),
        ("paths", r"with frame_paths \['a.jpg'\]: expected tuple"),
        ("number", "with row '2': expected int"),
        ("asks", "asks for 'depth', which is no option of a data set"),
        ("Number", "is a int: expected a function"),
        ("Loader", "is a type: expected a function"),
    ],
)
def test_what_a_loader_returns_is_checked_by_its_name(
    mine: Path, tiny_benchmark: Path, loader: str, message: str
) -> None:
    with pytest.raises(DatasetError, match=message) as error:
        load_split(arguments(tiny_benchmark, loader), "train")
    assert f"the loader mine.py:{loader}" in str(error.value)


def test_a_missing_loader_is_told_with_and_without_its_code(mine: Path, tiny_benchmark: Path) -> None:
    with pytest.raises(NamedObjectError, match="mine.py has no 'laod'"):
        load_split(arguments(tiny_benchmark, "laod"), "train")
    with pytest.raises(ValueError, match="--benchmark has 'mine.py:laod': mine.py defines no 'laod', did you mean"):
        check_benchmark("mine.py:laod", name="--benchmark")
    with pytest.raises(ValueError, match="'x:'.*path/to/file.py:load"):
        check_benchmark("x:", name="--benchmark")


def test_chains_are_refused_where_the_loader_would_not_read_them(mine: Path, tiny_benchmark: Path) -> None:
    args = arguments(tiny_benchmark, "load")
    args.chains = "chains.jsonl"
    with pytest.raises(ValueError, match="mine.py:load takes no `chains`"):
        load_split(args, "train")


def test_early_checks_leave_root_and_splits_to_the_loader(mine: Path, tiny_checkpoint: str) -> None:
    words = [
        "--model",
        tiny_checkpoint,
        "--benchmark",
        "mine.py:load",
        "--data_root",
        "s3://bucket",
        "--output_dir",
        "o",
    ]
    check_asked(read_asked("recipes/sft.py", [*words, "--train_split", "whatever"]))
