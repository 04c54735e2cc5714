"""Outputs of towers on disk: read, they change no number; what is not theirs is never read."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from aurora_rl.assembly.arguments import ModelArguments
from aurora_rl.assembly.model import assemble_model, keep_towers_in
from aurora_rl.caches.tower_outputs import TowerCache, TowerCacheError
from aurora_rl.models import tower_outputs as kept_outputs
from aurora_rl.models.grounding import sharing_tower_outputs
from aurora_rl.models.loading import LoadedModel
from aurora_rl.models.mllm import MLLM_FAMILIES
from aurora_rl.models.mllm.clip_outputs import KeptOutput
from aurora_rl.models.mllm.contract import SECOND, Subject
from aurora_rl.models.mllm.tower_fingerprint import towers_fingerprint
from aurora_rl.models.tower_outputs import ClipDigest, ClipOutput, TowerOutputs, TowerRun, clip_digest

VIDEO = TowerRun("video", torch.float32, torch.device("cpu"))
CLIP = {"pixels": torch.arange(6.0).view(2, 3)}
FORM = KeptOutput(pooler_output=torch.zeros(0, 4))


def part(value: float = 1.0) -> ClipOutput:
    return ClipOutput(torch.full((3, 4), value))


def filled(folder: Path, towers: str = "towers") -> tuple[TowerCache, Path]:
    """A cache with one clip, and the clip's file."""
    cache = TowerCache(folder, towers)
    cache.write(VIDEO, FORM, {clip_digest(CLIP): part()})
    return cache, folder / f"{towers}-float32" / f"{clip_digest(CLIP)}.video.safetensors"


@contextlib.contextmanager
def tower_calls(subject: Subject) -> Iterator[list[str]]:
    calls: list[str] = []
    handles = [
        subject.model.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
        for name in subject.family.tower_names
    ]
    yield calls
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("model_type", ["qwen2_5_omni_thinker", "qwen3_vl", "gemma4"])
def test_a_later_run_reads_what_the_towers_have_computed(model_type: str, tmp_path: Path) -> None:
    """Lists of features, features of deeper layers, padded features with a mask; clips of other sizes, one silent."""
    subject = Subject.of(MLLM_FAMILIES[model_type]())
    subject.model.tower_cache = TowerCache.of_model(tmp_path, subject.model)
    prompts = [subject.encode(frames=2 * i + 2, sound=i * SECOND, seed=i) for i in range(3)]
    expected = subject.alone(prompts)
    with tower_calls(subject) as calls:
        with sharing_tower_outputs([subject.model], TowerOutputs()):
            subject.logits(prompts)
        assert calls
        calls.clear()
        order = [2, 0, 1, 0]
        for rows in (order, [0]):  # the latter of a silent clip alone, which has no output of the audio tower
            with sharing_tower_outputs([subject.model], TowerOutputs()):
                again = subject.logits([prompts[row] for row in rows])
            for found, row in zip(again, rows, strict=True):
                torch.testing.assert_close(found, expected[row], atol=1e-4, rtol=1e-4)
        assert not calls
        other = subject.encode(frames=2, sound=0, seed=7)
        with sharing_tower_outputs([subject.model], TowerOutputs()):
            subject.logits([other])
        assert calls, "a clip that was never computed is not found"


def test_trained_elsewhere_or_saved_towers_stay_and_each_weight_and_option_of_theirs_counts(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    model, names = loaded.model, {towers_fingerprint(loaded.model)}
    with torch.no_grad():
        model.lm_head.weight.add_(1)
        next(model.get_decoder().layers.parameters()).add_(1)
    model.save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    again = assemble_model(ModelArguments(str(tmp_path), tower_cache="cache"), head=None, is_trainable=False).model
    assert {again.tower_cache.towers} == names
    with torch.no_grad():
        next(model.audio_tower.parameters()).view(-1)[0] += 1e-3
    names.add(towers_fingerprint(model))
    model.visual.config.window_size += 1
    assert len(names | {towers_fingerprint(model)}) == 3


def test_what_is_written_is_read_as_it_was(tmp_path: Path) -> None:
    cache = TowerCache(tmp_path, "towers")
    run = dataclasses.replace(VIDEO, precision=torch.bfloat16)
    written = ClipOutput(
        torch.randn(3, 4).bfloat16(), (torch.randn(3, 4), torch.randn(3, 4).half()), torch.tensor([True, False, True])
    )
    form = KeptOutput(last_hidden_state=torch.zeros(1, 0, 4, dtype=torch.bfloat16))
    cache.write(run, form, {"a": written})
    found = TowerCache(tmp_path, "towers").read(run, "a")
    tensors = [
        (found.features, written.features),
        (found.mask, written.mask),
        *zip(found.levels, written.levels, strict=True),
    ]
    assert all(there.dtype == was.dtype and torch.equal(there, was) for there, was in tensors)
    assert cache.read_form(run).last_hidden_state.shape == (1, 0, 4)
    assert cache.read(VIDEO, "a") is None, "another precision is another output"
    assert cache.read(run, "b") is None
    assert TowerCache(tmp_path, "others").read(run, "a") is None


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "incomplete|invalid|beyond|not cover"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\7"), "bytes are not those"),
        (lambda path: path.write_bytes(b""), "header"),
        (lambda path: path.with_name(f"{'0' * 64}.video.safetensors").rename(path), "belongs to another clip"),
    ],
    ids=["cut off", "one byte", "empty", "renamed"],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage, reason: str) -> None:
    cache, path = filled(tmp_path)
    cache.write(VIDEO, FORM, {"0" * 64: part(2.0)})
    damage(path)
    with pytest.raises(TowerCacheError, match=f"{path.name} cannot be used .*: delete it") as error:
        cache.read(VIDEO, clip_digest(CLIP))
    assert any(word in str(error.value).lower() for word in reason.split("|")), error.value


def test_a_folder_that_cannot_be_written_ends_writing_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.joinpath("file").write_text("no folder")
    cache = TowerCache(tmp_path / "file", "towers")
    with caplog.at_level(logging.WARNING):
        cache.write(VIDEO, FORM, {"a": part()})
        cache.write(VIDEO, FORM, {"b": part()})
    assert len(caplog.records) == 1
    assert "keeps no more outputs of the towers on disk" in caplog.text


def test_a_clip_is_named_by_all_that_the_towers_read_of_it() -> None:
    others = [{"pixels": CLIP["pixels"].view(3, 2)}, {"pixels": CLIP["pixels"].double()}, {"sound": CLIP["pixels"]}]
    assert len({clip_digest(clip) for clip in (CLIP, *others)}) == 4
    assert clip_digest(ClipDigest(clip_digest(CLIP))) == clip_digest(dict(CLIP))


@pytest.mark.parametrize("all_have_theirs", [True, False])
def test_spread_towers_are_left_out_only_where_each_process_has_its_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, all_have_theirs: bool
) -> None:
    asked: list[bool] = []

    def of_all(fact: bool) -> bool:
        asked.append(fact)
        return fact and all_have_theirs

    monkeypatch.setattr(kept_outputs, "true_on_all", of_all)
    outputs = TowerOutputs(in_step=True)
    outputs.disk, _ = filled(tmp_path)
    assert (outputs.read(VIDEO, [CLIP]) is not None) is all_have_theirs
    assert outputs.read(VIDEO, [CLIP, {"pixels": torch.zeros(1)}]) is None
    assert outputs.read(dataclasses.replace(VIDEO, modality="audio"), []) is None, "its form is not known"
    assert asked == [True, False, False]


def test_a_family_without_towers_or_with_a_model_of_its_own_is_refused(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gemma = dataclasses.replace(loaded, family=MLLM_FAMILIES["gemma4_unified"]())
    with pytest.raises(ValueError, match="tower_cache: Gemma4UnifiedFamily has no towers"):
        keep_towers_in(str(tmp_path), gemma)
    monkeypatch.setattr("aurora_rl.assembly.model.TowerSharingMixin", LoadedModel)
    with pytest.raises(ValueError, match="the model of Qwen2_5OmniFamily gives clips to rows by itself"):
        keep_towers_in(str(tmp_path), loaded)
