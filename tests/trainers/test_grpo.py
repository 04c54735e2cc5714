"""What the GRPO trainer computes: log-probabilities, masks and loss, held against independent numbers.

The first three sections are named after defects of the authors' release, which would fail their tests.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from aurora_rl.data.sample import AVSample
from aurora_rl.inference.predictor import Predictor
from aurora_rl.losses import mask_loss
from aurora_rl.models.collate import SFTCollator
from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.models.loading import LoadedModel
from aurora_rl.models.mllm import EncodedPrompt, EnginePrompt
from aurora_rl.tasks.targets import gold_chain
from aurora_rl.trainers.grounded_rollouts import RolloutBatch
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.sft import AuroraSFTTrainer
from tests.trainers.conftest import bright_masks

MakeGRPO = Callable[..., AuroraGRPOTrainer]
MakeSFT = Callable[..., AuroraSFTTrainer]
Rollout = Callable[..., dict[str, Any]]


def policy_of(trainer: AuroraGRPOTrainer) -> nn.Module:
    return trainer.accelerator.unwrap_model(trainer.model).get_decoder()


def record_calls(decoder: nn.Module) -> list[tuple[bool, bool]]:
    """(is a gradient recorded, is the decoder in train mode) of every forward pass from now on."""
    calls: list[tuple[bool, bool]] = []
    decoder.register_forward_pre_hook(lambda module, _: calls.append((torch.is_grad_enabled(), module.training)))
    return calls


def sequences(inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, int]:
    input_ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention_mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    return input_ids, attention_mask, inputs["completion_ids"].size(1)


def only_row(inputs: dict[str, Any], index: int) -> dict[str, Any]:
    """One row of a generation batch, its padding cut off."""
    masks = {side: inputs[f"{side}_mask"][index].bool() for side in ("prompt", "completion")}
    row = {
        f"{side}_{kind}": inputs[f"{side}_{kind}"][index, mask][None]
        for side, mask in masks.items()
        for kind in ("ids", "mask")
    }
    row["ref_per_token_logps"] = inputs["ref_per_token_logps"][index, masks["completion"]][None]
    for name in ("advantages", "encoded_rows", "mask_weights"):
        row[name] = inputs[name][index : index + 1]
    row["masks_per_forward"] = inputs["masks_per_forward"] / len(inputs["encoded_rows"])
    return {**row, "num_items_in_batch": inputs["num_items_in_batch"]}


def constant_reward(completions: list, **columns: Any) -> list[float]:
    return [1.0] * len(completions)


class Recorder:
    """A reward that keeps the columns it is given."""

    def __init__(self) -> None:
        self.columns: dict[str, Any] = {}

    def __call__(self, completions: list, **columns: Any) -> list[float]:
        self.columns = {"completions": completions, **columns}
        return [0.0] * len(completions)


# ---- log-probabilities; batches of one ------------------------------------------------------------------------------


def plain_logps(
    model: nn.Module, trainer: AuroraGRPOTrainer, row: EncodedSample, completion_ids: torch.Tensor
) -> torch.Tensor:
    """(L,) by a stock forward pass of one unpadded row, all logits materialised."""
    input_ids = torch.cat([torch.tensor(row.prompt.prompt_ids), completion_ids])[None]
    with torch.no_grad():
        logits = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **row.prompt.features).logits
    logits = logits[0, -len(completion_ids) - 1 : -1] / trainer.temperature
    logits[:, trainer.encode.family.multimodal_token_ids(model.config)] = -math.inf
    return logits.log_softmax(-1).gather(1, completion_ids[:, None])[:, 0]


@pytest.fixture
def stock_model(tiny_checkpoint: str) -> nn.Module:
    """The same weights in transformers' own class, which knows neither `[SEG]` nor suppressed tokens."""
    return Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(tiny_checkpoint).eval()


def test_text_only_logps_equal_those_of_a_stock_model(
    make_grpo: MakeGRPO, encode: SampleEncoder, train_samples: list[AVSample], stock_model: nn.Module
) -> None:
    trainer = make_grpo(temperature=0.7)
    prompt_ids = encode.tokenizer("The yellow object on the left.").input_ids
    completion_ids = torch.tensor(encode.tokenizer(train_samples[0].chain).input_ids)
    row = EncodedSample(
        train_samples[0],
        EncodedPrompt(prompt_ids, {}, EnginePrompt(prompt_ids, [], {}, {})),
        torch.zeros(1, 3, 32, 32),
        torch.zeros(1, 64, 64).bool(),
        0.0,
        frame_size=(64, 64),
    )
    trainer._batch = RolloutBatch([row])
    input_ids = torch.cat([torch.tensor(prompt_ids), completion_ids])[None]
    logps, _, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, input_ids, torch.ones_like(input_ids), len(completion_ids)
    )
    expected = plain_logps(stock_model, trainer, row, completion_ids)
    torch.testing.assert_close(logps[0], expected, atol=1e-5, rtol=0)


def test_logps_and_entropies_of_a_padded_batch_equal_those_of_a_stock_model_row_by_row(
    make_grpo: MakeGRPO, rollout: Rollout, stock_model: nn.Module
) -> None:
    trainer = make_grpo(temperature=0.7)
    inputs = rollout(trainer, 3)
    input_ids, attention_mask, length = sequences(inputs)
    assert not inputs["prompt_mask"].all() and not inputs["completion_mask"].all(), "nothing is padded"
    logps, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, input_ids, attention_mask, length)
    for index, row in enumerate(inputs["encoded_rows"]):
        completion_ids = inputs["completion_ids"][index][inputs["completion_mask"][index].bool()]
        expected = plain_logps(stock_model, trainer, row, completion_ids)
        torch.testing.assert_close(logps[index, : len(expected)], expected, atol=1e-5, rtol=0)


def test_an_early_completion_token_changes_all_later_logps(make_grpo: MakeGRPO, rollout: Rollout) -> None:
    trainer = make_grpo(script="gold")
    inputs = rollout(trainer, 1)
    input_ids, attention_mask, length = sequences(inputs)

    def logps() -> torch.Tensor:
        return trainer._get_per_token_logps_and_entropies(trainer.model, input_ids, attention_mask, length)[0][0]

    with torch.no_grad():
        before = logps()
        input_ids[:, -length + 1] = trainer._tokenizer(" the").input_ids[0]
        difference = (logps() - before).abs()
    assert difference[0] == 0.0
    assert (difference[1:] > 1e-7).all()


def test_a_batch_of_four_has_the_loss_of_four_batches_of_one(make_grpo: MakeGRPO, rollout: Rollout) -> None:
    def script(sample: AVSample, index: int) -> str:
        return sample.chain if index % 2 else sample.chain.replace("Look:", "Look: now")

    trainer = make_grpo(script=script, rewards="reward_fns.format:format_reward", mask_loss_on="all")
    inputs = rollout(trainer, 2)
    inputs["advantages"] = torch.tensor([1.0, -1.0, 0.5, -2.0])
    inputs["ref_per_token_logps"] = inputs["ref_per_token_logps"] + 0.1
    together = trainer._compute_loss(trainer.model, inputs)
    apart = torch.stack([trainer._compute_loss(trainer.model, only_row(inputs, i)) for i in range(4)])
    torch.testing.assert_close(together, apart.mean(), atol=1e-5, rtol=0)
    assert apart.std() > 0.1


# ---- rollouts in train mode -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_iterations": 2}, {"gradient_checkpointing": True}])
def test_what_is_not_trained_on_runs_in_eval_mode_and_what_is_in_train_mode(make_grpo: MakeGRPO, options: dict) -> None:
    trainer = make_grpo(script=None, peft=True, dropout=0.5, **options)
    calls = record_calls(policy_of(trainer))
    trainer.train()
    # Prompt and six tokens, then scores and reference, in each rollout; two steps.
    assert len([call for call in calls if call == (False, False)]) >= 8
    assert calls.count((True, True)) == 2
    assert all(grad == training for grad, training in calls)
    assert trainer.model.training


def test_lora_dropout_touches_no_log_probability_that_is_stored(make_grpo: MakeGRPO, rollout: Rollout) -> None:
    trainer = make_grpo(peft=True, dropout=0.5, num_iterations=2)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:  # zero until trained, and dropout would not show
            nn.init.normal_(parameter, std=0.5)
    first, second = rollout(trainer), rollout(trainer)
    torch.testing.assert_close(first["old_per_token_logps"], second["old_per_token_logps"], atol=0, rtol=0)
    assert (first["old_per_token_logps"] - first["ref_per_token_logps"]).abs().max() > 0.01


@pytest.mark.parametrize("peft", [False, True], ids=["full", "LoRA"])
def test_multimodal_tokens_are_never_sampled_however_much_the_head_favours_them(
    make_grpo: MakeGRPO, rollout: Rollout, loaded: LoadedModel, peft: bool
) -> None:
    token_ids = loaded.family.multimodal_token_ids(loaded.model.config)
    with torch.no_grad():
        loaded.model.lm_head.weight[token_ids] *= 100.0
    trainer = make_grpo(script=None, peft=peft, max_completion_length=12, beta=0.0)
    inputs = rollout(trainer, 4)
    sampled = inputs["completion_ids"][inputs["completion_mask"].bool()]
    assert not torch.isin(sampled, torch.tensor(token_ids)).any()
    input_ids, attention_mask, length = sequences(inputs)
    row = inputs["encoded_rows"][0]
    with torch.no_grad():
        outputs = trainer.model(
            input_ids=input_ids[:1], attention_mask=attention_mask[:1], use_cache=False, **row.prompt.features
        )
        probs = outputs.logits.softmax(-1)
        trainer._batch = RolloutBatch(inputs["encoded_rows"])
        _, entropies, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, input_ids[:1], attention_mask[:1], length, compute_entropy=True
        )
    assert (probs[..., token_ids] == 0.0).all()
    assert entropies.max() < math.log(probs.size(-1) - len(token_ids))


# ---- masks one position early ---------------------------------------------------------------------------------------


def test_sft_grpo_and_inference_decode_the_same_masks_of_a_completion(
    make_grpo: MakeGRPO, rollout: Rollout, loaded: LoadedModel, encode: SampleEncoder, train_samples: list[AVSample]
) -> None:
    samples = train_samples[:3]
    recorder = Recorder()
    trainer = make_grpo(script="gold", rewards=[recorder], samples=samples)
    rollout(trainer, 3)
    in_grpo = recorder.columns["mask_probs"][::2]

    batch = SFTCollator(encode, loaded.seg_token_id, gold_chain)([sample.to_row() for sample in samples])
    batch = {name: value for name, value in batch.items() if name not in ("gt_masks", "seg_weights")}
    with torch.no_grad():
        in_sft = loaded.model(**batch).mask_logits
        one_early = loaded.model(**{**batch, "seg_index": batch["seg_index"] - 1}).mask_logits
    assert (in_sft - one_early).abs().max() > 0.01, "the masks would not tell one position from the next"
    in_sft = loaded.model.seg_head.mask_decoder.postprocess(in_sft, (64, 64)).sigmoid().split(4)

    model = loaded.model
    eos = [encode.tokenizer.eos_token_id]
    chains = [torch.tensor(encode.tokenizer(sample.chain).input_ids + eos) for sample in samples]
    completions = nn.utils.rnn.pad_sequence(chains, batch_first=True, padding_value=encode.tokenizer.pad_token_id)
    model.generate = lambda input_ids, **kwargs: torch.cat([input_ids, completions], dim=1)
    predictor = Predictor(model, encode, loaded.seg_token_id)
    in_inference = [completion.mask_probs for _, [completion] in predictor.predict(samples)]

    for a, b, c in zip(in_grpo, in_sft, in_inference, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
        torch.testing.assert_close(a, c, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_iterations": 2},
        {"mask_truncated_completions": True},
        {"mask_truncated_completions": True, "num_iterations": 2},
    ],
)
def test_rewards_see_no_masks_exactly_where_seg_is_missing(
    make_grpo: MakeGRPO, rollout: Rollout, options: dict
) -> None:
    recorder = Recorder()
    trainer = make_grpo(rewards=[recorder], **options)
    bright_masks(trainer.model)
    rollout(trainer, 3)
    columns = recorder.columns
    texts = [completion[0]["content"] for completion in columns["completions"]]
    assert ["[SEG]" in text for text in texts] == [True, True, False, True, True, True]
    for text, pred, probs, truth in zip(
        texts, columns["pred_masks"], columns["mask_probs"], columns["gt_masks"], strict=True
    ):
        assert (pred is None) is (probs is None) is ("[SEG]" not in text)
        assert truth.dtype == torch.bool and truth.shape == (4, 64, 64)
        if pred is not None:
            assert pred.dtype == torch.bool and pred.device.type == "cpu"
            torch.testing.assert_close(pred, probs > 0.5)
            assert probs.shape == truth.shape and probs.min() > 0.0 and probs.max() < 1.0
    assert any(pred is not None and pred.any() for pred in columns["pred_masks"])
    assert [sample.uid for sample in columns["sample"]] == columns["uid"]


def test_a_truncated_completion_has_the_masks_it_would_have_unmasked(make_grpo: MakeGRPO, rollout: Rollout) -> None:
    """TRL hides truncated completions from its own forward pass, which must not show in their rewards."""
    seen = []
    for options in ({}, {"mask_truncated_completions": True, "num_iterations": 2}):
        recorder = Recorder()
        rollout(make_grpo(script="cut", rewards=[recorder], **options), 2)
        seen.append(recorder.columns["mask_probs"])
    for unmasked, masked in zip(*seen, strict=True):
        torch.testing.assert_close(masked, unmasked, atol=1e-6, rtol=0)


# ---- forward passes -------------------------------------------------------------------------------------------------


def test_one_micro_batch_takes_one_forward_pass_of_the_language_model(make_grpo: MakeGRPO, rollout: Rollout) -> None:
    trainer = make_grpo()
    inputs = rollout(trainer)
    calls = record_calls(policy_of(trainer))
    trainer._compute_loss(trainer.model, inputs).backward()
    assert calls == [(True, True)]


@pytest.mark.parametrize("options", [{}, {"num_iterations": 2}], ids=["scored for the masks", "old log-probs"])
def test_masks_cost_no_forward_pass_where_trl_computes_old_logps(
    make_grpo: MakeGRPO, rollout: Rollout, options: dict
) -> None:
    trainer = make_grpo(rewards="reward_fns.mask_iou:mask_iou_reward", **options)
    calls, reference_calls = record_calls(policy_of(trainer)), record_calls(trainer.ref_model.get_decoder())
    rollout(trainer, 4)
    # 8 completions in chunks of 4.
    assert (len(calls), len(reference_calls)) == (2, 2)


# ---- loss -----------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_policy_loss_plus_the_weighted_mask_loss(make_grpo: MakeGRPO, rollout: Rollout) -> None:
    recorder = Recorder()
    trainer = make_grpo(rewards=[recorder], mask_loss_weight=0.3, mask_bce_weight=1.5, mask_dice_weight=0.7)
    inputs = rollout(trainer)
    loss = trainer._compute_loss(trainer.model, inputs)
    correct = (0, 3)  # of gold, wrong, no [SEG], gold
    logits = [recorder.columns["mask_probs"][i].logit() for i in correct]
    truths = [recorder.columns["gt_masks"][i] for i in correct]
    expected = 0.3 * mask_loss(logits, truths, bce_weight=1.5, dice_weight=0.7).total
    # Equal rewards: no advantage, and the policy is still the reference, so the policy loss is 0.
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)


def test_mask_loss_on_all_teaches_wrong_answers_too(make_grpo: MakeGRPO, rollout: Rollout) -> None:
    losses = {}
    for mask_loss_on in ("all", "correct_only", "off"):
        trainer = make_grpo(script="wrong", rewards=[constant_reward], mask_loss_on=mask_loss_on)
        losses[mask_loss_on] = trainer._compute_loss(trainer.model, rollout(trainer)).item()
    assert losses["all"] > 0.1
    assert losses["correct_only"] == losses["off"] == 0.0


def test_without_any_seg_the_mask_decoder_gets_a_gradient_of_zero(make_grpo: MakeGRPO, rollout: Rollout) -> None:
    trainer = make_grpo(script="no_seg", mask_loss_on="all")
    inputs = rollout(trainer)
    inputs["advantages"] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    gradients = [parameter.grad for parameter in trainer.model.seg_head.parameters()]
    assert loss.isfinite()
    assert all(gradient is not None and gradient.eq(0.0).all() for gradient in gradients)
    assert trainer.model.lm_head.weight.grad.abs().max() > 0.0


def test_the_mask_loss_reaches_the_language_model_through_the_projector(make_grpo: MakeGRPO, rollout: Rollout) -> None:
    trainer = make_grpo(script="gold", rewards=[constant_reward], beta=0.0)
    trainer._compute_loss(trainer.model, rollout(trainer)).backward()
    gradients = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
    for part in ("seg_head.projector.0", "seg_head.mask_decoder.down1.0", "model.layers.0.mlp.up_proj"):
        assert gradients[f"{part}.weight"].abs().max() > 0.0
    assert gradients["lm_head.weight"].abs().max() == 0.0


def test_two_accumulated_half_batches_take_the_step_of_one_batch(make_grpo: MakeGRPO) -> None:
    """Three of the four completions teach masks, so that the two halves have not the same number of them."""
    after = []
    for options in (
        {"per_device_train_batch_size": 4},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    ):
        trainer = make_grpo(
            script="mixed",
            rewards=[constant_reward],
            mask_loss_on="all",
            beta=0.0,
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            max_grad_norm=0.0,  # clipping would hide a factor
            **options,
        )
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        trainer.train()
        after.append({name: p.detach() - before[name] for name, p in trainer.model.named_parameters()})
    for name, step in after[0].items():
        assert torch.allclose(after[1][name], step, atol=1e-6, rtol=1e-4), name
    assert after[0]["seg_head.projector.2.weight"].abs().max() > 1e-3
