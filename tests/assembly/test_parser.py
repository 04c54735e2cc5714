"""How clips are put to a model: set by the user, else as its checkpoint says, else by default."""

import dataclasses
from pathlib import Path

import pytest
from peft import get_peft_model

from aurora_rl.assembly.arguments import DataArguments, ModelArguments
from aurora_rl.assembly.model import peft_config
from aurora_rl.assembly.parser import RecipeParser
from aurora_rl.models.clip_options import ClipOptions
from aurora_rl.models.encoding import PromptOptions
from aurora_rl.models.loading import load_model, saved_clip_options

CLIPS = ClipOptions(PromptOptions("Find {reference}", "Be brief.", 256, 4096), 4.0, 3, use_audio_in_video=True)


@pytest.fixture
def taught(loaded, tmp_path: Path) -> str:
    """Folder of a model that was trained with `CLIPS`."""
    loaded.remember_clips(CLIPS)
    loaded.model.save_pretrained(tmp_path / "taught")
    loaded.processor.save_pretrained(tmp_path / "taught")
    return str(tmp_path / "taught")


def parse(model: str, *options: str) -> DataArguments:
    command = ["--model", model, "--data_root", "data", *options]
    return RecipeParser((ModelArguments, DataArguments)).parse_args_and_config(command)[1]


def test_what_nobody_sets_is_as_the_checkpoint_says(taught, caplog):
    assert parse(taught) == DataArguments(
        "data",
        instruction="Find {reference}",
        system_prompt="Be brief.",
        min_pixels=256,
        max_pixels=4096,
        fps=4.0,
        num_frames=3,
        use_audio_in_video=True,
    )
    assert not caplog.records


def test_a_checkpoint_that_does_not_tell_leaves_the_defaults(tiny_checkpoint, caplog):
    assert saved_clip_options(tiny_checkpoint) is None
    assert parse(tiny_checkpoint) == DataArguments("data")
    assert parse(tiny_checkpoint, "--fps", "2") == DataArguments("data", fps=2.0)
    assert not caplog.records


def test_values_of_yaml_and_command_win_and_are_warned_of(taught, tmp_path, caplog):
    config = tmp_path / "config.yaml"
    config.write_text("instruction: '{reference}'\nmin_pixels: null\nmax_pixels: 65536\nfps: 4.0\n")
    args = parse(taught, "--config", str(config), "--max_pixels", "1024", "--use_audio_in_video", "false")
    assert (args.instruction, args.min_pixels, args.max_pixels, args.fps) == ("{reference}", None, 1024, 4.0)
    assert (args.use_audio_in_video, args.system_prompt, args.num_frames) == (False, "Be brief.", 3)
    assert [record.getMessage() for record in caplog.records] == [
        f"{taught} was trained with instruction 'Find {{reference}}', here it is '{{reference}}'",
        f"{taught} was trained with min_pixels 256, here it is None",
        f"{taught} was trained with max_pixels 4096, here it is 1024",
        f"{taught} was trained with use_audio_in_video True, here it is False",
    ]


def test_a_model_of_one_task_leaves_its_instruction_to_it(taught, tmp_path, caplog):
    """A model that has learnt to find objects is asked a question of a file in that file's own words."""
    (tmp_path / "mine.py").write_text(
        "from aurora_rl.tasks.reference_segmentation import ReferenceSegmentation\n"
        "class Short(ReferenceSegmentation):\n    instruction = 'Show {reference}'\n"
    )
    args = parse(taught, "--task", f"{tmp_path / 'mine.py'}:Short")
    assert (args.instruction, args.asked_instruction()) == (None, "Show {reference}")
    assert (args.system_prompt, args.fps) == ("Be brief.", 4.0)
    assert not caplog.records
    with pytest.raises(SystemExit):
        parse(taught, "--task", f"{tmp_path / 'mine.py'}:Shorter")


def test_an_adapter_is_heard_before_what_lies_beneath(taught, tmp_path):
    base = load_model(taught)
    adapter = get_peft_model(base.model, peft_config(ModelArguments(model="", use_peft=True), base))
    adapter.save_pretrained(tmp_path / "as_beneath")
    dataclasses.replace(base, model=adapter).remember_clips(dataclasses.replace(CLIPS, fps=8.0))
    adapter.save_pretrained(tmp_path / "further")
    for folder, fps in (("as_beneath", 4.0), ("further", 8.0)):
        assert parse(str(tmp_path / folder)).fps == fps
        assert saved_clip_options(str(tmp_path / folder)) == load_model(str(tmp_path / folder)).clip_options


def test_null_unsets_a_key_of_the_file(taught, tmp_path):
    (tmp_path / "c.yaml").write_text("fps: 2.0\nnum_frames: 7\neval_split: val\ntrain_split: mine\nmax_pixels: null\n")
    names = ("fps", "num_frames", "eval_split", "train_split")
    nulls = [word for name in names for word in (f"--{name}", "null")]
    args = parse(taught, "--config", str(tmp_path / "c.yaml"), *nulls)
    assert (args.fps, args.train_split) == (4.0, "train")  # may not be None: the checkpoint's value, the default
    assert (args.num_frames, args.eval_split, args.max_pixels) == (None, None, None)
    assert parse(taught, "--num_frames=null").num_frames is None


def test_null_in_a_file_leaves_an_option_at_its_default_that_may_not_be_none(taught, tmp_path):
    (tmp_path / "c.yaml").write_text("train_split: null\nfps: null\n")
    args = parse(taught, "--config", str(tmp_path / "c.yaml"))
    assert (args.train_split, args.fps) == ("train", 4.0)
