"""`kill -9` in the middle of a run, ten times, from a process that has imported everything: imports take seconds."""

import json
import multiprocessing
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aurora_rl.scripts.generate_cot import main

KILLS = 10
ROWS = 240
#: The tool, and what its client imports with the first request.
IMPORTS = ["aurora_rl.scripts.generate_cot", "openai.resources.chat", "anyio._backends._asyncio"]
#: Rows that get no chain whatever happens, so that failures are part of what must be equal.
HOPELESS = (30, 31, 200)


def plan(row: int, attempt: int) -> str:
    if row in HOPELESS:
        return "wrong category"
    return {3: "500", 5: "drop", 7: "wrong category"}.get(row % 10, "good") if attempt == 1 else "good"


@pytest.fixture(scope="module")
def start() -> Callable[[list[str]], multiprocessing.Process]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)

    def start_process(options: list[str]) -> multiprocessing.Process:
        process = context.Process(target=main, args=(options,))
        process.start()
        return process

    return start_process


def finished_rows(path: Path) -> set[int]:
    """Rows whose record is whole; a kill may tear the last one."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return {json.loads(line)["row"] for line in lines if line.endswith(b"\n")}


def kill_when(process: multiprocessing.Process, out: Path, *, num_finished: int) -> set[int]:
    """SIGKILL as soon as so many rows are finished; the rows that are."""
    give_up = time.monotonic() + 240
    while len(finished_rows(out)) < num_finished:
        assert process.is_alive() and time.monotonic() < give_up, "the run ended, or hangs, before it could be killed"
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return finished_rows(out)


@pytest.mark.timeout(280)
def test_after_ten_kills_the_files_are_those_of_an_unbroken_run_and_no_finished_row_was_asked_again(
    make_rows, start_endpoint, run_options, start, tmp_path
):
    outs = {name: tmp_path / name / "chains.jsonl" for name in ("unbroken", "killed")}
    endpoints = {name: start_endpoint() for name in outs}
    options = {
        name: run_options(make_rows(ROWS), endpoints[name].url, output=out, concurrency=8, max_attempts=3)
        for name, out in outs.items()
    }
    for endpoint in endpoints.values():
        endpoint.plan, endpoint.delay_s = plan, 0.01
    start(options["unbroken"]).join()

    log = endpoints["killed"].log
    finished_before = []  # (number of requests, rows finished by then), after each kill
    for kill in range(1, KILLS + 1):
        finished = kill_when(start(options["killed"]), outs["killed"], num_finished=kill * ROWS // (KILLS + 4))
        time.sleep(0.2)  # the endpoint may still read what the dead had sent
        finished_before.append((len(log), finished))
    start(options["killed"]).join()

    for num_requests, finished in finished_before:
        assert finished and not finished & {request.row for request in log[num_requests:]}
    assert len(finished_rows(outs["killed"])) == ROWS - len(HOPELESS)
    for kind in ("chains.jsonl", "chains.failures.jsonl"):
        unbroken, killed = (out.with_name(kind).read_bytes() for out in outs.values())
        assert killed == unbroken
