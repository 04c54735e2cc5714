"""Every command that README and docs show is run here, in order, or says above it why it is not.

A page's commands are run by bash in a folder that looks like a checkout after `make demo`, with Ref-AVSBench in
data/ref_avs, only that the models are random and tiny, and the benchmarks a few synthetic clips.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.assembly.encoder import read_clip_options
from aurora_rl.data.media import load_clip
from aurora_rl.evaluation.of_saved_masks import rescore, saved_predictions
from aurora_rl.models.loading import load_model
from aurora_rl.synthetic import SyntheticConfig, write_synthetic_benchmark
from tests.documented_blocks import ROOT, Block, blocks_of, unmarked
from tests.saved_predictions import write_pngs
from tests.warm_interpreter import write_programs

#: Ten frames in ten seconds, as the clips of Ref-AVSBench.
REF_AVS = SyntheticConfig(train=2, val=1, test_s=2, test_u=2, test_n=2, rows_per_clip=1, frames=10, seconds=10.0)
#: What the commands of a page leave, some of it.
LEFT = {
    "README.md": ["out/answer.json", "scores/a/scores.json"],
    "data_prep/README.md": ["data/synthetic/metadata.csv", "verified.jsonl", "reflective.jsonl", "data/ref_avs_hf"],
    "docs/evaluation.md": ["grpo.html", "scores/theirs/results.jsonl", "comparison.html"],
    "docs/export.md": ["exported/grpo_7b/README.md", "outputs/engine/model.safetensors"],
    "docs/inference.md": ["out/overlay.mp4"],
    "docs/quickstart.md": ["out/overlay.mp4", "scores.html", "exported/README.md", "outputs/mine/model.safetensors"],
    "docs/ref_avs.md": ["data/ref_avs/chains.jsonl"],
}

pytestmark = pytest.mark.timeout(600)  # a page's commands together, on a busy machine


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of `python` and the commands, which start in no time."""
    folder = tmp_path_factory.mktemp("bin")
    address = folder / "socket"
    write_programs(folder, address, ("python", "accelerate", "aurora-rl"))
    command = [sys.executable, str(ROOT / "tests" / "warm_interpreter.py"), str(address)]
    process = subprocess.Popen(command, env=environment(folder), start_new_session=True)
    while not address.exists():
        assert process.poll() is None
        time.sleep(0.1)
    yield folder
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def environment(programs: Path) -> dict[str, str]:
    path = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
    own = {"PATH": ":".join(path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own, "REF_AVS": "data/ref_avs"}


@pytest.fixture(scope="module")
def given(tiny_checkpoint: str, tiny_benchmark: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the pages take for granted, by its name in the checkout."""
    folder = tmp_path_factory.mktemp("given")
    ref_avs, masks = folder / "ref_avs", folder / "masks"
    write_synthetic_benchmark(ref_avs, REF_AVS)
    write_pngs(masks, random_masks(ref_avs))
    scores = folder / "scores"
    rescore(DataArguments(str(ref_avs)), saved_predictions(masks), scores, splits=["test_s", "test_u", "test_n"])
    model = write_model(folder / "model", tiny_checkpoint)
    names = ("accelerate_configs", "data_prep", "docs", "recipes", "reward_fns", "tools")
    return {
        **{name: ROOT / name for name in names},
        "data/ref_avs": ref_avs,
        "outputs/demo/data": tiny_benchmark,
        "outputs/demo/grpo": model,
        "outputs/demo/sft/checkpoint-500": model,
        "outputs/ref_avs/grpo_7b": model,
        "outputs/ref_avs/eval/grpo_7b": scores,
        "masks": masks,
        "scores/b": scores,
        "chains.jsonl": ref_avs / "chains.jsonl",
        "raw_chains.jsonl": ref_avs / "chains.jsonl",
        "mistakes.jsonl": write_mistakes(folder),
    }


def random_masks(root: Path) -> dict[int, np.ndarray]:
    """Predictions of the test splits, (F, H, W) uint8, by row."""
    with (root / "metadata.csv").open() as file:
        rows = [number for number, row in enumerate(csv.DictReader(file)) if row["split"].startswith("test")]
    return {row: np.random.default_rng(row).integers(0, 256, (10, 64, 64)).astype(np.uint8) for row in rows}


def write_model(folder: Path, checkpoint: str) -> Path:
    """A model that remembers how clips are put to it, as trained ones do."""
    loaded = load_model(checkpoint)
    loaded.remember_clips(read_clip_options(ROOT / "recipes" / "synthetic" / "evaluate.yaml"))
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return folder


def write_mistakes(folder: Path) -> Path:
    """Mistakes of the first rows of the synthetic benchmark of default size."""
    write_synthetic_benchmark(folder / "first", SyntheticConfig(train=2, val=0, test_s=0, test_u=0, test_n=0))
    rows = [json.loads(line) for line in (folder / "first" / "chains.jsonl").read_text().splitlines()]
    wrong = {"completion": "Look: nothing.\nAnswer: the target is the egg. It is [SEG].", "answered": "egg", "iou": 0.1}
    more = {**wrong, "reasons": ["category"], "model": "stage-1"}
    records = [{**{key: row[key] for key in ("uid", "row", "split", "category", "exp")}, **more} for row in rows]
    path = folder / "mistakes.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def checkout(given: dict[str, Path], film: Callable[..., Path], data_args: DataArguments, tmp_path: Path) -> Path:
    """The folder in which a page's commands are run; what they write is theirs alone."""
    folder = tmp_path / "checkout"
    [sample, *_] = load_split(data_args, "test_s")
    clip = load_clip(sample)
    video = film([frame for frame in clip.frames for _ in range(2)], waveform=clip.waveform)
    frames, sound = Path(sample.frame_paths[0]).parent, sample.audio_path
    for name, target in {**given, "clip.mp4": video, "frames": frames, "audio.wav": sound}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name == "data/ref_avs":  # a page writes its chains of thought there
            shutil.copytree(target, folder / name)
        else:
            (folder / name).symlink_to(target)
    return folder


def run_blocks(blocks: Sequence[Block], folder: Path, programs: Path) -> subprocess.CompletedProcess[str]:
    """Run them by one bash, which stops at the first command that fails; stderr says in which block."""
    script = "\n".join(f"echo '== {block}' >&2\n{with_statement(block)}" for block in blocks)
    return subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", script],
        cwd=folder,
        env=environment(programs),
        capture_output=True,
        text=True,
        timeout=500,
    )


def with_statement(block: Block) -> str:
    return block.code if block.text is None else f"({block.text}\n{block.code})"


@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in unmarked("bash")))
def test_commands_run_in_the_order_of_their_page(page: str, checkout: Path, programs: Path) -> None:
    done = run_blocks([block for block in unmarked("bash") if block.page == page], checkout, programs)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert [name for name in LEFT.get(page, []) if not (checkout / name).exists()] == []
    assert all(text in done.stdout for text in printed_on(page)), done.stdout


def printed_on(page: str) -> list[str]:
    """What a page shows as printed by its commands."""
    if page != "docs/scaling.md":
        return []
    marks = ("<!-- scaling-table -->", "<!-- families-table -->")
    tables = [(ROOT / page).read_text().split(mark)[1].strip() for mark in marks]
    return [*tables, *(block.code for block in blocks_of(page) if block.language == "text")]


def test_a_command_that_fails_ends_its_page(checkout: Path, programs: Path) -> None:
    commands = ["touch first", "aurora-rl doctor nowhere", "touch too_late"]
    blocks = [Block("page.md", number, "bash", command, None, None) for number, command in enumerate(commands)]
    done = run_blocks(blocks, checkout, programs)
    assert done.returncode == 2
    assert "nowhere" in done.stderr.split("== page.md:1")[1]
    assert (checkout / "first").exists() and not (checkout / "too_late").exists()
