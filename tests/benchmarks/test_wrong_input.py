import pytest

from benchmarks.wrong_input import COMMANDS, IMPORTS, measure


def test_a_command_that_is_refused_is_measured():
    told = measure({"missing reward": COMMANDS["missing reward"]}, repeats=1, with_imports=False)
    assert told["missing reward"].program == "recipes/grpo.py"
    assert told["missing reward"].seconds > 0


def test_a_command_that_is_not_refused_is_no_measurement():
    with pytest.raises(RuntimeError, match="ended with 0, expected 2"):
        measure({"help": ("doctor", "--help")}, repeats=1)


def test_imports_of_each_program_are_known():
    assert {program for program, _ in COMMANDS.values()} == set(IMPORTS)
