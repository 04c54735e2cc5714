"""Both trainers on boxes: a model with two heads learns with that of the task, and the other stays as it is."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from aurora_rl.assembly.arguments import DataArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.data.dataset import to_dataset
from aurora_rl.models.collate import SFTCollator
from aurora_rl.models.encoding import PromptOptions, SampleEncoder
from aurora_rl.models.loading import LoadedModel, load_model
from aurora_rl.tasks.reference_boxes import ReferenceBoxes
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from aurora_rl.trainers.sft import AuroraSFTTrainer
from aurora_rl.trainers.sft_config import AuroraSFTConfig
from reward_fns.box_iou import box_iou_reward
from reward_fns.point_in_mask import point_in_mask_reward

OPTIONS: dict[str, Any] = {
    "max_steps": 1, "report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no", "logging_steps": 1,
    "learning_rate": 1e-2, "disable_tqdm": True, "gradient_checkpointing": False,
}  # fmt: skip


@pytest.fixture
def both(tiny_checkpoint: str) -> LoadedModel:
    return load_model(tiny_checkpoint, heads={"boxes": {"type": "dot", "image_size": 64, "width": 8}})


@pytest.fixture
def box_encode(both: LoadedModel) -> SampleEncoder:
    encoder = both.frame_encoder("boxes")
    options = PromptOptions("{reference}", None, 256, 65536)
    return SampleEncoder(
        both.family, both.processor, lambda _, clip: encoder.encode(clip.frames), task=ReferenceBoxes(), options=options
    )


@pytest.fixture
def box_samples(data_args: DataArguments) -> list[Any]:
    task = "aurora_rl.tasks.reference_boxes:ReferenceBoxes"
    return load_split(dataclasses.replace(data_args, task=task), "train")[:4]


def moved(trainer: Any, before: dict[str, torch.Tensor]) -> set[str]:
    after = trainer.accelerator.unwrap_model(trainer.model).state_dict()
    return {name.split(".")[0] for name, weight in before.items() if not torch.equal(after[name], weight)}


def test_sft_trains_the_box_head_and_leaves_the_mask_head(both, box_encode, box_samples, tmp_path: Path):
    before = copy.deepcopy(both.model.state_dict())
    trainer = AuroraSFTTrainer(
        model=both.model,
        args=AuroraSFTConfig(output_dir=str(tmp_path), per_device_train_batch_size=4, **OPTIONS),
        data_collator=SFTCollator(box_encode, box_encode.answer_token_id, box_encode.task.target),
        train_dataset=to_dataset(box_samples, box_encode.text_prompt),
        processing_class=both.processor,
    )
    trainer.train()
    assert {"boxes_head", "model"} <= moved(trainer, before) and "seg_head" not in moved(trainer, before)
    logged = trainer.state.log_history[0]
    assert {"box_giou", "box_l1", "box_presence", "box_point"} <= logged.keys()
    assert 0 < logged["teacher_forced_iou"] < 1


def test_grpo_rewards_boxes_and_trains_their_head(both, box_encode, box_samples, tmp_path: Path):
    before = copy.deepcopy(both.model.state_dict())
    seen: dict[str, Any] = {}

    def watch_reward(prompts: list, completions: list, **columns: Any) -> list[float]:
        seen.update(columns)
        return [float(index % 2) for index in range(len(completions))]

    class Scripted(AuroraGRPOTrainer):
        """Answers every row by its gold answer, so that there is a `[BOX]`."""

        def _generate_single_turn(self, prompt_ids: list, rows: Any, *args: Any, **kwargs: Any) -> Any:
            tokenizer = self.encode.tokenizer
            texts = [self.encode.task.targets()["answer"](row.sample).learned for row in rows]
            return [[*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in texts], None

    trainer = Scripted(
        model=both.model,
        reward_funcs=[watch_reward, box_iou_reward, point_in_mask_reward],
        args=AuroraGRPOConfig(
            output_dir=str(tmp_path), num_generations=2, per_device_train_batch_size=4, mask_loss_on="all", **OPTIONS
        ),
        encode=box_encode,
        train_dataset=to_dataset(box_samples, box_encode.text_prompt),
        processing_class=both.processor,
    )
    trainer.train()
    assert [tuple(boxes.shape) for boxes in seen["pred_boxes"]] == [(4, 4)] * 4 and "pred_masks" not in seen
    assert "boxes_head" in moved(trainer, before) and "seg_head" not in moved(trainer, before)
    logged = trainer.state.log_history[0]
    assert 0 < logged["rewards/box_iou_reward/mean"] < 1 and logged["box_loss"] > 0
