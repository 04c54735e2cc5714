"""Feature distillation: the authors' release computed it and never added it (its eighth defect); here it moves weights.

The teacher is the student's own architecture with other weights: it answers "It is drum [SEG]." to the same clip.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from aurora_rl.assembly.arguments import DataArguments, ModelArguments, TargetArguments
from aurora_rl.assembly.teacher import assemble_teacher, stored_features
from aurora_rl.caches.teacher_features import (
    FeatureCollator,
    LiveTeacherCollator,
    TeacherFeatures,
    TeacherFeaturesError,
)
from aurora_rl.data.sample import AVSample
from aurora_rl.models.checkpoint_files import fingerprint_checkpoint
from aurora_rl.models.collate import SFTCollator
from aurora_rl.models.loading import load_model
from aurora_rl.models.teacher import Teacher
from aurora_rl.tasks.targets import forced_answer
from aurora_rl.trainers.sft import AuroraSFTTrainer

MakeSFT = Callable[..., AuroraSFTTrainer]
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def teacher_checkpoint(tiny_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model with all weights of its head and last layer moved; read-only."""
    loaded = load_model(tiny_checkpoint)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in loaded.model.seg_head.projector.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path_factory.mktemp("teacher")
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def target_args(teacher_checkpoint: str, tmp_path: Path) -> TargetArguments:
    return TargetArguments(
        teacher=teacher_checkpoint, teacher_features=str(tmp_path / "features.safetensors"), teacher_batch_size=3
    )


@pytest.fixture
def model_args(tiny_checkpoint: str) -> ModelArguments:
    return ModelArguments(model=tiny_checkpoint)


@pytest.fixture
def teacher(target_args: TargetArguments, model_args: ModelArguments, data_args: DataArguments) -> Teacher:
    return assemble_teacher(target_args, model_args, data_args)


@pytest.fixture
def features(
    target_args: TargetArguments,
    model_args: ModelArguments,
    data_args: DataArguments,
    train_samples: list[AVSample],
) -> TeacherFeatures:
    return stored_features(target_args, model_args, data_args, train_samples)


def live(teacher: Teacher) -> Callable[[SFTCollator], tuple[Any, Teacher]]:
    return lambda collate: (LiveTeacherCollator(collate, teacher), teacher)


def stored(features: TeacherFeatures) -> Callable[[SFTCollator], tuple[Any, None]]:
    return lambda collate: (FeatureCollator(collate, features), None)


def trained(make_sft: MakeSFT, **options: Any) -> tuple[Weights, list[float]]:
    """Weights and losses after three steps; Adam's full steps along gradients of rounding are held back by epsilon."""
    trainer = make_sft(max_steps=3, learning_rate=1e-2, adam_epsilon=1e-4, **options)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}, losses


def features_by_hand(checkpoint: str, samples: list[AVSample], teacher: Teacher) -> torch.Tensor:
    """e = projector(h at `[SEG]`) of the forced answer, by a plain forward pass with all hidden states, row by row."""
    loaded = load_model(checkpoint)
    model, rows = loaded.model.eval(), []
    for sample in samples:
        batch = SFTCollator(teacher.collate_rows.encode, loaded.seg_token_id, forced_answer)([sample.to_row()])
        text = loaded.processor.tokenizer.decode(batch["input_ids"][0][batch["labels"][0] != -100])
        assert text.startswith(f"It is {sample.category} [SEG].")
        position = (batch["input_ids"][0] == loaded.seg_token_id).nonzero().item()
        inputs = {name: x for name, x in batch.items() if not name.startswith(("seg_", "gt_", "labels"))}
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states[-1]
            rows.append(model.seg_head.projector(states[0, position]))
    return torch.stack(rows)


def test_the_features_are_the_projected_states_at_the_teachers_seg(teacher, teacher_checkpoint, train_samples):
    samples = train_samples[:5]
    expected = features_by_hand(teacher_checkpoint, samples, teacher)
    torch.testing.assert_close(teacher.features_of(samples), expected, atol=1e-5, rtol=1e-4)
    assert expected.std() > 0.01  # not all the same, so that a swapped row would show


def test_the_loss_grows_by_lambda_times_the_squared_distance(make_sft, loaded, teacher, train_samples):
    plain = make_sft()
    rows = [plain.train_dataset[i] for i in (0, 2, 3)]
    batch = plain.data_collator(rows)
    without = plain.compute_loss(plain.model.eval(), dict(batch)).item()
    model = loaded.model.eval()
    with torch.no_grad():
        inputs = {k: v for k, v in batch.items() if k not in ("labels", "gt_masks", "seg_weights")}
        student = model(**inputs).sparse_prompt_embeddings
    distance = (student - teacher.features_of([train_samples[i] for i in (0, 2, 3)])).square().mean().item()
    for weight in (1.0, 0.25):
        trainer = make_sft(teach=live(teacher), distill_weight=weight)
        loss = trainer.compute_loss(trainer.model.eval(), trainer.data_collator(rows)).item()
        assert loss == pytest.approx(without + weight * distance, abs=1e-5)
    assert distance > 0.01


def test_inputs_of_a_teacher_that_is_not_there_are_refused(make_sft, teacher):
    """Else a run would train without the distillation that its collator was set up for."""
    trainer = make_sft(teach=live(teacher))
    trainer.teacher = None
    batch = trainer.data_collator([trainer.train_dataset[0]])
    with pytest.raises(ValueError, match="give it to the trainer as `teacher`"):
        trainer.compute_loss(trainer.model, batch)


def test_lambda_zero_is_no_distillation_and_lambda_one_is_not(make_sft, features):
    none, _ = trained(make_sft)
    zero, _ = trained(make_sft, teach=stored(features), distill_weight=0.0)
    one, _ = trained(make_sft, teach=stored(features), distill_weight=1.0)
    assert all(torch.equal(zero[name], weight) for name, weight in none.items())
    assert (one["seg_head.projector.2.weight"] - none["seg_head.projector.2.weight"]).abs().max() > 1e-3
    assert (one["model.layers.0.self_attn.q_proj.weight"] - none["model.layers.0.self_attn.q_proj.weight"]).any()


def test_a_live_teacher_and_its_file_give_the_same_losses(make_sft, teacher, features):
    """Features differ by the padding of their batches, that is by rounding."""
    from_live, live_losses = trained(make_sft, teach=live(teacher))
    from_file, file_losses = trained(make_sft, teach=stored(features))
    _, plain_losses = trained(make_sft)
    assert file_losses == pytest.approx(live_losses, abs=1e-4)
    assert abs(plain_losses[0] - live_losses[0]) > 1e-2
    for name, weight in from_live.items():
        torch.testing.assert_close(from_file[name], weight, atol=1e-4, rtol=1e-3)


def test_training_leaves_the_teacher_as_it_is(make_sft, teacher):
    before = {name: weight.clone() for name, weight in teacher.model.named_parameters()}
    trained(make_sft, teach=live(teacher))
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.model.named_parameters())
    assert not teacher.model.training
    assert not any(weight.requires_grad for weight in teacher.model.parameters())


def test_two_accumulated_half_batches_distil_like_one_batch(make_sft, features, train_samples):
    """One row has no `[SEG]`, so the halves differ in their numbers of features."""
    silent = dataclasses.replace(train_samples[0], chain=train_samples[0].chain.replace("[SEG]", "hidden"))
    samples = [silent, *train_samples[1:4]]
    options = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "ce_weight": 0.0}
    options |= {"mask_bce_weight": 0.0, "mask_dice_weight": 0.0, "samples": samples, "teach": stored(features)}
    whole = make_sft(per_device_train_batch_size=4, **options)
    halves = make_sft(per_device_train_batch_size=2, gradient_accumulation_steps=2, **options)
    start = {name: weight.detach().clone() for name, weight in whole.model.named_parameters()}
    whole.train()
    halves.train()
    for name, weight in whole.model.named_parameters():
        step, other = weight - start[name], halves.model.get_parameter(name) - start[name]
        assert torch.allclose(other, step, atol=2e-6, rtol=1e-3), name
    moved = whole.model.seg_head.projector[2].weight - start["seg_head.projector.2.weight"]
    assert moved.abs().max() > 1e-4


# The file


def test_the_file_is_made_once(target_args, model_args, data_args, train_samples, features, monkeypatch):
    monkeypatch.setattr(Teacher, "features_of", lambda *args: pytest.fail("computed a second time"))
    again = stored_features(target_args, model_args, data_args, train_samples)
    assert torch.equal(again.of(train_samples), features.of(train_samples))


def test_only_the_missing_rows_are_computed(target_args, model_args, data_args, train_samples, monkeypatch):
    some = stored_features(target_args, model_args, data_args, train_samples[:4])
    asked = []
    compute = Teacher.features_of
    monkeypatch.setattr(Teacher, "features_of", lambda self, rows: asked.extend(rows) or compute(self, rows))
    every = stored_features(target_args, model_args, data_args, train_samples)
    assert asked == train_samples[4:]
    assert torch.equal(every.of(train_samples[:4]), some.of(train_samples[:4]))


def test_a_killed_run_keeps_what_it_had_saved(target_args, model_args, data_args, train_samples, monkeypatch):
    monkeypatch.setattr("aurora_rl.caches.teacher_features.ROWS_PER_SAVE", 4)
    compute, calls = Teacher.features_of, []

    def killed_in_the_second_save(self: Teacher, rows: list[AVSample]) -> torch.Tensor:
        calls.append(rows)
        if len(calls) == 4:  # batches of 3 and 1 rows make a save of 4, the third and fourth the next one
            raise KeyboardInterrupt
        return compute(self, rows)

    monkeypatch.setattr(Teacher, "features_of", killed_in_the_second_save)
    with pytest.raises(KeyboardInterrupt):
        stored_features(target_args, model_args, data_args, train_samples)
    calls.clear()
    monkeypatch.setattr(Teacher, "features_of", lambda self, rows: calls.extend(rows) or compute(self, rows))
    stored_features(target_args, model_args, data_args, train_samples)
    assert calls == train_samples[4:]


def test_another_teacher_is_refused(target_args, model_args, data_args, train_samples, features, tiny_checkpoint):
    other = dataclasses.replace(target_args, teacher=tiny_checkpoint)
    with pytest.raises(TeacherFeaturesError, match="features of another teacher"):
        stored_features(other, model_args, data_args, train_samples)


def test_the_teacher_asked_in_other_words_is_another_teacher(
    target_args, model_args, data_args, train_samples, features
):
    asked = dataclasses.replace(target_args, teacher_instruction="What is {reference}?")
    with pytest.raises(TeacherFeaturesError, match="features of another teacher"):
        stored_features(asked, model_args, data_args, train_samples)


def test_one_changed_weight_makes_another_teacher(teacher_checkpoint, tmp_path):
    loaded = load_model(teacher_checkpoint)
    loaded.model.save_pretrained(tmp_path / "same")
    loaded.processor.save_pretrained(tmp_path / "same")
    with torch.no_grad():
        loaded.model.lm_head.weight[0, 0] += 1e-3
    loaded.model.save_pretrained(tmp_path / "other")
    assert fingerprint_checkpoint(str(tmp_path / "same")) == fingerprint_checkpoint(teacher_checkpoint)
    assert fingerprint_checkpoint(str(tmp_path / "other")) != fingerprint_checkpoint(teacher_checkpoint)


@pytest.mark.parametrize("change", [{"category": "zebra"}, {"reference": "another"}, {"media_id": "another"}])
def test_features_of_a_row_that_has_changed_are_refused(features, train_samples, change):
    with pytest.raises(TeacherFeaturesError, match=f"row {train_samples[0].key} has changed"):
        features.of([dataclasses.replace(train_samples[0], **change)])


def test_a_row_without_features_is_named(features, train_samples):
    with pytest.raises(TeacherFeaturesError, match="has no features of row"):
        features.of([dataclasses.replace(train_samples[0], row=999)])


def test_a_damaged_file_is_named(features):
    path = Path(features.path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TeacherFeaturesError, match=r"features\.safetensors is no file of teacher features"):
        TeacherFeatures(path, features.fingerprint)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda features: features[0], r"of shape \(\d+,\)"),
        (lambda features: features[:-1], r"of shape .* for \d+ rows"),
        (lambda features: features.half(), "torch.float16"),
        (lambda features: features * torch.nan, "not finite"),
    ],
    ids=["shape", "rows", "dtype", "NaN"],
)
def test_a_file_of_other_features_is_named(features, change, words):
    with safe_open(features.path, framework="pt") as file:
        metadata, stored = file.metadata(), file.get_tensor("features")
    save_file({"features": change(stored).contiguous()}, features.path, metadata=metadata)
    with pytest.raises(TeacherFeaturesError, match=rf"features\.safetensors.*{words}.*delete it"):
        TeacherFeatures(features.path, features.fingerprint)


def test_a_pipe_in_place_of_the_file_is_named_and_not_waited_for(features):
    Path(features.path).unlink()
    os.mkfifo(features.path)
    with pytest.raises(TeacherFeaturesError, match=r"features\.safetensors is no plain file but a pipe"):
        TeacherFeatures(features.path, features.fingerprint)


def test_a_teacher_of_another_width_is_refused(make_sft, features):
    wide = {key: torch.cat([row, row]) for key, row in features._features.items()}
    features._features = wide
    trainer = make_sft(teach=stored(features))
    with pytest.raises(ValueError, match="trained with another projector width"):
        trainer.train()


def test_a_file_without_a_teacher_is_refused():
    with pytest.raises(ValueError, match="say which one by `teacher`"):
        TargetArguments(teacher_features="features.safetensors")
