"""The launch of a run: its processes, and the sharding on which their memory depends."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any, Self

import yaml
from accelerate.utils import DistributedType
from transformers import TrainingArguments

from aurora_rl.files.plain import read_text_file

#: Elements of DeepSpeed's buffer for reducing gradients, if its config does not set them.
REDUCE_BUCKET_SIZE = 500_000_000


@dataclasses.dataclass(frozen=True)
class Launch:
    """The processes of a run, and how weights are divided over them.

    Attributes:
        num_processes: number of processes, on all machines together.
        zero_stage: 0 without sharding, 1 optimiser state, 2 and gradients, 3 and weights; FSDP counts as 3.
        is_deepspeed: whether DeepSpeed keeps its float32 copies and its reduce buffer.
        offloads_optimizer: whether the optimiser state is in host memory.
        offloads_parameters: whether sharded weights are in host memory.
        reduce_bucket_size: elements of DeepSpeed's reduce buffer.
        is_gpu: whether the device is a GPU, where TRL's kernels run on Triton.
        num_machines: number of machines.
    """

    num_processes: int = 1
    zero_stage: int = 0
    is_deepspeed: bool = False
    offloads_optimizer: bool = False
    offloads_parameters: bool = False
    reduce_bucket_size: int = REDUCE_BUCKET_SIZE
    is_gpu: bool = True
    num_machines: int = 1

    @property
    def local_processes(self) -> int:
        """Number of processes that share a machine's memory."""
        return math.ceil(self.num_processes / self.num_machines)

    @classmethod
    def of(cls, args: TrainingArguments) -> Self:
        """Read how the current process has been launched."""
        state, plugin = args.distributed_state, args.deepspeed_plugin
        common: dict[str, Any] = {"num_processes": state.num_processes, "is_gpu": args.device.type == "cuda"}
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
        common["num_machines"] = math.ceil(state.num_processes / local_processes)
        if plugin is not None:
            return cls(**common, **_deepspeed_fields(plugin.deepspeed_config["zero_optimization"]))
        is_fsdp = state.distributed_type == DistributedType.FSDP or os.environ.get("ACCELERATE_USE_FSDP") == "true"
        return cls(**common, zero_stage=3 if is_fsdp else 0)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read how an accelerate config file would launch a run."""
        config = yaml.safe_load(read_text_file(path))
        common: dict[str, Any] = {"num_processes": config["num_processes"], "is_gpu": not config["use_cpu"]}
        common["num_machines"] = config.get("num_machines", 1)
        if "deepspeed_config" in config:
            fields = config["deepspeed_config"]
            zero: dict[str, Any] = {"stage": fields["zero_stage"]}
            for kind in ("optimizer", "param"):
                zero[f"offload_{kind}"] = {"device": fields.get(f"offload_{kind}_device", "none")}
            return cls(**common, **_deepspeed_fields(zero))
        fsdp = config.get("fsdp_config") or {}
        offloads = bool(fsdp.get("fsdp_offload_params"))
        return cls(**common, zero_stage=3 if fsdp else 0, offloads_optimizer=offloads, offloads_parameters=offloads)

    def __str__(self) -> str:
        kind = f"{'ZeRO' if self.is_deepspeed else 'FSDP, as ZeRO'}-{self.zero_stage}" if self.zero_stage else "whole"
        places = [what for what in ("optimizer", "parameters") if getattr(self, f"offloads_{what}")]
        offload = f", {' and '.join(places)} in host memory" if places else ""
        machines = f" on {self.num_machines} machines" if self.num_machines > 1 else ""
        return f"{self.num_processes} process{'es' * (self.num_processes > 1)}{machines}, {kind}{offload}"


def _deepspeed_fields(zero: dict[str, Any]) -> dict[str, Any]:
    """Read fields of a `Launch` from DeepSpeed's `zero_optimization`."""

    def offloads(kind: str) -> bool:
        return (zero.get(f"offload_{kind}") or {}).get("device", "none") != "none"

    size = zero.get("reduce_bucket_size", REDUCE_BUCKET_SIZE)
    return {
        "is_deepspeed": True,
        "zero_stage": int(zero["stage"]),
        "offloads_optimizer": offloads("optimizer"),
        "offloads_parameters": offloads("param"),
        "reduce_bucket_size": REDUCE_BUCKET_SIZE if size == "auto" else int(size),
    }
