"""Whatever is read from outside may be a pipe in a file's place: each way in refuses it, and opens it never."""

import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aurora_rl.assembly.encoder import read_clip_options
from aurora_rl.assembly.parser import ConfigParser
from aurora_rl.data.avsbench import load_avsbench_ms3, load_avsbench_s4
from aurora_rl.data.chains import add_reflections
from aurora_rl.data.containers import open_video
from aurora_rl.data.footage import open_footage
from aurora_rl.data.hf_dataset import load_hf_dataset, table_name
from aurora_rl.data.media import (
    check_audio,
    read_frame_size,
    read_frames,
    read_mask_levels,
    read_mask_size,
    read_masks,
    read_picture,
    read_waveform,
)
from aurora_rl.data.omni_avs import load_omni_avs
from aurora_rl.data.ref_avs import load_ref_avs, read_metadata
from aurora_rl.data.video import read_video
from aurora_rl.evaluation.mask_files import list_predictions
from aurora_rl.evaluation.records import read_results
from aurora_rl.files.fingerprint import fingerprint_content
from aurora_rl.files.journal import ResumeFile, RowJournal, read_rows
from aurora_rl.footprint.launch import Launch
from aurora_rl.report.curves import read_log_history
from aurora_rl.rewards import load_reward_func
from aurora_rl.scripts.stage_plan import read_plan
from aurora_rl.scripts.to_hf_dataset import _embed
from aurora_rl.scripts.verify_cot import ChainLimits, verify_file
from aurora_rl.serve.request import Limits, check_clip
from aurora_rl.tasks.reference_segmentation import chain_file

#: Way in -> (name of the file in a folder, what reads it).
WAYS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "picture": ("0.png", read_picture),
    "frames": ("0.jpg", lambda path: read_frames([path])),
    "size of a frame": ("0.jpg", read_frame_size),
    "size of a mask": ("0.png", read_mask_size),
    "masks": ("0.png", lambda path: read_masks([path])),
    "grey levels": ("0.png", lambda path: read_mask_levels([path])),
    "sound": ("a.wav", read_waveform),
    "sound, checked": ("a.mp3", check_audio),
    "video": ("a.mp4", lambda path: read_video(path, fps=1.0)),
    "container": ("a.mkv", open_video),
    "footage": ("a.webm", open_footage),
    "footage, animated": ("a.gif", open_footage),
    "footage, frames": ("0.png", lambda path: next(iter(open_footage([path]).pictures()))),
    "upload": ("sample.mp4", lambda path: check_clip(path, Limits())),
    "table": ("metadata.csv", read_metadata),
    "Ref-AVSBench": ("metadata.csv", lambda path: load_ref_avs(path.parent, "train")),
    "AVSBench S4": ("s4_meta_data.csv", lambda path: load_avsbench_s4(path.parent, "train")),
    "AVSBench MS3": ("ms3_meta_data.csv", lambda path: load_avsbench_ms3(path.parent, "train")),
    "OmniAVS": (
        "meta_expressions_train.jsonl",
        lambda path: load_omni_avs(path.parent, "train", mask_cache=path.parent / "masks"),
    ),
    "Parquet": (
        f"data/{table_name('train', 0, 1)}",
        lambda path: load_hf_dataset(path.parents[1], "train", media_cache=path.parent / "cache"),
    ),
    "reflections": ("chains.jsonl", lambda path: add_reflections([], chain_file(path))),
    "journal, read": ("chains.jsonl", read_rows),
    "journal, written": ("chains.jsonl", RowJournal),
    "chains, verified": ("chains.jsonl", lambda path: verify_file(path, ChainLimits())),
    "medium, embedded": ("0.png", lambda path: _embed(str(path))),
    "results": ("results.jsonl", read_results),
    "scores": ("out.jsonl", lambda path: read_results(path.with_suffix(".json"))),
    "npz": ("7.npz", lambda path: list_predictions(path.parent).rows[7].read()),
    "PNG of a prediction": ("7/0.png", lambda path: list_predictions(path.parents[1]).rows[7].read()),
    "resume file": ("out.partial.jsonl", lambda path: ResumeFile(path, {})),
    "log": ("trainer_state.json", read_log_history),
    "recipe": ("sft.yaml", lambda path: ConfigParser(()).parse_args_and_config(["--config", str(path)])),
    "recipe's clips": ("sft.yaml", read_clip_options),
    "launch": ("cpu.yaml", Launch.read),
    "stages": ("stages.yaml", read_plan),
    "output of a stage": ("model.safetensors", fingerprint_content),
    "reward": ("reward.py", lambda path: load_reward_func(f"{path}:reward")),
}


class Pipe:
    """A pipe that knows whether anybody has opened it to read; the reader finds it empty at once and never hangs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)
        self._writer = threading.Thread(target=self._wait_for_a_reader, daemon=True)
        self._writer.start()

    def was_opened(self) -> bool:
        self._writer.join(0.05)  # a thread that the reader has let go may not have run yet
        return not self._writer.is_alive()

    def close(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self._writer.join()
        os.close(descriptor)

    def _wait_for_a_reader(self) -> None:
        os.close(os.open(self.path, os.O_WRONLY))


@pytest.fixture
def make_pipe() -> Iterator[Callable[[Path], Pipe]]:
    pipes: list[Pipe] = []

    def make(path: Path) -> Pipe:
        pipes.append(Pipe(path))
        return pipes[-1]

    yield make
    for pipe in pipes:
        pipe.close()


@pytest.mark.parametrize("is_link", [False, True], ids=["pipe", "link"])
@pytest.mark.parametrize("way", WAYS)
def test_pipe_is_refused_and_never_opened(make_pipe, tmp_path, way: str, is_link: bool):
    name, read = WAYS[way]
    path = tmp_path / "folder" / name
    pipe = make_pipe(tmp_path / "elsewhere" if is_link else path)
    if is_link:
        path.parent.mkdir(parents=True)
        path.symlink_to(pipe.path)
    with pytest.raises((ValueError, OSError, RuntimeError), match=rf"{re.escape(path.name)}|no longer there"):
        read(path)
    assert not pipe.was_opened()


def test_a_pipe_that_is_opened_is_noticed(make_pipe, tmp_path):
    pipe = make_pipe(tmp_path / "pipe")
    assert pipe.path.read_bytes() == b""
    assert pipe.was_opened()
