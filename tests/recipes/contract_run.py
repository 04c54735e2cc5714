"""What test_contract.py starts by `accelerate launch`, as the recipes say: a lane that runs one script after the other.

python tests/recipes/contract_run.py FOLDER

FOLDER/N.json says what comes next: {script, arguments, port, log, ...}. Every rank runs it in a process of its own,
forked where everything is imported, because most of a short run is imports, and leaves its exit code in
FOLDER/N.<rank>. FOLDER/stop ends the lane.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import transformers.training_args
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import TrainerCallback
from trl import TrlParser

from aurora_rl.models.heads.segmenters.sam import SamSegmenter
from aurora_rl.models.heads.segmenters.sam_shared import decode_prompts
from aurora_rl.scripts import grpo, sft
from aurora_rl.trainers import eval_answers
from tests.warm_interpreter import LAUNCHED, import_all

PARTS = ("visual", "audio_tower", "lora_", "seg_head", "lm_head", "embed_tokens")


class Built(Exception):
    """Everything is put together; the run was to go no further."""


class Recorder(TrainerCallback):
    """Leaves contract.json: which dtypes the groups of parameters and buffers have after a step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not args.should_save:
            return
        model, groups = self.trainer.model, {}
        for name, parameter in model.named_parameters():
            note(groups, part_of(name) + (" trained" if parameter.requires_grad else " frozen"), parameter)
        for name, buffer in model.named_buffers():
            note(groups, part_of(name) + " buffers", buffer)
        for master in masters(self.trainer.optimizer):
            note(groups, "masters", master)
        rotary = {name: b.flatten()[:8].tolist() for name, b in model.named_buffers() if name.endswith("inv_freq")}
        Path(args.output_dir, "contract.json").write_text(json.dumps({"dtypes": groups, "rotary": rotary}))


def part_of(name: str) -> str:
    return next((part.strip("_") for part in PARTS if part in name), "language_model")


def note(groups: dict[str, list[str]], group: str, tensor: torch.Tensor) -> None:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_floating_point() and dtype not in groups.setdefault(group, []):
        groups[group].append(dtype)


def masters(optimizer: Any) -> Iterable[torch.Tensor]:
    """The weights that steps are added to: DeepSpeed's copies, otherwise the parameters themselves."""
    while hasattr(optimizer, "optimizer"):
        for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):  # ZeRO-2, ZeRO-3
            if hasattr(optimizer, name):
                return getattr(optimizer, name)
        optimizer = optimizer.optimizer
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def watched(trainer_class: type, *, build_only: bool) -> type:
    """The trainer, which also records what the contract asks for."""

    class Watched(trainer_class):  # type: ignore[misc, valid-type]
        def train(self, *args: Any, **kwargs: Any) -> Any:
            if build_only:
                raise Built
            self.add_callback(Recorder(self))
            return super().train(*args, **kwargs)

    return Watched


def pretend_devices() -> None:
    """Say that the device knows bf16, and where FSDP is asked for, that it is an accelerator.

    transformers would refuse bf16 without `use_cpu`, which switches DeepSpeed off in silence; accelerate turns FSDP on
    for accelerators only, though PyTorch's runs on CPUs as well.
    """
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    if os.environ.get("ACCELERATE_USE_FSDP") != "true":
        return
    parse = TrlParser.parse_args_and_config

    def parse_and_pretend(*args: Any, **kwargs: Any) -> Any:
        parsed = parse(*args, **kwargs)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        return parsed

    TrlParser.parse_args_and_config = parse_and_pretend


def decode_by_uncast_buffers(self: SamSegmenter, frame_inputs: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """The fault that the contract must see: float32 buffers meet whatever dtype the decoder has."""
    image_embeddings = frame_inputs + self.no_mask_embed.float()
    return decode_prompts(self.mask_decoder, image_embeddings, self.image_positional_embeddings.float(), prompts)


def die_after(target: str) -> None:
    """Let a function `module:Class.method` be the last thing that the process does."""
    module, _, path = target.partition(":")
    class_name, method = path.split(".")
    owner = getattr(importlib.import_module(module), class_name)
    original: Callable[..., Any] = getattr(owner, method)

    def last(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, method, last)


def run(job: dict[str, Any]) -> None:
    """Run a script as `python script arguments` would."""
    pretend_devices()
    eval_answers.MAX_TOKENS = 16  # of the answers that an SFT shows at each evaluation
    for module, name in ((sft, "AuroraSFTTrainer"), (grpo, "AuroraGRPOTrainer")):
        setattr(module, name, watched(getattr(module, name), build_only=job.get("build_only", False)))
    if job.get("killed_after"):
        die_after(job["killed_after"])
    if job.get("uncast_buffers"):
        SamSegmenter.decode = decode_by_uncast_buffers
    sys.argv = [job["script"], *job["arguments"]]
    try:
        runpy.run_path(job["script"], run_name="__main__")
    except Built:
        print("built")


def start(job: dict[str, Any], rank: int) -> int:
    """Fork a process for a job; returns its id."""
    if child := os.fork():
        return child
    log = os.open(f"{job['log']}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # torchrun's own meeting point serves one group of processes only.
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": str(job["port"])}
    code = 0
    try:
        run(job)
    except BaseException as error:
        traceback.print_exc()
        code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is written; an ordinary exit was seen to abort in a library's thread


def serve(folder: Path) -> None:
    """Run the jobs as they come, in step with the other ranks."""
    import_all([*LAUNCHED, "aurora_rl.scripts.collect_mistakes", "aurora_rl.scripts.evaluate"])
    rank, number = int(os.environ.get("RANK", "0")), 0
    while not (folder / "stop").exists():
        if not (folder / f"{number}.json").exists():
            time.sleep(0.02)
            continue
        child = start(json.loads((folder / f"{number}.json").read_text()), rank)
        code = wait_for(child, folder, number)
        (folder / f"{number}.{rank}").write_text(str(code))
        number += 1


def wait_for(child: int, folder: Path, number: int) -> int:
    """The exit code of a job's process, which is killed when another rank's has failed: it would wait for ever."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if any(path.read_text() not in ("", "0") for path in folder.glob(f"{number}.[0-9]")):
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    serve(Path(sys.argv[1]))
