"""Runs Python programs from a process that has imported their libraries: importing torch and transformers takes longer
than most commands of the documentation do, and than the steps of a launched test.

    python tests/warm_interpreter.py SOCKET [MODULE ...]

`write_programs` makes executables for the front of PATH, and `warm_python` one that stands in for Python in a launch.
Each passes its arguments, folder, environment and open files to the process at SOCKET, which forks a child that goes
on as that program, and ends with its exit code; if it is killed, so is the child.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import importlib.metadata
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

#: What the programs would import first; anything else is imported as usual.
LIBRARIES = (
    "accelerate.commands.accelerate_cli",
    "aurora_rl.footprint.by_hand",
    "aurora_rl.evaluation.of_model",
    "aurora_rl.export.hub_folder",
    "aurora_rl.inference.pipeline",
    "aurora_rl.evaluation.of_saved_masks",
    "trl",
)
#: And what launched trainings import.
LAUNCHED = (
    *("accelerate.commands.launch", "aurora_rl.scripts.sft", "aurora_rl.scripts.grpo", "deepspeed"),
    *("aurora_rl.footprint.report", "aurora_rl.report.run_samples", "transformers.tokenization_mistral_common"),
    *(f"aurora_rl.models.mllm.{name}.model" for name in ("qwen2_5_omni", "qwen3_vl", "qwen3_omni", "gemma4_unified")),
)
CLIENT = """#!{python} -IS
import json, os, socket, sys

if sys.argv[1:2] and sys.argv[1][0] == "-" and sys.argv[1] not in ("-m", "-u"):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
addresses = {addresses!r}
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(addresses[int(os.environ.get("RANK", "0")) % len(addresses)])
    request = json.dumps({{"argv": sys.argv, "folder": os.getcwd(), "environment": dict(os.environ)}})
    socket.send_fds(connection, [b"\\n"], [0, 1, 2])
    connection.sendall(request.encode() + b"\\n")
    sys.exit(int(connection.makefile().read() or 1))
"""
ROOT = Path(__file__).resolve().parents[1]


def write_programs(folder: Path, addresses: Path | Iterable[Path], names: Iterable[str]) -> None:
    """Executables that run in the process at `addresses`: `python SCRIPT ...`, and commands that a package installs.

    Of several processes, a rank of a launch runs in the one of its number.
    """
    listed = [str(each) for each in ([addresses] if isinstance(addresses, Path) else addresses)]
    for name in names:
        (folder / name).write_text(CLIENT.format(python=sys.executable, addresses=listed))
        (folder / name).chmod(0o755)


@functools.cache
def warm_python() -> str:
    """An executable for `python -m accelerate.commands.launch ...` on CPUs; its processes live as long as this one.

    Ranks come from two processes with hash seeds of their own, so that sets have an order of their own in each.
    """
    folder = Path(tempfile.mkdtemp(prefix="warm-python-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    addresses = [folder / "1", folder / "2"]
    for address in addresses:
        command = [sys.executable, str(Path(__file__)), str(address), *LAUNCHED]
        environment = {**os.environ, **own, "PYTHONHASHSEED": address.name}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        atexit.register(process.kill)
    while not all(address.exists() for address in addresses):
        assert process.poll() is None
        time.sleep(0.1)
    write_programs(folder, addresses, ["python"])
    return str(folder / "python")


def main(address: str, libraries: Iterable[str]) -> Callable[[], object]:
    """Serve for ever; in a child, return the program to run."""
    import_all(libraries)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{address}.new")
        server.listen(64)
        os.rename(f"{address}.new", address)
        while True:
            connection, _ = server.accept()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if not os.fork():
                server.close()
                if program := attend(connection):
                    return program
                os._exit(0)
            connection.close()


def import_all(modules: Iterable[str]) -> None:
    """Import modules before a fork; what they made is left alone by its garbage collections, which would copy it."""
    for module in modules:
        importlib.import_module(module)
    if "deepspeed" in sys.modules:
        compile_nothing()
    gc.freeze()


def compile_nothing() -> None:
    """Do without an operator for inference on CPUs, which DeepSpeed would compile first, for a minute or more."""
    import deepspeed  # only here: importing it decides on an accelerator

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def attend(connection: socket.socket) -> Callable[[], object] | None:
    """Fork a program and send its exit code; kill it where nobody waits any more. In the child, return the program."""
    child = os.fork()
    if not child:
        return become_program(connection)
    ended = status = 0
    while not ended:
        ended, status = os.waitpid(child, os.WNOHANG)
        if not ended and is_closed(connection):
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    with contextlib.suppress(OSError):
        connection.sendall(str(os.waitstatus_to_exitcode(status) % 256).encode())
    return None


def is_closed(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def become_program(connection: socket.socket) -> Callable[[], object]:
    """Take over what the caller would have: arguments, folder, environment, open files."""
    with connection:
        _, files, _, _ = socket.recv_fds(connection, 1, 3)
        request = json.loads(connection.makefile().readline())
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    program, *arguments = request["argv"]
    if os.path.basename(program) != "python":
        sys.argv = [program, *arguments]
        (command,) = importlib.metadata.entry_points(group="console_scripts", name=os.path.basename(program))
        return lambda: sys.exit(command.load()())
    if os.path.isabs(program):
        sys.executable = program  # a launcher starts its ranks by it
    sys.argv = arguments = arguments[arguments[0] == "-u" :]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, os.getcwd())
        return lambda: runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
    return lambda: runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder, where no program looks
    main(sys.argv[1], sys.argv[2:] or LIBRARIES)()
