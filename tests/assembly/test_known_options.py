"""The shipped list of options: equal to the parsers', and what it refuses is what they would refuse."""

import json

import pytest

from aurora_rl.assembly import known_options
from aurora_rl.assembly.known_options import FILE, options_of, read_asked, read_config
from tools.known_options import as_text
from tools.known_options import known_options as made_of_parsers

GRPO = "recipes/grpo.py"
GIVEN = ["--model", "m", "--data_root", "d"]


def test_the_shipped_list_is_what_the_parsers_know():
    shipped, made = json.loads(FILE.read_text()), made_of_parsers()
    names = ("scripts", "names", "classes")  # the versions are those that it was made with
    assert {name: shipped[name] for name in names} == {name: made[name] for name in names}, (
        "an option has changed: run `python tools/known_options.py`"
    )
    assert FILE.read_text() == as_text(shipped)


@pytest.fixture
def config(tmp_path):
    def write(text: str) -> list[str]:
        (tmp_path / "c.yaml").write_text(text)
        return ["--config", str(tmp_path / "c.yaml")]

    return write


def test_command_line_wins_over_yaml_and_both_are_named(config):
    words = config("model: m\ndata_root: d\nfps: 2\nsegmenter: {type: dot}\nenv: {WANDB_MODE: offline}\n")
    asked = read_asked(GRPO, [*words, "--fps", "4", "--learning-rate=1e-5", "--bf16", "--no_shuffle_dataset"])
    assert (asked.get("fps"), asked.get("learning_rate"), asked.get("segmenter")) == (4.0, 1e-5, {"type": "dot"})
    assert asked.get("bf16") is True and asked.get("shuffle_dataset") is False
    assert asked.get("beta") is None and "env" not in asked.values
    assert asked.called("fps") == "--fps" and asked.called("model") == f"{words[1]}: model"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("learning_rte: 1", "the unknown key 'learning_rte', did you mean 'learning_rate'?"),
        ("zzz: 1\nyyy: 2", "the unknown key 'zzz', 'yyy': remove it"),
        ("learning_rate: abc", "learning_rate is 'abc': expected a number"),
        ("max_steps: 1.5", "max_steps is 1.5: expected a whole number"),
        ("max_steps: [1]", r"max_steps is \[1\]: expected a whole number"),
        ("beta: .nan", "beta is nan: expected a number"),
        ("bf16: maybe", "bf16 is 'maybe': expected true or false"),
        ("freeze: visual", r"freeze is 'visual': expected a list, such as \[visual\]"),
        ("reward_weights: [1, x]", "reward_weights is 'x': expected a number"),
        ("save_strategy: no", 'save_strategy is false, which is what YAML makes of no: write "no" in quotes'),
        ("save_strategy: setps", "save_strategy is 'setps': choose from no, steps, epoch, best, did you mean 'steps'?"),
        ("env: {PYTHONPATH: x}", "env sets PYTHONPATH, which a config may not"),
        ("- a", "holds no keys"),
        ("a: [", "is no YAML: .* line 1"),
    ],
)
def test_a_yaml_file_is_refused_by_key_and_value(config, text, told):
    with pytest.raises(ValueError, match=rf"c\.yaml.* {told}"):
        read_asked(GRPO, config(text))


def test_what_parsers_take_is_taken(config):
    """Numbers as text, null, one reward without a list, an optional number that is none."""
    text = "learning_rate: '1e-5'\nnum_frames: none\nmax_pixels: null\nreward_funcs: a:b\nreport_to: [none]\n"
    asked = read_asked(GRPO, [*config(text), *GIVEN, "--num_frames", "none", "--eval_split", "none"])
    assert asked.get("num_frames") is None and asked.get("eval_split") == "none"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model", "m"], "arguments are required: --data_root"),
        ([*GIVEN, "--learning_rte", "1"], "unrecognized arguments: --learning_rte 1, did you mean '--learning_rate'?"),
        ([*GIVEN, "--learning_rate", "abc"], "--learning_rate.*: invalid float value: 'abc'"),
        ([*GIVEN, "--max_steps", "1.5"], "--max_steps.*: invalid int value: '1.5'"),
        ([*GIVEN, "--bf16", "maybe"], "--bf16: 'maybe' is neither true nor false"),
        ([*GIVEN, "--beta", "nan"], "--beta: 'nan' is no number"),
        ([*GIVEN, "--save_strategy", "x"], "invalid choice: 'x'"),
        ([*GIVEN, "--config"], "--config names no file"),
        ([*GIVEN, "--config", "nowhere.yaml"], "--config nowhere.yaml does not exist"),
        ([*GIVEN, "--freeze"], "--freeze: expected at least one argument"),
    ],
)
def test_a_command_line_is_refused(words, told):
    with pytest.raises(ValueError, match=told):
        read_asked(GRPO, words)


def test_names_that_other_versions_may_know_are_left_to_their_parsers(config, monkeypatch):
    monkeypatch.setattr(known_options.importlib.metadata, "version", lambda _library: "99")
    asked = read_asked(GRPO, [*config("new_key: 1"), *GIVEN, "--new_option", "2"])
    assert asked.get("model") == "m"
    with pytest.raises(ValueError, match="expected a number"):
        read_asked(GRPO, config("learning_rate: abc"))


def test_a_former_name_is_told_its_new_one(config):
    with pytest.raises(ValueError, match=r"c\.yaml: splits has another name now: split"):
        read_asked("recipes/evaluate.py", config("splits: [test]"))
    with pytest.raises(ValueError, match="--splits has another name now: --split"):
        read_asked("recipes/evaluate.py", [*GIVEN, "--splits", "test"])


def test_any_recipes_config_is_known_where_all_are_asked(config):
    _, path = config("train_split: train\nbeta: 0.1\ntarget: chain\nnum_samples: 2")
    assert set(read_config(path, options_of())) == {"train_split", "beta", "target", "num_samples"}
    with pytest.raises(ValueError, match="unknown key 'num_samples'"):
        read_config(path, options_of("recipes/grpo.py", "recipes/sft.py"))


@pytest.mark.parametrize(
    ("words", "rest", "names"),
    [
        ("--fps null", "", {"fps"}),
        ("--fps=null --beta 1", "--beta 1", {"fps"}),
        ("--num-frames null", "", {"num_frames"}),
        ("--fps null --fps 2", "--fps 2", set()),
        ("--fps 2 --fps null", "--fps 2", {"fps"}),
        ("--freeze null towers", "--freeze null towers", set()),
        ("--other null", "--other null", set()),
        ("null", "null", set()),
    ],
)
def test_null_on_the_command_line_unsets_an_option(words, rest, names):
    known = {"fps", "beta", "num_frames", "freeze"}
    assert known_options.split_nulls(words.split(), known) == (rest.split(), names)


def test_a_key_that_is_unset_counts_as_not_given(config):
    words = config("model: m\ndata_root: d\nfps: 2\nchains: c.jsonl\n")
    asked = read_asked(GRPO, [*words, "--fps", "null", "--chains", "null"])
    assert asked.get("fps") is None and asked.get("chains") is None and asked.get("model") == "m"
    with pytest.raises(ValueError, match="required: --model"):
        read_asked(GRPO, [*words, "--model", "null"])
