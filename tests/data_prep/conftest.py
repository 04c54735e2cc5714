"""A benchmark with as many rows as a test wants, and a run over them against `tests.fake_endpoint`.

make_rows     root of a benchmark of `num_rows` rows over three tiny clips, in Ref-AVSBench's layout
run_options   command line of a run against an endpoint, with pauses of milliseconds
"""

import wave
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.fake_endpoint import CATEGORIES, endpoint, start_endpoint

__all__ = ["endpoint", "start_endpoint"]


@pytest.fixture(scope="session")
def make_rows(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Root of a benchmark of one split, "train", whose row `n` asks for "The thing of row n."."""
    made: dict[int, Path] = {}

    def make(num_rows: int) -> Path:
        if num_rows not in made:
            made[num_rows] = tmp_path_factory.mktemp("rows")
            write_rows(made[num_rows], num_rows)
        return made[num_rows]

    return make


def write_rows(root: Path, num_rows: int) -> None:
    media = ["clip-a_0_1000", "clip-b_0_1000", "null_m-clip-a_0_1000"]
    for index, media_id in enumerate(media):
        frames, masks = root / "media" / media_id / "frames", root / "gt_mask" / media_id / "fid_0"
        frames.mkdir(parents=True)
        masks.mkdir(parents=True)
        Image.new("RGB", (32, 16), (80 * index, 0, 0)).save(frames / "0.jpg")
        Image.new("L", (32, 16), 255 if index < 2 else 0).save(masks / "00000.png")
        with wave.open(str(root / "media" / media_id / "audio.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(bytes(3200))
    lines = ["vid,uid,split,fid,exp"]
    for row in range(num_rows):
        media_id = media[row % 3]
        uid = f"{media_id}_{CATEGORIES[row % 3]}_{row}"
        lines.append(f"{media_id.removeprefix('null_m-')},{uid},train,0,The thing of row {row}.")
    (root / "metadata.csv").write_text("\r\n".join(lines) + "\r\n")


@pytest.fixture
def run_options(tmp_path: Path) -> Callable[..., list[str]]:
    """A command line; keyword arguments add options or replace them."""

    def options(root: Path, url: str, **changes: object) -> list[str]:
        values = {
            "data_root": root,
            "num_frames": 1,
            "output": tmp_path / "out" / "chains.jsonl",
            "model": "strong",
            "base_url": url,
            "backoff_s": 0.001,
            **changes,
        }
        return [word for name, value in values.items() for word in (f"--{name}", str(value))]

    return options
