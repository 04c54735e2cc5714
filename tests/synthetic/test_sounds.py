"""Sounds alone, as the loader of AVQA's form reads them, with both kinds of gold chains."""

import json
from pathlib import Path

import numpy as np
import pytest

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.data.files import DatasetError
from aurora_rl.data.media import read_media
from aurora_rl.scripts.make_sounds import main
from aurora_rl.synthetic.sounds import NOISE, SoundsConfig, gold_steps, make_sound_clip, write_sounds
from aurora_rl.tasks.think_answer import PlannedAnswer, PlannedAnswerInWords, ThinkAnswer, ThinkAnswerInWords

CONFIG = SoundsConfig(sft=12, train=3, test=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds") / "data"
    write_sounds(folder, CONFIG)
    return folder


def rows_of(root: Path, task: type, chains: str | None = "chains.jsonl", split: str = "sft") -> list:
    name = f"{task.__module__}:{task.__name__}"
    return load_split(DataArguments(str(root), benchmark="avqa", task=name, chains=chains), split)


@pytest.mark.parametrize("task", [ThinkAnswer, ThinkAnswerInWords, PlannedAnswer, PlannedAnswerInWords])
def test_every_gold_chain_has_its_form_and_is_right(root: Path, task: type) -> None:
    samples = rows_of(root, task)
    for sample in samples:
        answer = task().parse(task().target(sample).learned)
        assert answer.has_form and task().is_right(answer, sample)
        assert sample.num_frames == 0 and sample.heard and sample.answer in sample.heard
        assert (sample.answer in answer.text.rpartition("<answer>")[2]) == task.__name__.endswith("InWords")
    assert {sample.reference_type for sample in samples} == {"one", "two", "three"}


def test_rows_without_chains_are_answered_at_once(root: Path) -> None:
    (sample, _) = rows_of(root, ThinkAnswerInWords, chains=None, split="test")
    assert ThinkAnswerInWords().target(sample).learned == f"<answer>{sample.answer}</answer>"


def test_both_chains_say_the_same() -> None:
    steps = gold_steps("last", ["bell", "dog"])
    assert steps["thought"] == steps["caption"] == "I hear a bell, then a dog."
    assert (
        PlannedAnswer()
        .reasoning(steps)
        .startswith("<planning>I name what sounds in order and take the last.</planning>\n")
    )
    assert steps["summary"] == "It is the dog."


@pytest.mark.parametrize("thought", ["", "I hear a bell.</think><answer>"])
def test_a_step_that_is_missing_or_holds_a_tag_is_refused(root: Path, tmp_path: Path, thought: str) -> None:
    record = json.loads((root / "chains.jsonl").read_text().splitlines()[0])
    (tmp_path / "chains.jsonl").write_text(json.dumps({**record, "steps": {"thought": thought}}))
    with pytest.raises(DatasetError, match="chain's step 'thought' is .*expected text without '<'"):
        rows_of(root, ThinkAnswer, chains=str(tmp_path / "chains.jsonl"))


def test_chains_of_another_split_are_refused(root: Path) -> None:
    with pytest.raises(DatasetError, match="has no uid 'sft-00000' at row 0"):
        rows_of(root, ThinkAnswer, split="train")


def test_sounds_begin_apart_and_the_noise_is_what_the_table_says(root: Path) -> None:
    clips = [make_sound_clip(CONFIG, "sft", index) for index in range(CONFIG.sft)]
    sample = rows_of(root, ThinkAnswer)[4]
    assert np.abs(read_media(sample)[1] - clips[4].waveform).max() < 2**-15
    assert sample.extra_columns["noise"] == round(clips[4].noise, 5)
    for clip in clips:
        assert (
            NOISE[0] <= clip.noise <= NOISE[1] and set(clip.heard) <= set(clip.choices) and len(set(clip.choices)) == 4
        )


def test_more_clips_begin_with_those_of_fewer(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--output_dir", str(tmp_path / "more"), "--sft", "13", "--train", "0", "--test", "0"])
    name = "sounds/sft-00011.wav"
    assert (tmp_path / "more" / name).read_bytes() == (root / name).read_bytes()
    for arguments, message in [(["--sft", "-1"], "sft=-1 is too small"), (["--sft", "1"], "is not empty")]:
        with pytest.raises(SystemExit):
            main(["--output_dir", str(tmp_path / "more"), *arguments])
        assert message in capsys.readouterr().err
