"""The Slurm script of two nodes, run beside programs that stand for Slurm's and for accelerate."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

from aurora_rl.assembly.known_options import read_asked

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "accelerate_configs" / "slurm_two_nodes.sh"
SHELLCHECK = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))

#: What stands for Slurm's programs. srun runs its command once a node; a training that nobody stops ends with `$CODE`.
PROGRAMS = {
    "scontrol": 'echo "scontrol $*" >> "$LOG/calls"; [[ $1 != show ]] || printf "node-a\\nnode-b\\n"',
    "scancel": 'echo "scancel $*" >> "$LOG/calls"; touch "$LOG/stopped"',
    "srun": 'while [[ $1 == --* ]]; do shift; done; for node in 0 1; do SLURM_NODEID=$node "$@" || exit; done',
    "accelerate": """
"$PYTHON" -c 'import json, os, sys
with open(os.environ["LOG"] + "/launched", "a") as file: file.write(json.dumps(sys.argv[1:]) + "\\n")' "$@"
if [[ -n ${WAITS:-} ]]; then
  echo started
  until [[ -e $LOG/stopped ]]; do sleep 0.05; done
  exit 143
fi
exit "${CODE:-0}"
""",
}


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the script as a job of two nodes with four GPUs each."""
    (tmp_path / "bin").mkdir()
    for name, body in PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_JOB_ID": "41001",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
    }
    own = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "LOG": str(tmp_path), "PYTHON": sys.executable}

    def start(*words: str, **variables: str) -> subprocess.Popen[str]:
        environment = {**os.environ, **slurm, **own, **variables}
        command = ["bash", str(SCRIPT), *words]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def calls(folder: Path) -> list[str]:
    return [line for line in (folder / "calls").read_text().splitlines() if not line.startswith("scontrol show")]


TRAINING = ("recipes/grpo.py", "--config", "recipes/ref_avs/grpo_7b.yaml", "--data_root", "my data")


def test_each_node_launches_its_rank_with_all_processes_and_resumes(start, tmp_path: Path) -> None:
    process = start(*TRAINING)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert "done" in output and calls(tmp_path) == []
    launched = [json.loads(line) for line in (tmp_path / "launched").read_text().splitlines()]
    for rank, words in enumerate(launched):
        assert words[0] == "launch"
        args = launch_command_parser().parse_args(words[1:])
        assert (args.num_machines, args.machine_rank, args.num_processes) == (2, rank, 8)
        assert (args.main_process_ip, args.main_process_port) == ("node-a", 21001)
        assert yaml.safe_load((ROOT / args.config_file).read_text())["num_machines"] == 2
        assert args.training_script == TRAINING[0]
        asked = read_asked(args.training_script, args.training_script_args)
        assert (asked.get("data_root"), asked.get("resume_from_checkpoint")) == ("my data", "true")
        assert asked.get("stop_grace_s") == 480
    assert len(launched) == 2


@pytest.mark.parametrize(("number", "is_queued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_out_of_time_is_stopped_and_queued_again_and_a_cancelled_job_is_not(start, tmp_path, number, is_queued) -> None:
    process = start(*TRAINING, WAITS="1")
    assert process.stdout.readline() == "started\n"
    process.send_signal(number)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 143, output + errors
    assert calls(tmp_path) == ["scancel --signal=TERM 41001", *["scontrol requeue 41001"] * is_queued]


def test_failure_and_too_many_restarts_are_not_queued_again(start, tmp_path: Path) -> None:
    process = start(*TRAINING, CODE="7")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 7 and "failed with exit code 7: not queued again" in errors
    assert calls(tmp_path) == []
    process = start(*TRAINING, WAITS="1", SLURM_RESTART_COUNT="50")
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=240)
    assert calls(tmp_path) == ["scancel --signal=TERM 41001"]


def test_without_a_recipe_it_says_how_it_is_used(start) -> None:
    process = start()
    assert (process.wait(timeout=240), "usage: sbatch" in process.communicate()[1]) == (2, True)


def test_limits_lie_within_the_time_that_slurm_gives() -> None:
    text = SCRIPT.read_text()
    signal_s, shutdown_s, grace_s = 600, 540, 480
    assert f"--signal=B:USR1@{signal_s}" in text and "#SBATCH --requeue" in text
    assert f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={shutdown_s}" in text and f"--stop_grace_s {grace_s}" in text
    assert grace_s < shutdown_s < signal_s


@pytest.mark.parametrize("command", [["bash", "-n"], [SHELLCHECK]], ids=["bash", "shellcheck"])
def test_shell_and_linter_have_nothing_to_say(command: list[str | None]) -> None:
    if command == [None]:
        pytest.skip("needs shellcheck, of the extra dev")
    done = subprocess.run([*map(str, command), str(SCRIPT)], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
