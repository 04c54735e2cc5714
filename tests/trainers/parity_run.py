"""What `accelerate launch` starts for test_processes.py: recipes one after the other, on rollouts known beforehand.

python tests/trainers/parity_run.py jobs.json

jobs.json lists jobs [recipe, options, port].

A random model never writes a `[SEG]`, and two processes would sample other completions than one, so GRPO's completions
are replayed. Each job has a process of its own, forked where everything is imported: most of a short run is imports.
"""

import dataclasses
import importlib
import json
import os
import re
import sys
import typing
from pathlib import Path
from typing import Any

import torch
import transformers.training_args
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch import nn
from trl import TrlParser

from aurora_rl.data.sample import AVSample
from aurora_rl.models import packed_attention
from aurora_rl.models.encoding import EncodedSample
from aurora_rl.models.grounding import segmentation_model
from aurora_rl.trainers import eval_answers
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.sft import AuroraSFTTrainer
from tests.trainers.calling import call


@dataclasses.dataclass
class FaultArguments:
    """What to break: `local_masks`, so that a test can show that it would be seen; `kernel`, `dead_groups` and `calls`,
    which a run overcomes.
    """

    fault: str = "none"


def replayed_completion(sample: AVSample, index: int) -> str:
    """Right for the first one to three completions of a group, depending on its sample; the others wrong."""
    if index <= sample.row % 3:
        return sample.chain
    if index % 2:
        return re.sub(r"Answer: .*(?= It is)", "Answer: the target is the zebra.", sample.chain)
    return sample.chain.replace("[SEG]", "hidden")


class ReplayedGRPOTrainer(AuroraGRPOTrainer):
    """Rolls out `replayed_completion`, whichever process a row has come to, and insists on media read ahead.

    It also insists on frozen towers that rest while gradients are recorded, sharded or not.
    """

    is_first_batch = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        inner = segmentation_model(self.model)
        for name in self.encode.family.tower_names:
            inner.get_submodule(name).register_forward_pre_hook(self._insist_on_rest)

    def _insist_on_rest(self, tower: nn.Module, _args: Any) -> None:
        is_trained = any(parameter.requires_grad for parameter in tower.parameters())
        assert is_trained or not torch.is_grad_enabled(), (
            f"{type(tower).__name__} runs in training, though it is frozen"
        )

    def _encode_rows(self, inputs: list[dict[str, Any]]) -> list[EncodedSample]:
        missed = {AVSample.from_row(row) for row in inputs} - set(self._ahead._begun)
        assert self.is_first_batch or not self.model.training or not missed, (
            f"not read ahead: {[sample.key for sample in missed]}"
        )
        self.is_first_batch = False
        return super()._encode_rows(inputs)

    def _generate_single_turn(
        self, prompt_ids: list, images: list, *args: Any, **kwargs: Any
    ) -> tuple[list[list[int]], None]:
        first = self.accelerator.process_index * len(images)
        texts = [
            replayed_completion(row.sample, index % self.num_generations)
            for index, row in enumerate(images, start=first)
        ]
        return [[*self._tokenizer(text).input_ids, self._tokenizer.eos_token_id] for text in texts], None


class LocalMasksGRPOTrainer(ReplayedGRPOTrainer):
    """Divides the mask loss by the masks of this process alone."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        return {**output, "masks_per_forward": output["mask_weights"].sum().clamp(min=1)}


class FailingKernelGRPOTrainer(ReplayedGRPOTrainer):
    """Attention over packed rows fails on the second process alone: no process may wait for it, or share prompts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.accelerator.is_main_process:
            packed_attention.KERNELS["sdpa"] = self._fail

    @staticmethod
    def _fail(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("no kernel for this shape")

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        assert not self._passes.sharing.is_on
        return loss


class DeadGroupsGRPOTrainer(ReplayedGRPOTrainer):
    """On the second process, what is rolled out first in a step is all alike, and so is what a first round brings.

    All other completions of a group differ in their lengths.
    """

    rolled_out = -1, 0  # step, and number of batches in it

    def _generate_single_turn(
        self, prompt_ids: list, images: list, *args: Any, **kwargs: Any
    ) -> tuple[list[list[int]], None]:
        ids, _ = super()._generate_single_turn(prompt_ids, images, *args, **kwargs)
        step, number = self.rolled_out
        self.rolled_out = self.state.global_step, 1 if self.state.global_step != step else number + 1
        is_dead = not self.accelerator.is_main_process and self.rolled_out[1] <= 2
        return [ids[0] if is_dead else [*row[: -2 - 9 * index], row[-1]] for index, row in enumerate(ids)], None


class CallingGRPOTrainer(ReplayedGRPOTrainer):
    """The second half of all rollouts, those of the second of two processes, ask a tool before they answer."""

    def _generate_single_turn(
        self, prompt_ids: list, images: list, *args: Any, **kwargs: Any
    ) -> tuple[list[list[int]], None]:
        ids, _ = super()._generate_single_turn(prompt_ids, images, *args, **kwargs)
        first = self.accelerator.process_index * len(images)
        half = self.accelerator.num_processes * len(images) // 2
        asked = [*self._tokenizer(call("peak")).input_ids, self._tokenizer.eos_token_id]
        is_first = all(list(own) == row.prompt.prompt_ids for own, row in zip(prompt_ids, images, strict=True))
        return [asked if is_first and index >= half else row for index, row in enumerate(ids, start=first)], None


class LocalMasksSFTTrainer(AuroraSFTTrainer):
    """Divides the mask loss by the masks of this micro-batch alone."""

    def get_batch_samples(self, *args: Any) -> Any:
        result = super().get_batch_samples(*args)
        self._masks_per_forward = None
        return result


TRAINERS = {
    ("sft", "none"): AuroraSFTTrainer,
    ("sft", "local_masks"): LocalMasksSFTTrainer,
    ("grpo", "none"): ReplayedGRPOTrainer,
    ("grpo", "local_masks"): LocalMasksGRPOTrainer,
    ("grpo", "kernel"): FailingKernelGRPOTrainer,
    ("grpo", "dead_groups"): DeadGroupsGRPOTrainer,
    ("grpo", "calls"): CallingGRPOTrainer,
}


def pretend_to_have_gpus() -> None:
    """accelerate turns FSDP on for accelerators only, though PyTorch's runs on CPUs as well."""
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def run(name: str, options: list[str]) -> None:
    """Run one recipe with the trainer that `--fault` asks for."""
    eval_answers.MAX_TOKENS = 12  # a random model ends no chain
    # transformers would refuse bf16 without `use_cpu`, which switches DeepSpeed off in silence.
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    recipe = importlib.import_module(f"aurora_rl.scripts.{name}")
    types = typing.get_type_hints(recipe.main)
    types.pop("return")
    *arguments, faults = TrlParser((*types.values(), FaultArguments)).parse_args_and_config(options)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        pretend_to_have_gpus()
    trainer = TRAINERS[name, faults.fault]
    setattr(recipe, {"sft": "AuroraSFTTrainer", "grpo": "AuroraGRPOTrainer"}[name], trainer)
    recipe.main(*arguments)


def main(jobs: list[tuple[str, list[str], int]]) -> None:
    for name, options, port in jobs:
        if (child := os.fork()) == 0:
            # torchrun's own meeting point serves one group of processes only.
            os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": str(port)}
            run(name, options)
            sys.stdout.flush()
            sys.stderr.flush()
            # All is written. An ordinary exit was seen to abort, in a thread that a communication library never joins.
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status != 0:
            sys.exit(f"the job {name} {options} failed")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
