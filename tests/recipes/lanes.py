"""Processes under an accelerate config that run one script of the repo after the other."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.recipes.shipped import ROOT

#: Accelerate configs, in the order in which they are driven.
LANES = ("zero2", "zero3", "fsdp2", "multi_gpu", "cpu")


class Lane:
    """Processes under one accelerate config that run one script after the other (contract_run.py)."""

    def __init__(self, config: str, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.ranks = 1 if config == "cpu" else 2
        self.number = 0
        command = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            f"accelerate_configs/{config}.yaml",
        ]
        command += [] if config == "cpu" else ["--num_processes", "2", "--main_process_port", "0"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment["DS_ACCELERATOR"] = "cpu"
        self.log = (folder / "launcher.log").open("w+")
        script = ["tests/recipes/contract_run.py", str(folder)]
        self.process = subprocess.Popen(
            [*command, *script], cwd=ROOT, env=environment, stdout=self.log, stderr=self.log
        )

    def run(self, script: str, arguments: list[str], **options: Any) -> tuple[bool, str]:
        """Run a script; whether it went well in every process, and what they said."""
        number, self.number = self.number, self.number + 1
        log = str(self.folder / f"{number}.log")
        job = {"script": script, "arguments": arguments, "port": free_port(), "log": log, **options}
        (self.folder / "next").write_text(json.dumps(job))
        (self.folder / "next").rename(self.folder / f"{number}.json")
        codes = [self._code(self.folder / f"{number}.{rank}") for rank in range(self.ranks)]
        said = "".join(Path(f"{log}.{rank}").read_text(errors="replace")[-6000:] for rank in range(self.ranks))
        return not any(codes), said

    def _code(self, path: Path) -> int:
        while not path.exists() or not path.read_text():
            if self.process.poll() is not None:
                self.log.seek(0)
                raise AssertionError(f"the lane {self.config} has ended:\n{self.log.read()[-10000:]}")
            time.sleep(0.02)
        return int(path.read_text())

    def close(self) -> None:
        (self.folder / "stop").touch()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=600)
        self.process.kill()
        self.log.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
