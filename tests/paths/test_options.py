"""What every command and script shows of its options: the same words everywhere, each text to be read alone."""

import argparse
import dataclasses
import re
from collections.abc import Iterator

import pytest

from aurora_rl.assembly.options import RENAMED
from aurora_rl.assembly.parser import INHERITED, own_fields
from tools.docs_site.config_reference import COMMAND, SCRIPTS
from tools.script_parser import script_parser

TOOLS = ["tools/measure_footprint.py", "tools/scaling_table.py"]
#: Words that a text begins with which needs the option's name, or another text, to be understood.
DEPENDENT = {"also", "as", "for", "from", "if", "in", "instead", "its", "of", "than", "when", "while", "with"}


def programs() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each sub-command and each script, with its parser."""
    command = script_parser(COMMAND)
    sub_commands = next(action for action in command._actions if isinstance(action, argparse._SubParsersAction))
    yield from ((f"aurora-rl {name}", parser) for name, parser in sub_commands.choices.items())
    yield from ((script, script_parser(script)) for script in [*SCRIPTS, *TOOLS])


def own_actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """What a parser shows, without the options of libraries."""
    kinds = getattr(parser, "dataclass_types", [])
    ours = {field.name for kind in kinds for field in own_fields(kind)}
    theirs = {field.name for kind in kinds for field in dataclasses.fields(kind)} - ours
    hidden = (argparse.SUPPRESS, *theirs)
    return [action for action in parser._actions if action.dest not in theirs and action.help not in hidden]


def depends(text: str) -> bool:
    """Whether a help cannot be read alone."""
    words = re.findall(r"[\w'.]+", text)
    return len(words) < 4 or words[0].lower() in DEPENDENT or words[0][0].isdigit()


def test_each_help_can_be_read_alone() -> None:
    texts = {
        f"{program} {'/'.join(action.option_strings) or action.dest}": action.help or ""
        for program, parser in programs()
        for action in own_actions(parser)
    }
    assert len(texts) > 250
    assert {option: text for option, text in texts.items() if depends(text)} == {}


@pytest.mark.parametrize(
    "text", ["", "Of the sampled completions.", "If not the student's.", "429s for one row.", "for the card: its text"]
)
def test_a_help_that_needs_its_neighbours_is_noticed(text: str) -> None:
    assert depends(text)


def test_options_are_shown_with_underscores_and_under_no_former_name() -> None:
    for program, parser in programs():
        shown = [option for action in parser._actions for option in action.option_strings]
        assert [option for option in shown if "-" in option.lstrip("-")] == [], program
        former = [action.dest for action in parser._actions if action.dest in RENAMED and action.nargs != 0]
        assert former == [], program


def test_help_of_each_program_can_be_printed_and_tells_no_missing_default() -> None:
    for program, parser in programs():
        text = parser.format_help()
        assert "(default: None)" not in text and "(default: [])" not in text, program
        assert parser.description, program


def test_our_options_come_before_those_of_libraries() -> None:
    for script in ("recipes/sft.py", "recipes/grpo.py"):
        text = script_parser(script).format_help()
        [base] = [name for name in INHERITED if f"{name} of TRL:" in text]
        ours, theirs = text.split(f"{base} of TRL:")
        assert "--data_root" in ours and "--mask_dice_weight" in ours
        assert "--learning_rate" in theirs and "--learning_rate" not in ours
