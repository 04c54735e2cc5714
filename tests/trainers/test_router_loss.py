"""The router loss of models with experts is in the loss where the recipe says so, by its coefficient, else not."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from aurora_rl.assembly.arguments import DataArguments, ModelArguments
from aurora_rl.data.sample import AVSample
from aurora_rl.models.loading import load_model
from aurora_rl.models.mllm import MLLMFamily
from aurora_rl.models.mllm.qwen3_omni import Qwen3OmniFamily
from aurora_rl.models.mllm.qwen3_vl_moe import Qwen3VLMoeFamily
from aurora_rl.scripts import grpo
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from tools.measure_footprint import build_trainer

SEGMENTER = {"type": "dot", "image_size": 32, "width": 8}
COEFFICIENT, OF_CHECKPOINT = 0.5, 0.001
NUM_EXPERTS, CHOSEN = 8, 2


@pytest.fixture(scope="module", params=[Qwen3OmniFamily, Qwen3VLMoeFamily], ids=lambda family: family.model_types[0])
def family(request: pytest.FixtureRequest) -> MLLMFamily:
    return request.param()


@pytest.fixture(scope="module")
def checkpoint(family: MLLMFamily, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose config switches the router loss on, as a checkpoint of another trainer may."""
    texts = ["Look: I see a drum.\nListen: I hear a bell.\nAnswer: the target is the drum. It is [SEG]."]
    model, processor = family.build_tiny(texts, segmenter=SEGMENTER)
    model.config.get_text_config().output_router_logits = True
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    assert text_fields(folder)["output_router_logits"] is True
    return folder


@pytest.fixture
def heard(family: MLLMFamily, data_args: DataArguments) -> DataArguments:
    return dataclasses.replace(data_args, drop_sound=not family.hears)


def text_fields(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["text_config"]


def sft_loss(checkpoint: Path, data_args: DataArguments, samples: list[AVSample], folder: Path, **options: Any):
    """The loss of the first two rows, what the routers said meanwhile, the rows' mask, and the trainer."""
    options = {"per_device_train_batch_size": 2, "max_grad_norm": 0.0, **options}
    trainer = build_trainer(ModelArguments(str(checkpoint)), data_args, samples, folder, **options)
    if trainer.args.gradient_checkpointing:
        trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(2)])
    said: list[torch.Tensor] = []
    routers = [module for name, module in trainer.model.named_modules() if name.endswith("mlp.gate")]
    handles = [router.register_forward_hook(lambda *args: said.append(args[2][0])) for router in routers]
    loss = trainer.compute_loss(trainer.model, dict(batch))
    for handle in handles:
        handle.remove()
    return loss, said, batch["attention_mask"], trainer


def load_balancing(said: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """Experts x the sum over them of (share of choices) x (mean probability), over the layers' unpadded tokens; Switch
    Transformers (2101.03961), equations 4 to 6, with two choices a token."""
    tokens = torch.cat([logits[mask.flatten().bool()] for logits in said]).softmax(-1)
    choices = functional.one_hot(tokens.topk(CHOSEN).indices, NUM_EXPERTS).float().mean(0)  # (choice, expert)
    return NUM_EXPERTS * (choices * tokens.mean(0)).sum()


def test_fine_tuning_weighs_it_by_the_recipes_coefficient(
    checkpoint: Path, heard: DataArguments, train_samples: list[AVSample], tmp_path: Path
) -> None:
    def loss(**options: Any):
        return sft_loss(checkpoint, heard, train_samples[:2], tmp_path, **options)

    without, said, mask, _ = loss()
    expected = load_balancing(said, mask)
    assert expected > 1  # an even load has 2
    of_recipe, *_, trainer = loss(router_aux_loss_coef=COEFFICIENT)
    torch.testing.assert_close(of_recipe - without, COEFFICIENT * expected, rtol=1e-4, atol=1e-5)
    of_checkpoint, *_ = loss(router_aux_loss_coef=None)
    torch.testing.assert_close(of_checkpoint - without, OF_CHECKPOINT * expected, rtol=1e-2, atol=1e-5)
    trainer.save_model(str(tmp_path / "saved"))
    saved = text_fields(tmp_path / "saved")
    assert (saved["output_router_logits"], saved["router_aux_loss_coef"]) == (False, OF_CHECKPOINT)


def test_it_reaches_the_routers_through_checkpointed_layers(
    checkpoint: Path, heard: DataArguments, train_samples: list[AVSample], tmp_path: Path
) -> None:
    def gradient(**options: Any) -> torch.Tensor:
        loss, _, _, trainer = sft_loss(checkpoint, heard, train_samples[:2], tmp_path, **options)
        loss.backward()
        return next(p.grad for name, p in trainer.model.named_parameters() if name.endswith("mlp.gate.weight"))

    plain = gradient(router_aux_loss_coef=COEFFICIENT)
    torch.testing.assert_close(gradient(router_aux_loss_coef=COEFFICIENT, gradient_checkpointing=True), plain)
    assert not torch.allclose(gradient(), plain, rtol=1e-2, atol=1e-3)  # control


def test_grpo_samples_and_trains_without_it_unless_the_recipe_weighs_it(
    checkpoint: Path, heard: DataArguments, tmp_path: Path
) -> None:
    """The same completions in both runs; sampling with the switch of the config on would fail."""
    sizes = {"per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 4}
    quiet = {"report_to": "none", "use_cpu": True, "bf16": False, "logging_steps": 1, "max_steps": 1}

    def first_step(**options: Any) -> dict[str, float]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        args = AuroraGRPOConfig(str(folder), mask_loss_on="off", save_strategy="no", **sizes, **quiet, **options)
        grpo.main(ModelArguments(str(checkpoint), freeze=["towers"]), heard, grpo.RewardArguments(), args)
        return json.loads((folder / "trainer_state.json").read_text())["log_history"][0]

    without, weighed = first_step(beta=0.0), first_step(beta=0.0, router_aux_loss_coef=COEFFICIENT)
    assert "aux_loss" not in without
    assert weighed["aux_loss"] > 1
    assert weighed["loss"] - without["loss"] == pytest.approx(COEFFICIENT * weighed["aux_loss"], abs=2e-4)


def test_a_checkpoint_does_not_switch_it_on_for_generation(checkpoint: Path) -> None:
    model = load_model(str(checkpoint)).model
    assert model.config.get_text_config().output_router_logits is False
    ids = torch.tensor([[5, 6, 7], [7, 6, 5]])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 2, "do_sample": False}
    assert model.generate(input_ids=ids, **options).shape[1] > 3


def test_a_coefficient_for_a_model_without_experts_is_an_error(
    tiny_checkpoint: str, data_args: DataArguments, train_samples: list[AVSample], tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match="router_aux_loss_coef` is set to 0.5 but .* is not a Mixture-of-Experts model"
    ):
        sft_loss(Path(tiny_checkpoint), data_args, train_samples[:2], tmp_path, router_aux_loss_coef=COEFFICIENT)
