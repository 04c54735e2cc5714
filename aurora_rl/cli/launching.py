"""How a command starts a packaged script under `accelerate launch`, and the options that say over which devices."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Sequence
from typing import NoReturn

from aurora_rl.assembly.known_options import Asked, read_yaml
from aurora_rl.cli.arguments import positive
from aurora_rl.files.existing import did_you_mean
from aurora_rl.files.packaged import find_launch, launch_names, packaged_root

#: What a config of accelerate says of the processes.
LAUNCH_KEYS = ("num_processes", "use_cpu")
#: Packaged configs of a single process.
ALONE = ("cpu", "single_gpu")
#: Options that are handed on to `accelerate launch`.
HANDED_ON = ("num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port")


def add_launch_arguments(parser: argparse.ArgumentParser, *, default: str) -> None:
    """Add the options that spread a run over devices.

    Args:
        parser: parser of the command.
        default: what is done without `--launch`.
    """
    group = parser.add_argument_group("processes")
    group.add_argument(
        "--launch",
        metavar="NAME",
        help=f"{', '.join(launch_names())}, or a file that `accelerate config` has written (default: {default})",
    )
    group.add_argument(
        "--num_processes",
        type=positive,
        metavar="N",
        help="number of processes on all machines together (default: one for each visible GPU; with a file, its own)",
    )
    group.add_argument(
        "--num_machines", type=positive, metavar="N", help="number of machines that the processes run on"
    )
    group.add_argument("--machine_rank", type=int, metavar="N", help="number of this machine, from 0")
    group.add_argument("--main_process_ip", metavar="IP", help="address of the machine with number 0")
    group.add_argument("--main_process_port", type=int, metavar="N", help="port at which the processes meet")


def check_launch(name: str | None) -> None:
    """Check that a config of `accelerate launch` is one; a ValueError or OSError names it and those that there are."""
    if name is None:
        return
    path = find_launch(name)
    if path == name and not os.path.exists(name) and "." not in name and os.sep not in name:
        known = launch_names()
        raise ValueError(f"--launch is {name!r}: choose from {', '.join(known)}{did_you_mean(name, known)}, or a file")
    launch = read_yaml(path, name="--launch", example="accelerate_configs/zero2.yaml")
    if missing := [key for key in LAUNCH_KEYS if key not in launch]:
        raise ValueError(f"{path} is no config of accelerate: it has no {' and no '.join(missing)}")


def wants_launch(args: argparse.Namespace) -> bool:
    """Return whether an option of `add_launch_arguments` is given."""
    return any(getattr(args, option) is not None for option in ("launch", *HANDED_ON))


def check_not_launched(args: argparse.Namespace) -> None:
    """Refuse the options of `add_launch_arguments` where nothing is launched."""
    for option in ("launch", *HANDED_ON):
        if getattr(args, option) is not None:
            raise ValueError(f"--{option} is for a model: saved masks are scored by --num_workers processes")


def launch_script(script: str, words: Sequence[str], args: argparse.Namespace, asked: Asked, *, several: str) -> int:
    """Run a packaged script in the processes that the arguments ask for, and return its exit code.

    A single process takes the place of this one. A process that a launcher has started already runs the script itself.

    Args:
        script: path of the script, such as `recipes/sft.py`.
        words: the script's command line.
        args: arguments of `add_launch_arguments`.
        asked: what the command line asks of the script, for `use_cpu`.
        several: name of the config for several GPUs.
    """
    path = str(packaged_root() / script)
    if "LOCAL_RANK" in os.environ:
        os.execv(sys.executable, [sys.executable, path, *words])
    import torch  # here, because it takes seconds

    num_gpus = 0 if asked.get("use_cpu") else torch.cuda.device_count()
    name = args.launch or default_launch(num_gpus, several=several)
    if asked.get("dry_run") and name in ALONE:
        sys.argv = [path, *words]
        runpy.run_path(path, run_name="__main__")  # torch is here already
        return 0
    command = ["--config_file", find_launch(name)]
    for option in HANDED_ON:
        value = getattr(args, option)
        if option == "num_processes" and value is None and num_gpus and name in launch_names():
            value = num_gpus * (args.num_machines or 1)
        command += [] if value is None else [f"--{option}", str(value)]
    return _launch([*command, path, *words])


def default_launch(num_gpus: int, *, several: str) -> str:
    """Return the name of the packaged config for a number of visible GPUs."""
    return "cpu" if num_gpus == 0 else "single_gpu" if num_gpus == 1 else several


def _launch(words: Sequence[str]) -> int:
    from accelerate.commands import launch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    launch.simple_launcher = _become_script  # accelerate's own waits for a process to which it passes no signal on
    try:
        launch.launch_command(launch.launch_command_parser().parse_args(list(words)))
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def _become_script(args: argparse.Namespace) -> NoReturn:
    from accelerate.utils import prepare_simple_launcher_cmd_env

    command, environment = prepare_simple_launcher_cmd_env(args)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(command[0], command, environment)
