import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Audio, DatasetDict, load_dataset
from huggingface_hub import DatasetCard

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import find_train_categories, load_split
from aurora_rl.cli import main as aurora_rl
from aurora_rl.data.files import DatasetError
from aurora_rl.data.hf_dataset import FEATURES, TEXT_COLUMNS, load_hf_dataset, read_categories
from aurora_rl.data.media import load_clip
from aurora_rl.data.sample import AVSample
from aurora_rl.scripts import to_hf_dataset
from aurora_rl.scripts.to_hf_dataset import main, write_split

SPLITS = ("train", "val", "test_s", "test_u", "test_n")
#: What a sample loses on its way into tables and back: where its files lay, and how its prompt is built.
PATHS = (
    *("frame_paths", "video_path", "frame_times", "frame_cache", "audio_path", "mask_paths"),
    *("sampled_fps", "origin", "use_audio_in_video", "reference_media"),
)


def run(root: Path, out: Path, *options: str) -> None:
    main(["--data_root", str(root), "--chains", "chains.jsonl", "--fps", "2", "--num_frames", "4",
          "--output_dir", str(out), *options])  # fmt: skip


@pytest.fixture(scope="module")
def hf_root(tiny_benchmark: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All splits of the tiny benchmark as a Hugging Face dataset; read-only."""
    out = tmp_path_factory.mktemp("hf") / "dataset"
    run(tiny_benchmark, out, "--split", *SPLITS)
    return out


def source(tiny_benchmark: Path, split: str) -> list[AVSample]:
    return load_split(DataArguments(str(tiny_benchmark), chains="chains.jsonl", fps=2.0, num_frames=4), split)


def texts(sample: AVSample) -> dict[str, Any]:
    return {name: value for name, value in vars(sample).items() if name not in PATHS}


def assert_equal_clips(found: AVSample, expected: AVSample) -> None:
    ours, theirs = load_clip(found), load_clip(expected)
    for name in ("frames", "waveform", "gt_masks"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


# To `datasets`


def test_load_dataset_finds_every_split_without_a_network(
    hf_root: Path, tiny_benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    dataset = load_dataset(str(hf_root), cache_dir=str(tmp_path))
    assert isinstance(dataset, DatasetDict) and set(dataset) == set(SPLITS)
    for split in SPLITS:
        expected = source(tiny_benchmark, split)
        assert dataset[split].features == FEATURES
        assert dataset[split]["reference"][:] == [sample.reference for sample in expected]
        assert dataset[split]["chain"][:] == [sample.chain for sample in expected]


def test_loaded_rows_hold_the_files_own_bytes(hf_root: Path, tiny_benchmark: Path, tmp_path: Path) -> None:
    dataset = load_dataset(str(hf_root), split="val", cache_dir=str(tmp_path))
    row = dataset.cast_column("audio", Audio(decode=False))[0]
    sample = source(tiny_benchmark, "val")[0]
    assert row["audio"] == {"bytes": Path(sample.audio_path).read_bytes(), "path": "audio.wav"}
    np.testing.assert_array_equal(np.stack([np.asarray(frame) for frame in row["frames"]]), load_clip(sample).frames)
    masks = np.stack([np.asarray(mask) > 0 for mask in row["masks"]])
    np.testing.assert_array_equal(masks, load_clip(sample).gt_masks)


def test_rows_can_be_streamed(hf_root: Path) -> None:
    dataset = load_dataset(str(hf_root), split="test_n", streaming=True).cast_column("audio", Audio(decode=False))
    assert [row["category"] for row in dataset] == ["null"] * 3


def test_card_tells_sizes_fields_source_and_how_to_load(tiny_benchmark: Path, tmp_path: Path) -> None:
    run(tiny_benchmark, tmp_path / "out", "--split", "val", "--source", "a paper", "--license", "mit")
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    rows = source(tiny_benchmark, "val")
    assert card.data.license == "mit"
    [split] = card.data.dataset_info["splits"]
    assert (split["name"], split["num_examples"]) == ("val", len(rows))
    assert f"| val | {len(rows)} | {len({sample.media_id for sample in rows})} |" in card.text
    assert all(f"| `{name}` |" in card.text for name in FEATURES)
    assert "- Source: a paper" in card.text and "To be filled in" not in card.text
    assert 'load_dataset("path/to/this/folder", split="val")' in card.text


def test_a_recipe_gives_the_data_that_it_names_and_convert_those_of_a_folder(
    tiny_benchmark: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "sft.yaml"
    data = {"data_root": str(tiny_benchmark), "chains": "chains.jsonl", "fps": 2.0, "num_frames": 4}
    recipe.write_text(yaml.safe_dump({"model": "mine", "learning_rate": 1e-4, **data}))
    main(["--config", str(recipe), "--split", "val", "--output_dir", str(tmp_path / "of_recipe")])
    options = ["--from", "ref_avs", "--data_root", str(tiny_benchmark), "--to", "hf", "--split", "val"]
    assert aurora_rl(["convert", *options, "--output_dir", str(tmp_path / "whole")]) == 0
    rows = [pq.read_table(tmp_path / name / "data").to_pylist()[0] for name in ("of_recipe", "whole")]
    assert [row["chain"] is None for row in rows] == [False, True]
    assert [row["fps"] for row in rows] == [2.0, 1.0] and rows[0]["frames"] == rows[1]["frames"]


def test_card_says_what_is_to_be_filled_in(hf_root: Path) -> None:
    card = DatasetCard.load(hf_root / "README.md")
    assert card.data.license == "unknown"
    assert card.text.count("To be filled in before the dataset is given to others") == 2


def test_no_path_of_this_machine_is_in_the_tables_or_the_card(hf_root: Path, tiny_benchmark: Path) -> None:
    for path in hf_root.rglob("*"):
        assert path.is_dir() or str(tiny_benchmark).encode() not in path.read_bytes()


def test_rows_are_written_in_groups_and_tables_of_bounded_size(
    hf_root: Path, tiny_benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = source(tiny_benchmark, "train")
    monkeypatch.setattr(to_hf_dataset, "GROUP_BYTES", 200_000)
    monkeypatch.setattr(to_hf_dataset, "TABLE_BYTES", 500_000)
    (tmp_path / "data").mkdir()
    write_split(samples, tmp_path / "data", "train")
    paths = sorted((tmp_path / "data").iterdir())
    assert len(paths) > 1
    assert [path.name for path in paths] == [f"train-{i:05d}-of-{len(paths):05d}.parquet" for i in range(len(paths))]
    tables = [pq.read_metadata(path) for path in paths]
    sizes = [table.row_group(i).total_byte_size for table in tables for i in range(table.num_row_groups)]
    assert len(sizes) > len(paths) and max(sizes) < 220_000  # texts and the format's own words come on top
    found = load_hf_dataset(tmp_path, "train", media_cache=tmp_path / "media")
    assert [texts(sample) for sample in found] == [texts(sample) for sample in samples]


def test_a_clip_that_cannot_be_read_ends_it_and_leaves_no_dataset(tiny_benchmark: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny_benchmark, tmp_path / "broken")
    frame = next(root.glob("media/val*/frames/1.jpg"))
    frame.write_bytes(b"no picture")
    with pytest.raises(SystemExit, match=f"to_hf_dataset: clip '.*metadata.csv:.*cannot read the image {frame}"):
        run(root, tmp_path / "out", "--split", "val")
    assert not (tmp_path / "out").exists()
    shutil.copy(frame.with_name("0.jpg"), frame)
    run(root, tmp_path / "out", "--split", "val")  # over what the broken run has left
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "out"]


def test_a_folder_that_is_there_and_a_split_that_is_not_are_refused(hf_root: Path, tiny_benchmark: Path) -> None:
    with pytest.raises(SystemExit, match="is there already: name another folder"):
        run(tiny_benchmark, hf_root, "--split", "val")
    with pytest.raises(SystemExit, match="no split 'test'"):
        run(tiny_benchmark, hf_root.with_name("other"), "--split", "test")


def test_a_dataset_that_does_not_fit_on_the_disk_is_refused_before_it_is_written(
    tiny_benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    monkeypatch.setattr(to_hf_dataset, "write_split", lambda *_: pytest.fail("nothing may be written"))
    with pytest.raises(SystemExit, match="4 rows take .* GB, but .* has 1e-06 GB free"):
        run(tiny_benchmark, tmp_path / "out", "--split", "val")


# And back


@pytest.mark.parametrize("split", SPLITS)
def test_samples_come_back_with_equal_texts_frames_sound_and_masks(
    hf_root: Path, tiny_benchmark: Path, tmp_path: Path, split: str
) -> None:
    args = DataArguments(str(hf_root), benchmark="hf_dataset", media_cache=str(tmp_path))
    found, expected = load_split(args, split), source(tiny_benchmark, split)
    assert [texts(sample) for sample in found] == [texts(sample) for sample in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert_equal_clips(ours, theirs)


def test_every_text_of_a_sample_has_a_column() -> None:
    of_a_run = {"dataset"}  # the name of a row's set among several
    assert {field.name for field in dataclasses.fields(AVSample)} - set(PATHS) - of_a_run == set(TEXT_COLUMNS)


def test_a_clip_without_sound_comes_back_without_sound(tiny_benchmark: Path, tmp_path: Path) -> None:
    sample = dataclasses.replace(source(tiny_benchmark, "val")[0], audio_path=None)
    (tmp_path / "data").mkdir()
    write_split([sample], tmp_path / "data", "val")
    [found] = load_hf_dataset(tmp_path, "val", media_cache=tmp_path / "media")
    assert found.audio_path is None and load_clip(found).waveform is None


def test_rows_without_masks_or_frames_and_frames_without_annotation_come_back(
    tiny_benchmark: Path, tmp_path: Path
) -> None:
    named, other, third = [sample for sample in source(tiny_benchmark, "train") if not sample.is_null][:3]
    question = {"mask_paths": (), "choices": ("a drum", "a bell"), "answer": "a bell"}
    samples = [
        dataclasses.replace(named, mask_paths=("", named.mask_paths[1], "", "")),
        dataclasses.replace(other, **question),
        dataclasses.replace(third, **question, frame_paths=()),
    ]
    (tmp_path / "data").mkdir()
    write_split(samples, tmp_path / "data", "train")
    found = load_hf_dataset(tmp_path, "train", media_cache=tmp_path / "media")
    assert [texts(sample) for sample in found] == [texts(sample) for sample in samples]
    assert [sample.annotated_frames for sample in found] == [(1,), None, None]
    assert [load_clip(sample).gt_masks is None for sample in found] == [False, True, True]
    for ours, theirs in zip(found, samples, strict=True):
        assert_equal_clips(ours, theirs)
    again = load_hf_dataset(tmp_path, "train", media_cache=tmp_path / "media")  # from the list of unpacked files
    assert again == found


def test_categories_are_read_without_the_media(hf_root: Path, tiny_benchmark: Path) -> None:
    expected = {sample.category for sample in source(tiny_benchmark, "train") if not sample.is_null}
    assert find_train_categories(DataArguments(str(hf_root), benchmark="hf_dataset")) == expected
    assert find_train_categories(DataArguments(str(hf_root), benchmark="hf_dataset", train_split="dev")) == set()


def test_references_of_a_clip_share_its_unpacked_files(hf_root: Path, tmp_path: Path) -> None:
    by_clip: dict[str, set[tuple[str, ...]]] = {}
    samples = load_hf_dataset(hf_root, "train", media_cache=tmp_path)
    for sample in samples:
        by_clip.setdefault(sample.media_id, set()).add(sample.frame_paths)
    assert len(by_clip) < len(samples) and all(len(paths) == 1 for paths in by_clip.values())


def test_media_are_unpacked_once_and_again_where_they_were_lost(
    hf_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_hf_dataset(hf_root, "val", media_cache=tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("aurora_rl.data.hf_dataset._read_rows", lambda path: pytest.fail("it is unpacked"))
        assert load_hf_dataset(hf_root, "val", media_cache=tmp_path) == first
    content = Path(first[0].frame_paths[0]).read_bytes()
    Path(first[0].frame_paths[0]).unlink()
    assert load_hf_dataset(hf_root, "val", media_cache=tmp_path) == first
    assert Path(first[0].frame_paths[0]).read_bytes() == content


def test_a_table_that_datasets_has_written_again_is_read(hf_root: Path, tiny_benchmark: Path, tmp_path: Path) -> None:
    """By `Dataset.to_parquet`, after a filter for example."""
    dataset = load_dataset(str(hf_root), split="val", cache_dir=str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    dataset.select([1]).to_parquet(tmp_path / "data" / "val-00000-of-00001.parquet")
    [found] = load_hf_dataset(tmp_path, "val", media_cache=tmp_path / "media")
    expected = source(tiny_benchmark, "val")[1]
    assert texts(found) == texts(expected)
    assert_equal_clips(found, expected)


# What is refused


def rewrite(change: Callable[[list[dict[str, Any]]], Any], hf_root: Path, folder: Path) -> None:
    """The val split with its rows changed."""
    rows = pq.read_table(hf_root / "data" / "val-00000-of-00001.parquet").to_pylist()
    change(rows)
    (folder / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / "val-00000-of-00001.parquet")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda rows: rows[1].update(uid=None), r"clip None \(row \d+, val-.*parquet:1\) has no value for \['uid'\]"),
        (lambda rows: rows[0].update(fps=0.0), "has fps 0.0: expected a positive number"),
        (lambda rows: [row.update(fps="fast") for row in rows], "cannot read .*val-00000-of-00001.parquet"),
        (lambda rows: [row.pop("masks") for row in rows], r"lacks the column\(s\) \['masks'\]"),
    ],
)
def test_malformed_tables_are_an_error_that_names_the_row(
    hf_root: Path, tmp_path: Path, change: Callable[[list[dict[str, Any]]], Any], expected: str
) -> None:
    rewrite(change, hf_root, tmp_path)
    with pytest.raises(DatasetError, match=expected):
        load_hf_dataset(tmp_path, "val", media_cache=tmp_path / "media")


def test_tables_of_earlier_versions_have_no_questions(hf_root: Path, tiny_benchmark: Path, tmp_path: Path) -> None:
    rewrite(lambda rows: [row.pop(name) for row in rows for name in ("choices", "answer")], hf_root, tmp_path)
    found = load_hf_dataset(tmp_path, "val", media_cache=tmp_path / "media")
    assert [texts(sample) for sample in found] == [texts(sample) for sample in source(tiny_benchmark, "val")]
    assert read_categories(tmp_path, "val") == {sample.category for sample in found}


def test_missing_and_damaged_tables_are_errors(hf_root: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="root must be a folder that `aurora-rl convert --to hf` has written"):
        load_hf_dataset(tmp_path, "val", media_cache=tmp_path)
    with pytest.raises(DatasetError, match=r"no split 'test': expected one of \['test_n', .*'val'\]"):
        load_hf_dataset(hf_root, "test", media_cache=tmp_path)
    root = shutil.copytree(hf_root, tmp_path / "broken")
    table = root / "data" / "val-00000-of-00001.parquet"
    table.write_bytes(table.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=f"cannot read {table}.*get the file again"):
        load_hf_dataset(root, "val", media_cache=tmp_path)
    table.rename(table.with_name("val-00000-of-00002.parquet"))
    with pytest.raises(DatasetError, match=r"not complete \(\['val-00001-of-00002.parquet'\]\): get them again"):
        load_hf_dataset(root, "val", media_cache=tmp_path)


def test_a_row_group_beyond_the_limit_is_refused_unread(
    hf_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aurora_rl.data.hf_dataset.MAX_GROUP_BYTES", 1000)
    with pytest.raises(DatasetError, match=r"has a row group of \d+ bytes: the limit is 1000"):
        load_hf_dataset(hf_root, "val", media_cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_arguments_must_name_the_cache_and_no_chains(hf_root: Path, tmp_path: Path) -> None:
    args = DataArguments(str(hf_root), benchmark="hf_dataset")
    with pytest.raises(ValueError, match="set `media_cache`"):
        load_split(args, "val")
    args = dataclasses.replace(args, media_cache=str(tmp_path), chains="chains.jsonl")
    with pytest.raises(ValueError, match="hold their chains of thought: drop `chains`"):
        load_split(args, "val")


def test_the_unpacked_list_is_keyed_by_what_the_table_is(hf_root: Path, tmp_path: Path) -> None:
    root = shutil.copytree(hf_root, tmp_path / "copy")
    before = load_hf_dataset(root, "val", media_cache=tmp_path / "media")
    shutil.rmtree(root / "data")
    rewrite(lambda rows: rows.reverse(), hf_root, root)
    after = load_hf_dataset(root, "val", media_cache=tmp_path / "media")
    assert [sample.uid for sample in after] == [sample.uid for sample in before][::-1]
