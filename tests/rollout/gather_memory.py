"""Run by `accelerate launch` under ZeRO-3: how much memory a weight sync takes, ours and TRL's.

Prints one JSON line a process: bytes of the language model, and by how much the process grew at its peak while it
went through all weights, by `engine_weights` and by TRL's `VLLMGeneration._iter_named_params`.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from peft import get_peft_model
from trl.distributed import DistributedBackend
from trl.generation.vllm_generation import VLLMGeneration

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.assembly.model import peft_config
from aurora_rl.models.loading import LoadedModel
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from aurora_rl.models.mllm.qwen2_5_omni.tiny import TinyOmniConfig, build_tiny_omni
from aurora_rl.rollout.weights import engine_weights


class TRLsWay(VLLMGeneration):
    """TRL's iterator without its engine."""

    def _init_vllm(self) -> None:
        pass


def memory(name: str) -> int:
    """A line of /proc/self/status in bytes: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def peak_growth(weights: Iterator[tuple[str, torch.Tensor]]) -> int:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = memory("VmRSS")
    for _ in weights:
        pass
    return memory("VmHWM") - before


def main(hidden_size: int, num_layers: int) -> None:
    PartialState(backend="gloo")
    sizes = TinyOmniConfig(hidden_size=hidden_size, num_layers=num_layers, num_heads=hidden_size // 64)
    model, processor = build_tiny_omni(["the drum"], {"type": "dot", "image_size": 32, "width": 8}, sizes)
    loaded = LoadedModel(model, processor, Qwen2_5OmniFamily())
    policy = get_peft_model(model, peft_config(ModelArguments(model="", use_peft=True), loaded))
    accelerator = Accelerator()  # only now: what is built under ZeRO-3 is sharded at once
    accelerator.state.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    engine, _ = accelerator.prepare(policy, torch.optim.SGD(trained, lr=0.0))
    policy = accelerator.unwrap_model(engine)
    gather = DistributedBackend(accelerator).gather_params
    whole = sum(p.ds_numel * p.element_size() for n, p in policy.named_parameters() if ".layers." in n)
    ours = peak_growth(engine_weights(policy, loaded.family, towers=False, gather=gather))
    trls = peak_growth(TRLsWay(policy, accelerator, processor)._iter_named_params())
    print("\n" + json.dumps({"whole": whole, "ours": ours, "trls": trls}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
