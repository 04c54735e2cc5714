"""The files of a synthetic benchmark, in Ref-AVSBench's layout and with gold chains of thought.

The last step of the generator: `clips` makes one clip after another in memory, and this module writes their files.

    media/<id>/frames/<f>.jpg, media/<id>/audio.wav
    gt_mask/<id>/fid_<fid>/<0000f>.png       8-bit grey, {0, 255}
    metadata.csv                             vid,uid,split,fid,exp
    chains.jsonl                             gold chains of thought, keyed by uid and row
    questions.jsonl                          multiple-choice questions, see `data.questions`
    moments.jsonl                            when something sounds, a manifest for `benchmark: clips`
"""

import csv
import dataclasses
import json
import multiprocessing
import wave
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from aurora_rl.data.questions import QUESTIONS_FILE
from aurora_rl.files.atomic import whole_folder
from aurora_rl.synthetic.clips import SyntheticClip, make_clip, make_null_clip
from aurora_rl.synthetic.config import SyntheticConfig
from aurora_rl.synthetic.references import gold_chain

METADATA_COLUMNS = ("vid", "uid", "split", "fid", "exp")
MOMENTS_FILE = "moments.jsonl"
#: Share of null rows in train and val.
NULL_SHARE = 0.15


@dataclasses.dataclass(frozen=True)
class ClipTask:
    """One clip to write: clip `index` of a split or, with `null_turn`, the null twin of that clip."""

    split: str
    index: int
    null_turn: int | None = None


@dataclasses.dataclass(frozen=True)
class BenchmarkRow:
    """One line of metadata.csv and of chains.jsonl; the fields are named as in the files."""

    vid: str
    uid: str
    split: str
    fid: int
    exp: str
    category: str
    steps: dict[str, str]
    answer: str
    reference_type: str
    seen: tuple[str, ...]
    heard: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class WrittenClip:
    """What the tables say about one clip whose media are written: its rows, and the records of its questions."""

    rows: list[BenchmarkRow]
    questions: list[dict[str, Any]]
    moments: list[dict[str, Any]]


def write_synthetic_benchmark(
    out: Path, config: SyntheticConfig, *, num_workers: int = 1, overwrite: bool = False
) -> None:
    """Write a benchmark: the same bytes for the same config and any number of workers.

    (On one kind of machine: numpy's sine and Pillow's jpg may round differently on another, or in another version.)
    The folder appears when everything in it is written, so that a killed run leaves no incomplete benchmark.

    Args:
        out: folder of the benchmark.
        config: size and seed of the benchmark.
        num_workers: processes that write clips; a script that asks for several needs a `__main__` guard.
        overwrite: whether to replace a benchmark that is there.

    Raises:
        FileExistsError: if `out` is not empty and `overwrite` is off, or it is no benchmark.
        OutputInUseError: if another run writes to `out`.
    """
    tasks = _plan(config)
    with whole_folder(out) as folder:
        check_replaceable(out, "metadata.csv", overwrite=overwrite)
        clips = _map(partial(_write_clip, folder, config), tasks, num_workers=num_workers)
        progress = tqdm(clips, total=len(tasks), unit="clip", disable=None)  # None: shown on a terminal only
        written = list(progress)
        rows = [row for of_clip in written for row in of_clip.rows]
        _write_metadata(folder / "metadata.csv", rows)
        _write_chains(folder / "chains.jsonl", rows)
        write_records(folder / QUESTIONS_FILE, [record for of_clip in written for record in of_clip.questions])
        write_records(folder / MOMENTS_FILE, [record for of_clip in written for record in of_clip.moments])


def _plan(config: SyntheticConfig) -> list[ClipTask]:
    """List every clip in the order of metadata.csv."""
    tasks = []
    for split in ("train", "val"):
        twins_per_clip = NULL_SHARE / (1 - NULL_SHARE)
        for index in range(getattr(config, split)):
            tasks.append(ClipTask(split, index))
            turn = int((index + 1) * twins_per_clip)
            if turn > int(index * twins_per_clip):
                tasks.append(ClipTask(split, index, null_turn=turn - 1))
    tasks += [ClipTask(split, index) for split in ("test_s", "test_u") for index in range(getattr(config, split))]
    return tasks + [ClipTask("test_n", index, null_turn=index) for index in range(config.test_n)]


def _map(
    function: Callable[[ClipTask], WrittenClip], tasks: list[ClipTask], *, num_workers: int
) -> Iterable[WrittenClip]:
    """Run `map` over processes; results come in the order of the tasks."""
    if num_workers <= 1:
        yield from map(function, tasks)
        return
    # Spawned, not forked: the caller may hold threads (torch, tokenizers).
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as executor:
        yield from executor.map(function, tasks, chunksize=max(1, min(32, len(tasks) // (4 * num_workers))))


def _write_clip(root: Path, config: SyntheticConfig, task: ClipTask) -> WrittenClip:
    if task.null_turn is None:
        clip = make_clip(config, task.split, task.index)
    else:
        clip = make_null_clip(config, task.split, task.index, turn=task.null_turn)
    media = root / "media" / clip.media_id
    (media / "frames").mkdir(parents=True)
    for index, frame in enumerate(clip.frames):
        # Full chroma: at 64 px the usual 4:2:0 would smear a colour over half an object.
        Image.fromarray(frame).save(media / "frames" / f"{index}.jpg", quality=95, subsampling="4:4:4")
    write_wave(media / "audio.wav", clip.waveform, config.sampling_rate)
    rows = _rows(clip, task.split)
    for fid in sorted({row.fid for row in rows}):
        # All masks of a null clip are empty, those of its fid 0 too.
        folder = root / "gt_mask" / clip.media_id / f"fid_{fid}"
        folder.mkdir(parents=True)
        for index, mask in enumerate(clip.masks[fid]):
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{index:05d}.png")
    return WrittenClip(rows, _question_records(clip, task.split), _moment_records(clip, task.split, config))


def write_wave(path: Path, waveform: np.ndarray, sampling_rate: int) -> None:
    """Write a waveform (num_samples,) float32 in [-1, 1] as a wav file of 16 bits, mono."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sampling_rate)
        file.writeframes(np.round(waveform * 32767).astype("<i2").tobytes())


def _rows(clip: SyntheticClip, split: str) -> list[BenchmarkRow]:
    rows: list[BenchmarkRow] = []
    count: Counter[str] = Counter()
    for reference in clip.references:
        count[reference.category] += 1
        steps, answer = gold_chain(reference, seen=clip.seen, heard=clip.heard)
        rows.append(
            BenchmarkRow(
                vid=clip.vid,
                uid=f"{clip.media_id}_{reference.category}_{count[reference.category]}",
                split=split,
                fid=reference.target or 0,
                exp=reference.sentence,
                category=reference.category,
                steps=steps,
                answer=answer,
                reference_type=reference.reference_type,
                seen=clip.seen,
                heard=clip.heard,
            )
        )
    return rows


def _question_records(clip: SyntheticClip, split: str) -> list[dict[str, Any]]:
    """Return the lines of questions.jsonl about a clip, in the keys of `data.questions`."""
    return [
        {
            "uid": f"{clip.media_id}_{question.kind}",
            "split": split,
            "clip": clip.media_id,
            "question": question.text,
            "choices": question.choices,
            "answer": question.answer,
            "kind": question.kind,
            "chain": question.reasoning,
            "seen": clip.seen,
            "heard": clip.heard,
        }
        for question in clip.questions
    ]


def _moment_records(clip: SyntheticClip, split: str, config: SyntheticConfig) -> list[dict[str, Any]]:
    """Return the lines of moments.jsonl about a clip, rows of a manifest for `tasks.temporal_grounding`."""
    return [
        {
            "id": f"{clip.media_id}_{number}",
            "split": split,
            "frames": f"media/{clip.media_id}/frames",
            "audio": f"media/{clip.media_id}/audio.wav",
            "fps": config.fps,
            "reference": f"the {moment.category}",
            "category": moment.category,
            "times": [[round(config.seconds * share, 3) for share in span] for span in moment.spans],
            "kind": moment.kind,
            "chain": moment.reasoning,
            "seen": clip.seen,
            "heard": clip.heard,
        }
        for number, moment in enumerate(clip.moments)
    ]


def write_records(path: Path, records: list[dict[str, Any]]) -> None:
    """Write JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def _write_metadata(path: Path, rows: list[BenchmarkRow]) -> None:
    # The csv module ends lines by CRLF, as the official copy does.
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(METADATA_COLUMNS)
        writer.writerows([getattr(row, column) for column in METADATA_COLUMNS] for row in rows)


def _write_chains(path: Path, rows: list[BenchmarkRow]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for index, row in enumerate(rows):
            record = {
                "uid": row.uid,
                "row": index,
                "split": row.split,
                "category": row.category,
                "exp": row.exp,
                "steps": row.steps,
                "answer": row.answer,
                "generator": "synthetic",
                "verified": True,
                "reference_type": row.reference_type,
                "seen": row.seen,
                "heard": row.heard,
            }
            file.write(json.dumps(record) + "\n")


def check_replaceable(out: Path, mark: str, *, overwrite: bool) -> None:
    """Raise a FileExistsError unless a folder is empty, or holds the file `mark` of such data and may be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{out} is not empty: choose another folder, or overwrite it with --overwrite")
    if not (out / mark).is_file():
        raise FileExistsError(f"{out} holds no {mark}, so it is no benchmark and is not overwritten: remove it")
