"""The model and the clips that come with the package, and `aurora-rl demo`, which answers them."""

import json
import re
from pathlib import Path

import av
import pytest

from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.cli import main
from aurora_rl.cli.serve import about_model
from aurora_rl.data.sample import AVSample
from aurora_rl.evaluation.measures import MEASURES
from aurora_rl.first_clip import CARD, CLIPS, MODEL, knowledge_of
from tools.first_clip import SHOWN, answer_rows, choose_clips, clip_arguments, scores_of, write_clips, write_model


@pytest.fixture(scope="module")
def clips() -> list[AVSample]:
    return load_split(clip_arguments(CLIPS), "test")


def test_a_dozen_clips_ask_for_each_type_of_reference_twice(clips: list[AVSample]):
    types = [clip.reference_type for clip in clips]
    assert len(clips) == 12 and len(set(types)) == 6 and all(types.count(kind) == 2 for kind in types)
    assert {clip.num_frames for clip in clips} == {4} and all(clip.has_gt_masks for clip in clips)


def test_the_card_tells_the_scores_that_the_stored_model_has(clips: list[AVSample]):
    scores = scores_of(answer_rows(MODEL, clips, clip_arguments(CLIPS)))
    rows = re.findall(r"^\| ([^|]+) \| ([\d.]+) \| ([\d.]+) \|$", CARD.read_text(), re.MULTILINE)
    told = {label.strip(): float(number) for label, number, _ in rows}
    assert set(told) == {MEASURES[name].label for name in SHOWN}
    for name in SHOWN:  # another processor rounds otherwise, and one word of one clip may tip over
        assert scores[name] == pytest.approx(told[MEASURES[name].label], abs=1 / len(clips) + 1e-3), name
    assert scores["greedy_iou"] > 0.8 and scores["format_rate"] > 0.9


def test_what_is_shipped_is_small_and_holds_no_pickle():
    files = [path for folder in (MODEL, CLIPS) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_500_000
    assert {path.suffix for path in files} == {
        ".json",
        ".jinja",
        ".jsonl",
        ".jpg",
        ".md",
        ".ogg",
        ".png",
        ".safetensors",
    }


def test_demo_prints_the_chain_and_its_truth_and_writes_the_overlay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert 'clip 3: "The object on the right making a sound."' in said
    assert re.search(r"Look: I see .*\n  Listen: I hear .*\n  Read: .*\n  Answer: .* \[SEG\]\.\n", said)
    assert re.search(r"The answer is (right|wrong, .*); mask IoU [\d.]+\.", said)
    assert "What it can know: It has only ever seen clips of two seconds" in said and "aurora-rl demo --serve" in said
    answer = json.loads((tmp_path / "aurora-rl-demo" / "answer.json").read_text())
    assert answer["references"][0]["reference"] == "The object on the right making a sound."
    with av.open(str(tmp_path / "aurora-rl-demo" / "overlay.mp4")) as overlay:
        assert len(overlay.streams.audio) == 1 and sum(1 for _ in overlay.decode(video=0)) == 4
    # Its own folder is replaced; one that somebody names is not.
    assert main(["demo", "7", "--reference", "The object on the left.", "--device", "cpu"]) == 0
    assert "The answer is" not in capsys.readouterr().out
    assert main(["demo", "-o", "aurora-rl-demo"]) == 2
    assert "give another folder or --overwrite" in capsys.readouterr().err


def test_demo_lists_its_clips_and_refuses_a_number_that_is_none(capsys: pytest.CaptureFixture[str]):
    assert main(["demo", "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[2] == "  3  The object on the right making a sound."
    assert main(["demo", "13"]) == 2
    assert "there is no clip 13: give a number from 1 to 12" in capsys.readouterr().err


def test_demo_opens_the_page_of_its_own_model(monkeypatch: pytest.MonkeyPatch):
    opened = []
    monkeypatch.setattr("aurora_rl.cli.serve.run", lambda args: opened.append(args) or 0)
    assert main(["demo", "--serve", "--port", "7999"]) == 0
    assert opened[0].model == str(MODEL) and opened[0].port == 7999 and opened[0].host == "127.0.0.1"


def test_a_page_says_which_model_it_runs_and_what_it_can_know(tmp_path: Path):
    assert about_model(str(MODEL)).startswith("Model: the small model that comes with Aurora-RL. It has only ever seen")
    assert about_model("organisation/name") == "Model: organisation/name."
    folder = tmp_path / "secret" / "mine"
    folder.mkdir(parents=True)
    assert about_model(str(folder)) == "Model: mine."
    (folder / "README.md").write_text("# Mine\n\n## What it can know\n\nCats,\nby sight.\n\n## Scores\n\nnone\n")
    assert about_model(str(folder)) == "Model: mine. Cats, by sight."
    (folder / "README.md").write_bytes(b"\xff\xfe\x00")
    assert knowledge_of(folder) is None


def test_model_and_clips_are_written_from_files_of_a_training(
    tiny_checkpoint: str, tiny_benchmark: Path, tmp_path: Path
):
    args = clip_arguments(tiny_benchmark, benchmark="ref_avs")
    samples = load_split(args, "test_s")
    write_clips(choose_clips(samples), tmp_path / "clips")
    clips = load_split(clip_arguments(tmp_path / "clips"), "test")
    assert [clip.reference for clip in clips] == [sample.reference for sample in choose_clips(samples)]
    write_model(Path(tiny_checkpoint), tmp_path / "model")
    results = answer_rows(tmp_path / "model", clips, clip_arguments(tmp_path / "clips"))
    assert [result.reference for result in results] == [clip.reference for clip in clips]
