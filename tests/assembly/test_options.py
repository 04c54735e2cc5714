"""One vocabulary for every parser: hyphens are read, former names and abbreviations are errors."""

import dataclasses
from pathlib import Path

import pytest

from aurora_rl.assembly.options import OptionParser
from aurora_rl.assembly.parser import ConfigParser


@dataclasses.dataclass
class Arguments:
    """What a script reads."""

    data_root: str = dataclasses.field(metadata={"help": "Folder that holds the benchmark."})
    output: str = dataclasses.field(default="out.json", metadata={"help": "JSON file for the numbers."})
    split: list[str] = dataclasses.field(default_factory=list, metadata={"help": "Splits that are scored."})
    append_seg: bool = dataclasses.field(default=True, metadata={"help": "Close completions by [SEG]."})


def plain() -> OptionParser:
    parser = OptionParser(prog="tool")
    parser.add_argument("--data_root", help="folder that holds the benchmark")
    parser.add_argument("--output_dir", "-o", help="folder that is written")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    return parser


@pytest.mark.parametrize("words", [["--data_root", "d"], ["--data-root", "d"], ["--data-root=d"], ["--data_root=d"]])
def test_hyphens_are_read_as_underscores(words: list[str]) -> None:
    assert plain().parse_args(words).data_root == "d"
    assert ConfigParser((Arguments,)).parse_args_and_config(words)[0].data_root == "d"


def test_what_follows_two_hyphens_is_left_alone() -> None:
    parser = OptionParser()
    parser.add_argument("words", nargs="*")
    parser.add_argument("--data_root")
    assert parser.parse_args(["--", "--data-root", "--dataset"]).words == ["--data-root", "--dataset"]


@pytest.mark.parametrize(
    ("word", "now"), [("--dataset", "--data_root"), ("--dataset=d", "--data_root"), ("--out", "--output_dir")]
)
def test_a_former_option_is_an_error_that_says_the_new_one(
    word: str, now: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        plain().parse_args([word, "d"])
    assert f"{word.removesuffix('=d')} has another name now: {now}\n" in capsys.readouterr().err


def test_a_name_that_a_parser_has_is_not_refused_for_what_it_was_elsewhere() -> None:
    assert plain().parse_args(["--json"]).json


def test_sub_commands_have_the_same_words(capsys: pytest.CaptureFixture[str]) -> None:
    parser = OptionParser(prog="tool")
    parser.add_subparsers().add_parser("score").add_argument("--split", nargs="+")
    assert parser.parse_args(["score", "--split", "a", "b"]).split == ["a", "b"]
    with pytest.raises(SystemExit):
        parser.parse_args(["score", "--splits", "a"])
    assert "tool score: error: --splits has another name now: --split" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--data", "d"], ["--output", "o"]])
def test_abbreviations_are_unknown(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        plain().parse_args(words)
    assert f"unrecognized arguments: {words[0]}" in capsys.readouterr().err


def test_a_former_key_of_a_yaml_file_is_an_error_that_says_the_new_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("data_root: d\nout: o.json\n")
    with pytest.raises(SystemExit):
        ConfigParser((Arguments,)).parse_args_and_config(["--config", str(config)])
    assert f"{config}: the key 'out' has another name now: output\n" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["--config {}", "--config={}"])
def test_a_config_is_named_in_either_form(form: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("data_root: d\nsplit: [a, b]\n")
    words = form.format(tmp_path / "c.yaml").split(" ")
    assert ConfigParser((Arguments,)).parse_args_and_config(words) == (Arguments("d", split=["a", "b"]),)


def test_help_shows_fields_in_their_group_with_underscores_and_telling_defaults() -> None:
    text = ConfigParser((Arguments,)).format_help()
    assert text.index("--config FILE") < text.index("Arguments:\n  What a script reads.") < text.index("--data_root")
    assert "--data-root" not in text and "--no-append-seg" not in text
    assert text.count("(default: ") == 2 and "(default: out.json)" in text and "(default: True)" in text
    assert "--no_append_seg" in text and "set --append_seg to false" in text
