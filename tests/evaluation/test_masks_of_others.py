"""Masks that other systems saved, in every form, on every benchmark, named by row, id and clip."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.cli import main
from aurora_rl.data.media import read_masks
from aurora_rl.data.run_lengths import encode_masks
from aurora_rl.data.sample import AVSample
from aurora_rl.evaluation.of_saved_masks import rescore, saved_predictions
from aurora_rl.evaluation.predictions import PredictionError
from aurora_rl.evaluation.records import read_results
from aurora_rl.evaluation.truth import load_truth
from aurora_rl.scripts.to_hf_dataset import write_split
from tests.data.test_avsbench import DOG, write_audio, write_avss_clip, write_frames, write_masks, write_s4
from tests.data.test_omni_avs import NUM_FRAMES, expression, write_expressions, write_videos
from tests.saved_predictions import true_masks, write_truth

Masks = dict[int, np.ndarray]


# ---- benchmarks ---------------------------------------------------------------------------------------------------


def ref_avs(root: Path) -> tuple[DataArguments, str]:
    write_truth(root)
    return DataArguments(str(root)), "test_s"


def avsbench_s4(root: Path) -> tuple[DataArguments, str]:
    write_s4(root, root)
    return DataArguments(str(root), benchmark="avsbench_s4"), "val"


def avsbench_ms3(root: Path) -> tuple[DataArguments, str]:
    (root / "ms3_meta_data.csv").write_text("video_id,split\nabc,val\ndef,test\n")
    for name, split in (("abc", "val"), ("def", "test")):
        write_frames(root / "visual_frames" / name, [f"{name}.mp4_{i}.png" for i in range(1, 6)])
        write_masks(
            root / "gt_masks" / split / name, [f"{name}_{i}.png" for i in range(1, 6)], mode="P", value=3, width=9
        )
        write_audio(root / "audio_wav" / split / f"{name}.wav")
    return DataArguments(str(root), benchmark="avsbench_ms3"), "test"


def avsbench_avss(root: Path) -> tuple[DataArguments, str]:
    (root / "metadata.csv").write_text("vid,uid,s_min,s_sec,a_obj,split,label\nabc,abc_0,0,0,cat,test,v2\n")
    write_avss_clip(root, "v2", "abc_0", num_frames=10, num_masks=10)
    return DataArguments(str(root), benchmark="avsbench_avss"), "test"


def omni_avs(root: Path) -> tuple[DataArguments, str]:
    (root / "images" / "abc").mkdir(parents=True)
    for index in range(NUM_FRAMES):
        Image.new("RGB", (6, 4)).save(root / "images" / "abc" / f"{index:05d}.jpg")
    (root / "audios").mkdir()
    (root / "audios" / "abc.mp3").write_bytes(b"")
    write_videos(root)
    write_expressions(root, [expression(0, [1]), expression(1, ["2"]), expression(2, [])], "test")
    return DataArguments(str(root), benchmark="omni_avs", mask_cache=str(root / "cache")), "test"


def hf_dataset(root: Path) -> tuple[DataArguments, str]:
    data, split = avsbench_s4(root)
    (root / "hf" / "data").mkdir(parents=True)
    write_split(list(load_truth(data, [split]).samples), root / "hf" / "data", split)
    return DataArguments(str(root / "hf"), benchmark="hf_dataset", media_cache=str(root / "cache")), split


def clips(root: Path) -> tuple[DataArguments, str]:
    """A manifest of own clips with ids of any alphabet, a row to nothing, and a frame without annotation."""
    for name in ("a", "b"):
        write_frames(root / name, [f"{i}.png" for i in range(3)])
    write_masks(root / "masks", ["0.png", "2.png"], mode="1", value=1, width=11)
    partly = ["masks/0.png", None, "masks/2.png"]
    rows = [
        {"id": "küche 1", "frames": "a", "reference": "the kettle", "masks": partly, "split": "test"},
        {"id": "17", "frames": "a", "reference": "the cat", "masks": "empty", "split": "test"},
        {"id": "b.2", "frames": "b", "reference": "the kettle", "masks": partly, "split": "test"},
    ]
    (root / "clips.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return DataArguments(str(root), benchmark="clips", mask_cache=str(root / "cache")), "test"


BENCHMARKS = (ref_avs, avsbench_s4, avsbench_ms3, avsbench_avss, omni_avs, hf_dataset, clips)


# ---- forms --------------------------------------------------------------------------------------------------------


def rle(mask: np.ndarray) -> dict[str, Any]:
    return dict(encode_masks(mask[None])[0])


def by_row(sample: AVSample) -> str:
    return str(sample.row)


def by_id(sample: AVSample) -> str:
    return sample.uid


def write_npz(folder: Path, name: str, masks: np.ndarray, sample: AVSample) -> None:
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / f"{name}.npz", masks=masks)


def write_palette(folder: Path, name: str, masks: np.ndarray, sample: AVSample) -> None:
    """As DAVIS has it, one folder a row: indices of a palette that are no brightness."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    for index, mask in enumerate(masks):
        save_palette(mask.astype(np.uint8) * 2, folder / name / f"{index:05d}.png")


def save_palette(ids: np.ndarray, path: Path) -> None:
    image = Image.fromarray(ids.astype(np.uint8))
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759)
    assert image.mode == "P"
    image.save(path)


def write_bits(folder: Path, name: str, masks: np.ndarray, sample: AVSample) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    for index, mask in enumerate(masks, start=1):  # counted from 1, as AVSBench's own files
        Image.fromarray(mask).save(folder / name / f"{index}.png")


def coco(masks: np.ndarray, *, reference: str = "the target", fps: float | None = None) -> dict[str, Any]:
    """The form of `aurora-rl segment`: a frame without the object has no annotation."""
    height, width = masks.shape[1:]
    images = [{"id": i, "file_name": f"{i:06d}.png", "height": height, "width": width} for i in range(len(masks))]
    if fps is not None:
        images = [{**image, "time": image["id"] / fps} for image in images]
    found = [
        {"id": i + 1, "image_id": i, "category_id": 0, "segmentation": rle(mask)}
        for i, mask in enumerate(masks)
        if mask.any()
    ]
    return {"info": {}, "images": images, "annotations": found, "categories": [{"id": 0, "name": reference}]}


def write_coco(folder: Path, name: str, masks: np.ndarray, sample: AVSample) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(coco(masks, fps=sample.fps)))


def write_answer(folder: Path, name: str, masks: np.ndarray, sample: AVSample) -> None:
    """The folder of `aurora-rl segment`, with its other files."""
    (folder / name / "masks" / "0").mkdir(parents=True)
    (folder / name / "masks.json").write_text(json.dumps(coco(masks, reference=sample.reference)))
    (folder / name / "answer.json").write_text("{}")


FORMS: dict[str, Callable[[Path, str, np.ndarray, AVSample], None]] = {
    "npz": write_npz,
    "palette": write_palette,
    "bits": write_bits,
    "coco": write_coco,
    "answer": write_answer,
}


def results_list(samples: list[AVSample], masks: Masks) -> list[dict[str, Any]]:
    """A list of results, each named in another of the ways that are read."""
    records: list[dict[str, Any]] = []
    for number, sample in enumerate(samples):
        for frame, mask in enumerate(masks[sample.row]):
            named = ({"uid": sample.uid, "frame": frame}, {"row": sample.row, "frame_index": frame})[number % 2]
            records.append({**named, "segmentation": rle(mask) if mask.any() else None, "score": 0.5})
    return records


def whole_lists(samples: list[AVSample], masks: Masks) -> list[dict[str, Any]]:
    return [{"id": sample.uid, "segmentations": [rle(mask) for mask in masks[sample.row]]} for sample in samples]


def whole_coco(samples: list[AVSample], masks: Masks) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for sample in samples:
        for frame, mask in enumerate(masks[sample.row]):
            images.append({"id": len(images) + 1, "file_name": f"{sample.uid}/{frame:05d}.jpg"})
            annotations.append({"image_id": len(images), "category_id": 1, "segmentation": rle(mask)})
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}


WHOLE_FILES = {"results": results_list, "lists": whole_lists, "coco": whole_coco}


def score(data: DataArguments, split: str, path: Path, out: Path, **options: Any) -> dict[str, Any]:
    return rescore(data, saved_predictions(path), out, splits=[split], preset="davis", **options)


def truth_of(data: DataArguments, split: str) -> tuple[list[AVSample], Masks]:
    """The rows with their true masks; a null row's are empty."""
    samples = list(load_truth(data, [split]).samples)
    return samples, {sample.row: masks_of(sample) for sample in samples}


def masks_of(sample: AVSample) -> np.ndarray:
    """(F, H, W) bool; a frame without annotation has a mask that must not count."""
    known = [path for path in sample.mask_paths if path]
    if not known:
        return np.zeros((sample.num_frames, 4, 6), bool)
    true = iter(read_masks(known))
    shape = read_masks(known).shape[1:]
    return np.stack([next(true) if path else np.ones(shape, bool) for path in sample.mask_paths])


# ---- every form, every benchmark, every name ----------------------------------------------------------------------


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_right_masks_are_right_in_every_form_by_row_and_by_id(tmp_path, benchmark):
    (tmp_path / "data").mkdir(exist_ok=True)
    data, split = benchmark(tmp_path / "data" if benchmark is not ref_avs else tmp_path / "own")
    samples, masks = truth_of(data, split)
    for form, write in FORMS.items():
        for name_of in (by_row, by_id):
            folder = tmp_path / f"{form}-{name_of.__name__}"
            for sample in samples:
                write(folder, name_of(sample), masks[sample.row], sample)
            assert_right(score(data, split, folder, tmp_path / "out"), tmp_path / "out", samples)
    for form, make in WHOLE_FILES.items():
        path = tmp_path / f"{form}.json"
        path.write_text(json.dumps(make(samples, masks)))
        assert_right(score(data, split, path, tmp_path / "out"), tmp_path / "out", samples)


def assert_right(tables: dict[str, Any], out: Path, samples: list[AVSample]) -> None:
    """Every row is there, none is missing, and the masks are the truth."""
    assert tables["overall"]["missing"] == 0
    results = {result.row: result for result in read_results(out)}
    assert results.keys() == {sample.row for sample in samples}
    for sample in samples:
        assert (results[sample.row].uid, results[sample.row].J) == (sample.uid, 1.0)


def test_command_takes_the_options_of_the_data_and_compare_reads_what_it_writes(tmp_path, capsys):
    data, split = avsbench_ms3(tmp_path)
    samples, masks = truth_of(data, split)
    for name, frames in (("right", masks[samples[0].row]), ("wrong", ~masks[samples[0].row])):
        write_coco(tmp_path / name, samples[0].uid, frames, samples[0])
        command = ["evaluate", "--predictions", str(tmp_path / name), "--data_root", str(tmp_path), "--split", split]
        command += [
            "--benchmark",
            "avsbench_ms3",
            "--preset",
            "davis",
            "--output_dir",
            str(tmp_path / f"{name}_out"),
        ]
        assert main(command) == 0, capsys.readouterr().err
        assert "one threshold only" in json.loads((tmp_path / f"{name}_out" / "scores.json").read_text())["note"]
    found = tmp_path / "comparison.json"
    assert main(["compare", str(tmp_path / "right_out"), str(tmp_path / "wrong_out"), "--output", str(found)]) == 0
    [j, *_] = json.loads(found.read_text())["splits"][split]
    assert (j["name"], j["first"], j["second"], j["losses"]) == ("J", 1.0, 0.0, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--benchmark avsbench_ms4", "--benchmark is 'avsbench_ms4': choose from"),
        ("--benchmark omni_avs", "holds no file such as meta_expressions_test.jsonl"),
        ("--num_frames 0", "--num_frames is 0: it must be above 0"),
        ("--benchmarks x", "did you mean '--benchmark'"),
        ("--max_completion_length 3", "--max_completion_length is an option for a model"),
        ("--keyed_by name", "invalid choice: 'name'"),
    ],
)
def test_wrong_option_of_the_data_is_told(tmp_path, options, words, capsys):
    write_truth(tmp_path / "data")
    (tmp_path / "masks").mkdir()
    command = ["evaluate", "--predictions", str(tmp_path / "masks"), "--data_root", str(tmp_path / "data")]
    try:
        code = main([*command, "--split", "test", "--output_dir", str(tmp_path / "out"), *options.split()])
    except SystemExit as error:
        code = error.code
    assert (code, words in (message := capsys.readouterr().err)) == (2, True), message


# ---- names --------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> DataArguments:
    return ref_avs(tmp_path / "data")[0]


def test_one_palette_a_clip_holds_the_objects_in_the_tables_order(tmp_path, data, caplog):
    """Clip s0 has rows 1 (fid 0) and 2 (fid 1); the duplicates 5 and 6 of u0 share their object."""
    write_palettes(tmp_path / "masks", {"s0": (1, 2), "s1": (3,), "u0": (4, 5)})
    rescore(data, saved_predictions(tmp_path / "masks"), tmp_path / "out", splits=["test_s"], preset="davis")
    assert {result.row: result.J for result in read_results(tmp_path / "out")} == {
        1: pytest.approx(1 / 8),  # but for its first line, row 2's object covers it
        2: 1.0,
        3: 1.0,
    }
    assert "object 1 is the first that the table asks about" in caplog.text


def write_palettes(folder: Path, clips: dict[str, tuple[int, ...]]) -> None:
    """The rows' masks as objects 1, 2 ...; a later object covers an earlier one."""
    for clip, rows in clips.items():
        (folder / clip).mkdir(parents=True)
        ids = np.zeros_like(true_masks(0), dtype=np.uint8)
        for number, row in enumerate(rows, start=1):
            ids[true_masks(row)] = number
        for index, frame in enumerate(ids):
            save_palette(frame, folder / clip / f"{index:05d}.png")


def test_objects_json_says_which_object_is_which_row(tmp_path, data):
    write_palettes(tmp_path / "masks", {"s0": (2, 1)})  # row 1 is object 2, which is in front
    (tmp_path / "masks" / "objects.json").write_text(json.dumps({"s0": {"1": "s0_cat_2", "2": [1]}}))
    rescore(data, saved_predictions(tmp_path / "masks"), tmp_path / "out", splits=["test_s"], preset="davis")
    found = {result.row: (result.J, result.is_missing) for result in read_results(tmp_path / "out")}
    assert found[1] == (1.0, False) and found[3][1]
    (tmp_path / "masks" / "objects.json").write_text(json.dumps({"s0": {"1": "s0_dog_2"}}))
    with pytest.raises(
        PredictionError, match=r"'s0_dog_2' as object 1 of 's0', which has no such row: its rows are s0"
    ):
        rescore(data, saved_predictions(tmp_path / "masks"), tmp_path / "out", splits=["test_s"])
    (tmp_path / "masks" / "objects.json").write_text(json.dumps({"s0": {"0": 1}}))
    with pytest.raises(PredictionError, match=r"'s0' has the object id '0', expected 1 to 255"):
        saved_predictions(tmp_path / "masks")


def test_segments_file_of_a_clip_serves_the_rows_whose_references_it_names(tmp_path, data, caplog):
    content = coco(true_masks(1), reference="The drum.")
    other = coco(true_masks(2))["annotations"]
    content["annotations"] += [{**each, "category_id": 1} for each in other]
    content["categories"].append({"id": 1, "name": "the  CAT."})
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "s0.json").write_text(json.dumps(content))
    (tmp_path / "masks" / "u0.json").write_text(json.dumps(coco(true_masks(5), reference="The tabla.")))
    splits = ["test_s", "test_u"]
    rescore(data, saved_predictions(tmp_path / "masks"), tmp_path / "out", splits=splits, preset="davis")
    found = {result.row: (result.J, result.is_missing) for result in read_results(tmp_path / "out")}
    assert (found[1], found[2], found[5], found[6]) == ((1.0, False),) * 4
    assert found[3][1] and found[4][1] and "scored as empty masks: row 3, row 4" in caplog.text


def test_id_of_two_rows_that_ask_the_same_is_both_rows_prediction(tmp_path, data):
    write_npz(tmp_path / "masks", "u0_tabla_2", true_masks(5), load_truth(data, ["test_u"]).samples[0])
    rescore(data, saved_predictions(tmp_path / "masks"), tmp_path / "out", splits=["test_u"], preset="davis")
    assert [result.J for result in read_results(tmp_path / "out") if result.row in (5, 6)] == [1.0, 1.0]


def test_plain_masks_of_a_clip_with_several_questions_are_refused(tmp_path, data):
    write_npz(tmp_path / "masks", "s0", true_masks(1), load_truth(data, ["test_s"]).samples[0])
    with pytest.raises(PredictionError, match=r"s0\.npz is named 's0', which are rows 1 \('The drum.'\) and 2"):
        rescore(data, saved_predictions(tmp_path / "masks"), tmp_path / "out", splits=["test_s"])


def test_row_named_by_number_and_by_id_is_given_twice(tmp_path, data):
    sample = load_truth(data, ["test_s"]).samples[0]
    write_npz(tmp_path / "masks", "1", true_masks(1), sample)
    write_coco(tmp_path / "masks", sample.uid, true_masks(1), sample)
    with pytest.raises(PredictionError, match=r"row 1 has two predictions, .*1\.npz and .*s0_drum_1\.json: keep one"):
        rescore(data, saved_predictions(tmp_path / "masks"), tmp_path / "out", splits=["test_s"])


def test_names_that_mean_no_row_are_told_and_a_folder_of_them_is_refused(tmp_path, data, caplog):
    sample = load_truth(data, ["test_s"]).samples[0]
    write_npz(tmp_path / "masks", "s0_drumm_1", true_masks(1), sample)
    with pytest.raises(PredictionError, match=r"1 prediction\(s\), but none is of a row .*'s0_drumm_1'.* 't0_drum_1'"):
        rescore(data, saved_predictions(tmp_path / "masks"), tmp_path / "out", splits=["test_s"])
    write_npz(tmp_path / "masks", "s0_drum_1", true_masks(1), sample)
    tables = rescore(data, saved_predictions(tmp_path / "masks"), tmp_path / "out", splits=["test_s"])
    assert tables["overall"]["missing"] == 2
    assert "no row or clip of metadata.csv has these names: s0_drumm_1" in caplog.text


def numbered_ids(root: Path) -> DataArguments:
    """Two clips of MS3 whose ids are numbers of each other's rows."""
    data, _ = avsbench_ms3(root)
    table = root / "ms3_meta_data.csv"
    table.write_text("video_id,split\n1,test\n0,test\n")
    for name, width in (("0", 7), ("1", 20)):
        write_frames(root / "visual_frames" / name, [f"{name}.mp4_{i}.png" for i in range(1, 6)])
        masks = root / "gt_masks" / "test" / name
        write_masks(masks, [f"{name}_{i}.png" for i in range(1, 6)], mode="1", value=1, width=width)
        write_audio(root / "audio_wav" / "test" / f"{name}.wav")
    return data


@pytest.mark.parametrize(("keyed_by", "right"), [("id", True), ("row", False)])
def test_number_that_is_a_row_and_another_rows_id_needs_to_be_told_which(tmp_path, keyed_by, right):
    data = numbered_ids(tmp_path)
    samples, masks = truth_of(data, "test")
    for sample in samples:
        write_npz(tmp_path / "masks", sample.uid, masks[sample.row], sample)
    with pytest.raises(PredictionError, match=r"'0' is the number of row 0 \(1\), and the id or clip of row 1"):
        score(data, "test", tmp_path / "masks", tmp_path / "out")
    score(data, "test", tmp_path / "masks", tmp_path / "out", keyed_by=keyed_by)
    assert all((result.J == 1.0) == right for result in read_results(tmp_path / "out"))


# ---- what is refused ----------------------------------------------------------------------------------------------


def dog(tmp_path: Path) -> tuple[DataArguments, AVSample, np.ndarray]:
    """S4's clip of val, of five frames, with its masks."""
    (tmp_path / "s4").mkdir()
    data, split = avsbench_s4(tmp_path / "s4")
    [sample], masks = truth_of(data, split)
    return data, sample, masks[sample.row]


Change = Callable[[dict[str, Any]], object]
BAD_FILES: dict[str, tuple[Change, str]] = {
    "a frame too few": (lambda c: c["images"].pop(2) and c["annotations"].pop(2), "has 4 images, the clip 5 frames"),
    "unnumbered": (lambda c: c["images"][0].update(file_name="a.png", id="x") or c["annotations"].pop(0), "one by one"),
    "twice an id": (lambda c: c["images"][1].update(id=0), r"images\[1\] has the id 0 of another image"),
    "no such image": (lambda c: c["annotations"][0].update(image_id=9), r"annotations\[0\] has the image_id 9"),
    "no such category": (lambda c: c["annotations"][0].update(category_id=9), "has the category_id 9"),
    "another size": (lambda c: c["images"][0].update(height=7), r"have the sizes \[\(7, 64\), \(32, 64\)\]"),
    "a polygon": (lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]), "has a polygon"),
    "no run lengths": (lambda c: c["annotations"][0].pop("segmentation"), "has no segmentation"),
    "short run lengths": (
        lambda c: c["annotations"][0].update(segmentation={"size": [32, 64], "counts": [5]}),
        "do not add up to 32 x 64",
    ),
    "gigabytes": (
        lambda c: (
            c["annotations"][0].update(segmentation={"size": [10**6, 10**6], "counts": "0"}),
            [image.update(height=10**6, width=10**6) for image in c["images"]],
            c.update(annotations=c["annotations"][:1]),
        ),
        "at most 128000000",
    ),
    "NaN": (lambda c: c["images"][0].update(time=float("nan")), r"images\[0\] has the time nan"),
    "late": (lambda c: [image.update(time=image["id"] / 10) for image in c["images"]], "no image within 0.50 s of fr"),
    "other references": (
        lambda c: c.update(categories=[{"id": 0, "name": "a cat"}, {"id": 1, "name": "a cow"}]),
        "has the categories 'a cat', 'a cow': name one as the reference, 'the sounding objects'",
    ),
    "no images": (lambda c: c.pop("images"), "is no COCO file"),
    "an image that is a number": (lambda c: c["images"].append(7), r"images\[5\] is '7'"),
    "categories as a text": (lambda c: c.update(categories="x"), "categories that are a str"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_coco_file_is_one_bad_row_that_names_it(tmp_path, kind):
    data, sample, masks = dog(tmp_path)
    content = coco(masks)
    change, words = BAD_FILES[kind]
    change(content)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / f"{DOG}.json").write_text(json.dumps(content))
    with pytest.raises(
        PredictionError, match=rf"^1 row\(s\) cannot be scored: row 1 \({DOG}\): .*{DOG}\.json.*{words}"
    ):
        score(data, "val", tmp_path / "masks", tmp_path / "out")


BAD_RESULTS: dict[str, tuple[list[Any], str]] = {
    "a frame twice": ([{"frame": 0}, {"frame": 0}], r"\[1\] gives frame 0 of .* a second time"),
    "a frame beyond": ([{"frame": 5}], "has a mask of frame 5, but the clip has 5 frames"),
    "a negative frame": ([{"frame": -1}], "names no frame"),
    "no frame": ([{}], "names no frame"),
    "too few": ([{"segmentations": [None] * 4}], "has 4 images, the clip 5 frames"),
    "too many": ([{"segmentations": [None] * 6}], "has 6 images, the clip 5 frames"),
    "a text": (["x"], "expected a result"),
    "no name": ([{"uid": None, "frame": 0}], "names no row"),
}


@pytest.mark.parametrize("kind", BAD_RESULTS)
def test_bad_result_is_named_and_the_others_are_scored(tmp_path, kind):
    data, sample, masks = dog(tmp_path)
    records, words = BAD_RESULTS[kind]
    usual = {"uid": DOG, "segmentation": rle(masks[0])}
    records = [{**usual, **record} if isinstance(record, dict) else record for record in records]
    (tmp_path / "results.json").write_text(json.dumps([{"row": 1, "frame": 1, "segmentation": None}, *records]))
    if kind != "a text" and kind != "no name":
        (tmp_path / "results.json").write_text(json.dumps(records))
    with pytest.raises(PredictionError, match=words):
        score(data, "val", tmp_path / "results.json", tmp_path / "out")
    assert not (tmp_path / "out" / "scores.json").exists()


@pytest.mark.parametrize("content", ["", "[" * 5000, "7", '{"a": 1}', "[1,"])
def test_file_that_is_no_coco_is_refused(tmp_path, content):
    (tmp_path / "masks.json").write_text(content)
    with pytest.raises(PredictionError, match=r"masks\.json"):
        saved_predictions(tmp_path / "masks.json")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((5, 32, 64), 2), "expected True and False, 0 and 1, or 0 and 255"),
        (np.full((5, 32, 64), 0.5), "masks is float64, expected bool"),
        (np.zeros((4, 32, 64), bool), "the prediction has 4 frames, the clip 5"),
        (np.array([[[None]]]), "masks is object"),
    ],
)
def test_npz_of_other_masks_is_refused(tmp_path, values, words):
    data, sample, _ = dog(tmp_path)
    write_npz(tmp_path / "masks", DOG, values, sample)
    with pytest.raises(PredictionError, match=words):
        score(data, "val", tmp_path / "masks", tmp_path / "out")


def test_davis_folder_scores_its_own_annotations_right_once_it_is_a_manifest(tmp_path):
    """Object ids need not be 1, 2 ...; a row's id tells its object, and a clip goes by the name of its folder."""
    for video, numbers in (("bear", (1, 3)), ("cat", (2,))):
        write_frames(tmp_path / "DAVIS" / "JPEGImages" / "480p" / video, [f"{i:05d}.jpg" for i in range(3)])
        (tmp_path / "DAVIS" / "Annotations" / "480p" / video).mkdir(parents=True)
        for index in range(3):
            ids = np.zeros((32, 64), dtype=np.uint8)
            for number in numbers:
                ids[number * 8 : number * 8 + 6, index : index + 20] = number
            save_palette(ids, tmp_path / "DAVIS" / "Annotations" / "480p" / video / f"{index:05d}.png")
    command = ["convert", "--from", "davis", "--data_root", str(tmp_path / "DAVIS"), "--to", "manifest"]
    assert main([*command, "--output_dir", str(tmp_path / "clips"), "--mask_cache", str(tmp_path / "cache")]) == 0
    data = DataArguments(
        str(tmp_path / "clips"), benchmark="clips", num_frames=None, mask_cache=str(tmp_path / "cache")
    )
    predictions = tmp_path / "DAVIS" / "Annotations" / "480p"
    assert score(data, "train", predictions, tmp_path / "out")["overall"]["missing"] == 0
    assert {result.uid: result.J for result in read_results(tmp_path / "out")} == {"bear_1": 1, "bear_3": 1, "cat_2": 1}
