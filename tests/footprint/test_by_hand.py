"""The command `aurora-rl footprint`."""

import json
import re

import pytest

from aurora_rl.cli import main, parse_arguments
from aurora_rl.footprint.by_hand import estimate
from aurora_rl.rollout.clip_tools import Ears
from aurora_rl.rollout.environments import tool_schemas

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


def test_vllms_share_is_of_the_device_whatever_the_limit(
    tiny_checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["footprint", "grpo", *CONFIG, "--model", tiny_checkpoint, "--gpu_memory_gb", "80"]
    vllm = ["--use_vllm", "true", "--vllm_mode", "colocate", "--vllm_gpu_memory_utilization", "0.25"]
    for limit in ("30", "60"):
        assert main([*command, "--memory_limit_gb", limit, *vllm]) == 0
        output = capsys.readouterr().out
        assert re.search(r"vLLM: its key-value cache +20\.00 GB", output)  # beside weights of less than 1 MB
        assert f"of {limit}.00 GB" in output


def test_the_hosts_memory_is_shared_by_the_processes_of_a_machine(
    tiny_checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["footprint", "grpo", *CONFIG, "--model", tiny_checkpoint, "--frame_size", "720", "1280"]
    offload = ["--launch", "accelerate_configs/zero3_offload.yaml", "--host_memory_gb", "3.2"]
    assert main([*command, *offload]) == 1
    assert "in host memory for each process, and there are 0.40 GB" in capsys.readouterr().out  # of eight
    assert main([*command, *offload, "--machines", "8"]) == 0
    assert "8 processes on 8 machines, ZeRO-3" in capsys.readouterr().out


def test_a_teacher_is_named_as_in_the_recipe(tiny_checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["footprint", "sft", "--config", "recipes/synthetic/sft.yaml", "--model", tiny_checkpoint]
    live, stored = ["--teacher", tiny_checkpoint], ["--teacher_features", "features.safetensors"]
    for options, is_listed in ((live, True), ([*live, *stored], False), ([*live, "--distill_weight", "0"], False)):
        assert main([*command, *options]) == 0
        assert ("\n  teacher " in capsys.readouterr().out) is is_listed


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


#: Recipes of systems that answer in words: EchoInk-R1, SARI, AuTAgent.
ANSWERED_IN_WORDS = [
    ("grpo", "avqa/grpo_7b"),
    ("evaluate", "avqa/evaluate"),
    ("sft", "audio_qa/sft_7b"),
    ("grpo", "audio_qa/grpo_7b"),
    ("evaluate", "audio_qa/evaluate"),
    ("grpo", "audio_tools/grpo_7b"),
]


@pytest.mark.parametrize(("kind", "name"), ANSWERED_IN_WORDS)
def test_recipes_of_tasks_without_a_head_count_none(kind: str, name: str) -> None:
    config = f"recipes/{name}.yaml"
    command = ["footprint", kind, "--config", config, "--model", "docs/configs/qwen2_5_omni_7b", "--launch", "zero3"]
    found = estimate(parse_arguments(command))[0]
    parts = {part.name for part in (*found.device, *found.host, *found.disk)}
    assert found.peak > 10**9 and found.work.head is None
    assert not [part for part in parts if "mask" in part or "embeddings" in part]


#: Configs of the families that hear; sizes of a clip must do without frames in each.
HEARING = ["qwen2_5_omni_7b", "qwen3_omni_30b", "gemma4_12b"]


@pytest.mark.parametrize("name", HEARING)
def test_clips_of_sound_alone_take_tokens_of_their_sound_alone(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["footprint", "grpo", "--config", "recipes/audio_qa/grpo_7b.yaml", "--model", f"docs/configs/{name}"]
    heard, longer, seen = (
        estimate(parse_arguments([*command, *options]))[0]
        for options in (["--frames", "0"], ["--frames", "0", "--seconds", "20"], ["--frames", "10"])
    )
    assert heard.work.frames == 0 and heard.work.size == (0, 0)
    a_second = (longer.work.prompt_tokens - heard.work.prompt_tokens) / 10
    assert 12 <= a_second <= 25  # 12.5 or 13 tokens a second in Qwen3-Omni, 25 in the others
    assert heard.work.prompt_tokens + 500 < seen.work.prompt_tokens and heard.peak < seen.peak
    assert main([*command, "--frames", "0"]) == 0
    assert "sound alone" in capsys.readouterr().out


def test_masks_need_frames(tiny_checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["footprint", "grpo", *CONFIG, "--model", tiny_checkpoint, "--frames", "0"]) == 2
    assert "masks on frames" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["sft", "grpo", "evaluate"])
def test_tools_are_counted_as_the_prompt_shows_them(kind: str) -> None:
    command = ["footprint", kind, "--config", f"recipes/synthetic/calls/{kind}.yaml"]
    command += ["--model", "docs/configs/qwen2_5_omni_7b"]
    more = command + ["--environment_factory", "aurora_rl.rollout.clip_tools:ClipTools"]
    ears, both = (estimate(parse_arguments(given))[0].work.prompt_tokens for given in (command, more))
    [schema] = tool_schemas(Ears)
    assert both > ears > len(json.dumps(schema)) // 3
