"""Run the stages of a file: a complete stage is checked and skipped, an interrupted one is resumed.

python recipes/run_stages.py --config recipes/synthetic/demo.yaml --until report  (`make demo`)
python recipes/run_stages.py --config recipes/synthetic/stages.yaml --jobs 2      (`make demo-full`)
python recipes/run_stages.py --config recipes/ref_avs/stages_7b.yaml

Each stage is a command that a user could type. Its output is written to <output_dir>/logs/<stage>.log. Ctrl-C, SIGTERM
or a closed terminal stops the running stages, which write a checkpoint; the same command resumes from it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import psutil

from aurora_rl.assembly.options import OptionParser
from aurora_rl.files.atomic import write_whole
from aurora_rl.files.fingerprint import fingerprint_content
from aurora_rl.files.output_lock import OutputInUseError, hold
from aurora_rl.scripts.stage_plan import Plan, PlanError, Stage, read_plan

FAILED, UNUSABLE = 1, 2  # exit codes; a stopped run exits with 128 + the signal, as in a shell
LOG_LINES_SHOWN = 30


class Records:
    """Records of the stages: one JSON file each, in <output_dir>/stages."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.folder = plan.output_dir / "stages"

    def problem(self, stage: Stage) -> str | None:
        """Return why a stage is not complete; None if it is."""
        record = self._read(stage.name)
        if record is None or "outputs" not in record:
            return "not run yet" if record is None else "was interrupted"
        for name, digest in record["outputs"].items():
            path = stage.folder / name
            if not path.is_file():
                return f"{path} is gone"
            if fingerprint_content(path) != digest:
                return f"{path} is not the file that the stage wrote"
        return None

    def check_identity(self, stage: Stage) -> None:
        """Check that no other command, config or earlier stage has filled the stage's folder.

        Raises:
            PlanError: if one has; the error says what to do.
        """
        record = self._read(stage.name)
        if record is not None and record["digest"] != self.plan.digest(stage.name):
            raise PlanError(
                f"stage {stage.name} was run with another command or config, or on other inputs: run it again with "
                f"--redo {stage.name}, which deletes {stage.folder}, or choose another --output_dir. It was\n"
                f"  {shlex.join(record['command'])}\nand is now\n  {shlex.join(stage.command[1:])}"
            )

    def check_inputs(self, stage: Stage) -> None:
        """Check that the outputs which a complete or interrupted stage has read have not changed since.

        Raises:
            PlanError: if one has; the error says what to do.
        """
        record = self._read(stage.name)
        if record is None:
            return
        changed = [name for name, outputs in self._inputs(stage).items() if record["inputs"].get(name) != outputs]
        if changed:
            raise PlanError(
                f"stage {stage.name} was run on other outputs of {', '.join(changed)} than are there now: run it again "
                f"with --redo {stage.name}, which deletes {stage.folder}"
            )

    def was_started(self, stage: Stage) -> bool:
        return self._read(stage.name) is not None

    def start(self, stage: Stage, *, resumes: bool) -> None:
        """Record that the stage's folder belongs to this command and these inputs."""
        spent = {name: self._spent(stage.name, name) if resumes else 0.0 for name in ("seconds", "cpu_seconds")}
        self._write(stage, {"inputs": self._inputs(stage), **spent})

    def spend(self, stage: Stage, seconds: float, cpu_seconds: float) -> None:
        """Add the time of a run of the stage, whether it succeeded or not."""
        record = self._read(stage.name) or {}
        more = {"seconds": seconds, "cpu_seconds": cpu_seconds}
        spent = {name: round(self._spent(stage.name, name) + value, 3) for name, value in more.items()}
        self._write(stage, {**record, **spent})

    def complete(self, stage: Stage) -> None:
        """Record that the stage is complete, with the hashes of its outputs.

        Raises:
            PlanError: if an output is missing.
        """
        missing = [name for name in stage.outputs if not (stage.folder / name).is_file()]
        if missing:
            raise PlanError(f"stage {stage.name} ended well but did not write {missing}")
        digests = {name: fingerprint_content(stage.folder / name) for name in stage.outputs}
        self._write(stage, {**(self._read(stage.name) or {}), "outputs": digests})

    def forget(self, name: str) -> None:
        """Delete the record of a stage, so that it runs again."""
        (self.folder / f"{name}.json").unlink(missing_ok=True)

    def cpu_seconds(self) -> float:
        """Sum the processor time of all runs of the plan's stages."""
        return sum(self._spent(name, "cpu_seconds") for name in self.plan.stages)

    @contextlib.contextmanager
    def lock(self, stage: Stage) -> Iterator[int | None]:
        """Lock the stage's folder; the lock is held as long as any process has the yielded file descriptor open.

        Raises:
            PlanError: if another process holds it.
        """
        with contextlib.ExitStack() as stack:
            try:
                descriptor = stack.enter_context(hold(self.folder / f"{stage.name}.lock", output=stage.folder))
            except OutputInUseError as error:
                raise PlanError(
                    f"stage {stage.name} is still running, started by another run_stages.py or by one that was killed "
                    f"({error})"
                ) from None
            yield descriptor

    def _inputs(self, stage: Stage) -> dict[str, dict[str, str]]:
        return {name: (self._read(name) or {}).get("outputs", {}) for name in stage.needs}

    def _spent(self, name: str, unit: str) -> float:
        return float((self._read(name) or {}).get(unit, 0.0))

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def _write(self, stage: Stage, more: dict[str, Any]) -> None:
        record = {**more, "digest": self.plan.digest(stage.name), "command": list(stage.command[1:])}
        write_whole(self.folder / f"{stage.name}.json", json.dumps(record, indent=2) + "\n")


class StageFailedError(Exception):
    """A stage's command ended with an error."""


class Runner:
    """Runs the stages that are not complete, up to `jobs` at a time.

    Args:
        plan: stages to run.
        jobs: number of stages that run at a time; each gets its share of the cores for its CPU work.
    """

    def __init__(self, plan: Plan, *, jobs: int) -> None:
        self.plan = plan
        self.records = Records(plan)
        self.jobs = jobs
        self.stopped_by: int | None = None
        self._failure: BaseException | None = None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def run(self) -> None:
        """Run all stages.

        Raises:
            PlanError: if a folder belongs to another command; nothing is run then.
            StageFailedError: if a stage failed; those that ran at the same time have ended.
        """
        for stage in self.plan.stages.values():
            self.records.check_identity(stage)
        graph = self.plan.graph()
        graph.prepare()
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            running: dict[concurrent.futures.Future[None], str] = {}
            while graph.is_active():
                if self._may_start_more:
                    for name in graph.get_ready():
                        running[pool.submit(self._run_if_needed, self.plan.stages[name])] = name
                if not running:
                    break
                done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    graph.done(running.pop(future))
        if self._failure is not None and self.stopped_by is None:
            raise self._failure

    @property
    def _may_start_more(self) -> bool:
        return self._failure is None and self.stopped_by is None

    def stop(self, signal_number: int) -> None:
        """Ask the running stages to write a checkpoint and end; no more stages are started."""
        self.stopped_by = signal_number
        with self._lock:
            for process in self._processes.values():
                with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                    for recipe in _recipes_of(process.pid):
                        recipe.terminate()

    def _run_if_needed(self, stage: Stage) -> None:
        if not self._may_start_more:  # another stage failed while this one waited
            return
        try:
            self._run_unless_complete(stage)
        except Exception as error:
            self._failure = self._failure or error  # here, before this thread takes the next stage

    def _run_unless_complete(self, stage: Stage) -> None:
        self.records.check_inputs(stage)
        problem = self.records.problem(stage)
        if problem is None:
            say(f"{stage.name}: complete")
            return
        resumes = stage.resumable and self.records.was_started(stage) and any(stage.folder.glob("checkpoint-*"))
        say(f"{stage.name}: {problem}, {'resumes from its last checkpoint' if resumes else 'starts'}")
        start = time.perf_counter()
        with self.records.lock(stage) as lock:
            self.records.start(stage, resumes=resumes)
            self._execute(stage, [*stage.command, *(["--resume_from_checkpoint", "true"] if resumes else [])], lock)
            self.records.complete(stage)
        say(f"{stage.name}: done in {(time.perf_counter() - start) / 60:.1f} min")

    def _execute(self, stage: Stage, command: Sequence[str], lock: int | None) -> None:
        """Run a command to its end; if this process is killed, the command's process still holds the lock."""
        log = self.plan.output_dir / "logs" / f"{stage.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        stage.folder.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        with log.open("ab") as file:
            file.write(f"\n=== {shlex.join(command)}\n".encode())
            file.flush()
            with self._lock:
                threads = max(1, len(os.sched_getaffinity(0)) // self.jobs)  # a stage's share of the cores
                process = subprocess.Popen(
                    command,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={"OMP_NUM_THREADS": str(threads), **os.environ} if self.jobs > 1 else dict(os.environ),
                    pass_fds=[] if lock is None else [lock],
                    start_new_session=True,  # Ctrl-C reaches only this process, which asks the stages to stop
                )
                self._processes[stage.name] = process
            _, status, usage = os.wait4(process.pid, 0)  # includes the time of its child processes
            with self._lock:
                process.returncode = code = os.waitstatus_to_exitcode(status)
                del self._processes[stage.name]
        self.records.spend(stage, time.perf_counter() - start, usage.ru_utime + usage.ru_stime)
        if code:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:])
            raise StageFailedError(f"stage {stage.name} failed with exit code {code}; the end of {log}:\n{tail}")


def _recipes_of(pid: int) -> list[psutil.Process]:
    """List the processes to signal: `accelerate launch` of a single process does not pass signals on to it."""
    process = psutil.Process(pid)
    is_launcher = "accelerate.commands.launch" in process.cmdline()
    return (process.children() if is_launcher else []) or [process]


def say(text: str) -> None:
    """Print a line with the time of day."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def redo(plan: Plan, names: Sequence[str]) -> None:
    """Delete the folders of stages and of all stages that need them.

    Raises:
        PlanError: if there is no stage of a name.
    """
    plan.check_names(names)
    gone = set(names)
    for name in plan.stages:  # every stage comes after those it needs
        if gone & set(plan.stages[name].needs):
            gone.add(name)
    records = Records(plan)
    for name in gone:
        if plan.stages[name].folder.exists():
            say(f"{name}: deleted, to be run again")
        records.forget(name)
        shutil.rmtree(plan.stages[name].folder, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = OptionParser(description=__doc__)
    add_arguments(parser)
    return run_file(parser.parse_args(argv))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a file of stages."""
    parser.add_argument("--config", required=True, help="YAML file that names the stages")
    parser.add_argument("--output_dir", help="folder of the stages' outputs (default: what the YAML file says)")
    parser.add_argument("--jobs", type=int, default=1, help="number of stages that run at the same time")
    parser.add_argument("--until", nargs="+", metavar="STAGE", help="stages to run, with what they need and no others")
    parser.add_argument(
        "--redo",
        nargs="+",
        default=[],
        metavar="STAGE",
        help="stages whose outputs are deleted, with what follows from them, and made again",
    )
    parser.add_argument(
        "--launch", metavar="FILE", help="config of `accelerate launch`, or a packaged one's name (default: the file's)"
    )
    parser.add_argument("--list", action="store_true", help="print the stages and their commands, and run nothing")


def run_file(args: argparse.Namespace, *, program: str = "run_stages") -> int:
    """Run a file of stages and return the exit code; errors name the program."""
    try:
        plan = read_plan(args.config, output_dir=args.output_dir, launch=args.launch)
        if args.list:
            print("\n".join(f"{stage.name}: {shlex.join(stage.command[1:])}" for stage in plan.stages.values()))
            return 0
        redo(plan, args.redo)
        return _run(Runner(plan if args.until is None else plan.until(args.until), jobs=args.jobs))
    except PlanError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return UNUSABLE
    except StageFailedError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return FAILED


def _run(runner: Runner) -> int:
    previous = {
        number: signal.signal(number, lambda received, _frame: runner.stop(received))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        runner.run()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    say(f"the stages took {runner.records.cpu_seconds() / 60:.0f} minutes of processor time")
    if runner.stopped_by is not None:
        return 128 + runner.stopped_by
    for path in runner.plan.final_outputs():
        say(f"see {path}")
    return 0
