"""The exact objective: all answers of a row are written once, and its gradient is that of the expected reward."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from aurora_rl.models.encoding import SampleEncoder
from aurora_rl.tasks.reference_segmentation import ReferenceSegmentation
from aurora_rl.trainers.grounded_rollouts import RolloutBatch
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from tests.trainers.test_prompt_sharing import Recorder, worst_difference

MakeGRPO = Callable[..., AuroraGRPOTrainer]
ANSWERS = ("a", "no", "a b")
#: What each answer earns.
WORTH = {"a": 1.0, "no": -0.5, "a b": 0.25}
STEP = {
    **{"per_device_train_batch_size": 6, "num_generations": 3, "max_completion_length": 4, "max_steps": 1},
    **{"enumerate_answers": True, "scale_rewards": "none", "beta": 0.0, "mask_loss_on": "off", "script": None},
}


def worth(completions: list, **_: Any) -> list[float]:
    return [WORTH[completion[0]["content"]] for completion in completions]


@pytest.fixture
def make(make_grpo: MakeGRPO, monkeypatch: pytest.MonkeyPatch) -> MakeGRPO:
    monkeypatch.setattr(ReferenceSegmentation, "answers", lambda self, sample: ANSWERS)
    return lambda **options: make_grpo(**{"rewards": [worth], **STEP, **options})


def test_every_answer_is_written_once_and_the_loss_is_the_expected_reward(
    make: MakeGRPO, rollout: Callable[..., dict[str, Any]], encode: SampleEncoder
) -> None:
    trainer = make(entropy_coef=0.1)
    inputs = rollout(trainer)
    texts = encode.tokenizer.batch_decode(inputs["completion_ids"], skip_special_tokens=True)
    assert texts == [*ANSWERS, *ANSWERS]

    rows, mask = inputs["encoded_rows"], inputs["completion_mask"]
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    attention_mask, length = torch.cat([inputs["prompt_mask"], mask], 1), mask.size(1)
    trainer._passes.sharing.is_on = False
    outputs = [
        trainer._passes.score(trainer.model, ids[[i]], attention_mask[[i]], RolloutBatch(rows[i : i + 1]), length)
        for i in range(6)
    ]
    logps = torch.stack([(next(each)[0].log_probs[0, -length:] * mask[i]).sum() for i, each in enumerate(outputs)])
    probs, rewards = logps.exp(), torch.tensor([WORTH[text] for text in texts])
    least = rewards.min()
    expected = (probs * (rewards - least)).sum() / 2 - 0.1 * (probs * logps).sum() / 2
    (-expected).backward()
    theirs = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    ours = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert loss.item() == pytest.approx(-(expected + least - rewards.mean()).item(), abs=1e-5)
    assert worst_difference(ours, theirs) < 1e-4
    assert trainer._metrics["train"]["answers_probability"] == [pytest.approx(probs.sum().item() / 2)]


def test_micro_batches_hold_whole_rows_and_sum_to_the_batch(make: MakeGRPO) -> None:
    gradients = []
    for options in ({}, {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "share_prompts": False}):
        torch.manual_seed(0)
        recorder = Recorder()
        make(callbacks=[recorder], max_grad_norm=0.0, **options).train()
        gradients.append(recorder.steps[0])
    assert worst_difference(*gradients) < 1e-4


def test_an_evaluation_samples(make: MakeGRPO, rollout: Callable[..., dict[str, Any]], encode: SampleEncoder) -> None:
    inputs = rollout(make(rewards="reward_fns.format:format_reward"), train=False)
    texts = encode.tokenizer.batch_decode(inputs["completion_ids"], skip_special_tokens=True)
    assert not set(texts) & set(ANSWERS)


def test_what_does_not_go_together_is_told(
    make: MakeGRPO, make_grpo: MakeGRPO, rollout: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="enumerate_answers needs beta 0.0, not 0.04"):
        make(beta=0.04)
    with pytest.raises(ValueError, match="a multiple of num_generations, 3"):
        make(per_device_train_batch_size=4, gradient_accumulation_steps=3)
    with pytest.raises(ValueError, match="has 3 answers that could be listed, and num_generations is 2"):
        rollout(make(num_generations=2))
    with pytest.raises(ValueError, match="tokens, and max_completion_length is 1: raise it"):
        rollout(make(max_completion_length=1))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="the answers of the task ReferenceSegmentation cannot be listed"):
        rollout(make())
