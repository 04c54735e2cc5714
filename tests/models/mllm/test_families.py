"""Each family on the way of a run: supervised fine-tuning of LoRA, GRPO that continues it, loading, exports."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoProcessor

from aurora_rl.assembly.arguments import DataArguments, ModelArguments, TargetArguments
from aurora_rl.assembly.benchmarks import load_split
from aurora_rl.assembly.encoder import assemble_encoder
from aurora_rl.assembly.model import peft_config
from aurora_rl.data.containers import MediaError
from aurora_rl.data.sample import AVSample
from aurora_rl.export.hub_folder import HubExport, export_for_hub
from aurora_rl.export.model_card import CardDetails
from aurora_rl.models.loading import load_model
from aurora_rl.models.mllm import FAMILIES, MLLMFamily
from aurora_rl.models.mllm.base import OWN_FIELDS
from aurora_rl.models.mllm.qwen2_5_omni import Qwen2_5OmniFamily
from aurora_rl.rollout.engine import check_family
from aurora_rl.rollout.export import export_checkpoint
from aurora_rl.scripts import grpo, sft
from aurora_rl.trainers.grpo_config import AuroraGRPOConfig
from aurora_rl.trainers.sft_config import AuroraSFTConfig

SEGMENTER = {"type": "dot", "image_size": 32, "width": 8}
QUIET = {"report_to": "none", "use_cpu": True, "bf16": False, "logging_steps": 1, "max_steps": 2}
#: Qwen2.5-Omni walks this way in `tests/paths`.
OTHERS = [family for family in FAMILIES if family is not Qwen2_5OmniFamily]


@pytest.fixture(scope="module", params=OTHERS, ids=lambda family: family.model_types[0])
def family(request: pytest.FixtureRequest) -> MLLMFamily:
    return request.param()


@pytest.fixture(scope="module")
def checkpoint(family: MLLMFamily, tmp_path_factory: pytest.TempPathFactory) -> str:
    texts = ["Look: I see a drum.\nListen: I hear a bell.\nAnswer: the target is the drum. It is [SEG]."]
    model, processor = family.build_tiny(texts, segmenter=SEGMENTER)
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_it_trains_by_both_recipes_loads_and_is_exported(
    family: MLLMFamily, checkpoint: str, data_args: DataArguments, tmp_path: Path
) -> None:
    sft_dir, grpo_dir = str(tmp_path / "sft"), str(tmp_path / "grpo")
    start = ModelArguments(checkpoint, freeze=["towers"], use_peft=True, lora_r=2)
    data_args = dataclasses.replace(data_args, drop_sound=not family.hears)
    sft_args = AuroraSFTConfig(sft_dir, per_device_train_batch_size=2, gradient_checkpointing=True, **QUIET)
    sft.main(start, data_args, TargetArguments(), sft_args)
    sizes = {"per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 4}
    args = AuroraGRPOConfig(grpo_dir, beta=0.1, **sizes, **QUIET)
    grpo.main(ModelArguments(sft_dir, freeze=["towers"]), data_args, grpo.RewardArguments(), args)
    assert json.loads(Path(grpo_dir, "trainer_state.json").read_text())["global_step"] == 2
    trained = load_model(grpo_dir)
    assert isinstance(trained.model, PeftModel) and type(trained.family) is type(family)
    assert any(p.any() for name, p in trained.model.named_parameters() if "lora_B" in name)
    hub = export_for_hub(grpo_dir, tmp_path / "hub", HubExport(), CardDetails("mine"))
    hears_nothing = "It hears nothing" in (hub / "README.md").read_text()
    assert hears_nothing is not family.hears
    engine = export_checkpoint(grpo_dir, tmp_path / "engine")
    fields = json.loads((engine / "config.json").read_text())
    assert fields["architectures"] == [family.engine_architecture]
    assert not set(fields.get(family.config_part, fields)) & set(OWN_FIELDS)


def test_lora_adapts_the_decoder_alone(family: MLLMFamily, checkpoint: str) -> None:
    """PEFT replaces the regular expression of a model with experts by the last names of what it matches."""
    loaded = load_model(checkpoint)
    named = {name for name, _ in loaded.model.named_modules() if re.fullmatch(family.lora_target_modules, name)}
    model = get_peft_model(loaded.model, peft_config(ModelArguments(checkpoint, use_peft=True), loaded))
    adapted = {name for name, module in model.get_base_model().named_modules() if isinstance(module, LoraLayer)}
    assert adapted == named and not any(map(family.is_tower, adapted))


def test_what_is_saved_loads_with_the_same_weights(family: MLLMFamily, checkpoint: str) -> None:
    first, second = load_model(checkpoint).model.state_dict(), load_model(checkpoint).model.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_in_the_layout_of_the_hub_loads_too(family: MLLMFamily, checkpoint: str, tmp_path: Path) -> None:
    """What transformers' own class writes: names of earlier versions, and a matrix for each expert."""
    ours = load_model(checkpoint).model.state_dict()
    stock = family.model_class.stock.from_pretrained(checkpoint)
    del stock.config.segmenter
    stock.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    assert any(name.startswith("visual.") for name in written) or family.model_types != ("qwen2_5_vl",)  # control
    found = load_model(str(tmp_path), segmenter=SEGMENTER).model.state_dict()
    of_heads = ("seg_head.", "lm_head.suppressed")
    assert all(torch.equal(found[name], ours[name]) for name in ours if not name.startswith(of_heads))


def test_it_has_less_code_than_a_regular_family_may(family: MLLMFamily) -> None:
    """Sixty lines without docstrings, comments and the maker of tiny models."""
    folder = Path(__file__).parents[3] / "aurora_rl/models/mllm" / type(family).__module__.rpartition(".")[2]
    text = "".join((folder / name).read_text() for name in ("__init__.py", "model.py"))
    code = re.sub(r'"""(?s:.*?)"""', "", text).splitlines()
    assert len([line for line in code if line.strip() and not line.strip().startswith("#")]) <= 60


def test_vllm_is_refused_where_it_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    check_family(Qwen2_5OmniFamily())
    monkeypatch.setattr(Qwen2_5OmniFamily, "engine_refusal", "it computes other log-probabilities")
    with pytest.raises(ValueError, match=r"other log-probabilities: set use_vllm to false"):
        check_family(Qwen2_5OmniFamily())


def test_vllm_is_given_a_limit_for_what_the_family_senses(family: MLLMFamily) -> None:
    assert family.media_limits.get("video", 0) == int(family.sees == "video")
    assert family.media_limits.get("audio", 0) == int(family.hears)


def test_sound_is_an_error_for_a_family_without_ears(
    family: MLLMFamily, checkpoint: str, data_args: DataArguments, train_samples: list[AVSample]
) -> None:
    loaded = load_model(checkpoint)
    if family.hears:
        assert "audio" in assemble_encoder(data_args, loaded, train_samples)(train_samples[0]).prompt.engine.media
        return
    with pytest.raises(MediaError, match=r"has sound, but \w+Family has no ears: set `drop_sound: true`"):
        assemble_encoder(data_args, loaded, train_samples)
    deaf = dataclasses.replace(data_args, drop_sound=True)
    encode = assemble_encoder(deaf, loaded, load_split(deaf, "train"))
    row = encode(dataclasses.replace(train_samples[0], use_audio_in_video=True))
    assert "audio" not in row.prompt.engine.media and row.loudness_dbfs > -100  # rewards know how loud it is
    with pytest.raises(MediaError, match="has no ears"):  # a video's own sound is known when it is read
        encode.options = dataclasses.replace(encode.options, drop_sound=False)
        encode(train_samples[0])
