"""One run at a time into one output; no lock outlives the process that held it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aurora_rl.files.output_lock import OutputInUseError, hold, hold_output, lock_of

#: The child is waited for: until a process that is forked has run, it has the lock as its parent has.
HOLDER = """
import os, sys, time
from aurora_rl.files.output_lock import hold_output
with hold_output(sys.argv[1], is_folder=True):
    child_runs, end_of_child = os.pipe()
    if len(sys.argv) > 2 and not os.fork():
        if sys.argv[2] == "exec":
            os.execvp("sleep", ["sleep", "1000"])
        os.close(end_of_child)
        time.sleep(1000)
    os.close(end_of_child)
    os.read(child_runs, 1)
    print("held", flush=True)
    sys.stdin.read()
"""


def start_holder(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(folder), *options]
    # A session of its own, so that what it forks can be ended with it.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    process = start_holder(tmp_path / "out")
    with pytest.raises(OutputInUseError) as refused, hold_output(tmp_path / "out", is_folder=True):
        pass
    assert re.search(rf"process {process.pid} on \S+, started \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d", str(refused.value))
    assert str(tmp_path / "out") in str(refused.value)
    process.communicate("")
    with hold_output(tmp_path / "out", is_folder=True):
        pass
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("options", [(), ("sleep",), ("exec",)], ids=["alone", "with a forked child", "with a program"])
def test_no_lock_survives_a_killed_process(tmp_path: Path, options: tuple[str, ...]) -> None:
    process = start_holder(tmp_path, *options)
    try:
        process.kill()
        process.wait()
        with hold_output(tmp_path, is_folder=True):
            pass
    finally:
        if options:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_run_holds_its_own_output_twice_and_gives_it_back_once(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    with hold_output(file, is_folder=False):
        with hold_output(tmp_path / "." / "out.json", is_folder=False):
            pass
        with pytest.raises(OutputInUseError), hold(lock_of(file, is_folder=False), output=file):
            pass
    with hold(lock_of(file, is_folder=False), output=file):
        pass
    assert list(tmp_path.iterdir()) == []


def test_of_a_launched_run_the_main_process_holds_the_lock(tmp_path: Path) -> None:
    with hold_output(tmp_path, is_folder=True), hold_output(tmp_path, is_folder=True, is_main_process=False):
        pass
    process = start_holder(tmp_path)
    with hold_output(tmp_path, is_folder=True, is_main_process=False):
        pass
    process.communicate("")


def test_a_link_to_a_folder_is_that_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    process = start_holder(tmp_path / "folder")
    with pytest.raises(OutputInUseError), hold_output(tmp_path / "link", is_folder=True):
        pass
    process.communicate("")
