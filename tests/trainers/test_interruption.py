"""What SIGTERM does to a process that trains, to its children, and to one that waits for a rank that is gone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aurora_rl.trainers.interruption import TerminationSignal

ROOT = Path(__file__).resolve().parents[2]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_signal_sets_a_flag_and_the_handler_before_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with TerminationSignal(600) as termination:
        assert not termination.is_received
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: termination.is_received)
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_the_countdown_ends_where_the_signal_has_been_seen_and_a_second_signal_starts_none():
    with TerminationSignal(600) as termination:
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: termination._countdown is not None)
        countdown = termination._countdown
        termination.acknowledge(None)
        wait_until(lambda: not countdown.is_alive())
        os.kill(os.getpid(), signal.SIGTERM)
        termination._receive()  # what the thread does, now or a moment later
        assert termination._countdown is None
        termination.acknowledge(600)
        assert termination._countdown.is_alive()


@pytest.mark.parametrize("is_protected", [True, False])
def test_a_forked_child_dies_of_its_own_signal_alone(is_protected: bool, monkeypatch: pytest.MonkeyPatch):
    """A pool ends its workers by SIGTERM; the unprotected control takes it for the parent's and does not die of it."""
    if not is_protected:
        monkeypatch.setattr(os, "register_at_fork", lambda **_: None)
    with TerminationSignal(600) as termination:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) == is_protected
        if not is_protected:
            wait_until(lambda: termination.is_received)
        time.sleep(0.2)  # for the thread, which in a run that is right has nothing to do
        assert termination.is_received != is_protected


#: Rank 0 waits for rank 1, which never comes: `python -c BLOCKED <rank> <rendezvous file> <what SIGTERM does>`.
BLOCKED = """
import contextlib, os, signal, sys
import torch
import torch.distributed as dist

rank, rendezvous, kind = sys.argv[1:]
if rank == "0" and kind == "thread":
    from aurora_rl.trainers.interruption import TerminationSignal
    protection = TerminationSignal(1.0)
else:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    protection = contextlib.nullcontext()
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=2)
with protection:
    print("ready", flush=True)
    dist.all_reduce(torch.ones(1)) if rank == "0" else sys.stdin.read()
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", ["thread", "handler"])
def test_a_rank_in_a_collective_that_never_ends_is_ended_by_the_signal(kind: str, tmp_path: Path):
    """By the thread; a handler in Python, the control, is never run."""
    command = [sys.executable, "-c", BLOCKED]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "file"), kind], **pipes, text=True, env=environment)
        for rank in range(2)
    ]
    try:
        assert [rank.stdout.readline() for rank in ranks] == ["ready\n"] * 2
        time.sleep(1)  # rank 0 is in the collective
        ranks[0].send_signal(signal.SIGTERM)
        if kind == "thread":
            assert ranks[0].wait(timeout=240) == 143
            assert "no step ended on all ranks within 1 s" in ranks[0].stderr.read()
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                ranks[0].wait(timeout=5)
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
