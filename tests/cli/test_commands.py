"""The commands that an install trains with: how processes are launched, what is listed, copied and completed."""

import inspect
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from accelerate.commands import launch
from accelerate.utils import prepare_simple_launcher_cmd_env
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import aurora_rl
from aurora_rl.cli import GOALS, SUB_COMMANDS, main
from aurora_rl.files.packaged import find_launch, packaged_root, recipe_names
from aurora_rl.scripts.stage_plan import read_plan

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def launched(tiny_checkpoint, tiny_benchmark, tmp_path, monkeypatch):
    """Starts a training with words, and returns the arguments of `accelerate launch`, on a machine with some GPUs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    given = []
    monkeypatch.setattr(launch, "simple_launcher", launch.simple_launcher)  # restored afterwards
    monkeypatch.setattr(launch, "launch_command", given.append)
    Path("c.yaml").write_text(f"model: {tiny_checkpoint}\ndata_root: {tiny_benchmark}\noutput_dir: new\n")

    def start(*words, gpus):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        assert main(["sft", "--config", "c.yaml", *words]) == 0
        return given.pop()

    return start


@pytest.mark.parametrize(
    ("words", "gpus", "config", "num_processes"),
    [
        ([], 0, "cpu", None),
        ([], 1, "single_gpu", 1),
        ([], 4, "zero2", 4),
        (["--use_cpu", "true"], 4, "cpu", None),
        (["--launch", "zero3"], 4, "zero3", 4),
        (["--launch", "zero3", "--num_processes", "2"], 4, "zero3", 2),
        (["--launch", "multi_node", "--num_machines", "2", "--machine_rank", "1"], 4, "multi_node", 8),
        (["--launch", "fsdp2"], 0, "fsdp2", None),
    ],
)
def test_a_run_has_a_process_for_each_gpu(launched, words, gpus, config, num_processes) -> None:
    args = launched(*words, gpus=gpus)
    assert (args.config_file, args.num_processes) == (find_launch(config), num_processes)
    assert args.training_script == str(packaged_root() / "recipes/sft.py")
    assert args.training_script_args[:2] == ["--config", "c.yaml"]


def test_a_config_of_ones_own_says_the_processes(launched) -> None:
    shutil.copy(ROOT / "accelerate_configs" / "zero2.yaml", "mine.yaml")
    args = launched("--launch", "mine.yaml", "--max_steps", "2", gpus=4)
    assert (args.config_file, args.num_processes) == ("mine.yaml", None)
    assert args.training_script_args[2:] == ["--max_steps", "2"]


@pytest.mark.parametrize(("ended", "code"), [(3, 3), (-15, 143)])
def test_the_exit_code_is_that_of_the_process_that_failed_first(launched, monkeypatch, capsys, ended, code) -> None:
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=ended, error_file="<N/A>")

    def fail(_args):
        raise ChildFailedError("sft.py", {0: failure})

    monkeypatch.setattr(launch, "launch_command", fail)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert main(["sft", "--config", "c.yaml"]) == code
    assert "sft.py" in capsys.readouterr().err


def test_accelerate_still_has_the_seam_by_which_a_single_process_takes_our_place() -> None:
    assert list(inspect.signature(launch.simple_launcher).parameters) == ["args"]
    assert list(inspect.signature(prepare_simple_launcher_cmd_env).parameters) == ["args"]
    assert "simple_launcher(args)" in inspect.getsource(launch.launch_command)


def test_a_plain_command_lists_what_one_can_do(capsys) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{goal}:\n" in said and f"\n  {name} " in said for goal, names in GOALS.items() for name in names)
    assert all(module.__name__.startswith("aurora_rl.cli.") for module in SUB_COMMANDS)


def test_the_version_is_the_packages(capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"aurora-rl {aurora_rl.__version__}\n"


def test_a_recipe_is_copied_once(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "copy", "synthetic/grpo"]) == 0
    source = (ROOT / "recipes" / "synthetic" / "grpo.yaml").read_bytes()
    assert Path("grpo.yaml").read_bytes() == source
    Path("grpo.yaml").write_text("mine")
    Path("link.yaml").symlink_to("nowhere")
    assert main(["recipes", "copy", "synthetic/grpo"]) == main(["recipes", "copy", "synthetic/grpo", "link.yaml"]) == 2
    assert Path("grpo.yaml").read_text() == "mine" and not Path("nowhere").exists()
    assert main(["recipes", "copy", "synthetic/grpo.yaml", "new/mine.yaml"]) == 0
    assert Path("new/mine.yaml").read_bytes() == source


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("aurora-rl grp", "grpo"),
        ("aurora-rl sft --learning_r", "--learning_rate"),
        ("aurora-rl grpo --num_gen", "--num_generations"),
        ("aurora-rl sft --launch zero3_", "zero3_offload"),
        ("aurora-rl evaluate --config synthetic/choice/ev", "synthetic/choice/evaluate"),
        ("aurora-rl recipes show ref_avs/grpo_3", "ref_avs/grpo_3b"),
        ("aurora-rl run data_prep/ver", "data_prep/verify_cot.py"),
        ("aurora-rl grpo --save_strategy st", "steps"),
    ],
)
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(line, expected, capsys) -> None:
    assert main(["completion", "bash"]) == 0
    words = line.split()
    script = f"{capsys.readouterr().out}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}\n_aurora_rl\n"
    script += 'echo "${COMPREPLY[@]}"'
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert expected in ran.stdout.split() and ran.stderr == ""


def test_scripts_for_other_shells_name_commands_and_keys(capsys) -> None:
    main(["completion", "zsh"])
    zsh = capsys.readouterr().out
    main(["completion", "fish"])
    fish = capsys.readouterr().out
    assert "bashcompinit" in zsh and "--num_generations" in zsh
    assert "__fish_seen_subcommand_from grpo' -l num_generations" in fish and recipe_names()[0] in fish


def test_stages_are_the_same_from_any_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    here = read_plan("recipes/synthetic/smoke.yaml")
    digests = {name: here.digest(name) for name in here.stages}
    assert "recipes/grpo.py" in here.stages["grpo"].command
    monkeypatch.chdir(tmp_path)
    away = read_plan("synthetic/smoke")
    assert {name: away.digest(name) for name in away.stages} == digests
    assert all(Path(word).is_file() for word in away.stages["grpo"].command if word.endswith((".py", ".yaml")))
    other = read_plan("synthetic/smoke", launch="zero2").stages["grpo"].command
    assert find_launch("zero2") in other
