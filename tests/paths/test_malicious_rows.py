"""What a downloaded benchmark must not be able to do, shown for every loader and for the tools that read benchmarks.

All attacks run in one process of little memory: an image of 50,000 x 50,000 pixels or ten hours of sound, decoded,
would end it with a `MemoryError`, which is not among the errors that a test accepts.
"""

import csv
import dataclasses
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml
from PIL import Image

from aurora_rl.assembly import benchmarks
from aurora_rl.data.question_tables import QUESTION_TABLES
from aurora_rl.data.ref_avs import load_ref_avs
from aurora_rl.scripts.to_hf_dataset import write_split

ROOT = Path(__file__).resolve().parents[2]
NAME = "abc_0_5"  # of every clean clip
SIZE = (6, 4)  # width and height in pixels
MEMORY = 2**30  # bytes that the process may take beyond its libraries; the image alone, decoded, has 2.5 times as many


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark of one clip, and where that clip's media lie."""

    root: Path
    frame: Path
    mask: Path | None
    audio: Path


def write_media(frames: list[Path], masks: list[Path], audio: Path) -> None:
    for path in (*frames, *masks, audio):
        path.parent.mkdir(parents=True, exist_ok=True)
    for path in frames:
        Image.new("RGB", SIZE, (90, 0, 0)).save(path)
    for path in masks:
        Image.new("L", SIZE, 255).save(path)
    soundfile.write(audio, np.full(16_000, 0.5), 16_000, format="MP3" if audio.suffix == ".mp3" else "WAV")


def write_table(path: Path, columns: str, **values: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([columns.split(","), [values.get(name, "0") for name in columns.split(",")]])


def ref_avs(root: Path, name: str) -> Benchmark:
    columns = "vid,uid,split,fid,exp"
    write_table(root / "metadata.csv", columns, uid=f"{name}_cat_1", split="train", exp="The cat.")
    clip, masks = root / "media" / NAME, root / "gt_mask" / NAME / "fid_0"
    write_media([clip / "frames" / f"{i}.jpg" for i in (0, 1)], [masks / f"0000{i}.png" for i in (0, 1)],
                clip / "audio.wav")  # fmt: skip
    return Benchmark(root, clip / "frames" / "1.jpg", masks / "00001.png", clip / "audio.wav")


def avsbench_s4(root: Path, name: str) -> Benchmark:
    write_table(root / "s4_meta_data.csv", "name,start,category,split", name=name, category="cat", split="train")
    frames, masks = root / "visual_frames/train/cat" / NAME, root / "gt_masks/train/cat" / NAME
    audio = root / "audio_wav/train/cat" / f"{NAME}.wav"
    files = [f"{NAME}_{i}.png" for i in range(1, 6)]
    write_media([frames / file for file in files], [masks / file for file in files], audio)
    return Benchmark(root, frames / files[1], masks / files[1], audio)


def avsbench_ms3(root: Path, name: str) -> Benchmark:
    write_table(root / "ms3_meta_data.csv", "name,split", name=name, split="train")
    frames, masks = root / "visual_frames" / NAME, root / "gt_masks/train" / NAME
    audio = root / "audio_wav/train" / f"{NAME}.wav"
    numbers = range(1, 6)
    write_media([frames / f"{NAME}.mp4_{i}.png" for i in numbers], [masks / f"{NAME}_{i}.png" for i in numbers], audio)
    return Benchmark(root, frames / f"{NAME}.mp4_2.png", masks / f"{NAME}_2.png", audio)


def avsbench_avss(root: Path, name: str) -> Benchmark:
    columns = "vid,uid,s_min,s_sec,a_obj,split,label"
    write_table(root / "metadata.csv", columns, uid=name, a_obj="cat", split="train", label="v1m")
    clip = root / "v1m" / NAME
    frames, masks = ([clip / folder / f"{i}.{suffix}" for i in range(5)]
                     for folder, suffix in (("frames", "jpg"), ("labels_rgb", "png")))  # fmt: skip
    write_media(frames, masks, clip / "audio.wav")
    return Benchmark(root, frames[1], masks[1], clip / "audio.wav")


def omni_avs(root: Path, name: str) -> Benchmark:
    files = ["0.jpg", "1.jpg"]
    expression = {"exp_id": 0, "video_name": name, "expr": "The cat.", "obj_id": [1], "expr_type": "text", "expl": ""}
    mask = {"size": [SIZE[1], SIZE[0]], "counts": [0, SIZE[0] * SIZE[1]]}
    video = {"file_name": files, "duration": 2.0, "mask_dict": {"1": [mask, mask]}}
    root.mkdir(parents=True)
    (root / "meta_expressions_train.jsonl").write_text(json.dumps(expression) + "\n")
    (root / "video_dict.json").write_text(json.dumps({name: video}))
    frames, audio = root / "images" / NAME, root / "audios" / f"{NAME}.mp3"
    write_media([frames / file for file in files], [], audio)
    return Benchmark(root, frames / "0.jpg", None, audio)  # the frame whose size the masks are drawn in


def questions(root: Path, name: str) -> Benchmark:
    clip = root / "media" / NAME
    write_media([clip / "frames" / f"{i}.jpg" for i in (0, 1)], [], clip / "audio.wav")
    question = {"uid": "abc_first", "split": "train", "clip": name, "question": "Which sounds first?"}
    question |= {"choices": ["a cat", "a dog"], "answer": "a cat"}
    (root / "questions.jsonl").write_text(json.dumps(question) + "\n")
    return Benchmark(root, clip / "frames" / "1.jpg", None, clip / "audio.wav")


def clips(root: Path, name: str) -> Benchmark:
    clip = root / NAME
    write_media([clip / "frames" / f"{i}.jpg" for i in (0, 1)], [clip / "masks" / f"{i}.png" for i in (0, 1)],
                clip / "audio.wav")  # fmt: skip
    row = {"frames": f"{name}/frames", "masks": f"{name}/masks", "audio": f"{name}/audio.wav", "reference": "The cat."}
    (root / "manifest.jsonl").write_text(json.dumps(row | {"category": "cat"}) + "\n")
    return Benchmark(root, clip / "frames" / "1.jpg", clip / "masks" / "1.png", clip / "audio.wav")


#: Loaders of folders and tables; tests/data/test_question_tables.py attacks the one of published questions. All of
#: OmniAVS is read by the loader of its references in words; tests/data/test_omni_avs.py attacks the others' files.
LOADERS = [name for name in benchmarks.LOADERS if name not in (*QUESTION_TABLES, "omni_avs_all")]
FOLDERS: dict[str, Callable[[Path, str], Benchmark]] = {
    "ref_avs": ref_avs,
    "avsbench_s4": avsbench_s4,
    "avsbench_ms3": avsbench_ms3,
    "avsbench_avss": avsbench_avss,
    "omni_avs": omni_avs,
    "questions": questions,
    "clips": clips,
}


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and ends."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])  # 8 bits of grey
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100))


def wav_header(seconds: int) -> bytes:
    """A WAV of 16 kHz, 16 bits, mono that says how long it is, and ends."""
    size = seconds * 16_000 * 2
    form = b"fmt " + (16).to_bytes(4, "little") + bytes.fromhex("01000100803e0000007d000002001000")
    return b"RIFF" + (36 + size).to_bytes(4, "little") + b"WAVE" + form + b"data" + size.to_bytes(4, "little")


IMAGE = png_header(50_000, 50_000)
SOUND = wav_header(10 * 3600)


def link_out(path: Path) -> None:
    """Move a file or folder out of the root, and leave a link to it."""
    root = next(parent for parent in path.parents if parent.name == "root")
    outside = root.with_name("outside") / path.name
    outside.parent.mkdir(exist_ok=True)
    path.rename(outside)
    path.symlink_to(outside)


def enlarge_masks(root: Path) -> None:
    """Run lengths of a few bytes that fill 50,000 x 50,000 pixels."""
    video_dict = root / "video_dict.json"
    small = {"size": [SIZE[1], SIZE[0]], "counts": [0, SIZE[0] * SIZE[1]]}
    huge = {"size": [50_000, 50_000], "counts": [0, 50_000**2]}
    video_dict.write_text(video_dict.read_text().replace(json.dumps(small), json.dumps(huge)))


def make_long(path: Path) -> None:
    """Ten hours of silence that take no space on the disk."""
    path.write_bytes(SOUND)
    os.truncate(path, len(SOUND) + 10 * 3600 * 16_000 * 2)


NO_NAME, OUTSIDE = "which is no plain name|leads out of its folder|has the absolute path", "outside"
TOO_LARGE, TOO_LONG = "50000x50000 pixels: the limit is|is too large: ", "s long: the limit is|is cut off: "
#: What is done to a clean benchmark, and what the refusal says.
ATTACKS: dict[str, tuple[Callable[[Benchmark], Any] | str, str]] = {
    "name_climbs": ("../../etc", NO_NAME),
    "name_is_absolute": ("/etc/passwd", NO_NAME),
    "frame_links_out": (lambda it: link_out(it.frame), OUTSIDE),
    "frames_link_out": (lambda it: link_out(it.frame.parent), OUTSIDE),
    "sound_links_out": (lambda it: link_out(it.audio), OUTSIDE),
    "masks_link_out": (lambda it: link_out(it.mask.parent), OUTSIDE),
    "frame_is_huge": (lambda it: it.frame.write_bytes(IMAGE), TOO_LARGE),
    "mask_is_huge": (lambda it: it.mask.write_bytes(IMAGE), TOO_LARGE),
    "run_lengths_are_huge": (lambda it: enlarge_masks(it.root), "has the size [50000, 50000]"),
    "run_lengths_and_frame_are_huge": (
        lambda it: (enlarge_masks(it.root), it.frame.write_bytes(IMAGE)),
        TOO_LARGE,
    ),
    "sound_claims_hours": (lambda it: it.audio.write_bytes(SOUND), TOO_LONG),
    "sound_has_hours": (lambda it: make_long(it.audio), TOO_LONG),
}
#: The same of a dataset whose media are inside its tables: a change of its only row, or of the table's file.
TABLE_ATTACKS: dict[str, tuple[Callable[[dict[str, Any]], Any] | None, str]] = {
    "frame_names_a_file": (lambda row: row["frames"][0].update(bytes=None, path="../../etc/passwd"), "instead of"),
    "sound_names_a_file": (lambda row: row["audio"].update(bytes=None, path="/etc/passwd"), "instead of holding it"),
    "table_links_out": (None, OUTSIDE),
    "frame_is_huge": (lambda row: row["frames"][1].update(bytes=IMAGE), TOO_LARGE),
    "mask_is_huge": (lambda row: row["masks"][1].update(bytes=IMAGE), TOO_LARGE),
    "sound_claims_hours": (lambda row: row["audio"].update(bytes=SOUND), TOO_LONG),
}
CLEAN = "clean"
OF_MASK_FILES = {"masks_link_out", "mask_is_huge"}
#: OmniAVS alone keeps its masks as run lengths.
OF_RUN_LENGTHS = {"run_lengths_are_huge", "run_lengths_and_frame_are_huge"}
OTHERS = {"omni_avs": OF_MASK_FILES, "questions": OF_MASK_FILES | OF_RUN_LENGTHS}
CASES = [(name, attack) for name in FOLDERS for attack in ATTACKS if attack not in OTHERS.get(name, OF_RUN_LENGTHS)]
CASES += [("hf_dataset", attack) for attack in TABLE_ATTACKS]
#: `cache_features.py` decodes neither sound nor masks.
NOT_OF_CACHING = {"sound_has_hours", "sound_claims_hours", "mask_is_huge"}
FRAME_CASES = [case for case in CASES if case[1] not in NOT_OF_CACHING]


def build(benchmark: str, attack: str, root: Path) -> None:
    if benchmark == "hf_dataset":
        return build_table(attack, root)
    how = ATTACKS[attack][0] if attack != CLEAN else NAME
    built = FOLDERS[benchmark](root, how if isinstance(how, str) else NAME)
    if not isinstance(how, str):
        how(built)


def build_table(attack: str, root: Path) -> None:
    (root / "data").mkdir(parents=True)
    write_split(load_ref_avs(ref_avs(root.with_name("source"), NAME).root, "train", num_frames=2), root / "data",
                "train")  # fmt: skip
    table = root / "data" / "train-00000-of-00001.parquet"
    if attack == "table_links_out":
        link_out(table)
    elif attack != CLEAN:
        [row] = pq.read_table(table).to_pylist()
        TABLE_ATTACKS[attack][0](row)
        pq.write_table(pa.Table.from_pylist([row]), table)


#: Runs each job in this process and prints its error, by name and text.
PROGRAM = """
import json, resource, sys
from pathlib import Path
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.data.media import load_clip
from aurora_rl.scripts import cache_features, to_hf_dataset

def load(benchmark, folder, recipe):
    args = DataArguments(f"{folder}/root", benchmark, mask_cache=f"{folder}/masks", media_cache=f"{folder}/media",
                         num_frames=2)
    for sample in load_split(args, "train"):
        load_clip(sample)

def options(benchmark, folder, recipe):
    return ["--config", recipe, "--data_root", f"{folder}/root", "--benchmark", benchmark, "--split", "train",
            "--mask_cache", f"{folder}/masks", "--media_cache", f"{folder}/media", "--num_frames", "2"]

def export(*job):
    to_hf_dataset.main([*options(*job), "--output_dir", f"{job[1]}/out"])

def cache(*job):
    cache_features.main([*options(*job), "--embedding_cache", f"{job[1]}/embeddings", "--use_cpu", "true"])

used = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]),) * 2)
results = []
for job in json.loads(Path(sys.argv[1]).read_text()):
    for read in (load, export, cache)[: job["num_readers"]]:
        try:
            read(job["benchmark"], job["folder"], sys.argv[2])
            results.append({"reader": read.__name__, **job, "error": None, "message": ""})
        except BaseException as error:
            results.append({"reader": read.__name__, **job, "error": type(error).__name__, "message": str(error)})
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def outcomes(
    omni_checkpoint: str, sam_checkpoint: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str, str], tuple[str | None, str]]:
    """The error of each reader on each case, by reader, benchmark and attack."""
    folder = tmp_path_factory.mktemp("malicious")
    jobs = []
    for index, (benchmark, attack) in enumerate([*CASES, *((name, CLEAN) for name in LOADERS)]):
        build(benchmark, attack, folder / str(index) / "root")
        num_readers = 2 if attack in NOT_OF_CACHING else 3
        jobs.append(
            {"benchmark": benchmark, "attack": attack, "folder": str(folder / str(index)), "num_readers": num_readers}
        )
    segmenter = {"type": "sam", "checkpoint": sam_checkpoint, "image_size": 64}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": omni_checkpoint, "segmenter": segmenter}))
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-c", PROGRAM, str(folder / "jobs.json"), str(folder / "recipe.yaml"), str(MEMORY)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-5000:]
    results = json.loads(done.stdout.splitlines()[-1])
    return {(r["reader"], r["benchmark"], r["attack"]): (r["error"], r["message"]) for r in results}


def expected_words(benchmark: str, attack: str) -> str:
    return (TABLE_ATTACKS if benchmark == "hf_dataset" else ATTACKS)[attack][1]


def test_every_loader_is_attacked() -> None:
    assert {*FOLDERS, "hf_dataset"} == set(LOADERS)


@pytest.mark.parametrize("benchmark", LOADERS)
@pytest.mark.parametrize("reader", ["load", "export", "cache"])
def test_the_clean_benchmark_is_read(outcomes, reader: str, benchmark: str) -> None:
    assert outcomes[reader, benchmark, CLEAN] == (None, "")


@pytest.mark.parametrize(("benchmark", "attack"), CASES)
def test_loading_refuses_it(outcomes, benchmark: str, attack: str) -> None:
    error, message = outcomes["load", benchmark, attack]
    assert error in ("UnsafePathError", "DatasetError", "MediaError"), message
    assert any(words in message for words in expected_words(benchmark, attack).split("|")), message


@pytest.mark.parametrize(("benchmark", "attack"), CASES)
def test_exporting_refuses_it(outcomes, benchmark: str, attack: str) -> None:
    error, message = outcomes["export", benchmark, attack]
    assert error == "SystemExit" and message.startswith("to_hf_dataset: "), (error, message)
    assert any(words in message for words in expected_words(benchmark, attack).split("|")), message


@pytest.mark.parametrize(("benchmark", "attack"), FRAME_CASES)
def test_caching_refuses_it(outcomes, benchmark: str, attack: str) -> None:
    error, message = outcomes["cache", benchmark, attack]
    assert error == "SystemExit" and message.startswith("cache_features: "), (error, message)
    assert any(words in message for words in expected_words(benchmark, attack).split("|")), message
