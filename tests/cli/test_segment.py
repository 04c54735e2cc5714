"""One command from a clip to a folder: what is in it, and what happens to clips and arguments that make no sense."""

import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
import yaml
from PIL import Image

from aurora_rl.cli import main
from aurora_rl.data.footage import open_footage
from aurora_rl.data.media import load_clip
from aurora_rl.data.run_lengths import decode_masks
from aurora_rl.models.heads.segmenters import build_segmenter


@pytest.fixture
def model(loaded, encode, tmp_path) -> str:
    """Folder of a random model that knows how clips are put to it, its masks neither empty nor full."""
    folder = tmp_path / "model"
    with torch.no_grad():
        loaded.model.seg_head.projector[2].bias[-1] += 2.0  # an untrained mask is all background
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def clip(film, train_samples) -> Path:
    """Two seconds, eight frames of 64 x 64, with sound."""
    media = load_clip(train_samples[0])
    return film([frame for frame in media.frames for _ in range(2)], waveform=media.waveform)


def segment(*arguments: object) -> int:
    return main(["segment", *map(str, arguments), "--device", "cpu", "--max_completion_length", "2"])


def png_masks(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])


def coco_masks(folder: Path, reference: int) -> np.ndarray:
    content = json.loads((folder / "masks.json").read_text())
    frames = {image["id"]: image for image in content["images"]}
    found = [each for each in content["annotations"] if each["category_id"] == reference]
    assert [each["image_id"] for each in found] == list(frames)
    assert all(each["segmentation"]["size"] == [frames[0]["height"], frames[0]["width"]] for each in found)
    masks = decode_masks([each["segmentation"] for each in found])
    assert [each["area"] for each in found] == masks.sum((1, 2)).tolist()
    return masks


def test_masks_chains_and_an_overlay_with_sound_are_written(model, clip, tmp_path, capsys):
    out = tmp_path / "out"
    assert segment(clip, "The drum.", "The dog.", "--model", model, "-o", out) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "answer.json",
        "chain.txt",
        "masks",
        "masks.json",
        "overlay.mp4",
    ]
    answer = json.loads((out / "answer.json").read_text())
    assert answer["frame_times"] == [0.0, 0.5, 1.0, 1.5]
    assert answer["size"] == answer["frame_size"] == [64, 64]
    assert answer["has_sound"] and answer["notes"] == []
    assert list(answer["seconds"]) == ["read", "encode", "reason", "masks"]
    assert [each["reference"] for each in answer["references"]] == ["The drum.", "The dog."]
    [window] = answer["references"][0]["windows"]
    assert (window["start"], window["end"]) == (0.0, 2.0)
    assert window["has_seg"] == ("[SEG]" in window["text"])
    for number, each in enumerate(answer["references"]):
        masks = png_masks(out / "masks" / str(number))
        assert masks.shape == (4, 64, 64) and set(np.unique(masks)) <= {0, 255}
        assert 0 < (masks > 0).mean() < 1
        assert (masks > 0).mean() == pytest.approx(each["share_of_pixels"])
        assert np.array_equal(coco_masks(out, number), masks > 0)
    assert "0. The drum." in (out / "chain.txt").read_text()
    assert open_footage(out / "overlay.mp4").waveform is not None
    with av.open(str(out / "overlay.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 8
    assert "1. The dog.: no answer" in capsys.readouterr().out


def test_the_overlay_shows_the_masks(model, clip, tmp_path):
    out = tmp_path / "out"
    assert segment(clip, "The drum.", "--model", model, "-o", out) == 0
    masks = png_masks(out / "masks" / "0") > 0
    drawn = [picture.pixels.astype(int) for picture in open_footage(out / "overlay.mp4").pictures()]
    plain = [picture.pixels.astype(int) for picture in open_footage(clip).pictures()]
    changed = np.abs(np.stack(drawn) - np.stack(plain)).mean(axis=-1)
    inside = masks.repeat(2, axis=0)
    assert changed[inside].mean() > 3 * changed[~inside].mean()


def test_every_frame_may_be_asked_for(model, clip, tmp_path):
    out = tmp_path / "out"
    assert segment(clip, "The drum.", "--model", model, "-o", out, "--every_frame") == 0
    masks = coco_masks(out, 0)
    assert masks.shape == (8, 64, 64)
    assert np.array_equal(png_masks(out / "masks" / "0") > 0, masks)
    images = json.loads((out / "masks.json").read_text())["images"]
    assert [image["time"] for image in images] == [index / 4 for index in range(8)]


def test_masks_are_written_at_the_videos_own_size(model, film, tmp_path):
    out = tmp_path / "out"
    path = film([np.full((90, 121, 3), 80, np.uint8)] * 8)
    assert segment(path, "The drum.", "--model", model, "-o", out, "--max_side", 60) == 0
    answer = json.loads((out / "answer.json").read_text())
    assert (answer["size"], answer["frame_size"]) == ([90, 121], [45, 60])
    assert coco_masks(out, 0).shape == (4, 90, 121)
    assert answer["notes"] == ["there is no sound: answered by the pictures alone"]


def test_frames_and_a_sound_file_may_stand_for_a_video(model, train_samples, tmp_path):
    media, folder, out = load_clip(train_samples[0]), tmp_path / "frames", tmp_path / "out"
    folder.mkdir()
    for number, frame in zip((1, 2, 9, 10), media.frames, strict=True):  # 10.png comes last
        Image.fromarray(frame).save(folder / f"{number}.png")
    soundfile.write(tmp_path / "sound.wav", media.waveform, 16_000)
    arguments = ["--frames", folder, "--audio", tmp_path / "sound.wav", "The drum.", "--model", model]
    assert segment(*arguments, "-o", out) == 0
    shown = [picture.pixels for picture in open_footage(out / "overlay.mp4").pictures()]
    assert len(shown) == 4
    answer = json.loads((out / "answer.json").read_text())
    assert answer["has_sound"] and answer["frame_times"] == [0.0, 0.5, 1.0, 1.5]
    assert segment(*arguments, "--fps", 4, "-o", tmp_path / "faster") == 0
    assert json.loads((tmp_path / "faster" / "answer.json").read_text())["frame_times"] == [0.0, 0.5]


def test_windows_are_options(model, clip, tmp_path):
    assert segment(clip, "The drum.", "--model", model, "-o", tmp_path / "out", "--window", 1, "--stride", 0.5) == 0
    answer = json.loads((tmp_path / "out" / "answer.json").read_text())
    assert [window["start"] for window in answer["references"][0]["windows"]] == [0.0, 0.5, 1.0]


def test_an_earlier_answer_is_kept_unless_it_may_go(model, clip, tmp_path, capsys):
    out = tmp_path / "out"
    assert segment(clip, "The drum.", "The dog.", "--model", model, "-o", out) == 0
    (out / "mine.txt").write_text("kept")
    assert segment(clip, "The bell.", "--model", model, "-o", out) == 2
    assert "of an earlier run: give another folder or --overwrite" in capsys.readouterr().err
    assert "The drum." in (out / "chain.txt").read_text()
    assert segment(clip, "The bell.", "--model", model, "-o", out, "--overwrite") == 0
    assert [path.name for path in (out / "masks").iterdir()] == ["0"]
    assert (out / "mine.txt").read_text() == "kept"


def test_an_earlier_answer_is_kept_where_the_new_one_cannot_be_written(model, clip, tmp_path, request, capsys):
    out = tmp_path / "out"
    assert segment(clip, "The drum.", "--model", model, "-o", out) == 0
    before = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    request.getfixturevalue("nearly_full")
    assert segment(clip, "The bell.", "--model", model, "-o", out, "--overwrite") == 2
    assert re.search(r"out/overlay\.mp4 cannot be written .*unchanged: free space", capsys.readouterr().err)
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not list(out.glob(".*"))


@pytest.mark.parametrize("arguments", [["OUT/overlay.mp4", "The bell."], ["The bell.", "--frames", "OUT/masks/0"]])
def test_what_is_read_is_not_overwritten(model, clip, tmp_path, capsys, arguments):
    out = tmp_path / "out"
    assert segment(clip, "The drum.", "--model", model, "-o", out) == 0
    arguments = [each.replace("OUT", str(out)) for each in arguments]
    assert segment(*arguments, "--model", model, "-o", out, "--overwrite") == 2
    assert "would be read and replaced in one run" in capsys.readouterr().err
    assert (out / "overlay.mp4").is_file() and list((out / "masks" / "0").iterdir())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere.mp4", "The drum."], "nowhere.mp4 does not exist"),
        (["CLIP"], "there is no reference: say what to segment"),
        (["CLIP", "The drum.", "--stride", "9"], "leave frames out"),
        (["CLIP", "The drum.", "--window", "0"], "--window is 0.0: it must be a number above 0"),
        (["CLIP", "The drum.", "--stride", "-1"], "--stride is -1.0: it must be"),
        (["CLIP", "The drum.", "--window", "nan"], "--window is nan: it must be"),
        (["CLIP", "The drum.", "--fps", "4"], "--fps is the rate of --frames"),
        (["CLIP", "The drum.", "--audio", "nowhere.wav"], "nowhere.wav does not exist"),
        (["The drum.", "--frames", "EMPTY"], "holds no image files"),
        (["The drum.", "--frames", "nowhere"], "nowhere"),
        (["BROKEN", "The drum."], "cannot read the video"),
        (["CLIP", "The drum.", "--config", "BROKEN"], "holds no keys"),
    ],
)
def test_what_cannot_be_used_exits_with_2_and_leaves_no_answer(model, clip, tmp_path, capsys, arguments, complaint):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    places = {"CLIP": clip, "EMPTY": tmp_path / "empty", "BROKEN": tmp_path / "broken.mp4"}
    out = tmp_path / "out"
    assert segment(*[places.get(each, each) for each in arguments], "--model", model, "-o", out) == 2
    assert complaint in capsys.readouterr().err
    assert not out.exists() or list(out.iterdir()) == []


def test_a_model_that_cannot_be_loaded_exits_with_2(clip, tmp_path, capsys):
    assert segment(clip, "The drum.", "--model", tmp_path / "nowhere", "-o", tmp_path / "out") == 2
    assert "aurora-rl segment: " in capsys.readouterr().err


def test_a_model_that_does_not_tell_how_clips_are_put_to_it_needs_a_recipes_config(
    tiny_checkpoint, clip, tmp_path, capsys
):
    out = tmp_path / "out"
    assert segment(clip, "The drum.", "--model", tiny_checkpoint, "-o", out) == 2
    assert "--config with the recipe's YAML file" in capsys.readouterr().err
    config = tmp_path / "recipe.yaml"
    config.write_text("fps: 4.0\nnum_frames: 8\ninstruction: '{reference}'\nmin_pixels: 256\nmax_pixels: 65536\n")
    assert segment(clip, "The drum.", "--model", tiny_checkpoint, "-o", out, "--config", config) == 0
    assert len(json.loads((out / "answer.json").read_text())["frame_times"]) == 8


# docs/inference.md


def blocks(language: str) -> list[str]:
    page = (Path(__file__).resolve().parents[2] / "docs" / "inference.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)


def test_python_of_the_page_runs(model, clip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "demo").mkdir(parents=True)
    Path(model).rename(tmp_path / "outputs" / "demo" / "grpo")
    [block] = [text for text in blocks("python") if "outputs/demo" in text]
    exec(block.replace('AuroraPipeline("', 'AuroraPipeline(max_completion_length=2, model="'), {})
    printed = capsys.readouterr().out
    assert "The object on the left." in printed
    assert printed.count("(4, 64, 64) float32") == 2
    assert printed.count("(2, 64, 64)") == 8


def test_mask_head_of_the_page_is_one():
    [block] = blocks("yaml")
    with torch.device("meta"):
        assert build_segmenter(yaml.safe_load(block)["segmenter"]).prompt_dim == 256
