"""The command `aurora-rl footprint`."""

import pytest

from aurora_rl.cli import main

CONFIG = ["--config", "recipes/synthetic/grpo.yaml"]


def test_a_config_is_estimated_and_a_limit_kept(tiny_checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["footprint", "grpo", *CONFIG, "--model", tiny_checkpoint]
    spread = ["--launch", "accelerate_configs/zero3.yaml", "--processes", "2", "--frame_size", "32", "64"]
    assert main([*command, *spread, "--tflops", "100"]) == 0
    output = capsys.readouterr().out
    for words in ("2 processes, ZeRO-3", "128 rows", "64 x 32", "reference model", "key-value cache", "100 TFLOP/s"):
        assert words in output
    assert main([*command, "--zero", "2", "--memory_limit_gb", "0.01"]) == 1
    output = capsys.readouterr().out
    assert "1 process, ZeRO-2" in output and "what makes them smaller" in output


def test_unusable_arguments_exit_with_2(tiny_checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["footprint", "grpo", "--config", "nowhere.yaml", "--model", "m"]) == 2
    assert main(["footprint", "grpo", *CONFIG, "--model", "no/such/model"]) == 2
    assert main(["footprint", "grpo", *CONFIG, "--model", tiny_checkpoint, "--lerning_rate", "1"]) == 2
    errors = capsys.readouterr().err
    assert "nowhere.yaml" in errors and "no/such/model" in errors and "lerning_rate" in errors


def test_options_of_a_recipe_are_no_options_of_other_commands() -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["doctor", "data", "--model", "m"])
    assert exit_info.value.code == 2
