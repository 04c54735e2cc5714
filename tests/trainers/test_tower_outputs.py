"""Frozen towers run once for each clip of a generation batch, and no number of a step shows it."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from aurora_rl.assembly.model import freeze, keep_towers_in
from aurora_rl.data.sample import AVSample
from aurora_rl.inference.predictor import Predictor
from aurora_rl.models.collate import SFTCollator, distinct_media
from aurora_rl.models.encoding import EncodedSample, SampleEncoder
from aurora_rl.models.grounding import segmentation_model, shared_media, sharing_tower_outputs
from aurora_rl.models.loading import LoadedModel
from aurora_rl.models.tower_outputs import TowerOutputs
from aurora_rl.trainers import shared_towers
from aurora_rl.trainers.grounded_rollouts import new_tower_outputs
from aurora_rl.trainers.grpo import AuroraGRPOTrainer
from aurora_rl.trainers.sft import AuroraSFTTrainer

MakeGRPO = Callable[..., AuroraGRPOTrainer]
TOWERS = ("visual", "audio_tower")
#: A generation batch is two prompts of two completions each: two optimiser steps of two micro-batches, taken twice.
STEP = {
    "script": None,
    "beta": 0.1,
    "mask_loss_on": "all",
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_iterations": 2,
    "dropout": 0.0,
}
CLIPS, PASSES = 2, 5


def letters(completions: list, **columns: Any) -> list[float]:
    """Differs between sampled completions, even of a random model."""
    return [sum(map(ord, completion[0]["content"])) % 7 / 7 for completion in completions]


@contextlib.contextmanager
def clips_through_towers(*models: nn.Module) -> Iterator[dict[str, int]]:
    """The number of clips that each tower has read, in all models together."""
    read = dict.fromkeys(TOWERS, 0)
    handles = []

    def count(name: str, sizes: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
            read[name] += len(kwargs[sizes])

        return hook

    for model in map(segmentation_model, models):
        for name, sizes in zip(TOWERS, ("grid_thw", "feature_lens"), strict=True):
            hook = count(name, sizes)
            handles.append(model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True))
    yield read
    for handle in handles:
        handle.remove()


def log_probs_of(trainer: AuroraGRPOTrainer) -> list[torch.Tensor]:
    """Fills with the log-probabilities of every pass, in order."""
    passes: list[torch.Tensor] = []
    compute = trainer._get_per_token_logps_and_entropies

    def record(*args: Any, **kwargs: Any) -> Any:
        result = compute(*args, **kwargs)
        passes.append(result[0].detach().clone())
        return result

    trainer._get_per_token_logps_and_entropies = record
    return passes


def trained(make_grpo: MakeGRPO, **options: Any) -> tuple[AuroraGRPOTrainer, list[torch.Tensor], dict[str, int]]:
    trainer = make_grpo(rewards=[letters], **{**STEP, **options})
    passes = log_probs_of(trainer)
    models = [trainer.model] if trainer.ref_model is None else [trainer.model, trainer.ref_model]
    with clips_through_towers(*models) as read:
        trainer.train()
    return trainer, passes, read


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"peft": True, "gradient_checkpointing": True},
        {"peft": True, "bf16": True, "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4},
    ],
    ids=["full", "LoRA, checkpointing", "LoRA, bf16, evaluated"],
)
def test_frozen_towers_run_once_for_a_clip_of_a_generation_batch(
    make_grpo: MakeGRPO,
    loaded: LoadedModel,
    train_samples: list[AVSample],
    options: dict,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    freeze(loaded.model, TOWERS)
    samples = [train_samples[0], train_samples[4]]
    evaluated = 2 * ("eval_steps" in options)  # two steps, two rows on one clip
    trainer, passes, read = trained(make_grpo, samples=samples, **options)
    assert read == dict.fromkeys(TOWERS, CLIPS + evaluated)
    assert trainer._tower_outputs == {}, "what was kept outlives the generation batch"
    if options.get("bf16"):
        return  # prefill then has the precision of training, so that other tokens are sampled
    monkeypatch.setattr(shared_towers, "new_tower_outputs", lambda *args, **kwargs: None)
    plain, plain_passes, plain_read = trained(make_grpo, samples=samples, **options)
    assert all(plain_read[name] >= PASSES * CLIPS for name in TOWERS)
    assert len(passes) == len(plain_passes) == 2 + 4  # old and reference log-probabilities, micro-batches
    for found, expected in zip(passes, plain_passes, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    steps = [[log for log in run.state.log_history if "grad_norm" in log] for run in (trainer, plain)]
    for log, expected in zip(*steps, strict=True):
        for name in ("loss", "grad_norm", "mask_loss", "kl"):
            assert log[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6)
    weights = dict(plain.model.named_parameters())
    for name, weight in trainer.model.named_parameters():
        torch.testing.assert_close(weight, weights[name], atol=1e-4, rtol=0)


def test_towers_of_a_reference_that_follows_the_policy_run_for_it(
    make_grpo: MakeGRPO, loaded: LoadedModel, train_samples: list[AVSample]
) -> None:
    freeze(loaded.model, TOWERS)
    synced = {"sync_ref_model": True, "ref_model_sync_steps": 1}
    samples = [train_samples[0], train_samples[4]]
    _, _, read = trained(make_grpo, samples=samples, num_iterations=1, max_steps=1, **synced)
    assert read == dict.fromkeys(TOWERS, 2 * CLIPS)


def adapted(model: Any, where: str) -> Any:
    """LoRA in some part, which a reference pass switches off."""
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=where))
    wrapped.base_model.disable_adapter_layers()  # none of them wants a gradient then
    return segmentation_model(wrapped)


def with_dropout(model: Any) -> Any:
    model.audio_tower.config.dropout = 0.1
    return model


def with_a_trained_projector(model: Any) -> Any:
    model.visual.merger.requires_grad_(True)
    return model


@pytest.mark.parametrize(
    ("change", "is_shared"),
    [
        (lambda model: model, True),
        (lambda model: adapted(model, r"model\.layers\.\d+\.self_attn\.(q_proj|v_proj)"), True),
        (with_a_trained_projector, False),
        (lambda model: adapted(model, r"visual\.blocks\.\d+\.attn\.proj"), False),
        (with_dropout, False),
    ],
    ids=["frozen", "LoRA in the language model", "trained projector", "LoRA in a tower", "dropout"],
)
def test_towers_that_may_compute_something_else_in_another_pass_are_not_shared(
    loaded: LoadedModel, change: Callable[[Any], Any], is_shared: bool
) -> None:
    model = copy.deepcopy(loaded.model)
    freeze(model, TOWERS)
    precision = SimpleNamespace(autocast=contextlib.nullcontext)
    assert (new_tower_outputs(change(model), precision, is_fsdp=False) is not None) is is_shared


@pytest.fixture
def rows(encode: SampleEncoder, train_samples: list[AVSample]) -> list[EncodedSample]:
    """Two rows on each of two clips; a test's third has a clip of its own."""
    return [encode(train_samples[index]) for index in (0, 4)]


def run(loaded: LoadedModel, rows: list[EncodedSample]) -> torch.Tensor:
    features, media_index = distinct_media(rows)
    length = max(len(row.prompt.prompt_ids) for row in rows)
    ids = torch.tensor([row.prompt.prompt_ids + [5] * (length - len(row.prompt.prompt_ids)) for row in rows])
    with torch.no_grad(), shared_media(loaded.model, media_index, features):
        return loaded.model(input_ids=ids, **loaded.family.collate_features(features, media_index)).logits


def test_what_sampling_leaves_has_the_precision_of_training(loaded: LoadedModel, rows: list[EncodedSample]) -> None:
    """With LoRA, `generate` runs outside of the context that `bf16: true` puts around all other passes."""
    loaded.model.eval()
    bf16 = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    with bf16():
        expected = run(loaded, rows)
    for precision, differs in ((bf16, False), (contextlib.nullcontext, True)):
        with sharing_tower_outputs([loaded.model], TowerOutputs(autocast=precision)):
            run(loaded, rows)
            with bf16():
                assert (not torch.equal(run(loaded, rows), expected)) is differs


# ---- a folder that outlasts the run ---------------------------------------------------------------------------------


def naming_clips(collate: SFTCollator) -> tuple[SFTCollator, None]:
    collate.names_clips = True
    return collate, None


def losses_of(trainer: AuroraSFTTrainer) -> tuple[list[float], dict[str, int]]:
    """The losses of two steps and of an evaluation, and the number of clips that each tower has read."""
    with clips_through_towers(trainer.model) as read:
        trainer.train()
        evaluated = trainer.evaluate()
    logs = [log[name] for log in trainer.state.log_history for name in ("loss", "mask_loss") if name in log]
    return [*logs, evaluated["eval_loss"]], read


def test_towers_run_in_the_first_training_and_neither_in_the_next_nor_in_grpo_or_evaluation(
    make_sft: Callable[..., AuroraSFTTrainer],
    make_grpo: MakeGRPO,
    loaded: LoadedModel,
    encode: SampleEncoder,
    train_samples: list[AVSample],
    tmp_path: Path,
) -> None:
    freeze(loaded.model, TOWERS)
    samples = [train_samples[0], train_samples[4]]
    plain, read = losses_of(make_sft(samples=samples))
    keep_towers_in(str(tmp_path / "towers"), loaded)
    first, read_first = losses_of(make_sft(samples=samples, teach=naming_clips))
    again, read_again = losses_of(make_sft(samples=samples, teach=naming_clips))
    assert 0 < read_first["visual"] < read["visual"]
    assert read_again == dict.fromkeys(TOWERS, 0)
    assert first == pytest.approx(plain, rel=1e-4)
    assert again == pytest.approx(plain, rel=1e-4)
    _, _, read = trained(make_grpo, samples=samples, num_iterations=1, max_steps=1)
    assert read == dict.fromkeys(TOWERS, 0)
    with clips_through_towers(loaded.model) as read:
        assert list(Predictor(loaded.model, encode, max_completion_length=2).predict(samples))
    assert read == dict.fromkeys(TOWERS, 0)


@pytest.mark.parametrize("trainer", ["make_sft", "make_grpo"])
def test_a_folder_of_outputs_of_trained_towers_is_refused(
    loaded: LoadedModel, tmp_path: Path, trainer: str, request: pytest.FixtureRequest
) -> None:
    freeze(loaded.model, TOWERS[:1])
    keep_towers_in(str(tmp_path / "towers"), loaded)
    with pytest.raises(ValueError, match=r"tower_cache keeps what frozen towers compute, but audio_tower.* is trained"):
        request.getfixturevalue(trainer)()


# ---- processes that must stay together ------------------------------------------------------------------------------


@pytest.mark.parametrize("in_step", [False, True], ids=["alone", "in step"])
def test_only_a_pass_over_all_clips_ends_the_calls_of_spread_towers(
    loaded: LoadedModel, rows: list[EncodedSample], in_step: bool
) -> None:
    """One process has the clip of its first chunk again in the second; another has not, and must not wait for it."""
    loaded.model.eval()
    outputs = TowerOutputs(in_step=in_step)
    with sharing_tower_outputs([loaded.model], outputs), clips_through_towers(loaded.model) as read:
        first = run(loaded, [rows[0]])
        again = run(loaded, [rows[0]])
        run(loaded, [rows[1]])
        assert read["visual"] == (3 if in_step else 2)
        outputs.complete()
        together = run(loaded, rows[::-1])
        assert read["visual"] == (3 if in_step else 2)
    torch.testing.assert_close(again, first, atol=1e-6, rtol=0)
    torch.testing.assert_close(together[1, : first.size(1)], first[0], atol=1e-5, rtol=0)


def test_a_clip_that_was_never_computed_is_an_error_and_not_a_wait(
    loaded: LoadedModel, rows: list[EncodedSample]
) -> None:
    outputs = TowerOutputs(in_step=True)
    with sharing_tower_outputs([loaded.model], outputs):
        run(loaded, [rows[0]])
        outputs.complete()
        with pytest.raises(RuntimeError, match="a clip's (video|audio) was never computed in this generation batch"):
            run(loaded, [rows[1]])


def test_what_is_kept_takes_the_bytes_of_its_features_and_ends_with_its_clip(
    loaded: LoadedModel, rows: list[EncodedSample]
) -> None:
    outputs = TowerOutputs()
    with sharing_tower_outputs([loaded.model], outputs):
        for row in rows:
            run(loaded, [row])
    config = loaded.model.config
    media = (config.video_token_id, config.audio_token_id)
    sizes = [
        sum(token in media for token in row.prompt.prompt_ids) * config.text_config.hidden_size * 4 for row in rows
    ]
    assert outputs.num_bytes == sum(sizes)
    outputs.keep_only([rows[1].prompt.features])
    assert outputs.num_bytes == sizes[1]
