"""Write the data of a recipe as a Hugging Face dataset: parquet tables with the media in them, and a card.

`aurora-rl convert --to hf` writes a benchmark that is named by its form, clips whole. This reads a recipe's file, and
writes what that recipe trains on: its benchmark, sampling (`fps`, `num_frames`), columns and chains.

python data_prep/to_hf_dataset.py --config recipes/ref_avs/sft_7b.yaml --split train val test_s test_u test_n \\
    --output_dir data/ref_avs_hf --source https://gewu-lab.github.io/Ref-AVS

Other keys of the recipe are not used. `benchmark: hf_dataset` reads the result.
"""

import dataclasses
import io
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from datasets import DatasetInfo
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData
from PIL import Image

from aurora_rl import __version__
from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.assembly.parser import ConfigParser
from aurora_rl.data.containers import SAMPLING_RATE, MediaError, check_is_file
from aurora_rl.data.files import DatasetError
from aurora_rl.data.hf_dataset import FEATURES, TEXT_COLUMNS, table_name
from aurora_rl.data.media import load_clip, read_clip_size
from aurora_rl.data.omni_references import check_words_alone
from aurora_rl.data.sample import AVClip, AVSample
from aurora_rl.data.splits import TABLE_FOLDER, TABLE_NAME
from aurora_rl.files.atomic import whole_folder
from aurora_rl.files.output_lock import OutputInUseError
from aurora_rl.logs import setup_logging

logger = logging.getLogger(__name__)

GROUP_BYTES = 64 * 2**20  # rows that are in memory at a time, here and in a reader
TABLE_BYTES = 512 * 2**20  # size of a table's file
MAX_FILE_BYTES = 256 * 2**20  # largest frame, mask or sound
TO_FILL_IN = "*To be filled in before the dataset is given to others.*"
FIELDS = {
    "uid": "the benchmark's id of the row; not unique, `uid` and `row` together are",
    "row": "0-based line of the row in the benchmark's own table",
    "split": "the benchmark's split",
    "media_id": "id of the clip; rows of one clip hold the same frames and sound",
    "category": 'what the reference points at, "null" where it points at nothing',
    "reference": "the referring sentence",
    "fps": "frames a second",
    "frames": "F images in time order, the benchmark's own files; none for a clip that is sound alone",
    "audio": "the clip's sound, the benchmark's own file; null for a clip without sound",
    "masks": "F images, object where not 0, null for a frame that is not annotated; none for a row without masks, and "
    "for a null reference that ships none",
    "reference_type": "kind of reference, where the benchmark tells",
    "chain": "chain of thought that ends in the answer, where there is one",
    "wrong": "chain of thought that a model gave and that `chain` corrects, where there is one",
    "seen": "true categories in view, where known",
    "heard": "true categories that sound, in order of onset, where known",
    "choices": "options of a multiple-choice question, null for other rows",
    "answer": "true answer of a question that is answered in words, where known",
    "extra": "further columns of the row as a JSON object, where there are any",
}


@dataclasses.dataclass
class ExportArguments:
    """The splits to write, and the contents of the card."""

    output_dir: str = dataclasses.field(metadata={"help": "Folder that is written; it must not exist."})
    split: list[str] = dataclasses.field(metadata={"help": "Splits that are written to the data set."})
    title: str | None = dataclasses.field(default=None, metadata={"help": "Title of the data set's card."})
    source: str | None = dataclasses.field(
        default=None, metadata={"help": "Address that the benchmark comes from, for the card."}
    )
    license: str | None = dataclasses.field(
        default=None, metadata={"help": "Licence of the benchmark, as the hub abbreviates it."}
    )


@dataclasses.dataclass(frozen=True)
class SplitSize:
    """The size of a split."""

    name: str
    rows: int
    clips: int
    num_bytes: int


def export(
    data_args: DataArguments,
    args: ExportArguments,
    *,
    load: Callable[[DataArguments, str], list[AVSample]] = load_split,
    source_form: str | None = None,
) -> None:
    """Write all splits and the card into a folder, which gets its name when it is complete.

    Args:
        data_args: arguments of the data set.
        args: what is written.
        load: function that lists the samples of a split.
        source_form: what the card calls the form that was read; None for the benchmark's name.

    Raises:
        DatasetError: if the folder exists already, a split's name is invalid on the hub, or the disk is too small.
        MediaError: if a clip cannot be read.
        OutputInUseError: if another run writes to the folder.
    """
    out = Path(args.output_dir)
    with whole_folder(out) as folder:
        if out.exists():
            raise DatasetError(f"{out} is there already: name another folder, or delete it")
        splits = {split: load(data_args, split) for split in args.split}
        (folder / TABLE_FOLDER).mkdir()
        _check_space(folder, splits)
        sizes = [write_split(samples, folder / TABLE_FOLDER, split) for split, samples in splits.items()]
        (folder / "README.md").write_text(make_card(sizes, source_form or data_args.benchmark, args), encoding="utf-8")
    logger.info("%s is complete", out)


def write_split(samples: Sequence[AVSample], folder: Path, split: str) -> SplitSize:
    """Write a split's tables; each row's clip is first read once, as in training.

    Raises:
        DatasetError: if the split's name is invalid on the hub, or a reference has files of its own.
        MediaError: if a clip cannot be read.
    """
    if not TABLE_NAME.fullmatch(table_name(split, 0, 1)):
        raise DatasetError(f"the hub takes no split named {split!r}: use letters, digits and underscores")
    check_words_alone(samples, "a table")
    paths: list[Path] = []
    num_bytes = 0
    groups = _row_groups(samples)
    group = next(groups, None)
    while group is not None:
        paths.append(folder / f"{split}-{len(paths)}.tmp")
        with pq.ParquetWriter(paths[-1], FEATURES.arrow_schema, compression="none", use_dictionary=False) as writer:
            while group is not None and paths[-1].stat().st_size < TABLE_BYTES:
                writer.write_table(group)
                num_bytes += group.nbytes
                group = next(groups, None)
        logger.info("wrote table %d of split %s", len(paths), split)
    for index, path in enumerate(paths):  # the names hold their number, which is known now
        path.rename(folder / table_name(split, index, len(paths)))
    clips = len({sample.media_id for sample in samples})
    return SplitSize(split, rows=len(samples), clips=clips, num_bytes=num_bytes)


def _row_groups(samples: Iterable[AVSample]) -> Iterator[pa.Table]:
    """Yield rows in groups of at most `GROUP_BYTES`; a larger row is a group of its own."""
    rows: list[dict[str, Any]] = []
    num_bytes = 0
    for sample in samples:
        clip = load_clip(sample)  # finds unreadable files now
        texts = sample.to_row()
        row = {
            **{name: texts[name] for name in TEXT_COLUMNS},
            "frames": _frames_of(sample, clip),
            "audio": _sound_of(sample, clip),
            "masks": [_embed(path) if path else None for path in sample.mask_paths],
        }
        size = sum(len(media["bytes"]) for media in (*row["frames"], *row["masks"], row["audio"]) if media)
        if rows and num_bytes + size > GROUP_BYTES:
            yield pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema)
            rows, num_bytes = [], 0
        rows.append(row)
        num_bytes += size
    if rows:
        yield pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema)


def _frames_of(sample: AVSample, clip: AVClip) -> list[dict[str, Any]]:
    """Embed the files of the frames; of a video file its sampled frames as PNG, which loses nothing."""
    if sample.video_path is None:
        return [_embed(path) for path in sample.frame_paths]
    frames = []
    for number, pixels in enumerate(clip.frames):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="PNG")
        frames.append({"bytes": file.getvalue(), "path": f"{number}.png"})
    return frames


def _sound_of(sample: AVSample, clip: AVClip) -> dict[str, Any] | None:
    """Embed the sound's file; of a video's own track the sound that the model hears, as WAV of 32-bit floats."""
    if sample.audio_path is None or clip.waveform is None:
        return None
    if sample.audio_path != sample.video_path:
        return _embed(sample.audio_path)
    file = io.BytesIO()
    soundfile.write(file, clip.waveform, SAMPLING_RATE, format="WAV", subtype="FLOAT")
    return {"bytes": file.getvalue(), "path": "sound.wav"}


def _embed(path: str) -> dict[str, Any]:
    """Embed a file byte for byte, as `datasets` does: encoding a sound would need torchcodec and be lossy."""
    check_is_file(path)
    if os.path.getsize(path) > MAX_FILE_BYTES:
        raise MediaError(f"{path} has {os.path.getsize(path)} bytes: the limit is {MAX_FILE_BYTES}, cut or convert it")
    return {"bytes": Path(path).read_bytes(), "path": os.path.basename(path)}


def _check_space(folder: Path, splits: dict[str, list[AVSample]]) -> None:
    """Log the size of the output, and check that it fits on the disk."""
    samples = [sample for samples in splits.values() for sample in samples]
    sizes: dict[str, int] = {}
    needed = 0
    for sample in samples:
        for path in filter(None, (*sample.frame_paths, *sample.mask_paths, sample.audio_path)):
            needed += sizes.setdefault(path, os.path.getsize(path))
        if sample.video_path is not None:  # its frames are written as PNG, of at most their pixels' bytes
            width, height = read_clip_size(sample)
            needed += 3 * sample.num_frames * width * height
    free = shutil.disk_usage(folder).free
    logger.info("%d rows take %.3g GB, %.3g GB are free in %s", len(samples), needed / 1e9, free / 1e9, folder.parent)
    if needed > free:
        raise DatasetError(
            f"{len(samples)} rows take {needed / 1e9:.3g} GB, but {folder.parent} has {free / 1e9:.3g} GB free: each "
            "row holds its clip's media; free some, name another folder or fewer splits"
        )


def make_card(sizes: Sequence[SplitSize], source_form: str, args: ExportArguments) -> str:
    """Make the dataset card: metadata by which `load_dataset` finds the tables, then text for readers."""
    title = args.title or f"{source_form} as a Hugging Face dataset"
    table = [f"| {size.name} | {size.rows:,} | {size.clips:,} | {size.num_bytes / 1e9:.3g} |" for size in sizes]
    fields = [f"| `{name}` | {FIELDS[name]} |" for name in FEATURES]
    return "\n".join(
        [
            f"---\n{_metadata(sizes, title, args.license)}\n---\n",
            f"# {title}\n",
            "Clips with frames and sound, sentences that refer to an object in them or ask about it, and that object's "
            "masks where they are known.\n",
            "| split | rows | clips | GB |\n|---|---|---|---|",
            *table,
            "\n## Fields\n\n| field | |\n|---|---|",
            *fields,
            "\n## Source and licence\n",
            f"- Source: {args.source or TO_FILL_IN}",
            f"- Licence: {args.license or TO_FILL_IN} Check that it allows passing on the media, not the annotations "
            "alone.",
            "\n## How it was made\n",
            f"By `aurora-rl convert --to hf` of Aurora-RL {__version__} from the benchmark `{source_form}`. "
            "Frames, sound and masks are the benchmark's own files, byte for byte, each read once before it was "
            "written; of a video file, its sampled frames and what is heard. Rows keep the order of the benchmark's "
            "table.",
            f"\n## How to load it\n\n{HOW_TO_LOAD.format(split=sizes[0].name)}",
        ]
    )


HOW_TO_LOAD = """\
```python
from datasets import Audio, load_dataset

dataset = load_dataset("path/to/this/folder", split="{split}")
dataset[0]["frames"][0]  # a PIL image
dataset = dataset.cast_column("audio", Audio(decode=False))  # where torchcodec is not installed: the file's bytes
```

Aurora-RL trains and evaluates on it with `benchmark: hf_dataset`, `data_root` this folder and `media_cache` a folder to
unpack the media into.
"""


def _metadata(sizes: Sequence[SplitSize], title: str, license: str | None) -> str:
    card = DatasetCardData(license=license or "unknown", pretty_name=title, tags=["audio-visual segmentation"])
    files = [{"split": size.name, "path": f"{TABLE_FOLDER}/{size.name}-*.parquet"} for size in sizes]
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(card)
    splits = SplitDict({size.name: SplitInfo(size.name, size.num_bytes, size.rows) for size in sizes})
    info = DatasetInfo(features=FEATURES, splits=splits, dataset_size=sum(size.num_bytes for size in sizes))
    DatasetInfosDict({"default": info}).to_dataset_card_data(card)
    return str(card)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the recipe and the command line, and export; invalid data ends the program without a traceback."""
    parser = ConfigParser((DataArguments, ExportArguments), description=__doc__)
    data_args, args, _, unknown = parser.parse_args_and_config(
        argv, return_remaining_strings=True, separate_remaining_strings=True
    )
    if unknown:  # other keys of the recipe are for training, but an option of the command line is for this program
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    setup_logging()
    try:
        export(data_args, args)
    except (DatasetError, MediaError, OutputInUseError) as error:
        raise SystemExit(f"to_hf_dataset: {error}") from error
