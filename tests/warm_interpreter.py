"""Runs Python programs from a process that has imported their libraries: importing torch and transformers takes longer
than most commands of the documentation do.

    python tests/warm_interpreter.py SOCKET

`write_programs` makes executables for the front of PATH. Each passes its arguments, folder, environment and open files
to the process at SOCKET, which forks a child that goes on as that program, and ends with its exit code. One program at
a time: two in a pipe would wait for each other.
"""

import importlib
import importlib.metadata
import json
import os
import runpy
import socket
import sys
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
CLIENT = """#!{python} -IS
import json, os, socket, sys

with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({address!r})
    request = json.dumps({{"argv": sys.argv, "folder": os.getcwd(), "environment": dict(os.environ)}})
    socket.send_fds(connection, [b"\\n"], [0, 1, 2])
    connection.sendall(request.encode())
    connection.shutdown(socket.SHUT_WR)
    sys.exit(int(connection.makefile().read() or 1))
"""


def write_programs(folder: Path, address: Path, names: Iterable[str]) -> None:
    """Executables that run in the process at `address`: `python SCRIPT ...`, and commands that a package installs."""
    for name in names:
        (folder / name).write_text(CLIENT.format(python=sys.executable, address=str(address)))
        (folder / name).chmod(0o755)


def main(address: str) -> Callable[[], object]:
    """Serve for ever; in a child, return the program to run."""
    for library in LIBRARIES:
        importlib.import_module(library)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        while True:
            connection, _ = server.accept()
            child = os.fork()
            if not child:
                server.close()
                return become_program(connection)
            with connection:
                _, status = os.waitpid(child, 0)
                connection.sendall(str(os.waitstatus_to_exitcode(status) % 256).encode())


def become_program(connection: socket.socket) -> Callable[[], object]:
    """Take over what the caller would have: arguments, folder, environment, open files."""
    with connection:
        _, files, _, _ = socket.recv_fds(connection, 1, 3)
        request = json.loads(connection.makefile().read())
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    program, *arguments = request["argv"]
    name = os.path.basename(program)
    if name == "python":
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
        return lambda: runpy.run_path(arguments[0], run_name="__main__")
    sys.argv = [program, *arguments]
    (command,) = importlib.metadata.entry_points(group="console_scripts", name=name)
    return lambda: sys.exit(command.load()())


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder, where no program looks
    main(sys.argv[1])()
