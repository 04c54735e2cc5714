"""Trainers over the tiny model, which trains two steps in half a second.

A random model never writes a `[SEG]`, so GRPO's rollouts are scripted where a test needs to know them: the gold chain
of each row, changed by the script that the test names.

    make_grpo  a GRPO trainer with a fresh copy of the model; options are those of AuroraGRPOConfig
    make_sft   an SFT trainer with a fresh copy of the model; options are those of AuroraSFTConfig
    rollout    rows -> what TRL trains on: completions, advantages, reference log-probabilities
"""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig
from torch import nn

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.assembly.model import peft_config
from aurora_rl.data.dataset import to_dataset
from aurora_rl.data.sample import AVSample
from aurora_rl.models.collate import SFTCollator
from aurora_rl.models.encoding import SampleEncoder
from aurora_rl.models.loading import LoadedModel
from aurora_rl.models.teacher import Teacher
from aurora_rl.tasks.reference_segmentation import ReferenceSegmentation
from aurora_rl.tasks.targets import gold_chain
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from aurora_rl.trainers.sft import AuroraSFTTrainer
from aurora_rl.trainers.sft_config import AuroraSFTConfig

COMMON = {
    "max_steps": 2,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}
GRPO = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 6}
REWARDS = ("reward_fns.format:format_reward", "reward_fns.category:category_reward")


def gold(sample: AVSample, index: int) -> str:
    return sample.chain


def wrong(sample: AVSample, index: int) -> str:
    """The gold chain up to the answer, which names another category."""
    return re.sub(r"Answer: .*(?= It is)", "Answer: the target is the zebra.", sample.chain)


def no_seg(sample: AVSample, index: int) -> str:
    return sample.chain.replace("[SEG]", "hidden")


def cut(sample: AVSample, index: int) -> str:
    """Ends after its `[SEG]` without a full stop, as a completion does that reaches the length limit."""
    return sample.chain.removesuffix(".")


def mixed(sample: AVSample, index: int) -> str:
    """One of each kind, so that the two completions of a group earn different rewards."""
    return (gold, wrong, no_seg, gold, gold, cut)[index % 6](sample, index)


SCRIPTS = {script.__name__: script for script in (gold, wrong, no_seg, cut, mixed)}


class ScriptedTrainer(AuroraGRPOTrainer):
    """Rolls out what `script` says; a completion that does not end in a full stop is taken to be cut off."""

    script: Callable[[AVSample, int], str]

    def _generate_single_turn(self, prompt_ids: list, images: list, *args: Any) -> tuple[list[list[int]], None]:
        texts = [self.script(row.sample, index) for index, row in enumerate(images)]
        eos = [self._tokenizer.eos_token_id]
        return [self._tokenizer(text).input_ids + (eos if text.endswith(".") else []) for text in texts], None


def bright_masks(model: nn.Module) -> nn.Module:
    """Raise the bias of the mask logits, so that an untrained model predicts more than background."""
    with torch.no_grad():
        model.seg_head.projector[-1].bias[-1] = 2.5
    return model


def lora(loaded: LoadedModel, dropout: float) -> PeftConfig:
    return peft_config(ModelArguments(model="", use_peft=True, lora_r=4, lora_dropout=dropout), loaded)


@pytest.fixture
def make_grpo(
    loaded: LoadedModel, encode: SampleEncoder, train_samples: list[AVSample], tmp_path: Path
) -> Callable[..., AuroraGRPOTrainer]:
    """A GRPO trainer; `script=None` samples from the model."""

    def make(
        *,
        script: str | Callable[[AVSample, int], str] | None = "mixed",
        rewards: Any = REWARDS,
        samples: list[AVSample] | None = None,
        model: Any = None,
        peft: bool = False,
        dropout: float = 0.05,
        callbacks: list | None = None,
        **options: Any,
    ) -> AuroraGRPOTrainer:
        trainer = (AuroraGRPOTrainer if script is None else ScriptedTrainer)(
            model=copy.deepcopy(loaded.model) if model is None else model,
            reward_funcs=rewards,
            args=AuroraGRPOConfig(**{"output_dir": str(tmp_path / "grpo"), **COMMON, **GRPO, **options}),
            encode=encode,
            train_dataset=to_dataset(train_samples if samples is None else samples, ReferenceSegmentation().messages),
            eval_dataset=to_dataset(train_samples[:2], ReferenceSegmentation().messages),
            processing_class=loaded.processor,
            peft_config=lora(loaded, dropout) if peft else None,
            callbacks=callbacks,
        )
        trainer.script = SCRIPTS.get(script, script)
        trainer._passes.sharing.is_tried = True  # its comparison would be counted where tests count forward passes
        return trainer

    return make


@pytest.fixture
def make_sft(
    loaded: LoadedModel, encode: SampleEncoder, train_samples: list[AVSample], tmp_path: Path
) -> Callable[..., AuroraSFTTrainer]:
    """An SFT trainer on the gold chains; `teach` puts a teacher's part into the batches."""

    def make(
        *,
        samples: list[AVSample] | None = None,
        peft: bool = False,
        dropout: float = 0.05,
        callbacks: list | None = None,
        teach: Callable[[SFTCollator], tuple[Any, Teacher | None]] = lambda collate: (collate, None),
        **options: Any,
    ) -> AuroraSFTTrainer:
        collate, teacher = teach(SFTCollator(encode, loaded.seg_token_id, gold_chain))
        return AuroraSFTTrainer(
            model=copy.deepcopy(loaded.model),
            args=AuroraSFTConfig(
                **{"output_dir": str(tmp_path / "sft"), "per_device_train_batch_size": 2, **COMMON, **options}
            ),
            data_collator=collate,
            teacher=teacher,
            train_dataset=to_dataset(train_samples if samples is None else samples, ReferenceSegmentation().messages),
            eval_dataset=to_dataset(train_samples[:3], ReferenceSegmentation().messages),
            processing_class=loaded.processor,
            peft_config=lora(loaded, dropout) if peft else None,
            callbacks=callbacks,
        )

    return make


@pytest.fixture
def rollout() -> Callable[..., dict[str, Any]]:
    """The generation batch of the first rows of a trainer's dataset, G copies of each, in order."""

    def roll(trainer: AuroraGRPOTrainer, num_rows: int = 2, *, train: bool = True) -> dict[str, Any]:
        trainer.model.train(train)
        trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps  # set by train()
        rows = [trainer.train_dataset[i] for i in range(num_rows) for _ in range(trainer.num_generations)]
        return trainer._generate_and_score_completions(rows)

    return roll
